"""Owns a host's modelled energy as its generations share it: power and busy time, for hooks without a meter.

Overlapping generations share the machine: each moment is divided equally between those in flight
(``attribution.SharedMeter``). So the records of a window add up to the machine's busy time in that window
whatever the number of parallel slots, and idle time is nobody's. Counters are read by the recorder's meter
(``ledger.energy.meters``), not here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ledger.core.records import Energy
from ledger.energy.attribution import Share, SharedMeter
from ledger.energy.estimation import FULL_UTILISATION_MILLI, estimate_from_power
from ledger.energy.host_power import HostPower, host_power

__all__ = ["HostMeter", "Metered", "Ticket"]

_NS_PER_US = 1000


@dataclass(frozen=True)
class Ticket:
    """One generation in flight."""

    busy: Share


@dataclass(frozen=True)
class Metered:
    """What a generation used: its share of busy time, and the energy that this takes."""

    busy_us: int
    energy: Energy


class HostMeter:
    """Models this host's energy for generations. Safe to share between threads.

    Args:
        power: what is known of the hardware; this host's CPUs if absent. For an accelerator, state its own.
        utilisation_milli: the share of that hardware that a busy engine loads, in thousandths.
        clock_ns: a steady clock.
    """

    def __init__(
        self,
        power: HostPower | None = None,
        *,
        utilisation_milli: int = FULL_UTILISATION_MILLI,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.power = power or host_power()
        self._utilisation_milli = utilisation_milli
        self._busy = SharedMeter(clock_ns)

    def start(self) -> Ticket:
        """A generation begins."""
        return Ticket(self._busy.join())

    def stop(self, ticket: Ticket) -> Metered:
        """It ends. A second call returns the same."""
        busy_us = self._busy.leave(ticket.busy) // _NS_PER_US
        return Metered(busy_us, self._modelled(busy_us))

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
