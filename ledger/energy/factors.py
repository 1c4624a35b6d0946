"""Owns the step from energy to carbon and water, in integers, reproducible from the factor set alone.

With energy E in uJ, PUE in thousandths, and 1 kWh = 3.6e12 uJ::

    carbon   [ng] = E * PUE/1000 * intensity [ug/kWh] / 3.6e12 * 1000 ng/ug
                  = E * pue_milli * intensity / 3.6e12
    water    [nl] = E * (site [ul/kWh] + PUE/1000 * source [ul/kWh]) / 3.6e12 * 1000 nl/ul
                  = E * (1000 * site + pue_milli * source) / 3.6e12
    embodied [ng] = embodied_ng_per_s * busy_us / 1e6

Each is computed whole and rounded once, half up. Site water (WUE) is defined per kWh of IT energy, so PUE
does not apply to it; the water of power generation is per kWh that the site buys (arXiv:2304.03271).
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import UNSET, UnsetType

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError
from ledger.core.records import Energy, FactorSet, FactorSource

__all__ = ["UJ_PER_KWH", "Figures", "Rates", "default_factor_set", "figures", "figures_at", "rates"]

UJ_PER_KWH = 3_600_000_000_000
_US_PER_S = 1_000_000


class Figures(NamedTuple):
    """What a record states beside its energy. None is unknown.

    ``carbon_low_ng`` and ``carbon_high_ng`` combine the energy's range with the grid's: lowest with lowest,
    highest with highest. They are None where neither has a range. ``water_nl`` counts the kinds of water that
    the factor set has a factor for.
    """

    carbon_ng: int
    carbon_low_ng: int | None
    carbon_high_ng: int | None
    carbon_market_ng: int | None
    embodied_ng: int | None
    water_nl: int | None


class Rates(NamedTuple):
    """What a factor set comes to for each microjoule and second, so that figures come quickly.

    All but ``embodied_ng_per_s`` are in 1 / 3.6e12 of a nanogram or nanolitre per microjoule.
    """

    carbon: int
    carbon_low: int
    carbon_high: int
    market: int | None
    water: int | None
    embodied_ng_per_s: int | None


def rates(factors: FactorSet) -> Rates:
    """The rates of ``factors``, for ``figures_at``."""
    pue, grid = factors.pue_milli, factors.intensity_ug_per_kwh
    site, source = factors.water_ul_per_kwh, factors.source_water_ul_per_kwh
    unknown = site is UNSET and source is UNSET
    return Rates(
        carbon=pue * grid,
        carbon_low=pue * _or(factors.intensity_low_ug_per_kwh, grid),
        carbon_high=pue * _or(factors.intensity_high_ug_per_kwh, grid),
        market=None if factors.market_ug_per_kwh is UNSET else pue * factors.market_ug_per_kwh,
        water=None if unknown else 1000 * _or(site, 0) + pue * _or(source, 0),
        embodied_ng_per_s=None if factors.embodied_ng_per_s is UNSET else factors.embodied_ng_per_s,
    )


def figures(energy: Energy, factors: FactorSet, busy_us: int) -> Figures:
    """Carbon, embodied carbon and water of one record.

    Args:
        energy: the record's energy, with or without a range.
        factors: the factor set that the record will name.
        busy_us: machine time of this generation alone (see ``estimation``), for the embodied share.

    Raises:
        InvalidError: a figure passes 2^53 - 1 and cannot be recorded.
    """
    return figures_at(rates(factors), energy, busy_us)


def figures_at(rates: Rates, energy: Energy, busy_us: int) -> Figures:
    """``figures``, with the ``rates`` of the factor set."""
    if busy_us < 0:
        raise InvalidError("busy time cannot be negative", code="bad-power")
    uj, low, high = energy.energy_uj, energy.low_uj, energy.high_uj
    carbon, carbon_low, carbon_high, market, water, embodied = rates
    ranged = carbon_low != carbon or carbon_high != carbon or _or(low, uj) != uj or _or(high, uj) != uj
    return Figures(
        _rounded(uj * carbon, UJ_PER_KWH),
        _rounded((uj if low is UNSET else low) * carbon_low, UJ_PER_KWH) if ranged else None,
        _rounded((uj if high is UNSET else high) * carbon_high, UJ_PER_KWH) if ranged else None,
        None if market is None else _rounded(uj * market, UJ_PER_KWH),
        None if embodied is None else _rounded(embodied * busy_us, _US_PER_S),
        None if water is None else _rounded(uj * water, UJ_PER_KWH),
    )


def _or(value: int | UnsetType, otherwise: int) -> int:
    return otherwise if value is UNSET else value


def _rounded(numerator: int, denominator: int) -> int:
    value = (numerator + denominator // 2) // denominator  # denominators are even
    if value > MAX_SAFE_INTEGER:
        raise InvalidError(
            "a figure passes 2^53 - 1",
            remedy="check the units of the factor set and of the energy",
            code="figure-too-large",
        )
    return value


def default_factor_set(*, embodied_ng_per_s: int | None = None) -> FactorSet:
    """World-average factors, for when the site is not known. Replace it by your grid's and your site's.

    - Grid: 458.29 g CO2e/kWh, world (zone WOR), from the electricity mixes of EcoLogits 0.11.3, which takes
      them from Our World in Data. Range: the 5th to 95th percentile of the 214 countries in the same file
      (Sweden 35.26, Congo 716.12), since the site could be anywhere.
    - PUE: 1.56, average of the Uptime Institute Global Data Center Survey 2024.
    - Water of power generation: 3.908 l/kWh, world, same EcoLogits file, which takes it from the World
      Resources Institute. Site water is not known, so it is not counted.
    - Embodied: depends on the hardware, so only if given.
    """
    mixes = "EcoLogits electricity mixes, zone WOR"
    return FactorSet(
        name="world-average",
        version="2026.1",
        region="world",
        pue_milli=1560,
        intensity_ug_per_kwh=458_290_000,
        intensity_low_ug_per_kwh=35_260_000,
        intensity_high_ug_per_kwh=716_120_000,
        source_water_ul_per_kwh=3_908_000,
        embodied_ng_per_s=UNSET if embodied_ng_per_s is None else embodied_ng_per_s,
        sources=(
            FactorSource(
                factor="intensity_ug_per_kwh",
                source=f"{mixes} (gwp, from Our World in Data)",
                version="0.11.3",
            ),
            FactorSource(
                factor="intensity_low_ug_per_kwh",
                source="EcoLogits electricity mixes, 5th percentile of 214 countries (gwp, SWE)",
                version="0.11.3",
            ),
            FactorSource(
                factor="intensity_high_ug_per_kwh",
                source="EcoLogits electricity mixes, 95th percentile of 214 countries (gwp, COG)",
                version="0.11.3",
            ),
            FactorSource(
                factor="pue_milli",
                source="Uptime Institute Global Data Center Survey 2024, average annual PUE",
                version="2024",
                year=2024,
            ),
            FactorSource(
                factor="source_water_ul_per_kwh",
                source=f"{mixes} (wue, from the World Resources Institute)",
                version="0.11.3",
            ),
        ),
    )
