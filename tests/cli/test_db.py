"""``tallystick db``, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from cli.folder import DATABASE_VARIABLE, Folder
from ledger.store.upgrade import revisions
from tests import build
from tests.cli.conftest import LedgerFolder, Run, fill, json_of, log_size, run_command
from tests.databases import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def own(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerFolder:
    """A ledger of the test's own."""
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv(DATABASE_VARIABLE, postgres.create())
    path = tmp_path / "ledger-data"
    made = run_command("init", path, "--origin", build.ORIGIN)
    assert made.exit_code == 0, made.output
    return fill(path, batches=1)


def change(path: Path, *statements: str) -> None:
    store = Folder(path).open()
    with store.write() as connection:
        for each in statements:
            connection.execute(text(each))
    store.close()


def test_upgrade_leaves_the_evidence_alone(own: LedgerFolder, run: Run) -> None:
    store = Folder(own.path).open()
    newest = revisions(store).newest
    store.close()
    assert run("db", "upgrade", own.path).exit_code == 0
    told = json_of(run("db", "upgrade", own.path, "--json"))
    assert told == {"directory": str(own.path), "before": newest, "current": newest, "done": []}
    assert run("audit", own.path, "--log-key", own.path / "log.vkey").exit_code == 0


def test_check_finds_nothing_in_a_sound_database(own: LedgerFolder, run: Run) -> None:
    result = run("db", "check", own.path, "--json")
    assert (result.exit_code, json_of(result)["findings"]) == (0, [])
    assert json_of(result)["size"] == log_size(own.path)
    assert "nothing is wrong" in run("db", "check", own.path).stderr


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "an index is gone": (lambda path: change(path, "DROP INDEX ix_statement_last_us"), "other-tables"),
    "a column is new": (lambda path: change(path, "ALTER TABLE issuer ADD COLUMN x INTEGER"), "other-tables"),
    "a tile is gone": (lambda path: change(path, "DELETE FROM tile"), "missing-tile"),
    "the head is another": (lambda path: change(path, "UPDATE log_head SET size = 4"), "inconsistent-log"),
    "a newer version was here": (
        lambda path: change(path, "UPDATE alembic_version SET version_num = 'later'"),
        "database-too-new",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_check_names_what_is_wrong(own: LedgerFolder, run: Run, what: str) -> None:
    make, code = CHANGES[what]
    make(own.path)
    result = run("db", "check", own.path, "--json")
    assert result.exit_code == 1, result.output
    assert code in [each["code"] for each in json_of(result)["findings"]]
    assert run("db", "check", own.path).exit_code == 1


def test_a_database_of_another_version_is_not_served(own: LedgerFolder, run: Run) -> None:
    change(own.path, "UPDATE alembic_version SET version_num = 'later'")
    result = run("serve", own.path, "--port", "1", "--json")
    assert result.exit_code == 2
    assert '"code": "database-too-new"' in result.stdout
    assert not json_of(run("db", "current", own.path, "--json"))["known"]
    assert "newer version" in run("db", "current", own.path).stdout
