"""Owns factor sets for a site: grid factors from installed packages, the rest stated by the operator.

``factor_set_for`` names the source, version and year of every factor. What the operator states (PUE,
contracts, water, hardware) always wins; what nobody states is absent, but for PUE, which every carbon figure
needs: the average of the industry, marked as such.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from ledger.core.errors import InvalidError
from ledger.core.records import FactorSet, FactorSource
from ledger.energy.cloud_regions import zone_of_region
from ledger.energy.grid_data import Intensity, intensities, source_water, zones

__all__ = ["AVERAGE_PUE", "Stated", "factor_set_for", "resolve_zone"]


@dataclass(frozen=True)
class Stated:
    """A factor that the operator states, in the unit of the field it is for.

    Attributes:
        value: at least 0.
        source: who measured or published it, as an auditor can find it again.
        version: of that source.
        year: that it describes.
    """

    value: int
    source: str
    version: str | None = None
    year: int | None = None

    def cited(self, factor: str) -> FactorSource:
        """As a factor set cites it."""
        return FactorSource(
            factor=factor,
            source=self.source,
            version=UNSET if self.version is None else self.version,
            year=UNSET if self.year is None else self.year,
        )


AVERAGE_PUE = Stated(
    1560, "Uptime Institute Global Data Center Survey 2024, average annual PUE", version="2024", year=2024
)


def factor_set_for(
    zone: str,
    *,
    pue_milli: Stated = AVERAGE_PUE,
    market_ug_per_kwh: Stated | None = None,
    water_ul_per_kwh: Stated | None = None,
    embodied_ng_per_s: Stated | None = None,
    intensity_ug_per_kwh: Stated | None = None,
) -> FactorSet:
    """Factors of a site in a grid zone, from the installed packages.

    The intensity is the newest that states its year. Where packages differ on a country, the range goes from
    the lowest to the highest of them; a zone that only one has gets no range: how wrong it is, is not known.

    Args:
        zone: ISO 3166-1 alpha-3 country (``FRA``), ``US-CA``, ``CN-BJ``, ``SE-SE3``, or a cloud's region:
            ``aws:eu-north-1``, ``azure:westeurope``, ``gcp:europe-west1``. See ``grid_data.zones``.
        pue_milli: the site's power usage effectiveness times 1,000.
        market_ug_per_kwh: market-based: what the site's contracts, certificates or residual mix come to.
        water_ul_per_kwh: site water (WUE).
        embodied_ng_per_s: see ``embodied``.
        intensity_ug_per_kwh: a location-based intensity that the packages do not have.

    Raises:
        InvalidError: ``unknown-zone``, or a stated value that no factor set can have.
        UnavailableError: no package is installed, and the intensity is not stated.
    """
    place = resolve_zone(zone) if intensity_ug_per_kwh is None else zone
    sources: list[FactorSource] = []
    country: str | None = None
    low: int | UnsetType = UNSET
    high: int | UnsetType = UNSET
    if intensity_ug_per_kwh is not None:
        intensity = intensity_ug_per_kwh.value
        sources.append(intensity_ug_per_kwh.cited("intensity_ug_per_kwh"))
        version = intensity_ug_per_kwh.version or "stated"
    else:
        found = intensities(place)
        intensity, country = found[0].ug_per_kwh, found[0].country
        sources.append(_cited("intensity_ug_per_kwh", found[0]))
        version = "+".join(sorted({each.package.replace(" ", "-") for each in found}))
        if len(found) > 1:
            least, most = (pick(found, key=lambda each: each.ug_per_kwh) for pick in (min, max))
            low, high = least.ug_per_kwh, most.ug_per_kwh
            sources.append(_cited("intensity_low_ug_per_kwh", least))
            sources.append(_cited("intensity_high_ug_per_kwh", most))
    sources.append(pue_milli.cited("pue_milli"))
    for factor, stated in (
        ("market_ug_per_kwh", market_ug_per_kwh),
        ("water_ul_per_kwh", water_ul_per_kwh),
        ("embodied_ng_per_s", embodied_ng_per_s),
    ):
        if stated is not None:
            sources.append(stated.cited(factor))
    water = None if country is None else source_water(country)
    if water is not None:
        package, _, released = water.package.partition(" ")
        sources.append(
            FactorSource(
                factor="source_water_ul_per_kwh",
                source=f"{water.source}, package {package}",
                version=released,
            )
        )
    made = (pue_milli, market_ug_per_kwh, water_ul_per_kwh, embodied_ng_per_s, intensity_ug_per_kwh)
    if any(each is not None and each.value < 0 for each in made) or pue_milli.value < 1000:
        raise InvalidError(
            "a stated factor is negative, or PUE is below 1",
            remedy="PUE is stated times 1,000: 1120 for 1.12",
            code="bad-factor",
        )
    return FactorSet(
        name=f"grid-{zone}"[:256],
        version=version[:256],
        region=place[:64],
        pue_milli=pue_milli.value,
        intensity_ug_per_kwh=intensity,
        intensity_low_ug_per_kwh=low,
        intensity_high_ug_per_kwh=high,
        market_ug_per_kwh=_value(market_ug_per_kwh),
        water_ul_per_kwh=_value(water_ul_per_kwh),
        source_water_ul_per_kwh=UNSET if water is None else water.ul_per_kwh,
        embodied_ng_per_s=_value(embodied_ng_per_s),
        sources=tuple(sources),
    )


def resolve_zone(zone: str) -> str:
    """The zone that the packages have figures of, for a zone or a cloud's region.

    A state that no package has becomes its country.

    Raises:
        InvalidError: ``unknown-zone``.
        UnavailableError: no package is installed.
    """
    known = zones()
    cloud, colon, region = zone.partition(":")
    wanted = [zone, (zone_of_region(cloud, region) or "") if colon else zone.upper()]
    wanted += [_country(each) for each in wanted]
    for each in wanted:
        if each in known:
            return each
    raise InvalidError(
        "no installed package has factors for this zone",
        where=zone[:200],
        remedy="use a code such as FRA (see `tallystick factors list`), or state the factors",
        code="unknown-zone",
    )


_COUNTRIES = {"US": "USA", "CN": "CHN", "SE": "SWE", "NO": "NOR"}


def _country(zone: str) -> str:
    """The country of a zone that is a part of one."""
    return _COUNTRIES.get(zone.partition("-")[0], zone) if "-" in zone and ":" not in zone else zone


def _cited(factor: str, found: Intensity) -> FactorSource:
    package, _, released = found.package.partition(" ")
    return FactorSource(
        factor=factor,
        source=f"{found.source}, package {package}",
        version=released,
        year=UNSET if found.year is None else found.year,
    )


def _value(stated: Stated | None) -> int | UnsetType:
    return UNSET if stated is None else stated.value
