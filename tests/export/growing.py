"""A small ledger that grows, and its export that is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ledger.core.keys import generate_key
from ledger.core.records import document_digest
from ledger.export.parquet import ExportSummary, export_parquet
from ledger.store import Sequencer, migrate, open_store
from ledger.store.append import create_log
from tests.build import ORIGIN, START_US, make_deployment, make_records
from tests.export.conftest import CREATED_US, DAY_US, Ledger

BATCH = 20
_ISSUER = "gpu-7.example.com/llama"


@contextmanager
def growing_ledger(folder: Path) -> Iterator[Ledger]:
    """A ledger of twelve batches over two days."""
    store = open_store(folder / "ledger.db")
    migrate(store)
    key = generate_key()
    create_log(store, key, ORIGIN)
    sequencer = Sequencer(store, key)
    sequencer.start()
    made = Ledger(store, key, sequencer)
    made.log(made.issuer(_ISSUER).deployment(make_deployment()))
    grow(made, 12)
    yield made
    sequencer.stop()
    store.close()


def grow(ledger: Ledger, batches: int, *, day: int = 0) -> None:
    """More records; every third batch is of the next day, and so the days take turns."""
    digest = document_digest(make_deployment())
    for _ in range(batches):
        n = len(ledger.records)
        start_us = START_US + (day + (n // BATCH % 3 == 2)) * DAY_US
        made = make_records(BATCH, digest, first=n, start_us=start_us, salt="grow")
        ledger.batch(ledger.issuers[_ISSUER], made)


def resume(ledger: Ledger, target: Path, **options: Any) -> ExportSummary:
    """Export, or add to the export there."""
    given = {"log_key": ledger.key, "created_us": CREATED_US, "resume": True} | options
    return export_parquet(ledger.store, target, **given)
