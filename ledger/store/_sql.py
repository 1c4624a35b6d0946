"""Plain SQL for the hot path, where building and compiling an expression would cost more than running it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection

__all__ = ["insert_rows", "run_many"]


def run_many(connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run ``sql`` once for each of ``rows``; ``?`` marks a value, whatever the driver's own mark is."""
    if connection.dialect.paramstyle != "qmark":
        sql = sql.replace("?", "%s")
    connection.exec_driver_sql(sql, list(rows))


def insert_rows(connection: Connection, model: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert whole rows: a value for each column, in the table's order."""
    run_many(connection, _insert(model), rows)


@cache
def _insert(model: Any) -> str:
    columns = [column.name for column in model.__table__.columns]
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    return f"INSERT INTO {model.__tablename__} ({names}) VALUES ({marks})"  # noqa: S608 - names are ours
