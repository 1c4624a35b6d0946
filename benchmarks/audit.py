"""Auditing a database of one million records, pinned to one core: everything is checked, nothing is sampled.

The log is made by the real sequencer from batches of 256 records; then a fresh look at its file is timed.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from ledger.audit import audit
from ledger.audit.database import SqliteSource
from ledger.core import statements as st
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.merkle import root
from ledger.core.note import format_vkey
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
from ledger.store import Limits, Prepared, Sequencer, migrate, open_store, prepare_statement
from ledger.store.append import create_log

RECORDS = 1_000_000
RECORDS_IN_CI = 50_000
BATCH = 256
ISSUERS = 4
TENANTS = 8
IN_FLIGHT = 64
"""Statements that wait for one commit, as behind a busy service."""

DEPLOYMENT = Deployment(model="Bench-8B-Instruct", engine="vllm", version="1", quantization="awq")
FACTORS = FactorSet(
    name="bench",
    version="1",
    pue_milli=1200,
    intensity_ug_per_kwh=350_000_000,
    sources=(FactorSource(factor="intensity_ug_per_kwh", source="made up for a benchmark"),),
)


def make_records(count: int, start_us: int, chance: random.Random, tenants: int) -> list[Record]:
    """Records as serving traffic makes them: some 850 bytes each, with every field that an engine fills."""
    deployment, factors = document_digest(DEPLOYMENT), document_digest(FACTORS)

    def digest() -> str:
        return f"{chance.getrandbits(256):064x}"

    records = []
    for n in range(count):
        at = start_us + n * 200
        name = f"{at // 1000:012x}7{chance.getrandbits(12):03x}{0x8000 << 48 | chance.getrandbits(62):016x}"
        energy = chance.randrange(10_000_000, 90_000_000)
        records.append(
            Record(
                id="-".join((name[:8], name[8:12], name[12:16], name[16:20], name[20:])),
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
                embodied_ng=energy // 100,
            )
        )
    return records


class _Issuer:
    """An issuer and its chain."""

    def __init__(self, name: str, key: PrivateKey) -> None:
        self.name, self.key, self.seq, self.prev = name, key, 0, None

    def sign(self, kind: type, **fields: Any) -> st.SignedStatement:
        if self.prev is not None:
            fields["prev"] = self.prev
        payload = kind(seq=self.seq, issued_us=time.time_ns() // 1000, **fields)
        statement = st.sign_statement(payload, issuer=self.name, key=self.key)
        self.seq, self.prev = self.seq + 1, statement.leaf_hash.hex()
        return statement

    def seal(self, records: list[Record]) -> tuple[st.SignedStatement, bytes]:
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


def write_log(path: Path, records: int, *, batch: int = BATCH, tenants: int = TENANTS) -> str:
    """Write a log of ``records`` records; return its verifier key."""
    store = open_store(path)
    migrate(store)
    log_key = generate_key()
    create_log(store, log_key, "log.bench.example")
    sequencer = Sequencer(store, log_key)
    sequencer.start()
    issuers = [_Issuer(f"gpu-{n}.bench.example", generate_key()) for n in range(ISSUERS)]
    keys = {issuer.key.public.kid: issuer.key.public for issuer in issuers}

    def prepare(statement: st.SignedStatement, lines: bytes | None = None) -> Prepared:
        return prepare_statement(
            statement.entry,
            lines,
            key_of=lambda _, kid: keys[kid],
            now_us=time.time_ns() // 1000,
            limits=Limits(),
        )

    def submit(*group: Prepared) -> None:
        for future in [sequencer.submit(each) for each in group]:
            future.result()

    for issuer in issuers:
        sequencer.add_key(issuer.name, issuer.key.public).result()
    submit(prepare(issuers[0].sign(st.DeploymentStatement, deployment=DEPLOYMENT)))
    submit(prepare(issuers[0].sign(st.FactorsStatement, factors=FACTORS)))
    chance = random.Random(1)
    start_us = time.time_ns() // 1000 - 7_200_000_000
    waiting: list[Prepared] = []
    for n, done in enumerate(range(0, records, batch)):
        count = min(batch, records - done)
        made = make_records(count, start_us + done * 200, chance, tenants)
        waiting.append(prepare(*issuers[n % ISSUERS].seal(made)))
        if len(waiting) == IN_FLIGHT:
            submit(*waiting)
            waiting.clear()
    submit(*waiting)
    sequencer.stop()
    store.close()
    return format_vkey(sequencer.verifier_key)


def measure(path: Path, vkey: str, *, repeats: int = 3) -> dict[str, Any]:
    """Audit the file ``repeats`` times on one core; the best time counts, the others are told."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        reports = [audit(SqliteSource(path), vkey) for _ in range(repeats)]
    finally:
        os.sched_setaffinity(0, before)
    for report in reports:
        assert report.verdict == "sound", report.findings[:3]
    best = min(report.elapsed_s for report in reports)
    records = reports[0].counts.records
    return {
        "records": records,
        "statements": reports[0].counts.statements,
        "signatures": reports[0].counts.signatures,
        "batch": BATCH,
        "bytes": path.stat().st_size,
        "seconds": [round(report.elapsed_s, 3) for report in reports],
        "records_per_s": round(records / best),
        "us_per_record": round(best / records * 1e6, 3),
    }


def run(records: int = RECORDS) -> dict[str, Any]:
    """Records audited per second on one core."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        return measure(path, write_log(path, records))


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
