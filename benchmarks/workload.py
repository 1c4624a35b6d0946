"""What the benchmarks log: records as serving traffic makes them, sealed by issuers."""

from __future__ import annotations

import random
import time
from typing import Any

from ledger.core import statements as st
from ledger.core.keys import PrivateKey
from ledger.core.merkle import root
from ledger.core.records import (
    Commitment,
    Deployment,
    Energy,
    FactorSet,
    FactorSource,
    Record,
    Usage,
    document_digest,
    encode_record_lines,
    record_hash,
)

BATCH = 256
TENANTS = 40
DEPLOYMENT = Deployment(model="Bench-8B-Instruct", engine="vllm", version="1", quantization="awq")
FACTORS = FactorSet(
    name="bench",
    version="1",
    pue_milli=1200,
    intensity_ug_per_kwh=350_000_000,
    sources=(FactorSource(factor="intensity_ug_per_kwh", source="made up for a benchmark"),),
)


def make_records(count: int, start_us: int, chance: random.Random, tenants: int = TENANTS) -> list[Record]:
    """Records as serving traffic makes them: some 850 bytes each, with every field that an engine fills."""
    deployment, factors = document_digest(DEPLOYMENT), document_digest(FACTORS)

    def digest() -> str:
        return f"{chance.getrandbits(256):064x}"

    records = []
    for n in range(count):
        at = start_us + n * 200
        identity = (
            f"{at // 1000:012x}7{chance.getrandbits(12):03x}{0x8000 << 48 | chance.getrandbits(62):016x}"
        )
        energy = chance.randrange(10_000_000, 90_000_000)
        records.append(
            Record(
                id="-".join((identity[:8], identity[8:12], identity[12:16], identity[16:20], identity[20:])),
                deployment=deployment,
                factors=factors,
                tenant=f"tenant-{chance.randrange(tenants)}",
                request=digest(),
                started_us=at,
                first_token_us=at + 80_000,
                ended_us=at + 900_000,
                finish_reason="stop",
                usage=Usage(
                    input_tokens=chance.randrange(4000),
                    output_tokens=chance.randrange(1000),
                    cached_input_tokens=0,
                ),
                input=Commitment(digest=digest(), of="tokens"),
                output=Commitment(digest=digest(), of="tokens"),
                energy=Energy(
                    energy_uj=energy, method="measured", source="nvml", low_uj=energy // 2, high_uj=energy * 2
                ),
                carbon_ng=energy * 12 // 100,
            )
        )
    return records


class Issuer:
    """An issuer and its chain."""

    def __init__(self, name: str, key: PrivateKey) -> None:
        self.name, self.key, self.seq, self.prev = name, key, 0, None

    def sign(self, kind: type, **fields: Any) -> st.SignedStatement:
        """Sign the next statement."""
        if self.prev is not None:
            fields["prev"] = self.prev
        payload = kind(seq=self.seq, issued_us=time.time_ns() // 1000, **fields)
        statement = st.sign_statement(payload, issuer=self.name, key=self.key)
        self.seq, self.prev = self.seq + 1, statement.leaf_hash.hex()
        return statement

    def documents(self) -> list[st.SignedStatement]:
        """Publish the documents that all records refer to."""
        return [
            self.sign(st.DeploymentStatement, deployment=DEPLOYMENT),
            self.sign(st.FactorsStatement, factors=FACTORS),
        ]

    def seal(self, records: list[Record]) -> tuple[st.SignedStatement, bytes]:
        """Seal a batch: its statement, and the lines that travel beside it."""
        lines = encode_record_lines(records)
        statement = self.sign(
            st.Batch,
            count=len(records),
            root=root([record_hash(line) for line in lines.split(b"\n")[:-1]]).hex(),
            first_us=min(r.started_us for r in records),
            last_us=max(r.ended_us for r in records),
            deployments=(document_digest(DEPLOYMENT),),
            factors=(document_digest(FACTORS),),
            totals=st.sum_records(records),
            dropped=0,
        )
        return statement, lines
