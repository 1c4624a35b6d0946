"""How ranges add: bounds that hold, and roots of squares, against fractions and random errors."""

from __future__ import annotations

import random
from decimal import ROUND_CEILING, Decimal, getcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.records import Energy, FactorSet, FactorSource, Record, Usage
from ledger.energy.factors import UJ_PER_KWH, figures
from ledger.energy.uncertainty import (
    Ranged,
    add_bounds,
    add_in_groups,
    add_independent,
    carbon_of,
    energy_of,
    intensity_of,
    multiply,
)

ranges = st.lists(st.integers(0, 2**53), min_size=3, max_size=3).map(lambda each: Ranged(*sorted(each)))


@given(st.lists(ranges, max_size=20), st.randoms(use_true_random=False))
def test_bounds_hold_wherever_the_figures_lie(given_: list[Ranged], random_: random.Random) -> None:
    total = add_bounds(given_)
    truth = sum(random_.randint(each.low, each.high) for each in given_)
    assert total.low <= truth <= total.high
    assert total.value == sum(each.value for each in given_)
    assert total == Ranged(sum(each.low for each in given_), total.value, sum(each.high for each in given_))


@given(st.lists(ranges, max_size=20))
def test_independent_errors_partly_cancel(given_: list[Ranged]) -> None:
    getcontext().prec = 80
    total, bounds = add_independent(given_), add_bounds(given_)
    assert total.value == bounds.value
    for ours, sides in (
        (total.value - total.low, [each.value - each.low for each in given_]),
        (total.high - total.value, [each.high - each.value for each in given_]),
    ):
        root = sum((Decimal(side) ** 2 for side in sides), Decimal(0)).sqrt()
        assert ours == min(sum(sides), root.to_integral_value(ROUND_CEILING))
        assert ours >= max(sides, default=0)
    assert bounds.low <= total.low
    assert total.high <= bounds.high


@given(st.lists(ranges, max_size=10), st.integers(1, 5))
def test_groups_lie_between_both(given_: list[Ranged], count: int) -> None:
    groups = {i: given_[i::count] for i in range(count)}
    total = add_in_groups(groups)
    assert add_in_groups({0: given_}) == add_independent([add_bounds(given_)])
    assert add_independent(given_).high <= total.high + count
    assert total.high <= add_bounds(given_).high


def test_by_hand() -> None:
    figures_ = [Ranged(7, 10, 14), Ranged(16, 20, 23)]
    assert add_bounds(figures_) == Ranged(23, 30, 37)
    assert add_independent(figures_) == Ranged(25, 30, 35)  # roots of 9 + 16, and of 16 + 9
    assert add_bounds([]) == add_independent([]) == Ranged(0, 0, 0)


def test_a_thousand_independent_records_are_known_better_than_one() -> None:
    """Drawn at random: the root of squares nearly always holds, thirty times narrower than the bounds."""
    drawn = random.Random(7)
    given_ = [Ranged(0, 1000, 2000)] * 1000
    total = add_independent(given_)
    assert total == Ranged(1_000_000 - 31_623, 1_000_000, 1_031_623)
    inside = 0
    for _ in range(200):
        truth = sum(drawn.randint(0, 2000) for _ in range(1000))
        inside += total.low <= truth <= total.high
    assert inside >= 180


@given(ranges, ranges)
def test_products_hold(one: Ranged, other: Ranged) -> None:
    made = multiply(one, other)
    for a in (one.low, one.value, one.high):
        for b in (other.low, other.value, other.high):
            assert made.low <= a * b <= made.high


@given(
    ranges, st.lists(st.integers(0, 3 * 10**9), min_size=3, max_size=3).map(sorted), st.integers(1000, 3000)
)
def test_a_records_carbon_range_is_the_product_of_its_ranges(
    energy: Ranged, grid: list[int], pue: int
) -> None:
    energy = Ranged(energy.low >> 20, energy.value >> 20, energy.high >> 20)
    factors = FactorSet(
        name="n",
        version="1",
        pue_milli=pue,
        intensity_ug_per_kwh=grid[1],
        intensity_low_ug_per_kwh=grid[0],
        intensity_high_ug_per_kwh=grid[2],
        sources=(FactorSource(factor="all", source="test"),),
    )
    stated = Energy(
        energy_uj=energy.value, low_uj=energy.low, high_uj=energy.high, method="modelled", source="s"
    )
    made = figures(stated, factors, 0)
    exact = multiply(multiply(energy_of(stated), intensity_of(factors)), Ranged(pue, pue, pue))
    record = Record(
        id="0199c832-da80-78ef-bc7c-3bee47e3bc0e",
        deployment="0" * 64,
        started_us=0,
        ended_us=0,
        usage=Usage(input_tokens=0, output_tokens=0),
        carbon_ng=made.carbon_ng,
        carbon_low_ng=UNSET if made.carbon_low_ng is None else made.carbon_low_ng,
        carbon_high_ng=UNSET if made.carbon_high_ng is None else made.carbon_high_ng,
    )
    found = carbon_of(record)
    assert found is not None
    for ours, theirs in zip(
        (found.low, found.value, found.high), (exact.low, exact.value, exact.high), strict=True
    ):
        assert abs(2 * ours * UJ_PER_KWH - 2 * theirs) <= UJ_PER_KWH


def test_what_has_no_range_stands_for_both_ends() -> None:
    assert energy_of(Energy(energy_uj=5, method="measured", source="s")) == Ranged(5, 5, 5)
    bare = Record(
        id="0199c832-da80-78ef-bc7c-3bee47e3bc0e",
        deployment="0" * 64,
        started_us=0,
        ended_us=0,
        usage=Usage(input_tokens=0, output_tokens=0),
    )
    assert carbon_of(bare) is None


@pytest.mark.parametrize("ends", [(2, 1, 3), (1, 3, 2), (-1, 0, 1)])
def test_what_does_not_rise_is_refused(ends: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidError) as caught:
        Ranged(*ends)
    assert caught.value.code == "bad-range"
