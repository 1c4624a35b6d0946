"""Auditing a database of one million records, pinned to one core: everything is checked, nothing is sampled.

The log is made by the real sequencer from batches of 256 records, another from batches of 1,024, nearer to
what an emitter seals under load. A fresh look at each file is timed, and one at the first without the native
part.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.workload import BATCH, TENANTS, Issuer, make_records
from ledger import native
from ledger.audit import audit
from ledger.audit.database import SqliteSource
from ledger.core import statements as st
from ledger.core.keys import generate_key
from ledger.core.note import format_vkey
from ledger.store import Limits, Prepared, Sequencer, migrate, open_store, prepare_statement
from ledger.store.append import create_log

RECORDS = 1_000_000
LARGE_BATCH = 1_024
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


def _measure_python(path: Path, vkey: str) -> dict[str, Any]:
    """``measure`` in a process without the native part."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.audit", str(path), vkey],
        env=os.environ | {"TALLYSTICK_NO_NATIVE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def run(records: int = RECORDS) -> dict[str, Any]:
    """Records audited per second on one core."""
    with tempfile.TemporaryDirectory() as folder:
        path, large = Path(folder) / "ledger.db", Path(folder) / "large.db"
        vkey = write_log(path, records)
        evidence = measure(path, vkey, evidence_only=True)
        figures = measure(path, vkey)
        in_python = _measure_python(path, vkey)
        large_vkey = write_log(large, records, batch=LARGE_BATCH)
        in_large = measure(large, large_vkey)
    return figures | {
        "native": native.parsing is not None,
        "evidence_only_per_s": evidence["records_per_s"],
        "python_only_per_s": in_python["records_per_s"],
        f"batch_{LARGE_BATCH}_per_s": in_large["records_per_s"],
    }


if __name__ == "__main__":
    arguments = sys.argv[1:]
    print(json.dumps(measure(Path(arguments[0]), arguments[1]) if arguments else run(), indent=2))
