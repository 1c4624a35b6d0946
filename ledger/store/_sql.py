"""Plain SQL for the hot path, where building an expression and its result would cost more than running it.

Goes to the driver's own cursor, inside the transaction of the connection: a driver's error passes unwrapped.
Many rows go to PostgreSQL by COPY, which takes them in one message stream without planning or binding each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, LargeBinary

__all__ = ["insert_rows", "integrity_error", "run", "run_many"]

_COPY_FROM_ROWS = 4
"""Fewer rows go faster as statements, which the driver sends in one go: COPY needs an answer first."""


def run(connection: Connection, sql: str, values: Sequence[Any] = ()) -> Any:
    """Run ``sql`` and return the cursor; ``?`` marks a value, whatever the driver's own mark is."""
    return connection.connection.cursor().execute(_marked(connection, sql), values)


def run_many(connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run ``sql`` once for each of ``rows``."""
    connection.connection.cursor().executemany(_marked(connection, sql), rows)


def insert_rows(connection: Connection, model: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert whole rows: a value for each column, in the table's order."""
    if connection.dialect.name != "postgresql" or len(rows) < _COPY_FROM_ROWS:
        run_many(connection, _insert(model), rows)
        return
    sql, types = _copy(model)
    with connection.connection.cursor().copy(sql) as copy:
        copy.set_types(types)
        write = copy.write_row
        for row in rows:
            write(row)


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


@cache
def _copy(model: Any) -> tuple[str, list[str]]:
    """The COPY of whole rows in binary form, and the columns' types, which that form must meet exactly."""
    columns = list(model.__table__.columns)
    names = ", ".join(column.name for column in columns)
    return f"COPY {model.__tablename__} ({names}) FROM STDIN (FORMAT BINARY)", [
        "bytea"
        if isinstance(column.type, LargeBinary)
        else "int8"
        if isinstance(column.type, BigInteger)
        else "int4"
        if isinstance(column.type, Integer)
        else "text"
        for column in columns
    ]
