"""Opening a store: the engine, its durability settings, and how its transactions begin."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.tiles import TileCache
from ledger.store.upgrade import migrate

__all__ = ["Store", "migrate", "open_store"]

_BUSY_TIMEOUT_MS = 30_000
# A larger write-ahead log means fewer checkpoints, each of which syncs the database file as well.
_WAL_PAGES = 4_000
_CACHE_KIB = 64 * 1024
# All tiles above level 0 of a log of 33 million leaves: 20 MB.
_CACHED_TILES = 512

_POSTGRES_CONNECT = {
    "connect_timeout": 10,
    # A server or a network that died without a word is noticed in half a minute, not in two hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "tallystick",
}
_POSTGRES_CONNECTIONS = 16
"""Kept open by each process: at most 12 readers, the sequencer, and a few for what administrators do."""


@dataclass(frozen=True)
class Store:
    """An open database. ``engine`` is safe to share between threads.

    ``failed`` is set for good once the disk did not confirm a commit: what is read from then on may be gone
    after a crash, so nothing is read or written any more. A new process finds out what is on the disk.
    """

    engine: Engine
    failed: Event = field(default_factory=Event, compare=False)

    @cached_property
    def _reader(self) -> Engine:
        if self.engine.dialect.name != "postgresql":
            return self.engine
        # PostgreSQL's default gives each query a snapshot of its own: a proof and its checkpoint would part.
        return self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @cached_property
    def _writer(self) -> Engine:
        # No shared tiles: what a transaction reads of itself may yet be undone.
        options: dict[str, Any] = {"tallystick_begin": "BEGIN IMMEDIATE", "tallystick_tiles": None}
        if self.engine.dialect.name == "postgresql":
            # What waited for a lock must see what its holder wrote: with an older snapshot it would fail.
            options["isolation_level"] = "READ COMMITTED"
        return self.engine.execution_options(**options)

    def read(self) -> Connection:
        """A connection for reading: ``with store.read() as connection``. Sees one snapshot."""
        self._check_not_failed()
        return self._reader.connect()

    def write(self) -> Any:
        """A transaction: ``with store.write() as connection``; it commits at the end, or nothing happened.

        SQLite: it holds the write lock from its beginning. PostgreSQL: it holds what it locks; whoever
        appends to the log locks the head's row first (``fence.lock_head``).
        """
        self._check_not_failed()
        return self._writer.begin()

    def _check_not_failed(self) -> None:
        if self.failed.is_set():
            raise UnavailableError(
                "the disk did not confirm a commit; what is in memory may not be on it",
                where="database",
                remedy="look after the disk, then start the service anew: it checks what is there",
                code="storage-failed",
            )

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_store(url: str | Path) -> Store:
    """Open a store at a database URL or a SQLite file's path. Nothing is created but the file.

    Args:
        url: ``sqlite:///path``, ``postgresql+psycopg://...``, or a path.

    Raises:
        InvalidError: the URL names another kind of database.
    """
    text = str(url)
    if "://" not in text:
        text = f"sqlite:///{text}"
    options: dict[str, Any] = {"tallystick_tiles": TileCache(_CACHED_TILES)}
    if text.startswith("sqlite"):
        engine = create_engine(
            text, connect_args={"check_same_thread": False, "timeout": 30}, execution_options=options
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return Store(engine)
    if text.startswith("postgresql+psycopg"):
        engine = create_engine(
            text,
            connect_args=_POSTGRES_CONNECT,
            execution_options=options,
            pool_pre_ping=True,
            pool_use_lifo=True,  # the one used last has more of its statements prepared
            pool_size=_POSTGRES_CONNECTIONS,
        )
        event.listen(engine, "connect", _configure_postgres)
        return Store(engine)
    raise InvalidError(
        "unsupported database",
        where=text.split("://", maxsplit=1)[0],
        remedy="use sqlite:///file or postgresql+psycopg://...",
    )


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver must leave transactions to us: it would begin them late, after the first read.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        f"wal_autocheckpoint={_WAL_PAGES}",
        f"cache_size=-{_CACHE_KIB}",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("tallystick_begin", "BEGIN"))


def _configure_postgres(connection: Any, _record: Any) -> None:
    # A user's or database's default of `off` would acknowledge what a crash undoes. More than `on` is kept.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()
