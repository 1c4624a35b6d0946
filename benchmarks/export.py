"""Speed of the Parquet export, beside what pyarrow alone takes to write the same rows.

The baseline writes the finished Arrow table with the same settings: no reading, no checking, no proofs.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ledger.core.keys import generate_key
from ledger.core.records import document_digest
from ledger.export.parquet import export_parquet
from ledger.store import Limits, Sequencer, migrate, open_store, prepare_statement
from ledger.store.append import create_log
from tests.build import ORIGIN, START_US, Issuer, make_deployment, make_records

__all__ = ["fill", "run"]

RECORDS = 200_000
BATCH = 1_000


def run(records: int = RECORDS, batch: int = BATCH) -> dict[str, Any]:
    """Log ``records``, export them, and write the same rows again with pyarrow."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        store, log_key = open_store(root / "ledger.db"), generate_key()
        migrate(store)
        create_log(store, log_key, ORIGIN)
        sequencer = Sequencer(store, log_key)
        sequencer.start()
        try:
            fill(sequencer, records, batch)
            begun = time.perf_counter()
            summary = export_parquet(store, root / "export", log_key=log_key)
            export_s = time.perf_counter() - begun
        finally:
            sequencer.stop()
            store.close()
        parts = [pq.ParquetFile(path).read() for path in summary.directory.glob("records/**/*.parquet")]
        table = pa.concat_tables(parts)
        begun = time.perf_counter()
        pq.write_table(table, root / "plain.parquet", compression="zstd", compression_level=3)
        plain_s = time.perf_counter() - begun
        return {
            "records": summary.records,
            "records_per_batch": batch,
            "export_s": round(export_s, 3),
            "records_per_s": round(summary.records / export_s),
            "plain_pyarrow_s": round(plain_s, 3),
            "times_plain": round(export_s / plain_s, 2),
            "bytes_per_record": round(summary.size_bytes / summary.records, 1),
            "plain_bytes_per_record": round((root / "plain.parquet").stat().st_size / summary.records, 1),
        }


def fill(sequencer: Sequencer, records: int, batch: int) -> None:
    """Log ``records`` records of one issuer in batches."""
    issuer, deployment = Issuer(), make_deployment()
    sequencer.add_key(issuer.name, issuer.key.public).result()

    def log(entry: bytes, lines: bytes | None) -> None:
        now_us = time.time_ns() // 1000
        prepared = prepare_statement(
            entry, lines, key_of=lambda *_: issuer.key.public, now_us=now_us, limits=Limits()
        )
        sequencer.submit(prepared).result()

    log(issuer.deployment(deployment).entry, None)
    digest = document_digest(deployment)
    for first in range(0, records, batch):
        count = min(batch, records - first)
        # Ten records a second, so that 200,000 of them cross a midnight.
        made = make_records(count, digest, start_us=START_US + first * 100_000, salt=f"{first}/")
        sealed = issuer.batch(made)
        log(sealed.statement.entry, sealed.lines)


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=2))
