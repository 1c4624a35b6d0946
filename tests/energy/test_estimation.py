"""Energy from power and time: units, rounding, range."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.errors import InvalidError
from ledger.core.records import Energy
from ledger.energy.estimation import estimate_from_power


def test_units():
    """5 W for 2 s is 10 J, which is 10,000,000 uJ."""
    energy = estimate_from_power(busy_us=2_000_000, power_mw=5_000, source="test")
    assert energy == Energy(
        energy_uj=10_000_000, method="modelled", source="test", low_uj=0, high_uj=10_000_000
    )


def test_utilisation_is_linear_from_idle_to_rated():
    def uj(utilisation):
        return estimate_from_power(
            busy_us=1_000_000, idle_mw=2_000, power_mw=6_000, utilisation_milli=utilisation, source="t"
        ).energy_uj

    assert (uj(0), uj(500), uj(1000)) == (2_000_000, 4_000_000, 6_000_000)


@given(
    st.integers(0, 10**10),
    st.lists(st.integers(0, 10**6), min_size=4, max_size=4).map(sorted),
    st.integers(0, 1000),
)
def test_agrees_with_fractions_and_its_range_holds_it(busy_us, powers, utilisation):
    low, idle, rated, high = powers
    energy = estimate_from_power(
        busy_us=busy_us,
        low_mw=low,
        idle_mw=idle,
        power_mw=rated,
        high_mw=high,
        utilisation_milli=utilisation,
        source="t",
    )
    seconds = Fraction(busy_us, 10**6)
    watts = Fraction(idle, 1000) + Fraction(utilisation, 1000) * Fraction(rated - idle, 1000)
    assert energy.energy_uj == floor(watts * seconds * 10**6 + Fraction(1, 2))
    assert energy.low_uj == floor(Fraction(low, 1000) * seconds * 10**6)
    assert energy.high_uj == ceil(Fraction(high, 1000) * seconds * 10**6)
    assert energy.low_uj <= energy.energy_uj <= energy.high_uj
    assert all(type(x) is int for x in (energy.energy_uj, energy.low_uj, energy.high_uj))


@pytest.mark.parametrize(
    "bad",
    [
        {"busy_us": -1, "power_mw": 1},
        {"busy_us": 1, "power_mw": -1},
        {"busy_us": 1, "power_mw": 1, "idle_mw": 2},
        {"busy_us": 1, "power_mw": 5, "idle_mw": 2, "low_mw": 3},
        {"busy_us": 1, "power_mw": 5, "high_mw": 4},
        {"busy_us": 1, "power_mw": 5, "utilisation_milli": 1001},
        {"busy_us": 2**53, "power_mw": 2**53},
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(InvalidError):
        estimate_from_power(source="t", **bad)
