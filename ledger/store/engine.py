"""Opening a store: the engine, its durability settings, and migrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect

from ledger.core.errors import InvalidError
from ledger.core.tiles import TileCache

__all__ = ["Store", "migrate", "open_store"]

_BUSY_TIMEOUT_MS = 30_000
# A larger write-ahead log means fewer checkpoints, each of which syncs the database file as well.
_WAL_PAGES = 4_000
_CACHE_KIB = 64 * 1024
# All tiles above level 0 of a log of 33 million leaves: 20 MB.
_CACHED_TILES = 512


@dataclass(frozen=True)
class Store:
    """An open database. ``engine`` is safe to share between threads."""

    engine: Engine

    def read(self) -> Connection:
        """A connection for reading: ``with store.read() as connection``. Sees one snapshot."""
        return self.engine.connect()

    def write(self) -> Any:
        """A transaction that holds the write lock from its beginning: ``with store.write() as c``."""
        # No shared tiles: what a transaction reads of itself may yet be undone.
        options = {"tallystick_begin": "BEGIN IMMEDIATE", "tallystick_tiles": None}
        return self.engine.execution_options(**options).begin()

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
        return Store(create_engine(text, pool_pre_ping=True, execution_options=options))
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


def migrate(store: Store, revision: str = "head") -> None:
    """Bring the tables to ``revision`` with Alembic, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "ledger.store:migrations")
    with store.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def is_migrated(store: Store) -> bool:
    """Whether the tables are there."""
    return inspect(store.engine).has_table("log_head")
