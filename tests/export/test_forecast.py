"""Forecasts: intervals that hold, errors below the seasonal naive's, and a word where it cannot be told."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.records import Energy, Usage
from ledger.export.forecast import backtest, forecast, least_history
from ledger.export.month_end import Asked, Outlook, outlooks
from ledger.export.parquet import export_parquet
from tests.build import Ledger, make_ledger, make_record

pytest.importorskip("statsmodels")

WEEK = (1.0, 1.05, 1.1, 1.08, 0.95, 0.45, 0.4)
DAY_US = 86_400_000_000


def weekly(kind: str, seed: int, days: int) -> list[int]:
    """A made-up daily series with a pattern of a week."""
    choose = random.Random(seed)
    drift, values = 0.0, []
    for day in range(days):
        noise = choose.gauss(0, 0.08)
        if kind == "lasting":  # what was off yesterday is off today
            drift = 0.6 * drift + noise
        elif kind == "walk":
            drift += choose.gauss(0, 0.03)
        level = 1e6 * WEEK[day % 7] * math.exp(drift + (noise if kind != "lasting" else 0))
        if kind == "growth":
            level *= 1.006**day
        if kind == "bursts" and choose.random() < 0.05:
            level *= 2.5
        values.append(int(level))
    return values


def test_intervals_hold_as_often_as_they_say_and_beat_the_seasonal_naive() -> None:
    """Each forecast is of two weeks, made of what came before it alone; five patterns, twice."""
    found = [
        backtest(weekly(kind, 100 * k + n, 98), 14, 7, stride=5)
        for k, kind in enumerate(("plain", "growth", "lasting", "walk", "bursts"))
        for n in range(2)
    ]
    assert sum(each.forecasts for each in found) == 60

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    assert 85 <= mean([each.step_coverage[90] for each in found]) <= 95
    assert 85 <= mean([each.total_coverage[90] for each in found]) <= 95
    assert 73 <= mean([each.step_coverage[80] for each in found]) <= 88
    assert 73 <= mean([each.total_coverage[80] for each in found]) <= 88
    assert mean([each.mase for each in found]) < 0.95 * mean([each.naive_mase for each in found])


def test_a_sums_interval_is_narrower_than_the_sum_of_intervals() -> None:
    made = forecast(weekly("plain", 3, 84), 14, 7)
    for at, level in enumerate((80, 90)):
        total = made.total_intervals[at]
        assert total.level == level
        assert total.low <= made.total <= total.high
        ends = [(each[at].low, each[at].high) for each in made.intervals]
        assert total.high - total.low < sum(high - low for low, high in ends)
    assert made.total_intervals[0].high <= made.total_intervals[1].high
    assert abs(sum(made.values) - made.total) <= len(made.values)


@pytest.mark.parametrize("horizon", [1, 20])
def test_a_short_history_is_said_to_be(horizon: int) -> None:
    needed = least_history(horizon, 7)
    values = weekly("plain", 1, needed)
    assert len(forecast(values, horizon, 7).values) == horizon
    with pytest.raises(InvalidError, match="cannot be told") as refused:
        forecast(values[1:], horizon, 7)
    assert refused.value.code == "short-history"
    with pytest.raises(InvalidError):
        backtest(values, horizon, 7)


@pytest.mark.parametrize(
    "values",
    [[0] * 60, [7] * 60, [0, 0, 0, 0, 0, 9, 9] * 9, [0] * 50 + [5] * 10, [2**70 + n for n in range(60)]],
    ids=["nothing", "constant", "weekends", "begins", "huge"],
)
def test_odd_series_have_a_forecast_too(values: list[int]) -> None:
    made = forecast(values, 7, 7)
    for value, intervals in zip(made.values, made.intervals, strict=True):
        assert all(0 <= each.low <= value <= each.high for each in intervals)
    if len(set(values)) == 1:
        assert made.total == 7 * values[0]


@pytest.mark.parametrize("horizon", [1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_an_interval_stays_near_what_the_series_ever_was(horizon: int, seed: int) -> None:
    """A customer who comes on some days: forecasts come to nothing there, which says nothing of any error."""
    choose = random.Random(seed)
    values = [choose.choice([0, 0, 0, 2_000_000, 5_000_000]) for _ in range(40)]
    made = forecast(values, horizon, 7)
    for intervals in (*made.intervals, made.total_intervals):
        assert all(each.high <= 10 * horizon * max(values) for each in intervals)


# --- a month's end, from an export ------------------------------------------------------------------------

FIRST = date(2025, 10, 20)
LAST = date(2026, 1, 20)


def record_of(ledger: Ledger, day: int, n: int, tokens: int) -> object:
    started = datetime.combine(FIRST + timedelta(days=day), datetime.min.time(), UTC) + timedelta(hours=2 + n)
    return make_record(
        ledger.digest,
        n=n,
        salt=f"{day}",
        started_us=int(started.timestamp()) * 1_000_000,
        tenant="acme" if n else "other",
        usage=Usage(input_tokens=tokens - 5, output_tokens=5),
        energy=UNSET if n == 2 else Energy(energy_uj=tokens * 10**6, method="modelled", source="tests"),
        **({"cost_nano": tokens * 1_000, "currency": "USD" if n else "EUR"}),
    )


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[list[int]]]]:
    """An export of 93 days, three records each; and their tokens."""
    folder = tmp_path_factory.mktemp("forecast")
    ledger = make_ledger(folder)
    days = weekly("plain", 8, (LAST - FIRST).days + 1)
    tokens = [[value // 2, value // 3, value // 6] for value in days]
    records = [
        record_of(ledger, day, n, count)
        for day, counts in enumerate(tokens)
        for n, count in enumerate(counts)
    ]
    ledger.issuer.now_us = records[-1].ended_us  # type: ignore[attr-defined]
    ledger.append(ledger.issuer.batch(records))  # type: ignore[arg-type]
    export_parquet(ledger.store, folder / "export", log_key=ledger.log_key)
    yield folder / "export", tokens
    ledger.store.close()


def of(found: list[Outlook], figure: str, currency: str | None = None) -> Outlook:
    (one,) = [each for each in found if (each.figure, each.currency) == (figure, currency)]
    return one


def test_the_months_end(export: tuple[Path, list[list[int]]]) -> None:
    path, tokens = export
    found = outlooks(path)
    assert [(each.figure, each.currency) for each in found] == [
        ("tokens", None),
        ("cost_nano", "EUR"),
        ("cost_nano", "USD"),
        ("energy_uj", None),
    ], "carbon, which no record tells, has none"
    plain = of(found, "tokens")
    january = tokens[(date(2026, 1, 1) - FIRST).days :]
    assert (plain.month, plain.days_left, plain.history_days) == ("2026-01", 12, 91)
    assert plain.used == sum(map(sum, january)), "exact, and of the day that runs too"
    assert plain.total is not None
    assert [each.day for each in plain.days] == [f"2026-01-{day}" for day in range(20, 32)]
    assert plain.days[0].value >= sum(january[-1])
    assert plain.intervals[1].low >= plain.used
    expected = plain.used + 11 / 7 * sum(map(sum, tokens[-8:-1]))
    assert plain.intervals[1].low < expected < plain.intervals[1].high

    energy = of(found, "energy_uj")
    assert (energy.records, energy.unknown_records) == (60, 20)
    assert of(found, "cost_nano", "EUR").used == sum(day[0] * 1_000 for day in january)


def test_what_was_known_then(export: tuple[Path, list[list[int]]]) -> None:
    path, tokens = export
    at = int(datetime(2026, 1, 10, tzinfo=UTC).timestamp()) * 1_000_000
    asked = Asked(figures=["tokens"], as_of_us=at, where={"tenant": ["acme"]}, check=True)
    (found,) = outlooks(path, asked)
    days = (date(2026, 1, 10) - FIRST).days
    january = (date(2026, 1, 1) - FIRST).days
    assert found.used == sum(sum(day[1:]) for day in tokens[january:days])
    assert found.days_left == 22
    truth = found.used + sum(sum(day[1:]) for day in tokens[days:])  # eleven of the 22 days
    assert found.total is not None
    assert found.total > truth
    assert found.checked is None, "too short a history to look back at forecasts of 22 days"

    (checked,) = outlooks(path, Asked(figures=["tokens"], check=True))
    assert checked.checked is not None
    assert checked.checked.forecasts > 10


def test_a_month_that_cannot_be_told(export: tuple[Path, list[list[int]]]) -> None:
    path, _ = export
    at = int(datetime(2025, 11, 3, tzinfo=UTC).timestamp()) * 1_000_000
    (found,) = outlooks(path, Asked(figures=["tokens"], as_of_us=at))
    assert (found.total, found.intervals, found.days) == (None, (), ())
    assert found.cannot_tell is not None
    assert "13 days are too few to forecast 28 more" in found.cannot_tell
    assert replace(found, cannot_tell=None).used > 0
    with pytest.raises(InvalidError, match="no such records"):
        outlooks(path, Asked(where={"tenant": ["nobody"]}))
    with pytest.raises(InvalidError, match="there is no forecast of"):
        outlooks(path, Asked(figures=["requests"]))
