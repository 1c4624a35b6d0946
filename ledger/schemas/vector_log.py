"""The small log behind the published test vectors: one statement of each kind, fixed keys and times."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ledger.core import merkle
from ledger.core.checkpoint import Checkpoint, sign_checkpoint
from ledger.core.commitments import commit_request, commit_tokens, record_salt, tenant_key
from ledger.core.cose import encode_cbor
from ledger.core.keys import PrivateKey
from ledger.core.note import ED25519, VerifierKey
from ledger.core.price_books import PriceBook, Rate
from ledger.core.receipts import issue_receipt
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
    document_digest,
    encode_record,
    encode_record_lines,
    record_hash,
)
from ledger.core.statements import (
    Acknowledgement,
    Admin,
    Batch,
    Correction,
    DeploymentStatement,
    Erasure,
    Evaluation,
    FactorsStatement,
    Heartbeat,
    IssuerKey,
    Payload,
    PricesStatement,
    SignedStatement,
    sign_statement,
    sum_records,
)
from ledger.schemas.vector_keys import seed_of, seeded_key

__all__ = ["CUSTOMER", "ISSUER", "ORIGIN", "SampleLog", "sample_log"]

ORIGIN = "log.example.com/tallystick"
ISSUER = "gpu-7.example.com/vllm"
CUSTOMER = "customer.example.org"
START_US = 1_790_000_000_000_000
INPUT_TOKENS = tuple(range(1, 151))
"""Three chunks, the last one partial."""


@dataclass(frozen=True)
class SampleLog:
    """What the vectors are cut out of. ``statements[i]`` is leaf i."""

    key: PrivateKey
    keys: dict[str, PrivateKey]
    statements: tuple[SignedStatement, ...]
    records: tuple[Record, ...]

    @property
    def leaf_hashes(self) -> list[bytes]:
        """Of all statements."""
        return [each.leaf_hash for each in self.statements]

    @property
    def verifier_key(self) -> VerifierKey:
        """The log's."""
        return VerifierKey.of(ORIGIN, ED25519, self.key.public.raw_bytes())

    def registered_s(self, index: int) -> int:
        """When leaf ``index`` was logged."""
        return START_US // 1_000_000 + 60 + index

    def receipt(self, index: int, size: int) -> bytes:
        """The receipt of leaf ``index`` in the tree of ``size``."""
        leaves = self.leaf_hashes[:size]
        receipt, _ = issue_receipt(
            origin=ORIGIN,
            subject=self.statements[index].subject,
            registered_s=self.registered_s(index),
            tree_size=size,
            leaf_index=index,
            path=merkle.inclusion_path(leaves, index),
            root=merkle.root(leaves),
            key=self.key,
        )
        return receipt

    def checkpoint(self, size: int) -> bytes:
        """The signed checkpoint of the tree of ``size``."""
        head = Checkpoint(ORIGIN, size, merkle.root(self.leaf_hashes[:size]))
        return sign_checkpoint(head, self.key.raw)  # type: ignore[arg-type]


class _Chains:
    """Signs each issuer's statements in a chain."""

    def __init__(self) -> None:
        self.statements: list[SignedStatement] = []
        self._heads: dict[str, tuple[int, dict[str, str]]] = {}

    def sign(self, kind: type[Any], by: str, key: PrivateKey, /, **fields: Any) -> SignedStatement:
        seq, prev = self._heads.get(by, (0, {}))
        issued_us = START_US + 50_000_000 + len(self.statements) * 1_000_000
        payload: Payload = kind(seq=seq, issued_us=issued_us, **prev, **fields)
        statement = sign_statement(payload, issuer=by, key=key)
        self._heads[by] = (seq + 1, {"prev": statement.leaf_hash.hex()})
        self.statements.append(statement)
        return statement


def sample_log() -> SampleLog:
    """Make the log."""
    log_key = seeded_key("log")
    keys = {ISSUER: seeded_key("issuer"), CUSTOMER: seeded_key("customer", "es256")}
    deployment, factors = sample_deployment(), sample_factors()
    records = sample_records(document_digest(deployment), document_digest(factors))
    chains = _Chains()

    def by_log(**fields: Any) -> SignedStatement:
        return chains.sign(IssuerKey, ORIGIN, log_key, **fields)

    def by_issuer(kind: type[Any], **fields: Any) -> SignedStatement:
        return chains.sign(kind, ISSUER, keys[ISSUER], **fields)

    by_log(**_key_fields("add", ORIGIN, log_key))
    by_log(**_key_fields("add", ISSUER, keys[ISSUER]))
    by_issuer(DeploymentStatement, deployment=deployment)
    by_issuer(FactorsStatement, factors=factors)
    batch = by_issuer(
        Batch,
        count=len(records),
        root=merkle.root([record_hash(encode_record(each)) for each in records]).hex(),
        first_us=min(each.started_us for each in records),
        last_us=max(each.ended_us for each in records),
        deployments=(document_digest(deployment),),
        factors=(document_digest(factors),),
        totals=sum_records(records),
        dropped=1,
    )
    by_issuer(Heartbeat, dropped=0)
    metrics = {"faithfulness": Quality(value=871, scale=3), "toxicity": Quality(value=-2, scale=2)}
    by_issuer(Evaluation, evaluator="example judge 2", metrics=metrics, record=records[0].id)
    by_issuer(
        Correction,
        record=records[1].id,
        record_hash=record_hash(encode_record(records[1])).hex(),
        reason="the meter was calibrated again",
        energy=Energy(energy_uj=2_345_678, method="measured", source="nvml"),
        carbon_ng=273_662,
    )
    by_log(**_key_fields("add", CUSTOMER, keys[CUSTOMER]))
    partial = SampleLog(log_key, keys, tuple(chains.statements), records)
    receipt = partial.receipt(chains.statements.index(batch), len(chains.statements))
    chains.sign(
        Acknowledgement,
        CUSTOMER,
        keys[CUSTOMER],
        statement=batch.leaf_hash.hex(),
        receipt=hashlib.sha256(receipt).hexdigest(),
        note="invoice 2026-09",
    )
    by_issuer(Erasure, statement=batch.leaf_hash.hex(), positions=(0, 2), rule="retention of 180 days")
    by_issuer(PricesStatement, prices=sample_prices())
    by_log(action="revoke", issuer=ISSUER, kid=keys[ISSUER].public.kid.hex(), reason="decommissioned")
    detail = (
        b'{"by":"operator","key":"0123456789ab","salt":"00000000000000000000000000000000","scopes":"read"}'
    )
    chains.sign(Admin, ORIGIN, log_key, action="api-key.create", detail=hashlib.sha256(detail).hexdigest())
    return SampleLog(log_key, keys, tuple(chains.statements), records)


def _key_fields(action: str, issuer: str, key: PrivateKey) -> dict[str, Any]:
    cose_key = encode_cbor(key.public.to_cose_key()).hex()
    return {"action": action, "issuer": issuer, "kid": key.public.kid.hex(), "key": cose_key}


def sample_deployment() -> Deployment:
    """A deployment with every field."""
    return Deployment(
        model="example-7b-instruct",
        version="2026-08",
        weights=Weights(method="openssf-model-signing", digest="0123456789abcdef" * 4),
        adapters=(
            Adapter(name="billing", weights=Weights(method="hub-revision", digest="89abcdef01" * 4)),
            Adapter(name="tone"),
        ),
        quantization="awq",
        engine="vllm",
        engine_version="0.32.0",
        attention="flash_attention_2",
        speculative=Speculative(method="eagle", model="example-7b-eagle", tokens=5),
        tensor_parallel=2,
        pipeline_parallel=1,
        accelerator="Example A100 80GB",
        accelerators=2,
        power_mw=400_000,
        provider="Example GmbH",
        region="DE",
        site="Würzburg 2, Halle „Süd“",
    )


def sample_factors() -> FactorSet:
    """A factor set with every field."""
    return FactorSet(
        name="Example grid",
        version="2026.1",
        pue_milli=1_200,
        intensity_ug_per_kwh=350_000_000,
        intensity_low_ug_per_kwh=330_000_000,
        intensity_high_ug_per_kwh=370_000_000,
        market_ug_per_kwh=0,
        water_ul_per_kwh=1_800_000,
        source_water_ul_per_kwh=3_100_000,
        embodied_ng_per_s=2_500,
        sources=(
            FactorSource(factor="intensity_ug_per_kwh", source="Example Agency", version="3", year=2025),
            FactorSource(factor="pue_milli", source='Operator\'s "meter book"'),
        ),
        region="DE",
        valid_from_us=1_767_225_600_000_000,
        valid_until_us=1_798_761_600_000_000,
    )


def sample_prices() -> PriceBook:
    """A price book with every field."""
    return PriceBook(
        name="Example tariff",
        version="2026-09",
        currency="EUR",
        source="Vertrag 4711, Anlage „Preise“",
        valid_from_us=START_US - 1_000_000_000_000,
        valid_until_us=START_US + 1_000_000_000_000,
        rates=(
            Rate(model="example-7b-instruct", input_nano_per_mtok=0, output_nano_per_mtok=150_000_000),
            Rate(
                model="example-7b-instruct",
                provider="Example GmbH",
                region="DE",
                tier="batch",
                above_input_tokens=200_000,
                aliases=("example-7b", "example-7b-*"),
                input_nano_per_mtok=150_000_000,
                cached_input_nano_per_mtok=37_500_000,
                cache_write_nano_per_mtok=187_500_000,
                output_nano_per_mtok=600_000_000,
                reasoning_nano_per_mtok=599_999_999,
                request_nano=1_000,
            ),
        ),
    )


def sample_records(deployment: str, factors: str) -> tuple[Record, ...]:
    """One record with every field, one as most are, one with nothing it can do without."""
    ids = tuple(f"01a0c5f4-0e80-7{n:03x}-8000-0123456789ab" for n in range(3))
    secret = tenant_key(seed_of("issuer secret"), seed_of("tenant secret"))

    def salt(n: int, purpose: str) -> bytes:
        return record_salt(secret, ids[n], purpose)

    return (
        Record(
            id=ids[0],
            deployment=deployment,
            started_us=START_US,
            first_token_us=START_US + 181_000,
            ended_us=START_US + 2_400_000,
            finish_reason="tool_calls",
            usage=Usage(
                input_tokens=len(INPUT_TOKENS),
                output_tokens=64,
                cached_input_tokens=128,
                reasoning_tokens=20,
                drafted_tokens=90,
                accepted_tokens=49,
            ),
            request=commit_request("req-42", salt(0, "request")).hex(),
            tenant="t-7f3a",
            factors=factors,
            input=Commitment(digest=commit_tokens(INPUT_TOKENS, salt(0, "input")).hex(), of="tokens"),
            output=Commitment(digest=commit_tokens(range(64), salt(0, "output")).hex(), of="tokens"),
            energy=Energy(
                energy_uj=36_000_000,
                method="modelled",
                source='made up: "quotes", back\\slash, tab\t, U+2028 \u2028, \u20ac, \U0001f9fe',
                low_uj=30_000_000,
                high_uj=45_000_000,
            ),
            carbon_ng=4_200_000,
            carbon_low_ng=3_300_000,
            carbon_high_ng=5_550_000,
            carbon_market_ng=0,
            embodied_ng=6_000,
            water_nl=58_800,
            cost_nano=9_007_199_254_740_991,
            currency="EUR",
            quality={"b.2": Quality(value=-9_007_199_254_740_991, scale=9), "B": Quality(value=0, scale=0)},
            parent=ids[1],
        ),
        Record(
            id=ids[1],
            deployment=deployment,
            started_us=START_US + 3_000_000,
            first_token_us=START_US + 3_050_000,
            ended_us=START_US + 3_900_000,
            finish_reason="stop",
            usage=Usage(input_tokens=12, output_tokens=8),
            tenant="t-7f3a",
            factors=factors,
            energy=Energy(energy_uj=2_345_679, method="measured", source="nvml"),
            carbon_ng=273_663,
        ),
        Record(
            id=ids[2],
            deployment=deployment,
            started_us=START_US + 4_000_000,
            ended_us=START_US + 4_000_000,
            usage=Usage(input_tokens=0, output_tokens=0),
        ),
    )


def sample_lines(log: SampleLog) -> bytes:
    """The records as they travel beside the batch statement."""
    return encode_record_lines(list(log.records))
