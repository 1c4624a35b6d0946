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


def test_an_export_is_added_to(ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    first = json_of(run("export", "parquet", ledger.path, tmp_path / "x", "--resume", "--json"))
    again = json_of(run("export", "parquet", ledger.path, tmp_path / "x", "--resume", "--json"))
    assert (first["added_records"], again["added_records"]) == (len(ledger.records), 0)
    assert run("verify", tmp_path / "x", "--log-key", ledger.path / "log.vkey").exit_code == 0
    refused = run("export", "parquet", ledger.path, tmp_path / "x", "--resume", "--from", build.START_US)
    assert refused.exit_code == 2
    assert "name a new folder" in refused.stderr


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_tables(export: Path, ledger: LedgerFolder, tmp_path: Path, run: Run, kind: str) -> None:
    out = tmp_path / f"records.{kind}"
    made = json_of(run("export", kind, export, out, "--json"))
    assert made["records"] == len(ledger.records)
    assert made["file"] == str(out)
    tenant = ledger.records[0].tenant
    made = json_of(run("export", kind, export, out, "--where", f"tenant={tenant}", "--as-logged", "--json"))
    assert made["records"] == sum(record.tenant == tenant for record in ledger.records) > 0
    assert "corrected records" in run("export", kind, export, out).stdout


def test_iceberg(export: Path, ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    made = json_of(run("export", "iceberg", export, tmp_path / "warehouse", "--json"))
    assert made["added_records"] == len(ledger.records)
    assert Path(made["metadata"].removeprefix("file://")).is_file()
    assert json_of(run("export", "iceberg", export, tmp_path / "warehouse", "--json"))["added_records"] == 0


def test_spans_and_lineage(export: Path, ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    made = json_of(run("export", "otlp", export, "--file", tmp_path / "spans.jsonl", "--json"))
    assert made["spans"] == len(ledger.records)
    assert (tmp_path / "spans.jsonl").stat().st_size > 0
    assert run("export", "otlp", export).exit_code == 2
    assert run("export", "otlp", export, "--endpoint", "http://127.0.0.1:1").exit_code == 2
    lineage = json_of(run("export", "openlineage", export, tmp_path / "events", "--json"))
    assert lineage["events"] == len((tmp_path / "events").read_text().splitlines()) > 1


def test_an_export_goes_on_after_the_logs_key_was_rotated(
    run: Run, own_ledger: LedgerFolder, tmp_path: Path
) -> None:
    path, export, vkey = own_ledger.path, tmp_path / "export", own_ledger.path / "log.vkey"
    assert run("export", "parquet", path, export).exit_code == 0
    for change in (("rotate", path, "--algorithm", "ml-dsa-44"), ("retire", path)):
        assert run("log-key", *change).exit_code == 0
        assert run("export", "parquet", path, export, "--resume").exit_code == 0
        assert run("verify", export, "--log-key", vkey).exit_code == 0
