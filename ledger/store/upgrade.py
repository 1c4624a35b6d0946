"""Migrations: where a database stands, what it lacks, and bringing it up while replicas go on serving.

A migration only adds what the version before can do without (tables, columns that may be null or have a
default, indexes), so that replicas of both versions append to one log while they are replaced one by one.
What is no longer needed is removed a version later.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, inspect, text

from ledger.core.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    from ledger.store.engine import Store

__all__ = ["Revisions", "check_revision", "differences", "migrate", "revisions"]

_LOCK = 0x7461_6C6C_7973
"""Advisory lock of whoever migrates: "tallys"."""
_LOCK_TIMEOUT_MS = 2_000
"""How long a change of a table may wait for its lock. All later queries on that table wait behind it."""
_ATTEMPTS = 30
_PAUSE_S = 0.5


_BY_HAND = ("ix_statement_later",)
"""Indexes over an expression, which each database spells in its own way: in migrations, not in the models."""
_CATALOGUES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'index'",
    "postgresql": "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()",
}


@dataclass(frozen=True)
class Revisions:
    """Where a database stands. ``current`` is None before the first migration."""

    current: str | None
    newest: str
    """The newest that this version of the software knows."""
    pending: tuple[str, ...]
    """What is still to be done, in order: revision and title."""
    known: bool
    """Whether this version of the software knows ``current``."""


def revisions(store: Store) -> Revisions:
    """Compare the database's revision with those of this version. Changes nothing."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config())
    newest = str(scripts.get_current_head())
    with store.read() as connection:
        current = _current(connection)
    order = list(scripts.walk_revisions())[::-1]
    names = [each.revision for each in order]
    known = current is None or current in names
    done = 0 if current is None else names.index(current) + 1 if known else len(names)
    pending = tuple(f"{each.revision} {each.doc}" for each in order[done:])
    return Revisions(current, newest, pending, known)


def check_revision(store: Store) -> None:
    """Refuse to serve a database of another version.

    Raises:
        InvalidError: it lacks migrations, or has one that this version does not know.
    """
    found = revisions(store)
    if found.current is None:
        raise InvalidError("there is no log in this database", remedy="run `tallystick init`", code="no-log")
    if not found.known:
        raise InvalidError(
            f"the database is of revision {found.current}, which a newer version made",
            where="alembic_version",
            remedy="run the version of the software that the other replicas run",
            code="database-too-new",
        )
    if found.pending:
        raise InvalidError(
            f"the database lacks {len(found.pending)} migrations: {', '.join(found.pending)}",
            where="alembic_version",
            remedy="run `tallystick db upgrade`; replicas that run may go on",
            code="database-too-old",
        )


def differences(store: Store) -> list[str]:
    """How the database's tables differ from those of the code, in words; nothing if all is well."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlmodel import SQLModel

    from ledger.store import tables  # noqa: F401 - registers the tables

    opts = {
        "compare_type": True,
        "include_name": lambda name, kind, _: kind != "index" or name not in _BY_HAND,
    }
    with store.read() as connection, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skipped unsupported reflection of expression-based index")
        context = MigrationContext.configure(connection, opts=opts)
        found = [_in_words(each) for each in compare_metadata(context, SQLModel.metadata)]
        catalogue = _CATALOGUES[connection.dialect.name]
        present = set(connection.execute(text(catalogue)).scalars())
        return found + [f"add index: {name}" for name in _BY_HAND if name not in present]


def _in_words(difference: Any) -> str:
    if isinstance(difference, list):  # several changes of one column
        return "; ".join(_in_words(each) for each in difference)
    what, *rest = difference
    names = [getattr(each, "name", each) for each in rest if isinstance(each, str) or hasattr(each, "name")]
    return f"{str(what).replace('_', ' ')}: {'.'.join(str(name) for name in names)}"


def migrate(store: Store, revision: str = "head") -> None:
    """Bring the tables to ``revision`` with Alembic, beside replicas that go on serving.

    SQLite: one transaction, which keeps writers waiting. PostgreSQL: a transaction for each migration, under
    a lock that keeps other migrations out; a change that does not get its table at once is tried again later,
    so that queries do not queue up behind it.

    Raises:
        UnavailableError: a table was in use all the time.
    """
    from alembic import command

    config = _config()
    if store.engine.dialect.name != "postgresql":
        with store.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        return
    with _migrating(store) as connection:
        config.attributes["connection"] = connection
        for attempt in range(_ATTEMPTS):
            try:
                command.upgrade(config, revision)
            except Exception as error:
                if not _lock_not_available(error):
                    raise
                connection.rollback()
                if attempt == _ATTEMPTS - 1:
                    raise UnavailableError(
                        "a table is in use all the time",
                        where="database",
                        remedy="run it again when no export or audit reads the database",
                        code="database-busy",
                    ) from None
                time.sleep(_PAUSE_S)
            else:
                return


@contextmanager
def _migrating(store: Store) -> Iterator[Connection]:
    """A connection that holds the migrations' lock."""
    with store.engine.connect() as connection:
        # Asked for again and again: who waits within a transaction keeps indexes from being built beside it.
        while not connection.execute(text(f"SELECT pg_try_advisory_lock({_LOCK})")).scalar_one():
            connection.rollback()
            time.sleep(_PAUSE_S)
        connection.execute(text(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}"))
        connection.commit()
        try:
            yield connection
        finally:
            connection.rollback()
            connection.execute(text("RESET lock_timeout"))
            connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"))
            connection.commit()


def _lock_not_available(error: Exception) -> bool:
    """PostgreSQL's 55P03."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == "55P03"


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    return None if not found else str(found[0])


def _config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "ledger.store:migrations")
    return config
