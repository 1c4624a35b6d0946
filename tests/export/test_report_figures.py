"""Every figure of every report against a plain fold over the records, and against SQL over Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from msgspec import UNSET

from ledger.export.reports import KINDS, Report
from ledger.export.reports.document import Figure
from ledger.export.reports.make import kind_of
from tests.export.report_fold import (
    INPUTS,
    KG,
    KWH,
    LITRE,
    M3,
    MWH,
    NANO,
    PUE,
    Facility,
    Keep,
    Known,
    Ratio,
    Sum,
    T,
    World,
    field,
    make_world,
    provider,
    text,
    total,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from make_world(tmp_path_factory.mktemp("figures"))


OWN = {"keep": lambda r: provider(r) is UNSET, "where": "provider IS NULL"}
BOUGHT = {"keep": lambda r: provider(r) is not UNSET, "where": "provider IS NOT NULL"}
COUNTS = {name: Sum(name) for name in ("records", "input_tokens", "output_tokens")}


def method(name: str) -> dict[str, Any]:
    return {
        "keep": lambda r: r.energy is not UNSET and r.energy.method == name,
        "where": f"energy_method = '{name}'",
    }


def having(column: str, of: Keep) -> Sum:
    return Sum("records", keep=of, where=f"{column} IS NOT NULL")


FIGURES: dict[str, dict[str, Any]] = {
    "eu-ai-act-log": {
        **COUNTS,
        "events_lost": Known("9"),
        "corrected": Known("1"),
        "erased": Known("1"),
        "oldest_age_days": Known("30.000"),
        "with_quality": having("quality", lambda r: r.quality is not UNSET),
        "with_input_digest": having("input_digest", lambda r: r.input is not UNSET),
        "with_output_digest": having("output_digest", lambda r: r.output is not UNSET),
    },
    "eu-ai-act-gpai": {
        **COUNTS,
        "inference_energy": Sum("energy_uj", MWH, 9),
        **{
            f"inference_energy_{name}": Sum("energy_uj", MWH, 9, **method(name))
            for name in ("measured", "modelled", "estimated")
        },
        "energy_per_1k_tokens": Ratio(("energy_uj",), "tokens", 36 * 10**8, 1000),
        "energy_per_request": Ratio(("energy_uj",), "records", 36 * 10**8),
    },
    "sci": {
        **COUNTS,
        "e": Sum("energy_uj", KWH, 6),
        "e_times_i": Sum("carbon_ng", KG, 6),
        "m": Sum("embodied_ng", KG, 6),
        "sci_per_1k_tokens": Ratio(("carbon_ng", "embodied_ng"), "tokens", 10**6, 1000),
        "sci_per_request": Ratio(("carbon_ng", "embodied_ng"), "records", 10**6),
        "operational_per_1k_tokens": Ratio(("carbon_ng",), "tokens", 10**6, 1000),
        "operational_per_request": Ratio(("carbon_ng",), "records", 10**6),
    },
    "esrs-e1": {
        **COUNTS,
        "energy_own_it": Sum("energy_uj", MWH, 9, **OWN),
        "energy_own_facility": Facility(**OWN),
        "scope2_location": Sum("carbon_ng", T, 9, **OWN),
        "scope2_market": Sum("carbon_market_ng", T, 9, **OWN),
        "scope3_1": Sum("carbon_ng", T, 9, **BOUGHT),
        "scope3_1_embodied": Sum("embodied_ng", T, 9, **BOUGHT),
        "scope3_2_embodied": Sum("embodied_ng", T, 9, **OWN),
    },
    "eu-data-centres": {
        "e_it_recorded": Sum("energy_uj", KWH, 6),
        "pue_of_factors": Facility(mean=True),
        "water_recorded": Sum("water_nl", M3, 9),
    },
    "ghg-protocol": {
        "own_records": Sum("records", **OWN),
        "other_records": Sum("records", **BOUGHT),
        "own_energy_it": Sum("energy_uj", MWH, 9, **OWN),
        "own_energy_facility": Facility(**OWN),
        "scope2_location": Sum("carbon_ng", T, 9, **OWN),
        "scope2_market": Sum("carbon_market_ng", T, 9, **OWN),
        "scope3_use": Sum("carbon_ng", T, 9, **BOUGHT),
        "scope3_embodied": Sum("embodied_ng", T, 9, **BOUGHT),
        "scope3_2_embodied": Sum("embodied_ng", T, 9, **OWN),
    },
    "sb-253": {
        "records": Sum("records"),
        "scope2_location": Sum("carbon_ng", T, 9, **OWN),
        "scope2_market": Sum("carbon_market_ng", T, 9, **OWN),
        "scope3_1": Sum("carbon_ng", T, 9, **BOUGHT),
    },
    "customer-statement": {
        **COUNTS,
        "cached_input_tokens": Sum("cached_input_tokens"),
        "reasoning_tokens": Sum("reasoning_tokens"),
        "energy": Sum("energy_uj", KWH, 6),
        "carbon_location": Sum("carbon_ng", KG, 6),
        "carbon_market": Sum("carbon_market_ng", KG, 6),
        "carbon_embodied": Sum("embodied_ng", KG, 6),
        "water": Sum("water_nl", LITRE, 6),
        "carbon_location_per_1k_tokens": Ratio(("carbon_ng",), "tokens", 10**6, 1000),
        "carbon_location_per_request": Ratio(("carbon_ng",), "records", 10**6),
        **{
            f"cost_{code.lower()}": Sum(
                "cost_nano", NANO, 9,
                keep=lambda r, code=code: r.currency == code,  # type: ignore[misc]
                where=f"currency = '{code}'",
            )
            for code in ("EUR", "USD")
        },
    },
    "incident": {
        "input_tokens": Sum("input_tokens"),
        "output_tokens": Sum("output_tokens"),
        "duration": Known("900000"),
        "energy": Sum("energy_uj", KWH, 6),
        "carbon_location": Sum("carbon_ng", KG, 6),
    },
}  # fmt: skip
"""Every figure that follows from the log alone."""


def scope_of(kind: str, world: World) -> tuple[dict[str, tuple[str, ...]], str, Keep]:
    """The scope for a report, as such, in SQL and in Python."""
    if kind == "customer-statement":
        return {"tenant": ("customer-3",)}, "tenant = 'customer-3'", lambda r: r.tenant == "customer-3"
    if kind == "incident":
        record = next(r for _, r in world.records if r.carbon_ng == 5)
        return {"record": (record.id,)}, f"id = '{record.id}'", lambda r: r.id == record.id
    return {}, "true", lambda _: True


def of_the_log(report: Report) -> dict[str, Figure]:
    return {
        figure.name: figure
        for section in report.sections
        for figure in section.figures
        if figure.basis == "log" and figure.value is not UNSET
    }


@pytest.mark.parametrize("kind", FIGURES)
def test_every_figure_of_the_log_equals_a_fold_and_sql(world: World, kind: str) -> None:
    where, sql, keep = scope_of(kind, world)
    found = of_the_log(world.report(kind, where))
    assert set(found) == set(FIGURES[kind])
    for name, each in FIGURES[kind].items():
        folded, queried = each.both(world, sql, keep)
        assert (found[name].value, folded) == (queried, queried), name


def test_every_kind_is_here() -> None:
    assert set(FIGURES) == set(KINDS)


def test_ranges_are_sums_of_the_records_own(world: World) -> None:
    """A record without a range is known as well as its figure."""
    found = of_the_log(world.report("sci"))
    for name, column, low, high, divisor in (
        ("e", "energy_uj", "energy_low_uj", "energy_high_uj", KWH),
        ("e_times_i", "carbon_ng", "carbon_low_ng", "carbon_high_ng", KG),
    ):
        for bound, stated in ((low, found[name].low), (high, found[name].high)):
            values = [(field(r, column), field(r, bound)) for _, r in world.records]
            summed = sum(own if value is None else value for own, value in values if own is not None)
            queried = world.sql(f"sum(coalesce({bound}, {column}))::VARCHAR", "true")
            assert stated == text(Fraction(summed, divisor), 6) == text(Fraction(int(queried), divisor), 6)


# --- with the inputs file ----------------------------------------------------------------------------------


def own(record: Any) -> bool:
    """With ``own_providers`` of the inputs file."""
    return provider(record) in (UNSET, "aws")


def stated(name: str) -> Fraction:
    return Fraction(INPUTS[name])


def test_figures_with_inputs_add_up(world: World) -> None:
    records = world.records
    facility = sum(
        PUE[r.factors] * r.energy.energy_uj for _, r in records if own(r) and r.energy is not UNSET
    ) / Fraction(MWH)
    scope_2 = {
        "location": total(records, "carbon_ng", own) / T,
        "market": total(records, "carbon_market_ng", own) / T,
    }
    bought = total(records, "carbon_ng", lambda r: not own(r)) / T
    it_kwh = total(records, "energy_uj", lambda _: True) / KWH
    whole = {
        method: stated("scope1_t")
        + scope_2[method]
        + stated(f"other_scope2_{method}_t")
        + bought
        + stated("other_scope3_t")
        for method in scope_2
    }
    expected: dict[str, dict[str, tuple[Fraction, int]]] = {
        "esrs-e1": {
            "energy_fossil": (facility / 5, 9),
            "energy_nuclear": (facility / 8, 9),
            "energy_renewable": (facility * Fraction("0.675"), 9),
            "energy_share_of_total": (100 * facility / stated("total_energy_mwh"), 6),
            "scope2_location_undertaking": (scope_2["location"] + 100, 9),
            "scope2_market_undertaking": (scope_2["market"] + 90, 9),
            "total_location": (whole["location"], 9),
            "total_market": (whole["market"], 9),
            "intensity_location": (whole["location"] / 7, 6),
            "intensity_market": (whole["market"] / 7, 6),
        },
        "sb-253": {
            "scope2_location_entity": (scope_2["location"] + 100, 9),
            "scope2_market_entity": (scope_2["market"] + 90, 9),
            "scope3_entity": (bought + stated("other_scope3_t"), 9),
        },
        "eu-data-centres": {
            "pue": (Fraction(5, 4), 6),
            "wue": (Fraction(400 * 1000, 10**6), 6),
            "erf": (Fraction(300_000, 1_250_000), 6),
            "ref": (Fraction(900_000, 1_250_000), 6),
        },
    }
    for kind, figures in expected.items():
        found = {f.name: f for section in world.report(kind, inputs=True).sections for f in section.figures}
        for name, (value, places) in figures.items():
            assert found[name].value == text(value, places), name
            assert found[name].basis != "log"
    one = world.report("eu-data-centres", {"site": ("Karlsruhe 1",)}, inputs=True)
    (share,) = [f for s in one.sections for f in s.figures if f.name == "e_it_recorded_share"]
    there = int(world.sql("sum(energy_uj)::VARCHAR", "site = 'Karlsruhe 1'"))
    assert share.value == text(100 * Fraction(there, KWH) / stated("e_it_kwh"), 6)
    assert it_kwh > Fraction(there, KWH)
    model = world.report("eu-ai-act-gpai", {"model": ("Qwen3-32B",)}, inputs=True)
    (energy,) = [f for s in model.sections for f in s.figures if f.name == "energy_of_model"]
    used = int(world.sql("sum(energy_uj)::VARCHAR", "model = 'Qwen3-32B'"))
    assert energy.value == text(12 + Fraction(used, MWH), 9)


@pytest.mark.parametrize("kind", KINDS)
def test_without_inputs_every_needed_one_is_a_gap(world: World, kind: str) -> None:
    """And a report asks for exactly what its reference lists."""
    asked = kind_of(kind).inputs
    where, *_ = scope_of(kind, world)
    report = world.report(kind, where)
    gaps = {gap.removeprefix("not stated: ") for gap in report.gaps if gap.startswith("not stated: ")}
    assert gaps == {each.what for each in asked.values() if each.needed}
    assert not report.inputs
    for section in report.sections:
        for figure in section.figures:
            assert figure.basis == "log" or figure.gap is not UNSET, figure.name
    filled = world.report(kind, where, inputs=True)
    assert set(filled.inputs) == set(asked) & set(INPUTS)
    assert filled.inputs_stated_by == "controlling"


def test_the_scope_3_category_is_1_or_11(world: World, tmp_path: Any) -> None:
    import json

    from ledger.core.errors import InvalidError
    from ledger.export.reports import make_report

    def made(category: str) -> Report:
        values = {"scope3_category": {"value": category, "source": "test"}}
        file = {"format": "tallystick-inputs", "version": 1, "stated_by": "x", "values": values}
        (tmp_path / "inputs.json").write_text(json.dumps(file))
        return make_report("ghg-protocol", world.folder, subject="X", inputs=tmp_path / "inputs.json")

    assert any("use of sold products" in section.title for section in made("11").sections)
    with pytest.raises(InvalidError, match="neither 1 nor 11"):
        made("3")
