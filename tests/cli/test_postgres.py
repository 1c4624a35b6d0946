"""A ledger in PostgreSQL: the same commands, the same verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.folder import DATABASE_VARIABLE, Folder
from tests import build
from tests.cli.conftest import LedgerFolder, Run, fill, json_of, run_command
from tests.databases import Postgres


@pytest.fixture
def in_postgres(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LedgerFolder:
    """A ledger whose folder has only keys."""
    monkeypatch.setenv(DATABASE_VARIABLE, postgres.create())
    path = tmp_path / "ledger-data"
    made = run_command("init", path, "--origin", build.ORIGIN)
    assert made.exit_code == 0, made.output
    return fill(path)


def test_a_ledger_in_postgresql(in_postgres: LedgerFolder, tmp_path: Path, run: Run) -> None:
    path, vkey = in_postgres.path, in_postgres.path / "log.vkey"
    assert not (path / "ledger.db").exists()

    page = json_of(run("records", "list", path, "--all", "--json"))
    assert [each["record"]["id"] for each in page["records"]] == [each.id for each in in_postgres.records]
    rows = json_of(run("rollups", path, "--by", "model", "--json"))["rows"]
    assert rows[0]["energy_uj"] == sum(each.energy.energy_uj for each in in_postgres.records)

    sound = run("audit", path, "--log-key", vkey, "--json")
    assert sound.exit_code == 0, sound.output
    assert json_of(sound)["counts"]["records"] == len(in_postgres.records)

    proof, export = tmp_path / "receipt.json", tmp_path / "export"
    run("receipt", "get", path, in_postgres.records[0].id, "--out", proof)
    assert run("receipt", "verify", proof, "--log-key", vkey).exit_code == 0
    assert run("export", "parquet", path, export).exit_code == 0
    assert run("verify", export, "--log-key", vkey).exit_code == 0

    again = run("init", tmp_path / "second", "--origin", build.ORIGIN, "--json")
    assert again.exit_code == 2
    assert json_of(again)["error"]["code"] == "exists"
    assert not (tmp_path / "second").exists()

    _change_one_byte(path)
    refuted = run("audit", path, "--log-key", vkey, "--json")
    assert refuted.exit_code == 1
    assert any("leaf_index=4" in finding["where"] for finding in json_of(refuted)["findings"])


def _change_one_byte(path: Path) -> None:
    store = Folder(path).open()
    try:
        with store.write() as connection:
            changed = connection.exec_driver_sql(
                "UPDATE statement SET entry = set_byte(entry, 40, get_byte(entry, 40) # 1)"
                " WHERE leaf_index = 4"
            )
            assert changed.rowcount == 1
    finally:
        store.close()
