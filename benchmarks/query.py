"""Group-by over ten million exported records: a real export of half a million, its files linked twenty times.

The files are read as `tallystick query` reads them; each is another file to the reader, and none is cached as
decoded. Beside it the same grouping by DuckDB over the bare columns, with no view, no range and no coverage.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.export import fill
from ledger.core.keys import generate_key
from ledger.export.parquet import export_parquet
from ledger.export.query import Question, ask
from ledger.store import Sequencer, migrate, open_store
from ledger.store.append import create_log
from tests.build import ORIGIN

RECORDS, COPIES = 500_000, 20
ROUNDS = 3


def _multiply(export: Path, copies: int) -> None:
    for file in sorted((export / "records").rglob("*.parquet")):
        for n in range(1, copies):
            os.link(file, file.with_name(f"part-{n:03d}{file.stem[-3:]}.parquet"))


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)


def run(records: int = RECORDS, copies: int = COPIES) -> dict[str, Any]:
    """Seconds of three questions; the best of three each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, key = open_store(folder / "ledger.db"), generate_key()
        migrate(store)
        create_log(store, key, ORIGIN)
        sequencer = Sequencer(store, key)
        sequencer.start()
        fill(sequencer, records, 1000)
        sequencer.stop()
        export = export_parquet(store, folder / "export", log_key=key).directory
        store.close()
        _multiply(export, copies)
        (row,) = ask(export, Question())
        if row["records"] != records * copies:
            raise RuntimeError(f"{row['records']} records instead of {records * copies}")
        glob = f"{export}/records/**/*.parquet"
        plain = f"SELECT tenant, count(*), sum(output_tokens), sum(energy_uj) FROM '{glob}' GROUP BY ALL"
        with duckdb.connect() as connection:
            bare = _best(lambda: connection.execute(plain).fetchall())
        return {
            "records": row["records"],
            "by_model_s": _best(lambda: ask(export, Question(by=("model",)))),
            "by_tenant_s": _best(lambda: ask(export, Question(by=("tenant",)))),
            "by_day_and_model_s": _best(lambda: ask(export, Question(by=("day", "model")))),
            "bare_duckdb_by_tenant_s": bare,
        }


if __name__ == "__main__":
    for label, value in run().items():
        print(f"{label:24} {value:12.3f}")
