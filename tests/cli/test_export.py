"""`tallystick export`, and `audit` and `verify` of what it writes."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from tests import build
from tests.cli.conftest import LedgerFolder, Run, json_of


@pytest.fixture(scope="module")
def export(ledger: LedgerFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.cli.conftest import run_command

    out = tmp_path_factory.mktemp("export") / "all"
    made = json_of(run_command("export", "parquet", ledger.path, out, "--json"))
    assert made["directory"] == str(out)
    assert made["records"] == len(ledger.records)
    assert made["every_statement"] is True
    return out


def test_duckdb_reads_it(export: Path, ledger: LedgerFolder) -> None:
    query = f"SELECT count(*), sum(energy_uj) FROM read_parquet('{export}/records/**/*.parquet')"
    with duckdb.connect() as connection:
        row = connection.execute(query).fetchone()
    assert row == (len(ledger.records), sum(record.energy.energy_uj for record in ledger.records))


def test_a_period(ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    arguments = ("--from", build.START_US, "--to", build.START_US + 3000)
    made = json_of(run("export", "parquet", ledger.path, tmp_path / "part", *arguments, "--json"))
    assert made["records"] == 3
    assert made["every_statement"] is False


def test_it_is_never_written_over_something(ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    (tmp_path / "x").touch()
    result = run("export", "parquet", ledger.path, tmp_path)
    assert result.exit_code == 2
    assert "remedy" in result.stderr


@pytest.mark.parametrize("command", ["audit", "verify"])
def test_a_sound_export(export: Path, ledger: LedgerFolder, run: Run, command: str) -> None:
    result = run(command, export, "--log-key", ledger.path / "log.vkey", "--json")
    assert result.exit_code == 0, result.output
    assert json_of(result)["verdict"] == "sound"


@pytest.mark.parametrize("command", ["audit", "verify"])
def test_a_changed_export(export: Path, ledger: LedgerFolder, tmp_path: Path, run: Run, command: str) -> None:
    import shutil

    changed = tmp_path / "changed"
    shutil.copytree(export, changed)
    file = next((changed / "records").rglob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = run(command, changed, "--log-key", ledger.path / "log.vkey", "--json")
    assert result.exit_code == 1, result.output
    assert json_of(result)["verdict"] == "refuted"
