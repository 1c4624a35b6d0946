"""Owns attribution as a stream: beginnings, ends and windows come in, portions go out. Pure: no clock.

The rules are those of ``windows``. What must hold, whatever comes in whichever order: the energy of all
settled windows is in the portions given out, in ``unattributed_uj``, or held for who still runs; after
``close`` nothing is held.
"""

from __future__ import annotations

import heapq
from collections import deque

import msgspec
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.records import Energy, Method, Usage
from ledger.energy.windows import RULE_VERSION, Activity, Rule, Window, divide

__all__ = ["Attributor", "Portion"]

_NS_PER_S = 1_000_000_000
_MISSED_NS = 50_000_000
_MISSED_PART = 20
_MAX_SOURCE = 256


class Portion(msgspec.Struct, frozen=True, gc=False):
    """What was attributed to one generation; None is unknown. ``counted_uj``: of it, what a meter counted."""

    id: str
    energy: Energy | None
    busy_us: int | None
    counted_uj: int = 0


class _Flight(msgspec.Struct, gc=False):
    """One generation, from its beginning until all windows that it was active in are settled."""

    id: str
    activity: Activity
    wanted: bool = True  # a record waits for its portion
    gone: bool = False  # released or abandoned: whoever holds it still passes it over
    presumed: bool = False
    ranged: bool = False
    energy_uj: int = 0
    low_uj: int = 0
    high_uj: int = 0
    counted_uj: int = 0
    busy_us: int = 0
    missed_ns: int = 0  # of its time, in no window that could be divided


class Attributor:
    """Takes beginnings and ends in any order, and windows in theirs; gives portions. Used by one thread.

    Times are those of one steady clock, in nanoseconds.

    Args:
        rule: how to divide.
        method: what the figures are.
        source: the meter; each record names it, with the version of the rules.
    """

    def __init__(
        self, rule: Rule | None = None, *, method: Method = "measured", source: str = "meter"
    ) -> None:
        self.rule = rule or Rule()
        self.unattributed_uj = 0  # counted energy that no record carries, and no statement has told
        self._method: Method = method
        self._source = f"{source}; windows/{RULE_VERSION}"[-_MAX_SOURCE:]
        self._presumed_source = f"{self._source}, presumed in part"[-_MAX_SOURCE:]
        self._patience_ns = round(self.rule.patience_s * _NS_PER_S)
        self._longest_ns = round(self.rule.longest_s * _NS_PER_S)
        self._running: dict[str, _Flight] = {}
        self._oldest: list[tuple[int, str]] = []  # heap by beginning of who runs, and of some who ended
        self._coming: list[tuple[int, int, _Flight]] = []  # heap by beginning of who is in no settled window
        self._entered = 0
        self._current: list[_Flight] = []  # who was active in the last settled window, and goes on
        self._windows: deque[Window] = deque()
        self._settled_to: int | None = None  # where the last settled window ended
        self._gave_up_to = -1  # who ended before this may have been released without its windows
        self._portions: list[Portion] = []

    # --- what happens --------------------------------------------------------------------------------

    def begin(self, id: str, at_ns: int) -> None:
        """A generation begins."""
        flight = self._running[id] = _Flight(id, Activity(at_ns))
        heapq.heappush(self._oldest, (at_ns, id))
        self._enter(flight)

    def end(
        self, id: str, at_ns: int, usage: Usage, *, begin_ns: int | None = None, first_ns: int | None = None
    ) -> None:
        """It ended, and its record waits for its portion.

        Args:
            id: as at the beginning; one that never began needs ``begin_ns``.
            at_ns: the end.
            usage: its tokens.
            begin_ns: the beginning, where ``begin`` did not tell.
            first_ns: the first token, if that is known.
        """
        flight = self._running.pop(id, None)
        if flight is None:
            flight = _Flight(id, Activity(at_ns if begin_ns is None else begin_ns))
            flight.activity.finish(at_ns)
            self._enter(flight)
        else:
            flight.activity.finish(at_ns)
        flight.activity.weigh(usage, self.rule, first_ns)
        self._release_if_past(flight)

    def lose(self, id: str, at_ns: int) -> None:
        """It ended, but has no record: its energy is unattributed."""
        flight = self._running.pop(id, None)
        if flight is not None:
            flight.wanted = False
            flight.activity.finish(at_ns)
            self._release_if_past(flight)

    def abandon(self, id: str) -> None:
        """It generated nothing, or its energy is known otherwise: it was never active."""
        flight = self._running.pop(id, None)
        if flight is not None:
            flight.gone = True
            self.unattributed_uj += flight.counted_uj

    def add_window(self, window: Window) -> None:
        """The meter was read.

        Raises:
            InvalidError: the window is empty, or begins before the last one's end.
        """
        last = self._windows[-1].end_ns if self._windows else self._settled_to
        if window.end_ns <= window.start_ns or (last is not None and window.start_ns < last):
            raise InvalidError(
                "a window must have a length and begin after the one before it",
                where=f"{window.start_ns} to {window.end_ns} ns",
                code="bad-window",
            )
        self._windows.append(window)

    # --- settling ------------------------------------------------------------------------------------

    def settle(self, now_ns: int, *, force: bool = False) -> list[Portion]:
        """Settle the windows that can be, and return the portions that are known now.

        Args:
            now_ns: the steady time.
            force: settle all windows, whoever is still running, and keep no ended generation waiting.
        """
        while self._oldest and self._oldest[0][0] < now_ns - self._longest_ns:
            begin, id = heapq.heappop(self._oldest)
            if self._is_running(id, begin):
                self.lose(id, now_ns)
        while self._windows:
            window = self._windows[0]
            patient = now_ns - window.end_ns < self._patience_ns
            if patient and not force and self._is_awaited(window):
                break
            self._settle(self._windows.popleft())
        if not self._windows:
            self._give_up(now_ns if force else now_ns - self._patience_ns)
        portions, self._portions = self._portions, []
        return portions

    def close(self, now_ns: int) -> list[Portion]:
        """Settle everything; who still runs is lost."""
        portions = self.settle(now_ns, force=True)
        for id in list(self._running):
            self.lose(id, now_ns)
        return portions + self.settle(now_ns, force=True)

    def take_unattributed(self, most_uj: int) -> int:
        """Take up to ``most_uj`` of the unattributed energy, in order to state it."""
        taken = min(self.unattributed_uj, most_uj)
        self.unattributed_uj -= taken
        return taken

    def return_portion(self, portion: Portion) -> None:
        """Its record did not come about: what it was to carry is unattributed."""
        self.unattributed_uj += portion.counted_uj

    # --- inside --------------------------------------------------------------------------------------

    def _enter(self, flight: _Flight) -> None:
        activity, settled_to = flight.activity, self._settled_to
        self._entered += 1
        heapq.heappush(self._coming, (activity.begin, self._entered, flight))
        if settled_to is not None and activity.begin < settled_to:  # it came to light too late
            flight.missed_ns += activity.time_within(activity.begin, settled_to)

    def _is_running(self, id: str, begin: int) -> bool:
        flight = self._running.get(id)
        return flight is not None and flight.activity.begin == begin

    def _is_awaited(self, window: Window) -> bool:
        """Whether somebody who was active in the window still runs."""
        oldest = self._oldest
        while oldest and not self._is_running(oldest[0][1], oldest[0][0]):
            heapq.heappop(oldest)
        return bool(oldest) and oldest[0][0] < window.end_ns

    def _settle(self, window: Window) -> None:
        start, end = window.start_ns, window.end_ns
        while self._coming and self._coming[0][0] < end:
            self._current.append(heapq.heappop(self._coming)[2])
        here = [flight for flight in self._current if not flight.gone]
        if self._settled_to != start:
            for flight in here:
                self._miss(flight, start)
        # All began before the window's end.
        active = [f for f in here if (stop := f.activity.end) is None or stop > start]
        if not window.is_known or start < self._gave_up_to:
            self.unattributed_uj += window.energy_uj or 0
            for flight in active:
                flight.missed_ns += flight.activity.time_within(start, end)
        else:
            self._divide(window, active)
        self._settled_to = end
        self._current = []
        for flight in here:
            stop = flight.activity.end
            if stop is not None and stop <= end:
                self._release(flight)
            else:
                self._current.append(flight)

    def _miss(self, flight: _Flight, until: int) -> None:
        """Count as missed what lies between the settled windows and ``until``."""
        begin = flight.activity.begin
        since = begin if self._settled_to is None else max(begin, self._settled_to)
        flight.missed_ns += flight.activity.time_within(since, until)

    def _divide(self, window: Window, active: list[_Flight]) -> None:
        division = divide(window, [flight.activity for flight in active], self.rule)
        self.unattributed_uj += division.nobodys_uj
        counted, ranged = window.energy_uj is not None, bool(division.low_uj)
        parts = division.energy_uj
        lows, highs = (division.low_uj, division.high_uj) if ranged else (parts, parts)
        for flight, part, low, high, busy_us in zip(
            active, parts, lows, highs, division.busy_us, strict=True
        ):
            flight.energy_uj += part
            flight.low_uj += low
            flight.high_uj += high
            flight.busy_us += busy_us
            if counted:
                flight.counted_uj += part
            if ranged:
                flight.ranged = True
            if part and not flight.activity.known:
                flight.presumed = True

    def _give_up(self, before_ns: int) -> None:
        """Release who ended before ``before_ns``, and for whom no window has come: the meter is silent."""
        if self._settled_to is not None and before_ns <= self._settled_to:
            return  # who ended before that was released with the windows
        for flight in [*self._current, *(each[2] for each in self._coming)]:
            stop = flight.activity.end
            if stop is not None and stop <= before_ns and not flight.gone:
                self._miss(flight, stop)
                self._release(flight)
                self._gave_up_to = max(self._gave_up_to, stop)
        self._current = [flight for flight in self._current if not flight.gone]
        self._coming = [each for each in self._coming if not each[2].gone]
        heapq.heapify(self._coming)

    def _release_if_past(self, flight: _Flight) -> None:
        """Release one whose windows were settled by presumption before its end was told."""
        stop, settled_to = flight.activity.end, self._settled_to
        if stop is not None and settled_to is not None and stop <= settled_to:
            self._release(flight)

    def _release(self, flight: _Flight) -> None:
        if flight.gone:
            return
        flight.gone = True
        activity = flight.activity
        lasted = (activity.end or activity.begin + 1) - activity.begin
        missed = flight.missed_ns
        most = max(lasted // _MISSED_PART, min(_MISSED_NS, lasted // 2))
        if missed > most or not flight.wanted:
            self.unattributed_uj += flight.counted_uj
            if flight.wanted:
                self._portions.append(Portion(flight.id, None, None))
            return
        energy = Energy(
            energy_uj=flight.energy_uj,
            method=self._method,
            source=self._presumed_source if flight.presumed else self._source,
            low_uj=flight.low_uj if flight.ranged else UNSET,
            high_uj=flight.high_uj if flight.ranged else UNSET,
        )
        self._portions.append(Portion(flight.id, energy, flight.busy_us, flight.counted_uj))
