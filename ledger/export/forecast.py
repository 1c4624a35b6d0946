"""Owns forecasts of a series of amounts: point forecasts, and intervals that its own past was held against.

The point forecast is the theta model (Assimakopoulos and Nikolopoulos 2000) of ``statsmodels``, with the
season taken out first. Its intervals come from conformal prediction (Vovk et al. 2005; weighted towards the
recent past as in Barber et al. 2023): the same model forecasts from many earlier points of the series, and
how far it was off there, in parts of its forecast, says how far it may be off now. The interval of a sum is
made of the errors of sums: the ends of the single intervals do not add up. How the intervals of sums would
have held is looked at too, and their level moved half of the way to what would have been right.

Forecasts are estimates: computed in floating point, given in whole units. What is known stays exact.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ledger.core.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

__all__ = [
    "LEVELS",
    "Backtest",
    "Forecast",
    "Interval",
    "backtest",
    "forecast",
    "least_history",
]

LEVELS = (80, 90)
"""Percent of cases that an interval is meant to hold the truth in."""

_KEPT = 70
"""Earlier points of the series that are looked at: older errors are those of another time."""
_FORGET = 0.98
"""Weight of an error, for each period that it is older than the newest: half after 34 periods."""
_POOL = 3
"""Errors of steps that are so near to a step count for it too, so that there are enough of them."""
_LEAST = 12
"""With fewer errors, 90 percent of them cannot be told from all."""
_LEAST_FOR_CHECK = 30
_FIRST_CHECKED = 20
_HIGHEST_LEVEL = 0.995
_LEAST_PART = 0.25
"""Errors are parts of the forecast, or of this part of the recent mean where the forecast is less: an error
beside a forecast of nothing would be any number of times it, and so would be the interval."""


@dataclass(frozen=True)
class Interval:
    """Where a value lies in ``level`` percent of cases."""

    level: int
    low: int
    high: int


@dataclass(frozen=True)
class Forecast:
    """What comes after a series.

    Attributes:
        values: for each period.
        intervals: for each period, one of each level.
        total: sum over the periods.
        total_intervals: of that sum, one of each level.
        origins: from how many earlier points the errors are.
    """

    values: tuple[int, ...]
    intervals: tuple[tuple[Interval, ...], ...]
    total: int
    total_intervals: tuple[Interval, ...]
    origins: int


@dataclass(frozen=True)
class Backtest:
    """How forecasts from earlier points, each made of what was known there, would have held.

    Attributes:
        forecasts: how many.
        step_coverage: level -> percent of periods within their interval.
        total_coverage: level -> percent of sums within theirs.
        mase: mean absolute scaled error,
        naive_mase: and that of repeating the last season.
    """

    forecasts: int
    step_coverage: Mapping[int, float]
    total_coverage: Mapping[int, float]
    mase: float
    naive_mase: float


def least_history(horizon: int, season: int) -> int:
    """How many periods a series must have."""
    return 2 * season + horizon + _LEAST - 1


def forecast(values: Sequence[int], horizon: int, season: int, *, levels: Iterable[int] = LEVELS) -> Forecast:
    """Forecast the ``horizon`` periods after ``values``.

    Args:
        values: one for each period, oldest first, whole periods alone.
        horizon: how many periods.
        season: after how many periods a pattern repeats: 7 days, 24 hours.
        levels: of the intervals, in percent.

    Raises:
        InvalidError: ``short-history``: the series is too short to tell.
        UnavailableError: ``statsmodels`` is not installed.
    """
    np = _numpy()
    needed = least_history(horizon, season)
    if len(values) < needed:
        raise InvalidError(
            f"{len(values)} periods are too few to forecast {horizon} more: it cannot be told how far off a "
            "forecast would be",
            where="history",
            remedy=f"wait until there are {needed}, or forecast fewer periods",
            code="short-history",
        )
    y, n = np.asarray(values, dtype=np.float64), len(values)
    paths = _paths(y, _origins(n, horizon, 2 * season), season, horizon)
    path, least = paths[n].values, paths[n].least
    levels = tuple(levels)
    widths = {level: _step_widths(y, paths, n, horizon, level) for level in levels}
    total = float(path.sum())
    return Forecast(
        values=tuple(round(float(each)) for each in path),
        intervals=tuple(
            tuple(_interval(level, float(path[h]), widths[level][h], least) for level in levels)
            for h in range(horizon)
        ),
        total=round(total),
        total_intervals=tuple(
            _interval(level, total, _total_width(y, paths, n, horizon, level), least * horizon)
            for level in levels
        ),
        origins=sum(1 for s in paths if s <= n - horizon),
    )


def backtest(
    values: Sequence[int],
    horizon: int,
    season: int,
    *,
    first: int | None = None,
    stride: int = 1,
    levels: Iterable[int] = LEVELS,
) -> Backtest:
    """Forecast from each earlier point what is known by now, and compare.

    Args:
        values: as of ``forecast``.
        horizon: as of ``forecast``.
        season: as of ``forecast``.
        first: the first point to forecast from; by default the first at which ``forecast`` would, and
            twenty later.
        stride: periods between two points.
        levels: of the intervals.

    Raises:
        InvalidError: ``short-history``: there is no such point.
        UnavailableError: ``statsmodels`` is not installed.
    """
    np = _numpy()
    y, n = np.asarray(values, dtype=np.float64), len(values)
    first = least_history(horizon, season) + _FIRST_CHECKED if first is None else first
    points = range(first, n - horizon + 1, stride)
    if not points or first < least_history(horizon, season):
        raise InvalidError(
            f"{n} periods are too few to look back at forecasts of {horizon}",
            where="history",
            remedy=f"wait until there are {least_history(horizon, season) + _FIRST_CHECKED + horizon}",
            code="short-history",
        )
    paths = _paths(y, range(2 * season, n + 1), season, horizon)
    levels = tuple(levels)
    steps = {level: [0, 0] for level in levels}
    totals = {level: [0, 0] for level in levels}
    errors: list[float] = []
    naive_errors: list[float] = []
    for t in points:
        known, path, least, truth = y[:t], paths[t].values, paths[t].least, y[t : t + horizon]
        for level in levels:
            widths = np.asarray(_step_widths(known, paths, t, horizon, level))
            steps[level][0] += int((np.abs(truth - path) <= widths * np.maximum(path, least)).sum())
            steps[level][1] += horizon
            width = _total_width(known, paths, t, horizon, level)
            reach = width * max(path.sum(), least * horizon)
            totals[level][0] += bool(abs(truth.sum() - path.sum()) <= reach)
            totals[level][1] += 1
        scale = float(np.abs(known[season:] - known[:-season]).mean())
        if scale:
            errors.append(float(np.abs(truth - path).mean()) / scale)
            naive = np.resize(known[-season:], horizon)
            naive_errors.append(float(np.abs(truth - naive).mean()) / scale)
    return Backtest(
        forecasts=len(points),
        step_coverage={level: 100 * hit / of for level, (hit, of) in steps.items()},
        total_coverage={level: 100 * hit / of for level, (hit, of) in totals.items()},
        mase=float(np.mean(errors)) if errors else 0.0,
        naive_mase=float(np.mean(naive_errors)) if naive_errors else 0.0,
    )


# --- the model ---------------------------------------------------------------------------------------------


def _origins(n: int, horizon: int, first: int) -> list[int]:
    """From where to forecast: the end, points whose sums are known by now, and later ones for the steps."""
    whole = range(max(first, n - horizon - _KEPT + 1), n - horizon + 1)
    later = range(n - horizon + 1, n, max(1, horizon // _KEPT))
    return [*whole, *later, n]


def _numpy() -> Any:
    try:
        import numpy as np
        import statsmodels  # noqa: F401 - so that its absence is told at once
    except ImportError:
        raise UnavailableError(
            "statsmodels is not installed",
            remedy="pip install 'tallystick[forecast]'",
            code="missing-package",
        ) from None
    return np


@dataclass(frozen=True)
class _Path:
    """The point forecasts from one origin, and the least amount that errors are taken as parts of."""

    values: Array
    least: float


def _paths(y: Array, origins: Iterable[int], season: int, horizon: int) -> dict[int, _Path]:
    """The point forecasts from each origin, of what comes before it alone."""
    from threadpoolctl import threadpool_limits

    # Several threads for a few hundred numbers take four times as long as one.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that did not converge shows in its errors
        return {
            origin: _Path(
                _path(y[:origin], season, horizon),
                max(1.0, _LEAST_PART * float(y[:origin][-2 * season :].mean())),
            )
            for origin in origins
        }


def _path(known: Array, season: int, horizon: int) -> Array:
    import numpy as np
    from statsmodels.tsa.forecasting.theta import ThetaModel

    if known.max() == known.min():  # the model would divide by its variance
        return np.full(horizon, known[-1])
    model = ThetaModel(known, period=season, deseasonalize=season > 1, use_test=False)
    path = np.asarray(model.fit().forecast(horizon), dtype=np.float64)
    return np.maximum(path if np.isfinite(path).all() else np.resize(known[-season:], horizon), 0.0)


# --- intervals ---------------------------------------------------------------------------------------------


def _interval(level: int, middle: float, width: float, least: float) -> Interval:
    reach = width * max(middle, least)
    return Interval(level, max(0, math.floor(middle - reach)), math.ceil(middle + reach))


def _step_widths(y: Array, paths: Mapping[int, _Path], at: int, horizon: int, level: int) -> list[float]:
    """For each step, the part of its forecast that it is off by at most, in ``level`` percent of cases."""
    import numpy as np

    errors: list[tuple[Array, Array]] = []
    for h in range(horizon):
        origins = [s for s in paths if at - h - _KEPT <= s < at - h]
        off = [abs(y[s + h] - paths[s].values[h]) / max(paths[s].values[h], paths[s].least) for s in origins]
        ages = np.asarray([at - h - 1 - s for s in origins])
        errors.append((np.asarray(off), _FORGET**ages))
    widths = []
    for h in range(horizon):
        near = errors[max(0, h - _POOL) : h + _POOL + 1]
        errors_near, weights = np.concatenate([e for e, _ in near]), np.concatenate([w for _, w in near])
        widths.append(_quantile(errors_near, weights, level / 100, extra=0.0))
    return widths


def _total_width(y: Array, paths: Mapping[int, _Path], at: int, horizon: int, level: int) -> float:
    """The part of the sum's forecast that it is off by at most, in ``level`` percent of cases."""
    import numpy as np

    origins = sorted(s for s in paths if at - horizon - _KEPT < s <= at - horizon)
    off = np.asarray(
        [
            abs(y[s : s + horizon].sum() - paths[s].values.sum())
            / max(paths[s].values.sum(), paths[s].least * horizon)
            for s in origins
        ]
    )
    weights = _FORGET ** np.arange(len(off))[::-1]
    aim = level / 100
    if len(off) >= _LEAST_FOR_CHECK:
        # At which level of the errors before it would each error just have been held?
        needed = np.asarray(
            [
                weights[-i:][off[:i] < off[i]].sum() / weights[-i:].sum()
                for i in range(_FIRST_CHECKED, len(off))
            ]
        )
        right = _quantile(needed, _FORGET ** np.arange(len(needed))[::-1], aim, extra=1.0)
        aim = min((aim + right) / 2, _HIGHEST_LEVEL)
    return _quantile(off, weights, aim, extra=1.0)


def _quantile(values: Array, weights: Array, level: float, *, extra: float) -> float:
    """The least of ``values`` that a part ``level`` of the weight reaches.

    ``extra`` is the weight of the value that is to come, which may be larger than all.
    """
    import numpy as np

    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / (weights.sum() + extra)
    return float(values[order][min(int(np.searchsorted(reached, level)), len(values) - 1)])
