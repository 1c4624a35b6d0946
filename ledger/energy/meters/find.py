"""Owns the choice of a meter: the best that this process can read, and what was tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ledger.core.errors import InvalidError, TallystickError, UnavailableError
from ledger.energy.meters.counting import NO_ANSWER, AnyMeter, Meter, MeterReset
from ledger.energy.meters.modelled import ModelledMeter
from ledger.energy.meters.total import TotalMeter

__all__ = ["METERS", "Finding", "find_meter", "named_meter"]

METERS = ("auto", "model", "none")
"""Names of meters in settings."""


@dataclass(frozen=True)
class Finding:
    """A meter, and what was tried for it.

    Attributes:
        meter: the best there is; without counters, a model of this host's power.
        found: what can be read, by name.
        failed: what cannot, with the reason.
    """

    meter: AnyMeter
    found: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def find_meter() -> Finding:
    """Pick a meter for this host.

    Accelerators and CPU packages are counted together where both can be read; a system on a chip counts
    everything itself. The power of the whole host (Redfish, IPMI, Prometheus) needs an address or rights, so
    it is never picked: make that meter yourself where you have it, since it counts more.
    """
    failed: list[tuple[str, str]] = []
    chip = _try("system on a chip", _chip, failed)
    meters = [chip] if chip else [m for name, make in _PARTS if (m := _try(name, make, failed))]
    names = tuple(meter.name for meter in meters)
    if not meters:
        return Finding(ModelledMeter(), (), tuple(failed))
    return Finding(meters[0] if len(meters) == 1 else TotalMeter(meters), names, tuple(failed))


def named_meter(name: str) -> AnyMeter | None:
    """The meter of a setting: ``auto`` (the best counters, if any), ``model`` (this host's CPUs) or ``none``.

    Without counters, ``auto`` does not model: it cannot know that the CPUs are what generates.

    Raises:
        InvalidError: another name. UnavailableError: ``auto`` found no counter; it says what was tried.
    """
    if name in ("", "none"):
        return None
    if name == "model":
        return ModelledMeter()
    if name != "auto":
        raise InvalidError(
            f"there is no meter called {name[:40]!r}", remedy="use auto, model or none", code="bad-setting"
        )
    finding = find_meter()
    if not finding.found:
        tried = "; ".join(f"{part}: {why}" for part, why in finding.failed)
        raise UnavailableError(
            f"no energy counter can be read ({tried})",
            remedy="install tallystick[meters] for accelerators, let this user read /sys/class/powercap, or "
            "use model",
            code="no-meter",
        )
    return finding.meter


def _chip() -> Meter:
    from ledger.energy.meters.accelerators import SystemOnChipMeter

    return SystemOnChipMeter()


def _accelerators() -> Meter:
    from ledger.energy.meters.accelerators import accelerator_meter

    return accelerator_meter()


def _rapl() -> Meter:
    from ledger.energy.meters.rapl import RaplMeter

    return RaplMeter()


_PARTS: tuple[tuple[str, Callable[[], Meter]], ...] = (("accelerators", _accelerators), ("RAPL", _rapl))


def _try(name: str, make: Callable[[], Meter], failed: list[tuple[str, str]]) -> Meter | None:
    try:
        meter = make()
        try:
            meter.read()
        except MeterReset:
            meter.read()
    except TallystickError as error:
        failed.append((name, error.what.removeprefix(f"{NO_ANSWER}: ")))
        return None
    return meter
