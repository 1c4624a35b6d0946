"""Every figure of every report against a plain fold over the records, and against SQL over Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
from msgspec import UNSET

from ledger.export.comparison import compare
from ledger.export.query import Question, ask
from ledger.export.reports import KINDS, Report
from ledger.export.reports.document import Figure
from ledger.export.reports.make import kind_of
from tests.export.conftest import CREATED_US, DAY_US
from tests.export.report_fold import (
    BY_DIGEST,
    INPUTS,
    KG,
    KWH,
    LITRE,
    M3,
    MWH,
    NANO,
    Facility,
    Keep,
    Of,
    Ratio,
    Sum,
    T,
    World,
    make_world,
    provider,
    text,
)
from tests.export.report_ledger import DAYS, IDLE_UJ


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


CORRECTED = """
SELECT count(*) FROM statements c JOIN truth r ON r.id = c.payload ->> '$.record' AND r.issuer = c.issuer
    AND sha256('\\x00'::BLOB || r.record) = c.payload ->> '$.record_hash'
WHERE c.kind = 'correction'"""
"""Corrections that hold: by the record's own issuer, and of its very bytes."""

FIGURES: dict[str, dict[str, Any]] = {
    "eu-ai-act-log": {
        **COUNTS,
        "events_lost": Of(
            lambda _: sum(day % 3 for day in range(DAYS)),  # what each day's heartbeat says
            "SELECT sum((payload ->> '$.dropped')::BIGINT) FROM statements",
        ),
        "corrected": Of(lambda records: sum(r.carbon_ng == 5 for r in records), CORRECTED),
        "erased": Of(
            lambda _: 1,
            "SELECT sum(json_array_length(payload, '$.positions')) FROM statements WHERE kind = 'erasure'",
        ),
        "oldest_age_days": Of(
            lambda records: CREATED_US - min(r.started_us for r in records),
            f"SELECT {CREATED_US} - min(epoch_us(started_at)) FROM truth WHERE {{where}}",
            DAY_US,
            3,
        ),
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
        "e_unattributed": Of(
            lambda _: sum(IDLE_UJ + day for day in range(DAYS)),
            "SELECT sum((payload ->> '$.unattributed_uj')::BIGINT) FROM statements",
            KWH,
            6,
        ),
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
        "duration": Of(
            lambda records: records[0].ended_us - records[0].started_us,
            "SELECT epoch_us(ended_at) - epoch_us(started_at) FROM truth WHERE {where}",
            1000,
            3,
        ),
        "energy": Sum("energy_uj", KWH // 1000, 6),
        "carbon_location": Sum("carbon_ng", KG // 10**6, 6),
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
        assert (found[name].low is not UNSET, found[name].high is not UNSET) == (each.ranged,) * 2, name
        for bound, end in enumerate((found[name].low, found[name].high) if each.ranged else ()):
            folded, queried = each.both(world, sql, keep, bound)
            assert (end, folded) == (queried, queried), (name, bound)


def test_every_kind_is_here() -> None:
    assert set(FIGURES) == set(KINDS)


# --- with the inputs file ----------------------------------------------------------------------------------


def own(record: Any) -> bool:
    """With ``own_providers`` of the inputs file."""
    return provider(record) in (UNSET, "aws")


def stated(name: str) -> Fraction:
    return Fraction(INPUTS[name])


OWN_SQL = "(provider IS NULL OR provider = 'aws')"
ALL: Keep = lambda _: True  # noqa: E731


@dataclass(frozen=True)
class Mixed:
    """A figure of the log and the inputs file: ``stated + times * (log's figure)``, or over ``below``."""

    log: tuple[Any, ...] = ()
    stated: tuple[str, ...] = ()
    times: Fraction = Fraction(1)
    below: str = ""
    places: int = 9
    ranged: bool = False

    def both(self, world: World, where: str, keep: Keep, bound: int | None = None) -> tuple[str, str]:
        """In Python, and in SQL."""
        parts = [
            replace(each, places=60).both(world, where, keep, bound if each.ranged else None)
            for each in self.log
        ]
        made = []
        for sums in zip(*parts, strict=True) if parts else ((), ()):
            value = self.times * sum(map(Fraction, sums)) + sum(map(stated, self.stated))
            made.append(text(value / (stated(self.below) if self.below else 1), self.places))
        return made[0], made[1]


OURS, THEIRS = (
    {"keep": own, "where": OWN_SQL},
    {"keep": lambda r: not own(r), "where": f"NOT {OWN_SQL}"},
)
SCOPE_2 = {
    "location": Sum("carbon_ng", T, 9, **OURS),
    "market": Sum("carbon_market_ng", T, 9, **OURS),
}
BOUGHT_3 = Sum("carbon_ng", T, 9, **THEIRS)


def whole(method: str, **more: Any) -> Mixed:
    """All three Scopes."""
    stated = ("scope1_t", f"other_scope2_{method}_t", "other_scope3_t")
    return Mixed((SCOPE_2[method], BOUGHT_3), stated, **more)


def share(percent: str) -> Mixed:
    """A percentage of the energy with overhead."""
    return Mixed((Facility(**OURS),), times=Fraction(percent) / 100, ranged=True)


MIXED: dict[str, tuple[dict[str, tuple[str, ...]], str, Keep, dict[str, Mixed]]] = {
    "eu-ai-act-log": ({}, "true", ALL, {}),
    "eu-ai-act-gpai": (
        {"model": ("Qwen3-32B",)},
        "model = 'Qwen3-32B'",
        lambda r: BY_DIGEST[r.deployment].model == "Qwen3-32B",
        {"energy_of_model": Mixed((Sum("energy_uj", MWH, 9),), ("training_energy_mwh",), ranged=True)},
    ),
    "sci": ({}, "true", ALL, {}),
    "esrs-e1": (
        {},
        "true",
        ALL,
        {
            "energy_fossil": share("20"),
            "energy_nuclear": share("12.5"),
            "energy_renewable": share("67.5"),
            "energy_share_of_total": Mixed(
                (Facility(**OURS),), times=Fraction(100), below="total_energy_mwh", places=6, ranged=True
            ),
            "scope2_location_undertaking": Mixed(
                (SCOPE_2["location"],), ("other_scope2_location_t",), ranged=True
            ),
            "scope2_market_undertaking": Mixed((SCOPE_2["market"],), ("other_scope2_market_t",)),
            "total_location": whole("location", ranged=True),
            "total_market": whole("market", ranged=True),  # what was bought has one
            "intensity_location": whole("location", below="net_revenue_million_eur", places=6, ranged=True),
            "intensity_market": whole("market", below="net_revenue_million_eur", places=6, ranged=True),
        },
    ),
    "eu-data-centres": (
        {"site": ("Karlsruhe 1",)},
        "site = 'Karlsruhe 1'",
        lambda r: BY_DIGEST[r.deployment].site == "Karlsruhe 1",
        {
            "e_it_recorded_share": Mixed(
                (Sum("energy_uj", KWH, 6),), times=Fraction(100), below="e_it_kwh", places=6, ranged=True
            ),
            "pue": Mixed(stated=("e_dc_kwh",), below="e_it_kwh", places=6),
            "erf": Mixed(stated=("e_reuse_kwh",), below="e_dc_kwh", places=6),
            "ref": Mixed(stated=("e_res_tot_kwh",), below="e_dc_kwh", places=6),
            "wue": Mixed(stated=("w_in_m3",) * 1000, below="e_it_kwh", places=6),
            "e_res_sum": Mixed(stated=("e_res_goo_kwh", "e_res_ppa_kwh", "e_res_os_kwh"), places=6),
        },
    ),
    "ghg-protocol": ({}, "true", ALL, {}),
    "sb-253": (
        {},
        "true",
        ALL,
        {
            "scope2_location_entity": Mixed(
                (SCOPE_2["location"],), ("other_scope2_location_t",), ranged=True
            ),
            "scope2_market_entity": Mixed((SCOPE_2["market"],), ("other_scope2_market_t",)),
            "scope3_entity": Mixed((BOUGHT_3,), ("other_scope3_t",), ranged=True),
        },
    ),
    "customer-statement": ({"tenant": ("customer-3",)}, "tenant = 'customer-3'", ALL, {}),
}
"""Every figure that needs the inputs file and is not just repeated from it, with the scope."""


@pytest.mark.parametrize("kind", MIXED)
def test_every_figure_with_inputs_equals_a_fold_and_sql(world: World, kind: str) -> None:
    where, sql, keep, expected = MIXED[kind]
    figures = [f for section in world.report(kind, where, inputs=True).sections for f in section.figures]
    found = {f.name: f for f in figures if f.basis != "log" and f.value is not UNSET}
    repeated = {name for name in found if name in INPUTS}
    for name in repeated:
        assert Fraction(str(found[name].value)) == stated(name)
    assert set(found) - repeated == set(expected)
    for name, each in expected.items():
        folded, queried = each.both(world, sql, keep)
        assert (found[name].value, folded) == (queried, queried), name
        if each.ranged:
            for bound, end in enumerate((found[name].low, found[name].high)):
                folded, queried = each.both(world, sql, keep, bound)
                assert (end, folded) == (queried, queried), (name, bound)
        elif found[name].low is not UNSET:  # of a part without ranges
            assert found[name].low == found[name].high == found[name].value


def test_costs_of_several_currencies_are_not_added(world: World) -> None:
    (whole,) = ask(world.folder, Question())
    assert whole["cost_currency"] is None
    assert "cost_nano" not in whole
    for row in ask(world.folder, Question(by=("currency",))):
        assert row.get("cost_currency") == row["currency"]
        assert ("cost_nano" in row) is (row["currency"] is not None)


def test_costs_of_two_currencies_are_not_compared(world: World) -> None:
    def of(provider: str) -> Question:
        return Question(where={"provider": [provider]})

    found = compare(world.folder, of("openai"), of("aws"))
    assert not [each for each in found.figures if each.name.startswith("cost")]
    assert "costs are in USD on side a and in EUR on side b, and not compared" in found.notes
    (cost,) = [f for f in compare(world.folder, of("aws"), of("aws")).figures if f.name.startswith("cost")]
    assert cost.unit == "billionths of EUR per 1,000 tokens"
    mixed = compare(world.folder, Question(), of("aws"))
    assert "side a: costs are in several currencies, and not compared" in mixed.notes


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
