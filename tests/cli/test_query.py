"""`tallystick query` and `tallystick sql`."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from cli.query import _cost
from ledger.export.query import DIMENSIONS
from tests.cli.conftest import LedgerFolder, Run, json_of, run_command


@pytest.fixture(scope="module")
def export(ledger: LedgerFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "all"
    assert run_command("export", "parquet", ledger.path, out).exit_code == 0
    return out


def test_totals_by_tenant(export: Path, ledger: LedgerFolder, run: Run) -> None:
    rows = json_of(run("query", export, "--by", "tenant", "--json"))["rows"]
    for row in rows:
        mine = [r for r in ledger.records if r.tenant == row["tenant"]]
        assert row["records"] == len(mine)
        assert row["energy_uj"] == sum(r.energy.energy_uj for r in mine)
    assert sum(row["records"] for row in rows) == len(ledger.records)


def test_where_and_period(export: Path, ledger: LedgerFolder, run: Run) -> None:
    tenant = ledger.records[0].tenant
    arguments = ("--where", f"tenant={tenant}", "--where", "tenant=nobody", "--to", "2025-10-10")
    (row,) = json_of(run("query", export, *arguments, "--json"))["rows"]
    assert row["records"] == sum(r.tenant == tenant for r in ledger.records)


def test_the_table_is_for_people(export: Path, run: Run) -> None:
    result = run("query", export, "--by", "model", "--percentiles")
    assert result.exit_code == 0
    assert "SmolLM2-135M-Instruct" in result.stdout
    assert "Wh" in result.stdout
    assert "unknown" in result.stdout  # these records state no carbon
    assert "no records" in run("query", export, "--where", "model=other").stderr


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"cost_nano": 1_500_000_000, "cost_nano_records": 2, "cost_currency": "EUR"}, "1.500000 EUR"),
        ({"cost_nano": 5_000, "cost_nano_records": 1, "cost_currency": "USD"}, "0.000005 USD (1 of 2)"),
        ({"cost_currency": None}, "several currencies"),
        ({}, ""),
    ],
)
def test_a_cost_is_shown_with_its_currency(row: dict[str, object], text: str) -> None:
    assert _cost({"records": 2, **row}) == text


def test_every_dimension_can_be_named(export: Path, run: Run) -> None:
    for name in DIMENSIONS:
        assert run("query", export, "--by", name, "--json").exit_code == 0, name


@pytest.mark.parametrize("arguments", [("--where", "model"), ("--where", "colour=red"), ("--by", "colour")])
def test_what_cannot_be_asked_is_refused(export: Path, run: Run, arguments: tuple[str, ...]) -> None:
    assert run("query", export, *arguments).exit_code == 2


def test_sql(export: Path, ledger: LedgerFolder, run: Run) -> None:
    made = json_of(
        run("sql", export, "SELECT id, input_tokens, started_at FROM records ORDER BY id", "--json")
    )
    assert made["columns"] == ["id", "input_tokens", "started_at"]
    assert [row["id"] for row in made["rows"]] == sorted(r.id for r in ledger.records)
    assert made["truncated"] is False
    cut = json_of(run("sql", export, "SELECT id FROM records", "--limit", 2, "--json"))
    assert (len(cut["rows"]), cut["truncated"]) == (2, True)


def test_sql_as_csv_holds_no_formula(export: Path, run: Run) -> None:
    result = run("sql", export, "SELECT '=1+1' AS a, -5 AS b, '-x' AS a, NULL AS c", "--csv")
    assert list(csv.reader(io.StringIO(result.stdout))) == [
        ["a", "b", "a_2", "c"],
        ["'=1+1", "-5", "'-x", ""],
    ]


@pytest.mark.parametrize(
    "text",
    ["SELEC 1", "SELECT 1; SELECT 2", "", "SELECT * FROM '/etc/passwd'", "COPY records TO '/tmp/x.csv'"],
)
def test_sql_that_is_refused(export: Path, run: Run, text: str) -> None:
    result = run("sql", export, text)
    assert result.exit_code == 2
    assert "error:" in result.stderr
    assert not Path("/tmp/x.csv").exists()


def test_completeness(export: Path, ledger: LedgerFolder, run: Run) -> None:
    told = json_of(run("completeness", export, "--json"))
    (issuer,) = told["issuers"]
    assert issuer["records"] == len(ledger.records)
    assert issuer["first_seq"] == 0
    assert told["every_statement"] is True
    result = run("completeness", export)
    assert result.exit_code == 0
    assert issuer["issuer"] in result.stdout
    assert ("gap:" in result.stdout) == bool(told["gaps"])


def test_trace(export: Path, ledger: LedgerFolder, run: Run, tmp_path: Path) -> None:
    arguments = ("trace", export, ledger.records[0].id, "--log-key", ledger.path / "log.vkey")
    result = run(*arguments, "--page", tmp_path / "t.html", "--save", tmp_path / "t.json")
    assert result.exit_code == 0, result.output
    assert ledger.records[0].deployment in result.stdout
    assert b"Content-Security-Policy" in (tmp_path / "t.html").read_bytes()
    verified = run("verify", tmp_path / "t.json", "--log-key", ledger.path / "log.vkey", "--json")
    assert (verified.exit_code, json_of(verified)["kind"]) == (0, "trace")
    assert run("trace", export, "nobody", "--log-key", ledger.path / "log.vkey").exit_code == 2
