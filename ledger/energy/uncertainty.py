"""Owns how ranges add: from the figures of records to the figure of a total.

A record's range says what its figure could be at least and at most. Two sums of ranges are honest, and they
answer different questions:

- ``add_bounds``: every error goes the same way. The lows add up, the highs add up. This is what holds for
  certain, and what batch totals, roll-ups and exports state, because the errors of estimates are mostly
  shared: the same table, the same model, the same utilisation guess for every record.
- ``add_independent``: errors know nothing of each other, so they partly cancel: each side is the root of the
  sum of squares of the distances from the figure. Right for independent meters or models; too narrow for
  records that one model made, so ``add_in_groups`` adds within a group by bounds, between groups by squares.

All in integers; the root is rounded away from the figure, so that no range is narrower than it should be.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt

from msgspec import UNSET, UnsetType

from ledger.core.errors import InvalidError
from ledger.core.records import Energy, FactorSet, Record

__all__ = [
    "Ranged",
    "add_bounds",
    "add_in_groups",
    "add_independent",
    "carbon_of",
    "energy_of",
    "intensity_of",
    "multiply",
]


@dataclass(frozen=True)
class Ranged:
    """A figure with its range, ``low <= value <= high``, in one unit of at least zero.

    Raises:
        InvalidError: it is not in that order.
    """

    low: int
    value: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.value <= self.high:
            raise InvalidError(
                "a range must rise from low over value to high, from zero on",
                where=f"low={self.low} value={self.value} high={self.high}",
                code="bad-range",
            )


def add_bounds(figures: Iterable[Ranged]) -> Ranged:
    """The sum, and where it lies for certain if each figure lies in its range."""
    low = value = high = 0
    for each in figures:
        low += each.low
        value += each.value
        high += each.high
    return Ranged(low, value, high)


def add_independent(figures: Iterable[Ranged]) -> Ranged:
    """The sum, with errors that are independent of each other: root of the sum of squares, for each side."""
    figures = list(figures)
    bounds = add_bounds(figures)
    below = _root_up(sum((each.value - each.low) ** 2 for each in figures))
    above = _root_up(sum((each.high - each.value) ** 2 for each in figures))
    value = bounds.value
    return Ranged(max(bounds.low, value - below), value, min(bounds.high, value + above))


def add_in_groups(groups: Mapping[Hashable, Iterable[Ranged]]) -> Ranged:
    """The sum of figures whose errors are shared within a group and independent between groups.

    Args:
        groups: by what makes the errors common, such as the record's energy source or factor set.
    """
    return add_independent([add_bounds(figures) for figures in groups.values()])


def multiply(figure: Ranged, factor: Ranged) -> Ranged:
    """The product and its bounds: lowest with lowest, highest with highest, since neither is below zero."""
    return Ranged(figure.low * factor.low, figure.value * factor.value, figure.high * factor.high)


def energy_of(energy: Energy) -> Ranged:
    """A record's energy in microjoules. Without a range, the figure stands for both ends."""
    value = energy.energy_uj
    return Ranged(_or(energy.low_uj, value), value, _or(energy.high_uj, value))


def carbon_of(record: Record) -> Ranged | None:
    """A record's location-based carbon in nanograms; None where it states none."""
    value = record.carbon_ng
    if value is UNSET:
        return None
    return Ranged(_or(record.carbon_low_ng, value), value, _or(record.carbon_high_ng, value))


def intensity_of(factors: FactorSet) -> Ranged:
    """A factor set's location-based intensity in micrograms for each kWh."""
    value = factors.intensity_ug_per_kwh
    low, high = factors.intensity_low_ug_per_kwh, factors.intensity_high_ug_per_kwh
    return Ranged(_or(low, value), value, _or(high, value))


def _or(value: int | UnsetType, otherwise: int) -> int:
    return otherwise if value is UNSET else value


def _root_up(value: int) -> int:
    root = isqrt(value)
    return root if root * root == value else root + 1
