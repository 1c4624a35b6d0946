"""Owns a host's energy as its generations share it: RAPL counters where readable, else power and busy time.

Overlapping generations share the machine: each moment is divided equally between those in flight
(``attribution.SharedMeter``). So the records of a window add up to the machine's busy time and energy in that
window whatever the number of parallel slots, and idle time is nobody's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ledger.core.errors import UnavailableError
from ledger.core.records import Energy
from ledger.energy.attribution import Share, SharedMeter
from ledger.energy.estimation import FULL_UTILISATION_MILLI, estimate_from_power
from ledger.energy.host_power import HostPower, RaplCounter, host_power

__all__ = ["HostMeter", "Metered", "Ticket"]

_NS_PER_US = 1000


@dataclass(frozen=True)
class Ticket:
    """One generation in flight."""

    busy: Share
    counted: Share | None


@dataclass(frozen=True)
class Metered:
    """What a generation used: its share of busy time, and its energy unless a counter failed meanwhile."""

    busy_us: int
    energy: Energy | None


class HostMeter:
    """Attributes this host's energy to generations. Safe to share between threads.

    Args:
        power: what is known of the hardware; this host's CPUs if absent. For an accelerator, state its own.
        utilisation_milli: the share of that hardware that a busy engine loads, in thousandths.
        counter: cumulative energy in microjoules, for ``measured`` figures; this host's RAPL if readable.
            False to model even where there is a counter.
        counter_source: what the counter is; goes into the records.
        clock_ns: a steady clock.
    """

    def __init__(
        self,
        power: HostPower | None = None,
        *,
        utilisation_milli: int = FULL_UTILISATION_MILLI,
        counter: Callable[[], int] | bool = True,
        counter_source: str = RaplCounter.source,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.power = power or host_power()
        self._utilisation_milli = utilisation_milli
        self._busy = SharedMeter(clock_ns)
        # RAPL counts CPUs: with hardware that the caller states, it would count the wrong thing.
        found = RaplCounter.find() if counter is True and power is None else counter
        self._counted = SharedMeter(found) if callable(found) else None
        self._counter_source = counter_source

    def start(self) -> Ticket:
        """A generation begins."""
        counted = None
        if self._counted is not None:
            try:
                counted = self._counted.join()
            except UnavailableError:
                counted = None
        return Ticket(self._busy.join(), counted)

    def stop(self, ticket: Ticket) -> Metered:
        """It ends. A second call returns the same."""
        busy_us = self._busy.leave(ticket.busy) // _NS_PER_US
        if self._counted is None:
            return Metered(busy_us, self._modelled(busy_us))
        try:
            energy_uj = None if ticket.counted is None else self._counted.leave(ticket.counted)
        except UnavailableError:
            energy_uj = None
        if energy_uj is None:  # never mix: a figure next to measured ones must not be quietly a guess
            return Metered(busy_us, None)
        return Metered(busy_us, Energy(energy_uj=energy_uj, method="measured", source=self._counter_source))

    def _modelled(self, busy_us: int) -> Energy:
        power = self.power
        return estimate_from_power(
            busy_us=busy_us,
            low_mw=power.low_mw,
            idle_mw=power.idle_mw,
            power_mw=power.rated_mw,
            high_mw=power.high_mw,
            utilisation_milli=self._utilisation_milli,
            source=power.source,
            method="modelled" if power.known else "estimated",
        )
