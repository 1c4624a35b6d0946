"""Owns what vendors publish of accelerators: dense peak speed, memory bandwidth, board power.

Figures are the vendors' own, without structured sparsity, in units of 10^9 (FLOP/s, bytes/s) and milliwatts.
Parts whose power is not published (TPU v5e, v6e) are not here: state a ``Accelerator`` for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ledger.core.errors import InvalidError

__all__ = ["ACCELERATORS", "Accelerator", "accelerator_named"]


@dataclass(frozen=True)
class Accelerator:
    """One accelerator.

    Attributes:
        name: short name; goes into the source of records.
        gflops_16: dense peak with 16-bit weights (BF16 or FP16), in 10^9 FLOP/s.
        gflops_8: dense peak with 8-bit weights (FP8, else INT8); that of 16 bit where there is no faster one.
        gbytes_per_s: memory bandwidth in 10^9 bytes/s.
        power_mw: rated power of the board (TDP) in milliwatts.
        source: where the figures are published.
    """

    name: str
    gflops_16: int
    gflops_8: int
    gbytes_per_s: int
    power_mw: int
    source: str


ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("B200", 2_250_000, 4_500_000, 7_700, 1_000_000, "NVIDIA HGX B200 datasheet, 2024"),
    Accelerator("H200", 989_500, 1_979_000, 4_800, 700_000, "NVIDIA H200 datasheet (SXM), 2024"),
    Accelerator("H100 PCIe", 756_500, 1_513_000, 2_000, 350_000, "NVIDIA H100 datasheet (PCIe), 2023"),
    Accelerator("H100 NVL", 835_500, 1_671_000, 3_900, 400_000, "NVIDIA H100 datasheet (NVL), 2024"),
    Accelerator("H100", 989_500, 1_979_000, 3_350, 700_000, "NVIDIA H100 datasheet (SXM), 2023"),
    Accelerator("A100 PCIe", 312_000, 624_000, 1_935, 300_000, "NVIDIA A100 datasheet (80 GB PCIe), 2022"),
    Accelerator("A100 40GB", 312_000, 624_000, 1_555, 400_000, "NVIDIA A100 datasheet (40 GB SXM), 2021"),
    Accelerator("A100", 312_000, 624_000, 2_039, 400_000, "NVIDIA A100 datasheet (80 GB SXM), 2022"),
    Accelerator("L40S", 362_000, 733_000, 864, 350_000, "NVIDIA L40S datasheet, 2023"),
    Accelerator("L4", 121_000, 242_000, 300, 72_000, "NVIDIA L4 datasheet, 2023"),
    Accelerator("A10G", 70_000, 140_000, 600, 300_000, "NVIDIA A10G datasheet, 2021"),
    Accelerator("T4", 65_000, 130_000, 320, 70_000, "NVIDIA T4 datasheet, 2019"),
    Accelerator("MI325X", 1_307_400, 2_614_900, 6_000, 1_000_000, "AMD Instinct MI325X datasheet, 2024"),
    Accelerator("MI300X", 1_307_400, 2_614_900, 5_300, 750_000, "AMD Instinct MI300X datasheet, 2023"),
)

_BY_NAME = {each.name: each for each in ACCELERATORS}
# What drivers call them: first match wins. A name that does not tell the form is the most common one, SXM.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"\bB200\b", "B200"),
    (r"\bH200\b", "H200"),
    (r"\bH100\b.*\bPCIe\b", "H100 PCIe"),
    (r"\bH100\b.*\bNVL\b", "H100 NVL"),
    (r"\bH100\b", "H100"),
    (r"\bA100\b.*\bPCIe\b", "A100 PCIe"),
    (r"\bA100\b.*\b40 ?GB", "A100 40GB"),
    (r"\bA100\b", "A100"),
    (r"\bL40S\b", "L40S"),
    (r"\bL4\b", "L4"),
    (r"\bA10G\b", "A10G"),
    (r"\bT4\b", "T4"),
    (r"\bMI325X\b", "MI325X"),
    (r"\bMI300X\b", "MI300X"),
)
_MAX_NAME = 256


def accelerator_named(name: str) -> Accelerator:
    """Look up an accelerator by the name that a driver gives, such as ``NVIDIA H100 80GB HBM3``.

    Raises:
        InvalidError: ``unknown-accelerator``.
    """
    for pattern, found in _PATTERNS:
        if re.search(pattern, name[:_MAX_NAME], re.IGNORECASE):
            return _BY_NAME[found]
    raise InvalidError(
        "the table of accelerators does not have this one",
        where=name[:_MAX_NAME],
        remedy=f"pass an Accelerator with its published figures, or use one of {', '.join(_BY_NAME)}",
        code="unknown-accelerator",
    )
