"""Alembic's entry: migrates the connection it is given, or the URL of alembic.ini or TALLYSTICK_DATABASE."""

import os
from typing import Any

from alembic import context
from sqlmodel import SQLModel

from ledger.store import tables  # noqa: F401 - registers the tables
from ledger.store.engine import open_store


def _run(connection: Any) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        # On PostgreSQL each has its own: a table that one changes is not locked until the last is done.
        transaction_per_migration=connection.dialect.name == "postgresql",
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    url = os.environ.get("TALLYSTICK_DATABASE") or context.config.get_main_option("sqlalchemy.url")
    with open_store(str(url)).write() as opened:
        _run(opened)
