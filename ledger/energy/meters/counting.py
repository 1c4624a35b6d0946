"""Owns what all meters share: the interface, counters that wrap or start anew, and power summed over time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ledger.core.errors import UnavailableError
from ledger.core.records import Method

if TYPE_CHECKING:
    from ledger.energy.meters.modelled import ModelledMeter

__all__ = ["AnyMeter", "Meter", "MeterReset", "PowerMeter", "RisingCounter", "unreadable"]

NO_ANSWER = "the meter does not answer"
_NS_PER_MS = 1_000_000
_PJ_PER_UJ = 1_000_000  # 1 mW for 1 ns is 1 pJ
_MAX_GAP_S = 30.0
"""Windows of several seconds are right for slow controllers; three of ten, missed, are a gap."""
_UPDATE_NS = 10_000_000
"""A counter may show at once what it counted in the last 10 ms (RAPL's steps are 1 ms)."""


class MeterReset(UnavailableError):
    """The counter started anew: what was used since it was read last is not known. Reading again works."""

    default_code = "meter-reset"


class Meter(Protocol):
    """Counts energy. Read by one thread at a time.

    ``name`` goes into the records as their source. ``accuracy_milli`` is how far the energy of a window can
    be off, in thousandths either way, None where nobody states it; the modules cite who does.
    """

    @property
    def name(self) -> str:
        """What is metered, and by what."""

    @property
    def method(self) -> Method:
        """What a figure of this meter is."""

    @property
    def accuracy_milli(self) -> int | None:
        """Thousandths by which it can be off, either way."""

    def read(self) -> int:
        """Microjoules counted so far.

        Raises:
            MeterReset: the counter started anew. UnavailableError: it does not answer now.
        """


AnyMeter: TypeAlias = "Meter | ModelledMeter"


class RisingCounter:
    """Makes a counter rise for ever.

    Args:
        wraps_at: the largest value plus one; None for a counter that does not wrap within any run.
        max_mw: more power than the hardware can draw: tells a counter that wrapped from one that started
            anew.
    """

    def __init__(self, *, wraps_at: int | None = None, max_mw: int = 0) -> None:
        self._wraps_at = wraps_at
        self._max_mw = max_mw
        self._last: tuple[int, int] | None = None
        self._total = 0

    def add(self, value: int, at_ns: int) -> int:
        """Take in a reading in microjoules; return the total.

        Raises:
            MeterReset: it fell, and not because it wrapped.
        """
        last, self._last = self._last, (value, at_ns)
        if last is not None:
            gain = value - last[0]
            if self._wraps_at is not None:
                most = self._max_mw * (at_ns - last[1] + _UPDATE_NS) // _PJ_PER_UJ
                if most >= self._wraps_at:
                    raise MeterReset(
                        "the counter was not read for so long that it may have wrapped more than once"
                    )
                if gain < 0:
                    gain += self._wraps_at
                if gain > most:
                    raise MeterReset("the counter rose by more than the hardware can draw: it started anew")
            if gain < 0:
                raise MeterReset("the counter fell: it started anew")
            self._total += gain
        return self._total


class PowerMeter:
    """Sums a power reading over time, by trapezoids: as good as the power was steady between two readings.

    Args:
        read_mw: the power now, in milliwatts.
        name: goes into the records.
        accuracy_milli: how far the reading can be off, in thousandths.
        method: what its figures are.
        max_gap_s: two readings further apart say nothing of the time between them.
        clock_ns: a steady clock.
    """

    def __init__(
        self,
        read_mw: Callable[[], int],
        *,
        name: str,
        accuracy_milli: int | None = None,
        method: Method = "measured",
        max_gap_s: float = _MAX_GAP_S,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self.accuracy_milli = accuracy_milli
        self.method: Method = method
        self._read_mw = read_mw
        self._max_gap_ns = round(max_gap_s * 1e9)
        self._clock_ns = clock_ns
        self._last: tuple[int, int] | None = None
        self._total_pj = 0

    def read(self) -> int:
        """See ``Meter.read``."""
        before = self._clock_ns()
        power = self._read_mw()
        now = (before + self._clock_ns()) // 2
        if power < 0:
            raise UnavailableError(f"the power reading is {power} mW", where=self.name, code="no-meter")
        last, self._last = self._last, (power, now)
        if last is not None:
            took = now - last[1]
            if took > self._max_gap_ns:
                raise MeterReset(f"no power reading for {took // _NS_PER_MS} ms", where=self.name)
            self._total_pj += (last[0] + power) * took // 2
        return self._total_pj // _PJ_PER_UJ


def unreadable(name: str, error: object, remedy: str = "") -> UnavailableError:
    """The error of a meter that does not answer."""
    return UnavailableError(
        f"{NO_ANSWER}: {str(error)[:300]}",
        where=name,
        remedy=remedy or "repair it, or run without; records are kept, without energy",
        code="no-meter",
    )
