"""A ledger with all that reports tell apart: providers, sites, methods, prices, causes, corrections."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, structs

from ledger.core.records import (
    Commitment,
    Deployment,
    Energy,
    FactorSet,
    Quality,
    Record,
    Usage,
    Weights,
    document_digest,
    encode_record,
    record_hash,
)
from ledger.core.statements import Correction, Erasure, Evaluation, Heartbeat
from tests.build import START_US, make_deployment, make_factor_set, make_record
from tests.export.conftest import DAY_US, Ledger

__all__ = ["DAYS", "DEPLOYMENTS", "FACTORS", "IDLE_UJ", "corrected_records", "fill"]

DAYS = 9
IDLE_UJ = 7_000_000_000
"""What each day's heartbeat says that no record carries, and one for each day before."""
FACTORS = (
    make_factor_set(
        name="DE grid", region="DE", pue_milli=1_250, market_ug_per_kwh=50_000_000, water_ul_per_kwh=400_000
    ),
    make_factor_set(name="US-CA grid", region="US-CA", pue_milli=1_090, intensity_ug_per_kwh=210_000_000),
)
DEPLOYMENTS = (
    make_deployment(
        model="Qwen3-32B", version="2507", engine="vllm", engine_version="0.11.0", quantization="fp8",
        site="Würzburg 2", accelerator="NVIDIA H100 80GB HBM3", accelerators=2, region="DE",
        weights=Weights(method="openssf-model-signing", digest=hashlib.sha256(b"qwen").hexdigest()),
    ),
    make_deployment(site="Karlsruhe 1"),
    make_deployment(
        model="gpt-5-mini", version=UNSET, engine="openai", engine_version=UNSET, quantization=UNSET,
        power_mw=UNSET, provider="openai", region="US-CA",
    ),
    make_deployment(
        model="Mistral-Large-3", version="2512", engine="sglang", quantization="awq", provider="aws",
        region="US-CA", site="us-west-1", accelerator="NVIDIA B200",
    ),
)  # fmt: skip
_METHODS = ("measured", "modelled", "estimated")
_REASONS = ("stop", "stop", "stop", "length", "tool_calls", "error", "abort")


def _record(n: int, deployment: Deployment, factors: FactorSet) -> Record:
    """Record ``n``: what it has and has not varies with ``n``."""
    energy = 2_000_000_000 + 7_919 * n
    changes: dict[str, Any] = {
        "usage": Usage(
            input_tokens=300 + n % 91,
            output_tokens=60 + n % 37,
            cached_input_tokens=64 * (n % 4),
            reasoning_tokens=n % 3,
        ),
        "started_us": START_US + DAY_US * n // 20,
        "tenant": UNSET if n % 17 == 0 else f"customer-{n % 5}",
        "finish_reason": _REASONS[n % len(_REASONS)],
        "energy": UNSET
        if n % 23 == 0
        else Energy(
            energy_uj=energy,
            low_uj=energy // 2,
            high_uj=energy * 2,
            method=_METHODS[n % 3],  # type: ignore[arg-type]
            source=("nvml", "specpower", "ecologits")[n % 3],
        ),
        "factors": document_digest(factors),
        "carbon_ng": UNSET if n % 23 == 0 else energy * 97 // 1000,
        "carbon_low_ng": UNSET if n % 23 == 0 else energy * 90 // 1000,
        "carbon_high_ng": UNSET if n % 23 == 0 else energy * 120 // 1000,
        "water_nl": UNSET if n % 5 == 0 else 1_000_003 + n,
        "embodied_ng": UNSET if n % 3 == 1 else 30_000_000 + n,
        "cost_nano": UNSET if n % 7 == 0 else 1_234_567 + n,
        "currency": UNSET if n % 7 == 0 else ("USD" if deployment.provider == "openai" else "EUR"),
    }
    if factors.market_ug_per_kwh is not UNSET and n % 23:
        changes["carbon_market_ng"] = energy // 100
    if n % 11 == 0:
        changes["quality"] = {"faithfulness": Quality(value=900 + n % 90, scale=3)}
    if n % 13 == 0:
        changes["output"] = Commitment(digest=hashlib.sha256(b"%d" % n).hexdigest(), of="text")
    return make_record(deployment, n=n, salt="report", **changes)


def fill(made: Ledger) -> None:
    """Log it: two issuers, nine days, corrections, evaluations, an erasure statement."""
    one, two = made.issuer("gpu-7.example.com/vllm"), made.issuer("gateway.example.com/litellm")
    for deployment in DEPLOYMENTS:
        made.log(one.deployment(deployment))
    for factors in FACTORS:
        made.log(two.factors(factors))
    leaves = []
    for day in range(DAYS):
        numbers = range(20 * day, 20 * day + 20)
        own = [_record(n, DEPLOYMENTS[n % 4 // 2], FACTORS[0]) for n in numbers if n % 4 < 3]
        bought = [_record(n, DEPLOYMENTS[2 + day % 2], FACTORS[1]) for n in numbers if n % 4 == 3]
        own[2] = structs.replace(own[2], parent=own[1].id)
        own[3] = structs.replace(own[3], parent=own[2].id)
        bought[0] = structs.replace(bought[0], parent=own[2].id)
        leaves += [made.batch(one, own), made.batch(two, bought)]
        idle = Heartbeat(dropped=day % 3, unattributed_uj=IDLE_UJ + day, **one.chain())
        made.log(one.sign(idle))
    records = [record for *_, record in made.records]
    who = {issuer: record for _, _, issuer, record in reversed(made.records)}
    first, other = who[one.name], who[two.name]

    def correct(issuer: Any, record: Record, **figures: Any) -> None:
        digest = record_hash(encode_record(record)).hex()
        said = Correction(
            record=record.id,
            record_hash=digest,
            reason="meter was miscalibrated",
            **figures,
            **issuer.chain(),
        )
        made.log(issuer.sign(said))

    correct(one, first, carbon_ng=5, energy=Energy(energy_uj=11, method="measured", source="nvml, corrected"))
    correct(one, other, carbon_ng=1)  # of another issuer's record: does not hold
    metrics = {"accuracy": Quality(value=91, scale=2), "toxicity": Quality(value=3, scale=3)}
    for about in (
        {"deployment": document_digest(DEPLOYMENTS[0])},
        {"record": records[2].id},
    ):
        made.log(two.sign(Evaluation(evaluator="nightly suite", metrics=metrics, **about, **two.chain())))
    late = _record(190, DEPLOYMENTS[0], FACTORS[0])
    batch = one.batch([late])
    made.records.append((made.log(batch.statement, batch.lines), 0, one.name, late))
    rule = "erased at the end of the contract"
    made.log(
        two.sign(Erasure(statement=batch.statement.leaf_hash.hex(), positions=(0,), rule=rule, **two.chain()))
    )


def corrected_records(made: Ledger) -> Sequence[tuple[str, Record]]:
    """The truth that reports must tell: each record with its issuer, corrections in place."""
    first = next(record for _, _, issuer, record in made.records if issuer == "gpu-7.example.com/vllm")
    changes = {
        "carbon_ng": 5,
        "carbon_low_ng": UNSET,
        "carbon_high_ng": UNSET,
        "energy": Energy(energy_uj=11, method="measured", source="nvml, corrected"),
    }
    return [
        (issuer, structs.replace(record, **changes) if record is first else record)
        for _, _, issuer, record in made.records
    ]
