"""Reads a ledger's database for an audit: read only, in one snapshot, by plain SQL on the published tables.

Text that is not UTF-8 is kept by surrogate escapes, so that a damaged cell is a finding and not a failure.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

from ledger.audit.sources import Leaf, Row, StoredColumns
from ledger.audit.tables import COLUMNS, KEYS, NO_EVIDENCE, SCHEMA_REVISIONS, SETTINGS
from ledger.core.errors import InvalidError, UnavailableError

__all__ = ["PostgresSource", "SqliteSource"]

_FETCH_ROWS = 256
# Reading maps the file instead of copying it: the same pages, a tenth less time.
_MMAP_BYTES = 1 << 34
_VERSION_TABLE = "alembic_version"


@dataclass(frozen=True)
class _Foreign:
    """A value of a type that its column does not have."""

    value: Any


class _DatabaseSource:
    """What both databases share: the SQL. ``_stream`` runs a query and yields plain tuples."""

    has_tables = True
    name = ""

    def _stream(self, query: str, parameters: tuple[Any, ...] = ()) -> Iterator[Row]:
        raise NotImplementedError

    def _tables(self) -> Iterator[Row]:
        raise NotImplementedError

    def newest_notes(self) -> Iterator[bytes]:
        """The head's checkpoint and the stored ones, newest first."""
        for query in (
            "SELECT checkpoint FROM log_head",
            "SELECT note FROM checkpoint ORDER BY size DESC",
        ):
            for (note,) in self._stream(query):
                if isinstance(note, str):
                    yield note.encode("utf-8", "surrogateescape")

    def checkpoints(self) -> Iterator[tuple[Any, Any]]:
        """Stored checkpoints, sizes ascending."""
        for size, note in self._stream("SELECT size, note FROM checkpoint ORDER BY size"):
            # Bytes would pass for a note that was read: a service reads text, and would fail on them.
            yield size, note.encode("utf-8", "surrogateescape") if isinstance(note, str) else _Foreign(note)

    def witnessed(self) -> Iterator[bytes]:
        """Checkpoints with cosignatures, newest first; none of a database that has no table for them."""
        if "witnessed" in {name for (name,) in self._tables()}:
            for (note,) in self._stream("SELECT note FROM witnessed ORDER BY size DESC"):
                yield note.encode("utf-8", "surrogateescape") if isinstance(note, str) else b""

    def leaves(self, size: int) -> Iterator[Leaf]:  # noqa: ARG002 - rows beyond the tree are findings
        """All statements, with what is stored beside them."""
        for row in self._stream(f"SELECT {_columns('statement')} FROM statement ORDER BY leaf_index"):  # noqa: S608
            index, entry, block, *columns = row
            yield Leaf(index, entry, StoredColumns(*columns), block)

    def tile(self, level: int, index: int, width: int) -> Any:  # noqa: ARG002 - a wrong width is a finding
        """The whole tile as stored."""
        query = "SELECT hashes FROM tile WHERE level = ? AND idx = ?"
        for (hashes,) in self._stream(query, (level, index)):
            return hashes
        return None

    def tile_keys(self) -> Iterator[tuple[Any, Any]]:
        """The keys of all tiles."""
        for key in self._stream("SELECT level, idx FROM tile"):
            yield key[0], key[1]

    def rows(self, table: str) -> Iterator[Row]:
        """A derived table, in the order of its primary key."""
        keys = ", ".join(COLUMNS[table][: KEYS[table]])
        return self._stream(f"SELECT {_columns(table)} FROM {table} ORDER BY {keys}")  # noqa: S608

    def settings(self, table: str) -> Iterator[Row]:
        """What is compared of a table that acts in the log set."""
        query = f"SELECT {', '.join(SETTINGS[table])} FROM {table}"  # noqa: S608
        return self._stream(query.replace("lifted_s", "CASE WHEN lifted_s IS NULL THEN 0 ELSE 1 END"))

    def unexpected(self) -> Iterator[str]:
        """Tables that this auditor does not know, and a schema of another or no version."""
        names = {name for (name,) in self._tables()}
        known = COLUMNS.keys() | SETTINGS.keys() | NO_EVIDENCE | {_VERSION_TABLE}
        yield from sorted(f"table {name}" for name in names - known)
        yield from self._odd_schema()
        if _VERSION_TABLE in names:
            revisions = [str(row[0]) for row in self._stream("SELECT version_num FROM alembic_version")]
            if len(revisions) != 1 or revisions[0] not in SCHEMA_REVISIONS:
                yield f"{_VERSION_TABLE}: schema revision {', '.join(revisions)[:80] or 'none'}"
        else:
            yield f"table {_VERSION_TABLE}: missing"

    def _odd_schema(self) -> Iterator[str]:
        """Places where a name that this auditor knows does not stand for the plain table it should."""
        return iter(())


def _columns(table: str) -> str:
    return ", ".join(COLUMNS[table])


class SqliteSource(_DatabaseSource):
    """A ledger's SQLite file, opened read only.

    Args:
        path: the file. A service may go on writing to it.

    Raises:
        InvalidError: there is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._connection: sqlite3.Connection | None = None
        if not self.path.is_file():
            raise InvalidError("no such database", where=str(path), code="no-such-file")

    def __enter__(self) -> SqliteSource:
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        try:
            self._connection = _open(uri)
        except sqlite3.Error as error:
            # A file in WAL mode needs its two companions, which nobody can make on a read-only medium. Where
            # there is no log of unwritten pages either, nobody has it open: the file alone is all.
            try:
                if Path(f"{self.path}-wal").exists():
                    raise error
                self._connection = _open(f"{uri}&immutable=1")
            except sqlite3.Error as final:
                raise UnavailableError(
                    f"cannot be read as a ledger's database: {final}", where=self.name, code="unreadable"
                ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _stream(self, query: str, parameters: tuple[Any, ...] = ()) -> Iterator[Row]:
        assert self._connection is not None, "enter the source first"  # noqa: S101
        done = 0
        while True:
            try:
                cursor = self._connection.execute(query, parameters)
                for _ in range(done):
                    cursor.fetchone()
                while rows := cursor.fetchmany(_FETCH_ROWS):
                    yield from rows
                    done += len(rows)
            except (sqlite3.Error, OverflowError) as error:
                if "decode" in str(error) and self._connection.text_factory is str:
                    # Text that is not UTF-8. Our own decoder takes it, but costs a call for each cell.
                    self._connection.text_factory = _decode
                    continue
                raise UnavailableError(
                    f"cannot be read: {error}", where=self.name, code="unreadable"
                ) from None
            return

    def _tables(self) -> Iterator[Row]:
        return self._stream(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )

    def _odd_schema(self) -> Iterator[str]:
        """Views and triggers, which can show an auditor other rows than the service; other columns or keys.

        Rows are compared on the word of primary keys that no two rows share one.
        """
        query = "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index') ORDER BY name"
        for kind, name in self._stream(query):
            yield f"{kind} {name}"
        for table, columns in COLUMNS.items():
            found = list(self._stream("SELECT name, pk, hidden FROM pragma_table_xinfo(?)", (table,)))
            keys = [name for name, pk, _ in sorted(found, key=lambda row: row[1]) if pk]
            plain = not any(hidden for _, _, hidden in found)
            if not plain or {row[0] for row in found} != set(columns) or keys != [*columns[: KEYS[table]]]:
                yield f"table {table}: its columns or its primary key"

    def open_index(self) -> Callable[[int], list[Row]]:
        """Begin to read ``record_index``: see ``Source``."""
        assert self._connection is not None, "enter the source first"  # noqa: S101
        try:
            cursor = self._connection.execute("SELECT id, place FROM record_index ORDER BY id")
        except sqlite3.Error as error:
            raise UnavailableError(f"cannot be read: {error}", where=self.name, code="unreadable") from None

        def fetch(count: int) -> list[Row]:
            try:
                return cursor.fetchmany(count)
            except sqlite3.Error as error:
                raise UnavailableError(
                    f"cannot be read: {error}", where=self.name, code="unreadable"
                ) from None

        return fetch


def _open(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        connection.execute(f"PRAGMA mmap_size={_MMAP_BYTES}")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM log_head").fetchone()  # takes the snapshot
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class PostgresSource(_DatabaseSource):
    """A ledger's PostgreSQL database, read in one read-only REPEATABLE READ transaction.

    Args:
        url: ``postgresql+psycopg://...``; the user needs SELECT on the tables, nothing more.
    """

    def __init__(self, url: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.engine import make_url

        self.name = make_url(url).render_as_string(hide_password=True)
        self._engine = create_engine(
            url, isolation_level="REPEATABLE READ", execution_options={"postgresql_readonly": True}
        )
        self._connection: Any = None

    def __enter__(self) -> PostgresSource:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self._connection = self._engine.connect()
            self._connection.exec_driver_sql("SELECT count(*) FROM log_head").one()  # takes the snapshot
        except SQLAlchemyError as error:
            raise UnavailableError(
                f"cannot be read as a ledger's database: {_reason(error)}", where=self.name, code="unreadable"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._engine.dispose()

    def _stream(self, query: str, parameters: tuple[Any, ...] = ()) -> Iterator[Row]:
        fetch = self._open(query, parameters)
        while rows := fetch(_FETCH_ROWS):
            yield from rows

    def _open(self, query: str, parameters: tuple[Any, ...] = ()) -> Callable[[int], list[Row]]:
        from sqlalchemy.exc import SQLAlchemyError

        def refused(error: Exception) -> UnavailableError:
            return UnavailableError(f"cannot be read: {_reason(error)}", where=self.name, code="unreadable")

        try:
            result = self._connection.execution_options(stream_results=not parameters).exec_driver_sql(
                query.replace("?", "%s"), parameters
            )
        except SQLAlchemyError as error:
            raise refused(error) from None

        def fetch(count: int) -> list[Row]:
            try:
                return [tuple(map(_plain, row)) for row in result.fetchmany(count)]
            except SQLAlchemyError as error:
                raise refused(error) from None

        return fetch

    def open_index(self) -> Callable[[int], list[Row]]:
        """Begin to read ``record_index``: see ``Source``."""
        return self._open("SELECT id, place FROM record_index ORDER BY id")

    def _tables(self) -> Iterator[Row]:
        return self._stream(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
        )


def _plain(value: Any) -> Any:
    """SQLite's form of a value: exact integers are decimal text there."""
    return format(value, "f") if isinstance(value, Decimal) else value


def _reason(error: Exception) -> str:
    return type(getattr(error, "orig", None) or error).__name__
