"""Owns the model for hosts without counters: a power while anybody is active, and no idea of idle energy."""

from __future__ import annotations

from ledger.core.errors import InvalidError
from ledger.core.records import Method
from ledger.energy.estimation import FULL_UTILISATION_MILLI
from ledger.energy.host_power import HostPower, host_power

__all__ = ["ModelledMeter"]


class ModelledMeter:
    """Power times the time in which anybody was active, from what is known of the hardware.

    It counts nothing, so there is no idle energy and nothing unattributed. The range is from idling at the
    lowest power to full load at the highest.

    Args:
        power: of the hardware; this host's CPUs if absent. For an accelerator, state its own.
        utilisation_milli: the share of it that the engine loads while active, in thousandths.
    """

    def __init__(
        self, power: HostPower | None = None, *, utilisation_milli: int = FULL_UTILISATION_MILLI
    ) -> None:
        if not 0 <= utilisation_milli <= FULL_UTILISATION_MILLI:
            raise InvalidError(f"utilisation is {utilisation_milli}, not within 0 to 1,000", code="bad-power")
        power = power or host_power()
        self.name = power.source
        self.method: Method = "modelled" if power.known else "estimated"
        loaded = utilisation_milli * (power.rated_mw - power.idle_mw)
        self.power_mw = power.idle_mw + (loaded + FULL_UTILISATION_MILLI // 2) // FULL_UTILISATION_MILLI
        self.low_mw = min(power.low_mw, self.power_mw)
        self.high_mw = max(power.high_mw, self.power_mw)
