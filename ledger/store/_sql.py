"""Plain SQL for the hot path, where building an expression and its result would cost more than running it.

Goes to the driver's own cursor, inside the transaction of the connection: a driver's error passes unwrapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection

__all__ = ["insert_rows", "integrity_error", "run", "run_many"]


def run(connection: Connection, sql: str, values: Sequence[Any] = ()) -> Any:
    """Run ``sql`` and return the cursor; ``?`` marks a value, whatever the driver's own mark is."""
    return connection.connection.cursor().execute(_marked(connection, sql), values)


def run_many(connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run ``sql`` once for each of ``rows``."""
    connection.connection.cursor().executemany(_marked(connection, sql), rows)


def insert_rows(connection: Connection, model: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert whole rows: a value for each column, in the table's order."""
    run_many(connection, _insert(model), rows)


def integrity_error(connection: Connection) -> type[Exception]:
    """What the driver raises when a row contradicts a constraint."""
    error: type[Exception] = connection.dialect.loaded_dbapi.IntegrityError
    return error


def _marked(connection: Connection, sql: str) -> str:
    return sql if connection.dialect.paramstyle == "qmark" else sql.replace("?", "%s")


@cache
def _insert(model: Any) -> str:
    columns = [column.name for column in model.__table__.columns]
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    return f"INSERT INTO {model.__tablename__} ({names}) VALUES ({marks})"  # noqa: S608 - names are ours
