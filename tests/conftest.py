"""Which database the tests run on."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=("sqlite", "postgresql"),
        default="sqlite",
        help="what a test gets where it opens a ledger's database",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sqlite: about the SQLite file itself; left out on PostgreSQL")
    if config.getoption("--database") == "postgresql":
        from tests.databases import divert

        divert()


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.getoption("--database") == "postgresql":
        from tests.databases import stop_started

        stop_started()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--database") == "postgresql":
        skip = pytest.mark.skip(reason="about the SQLite file itself")
        for item in items:
            if item.get_closest_marker("sqlite"):
                item.add_marker(skip)
