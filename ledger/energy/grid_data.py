"""Owns reading grid factors from packages that ship them, offline: `ecologits` and `codecarbon`.

Neither is imported: their data files are read where they are installed, so that nothing of theirs runs and
their other dependencies are not needed. Nothing is copied into this project. What each has:

- ``ecologits`` (MPL-2.0), data/electricity_mixes.json: countries and WOR (world), lifecycle, from Our World
  in Data; water of power generation, from the World Resources Institute. It states no year.
- ``codecarbon`` (MIT), data/private_infra: countries by year, lifecycle, from Our World in Data; states of
  the USA (EPA eGRID, generation alone); provinces of China (Ministry of Ecology and Environment, CO2 alone);
  bidding zones of Norway and Sweden (ENTSO-E). data/cloud/impact.csv: regions of Google Cloud.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from ledger.core.errors import UnavailableError

__all__ = ["PACKAGES", "Intensity", "SourceWater", "intensities", "source_water", "zones"]

PACKAGES = ("codecarbon", "ecologits")

_UG_PER_G = 1_000_000
_G_PER_KG = 1000
_UL_PER_L = 1_000_000
_G_PER_LB = Fraction("453.59237")
_WORLD_WATER = "electricity-mix-wue-world"


@dataclass(frozen=True)
class Intensity:
    """A location-based grid intensity, as one package states it.

    Attributes:
        zone: which grid.
        country: that it lies in, ISO 3166-1 alpha-3.
        ug_per_kwh: micrograms of CO2e (or of CO2 alone, where ``source`` says so) for each kWh.
        source: publication, as the package cites it.
        package: name and version that ships it.
        year: that it describes, where the package says so.
    """

    zone: str
    country: str
    ug_per_kwh: int
    source: str
    package: str
    year: int | None


@dataclass(frozen=True)
class SourceWater:
    """Water of power generation, in microlitres for each kWh."""

    ul_per_kwh: int
    source: str
    package: str


def intensities(zone: str) -> tuple[Intensity, ...]:
    """What the installed packages have of a zone: those that state a year first, the newest first.

    Raises:
        UnavailableError: neither package is installed, or its files are not as expected.
    """
    found = [each[zone] for each in (_codecarbon(), _ecologits()[0]) if zone in each]
    return tuple(sorted(found, key=lambda each: -(each.year or 0)))


def source_water(zone: str) -> SourceWater | None:
    """Water of power generation in a country, if `ecologits` is installed and knows it.

    Raises:
        UnavailableError: neither package is installed, or its files are not as expected.
    """
    return _ecologits()[1].get(zone)


def zones() -> tuple[str, ...]:
    """All zones that the installed packages have an intensity of, sorted.

    Raises:
        UnavailableError: neither package is installed, or its files are not as expected.
    """
    return tuple(sorted({*_codecarbon(), *_ecologits()[0]}))


# --- the packages ----------------------------------------------------------------------------------------


def _folder(package: str) -> Path | None:
    """Where a package is installed. Finding a top-level package does not import it."""
    spec = importlib.util.find_spec(package)
    places = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(places))) if places else None


def _needed() -> None:
    if all(_folder(package) is None for package in PACKAGES):
        raise UnavailableError(
            "no package with grid factors is installed",
            remedy="pip install 'tallystick[grid]' or 'tallystick[estimates]'; or state the factors yourself",
            code="missing-package",
        )


def _label(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _load(package: str, folder: Path, name: str) -> Any:
    try:
        # As decimals: the figures are multiplied exactly and rounded once.
        return json.loads((folder / name).read_text(encoding="utf-8-sig"), parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise _unexpected(package, name, error) from None


def _unexpected(package: str, name: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"the data of {_label(package)} is not as expected: {type(error).__name__}: {error}"[:300],
        where=name,
        remedy="install the version that requirements.lock names, or state the factors yourself",
        code="missing-package",
    )


@lru_cache(maxsize=1)
def _ecologits() -> tuple[dict[str, Intensity], dict[str, SourceWater]]:
    _needed()
    folder = _folder("ecologits")
    if folder is None:
        return {}, {}
    label, name = _label("ecologits"), "data/electricity_mixes.json"
    carbon: dict[str, Intensity] = {}
    water: dict[str, SourceWater] = {}
    try:
        for mix in _load("ecologits", folder, name)["electricity_mixes"]:
            zone = mix["name"]
            carbon[zone] = Intensity(
                zone,
                zone,
                _rounded(Fraction(mix["gwp"]) * _G_PER_KG * _UG_PER_G),
                f"EcoLogits electricity mixes, zone {zone} (gwp, from Our World in Data)",
                label,
                None,
            )
            area = "world, for want of the zone's" if _WORLD_WATER in (mix["warnings"] or ()) else zone
            water[zone] = SourceWater(
                _rounded(Fraction(mix["wue"]) * _UL_PER_L),
                f"EcoLogits electricity mixes, {area} (wue, from the World Resources Institute)",
                label,
            )
    except (KeyError, TypeError, ValueError) as error:
        raise _unexpected("ecologits", name, error) from None
    return carbon, water


@lru_cache(maxsize=1)
def _codecarbon() -> dict[str, Intensity]:
    _needed()
    folder = _folder("codecarbon")
    if folder is None:
        return {}
    found: dict[str, Intensity] = {}
    for read in (_countries, _states, _provinces, _bidding_zones, _google_regions):
        try:
            found |= {each.zone: each for each in read(folder, _label("codecarbon"))}
        except (KeyError, TypeError, ValueError) as error:
            raise _unexpected("codecarbon", read.__name__.strip("_"), error) from None
    return found


def _countries(folder: Path, label: str) -> list[Intensity]:
    data = _load("codecarbon", folder, "data/private_infra/global_energy_mix.json")
    source = "CodeCarbon global_energy_mix.json, {} (carbon_intensity, from Our World in Data)"
    return [
        Intensity(zone, zone, _grams(each["carbon_intensity"]), source.format(zone), label, each["year"])
        for zone, each in data.items()
        if each.get("carbon_intensity") is not None
    ]


def _states(folder: Path, label: str) -> list[Intensity]:
    data = _load("codecarbon", folder, "data/private_infra/2023/usa_emissions.json")
    cited = data["_source"]
    return [
        Intensity(
            f"US-{each['regionCode']}",
            "USA",
            _rounded(Fraction(each["emissions"]) * _G_PER_LB / 1000 * _UG_PER_G),  # lb/MWh
            f"{cited['name']} ({cited['field']}), generation alone, {each['regionCode']}",
            label,
            cited["year"],
        )
        for name, each in data.items()
        if not name.startswith("_") and len(each["regionCode"]) == 2
    ]


def _provinces(folder: Path, label: str) -> list[Intensity]:
    data = _load("codecarbon", folder, "data/private_infra/2023/china_provincial_emissions.json")
    source = "Ministry of Ecology and Environment of China, {}, CO2 alone, generation alone, {}"
    announcement = f"announcement {data['metadata']['announcement']}"
    return [
        Intensity(
            zone,
            "CHN",
            _grams(each["emission_factor"]),
            source.format(announcement, zone),
            label,
            each["year"],
        )
        for zone, each in data["data"].items()
    ]


def _bidding_zones(folder: Path, label: str) -> list[Intensity]:
    data = _load("codecarbon", folder, "data/private_infra/nordic_emissions.json")
    source = "ENTSO-E generation by type, factors of CodeCarbon, zone {}"
    return [
        Intensity(
            f"{zone[:2]}-{zone}",
            {"NO": "NOR", "SE": "SWE"}[zone[:2]],
            _grams(each["emission_factor"]),
            source.format(zone),
            label,
            each["year"],
        )
        for zone, each in data["data"].items()
        if zone != "FI"  # not from the same source, which is not stated
    ]


def _google_regions(folder: Path, label: str) -> list[Intensity]:
    name = "data/cloud/impact.csv"
    try:
        with (folder / name).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise _unexpected("codecarbon", name, error) from None
    return [
        Intensity(
            f"gcp:{row['region']}",
            row["countryIsoCode"],
            _grams(row["impact"]),
            f"Google Cloud region carbon data, {row['region']} ({row['source']})",
            label,
            None,
        )
        for row in rows
        if row["provider"] == "gcp"
    ]


def _grams(value: Decimal | int | str) -> int:
    return _rounded(Fraction(value) * _UG_PER_G)


def _rounded(value: Fraction) -> int:
    """Half up."""
    if value < 0:
        raise ValueError("a factor is negative")
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)
