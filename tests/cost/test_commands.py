"""``tallystick prices`` and ``tallystick cost`` over a real export."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from ledger.core.canonical import encode_canonical
from ledger.core.price_books import decode_price_book
from ledger.core.records import document_digest
from ledger.cost.self_hosted import Assumptions, Hardware, Made, self_hosted_cost
from tests.cli.conftest import Run, json_of, run_command
from tests.cost.logged import DAY_US, DEPLOYMENTS, FIRST_US, MINI, NEW, OLD, OWN, Logged

CSV = (
    "model,provider,input_per_mtok,cached_input_per_mtok,output_per_mtok\n"
    "m,example,0.15,0.075,0.6\n"
    "n,example,1.000000001,,2\n"
)
MAKE = ("--name", "tariff", "--version", "1", "--currency", "EUR", "--source", "contract 4711")


@pytest.fixture
def run() -> Run:
    return run_command


@pytest.fixture
def books(tmp_path: Path) -> list[str]:
    for book in (OLD, NEW):
        (tmp_path / f"{book.version}.json").write_bytes(msgspec.json.encode(book))
    return ["--prices", str(tmp_path / "1.json"), "--prices", str(tmp_path / "2.json")]


# --- prices ----------------------------------------------------------------------------------------------


def test_a_book_is_made_shown_and_checked(run: Run, tmp_path: Path) -> None:
    rates, out = tmp_path / "rates.csv", tmp_path / "book.json"
    rates.write_text(CSV)
    made = json_of(run("prices", "make", rates, *MAKE, "--from", "2026-01-01", "--out", out, "--json"))
    book = decode_price_book(out.read_bytes().rstrip(b"\n"))
    assert made == {"digest": document_digest(book), "rates": 2, "file": str(out)}
    assert book.valid_from_us == 1_767_225_600_000_000
    assert [rate.input_nano_per_mtok for rate in book.rates] == [150_000_000, 1_000_000_001]
    assert run("prices", "make", rates, *MAKE, "--from", "2026-01-01").stdout.encode() == out.read_bytes()
    shown = json_of(run("prices", "show", out, "--json"))
    assert shown["digest"] == made["digest"]
    assert "1.000000001" in run("prices", "show", out).stdout
    checked = json_of(run("prices", "check", out, "--json"))
    assert checked["books"][0]["loggable"] is True


@pytest.mark.parametrize("text", ["", "model,input_per_mtok,output_per_mtok\nm,free,1\n"])
def test_rates_that_are_none_are_refused(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "rates.csv").write_text(text)
    result = run("prices", "make", tmp_path / "rates.csv", *MAKE)
    assert result.exit_code == 2
    assert "rates.csv" in result.stderr


def test_list_prices_become_a_book(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "list.json"
    listed = json_of(run("prices", "list", "openai:gpt-4o-mini", "--at", "2026-11-01", "--json"))
    assert listed["prices"][0]["rates"][0]["input_nano_per_mtok"] == 150_000_000
    result = run("prices", "import-list", "openai:gpt-4o-mini", "--at", "2026-11-01", "--out", out)
    assert result.exit_code == 0
    assert "left out" in result.stderr
    assert {rate.model for rate in decode_price_book(out.read_bytes()[:-1]).rates} == {MINI}
    assert "gpt-4o-mini" in run("prices", "list", "openai:gpt-4o-mini").stdout


def test_records_of_an_export_are_checked_by_their_books(run: Run, logged: Logged) -> None:
    result = run("prices", "check", "--export", logged.export, "--json")
    found = json_of(result)
    assert result.exit_code == 0
    assert (found["batches"], found["otherwise"]) == (3, 0)
    assert found["by_book"] == sum(r.cost_nano is not UNSET for r in logged.records)


# --- rate and compare ------------------------------------------------------------------------------------


def test_rating_gives_what_was_logged(run: Run, logged: Logged, books: list[str]) -> None:
    result = run(
        "cost", "rate", logged.export, *books, "--where", "provider=openai", "--by", "model", "--json"
    )
    rows = json_of(result)["rows"]
    assert result.exit_code == 0
    assert sum(row["cost_nano"] for row in rows) == sum(
        r.cost_nano for r in logged.records if r.cost_nano is not UNSET
    )
    assert all(row["cost_nano"] == row["logged_nano"] for row in rows)
    some = run("cost", "rate", logged.export, *books, "--by", "model")
    assert some.exit_code == 2
    assert "no rate" in some.stderr


def test_the_same_tokens_elsewhere(run: Run, logged: Logged, books: list[str]) -> None:
    own = ("--where", f"model={OWN}")
    at = ("--at", "openai:gpt-4o-mini@batch", "--at", "gpt-4o", "--at", "openai:nothing")
    result = run("cost", "compare", logged.export, *books[:2], *at, *own, "--json")
    rows = {row["at"]: row for row in json_of(result)["rows"]}
    digest = document_digest(DEPLOYMENTS[OWN])
    usages = [r.usage for r in logged.records if r.deployment == digest]
    half = Fraction(1, 2)
    batch = sum(int(75 * u.input_tokens + 300 * u.output_tokens + half) for u in usages)
    tokens = sum(u.input_tokens + u.output_tokens for u in usages)
    assert rows["openai:gpt-4o-mini@batch"]["cost_nano"] == batch
    assert rows["openai:gpt-4o-mini@batch"]["per_1k_tokens_nano"] == (2000 * batch + tokens) // (2 * tokens)
    assert rows["gpt-4o"]["provider"] == "openai"
    assert rows["gpt-4o"]["cost_nano"] > batch
    assert "cost_nano" not in rows["openai:nothing"]
    assert "as logged" not in rows
    table = run("cost", "compare", logged.export, *books, "--at", "gpt-4o", "--where", "provider=openai")
    assert table.exit_code == 0
    assert "as logged" in table.stdout


# --- own hardware ----------------------------------------------------------------------------------------

STATED = Assumptions(
    currency="EUR",
    energy_nano_per_kwh=250_000_000,
    energy_source="contract with the utility, 2026",
    pue_milli=1_200,
    pue_source="our meters, 2025",
    hardware=(
        Hardware(
            name="node 1", hourly_nano=3_000_000_000, source="depreciation over 4 years", model=OWN, units=2
        ),
    ),
)


def made(**changes: object) -> Made:
    fields = {
        "deployment": "ab" * 32,
        "model": OWN,
        "site": None,
        "accelerator": None,
        "records": 10,
        "input_tokens": 900_000,
        "output_tokens": 100_000,
        "energy_uj": 36 * 10**11,  # one kilowatt-hour
        "energy_records": 9,
        "measured_records": 8,
    }
    return Made(**(fields | changes))  # type: ignore[arg-type]


def test_hardware_and_energy_over_tokens() -> None:
    (spent,), unknown = self_hosted_cost(STATED, [made(), made(model="other")], 10 * 3_600_000_000)
    assert spent.hours == 20
    assert spent.hardware_nano == 60 * 10**9
    assert spent.energy_nano == 300_000_000
    assert spent.total_nano == 60_300_000_000
    assert spent.per_1k_tokens_nano == 60_300_000
    assert spent.per_1k_output_tokens_nano == 603_000_000
    assert [each.model for each in unknown] == ["other"]


def test_hardware_that_made_nothing_costs_all_the_same() -> None:
    (spent,), _ = self_hosted_cost(STATED, [], 3_600_000_000)
    assert (spent.total_nano, spent.per_1k_tokens_nano) == (6 * 10**9, None)


def test_own_hardware_over_an_export(run: Run, logged: Logged, tmp_path: Path) -> None:
    path = tmp_path / "assumptions.json"
    path.write_bytes(encode_canonical(STATED))
    period = ("--from", "2026-09-28", "--to", "2026-10-03")
    result = run("cost", "self-hosted", logged.export, path, *period, "--where", f"model={OWN}", "--json")
    found = json_of(result)
    (row,) = found["hardware"]
    digest = document_digest(DEPLOYMENTS[OWN])
    own = [r for r in logged.records if r.deployment == digest]
    energy = sum(r.energy.energy_uj for r in own if r.energy is not UNSET)
    assert (result.exit_code, found["until_us"] - found["from_us"]) == (0, 5 * DAY_US)
    assert found["from_us"] == FIRST_US
    assert row["hardware_nano"] == 2 * 5 * 24 * 3 * 10**9
    expected = Fraction(energy * 1200 * 250_000_000, 1000 * 36 * 10**11)
    assert row["energy_nano"] == int(expected + Fraction(1, 2))
    assert found["assumptions"]["pue_source"] == "our meters, 2025"
    others = run("cost", "self-hosted", logged.export, path)
    assert others.exit_code == 2
    assert "no hardware is stated for gpt-4o-mini" in others.stderr


@pytest.mark.parametrize("text", ["", "[]", '{"currency": "EUR"}', "[" * 50])
def test_assumptions_that_are_none_are_refused(run: Run, logged: Logged, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert run("cost", "self-hosted", logged.export, tmp_path / "a.json").exit_code == 2
    assert run("cost", "self-hosted", logged.export, tmp_path / "none.json").exit_code == 2
