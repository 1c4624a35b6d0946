"""Factor sets for a site, against the files of the packages that they come from, read another way."""

from __future__ import annotations

import json
import sys
from decimal import ROUND_HALF_UP, Decimal
from importlib.metadata import files, version
from pathlib import Path

import pytest
from msgspec import UNSET

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.records import FactorSet, decode_factor_set, document_digest
from ledger.energy import grid_data
from ledger.energy.accelerators import ACCELERATORS
from ledger.energy.cloud_regions import _REGIONS
from ledger.energy.embodied import EMBODIED, HOST_SHARE, Making, embodied_rate
from ledger.energy.factor_sets import AVERAGE_PUE, Stated, factor_set_for, resolve_zone

pytest.importorskip("ecologits")


def shipped(package: str, name: str) -> Path:
    found = [each for each in files(package) or () if str(each).endswith(name)]
    return Path(str(found[0].locate()))


def ug(grams: object) -> int:
    return int((Decimal(str(grams)) * 10**6).quantize(Decimal(1), ROUND_HALF_UP))


def source_of(factors: FactorSet, factor: str) -> object:
    return next(each for each in factors.sources if each.factor == factor)


def test_a_country_has_the_newest_dated_figure_and_the_range_of_all_packages() -> None:
    mixes = json.loads(shipped("ecologits", "electricity_mixes.json").read_text())["electricity_mixes"]
    undated = {mix["name"]: mix for mix in mixes}
    dated = json.loads(shipped("codecarbon", "global_energy_mix.json").read_text())
    for zone in ("FRA", "USA", "SWE", "IND", "AUS", "IRL"):
        made = factor_set_for(zone)
        figures = [ug(undated[zone]["gwp"] * 1000), ug(dated[zone]["carbon_intensity"])]
        assert made.intensity_ug_per_kwh == figures[1]
        assert made.intensity_low_ug_per_kwh == min(figures)
        assert made.intensity_high_ug_per_kwh == max(figures)
        assert made.source_water_ul_per_kwh == ug(undated[zone]["wue"])
        cited = source_of(made, "intensity_ug_per_kwh")
        assert cited.year == dated[zone]["year"]
        assert cited.version == version("codecarbon")
        assert "codecarbon" in cited.source


@pytest.mark.parametrize(
    ("zone", "grams", "year"),
    [
        ("SE-SE3", 27.0, 2025),
        ("CN-XJ", 602.1, 2023),
        ("gcp:europe-west1", 122, None),
        ("US-VT", 52.239 * 453.59237 / 1000, 2023),
    ],
)
def test_parts_of_countries(zone: str, grams: float, year: int | None) -> None:
    """The figures of these are copied here by hand from the files of codecarbon 3.3.2."""
    made = factor_set_for(zone)
    assert abs(made.intensity_ug_per_kwh - grams * 10**6) < 1
    assert made.intensity_low_ug_per_kwh is UNSET
    assert source_of(made, "intensity_ug_per_kwh").year == (UNSET if year is None else year)
    assert made.source_water_ul_per_kwh is not UNSET, "the country's water is known"


def test_every_factor_is_cited_and_every_set_decodes() -> None:
    for zone in grid_data.zones():
        made = factor_set_for(zone)
        assert decode_factor_set(encode_canonical(made)) == made
        cited = {each.factor for each in made.sources}
        stated = {
            name
            for name in made.__struct_fields__
            if name.endswith(("_kwh", "_per_s", "_milli")) and getattr(made, name) is not UNSET
        }
        assert cited == stated
        assert all(each.version is not UNSET for each in made.sources)


def test_every_cloud_region_has_a_zone_with_figures() -> None:
    known = set(grid_data.zones())
    for cloud, regions in _REGIONS.items():
        assert len(regions) > 30
        for region, zone in regions.items():
            assert zone in known
            assert resolve_zone(f"{cloud}:{region}") == zone


def test_what_the_operator_states_wins_and_is_cited() -> None:
    made = factor_set_for(
        "FRA",
        pue_milli=Stated(1120, "our meter readings", year=2025),
        market_ug_per_kwh=Stated(0, "guarantees of origin, supplier X", year=2025),
        water_ul_per_kwh=Stated(180_000, "our water bill"),
        embodied_ng_per_s=embodied_rate(EMBODIED["H100"], boards=4),
    )
    assert (made.pue_milli, made.market_ug_per_kwh, made.water_ul_per_kwh) == (1120, 0, 180_000)
    assert source_of(made, "market_ug_per_kwh").source == "guarantees of origin, supplier X"
    assert made.region == "FRA"
    assert document_digest(made) != document_digest(factor_set_for("FRA"))
    own = factor_set_for("my-island", intensity_ug_per_kwh=Stated(12_000_000, "our turbine"))
    assert own.intensity_ug_per_kwh == 12_000_000
    assert own.pue_milli == AVERAGE_PUE.value


@pytest.mark.parametrize("zone", ["", "XYZ", "aws:nowhere-1", ":", "gcp:", "moon:base-1", "FRA\n"])
def test_unknown_zones_are_refused(zone: str) -> None:
    with pytest.raises(InvalidError) as caught:
        factor_set_for(zone)
    assert caught.value.code == "unknown-zone"


@pytest.mark.parametrize("stated", [{"pue_milli": Stated(112, "x")}, {"water_ul_per_kwh": Stated(-1, "x")}])
def test_impossible_factors_are_refused(stated: dict[str, Stated]) -> None:
    with pytest.raises(InvalidError) as caught:
        factor_set_for("FRA", **stated)
    assert caught.value.code == "bad-factor"


def test_parts_fall_back_to_the_country() -> None:
    assert resolve_zone("us-zz") == "USA"
    assert resolve_zone("fra") == "FRA"


def test_no_package_is_imported() -> None:
    before = {name for name in sys.modules if name.startswith(("codecarbon", "pandas"))}
    grid_data._codecarbon.cache_clear()
    grid_data.zones()
    assert {name for name in sys.modules if name.startswith(("codecarbon", "pandas"))} == before


@pytest.fixture
def fresh() -> object:
    for each in (grid_data._codecarbon, grid_data._ecologits):
        each.cache_clear()
    yield
    for each in (grid_data._codecarbon, grid_data._ecologits):
        each.cache_clear()


def test_without_a_package_it_says_which_extra(monkeypatch: pytest.MonkeyPatch, fresh: object) -> None:
    monkeypatch.setattr(grid_data, "_folder", lambda package: None)
    with pytest.raises(UnavailableError) as caught:
        factor_set_for("FRA")
    assert caught.value.code == "missing-package"
    assert "tallystick[grid]" in str(caught.value.remedy)
    stated = factor_set_for("FRA", intensity_ug_per_kwh=Stated(1, "x"))
    assert stated.source_water_ul_per_kwh is UNSET


def test_with_one_package_alone(monkeypatch: pytest.MonkeyPatch, fresh: object) -> None:
    real = grid_data._folder
    monkeypatch.setattr(
        grid_data, "_folder", lambda package: real(package) if package == "ecologits" else None
    )
    made = factor_set_for("FRA")
    assert made.intensity_low_ug_per_kwh is UNSET
    assert made.version == f"ecologits-{version('ecologits')}"


@pytest.mark.parametrize(
    "text", ["{", '{"electricity_mixes": [{"name": "FRA"}]}', '{"electricity_mixes": [1]}']
)
def test_a_package_of_another_shape_is_named(
    monkeypatch: pytest.MonkeyPatch, fresh: object, tmp_path: Path, text: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "electricity_mixes.json").write_text(text)
    monkeypatch.setattr(grid_data, "_folder", lambda package: tmp_path if package == "ecologits" else None)
    with pytest.raises(UnavailableError) as caught:
        factor_set_for("FRA")
    assert "ecologits" in str(caught.value)


def test_the_embodied_rate_by_hand() -> None:
    """315.36 kg over one year of which half is active: 20 g for each active thousand seconds."""
    made = embodied_rate(Making(315_360, "x", 2025), host=None, lifetime_years=1, active_share_milli=500)
    assert made.value == 20_000_000
    all_of_it = made.value * 365 * 24 * 3600 // 2
    assert all_of_it == 315_360 * 10**9


def test_the_embodied_table_fits_the_accelerators() -> None:
    assert set(EMBODIED) <= {part.name for part in ACCELERATORS}
    from ecologits.impacts.llm import SERVER_EMBODIED_IMPACT_GWP, SERVER_GPUS

    assert HOST_SHARE.g == SERVER_EMBODIED_IMPACT_GWP * 1000 // SERVER_GPUS
    for bad in ({"boards": 0}, {"lifetime_years": 0}, {"active_share_milli": 1001}):
        with pytest.raises(InvalidError):
            embodied_rate(EMBODIED["H100"], **bad)
