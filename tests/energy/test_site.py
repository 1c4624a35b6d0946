"""Which factors the environment asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError
from ledger.energy.factor_sets import factor_set_for
from ledger.energy.factors import default_factor_set
from ledger.energy.live_intensity import LiveFactors
from ledger.energy.site import VARIABLES, factors_from_environment

pytest.importorskip("ecologits")
DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_nothing_asked_nothing_given() -> None:
    assert factors_from_environment({}) is None
    assert factors_from_environment({"TALLYSTICK_FACTORS": "  "}) is None


def test_a_zone_and_a_file(tmp_path: Path) -> None:
    assert factors_from_environment({"TALLYSTICK_FACTORS": "FRA"}) == factor_set_for("FRA")
    path = tmp_path / "site.json"
    path.write_text(json.dumps(json.loads(encode_canonical(factor_set_for("SWE"))), indent=2))
    assert factors_from_environment({"TALLYSTICK_FACTORS": str(path)}) == factor_set_for("SWE")


def test_live_intensity_over_a_static_set(tmp_path: Path) -> None:
    keys = {
        "TALLYSTICK_ELECTRICITY_MAPS_KEY": "k",
        "TALLYSTICK_ELECTRICITY_MAPS_ZONE": "FR",
    }
    live = factors_from_environment({**keys, "TALLYSTICK_FACTORS": "FRA"}, cache=tmp_path)
    assert isinstance(live, LiveFactors)
    assert live.base == factor_set_for("FRA")
    bare = factors_from_environment(keys)
    assert isinstance(bare, LiveFactors)
    assert bare.base == default_factor_set()
    watt = {
        "TALLYSTICK_WATTTIME_USER": "u",
        "TALLYSTICK_WATTTIME_PASSWORD": "p",
        "TALLYSTICK_WATTTIME_REGION": "CAISO_NORTH",
    }
    assert isinstance(factors_from_environment(watt), LiveFactors)


@pytest.mark.parametrize(
    "environment",
    [
        {"TALLYSTICK_FACTORS": "nowhere"},
        {"TALLYSTICK_FACTORS": "/nowhere/at/all.json"},
        {"TALLYSTICK_ELECTRICITY_MAPS_KEY": "k"},
        {"TALLYSTICK_WATTTIME_USER": "u", "TALLYSTICK_WATTTIME_REGION": "X"},
    ],
)
def test_what_is_not_usable_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidError) as caught:
        factors_from_environment(environment)
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": "x"}', " " * 70_000])
def test_a_file_that_is_no_factor_set(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(InvalidError) as caught:
        factors_from_environment({"TALLYSTICK_FACTORS": str(path)})
    assert str(path) in str(caught.value.where)


def test_every_variable_is_documented() -> None:
    settings = (DOCS / "reference" / "settings.md").read_text()
    for name in VARIABLES:
        assert f"`{name}`" in settings
