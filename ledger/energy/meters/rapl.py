"""Owns RAPL, the energy counters of CPU packages, as Linux powercap shows them (kernel docs, power/powercap).

The counter is a file, so the ``zeus`` package is not needed for it (it would start a process for each package
to watch for the wrap-around, which windows of seconds see anyway). Memory is counted where the package has a
``dram`` zone of its own; fans and power supply are not.

Accuracy: Intel states none. Comparisons with wall power find package and memory within a few per cent since
Haswell (Khan et al., RAPL in Action, ACM TOMPECS 3(2), 2018; Desrochers et al., MEMSYS 2016); 5 % is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ledger.core.records import Method
from ledger.energy.meters.counting import RisingCounter, unreadable

__all__ = ["POWERCAP", "RaplMeter"]

POWERCAP = Path("/sys/class/powercap")
_MAX_MW = 2_000_000
"""No package draws two kilowatts."""
_REMEDY = "let this user read energy_uj (mode 0400 since CVE-2020-8694), or run without RAPL"


class RaplMeter:
    """Sum of the packages, and of their memory where it is counted apart.

    Args:
        powercap: where the zones are.
        clock_ns: a steady clock.

    Raises:
        UnavailableError: there are none, or they may not be read.
    """

    name = "RAPL (Linux powercap)"
    method: Method = "measured"
    accuracy_milli = 50

    def __init__(self, powercap: Path = POWERCAP, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        zones = sorted(z for z in powercap.glob("intel-rapl:*") if z.name.count(":") == 1)
        zones += [z for z in sorted(powercap.glob("intel-rapl:*:*")) if _text(z / "name") == "dram"]
        # A package may have a zone of the whole platform beside it (psys), which counts it again.
        zones = [zone for zone in zones if _text(zone / "name") != "psys"]
        if not zones:
            raise unreadable(self.name, "this host has no RAPL zones", "run without RAPL")
        self._zones = [
            (
                zone / "energy_uj",
                RisingCounter(wraps_at=_number(zone / "max_energy_range_uj"), max_mw=_MAX_MW),
            )
            for zone in zones
        ]
        self.read()

    def read(self) -> int:
        """See ``Meter.read``."""
        values = [(counter, _number(path), self._clock_ns()) for path, counter in self._zones]
        return sum([counter.add(value, at_ns) for counter, value, at_ns in values])


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise unreadable(str(path), error, _REMEDY) from None
