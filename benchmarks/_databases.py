"""Owns the PostgreSQL that benchmarks run on: started by them, as durable as an operator's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from cli.folder import DATABASE_VARIABLE
from tests.databases import Postgres, running_postgres

__all__ = ["SETTINGS", "benchmark_postgres", "ledger_in"]

SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "15min"}
"""What an operator sets first: PostgreSQL's defaults suit a machine of 1990. fsync and the rest stay on."""


@contextlib.contextmanager
def benchmark_postgres() -> Iterator[Postgres]:
    """A server for a while."""
    with running_postgres(SETTINGS) as server:
        yield server


@contextlib.contextmanager
def ledger_in(url: str) -> Iterator[None]:
    """Ledgers' folders, and services started meanwhile, have their database at ``url``."""
    before = os.environ.get(DATABASE_VARIABLE)
    os.environ[DATABASE_VARIABLE] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ[DATABASE_VARIABLE]
        else:
            os.environ[DATABASE_VARIABLE] = before
