"""Owns the fit of the attribution weights to measured windows: what a token and an idle second cost.

Least squares without negative costs. With a window's energy E, its length t, and the tokens within::

    E [uJ] = idle [mW] * t [us] / 1000 + prefill [nJ] * computed / 1000 + cached [nJ] * from cache / 1000
             + decode [nJ] * generated / 1000

The optimum with non-negative costs is the plain one over some of the four, the others being zero; there are
fifteen choices, so all are solved (exactly, in fractions) and the best one whose costs are not negative is
taken (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23: the conditions that make it so).

A fit is as good as the windows vary: with each token kind always in the same proportion, nothing can tell
them apart, and the standard errors say so.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ledger.core.errors import InvalidError
from ledger.core.records import Usage
from ledger.energy.windows import Activity, Rule, Window

__all__ = ["Calibration", "Cost", "Generation", "fit_weights"]

_NJ_PER_UJ = 1000
_NS_PER_MS = 1_000_000
_MIN_WINDOWS = 8
"""Four unknowns, and as many windows again to judge them by."""


@dataclass(frozen=True)
class Generation:
    """When a generation ran, by the windows' clock in nanoseconds, and its tokens."""

    begin_ns: int
    end_ns: int
    usage: Usage
    first_ns: int | None = None


@dataclass(frozen=True)
class Cost:
    """One cost and its standard error, in the same unit. None: the windows cannot tell."""

    value: int
    error: int | None


@dataclass(frozen=True)
class Calibration:
    """What was fitted.

    Attributes:
        idle_mw: power that is there whatever runs, in milliwatts.
        prefill_nj: energy of an input token that was computed, in nanojoules.
        cached_nj: of an input token from a cache.
        decode_nj: of an output token.
        windows: how many were used.
        residual_uj: root mean square of what the fit leaves unexplained of a window.
        explained_milli: the share of the variance that it explains (R squared), in thousandths.
    """

    idle_mw: Cost
    prefill_nj: Cost
    cached_nj: Cost
    decode_nj: Cost
    windows: int
    residual_uj: int
    explained_milli: int

    def rule(self, base: Rule | None = None) -> Rule:
        """``base`` with these weights (only their proportions matter) and this idle power.

        Raises:
            InvalidError: no token costs anything, so there is nothing to weigh by.
        """
        weights = (self.prefill_nj.value, self.cached_nj.value, self.decode_nj.value)
        if not any(weights):
            raise InvalidError(
                "the fit gives no cost to any token",
                remedy="measure windows under load, with prompts and answers of different lengths",
                code="bad-weights",
            )
        prefill, cached, decode = weights
        return dataclasses.replace(
            base or Rule(),
            prefill_milli=prefill,
            cached_milli=cached,
            decode_milli=decode,
            idle_mw=self.idle_mw.value,
        )


def fit_weights(windows: Sequence[Window], generations: Sequence[Generation]) -> Calibration:
    """Fit the four costs to measured windows and to all generations that were active in them.

    Include windows in which nobody was active: they tell the idle power.

    Raises:
        InvalidError: fewer than eight measured windows.
    """
    measured = [window for window in windows if window.energy_uj is not None]
    if len(measured) < _MIN_WINDOWS:
        raise InvalidError(
            f"{len(measured)} measured windows are too few to fit four costs",
            remedy=f"give at least {_MIN_WINDOWS}, better hundreds",
            code="bad-weights",
        )
    rows = _rows(measured, generations)
    energies = [Fraction((window.energy_uj or 0) * _NJ_PER_UJ) for window in measured]
    columns = range(len(rows[0]))
    gram = [[sum((row[i] * row[j] for row in rows), Fraction(0)) for j in columns] for i in columns]
    moments = [
        sum((row[i] * energy for row, energy in zip(rows, energies, strict=True)), Fraction(0))
        for i in columns
    ]
    square = sum((energy * energy for energy in energies), Fraction(0))
    best: tuple[Fraction, tuple[int, ...], list[Fraction], list[list[Fraction]]] = (square, (), [], [])
    for size in range(1, len(columns) + 1):
        for chosen in itertools.combinations(columns, size):
            inverse = _inverse([[gram[i][j] for j in chosen] for i in chosen])
            if inverse is None:
                continue
            costs = [
                sum((cell * moments[j] for cell, j in zip(row, chosen, strict=True)), Fraction(0))
                for row in inverse
            ]
            left = square - sum(
                (cost * moments[i] for cost, i in zip(costs, chosen, strict=True)), Fraction(0)
            )
            if all(cost >= 0 for cost in costs) and left < best[0]:
                best = (left, chosen, costs, inverse)
    return _result(best, len(rows), square - sum(energies, Fraction(0)) ** 2 / len(rows))


def _rows(windows: Sequence[Window], generations: Sequence[Generation]) -> list[list[Fraction]]:
    """For each window its length in microseconds, which a milliwatt makes nanojoules; tokens of each kind."""
    one_each = (
        Rule(prefill_milli=1, cached_milli=0, decode_milli=0),
        Rule(prefill_milli=0, cached_milli=1, decode_milli=0),
        Rule(prefill_milli=0, cached_milli=0, decode_milli=1),
    )
    kinds: list[list[Activity]] = []
    for rule in one_each:
        kinds.append([])
        for each in generations:
            activity = Activity(each.begin_ns)
            activity.finish(each.end_ns)
            activity.weigh(each.usage, rule, each.first_ns)
            kinds[-1].append(activity)
    unit = Activity(0)
    unit.finish(1)
    unit.weigh(Usage(input_tokens=1, output_tokens=0), one_each[0], None)
    one = unit.weight_within(0, 1)
    rows = []
    for window in windows:
        start, end = window.start_ns, window.end_ns
        tokens = [Fraction(sum(a.weight_within(start, end) for a in kind), one) for kind in kinds]
        rows.append([Fraction(end - start, _NS_PER_MS) * _NJ_PER_UJ, *tokens])
    return rows


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]] | None:
    """By Gauss and Jordan, exactly; None where there is none."""
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for at in range(size):
        pivot = next((i for i in range(at, size) if rows[i][at]), None)
        if pivot is None:
            return None
        rows[at], rows[pivot] = rows[pivot], rows[at]
        rows[at] = [cell / rows[at][at] for cell in rows[at]]
        for i in range(size):
            if i != at and rows[i][at]:
                factor = rows[i][at]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[at], strict=True)]
    return [row[size:] for row in rows]


def _result(
    best: tuple[Fraction, tuple[int, ...], list[Fraction], list[list[Fraction]]],
    count: int,
    variance: Fraction,
) -> Calibration:
    left, chosen, costs, inverse = best
    free = count - len(chosen)
    found = [Cost(0, None)] * 4
    for place, (column, cost) in enumerate(zip(chosen, costs, strict=True)):
        found[column] = Cost(round(cost), round(math.sqrt(left / free * inverse[place][place])))
    explained = 1 - left / variance if variance else Fraction(0)
    return Calibration(
        idle_mw=found[0],
        prefill_nj=found[1],
        cached_nj=found[2],
        decode_nj=found[3],
        windows=count,
        residual_uj=round(math.sqrt(left / count) / _NJ_PER_UJ),
        explained_milli=max(0, math.floor(explained * 1000)),
    )
