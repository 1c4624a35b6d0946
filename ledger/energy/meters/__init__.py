"""Meters: what counts the energy of the hardware that generates. One module each; ``find_meter`` picks one.

Every meter counts microjoules from an arbitrary zero, and says what it is and how accurate. Where hardware
counters wrap, the meter goes on rising; where one starts anew, it says so (``MeterReset``), because what was
used meanwhile is not known.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledger.energy.meters.accelerators import SystemOnChipMeter, accelerator_meter
    from ledger.energy.meters.counting import AnyMeter, Meter, MeterReset, PowerMeter
    from ledger.energy.meters.find import Finding, find_meter, named_meter
    from ledger.energy.meters.host import PrometheusMeter, ipmi_meter, prometheus_power_meter, redfish_meter
    from ledger.energy.meters.modelled import ModelledMeter
    from ledger.energy.meters.rapl import RaplMeter
    from ledger.energy.meters.replay import ReplayMeter, read_trace, windows_of
    from ledger.energy.meters.total import TotalMeter

__all__ = [
    "AnyMeter",
    "Finding",
    "Meter",
    "MeterReset",
    "ModelledMeter",
    "PowerMeter",
    "PrometheusMeter",
    "RaplMeter",
    "ReplayMeter",
    "SystemOnChipMeter",
    "TotalMeter",
    "accelerator_meter",
    "find_meter",
    "ipmi_meter",
    "named_meter",
    "prometheus_power_meter",
    "read_trace",
    "redfish_meter",
    "windows_of",
]

_MODULES = {
    "accelerators": ("SystemOnChipMeter", "accelerator_meter"),
    "counting": ("AnyMeter", "Meter", "MeterReset", "PowerMeter"),
    "find": ("Finding", "find_meter", "named_meter"),
    "host": ("PrometheusMeter", "ipmi_meter", "prometheus_power_meter", "redfish_meter"),
    "modelled": ("ModelledMeter",),
    "rapl": ("RaplMeter",),
    "replay": ("ReplayMeter", "read_trace", "windows_of"),
    "total": ("TotalMeter",),
}


def __getattr__(name: str) -> Any:
    """Import a meter's module when it is first used: a recorder without one pays for none."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
