"""``tallystick factors``: what it shows is what the library gives, and what it writes can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from ledger.energy.factor_sets import Stated, factor_set_for
from ledger.energy.grid_data import zones
from ledger.energy.site import read_factor_set

pytest.importorskip("ecologits")


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["factors", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_list() -> None:
    code, out, _ = run("list", "--json")
    assert code == 0
    listed = json.loads(out)["zones"]
    assert [each["zone"] for each in listed] == list(zones())
    france = next(each for each in listed if each["zone"] == "FRA")
    assert france["intensity_ug_per_kwh"] == factor_set_for("FRA").intensity_ug_per_kwh
    assert france["year"] > 2020
    code, out, _ = run("list")
    assert code == 0
    assert "FRA" in out


def test_show() -> None:
    code, out, _ = run("show", "FRA")
    assert code == 0
    for word in ("Uptime Institute", "Our World in Data", "l/kWh", "1.56", "codecarbon", "grid-FRA"):
        assert word in out


def test_what_it_writes_can_be_named_in_the_environment(tmp_path: Path) -> None:
    code, out, _ = run("show", "aws:eu-north-1", "--pue", "1.12", "--pue-source", "our meters", "--json")
    assert code == 0
    path = tmp_path / "site.json"
    path.write_text(out)
    assert read_factor_set(path) == factor_set_for("aws:eu-north-1", pue_milli=Stated(1120, "our meters"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "nowhere"),
        ("show", "FRA", "--pue", "1.12"),
        ("show", "FRA", "--pue", "0.9", "--pue-source", "x"),
        ("show", "FRA", "--pue", "much", "--pue-source", "x"),
        ("show", "FRA", "--pue", "NaN", "--pue-source", "x"),
    ],
)
def test_what_is_not_usable_is_explained(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["factors", *arguments, "--json"])
    assert done.exit_code == 2, done.output
    assert json.loads(done.stdout)["error"]["remedy"]
