"""`tallystick forecast`: a month's end for people and for programs, and a word where it cannot be told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ledger.core.records import Usage
from ledger.export.parquet import export_parquet
from tests.build import make_ledger, make_record
from tests.cli.conftest import Run, json_of

pytest.importorskip("statsmodels")

DAY_US = 86_400_000_000
FIRST_US = int(datetime(2026, 1, 1, 9, tzinfo=UTC).timestamp()) * 1_000_000
DAYS = 70


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """70 days from the first of January: up to the 11th of March."""
    folder = tmp_path_factory.mktemp("forecast")
    ledger = make_ledger(folder)
    records = [
        make_record(
            ledger.digest,
            n=day,
            started_us=FIRST_US + day * DAY_US,
            usage=Usage(
                input_tokens=int(90_000 + 20_000 * math.sin(day) + 9_000 * (day % 7)), output_tokens=1
            ),
            cost_nano=5_000_000 + 40_000 * (day % 7),
            currency="EUR",
        )
        for day in range(DAYS)
    ]
    ledger.issuer.now_us = records[-1].ended_us
    ledger.append(ledger.issuer.batch(records))
    export_parquet(ledger.store, folder / "export", log_key=ledger.log_key)
    yield folder / "export"
    ledger.store.close()


def test_for_people(export: Path, run: Run) -> None:
    shown = run("forecast", export, "--figure", "tokens", "--figure", "cost", "--days")
    assert shown.exit_code == 0, shown.output
    assert "2026-03, known up to 2026-03-11T09:00:00" in shown.stdout
    assert "cost (EUR)" in shown.stdout
    assert "2026-03-31" in shown.stdout


def test_for_programs(export: Path, run: Run) -> None:
    (found,) = json_of(run("forecast", export, "--figure", "tokens", "--json"))["outlooks"]
    assert (found["figure"], found["days_left"], found["history_days"]) == ("tokens", 21, 68)
    assert found["used"] < found["intervals"][1]["low"] < found["total"] < found["intervals"][1]["high"]
    assert len(found["days"]) == 21


def test_it_says_how_it_would_have_held(export: Path, run: Run) -> None:
    shown = run("forecast", export, "--figure", "tokens", "--as-of", "2026-02-25", "--check", "--json")
    (found,) = json_of(shown)["outlooks"]
    assert found["days_left"] == 4
    assert set(found["checked"]["step_coverage"]) == {"80", "90"}
    assert found["checked"]["mase"] > 0


def test_a_short_history_is_exit_code_2(export: Path, run: Run) -> None:
    shown = run("forecast", export, "--as-of", "2026-01-20")
    assert shown.exit_code == 2
    assert "cannot tell" in shown.stdout
    assert "too few to forecast 12 more" in shown.stdout
    wrong = run("forecast", export, "--where", "tenant=nobody", "--json")
    assert wrong.exit_code == 2
    assert json_of(wrong)["error"]["code"] == "short-history"
