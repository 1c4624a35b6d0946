"""Owns the reports that wait for their energy, between sealer and attributor. Used by the sealer's thread."""

from __future__ import annotations

import time
from typing import NamedTuple

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.records import Usage
from ledger.emit.compose import Report
from ledger.emit.flights import Began
from ledger.emit.metering import GRACE_NS, Metering
from ledger.energy.attributor import Attributor, Portion
from ledger.energy.windows import Rule

__all__ = ["Energised", "Energising"]

_NS_PER_US = 1000
_MAX_SPAN_US = 86_400_000_000
"""What took longer than a day, by its times, has times that cannot be used."""


class Energised(NamedTuple):
    """A report that has its energy, or will not have any, and how its generation began."""

    report: Report
    began: Began | None
    portion: Portion | None


class Energising:
    """Gives reports the energy of the windows that they were active in.

    Args:
        metering: gives the windows.
        rule: how they are divided.
        limit: how many reports may wait; beyond it, windows are settled with who is known.
    """

    def __init__(self, metering: Metering, rule: Rule, limit: int) -> None:
        meter = metering.meter
        self.metering = metering
        self._attributor = Attributor(rule, method=meter.method, source=meter.name)
        self._limit = limit
        self._waiting: dict[str, tuple[Report, Began | None]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    # --- what the sealer is told ---------------------------------------------------------------------

    def began(self, id: str, at_ns: int) -> None:
        """A generation begins."""
        self._attributor.begin(id, at_ns)

    def abandoned(self, id: str) -> None:
        """It generated nothing."""
        self._attributor.abandon(id)

    def lost(self, id: str, at_ns: int) -> None:
        """Its report found no room."""
        self._attributor.lose(id, at_ns)

    def takes(self, report: Report, began: Began | None) -> bool:
        """Whether the report waits here; False if it needs no energy from here, or can have none."""
        if report.energy is not None or not self.metering.is_active():
            self._attributor.abandon(report.id)
            return False
        end, usage = report.stamp_ns, report.usage
        span_us = _span_us(report)
        counts = (usage.input_tokens, usage.output_tokens) if isinstance(usage, Usage) else (-1,)
        if any(type(count) is not int or count < 0 for count in counts) or (
            began is None and span_us is None
        ):
            self._attributor.lose(report.id, end)  # it will be refused
            return False
        begin = began.stamp_ns if began is not None else end - (span_us or 0) * _NS_PER_US
        first = None
        if span_us is not None and type(report.first_token_us) is int:
            first = begin + (report.first_token_us - report.started_us) * _NS_PER_US
        self._attributor.end(report.id, end, usage, begin_ns=begin, first_ns=first)
        self._waiting[report.id] = (report, began)
        return True

    # --- what the sealer gets ------------------------------------------------------------------------

    def settle(self, *, force: bool = False, taken_at_ns: int | None = None) -> list[Energised]:
        """Give out the reports whose energy is known.

        Args:
            force: read the meter now, and keep nothing waiting.
            taken_at_ns: what began and ended before is known by now; the windows until then are settled.
        """
        now = time.monotonic_ns()
        until = now - GRACE_NS if taken_at_ns is None else min(taken_at_ns, now) - GRACE_NS
        force = force or len(self._waiting) > self._limit
        if force:
            now = until = self.metering.read() or now
        for window in self.metering.take(until):
            self._attributor.add_window(window)
        return self._energised(self._attributor.settle(now, force=force))

    def close(self) -> list[Energised]:
        """Give out what is left; nothing runs on."""
        now = self.metering.read() or time.monotonic_ns()
        for window in self.metering.take(now):
            self._attributor.add_window(window)
        return self._energised(self._attributor.close(now))

    def give_back(self, portion: Portion | None) -> None:
        """The record was refused: its energy is unattributed."""
        if portion is not None:
            self._attributor.return_portion(portion)

    def take_unattributed(self) -> int:
        """Energy that no record carries, to be stated now."""
        return self._attributor.take_unattributed(MAX_SAFE_INTEGER)

    def return_unattributed(self, amount_uj: int) -> None:
        """It was not stated after all."""
        self._attributor.unattributed_uj += amount_uj

    @property
    def unattributed_uj(self) -> int:
        """Energy that no record carries, and no statement has told."""
        return self._attributor.unattributed_uj

    def _energised(self, portions: list[Portion]) -> list[Energised]:
        ready = []
        for portion in portions:
            report, began = self._waiting.pop(portion.id)
            busy_us = portion.busy_us if report.busy_us is None else report.busy_us
            ready.append(Energised(report._replace(energy=portion.energy, busy_us=busy_us), began, portion))
        return ready


def _span_us(report: Report) -> int | None:
    """How long the generation took by the wall clock; None if that cannot be used."""
    started, ended = report.started_us, report.ended_us
    if type(started) is not int or type(ended) is not int or not 0 <= ended - started <= _MAX_SPAN_US:
        return None
    return ended - started
