"""Owns how the energy of one measured window is divided between the generations active in it. Pure: no clock.

The rules, version 1 (explained in docs/explanation/energy-and-carbon.md):

1. A generation is active from its beginning to its end. Its input tokens weigh evenly from the beginning to
   the first token (cached ones less), its output tokens evenly from the first token to the end. Without a
   known first token, both weigh evenly over the whole time.
2. A window's energy is divided in proportion to the weight that falls into it, by largest remainders: what is
   attributed of a window sums to its energy exactly. Where nothing has weight, it is divided by active time.
3. Of that, the idle part (``idle_mw`` over the window's length, 0 unless stated) is divided by active time
   instead, or stays nobody's, as ``idle`` says.
4. A window is settled once all who were active in it have ended, or after ``patience_s``. Who has not ended
   by then, or never told its tokens, is presumed to weigh, for each moment of its activity, as much as the
   others in the window do.
5. Energy of a window in which nobody was active, and shares that no record carries in the end (of refused,
   lost or invalid generations), are *unattributed*: counted, never lost.
6. A generation of which too much fell outside the settled windows has no energy: a part would look like the
   whole. Too much is more than a twentieth, and more than 50 ms or half of it.
7. ``busy_us``: the time of a window in which anybody was active, divided like its energy and rounded down.

Rules 1, 2, 3 and 7 are here; ``attributor`` has the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.records import Usage
from ledger.energy.attribution import split_exactly

__all__ = ["RULE_VERSION", "Activity", "Division", "Rule", "Window", "divide"]

RULE_VERSION = 1
_NS_PER_US = 1000
_PJ_PER_UJ = 1_000_000  # 1 mW for 1 ns is 1 pJ
_FINE = 1 << 20
"""Sub-units of a weight: the part of a token that falls into a window is not rounded away."""


@dataclass(frozen=True)
class Rule:
    """How energy is attributed.

    The default weights are a convention: an output token counts five input tokens, one from the cache a tenth
    of one, as price lists have it; decoding dominates measured energy likewise (arXiv:2602.05712). Calibrate
    them for your hardware (``calibration.fit_weights``).

    Attributes:
        prefill_milli: weight of an input token that was computed, in thousandths.
        cached_milli: of an input token that came from a cache.
        decode_milli: of an output token.
        idle_mw: power of the metered hardware when idle, in milliwatts; 0 attributes all energy by tokens.
        idle: who carries the idle part: ``active`` (all of it those active in the window, by active time),
            ``gaps`` (likewise, but not for the time when nobody was active), or ``nobody``.
        patience_s: how long a window waits for those active in it to end.
        longest_s: what has not ended after so long is taken as lost.
    """

    prefill_milli: int = 1000
    cached_milli: int = 100
    decode_milli: int = 5000
    idle_mw: int = 0
    idle: Literal["active", "gaps", "nobody"] = "active"
    patience_s: float = 30.0
    longest_s: float = 3600.0

    def __post_init__(self) -> None:
        numbers = (self.prefill_milli, self.cached_milli, self.decode_milli, self.idle_mw)
        if (
            any(type(each) is not int or each < 0 for each in numbers)
            or self.idle not in ("active", "gaps", "nobody")
            or not 0 <= self.patience_s <= self.longest_s
        ):
            raise InvalidError(
                f"the attribution rule cannot be used: {self}",
                remedy="weights and power are integers from 0, idle is active, gaps or nobody, and longest_s "
                "is not below patience_s",
                code="bad-weights",
            )


@dataclass(frozen=True)
class Window:
    """What a meter says of the steady time from ``start_ns`` to ``end_ns``.

    Either ``energy_uj`` (the meter counted), or ``power_mw`` (a model: the power while anybody is active), or
    neither: the meter did not answer, and who was active has no energy for that time. ``low`` and ``high``
    are the range, in the same unit.
    """

    start_ns: int
    end_ns: int
    energy_uj: int | None = None
    power_mw: int | None = None
    low: int | None = None
    high: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is something to divide."""
        return self.energy_uj is not None or self.power_mw is not None


class Activity(msgspec.Struct, gc=False):
    """When one generation was active, in steady nanoseconds, and how its tokens weigh over that time.

    Without ``end`` it runs; ``known`` says whether its weights are. Thousands live at a time: they are kept
    out of the garbage collector's sight: they refer to nothing.
    """

    begin: int
    end: int | None = None
    first: int | None = None
    prefill: int = 0
    decode: int = 0
    known: bool = False

    def finish(self, at: int) -> None:
        """It ended; whatever the clock says, nothing takes no time."""
        self.end = max(at, self.begin + 1)

    def weigh(self, usage: Usage, rule: Rule, first: int | None) -> None:
        """Its tokens are known, and perhaps when the first one came. Call after ``finish``."""
        cached = 0 if usage.cached_input_tokens is UNSET else usage.cached_input_tokens
        cached = min(cached, usage.input_tokens)
        prefill = rule.prefill_milli * (usage.input_tokens - cached) + rule.cached_milli * cached
        self.prefill = prefill * _FINE
        self.decode = rule.decode_milli * usage.output_tokens * _FINE
        if first is not None and self.end is not None and self.begin < first < self.end:
            self.first = first
        self.known = True

    def time_within(self, start: int, end: int) -> int:
        """How long it was active in a span of time."""
        if self.end is not None and self.end < end:
            end = self.end
        start = max(start, self.begin)
        return end - start if end > start else 0

    def weight_within(self, start: int, end: int) -> int:
        """The weight of its tokens that falls into a span of time."""
        begin, stop, first = self.begin, self.end, self.first
        if stop is None:
            return 0
        start = max(start, begin)
        end = min(end, stop)
        if start >= end:
            return 0
        if first is None:
            return (self.prefill + self.decode) * (end - start) // (stop - begin)
        if start >= first:
            return self.decode * (end - start) // (stop - first)
        if end <= first:
            return self.prefill * (end - start) // (first - begin)
        return self.prefill * (first - start) // (first - begin) + self.decode * (end - first) // (
            stop - first
        )


@dataclass(frozen=True)
class Division:
    """A window, divided: one part for each activity, in order.

    The parts and ``nobodys_uj`` sum to the window's energy exactly. ``low_uj`` and ``high_uj`` are the range
    of each part, empty where the window states none.
    """

    energy_uj: list[int]
    low_uj: list[int]
    high_uj: list[int]
    busy_us: list[int]
    nobodys_uj: int


def divide(window: Window, active: Sequence[Activity], rule: Rule) -> Division:
    """Divide a window that is known between those active in it."""
    start, end = window.start_ns, window.end_ns
    if not active:
        return Division([], [], [], [], window.energy_uj or 0)
    times = [each.time_within(start, end) for each in active]
    weights = _weights(active, times, start, end)
    busy_ns = _covered(active, times, start, end)
    nobodys = 0
    if window.energy_uj is None:
        low, energy, high = _modelled(window, busy_ns)
        parts = split_exactly(energy, weights)
    else:
        energy = window.energy_uj
        low = energy if window.low is None else min(window.low, energy)
        high = energy if window.high is None else max(window.high, energy)
        length = end - start
        idle = min(energy, rule.idle_mw * length // _PJ_PER_UJ)
        parts = split_exactly(energy - idle, weights)
        if idle:
            carried = {"active": idle, "gaps": idle * busy_ns // length, "nobody": 0}[rule.idle]
            nobodys = idle - carried
            parts = [a + b for a, b in zip(parts, split_exactly(carried, times), strict=True)]
    ranged = energy and not (window.low is None and window.high is None)
    whole, busy_us = sum(weights), busy_ns // _NS_PER_US
    return Division(
        parts,
        [part * low // energy for part in parts] if ranged else [],
        [-(-part * high // energy) for part in parts] if ranged else [],
        [busy_us * weight // whole for weight in weights],
        nobodys,
    )


def _weights(active: Sequence[Activity], times: list[int], start: int, end: int) -> list[int]:
    weights = [each.weight_within(start, end) if each.known else 0 for each in active]
    unknown = [i for i, each in enumerate(active) if not each.known]
    if unknown:
        whole = sum(weights)
        known_ns = sum(times) - sum(times[i] for i in unknown)
        for i in unknown:
            weights[i] = whole * times[i] // known_ns if whole else times[i]
    return weights if any(weights) else times


def _covered(active: Sequence[Activity], times: list[int], start: int, end: int) -> int:
    """How long anybody was active in a span of time."""
    if end - start in times:
        return end - start
    spans = [(each.begin, end if each.end is None else each.end) for each in active]
    spans.sort()
    covered, reached = 0, start
    for begin, ended in spans:
        stop = min(ended, end)
        if stop > reached:
            covered += stop - max(begin, reached)
            reached = stop
    return covered


def _modelled(window: Window, busy_ns: int) -> tuple[int, int, int]:
    """Low, central and high energy of a modelled power over the active time; the range rounded outwards."""
    power = window.power_mw or 0
    low = power if window.low is None else min(window.low, power)
    high = power if window.high is None else max(window.high, power)
    central = (2 * power * busy_ns + _PJ_PER_UJ) // (2 * _PJ_PER_UJ)
    return min(low * busy_ns // _PJ_PER_UJ, central), central, max(-(-high * busy_ns // _PJ_PER_UJ), central)
