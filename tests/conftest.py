"""Which database the tests run on, and what is the same for all of them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.databases import Postgres, begin_diverted_run, divert, end_diverted_run, running_postgres


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=("sqlite", "postgresql"),
        default="sqlite",
        help="what a test gets where it opens a ledger's database",
    )


def pytest_configure(config: pytest.Config) -> None:
    with contextlib.suppress(ImportError):  # the environments of engines have no hypothesis
        from hypothesis import settings

        # A busy one stops for longer than any example takes.
        settings.register_profile("any machine", deadline=None)
        settings.load_profile("any machine")
    config.addinivalue_line("markers", "sqlite: about the SQLite file itself; left out on PostgreSQL")
    if config.getoption("--database") == "postgresql":
        begin_diverted_run()
        divert()


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.getoption("--database") == "postgresql":
        end_diverted_run()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--database") == "postgresql":
        skip = pytest.mark.skip(reason="about the SQLite file itself")
        for item in items:
            if item.get_closest_marker("sqlite"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole run; each test makes a database of its own in it."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Makes databases without a log, of either kind in turn; with tables, or (on PostgreSQL) ``empty``."""
    if request.param == "sqlite":
        return lambda **_: f"sqlite:///{tmp_path / f'{secrets.token_hex(4)}.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return lambda *, empty=False: postgres.create() if empty else postgres.create_migrated()
