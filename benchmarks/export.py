"""Speed of the Parquet export, beside what pyarrow alone takes to write the same rows.

The baseline writes the finished Arrow table with the same compression: no reading, no checking, no proofs, no
digests, nothing made durable. Both take turns, and the ratio is the median of the pairs.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from ledger.core import merkle
from ledger.core import records as core_records
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.records import document_digest
from ledger.export import columns
from ledger.export.parquet import export_parquet
from ledger.store import Limits, Sequencer, Store, migrate, open_store, prepare_statement
from ledger.store.append import create_log
from tests.build import ORIGIN, START_US, Issuer, make_deployment, make_records

__all__ = ["fill", "run"]

RECORDS = 200_000
BATCH = 1_000
SMALL_BATCH = 64
ADDED = 20_000
PAIRS = 5


def run(records: int = RECORDS, pairs: int = PAIRS) -> dict[str, Any]:
    """Log ``records``, export them, and write the same rows again with pyarrow; then add to the export."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        with _ledger(root / "a", records, BATCH) as (store, log_key, sequencer):
            figures: dict[str, Any] = {"records": records, "records_per_batch": BATCH}
            measured = _pairs(store, log_key, root, pairs)
            figures |= {
                name: measured[name]
                for name in ("ratio", "cpu_ratio", "records_per_s", "plain_records_per_s")
            }
            figures |= {name: measured[name] for name in ("bytes_per_record", "plain_bytes_per_record")}
            with ExitStack() as patched:
                for module in (columns, merkle, core_records):
                    patched.enter_context(patch.object(module, "_native", None))
                figures["ratio_without_native_part"] = _pairs(store, log_key, root, 3)["ratio"]
            export_parquet(store, root / "grown", log_key=log_key)
            fill(sequencer, ADDED, BATCH, first=records)
            begun = time.perf_counter()
            summary = export_parquet(store, root / "grown", log_key=log_key, resume=True)
            figures[f"add_{ADDED}_s"] = round(time.perf_counter() - begun, 3)
            if summary.added_records != ADDED:
                raise AssertionError(summary)
        with _ledger(root / "b", records // 4, SMALL_BATCH) as (store, log_key, _):
            figures[f"ratio_batches_of_{SMALL_BATCH}"] = _pairs(store, log_key, root, 3)["ratio"]
    return figures


@contextmanager
def _ledger(folder: Path, records: int, batch: int) -> Iterator[tuple[Store, PrivateKey, Sequencer]]:
    folder.mkdir()
    store, log_key = open_store(folder / "ledger.db"), generate_key()
    migrate(store)
    create_log(store, log_key, ORIGIN)
    sequencer = Sequencer(store, log_key)
    sequencer.start()
    try:
        fill(sequencer, records, batch)
        yield store, log_key, sequencer
    finally:
        sequencer.stop()
        store.close()


def _pairs(store: Store, log_key: PrivateKey, root: Path, pairs: int) -> dict[str, Any]:
    """Export and write plainly in turns, after a first time that fills caches."""
    table: pa.Table | None = None
    exports, plains, cpu, sizes = [], [], [], (0, 0)
    for pair in range(pairs + 1):
        begun, begun_cpu = time.perf_counter(), time.process_time()
        summary = export_parquet(store, root / "export", log_key=log_key)
        export_s, export_cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
        if table is None:
            parts = [pq.ParquetFile(path).read() for path in summary.directory.glob("records/**/*.parquet")]
            table = pa.concat_tables(parts)
        begun, begun_cpu = time.perf_counter(), time.process_time()
        pq.write_table(table, root / "plain.parquet", compression="zstd", compression_level=3)
        plain_s, plain_cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
        sizes = summary.size_bytes, (root / "plain.parquet").stat().st_size
        shutil.rmtree(summary.directory)
        if pair:
            exports.append(export_s)
            plains.append(plain_s)
            cpu.append(plain_cpu_s / export_cpu_s)
    rows = table.num_rows if table is not None else 0
    ratio = statistics.median(plain / export for plain, export in zip(plains, exports, strict=True))
    return {
        "ratio": round(ratio, 2),
        "cpu_ratio": round(statistics.median(cpu), 2),
        "records_per_s": round(rows / statistics.median(exports)),
        "plain_records_per_s": round(rows / statistics.median(plains)),
        "bytes_per_record": round(sizes[0] / rows, 1),
        "plain_bytes_per_record": round(sizes[1] / rows, 1),
    }


def fill(sequencer: Sequencer, records: int, batch: int, *, first: int = 0) -> None:
    """Log ``records`` records of one issuer in batches; ``first`` numbers them."""
    issuer, deployment = Issuer(name=f"gpu-{first}.example.com/llama"), make_deployment()
    sequencer.add_key(issuer.name, issuer.key.public).result()

    def log(entry: bytes, lines: bytes | None) -> None:
        now_us = time.time_ns() // 1000
        prepared = prepare_statement(
            entry, lines, key_of=lambda *_: issuer.key.public, now_us=now_us, limits=Limits()
        )
        sequencer.submit(prepared).result()

    log(issuer.deployment(deployment).entry, None)
    digest = document_digest(deployment)
    for begin in range(first, first + records, batch):
        count = min(batch, first + records - begin)
        # Ten records a second, so that 200,000 of them cross a midnight.
        made = make_records(count, digest, start_us=START_US + begin * 100_000, salt=f"{begin}/")
        sealed = issuer.batch(made)
        log(sealed.statement.entry, sealed.lines)


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=2))
