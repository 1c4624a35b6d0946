"""Hypothesis strategies: valid documents with any optional fields, at the edges of what the schema allows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ledger.core import statements as s
from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.price_books import PriceBook, Rate, rate_key
from ledger.core.records import (
    Adapter,
    Commitment,
    Deployment,
    Energy,
    FactorSet,
    FactorSource,
    Quality,
    Record,
    Speculative,
    Usage,
    Weights,
)
from tests.build import make_uuid7

EDGES = [0, 1, 23, 24, 255, 256, 2**31, 2**32 - 1, 2**32, 2**53 - 2, MAX_SAFE_INTEGER]

amounts = st.sampled_from(EDGES) | st.integers(0, MAX_SAFE_INTEGER)
signed = amounts | amounts.map(int.__neg__)
hex32 = st.binary(min_size=32, max_size=32).map(bytes.hex)
uuids = st.builds(make_uuid7, st.integers(0, 2**48 - 1), st.text(max_size=4))
# Everything that UTF-8 can spell: control characters, quotes, the last plane, combining marks, BOM, DEL.
names = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('\x00\x1f"\\/\x7f\ufeff\u2028é€😀\U0010ffff'),
    min_size=1,
    max_size=256,
) | st.sampled_from(["x" * 256, "😀" * 256])
labels = names.map(lambda name: name.replace("\0", "\1"))
slugs = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:~-]{0,63}", fullmatch=True)
reasons = st.from_regex(r"[a-z][a-z_]{0,31}", fullmatch=True)
currencies = st.from_regex(r"[A-Z]{3}", fullmatch=True)
texts = names | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1024)


def some_of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A dict with any subset of ``fields``; each subset size is likely."""
    return st.fixed_dictionaries({}, optional=fields)


def build(kind: Any, optional: dict[str, st.SearchStrategy[Any]], **required: Any) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda needed, more: kind(**needed, **more), st.fixed_dictionaries(required), some_of(**optional)
    )


weights = st.builds(
    Weights,
    method=st.sampled_from(["openssf-model-signing", "file", "hub-revision"]),
    digest=st.from_regex("[0-9a-f]{40,64}", fullmatch=True),
)
qualities = st.builds(Quality, value=signed, scale=st.integers(0, 9))
metrics = st.dictionaries(slugs, qualities, min_size=1, max_size=6)
commitments = st.builds(Commitment, digest=hex32, of=st.sampled_from(["tokens", "text"]))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    total = draw(amounts)
    more = draw(some_of(reasoning_tokens=amounts, drafted_tokens=amounts, accepted_tokens=amounts))
    if draw(st.booleans()):
        more["cached_input_tokens"] = draw(st.sampled_from([0, total]) | st.integers(0, total))
    return Usage(input_tokens=total, output_tokens=draw(amounts), **more)


@st.composite
def energies(draw: st.DrawFn) -> Energy:
    low, value, high = sorted([draw(amounts), draw(amounts), draw(amounts)])
    more = draw(some_of(low_uj=st.just(low), high_uj=st.just(high)))
    method = draw(st.sampled_from(["measured", "modelled", "estimated"]))
    return Energy(energy_uj=value, method=method, source=draw(names), **more)


@st.composite
def records(draw: st.DrawFn) -> Record:
    started, first, ended = sorted([draw(amounts), draw(amounts), draw(amounts)])
    fields = draw(
        some_of(
            first_token_us=st.just(first),
            finish_reason=reasons,
            request=hex32,
            tenant=slugs,
            factors=hex32,
            input=commitments,
            output=commitments,
            energy=energies(),
            carbon_ng=amounts,
            carbon_low_ng=amounts,
            carbon_high_ng=amounts,
            carbon_market_ng=amounts,
            embodied_ng=amounts,
            water_nl=amounts,
            quality=metrics,
            parent=uuids,
        )
    )
    if draw(st.booleans()):
        fields |= {"cost_nano": draw(amounts), "currency": draw(currencies)}
    return Record(
        id=draw(uuids),
        deployment=draw(hex32),
        started_us=started,
        ended_us=ended,
        usage=draw(usages()),
        **fields,
    )


adapters = build(Adapter, {"weights": weights}, name=names)
speculatives = build(Speculative, {"model": names, "tokens": amounts}, method=slugs)
deployments = build(
    Deployment,
    {
        "version": labels,
        "engine_version": names,
        "weights": weights,
        "adapters": st.lists(adapters, min_size=1, max_size=3).map(tuple),
        "quantization": slugs,
        "attention": slugs,
        "speculative": speculatives,
        "tensor_parallel": amounts,
        "pipeline_parallel": amounts,
        "accelerator": names,
        "accelerators": amounts,
        "power_mw": amounts,
        "provider": names,
        "region": slugs,
        "site": names,
    },
    model=labels,
    engine=slugs,
)
factor_sources = build(
    FactorSource, {"version": names, "year": st.integers(1990, 2200)}, factor=slugs, source=texts
)
factor_sets = build(
    FactorSet,
    {
        "intensity_low_ug_per_kwh": amounts,
        "intensity_high_ug_per_kwh": amounts,
        "market_ug_per_kwh": amounts,
        "water_ul_per_kwh": amounts,
        "source_water_ul_per_kwh": amounts,
        "embodied_ng_per_s": amounts,
        "region": slugs,
        "valid_from_us": amounts,
        "valid_until_us": amounts,
    },
    name=names,
    version=names,
    pue_milli=st.integers(1000, 100_000),
    intensity_ug_per_kwh=amounts,
    sources=st.lists(factor_sources, min_size=1, max_size=3).map(tuple),
)

rates = build(
    Rate,
    {
        "cached_input_nano_per_mtok": amounts,
        "cache_write_nano_per_mtok": amounts,
        "reasoning_nano_per_mtok": amounts,
        "request_nano": amounts,
        "provider": names,
        "region": slugs,
        "tier": slugs,
        "above_input_tokens": amounts.filter(bool),
    },
    model=names.filter(lambda name: "*" not in name),
    input_nano_per_mtok=amounts,
    output_nano_per_mtok=amounts,
)
price_books = build(
    PriceBook,
    {"valid_from_us": st.integers(0, 2**52), "valid_until_us": st.integers(2**52 + 1, MAX_SAFE_INTEGER)},
    name=names,
    version=names,
    currency=st.sampled_from(["EUR", "USD"]),
    source=texts,
    rates=st.lists(rates, min_size=1, max_size=3, unique_by=rate_key).map(
        lambda each: tuple(sorted(each, key=rate_key))
    ),
)

# --- statements ------------------------------------------------------------------------------------------

totals = build(
    s.Totals,
    dict.fromkeys(
        [
            "cached_input_tokens",
            "reasoning_tokens",
            "energy_uj",
            "carbon_ng",
            "carbon_market_ng",
            "embodied_ng",
            "water_nl",
        ],
        amounts,
    ),
    input_tokens=amounts,
    output_tokens=amounts,
)
heads = st.just({"seq": 0}) | st.builds(
    lambda seq, prev: {"seq": seq, "prev": prev}, st.integers(1, MAX_SAFE_INTEGER), hex32
)
_digests = st.lists(hex32, max_size=4, unique=True).map(lambda each: tuple(sorted(each)))


def statement_of(kind: Any, optional: dict[str, Any] | None = None, **required: Any) -> Any:
    """Payloads of ``kind`` with a valid ``seq`` and ``prev``."""
    return st.builds(
        lambda head, issued_us, needed, more: kind(**head, issued_us=issued_us, **needed, **more),
        heads,
        amounts,
        st.fixed_dictionaries(required),
        some_of(**(optional or {})),
    )


def _ordered_times(payload: s.Batch) -> bool:
    return payload.first_us <= payload.last_us


batches = statement_of(
    s.Batch,
    {"prices": _digests.filter(len), "unattributed_uj": amounts},
    count=st.integers(1, s.MAX_BATCH_RECORDS),
    root=hex32,
    first_us=st.integers(0, 2**52),
    last_us=st.integers(2**52, MAX_SAFE_INTEGER),
    deployments=_digests.filter(len),
    factors=_digests,
    totals=totals,
    dropped=amounts,
)
about = st.one_of(
    st.fixed_dictionaries({"record": uuids}),
    st.fixed_dictionaries({"statement": hex32}),
    st.fixed_dictionaries({"deployment": hex32}),
)
evaluations = st.builds(
    lambda head, issued_us, target, evaluator, found: s.Evaluation(
        **head, issued_us=issued_us, **target, evaluator=evaluator, metrics=found
    ),
    heads,
    amounts,
    about,
    names,
    metrics,
)
corrections = statement_of(
    s.Correction,
    {
        "energy": energies(),
        "carbon_market_ng": amounts,
        "embodied_ng": amounts,
        "water_nl": amounts,
        "cost_nano": amounts,
    },
    record=uuids,
    record_hash=hex32,
    reason=texts,
    carbon_ng=amounts,
)
erasures = statement_of(
    s.Erasure,
    statement=hex32,
    positions=st.sets(st.integers(0, s.MAX_BATCH_RECORDS - 1), min_size=1, max_size=8).map(
        lambda each: tuple(sorted(each))
    ),
    rule=texts,
)
payloads = st.one_of(
    batches,
    statement_of(s.DeploymentStatement, deployment=deployments),
    statement_of(s.FactorsStatement, factors=factor_sets),
    statement_of(s.PricesStatement, prices=price_books),
    evaluations,
    corrections,
    statement_of(s.Heartbeat, dropped=amounts),
    statement_of(s.Acknowledgement, {"note": texts}, statement=hex32, receipt=hex32),
    erasures,
    statement_of(s.Admin, action=st.from_regex("[a-z][a-z.-]{0,20}", fullmatch=True), detail=hex32),
    statement_of(
        s.IssuerKey,
        {"reason": texts},
        action=st.just("revoke"),
        issuer=st.just("gpu-7.example.com/vllm"),
        kid=hex32,
    ),
)
