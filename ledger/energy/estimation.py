"""Owns energy for engines without meters: power times busy time, with an honest range.

    energy [uJ] = power [mW] * busy time [us] / 1,000        (1 mW * 1 us = 1 nJ)

The power in between is linear in utilisation, from idle to rated, as the Cloud Carbon Footprint methodology
and SPECpower's own curve have it. The range answers "what could it have been at all": from the machine idling
at its lowest known power to all of it at its highest. It is wide because without a meter nobody knows better;
a figure from here is always marked ``modelled`` (this run's time and hardware) or ``estimated``.
"""

from __future__ import annotations

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError
from ledger.core.records import Energy, Method

__all__ = ["FULL_UTILISATION_MILLI", "estimate_from_power"]

FULL_UTILISATION_MILLI = 1000
"""All cores busy: llama.cpp's threads spin while a batch is computed, so a busy thread is a busy core."""

_NJ_PER_UJ = 1000


def estimate_from_power(
    *,
    busy_us: int,
    power_mw: int,
    source: str,
    idle_mw: int = 0,
    utilisation_milli: int = FULL_UTILISATION_MILLI,
    low_mw: int | None = None,
    high_mw: int | None = None,
    method: Method = "modelled",
) -> Energy:
    """Energy of ``busy_us`` of machine time, for a machine of ``power_mw`` at full load.

    Args:
        busy_us: machine time of this generation alone: time shared with others must already be divided (see
            ``attribution.SharedMeter``), or the sum over records would exceed what the machine used.
        power_mw: rated power of all accelerators or cores that the deployment has, at full load.
        source: where the power figures come from; goes into the record.
        idle_mw: power of the same hardware when idle.
        utilisation_milli: the busy share of the hardware, in thousandths.
        low_mw: lowest power that it can draw; ``idle_mw`` if absent.
        high_mw: highest power that it can draw; ``power_mw`` if absent.
        method: ``modelled``, or ``estimated`` where even the hardware is a guess.

    Returns:
        The central figure rounded half up, the range rounded outwards.

    Raises:
        InvalidError: an argument is negative, or the powers are not in the order low, idle, rated, high.
    """
    low_mw = idle_mw if low_mw is None else low_mw
    high_mw = power_mw if high_mw is None else high_mw
    if busy_us < 0 or not 0 <= low_mw <= idle_mw <= power_mw <= high_mw:
        raise InvalidError(
            "powers and times cannot be negative, and powers must rise from low over idle and rated to high",
            where=f"busy_us={busy_us} low={low_mw} idle={idle_mw} rated={power_mw} high={high_mw} mW",
            code="bad-power",
        )
    if not 0 <= utilisation_milli <= FULL_UTILISATION_MILLI:
        raise InvalidError(f"utilisation is {utilisation_milli}, not within 0 to 1,000", code="bad-power")
    power_uw = idle_mw * FULL_UTILISATION_MILLI + utilisation_milli * (power_mw - idle_mw)
    unit = _NJ_PER_UJ * FULL_UTILISATION_MILLI
    high_uj = -(-high_mw * busy_us // _NJ_PER_UJ)
    if high_uj > MAX_SAFE_INTEGER:
        raise InvalidError("the energy passes 2^53 - 1 microjoules", code="figure-too-large")
    return Energy(
        energy_uj=(2 * power_uw * busy_us + unit) // (2 * unit),
        method=method,
        source=source,
        low_uj=low_mw * busy_us // _NJ_PER_UJ,
        high_uj=high_uj,
    )
