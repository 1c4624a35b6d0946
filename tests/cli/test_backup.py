"""`tallystick backup`, `restore` and `db move`, as an operator uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import LedgerFolder, Run, json_of
from tests.databases import Postgres


@pytest.mark.filterwarnings("error::sqlalchemy.exc.SAWarning")  # people would read it
def test_there_and_back(run: Run, own_ledger: LedgerFolder, tmp_path: Path) -> None:
    made = json_of(run("backup", own_ledger.path, tmp_path / "b", "--json"))
    assert made["backup"] == str(tmp_path / "b")
    key, seen = own_ledger.path / "keys" / "log.pem", own_ledger.path / "published.checkpoint"
    restored = tmp_path / "restored"
    result = run("restore", tmp_path / "b", restored, "--log-key", key, "--checkpoint", seen, "--json")
    assert json_of(result)["tree_size"] == made["tree_size"]
    assert json_of(result)["compared"] == 1
    audit = run("audit", restored, "--log-key", own_ledger.path / "log.vkey", "--json")
    assert audit.exit_code == 0, audit.output
    assert (restored / "log.vkey").read_text() == (own_ledger.path / "log.vkey").read_text()
    assert (restored / "keys" / "log.pem").stat().st_mode & 0o777 == 0o600
    shown = json_of(run("records", "show", restored, own_ledger.records[0].id, "--json"))
    assert own_ledger.records[0].id in json.dumps(shown)


def test_a_log_whose_key_was_rotated(run: Run, own_ledger: LedgerFolder, tmp_path: Path) -> None:
    """What was seen before is signed by the old key alone; the backup's manifest by the new one."""
    path, seen = own_ledger.path, tmp_path / "seen.checkpoint"
    shutil.copy(path / "published.checkpoint", seen)
    assert run("log-key", "rotate", path, "--algorithm", "ml-dsa-44").exit_code == 0
    for step in ("beside", "retired"):
        assert json_of(run("db", "check", path, "--json"))["findings"] == []
        assert run("backup", path, tmp_path / step).exit_code == 0
        restored = tmp_path / f"restored-{step}"
        options = ("--log-key", path / "keys" / "log.pem", "--checkpoint", seen)
        assert run("restore", tmp_path / step, restored, *options).exit_code == 0
        assert (restored / "log.vkey").read_text() == (path / "log.vkey").read_text()
        assert run("audit", restored, "--log-key", restored / "log.vkey").exit_code == 0
        if step == "beside":
            assert run("log-key", "retire", path).exit_code == 0


def test_no_key_is_in_a_backup(run: Run, own_ledger: LedgerFolder, tmp_path: Path) -> None:
    assert run("backup", own_ledger.path, tmp_path / "b").exit_code == 0
    secrets = [
        (own_ledger.path / "admin.key").read_bytes().strip(),
        (own_ledger.path / "keys" / "log.pem").read_bytes().splitlines()[1],
    ]
    for path in (tmp_path / "b").rglob("*"):
        if path.is_file():
            assert not any(secret in path.read_bytes() for secret in secrets)


def test_a_failed_restore_leaves_nothing(run: Run, own_ledger: LedgerFolder, tmp_path: Path) -> None:
    assert run("backup", own_ledger.path, tmp_path / "b").exit_code == 0
    table = tmp_path / "b" / "tables" / "statement.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    key = own_ledger.path / "keys" / "log.pem"
    result = run("restore", tmp_path / "b", tmp_path / "restored", "--log-key", key)
    assert result.exit_code == 2
    assert "tables/statement.parquet" in result.stderr
    assert {each.name for each in tmp_path.iterdir()} == {"b", own_ledger.path.name}


def test_a_folder_with_something_in_it_is_not_restored_into(
    run: Run, own_ledger: LedgerFolder, tmp_path: Path
) -> None:
    assert run("backup", own_ledger.path, tmp_path / "b").exit_code == 0
    key = own_ledger.path / "keys" / "log.pem"
    result = run("restore", tmp_path / "b", own_ledger.path, "--log-key", key)
    assert result.exit_code == 2
    assert "exists already" in result.stderr


@pytest.mark.sqlite
def test_a_log_moves_to_postgresql(
    run: Run,
    own_ledger: LedgerFolder,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("db", "move", own_ledger.path).exit_code == 2  # no database is named
    monkeypatch.setenv("TALLYSTICK_DATABASE", postgres.create())
    moved = json_of(run("db", "move", own_ledger.path, "--json"))
    assert moved["old"] == str(own_ledger.path / "ledger.db.moved")
    assert not (own_ledger.path / "ledger.db").exists()
    audit = run("audit", own_ledger.path, "--log-key", own_ledger.path / "log.vkey", "--json")
    assert audit.exit_code == 0, audit.output
    assert json_of(run("db", "check", own_ledger.path, "--json"))["size"] == moved["tree_size"]
