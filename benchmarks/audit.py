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

from benchmarks.workload import BATCH, TENANTS, Issuer, make_records
from ledger.audit import audit
from ledger.audit.database import SqliteSource
from ledger.core import statements as st
from ledger.core.keys import generate_key
from ledger.core.note import format_vkey
from ledger.store import Limits, Prepared, Sequencer, migrate, open_store, prepare_statement
from ledger.store.append import create_log

RECORDS = 1_000_000
ISSUERS = 4
IN_FLIGHT = 64
"""Statements that wait for one commit, as behind a busy service."""


def write_log(path: Path, records: int, *, batch: int = BATCH, tenants: int = TENANTS) -> str:
    """Write a log of ``records`` records; return its verifier key."""
    store = open_store(path)
    migrate(store)
    log_key = generate_key()
    create_log(store, log_key, "log.bench.example")
    sequencer = Sequencer(store, log_key)
    sequencer.start()
    issuers = [Issuer(f"gpu-{n}.bench.example", generate_key()) for n in range(ISSUERS)]
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
    submit(*[prepare(statement) for statement in issuers[0].documents()])
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


def measure(path: Path, vkey: str, *, repeats: int = 3, evidence_only: bool = False) -> dict[str, Any]:
    """Audit the file ``repeats`` times on one core; the best time counts, the others are told."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        reports = [audit(SqliteSource(path), vkey, evidence_only=evidence_only) for _ in range(repeats)]
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
        vkey = write_log(path, records)
        evidence = measure(path, vkey, evidence_only=True)
        return measure(path, vkey) | {"evidence_only_per_s": evidence["records_per_s"]}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
