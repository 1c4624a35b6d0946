"""Budgets: windows, charges, estimates, refusals and thresholds, by the rules alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.cost import budgets as rules
from ledger.cost.budgets import Budget, Room
from tests.build import make_record

DIGEST = "0" * 64
HOUR, DAY = 3_600, 86_400


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def budget(**changes: Any) -> Budget:
    fields: dict[str, Any] = {"name": "b", "measure": "tokens", "limit": 1_000, "window": "day"}
    return Budget(**(fields | changes))


def room(used: int, reserved: int, wanted: int, *, now: str = "2026-02-10T12:00:00", **changes: Any) -> Room:
    return Room(budget(**changes), used, reserved, wanted, at(now), ())


# --- windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "now", "start", "end"),
    [
        ("day", "2026-02-28T23:59:59", "2026-02-28", "2026-03-01"),
        ("month", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("month", "2028-02-29T00:00:00", "2028-02-01", "2028-03-01"),
        ("1h", "2026-01-01T12:30:30", "2026-01-01T11:30:00", "2026-01-01T12:31:00"),
        ("24h", "2026-01-02T00:10:00", "2026-01-01T00:00:00", "2026-01-02T00:24:00"),
    ],
)
def test_windows(window: str, now: str, start: str, end: str) -> None:
    assert rules.window_of(window, at(now)) == (at(start), at(end))


@given(
    st.sampled_from(["day", "month", "1h", "5h", "24h", "7d", "30d"]),
    st.integers(1_600_000_000, 2_000_000_000),
)
def test_a_time_is_in_its_bucket_and_in_its_window(window: str, time_s: int) -> None:
    bucket = rules.bucket_of(window, time_s)
    start, end = rules.window_of(window, time_s)
    assert start <= bucket <= time_s < end
    assert rules.bucket_of(window, bucket) == bucket
    assert rules.period_of(window, time_s) <= time_s


@given(st.sampled_from([1, 5, 24, 168]), st.integers(1_600_000_000, 2_000_000_000), st.integers(0, 10**6))
def test_a_rolling_window_covers_its_whole_length(hours: int, now_s: int, back_s: int) -> None:
    back_s %= hours * HOUR
    start, _ = rules.window_of(f"{hours}h", now_s)
    assert rules.bucket_of(f"{hours}h", now_s - back_s) >= start


# --- what is refused as a budget ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"name": "No Spaces"}, "name"),
        ({"name": "x\n"}, "name"),
        ({"measure": "requests"}, "measure"),
        ({"limit": 0}, "limit"),
        ({"limit": 10**31}, "limit"),
        ({"window": "week"}, "window"),
        ({"window": "0h"}, "window"),
        ({"window": "9999d"}, "window"),
        ({"tenant": "a b"}, "tenant"),
        ({"model": ""}, "model"),
        ({"measure": "cost_nano"}, "currency"),
        ({"measure": "cost_nano", "currency": "usd"}, "currency"),
        ({"currency": "USD"}, "currency"),
        ({"alerts": (0,)}, "alerts"),
        ({"alerts": tuple(range(1, 20))}, "alerts"),
    ],
)
def test_unusable_budgets_are_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidError) as refused:
        rules.checked_budget(budget(**changes))
    assert (refused.value.code, refused.value.where) == ("bad-budget", where)


def test_alerts_are_put_in_order() -> None:
    assert rules.checked_budget(budget(alerts=(100, 50, 50))).alerts == (50, 100)


# --- what counts -------------------------------------------------------------------------------------------


def test_whose_use_counts() -> None:
    assert rules.applies(budget(), "acme", "m")
    assert rules.applies(budget(tenant="*"), "", "m")
    assert rules.applies(budget(tenant="acme", model="m"), "acme", "m")
    assert rules.applies(budget(tenant=""), "", "m")
    assert not rules.applies(budget(tenant=""), "acme", "m")
    assert not rules.applies(budget(tenant="acme"), "other", "m")
    assert not rules.applies(budget(model="m"), "acme", "n")


def test_a_record_counts_for_its_figures_and_unknown_ones_for_nothing() -> None:
    record = make_record(DIGEST, carbon_ng=7, cost_nano=9, currency="USD")
    costs = budget(measure="cost_nano", currency="USD")
    assert rules.charge(budget(), record) == record.usage.input_tokens + record.usage.output_tokens
    assert rules.charge(budget(measure="energy_uj"), record) == record.energy.energy_uj
    assert rules.charge(budget(measure="carbon_ng"), record) == 7
    assert rules.charge(costs, record) == 9
    assert rules.charge(budget(measure="cost_nano", currency="EUR"), record) is None
    bare = make_record(DIGEST, energy=UNSET)
    assert rules.charge(budget(measure="energy_uj"), bare) is None
    assert rules.charge(budget(measure="carbon_ng"), bare) is None
    assert rules.charge(costs, bare) is None


def test_what_is_not_estimated_follows_from_the_tokens() -> None:
    energy = budget(measure="energy_uj")
    assert rules.estimate(budget(), {"tokens": 50}, 0, 0) == 50
    assert rules.estimate(energy, {"tokens": 50, "energy_uj": 3}, 999, 10) == 3
    assert rules.estimate(energy, {"tokens": 50}, 999, 100) == 500  # 499.5, rounded up
    assert rules.estimate(energy, {"tokens": 50}, 0, 0) == 0
    costs = budget(measure="cost_nano", currency="USD")
    assert rules.estimate(costs, {"tokens": 1, "cost_nano": 5, "currency": "USD"}, 0, 0) == 5
    assert rules.estimate(costs, {"tokens": 1, "cost_nano": 5, "currency": "EUR"}, 0, 0) == 0


# --- decisions ----------------------------------------------------------------------------------------


def test_what_fits_to_the_last_token_is_allowed() -> None:
    assert rules.refusal([room(600, 300, 100)]) is None
    assert rules.refusal([room(600, 300, 101)]) is not None
    assert rules.refusal([room(1_000, 0, 0)]) is not None, "at the limit nothing goes"
    assert rules.refusal([room(5_000, 0, 1, refuse=False)]) is None


def test_when_to_ask_again() -> None:
    def after(*rooms: Room) -> int | None:
        found = rules.refusal(rooms)
        assert found is not None
        return found.retry_after_s

    assert after(room(1_000, 0, 1)) == 12 * HOUR
    assert after(room(1_000, 0, 1, window="month")) == 18 * DAY + 12 * HOUR
    assert after(room(100, 900, 1)) == rules.SETTLING_S, "only what runs is in the way"
    assert after(room(0, 0, 1_001)) is None
    assert after(room(1_000, 0, 1), room(1_000, 0, 1, window="month")) == 18 * DAY + 12 * HOUR
    assert after(room(1_000, 0, 1), room(0, 0, 1_001)) is None, "what never fits comes first"


def test_a_rolling_budget_has_room_when_its_oldest_use_leaves() -> None:
    now = at("2026-02-10T12:00:30")
    buckets = [(now - 30 - 59 * 60, 400), (now - 30 - 60, 600)]
    found = rules.refusal([Room(budget(window="1h"), 1_000, 0, 300, now, buckets)])
    assert found is not None
    assert found.retry_after_s is not None
    then = now + found.retry_after_s
    assert rules.window_of("1h", then)[0] > buckets[0][0]
    assert rules.window_of("1h", then - 1)[0] <= buckets[0][0]


@given(st.integers(1, 10**6), st.lists(st.integers(0, 10**5), max_size=50))
def test_each_threshold_is_passed_once(limit: int, amounts: list[int]) -> None:
    target = budget(limit=limit, alerts=(50, 80, 100))
    used, passed = 0, []
    for amount in amounts:
        passed += rules.thresholds_passed(target, used, used + amount)
        used += amount
    assert passed == [percent for percent in (50, 80, 100) if used * 100 >= limit * percent]


def test_a_refusal_says_why_and_when() -> None:
    found = rules.refusal([room(990, 5, 20)])
    assert found is not None
    text = rules.told(found)
    assert "990 are used, 5 reserved, 20 more are wanted" in text
    assert "the day ends at 2026-02-11T00:00:00Z" in text
    assert "990" not in rules.told(found, shared=True)
