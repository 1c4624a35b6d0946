"""Owns comparisons of two sides of an export (two models, two periods): differences with their uncertainty.

Each figure is a ratio of two sums over a side's records: energy per 1,000 tokens, mean duration, mean of a
metric. Its interval is closed-form and the same every time: the ratio is linearised (Cochran, Sampling
Techniques, 3rd edition, 6.2 to 6.4) and its variance taken between *batches*, not between records, since the
records of a batch share a machine, a meter's windows and a load (clusters; the same, 9.2). With G batches the
interval is ``t(0.975, G - 1)`` standard errors to either side; with fewer than two there is none. Percentiles
get the distribution-free interval of order statistics (Conover, Practical Nonparametric Statistics, 3.2).

All is integer arithmetic until the last rounding. What is uncertain in the figures themselves (the low and
high ends of energy and carbon) is another thing than chance, and stands beside it.
"""

# ruff: noqa: S608 - SQL is put together from this module's own names and the query's dimensions

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.core.errors import InvalidError
from ledger.export.quality import EXTRA_SCALE, rounded
from ledger.export.query import Question, ask, conditions
from ledger.export.reading import open_export

if TYPE_CHECKING:
    import duckdb

__all__ = ["CONFIDENCE", "FIGURES", "Compared", "Comparison", "Estimate", "compare"]

CONFIDENCE = "0.95"
_TOKENS = "input_tokens + output_tokens"


@dataclass(frozen=True)
class _Ratio:
    """``factor * sum(above) / sum(below)`` over the records that have ``above``."""

    above: str
    below: str
    factor: int
    unit: str
    better: str = "less"


FIGURES: Mapping[str, _Ratio] = {
    "energy_uj_per_1k_tokens": _Ratio("energy_uj", _TOKENS, 1000, "uJ per 1,000 tokens"),
    "energy_low_uj_per_1k_tokens": _Ratio(
        "coalesce(energy_low_uj, energy_uj)", _TOKENS, 1000, "uJ per 1,000 tokens"
    ),
    "energy_high_uj_per_1k_tokens": _Ratio(
        "coalesce(energy_high_uj, energy_uj)", _TOKENS, 1000, "uJ per 1,000 tokens"
    ),
    "energy_uj_per_request": _Ratio("energy_uj", "1", 1, "uJ per request"),
    "carbon_ng_per_1k_tokens": _Ratio("carbon_ng", _TOKENS, 1000, "ng CO2e per 1,000 tokens"),
    "water_nl_per_1k_tokens": _Ratio("water_nl", _TOKENS, 1000, "nl per 1,000 tokens"),
    "cost_nano_per_1k_tokens": _Ratio(
        "cost_nano", _TOKENS, 1000, "billionths of the currency per 1,000 tokens"
    ),
    "output_tokens_per_request": _Ratio("output_tokens", "1", 1, "tokens per request", ""),
    "duration_us_per_request": _Ratio("epoch_us(ended_at) - epoch_us(started_at)", "1", 1, "us per request"),
    "duration_us_per_output_token": _Ratio(
        "epoch_us(ended_at) - epoch_us(started_at)", "output_tokens", 1, "us per output token"
    ),
    "first_token_us_per_request": _Ratio(
        "epoch_us(first_token_at) - epoch_us(started_at)", "1", 1, "us per request"
    ),
}
"""What is compared, besides percentiles of times and quality metrics. ``better`` says which way is better."""

_PERCENTILES = {
    "duration_us": "epoch_us(ended_at) - epoch_us(started_at)",
    "first_token_us": "epoch_us(first_token_at) - epoch_us(started_at)",
}
_LEVELS = (50, 95)

# Student's t, 97.5 %, in thousandths: by degrees of freedom from 1 to 30, then from some on to the next, so
# that it is never too small by more than its rounding.
_T_MILLI = (
    12706, 4303, 3182, 2776, 2571, 2447, 2365, 2306, 2262, 2228, 2201, 2179, 2160, 2145, 2131,
    2120, 2110, 2101, 2093, 2086, 2080, 2074, 2069, 2064, 2060, 2056, 2052, 2048, 2045, 2042,
)  # fmt: skip
_T_FROM_MILLI = ((120, 1980), (60, 2000), (40, 2021), (30, 2042))
_Z_MILLI = 1960


@dataclass(frozen=True)
class Estimate:
    """A figure of one side, or the difference of both: rounded integers in the figure's unit.

    ``low`` and ``high`` are the interval's ends; None where there are too few batches or values for one.
    ``count`` is how many records (or values) it is over, ``clusters`` how many batches.
    """

    value: int
    low: int | None
    high: int | None
    count: int
    clusters: int


@dataclass(frozen=True)
class Comparison:
    """One figure of both sides. ``difference`` is b less a; ``ratio_milli`` b to a, times 1,000.

    ``distinct``: whether the difference's interval excludes zero; None if there is no interval. ``scale``:
    figures are n / 10^scale of the unit.
    """

    name: str
    unit: str
    scale: int
    a: Estimate | None
    b: Estimate | None
    difference: Estimate | None
    ratio_milli: int | None
    distinct: bool | None


@dataclass(frozen=True)
class Compared:
    """Both sides' records, and the figures that either has."""

    a_records: int
    b_records: int
    figures: tuple[Comparison, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Exact:
    """An estimate before it is rounded: value and variance as exact fractions."""

    value: Fraction
    variance: Fraction | None
    count: int
    clusters: int


def compare(export: Path, a: Question, b: Question) -> Compared:
    """Compare two sides of an export, each the records that a question chooses (its groups are ignored).

    Raises:
        InvalidError: a side has no record, or an unknown dimension.
    """
    with open_export(export) as connection:
        sides = [replace(each, by=(), percentiles=False, quality=True) for each in (a, b)]
        rows = [ask(connection, side)[0] for side in sides]
        for name, row in zip("ab", rows, strict=True):
            if not row["records"]:
                raise InvalidError(
                    f"side {name} has no record",
                    where=f"--{name}",
                    remedy="see what there is: tallystick query EXPORT --by model --by month",
                    code="not-found",
                )
        exact = [_ratios(connection, side, row) for side, row in zip(sides, rows, strict=True)]
        currencies = {row["cost_currency"] for row in rows if row.get("cost_currency") is not None}
        figures = [
            _compared(name, _unit(ratio, currencies), 0, exact[0].get(name), exact[1].get(name))
            for name, ratio in FIGURES.items()
            if exact[0].get(name) or exact[1].get(name)
            if ratio.above != "cost_nano" or len(currencies) == 1
        ]
        marks = [_percentiles(connection, side) for side in sides]
        figures += [
            _marked(name, marks[0].get(name), marks[1].get(name))
            for name in dict.fromkeys((*marks[0], *marks[1]))
        ]
        values = [_quality(connection, side) for side in sides]
        for key in sorted({*values[0], *values[1]}):
            scale = max(each[key][1] for each in values if key in each)
            left, right = (None if key not in each else each[key][0] for each in values)
            figures.append(_compared(f"quality {key[0]} ({key[1]})", "", scale + EXTRA_SCALE, left, right))
    return Compared(rows[0]["records"], rows[1]["records"], tuple(figures), tuple(_notes(rows, figures)))


def _unit(ratio: _Ratio, currencies: set[str]) -> str:
    return ratio.unit.replace("the currency", min(currencies)) if ratio.above == "cost_nano" else ratio.unit


def _notes(rows: list[dict[str, Any]], figures: list[Comparison]) -> list[str]:
    notes = []
    for name, row in zip("ab", rows, strict=True):
        if "corrected_records" in row:
            notes.append(f"side {name}: {row['corrected_records']:,} records are counted as corrected")
        if row.get("cost_currency", "") is None:
            notes.append(f"side {name}: costs are in several currencies, and not compared")
        having = row.get("energy_uj_records", 0)
        if having < row["records"]:
            notes.append(f"side {name}: {having:,} of {row['records']:,} records state energy")
    first, second = (row.get("cost_currency") for row in rows)
    if first is not None and second is not None and first != second:
        notes.append(f"costs are in {first} on side a and in {second} on side b, and not compared")
    few = [each for each in figures for side in (each.a, each.b) if side is not None and side.clusters < 30]
    if few:
        notes.append(
            "fewer than 30 batches on a side: intervals are wide, and as good as the batches are alike"
        )
    return notes


def _ratios(
    connection: duckdb.DuckDBPyConnection, side: Question, row: Mapping[str, Any]
) -> dict[str, _Exact]:
    view = "records_corrected" if side.corrected else "records"
    where, parameters = conditions(side)
    inner, outer = [], []
    wanted = {
        name: ratio
        for name, ratio in FIGURES.items()
        if not (name.startswith("cost_nano") and "cost_nano" not in row)  # several currencies
    }
    for at, ratio in enumerate(wanted.values()):
        has = f"FILTER (({ratio.above}) IS NOT NULL)"
        inner += [
            f"sum({ratio.above})::HUGEINT AS x{at}",
            f"sum({ratio.below}) {has}::HUGEINT AS y{at}",
            f"count({ratio.above}) AS n{at}",
        ]
        outer += [f"list(x{at}) FILTER (n{at} > 0)", f"list(y{at}) FILTER (n{at} > 0)", f"sum(n{at})"]
    found = connection.execute(
        f"SELECT {', '.join(outer)} FROM (SELECT leaf_index, {', '.join(inner)} FROM {view}{where} "
        "GROUP BY leaf_index)",
        parameters,
    ).fetchone()
    assert found is not None  # noqa: S101 - an aggregate gives one row
    made = {}
    for at, (name, ratio) in enumerate(wanted.items()):
        xs, ys, count = found[3 * at : 3 * at + 3]
        if xs and sum(ys):
            exact = _ratio([int(x) for x in xs], [int(y) for y in ys], int(count))
            made[name] = _scaled(exact, ratio.factor)
    return made


def _ratio(xs: list[int], ys: list[int], count: int) -> _Exact:
    """Sum of ``xs`` over sum of ``ys``, with the linearised variance between the clusters."""
    above, below, clusters = sum(xs), sum(ys), len(xs)
    value = Fraction(above, below)
    variance = None
    if clusters > 1:
        # Residuals x - value * y, times below to stay whole; they sum to zero.
        squares = sum((x * below - above * y) ** 2 for x, y in zip(xs, ys, strict=True))
        variance = Fraction(clusters * squares, (clusters - 1) * below**4)
    return _Exact(value, variance, count, clusters)


def _scaled(exact: _Exact, factor: int) -> _Exact:
    variance = None if exact.variance is None else exact.variance * factor * factor
    return _Exact(exact.value * factor, variance, exact.count, exact.clusters)


def _quality(
    connection: duckdb.DuckDBPyConnection, side: Question
) -> dict[tuple[str, str], tuple[_Exact, int]]:
    """Mean of each metric, by what was evaluated; a cluster is a batch of records, or an evaluation."""
    view = "records_corrected" if side.corrected else "records"
    where, parameters = conditions(side)
    rows = connection.execute(
        f"""
WITH r AS (SELECT id, leaf_index, deployment, quality FROM {view}{where}),
e AS (SELECT * FROM evaluations WHERE latest)
SELECT leaf_index, 'recorded' AS about, m.name AS metric, m.value AS value, m.scale AS scale
FROM (SELECT leaf_index, unnest(quality) AS m FROM r WHERE quality IS NOT NULL)
UNION ALL
SELECT r.leaf_index, e.about, e.metric, e.value, e.scale
FROM r JOIN e ON e.about = 'record' AND e.target = r.id
UNION ALL
SELECT e.leaf_index, e.about, e.metric, e.value, e.scale FROM e WHERE e.about = 'batch' AND e.target IN
    (SELECT s.leaf_hash FROM statements s JOIN r ON r.leaf_index = s.leaf_index)
UNION ALL
SELECT e.leaf_index, e.about, e.metric, e.value, e.scale FROM e
WHERE e.about = 'deployment' AND e.target IN (SELECT deployment FROM r)""",
        parameters,
    ).fetchall()
    groups: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for leaf, about, metric, value, scale in rows:
        groups.setdefault((metric, about), []).append((leaf, value, scale))
    made = {}
    for key, values in groups.items():
        finest = max(scale for *_, scale in values)
        xs: dict[int, int] = {}
        ys: dict[int, int] = {}
        for leaf, value, scale in values:
            xs[leaf] = xs.get(leaf, 0) + value * 10 ** (finest - scale)
            ys[leaf] = ys.get(leaf, 0) + 1
        exact = _ratio(list(xs.values()), list(ys.values()), len(values))
        made[key] = _scaled(exact, 1), finest
    return {key: (_scaled(exact, 10**EXTRA_SCALE), finest) for key, (exact, finest) in made.items()}


# --- intervals -------------------------------------------------------------------------------------------


def _t_milli(freedom: int) -> int:
    if freedom <= len(_T_MILLI):
        return _T_MILLI[freedom - 1]
    return next(value for least, value in _T_FROM_MILLI if freedom >= least)


def _half_width(variance: Fraction, freedom: int) -> Fraction:
    """``t`` standard errors; the root is taken of integers, to a millionth, and rounded up."""
    fine = 10**12
    root = isqrt(-(-variance.numerator * fine // variance.denominator)) + (1 if variance else 0)
    return Fraction(root * _t_milli(freedom), 10**6 * 1000)


def _rounded(value: Fraction) -> int:
    return rounded(value.numerator, value.denominator)


def _estimate(exact: _Exact, freedom: int | None = None) -> Estimate:
    freedom = exact.clusters - 1 if freedom is None else freedom
    if exact.variance is None or freedom < 1:
        return Estimate(_rounded(exact.value), None, None, exact.count, exact.clusters)
    half = _half_width(exact.variance, freedom)
    return Estimate(
        _rounded(exact.value),
        _rounded(exact.value - half),
        _rounded(exact.value + half),
        exact.count,
        exact.clusters,
    )


def _compared(name: str, unit: str, scale: int, a: _Exact | None, b: _Exact | None) -> Comparison:
    difference, ratio, distinct = None, None, None
    if a is not None and b is not None:
        known = a.variance is not None and b.variance is not None
        variance = a.variance + b.variance if a.variance is not None and b.variance is not None else None
        exact = _Exact(b.value - a.value, variance, a.count + b.count, min(a.clusters, b.clusters))
        freedom = _freedom(a, b)
        difference = _estimate(exact, freedom)
        ratio = _rounded(1000 * b.value / a.value) if a.value else None
        if known and variance is not None:
            distinct = abs(exact.value) > _half_width(variance, freedom)
    return Comparison(
        name,
        unit,
        scale,
        None if a is None else _estimate(a),
        None if b is None else _estimate(b),
        difference,
        ratio,
        distinct,
    )


def _freedom(a: _Exact, b: _Exact) -> int:
    """Degrees of freedom of the difference (Welch and Satterthwaite), rounded down."""
    if not a.variance or not b.variance:
        return max(1, min(a.clusters, b.clusters) - 1)
    below = a.variance**2 / (a.clusters - 1) + b.variance**2 / (b.clusters - 1)
    return max(1, int((a.variance + b.variance) ** 2 / below))


def _percentiles(connection: duckdb.DuckDBPyConnection, side: Question) -> dict[str, Estimate]:
    """Percentiles of times, each with the interval between two order statistics."""
    view = "records_corrected" if side.corrected else "records"
    where, parameters = conditions(side)
    made: dict[str, Estimate] = {}
    for name, sql in _PERCENTILES.items():
        (count,) = connection.execute(f"SELECT count({sql}) FROM {view}{where}", parameters).fetchone() or (
            0,
        )
        if not count:
            continue
        ranks = [rank for level in _LEVELS for rank in _ranks(count, level)]
        # quantile_disc(p) is the value of rank ceil(p * count), at least 1: ask for the middle of that step.
        points = ", ".join(f"{(2 * rank - 1) / (2 * count)!r}" for rank in ranks)
        (values,) = connection.execute(
            f"SELECT quantile_disc({sql}, [{points}]) FROM {view}{where}", parameters
        ).fetchone() or ([],)
        for at, level in enumerate(_LEVELS):
            low, value, high = values[3 * at : 3 * at + 3]
            first, _, last = _ranks(count, level)
            bounded = first > 1 and last < count  # at the edge of the sample the interval is open
            made[f"{name}_p{level}"] = Estimate(
                value, low if bounded else None, high if bounded else None, count, 0
            )
    return made


def _ranks(count: int, level: int) -> tuple[int, int, int]:
    """Ranks (from 1) of a percentile and of its interval's ends: binomial, by its normal approximation."""
    middle = max(1, -(-count * level // 100))
    spread = isqrt(_Z_MILLI * _Z_MILLI * count * level * (100 - level)) // 100_000 + 1
    return max(1, middle - spread), middle, min(count, middle + spread)


def _marked(name: str, a: Estimate | None, b: Estimate | None) -> Comparison:
    difference, ratio, distinct = None, None, None
    if a is not None and b is not None:
        difference = Estimate(b.value - a.value, None, None, a.count + b.count, 0)
        ratio = rounded(1000 * b.value, a.value) if a.value else None
        if None not in (a.low, a.high, b.low, b.high):
            # Intervals that do not touch: stricter than 95 %, and without a model of the distribution.
            distinct = a.high < b.low or b.high < a.low  # type: ignore[operator]
    return Comparison(name, "us", 0, a, b, difference, ratio, distinct)
