"""Owns the embodied share: the making of the hardware, spread over the seconds that it is in use.

    embodied_ng_per_s = boards x (board + host share) [kg] x 10^12 / (lifetime [s] x active share)

A second that one generation has the whole machine to itself carries so much; a generation that shares it has
fewer such seconds (``busy_us``). The lifetime counts only while somebody is served: idle hardware is carried
by those whom it waits for, so that the shares of all records add up to what was made.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.core.errors import InvalidError
from ledger.energy.factor_sets import Stated

__all__ = ["EMBODIED", "HOST_SHARE", "Making", "embodied_rate"]

_NG_PER_KG = 1_000_000_000_000
_S_PER_YEAR = 365 * 24 * 3600


@dataclass(frozen=True)
class Making:
    """Greenhouse gas of making one thing, from cradle to gate, in grams of CO2e."""

    g: int
    source: str
    year: int


EMBODIED: dict[str, Making] = {
    "H100": Making(164_000, "NVIDIA HGX H100 product carbon footprint: 1,312 kg for 8 boards", 2025),
    "B200": Making(284_250, "NVIDIA HGX B200 product carbon footprint: 2,274 kg for 8 boards", 2025),
    "A100 40GB": Making(127_600, "Falk et al., life cycle assessment of an A100 SXM 40 GB", 2025),
}
"""By the names of ``accelerators``. For others, state the vendor's figure."""

HOST_SHARE = Making(712_500, "EcoLogits: server of 8 GPUs, 5,700 kg without them, Boavizta", 2024)
"""Chassis, CPUs, memory and disks, for each board of a server with eight."""

LIFETIME_YEARS = 5
"""Between the 3 years of EcoLogits and the 6 over which large operators write servers off (2024 reports)."""

ACTIVE_SHARE_MILLI = 500
"""Of the lifetime, in which at least one generation is served. State your own."""


def embodied_rate(
    making: Making,
    *,
    boards: int = 1,
    host: Making | None = HOST_SHARE,
    lifetime_years: int = LIFETIME_YEARS,
    active_share_milli: int = ACTIVE_SHARE_MILLI,
) -> Stated:
    """The embodied factor of a deployment, ready for ``factor_set_for``. Rounded half up.

    Args:
        making: of one board; see ``EMBODIED``.
        boards: how many serve one copy of the model.
        host: share of the server around each board; None to leave it out.
        lifetime_years: until the hardware is replaced.
        active_share_milli: thousandths of the lifetime in which somebody is served.

    Raises:
        InvalidError: a figure is not positive, or the share is above 1,000.
    """
    if min(making.g, boards, lifetime_years, active_share_milli) <= 0 or active_share_milli > 1000:
        raise InvalidError(
            "making, boards, lifetime and active share must be positive, and the share at most 1,000",
            code="bad-factor",
        )
    grams = boards * (making.g + (0 if host is None else host.g))
    numerator = grams * (_NG_PER_KG // 1000) * 1000
    denominator = lifetime_years * _S_PER_YEAR * active_share_milli
    around = "" if host is None else f", with {host.source} ({host.year})"
    return Stated(
        (2 * numerator + denominator) // (2 * denominator),
        f"{boards} x {making.source}{around}; {lifetime_years} years, active {active_share_milli}/1000",
        year=making.year,
    )
