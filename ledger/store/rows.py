"""All rows of all tables, read from one snapshot and written back: for backups, and for moving a database.

A statement's records are megabytes in one row, so rows come in groups of bounded size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, LargeBinary, MetaData, String, Table, func, insert, inspect, select, text

__all__ = ["Rows", "clear", "count_rows", "has_log", "load_rows", "read_rows", "tables_of"]

Rows = list[tuple[Any, ...]]

_GROUP_ROWS = 10_000
_GROUP_BYTES = 16 << 20
_FETCHED = 64
"""Rows that a driver holds at once; the largest have megabytes."""
_REVISION = "alembic_version"


def tables_of(connection: Connection) -> list[Table]:
    """The database's own tables, those first that others refer to."""
    metadata = MetaData()
    with warnings.catch_warnings():  # rows are wanted, not indexes
        warnings.filterwarnings("ignore", message="Skipped unsupported reflection of expression-based index")
        metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != _REVISION]


def has_log(connection: Connection) -> bool:
    """Whether there is a log in the database: one with tables alone has none."""
    if not inspect(connection).has_table("log_head"):
        return False
    return connection.execute(text("SELECT 1 FROM log_head LIMIT 1")).first() is not None


def count_rows(connection: Connection, table: Table) -> int:
    """How many rows there are."""
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def read_rows(connection: Connection, table: Table) -> Iterator[Rows]:
    """The rows, by primary key, in groups."""
    query = select(table).order_by(*table.primary_key.columns)
    result = connection.execute(query, execution_options={"yield_per": _FETCHED})
    heavy = [at for at, column in enumerate(table.columns) if isinstance(column.type, LargeBinary | String)]
    group: Rows = []
    size = 0
    for row in result:
        values = tuple(row)
        group.append(values)
        size += sum(len(values[at]) for at in heavy if values[at] is not None)
        if len(group) >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def clear(connection: Connection, tables: Sequence[Table]) -> None:
    """Delete what migrations put into new tables."""
    for table in reversed(tables):
        connection.execute(table.delete())


def load_rows(connection: Connection, table: Table, names: Sequence[str], groups: Iterable[Rows]) -> int:
    """Insert rows whose values are in the order of ``names``; return how many."""
    done = 0
    statement = insert(table)
    for group in groups:
        connection.execute(statement, [dict(zip(names, row, strict=True)) for row in group])
        done += len(group)
    return done
