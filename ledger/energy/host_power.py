"""Owns what is known of this host's power without counters: the CPU's model and a small table.

The table is in milliwatts per hardware thread, of whole servers at the wall (so with memory, fans and power
supply), from published SPECpower_ssj2008 results: server watts divided by hardware threads, as the Cloud
Carbon Footprint methodology derives its coefficients. Per CPU generation: the 5th percentile at active idle,
the median at active idle, the median at 100 % load, the 95th percentile at 100 % load. A virtual machine's
CPU counts as one hardware thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HostPower", "host_power"]

TABLE_SOURCE = "SPECpower_ssj2008 to 2026-03-09, per thread, by ccf-coefficients b0032d9"
"""Cited in every record that the table made. The results are the file data/SPECpower-2026-03-09.csv there."""

CPUINFO = Path("/proc/cpuinfo")

# (low, idle, rated, high), mW for each hardware thread
_NAPLES = (605, 744, 2320, 4344)  # 10 servers
_ROME = (319, 437, 1664, 1953)  # 36
_MILAN = (307, 424, 1916, 2291)  # 28
_GENOA = (305, 377, 1849, 4219)  # 42, EPYC 4th generation
_TURIN = (180, 217, 1178, 2016)  # 43, EPYC 5th generation
_HASWELL = (556, 657, 3833, 4361)  # 17
_BROADWELL = (474, 530, 3091, 6914)  # 17
_SKYLAKE = (370, 530, 4118, 4501)  # 78, servers
_CASCADE_LAKE = (426, 603, 4041, 5458)  # 75
_ICE_LAKE = (688, 830, 4056, 4180)  # 30
_SAPPHIRE_RAPIDS = (638, 899, 3988, 5359)  # 62
_EMERALD_RAPIDS = (566, 820, 3242, 4555)  # 31
_GRANITE_RAPIDS = (305, 503, 2289, 3023)  # 45
_ANY = (226, 600, 3313, 5150)  # all of these and similar: 534 servers

# CPUID family and model tell the generation even where a hypervisor blurs the name ("AMD EPYC").
_GENERATIONS: dict[tuple[str, int, int], tuple[str, tuple[int, int, int, int]]] = {
    ("AuthenticAMD", 23, 1): ("EPYC 1st generation", _NAPLES),
    ("AuthenticAMD", 23, 49): ("EPYC 2nd generation", _ROME),
    ("AuthenticAMD", 25, 1): ("EPYC 3rd generation", _MILAN),
    ("AuthenticAMD", 25, 17): ("EPYC 4th generation", _GENOA),
    ("AuthenticAMD", 25, 160): ("EPYC 4th generation", _GENOA),
    ("AuthenticAMD", 26, 2): ("EPYC 5th generation", _TURIN),
    ("AuthenticAMD", 26, 17): ("EPYC 5th generation", _TURIN),
    ("GenuineIntel", 6, 63): ("Haswell", _HASWELL),
    ("GenuineIntel", 6, 79): ("Broadwell", _BROADWELL),
    ("GenuineIntel", 6, 85): ("Skylake or Cascade Lake", _CASCADE_LAKE),
    ("GenuineIntel", 6, 106): ("Ice Lake", _ICE_LAKE),
    ("GenuineIntel", 6, 143): ("Sapphire Rapids", _SAPPHIRE_RAPIDS),
    ("GenuineIntel", 6, 207): ("Emerald Rapids", _EMERALD_RAPIDS),
    ("GenuineIntel", 6, 173): ("Granite Rapids", _GRANITE_RAPIDS),
}
_FIRST_CASCADE_LAKE_STEPPING = 5


@dataclass(frozen=True)
class HostPower:
    """Power of this host's CPUs, all hardware threads together, in milliwatts.

    ``known`` is False where the generation is not in the table and the figures are those of any server: an
    estimate rather than a model.
    """

    cpu: str
    generation: str
    threads: int
    low_mw: int
    idle_mw: int
    rated_mw: int
    high_mw: int
    source: str
    known: bool


def host_power(*, threads: int | None = None, cpuinfo: Path = CPUINFO) -> HostPower:
    """Look this host up. ``threads`` overrides how many hardware threads it has."""
    name, vendor, family, model, stepping = _identify(cpuinfo)
    generation, row = _GENERATIONS.get((vendor, family, model), ("", _ANY))
    if row is _CASCADE_LAKE and stepping < _FIRST_CASCADE_LAKE_STEPPING:
        row = _SKYLAKE
    count = threads or os.cpu_count() or 1
    low, idle, rated, high = (count * each for each in row)
    source = f"{TABLE_SOURCE}: {generation or 'any server CPU'}"
    return HostPower(name, generation, count, low, idle, rated, high, source, bool(generation))


def _identify(cpuinfo: Path) -> tuple[str, str, int, int, int]:
    fields: dict[str, str] = {}
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()

    def number(key: str) -> int:
        value = fields.get(key, "")
        return int(value) if value.isdecimal() else -1

    name = fields.get("model name") or "unknown CPU"
    return name, fields.get("vendor_id", ""), number("cpu family"), number("model"), number("stepping")
