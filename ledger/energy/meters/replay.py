"""Owns power traces: a file of what a meter showed, played again for tests, or divided again for an audit."""

from __future__ import annotations

import bisect
import csv
import itertools
import time
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from ledger.core.errors import InvalidError
from ledger.core.records import Method
from ledger.energy.meters.counting import MeterReset
from ledger.energy.windows import Window

__all__ = ["ReplayMeter", "Trace", "read_trace", "windows_of"]

_NS_PER_S = 1_000_000_000
_UJ_PER_J = 1_000_000

Trace = Sequence[tuple[int, int]]
"""Nanoseconds from the beginning, and microjoules counted by then; both rise."""


def read_trace(
    path: Path, *, time_column: str = "time_s", value_column: str = "power_w"
) -> list[tuple[int, int]]:
    """Read a CSV trace with a header.

    A value column ending in ``_w`` is power in watts, ``_j`` joules counted. Power is summed by trapezoids.
    Decimals are read as they are written, without floats.

    Raises:
        InvalidError: it cannot be read, a column is missing, or time or energy falls.
    """
    unit = {"w": _power_total, "j": _counted}.get(value_column.rpartition("_")[2])
    if unit is None:
        raise InvalidError(
            f"the unit of column {value_column} is not known", remedy="end it in _w or _j", code="bad-trace"
        )
    try:
        with path.open(newline="") as file:
            rows = [(Decimal(row[time_column]), Decimal(row[value_column])) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, InvalidOperation, csv.Error, UnicodeDecodeError) as error:
        raise InvalidError(
            f"the trace cannot be read: {error!r}", where=str(path), code="bad-trace"
        ) from None
    if not rows or not all(t.is_finite() and v.is_finite() and v >= 0 for t, v in rows):
        raise InvalidError(
            "the trace is empty, or has a number that is none", where=str(path), code="bad-trace"
        )
    if any(b[0] <= a[0] for a, b in itertools.pairwise(rows)):
        raise InvalidError("the time of the trace does not rise", where=str(path), code="bad-trace")
    start = rows[0][0]
    return [(int((t - start) * _NS_PER_S), energy) for (t, _), energy in zip(rows, unit(rows), strict=True)]


def _power_total(rows: list[tuple[Decimal, Decimal]]) -> list[int]:
    total, energies = Decimal(0), [0]
    for (t0, p0), (t1, p1) in itertools.pairwise(rows):
        total += (p0 + p1) * (t1 - t0) / 2
        energies.append(int(total * _UJ_PER_J))
    return energies


def _counted(rows: list[tuple[Decimal, Decimal]]) -> list[int]:
    energies = [int((value - rows[0][1]) * _UJ_PER_J) for _, value in rows]
    if any(b < a for a, b in itertools.pairwise(energies)):
        raise InvalidError("the energy of the trace falls", code="bad-trace")
    return energies


def windows_of(trace: Trace, *, start_ns: int = 0) -> list[Window]:
    """The windows between the points of a trace, for an ``Attributor``."""
    return [Window(start_ns + t0, start_ns + t1, e1 - e0) for (t0, e0), (t1, e1) in itertools.pairwise(trace)]


class ReplayMeter:
    """Shows a trace as if it were counted now, from the first reading on.

    Args:
        trace: what to show. After its end the counter stands still.
        name: goes into the records.
        method: what the figures are: a trace of a model is modelled.
        accuracy_milli: of the meter that made the trace.
        speed: how many seconds of the trace pass in one.
        resets_at_ns: times of the trace at which the counter seems to start anew, for tests.
        clock_ns: a steady clock.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        name: str = "replayed trace",
        method: Method = "measured",
        accuracy_milli: int | None = None,
        speed: int = 1,
        resets_at_ns: Sequence[int] = (),
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not trace or speed < 1:
            raise InvalidError("a trace needs a point, and a speed of at least 1", code="bad-trace")
        self.name = name
        self.method: Method = method
        self.accuracy_milli = accuracy_milli
        self.total_uj = 0
        """What was shown so far: the reading of the last call of ``read``."""
        self._times = [t for t, _ in trace]
        self._energies = [e for _, e in trace]
        self._speed = speed
        self._resets = list(resets_at_ns)
        self._clock_ns = clock_ns
        self._zero: int | None = None

    def read(self) -> int:
        """See ``Meter.read``."""
        now = self._clock_ns()
        if self._zero is None:
            self._zero = now
        at = self._times[0] + (now - self._zero) * self._speed
        if self._resets and at >= self._resets[0]:
            del self._resets[0]
            raise MeterReset("the trace says so", where=self.name)
        self.total_uj = self._energy_at(at)
        return self.total_uj

    def _energy_at(self, at: int) -> int:
        times, energies = self._times, self._energies
        i = bisect.bisect_right(times, at)
        if i == 0 or i == len(times):
            return energies[i - 1 if i else 0]
        t0, t1, e0, e1 = times[i - 1], times[i], energies[i - 1], energies[i]
        return e0 + (e1 - e0) * (at - t0) // (t1 - t0)
