"""California SB 253, as amended by SB 219: Health and Safety Code section 38532, Scopes 1, 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping

from ledger.export.reports import figures as fig
from ledger.export.reports.boundary import OWN_PROVIDERS, RULE, Boundary, split
from ledger.export.reports.document import Figure, Section
from ledger.export.reports.facts import Facts
from ledger.export.reports.ghg_protocol import factor_table
from ledger.export.reports.inputs import Asked, Inputs
from ledger.export.reports.tables import breakdown, rows_of, stated_words, words_of

__all__ = ["INPUTS", "STANDARD", "TITLE", "build"]

TITLE = "California climate disclosure: Scopes 1, 2 and 3"
STANDARD = (
    "California Health and Safety Code section 38532 (Climate Corporate Data Accountability Act, SB 253 of "
    "2023, amended by SB 219 of 2024)"
)
_CODE = "Health and Safety Code section 38532"
_T = "t CO2e"
_SCOPE_1, _SCOPE_2, _SCOPE_3 = (f"{_CODE}(b)({n})" for n in (3, 4, 5))
INPUTS: Mapping[str, Asked] = {
    **OWN_PROVIDERS,
    "reporting_entity": Asked(
        "the reporting entity's legal name, other names used and jurisdiction",
        None,
        f"{_CODE}(b)(2) and (c)(2)(C)",
    ),
    "fiscal_year": Asked("the fiscal year reported on", None, f"{_CODE}(c)(2)(A)"),
    "consolidation_approach": Asked(
        "the consolidation approach: equity share, financial control or operational control",
        None,
        "GHG Protocol Corporate Standard, chapter 3",
    ),
    "assurance": Asked("the assurance provider and its level of assurance", None, f"{_CODE}(c)(2)(F)"),
    "scope1_t": Asked("the entity's Scope 1 emissions", _T, _SCOPE_1),
    "other_scope2_location_t": Asked(
        "location-based Scope 2 emissions besides the recorded generations", _T, _SCOPE_2
    ),
    "other_scope2_market_t": Asked(
        "market-based Scope 2 emissions besides the recorded generations", _T, _SCOPE_2
    ),
    "other_scope3_t": Asked("Scope 3 emissions besides those of the bought generations' use", _T, _SCOPE_3),
}


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections."""
    sides = split(facts, inputs)
    words = {name: asked for name, asked in INPUTS.items() if asked.unit is None}
    return (
        Section(
            title="Reporting entity",
            reference=_CODE,
            text=(
                "Emissions follow the GHG Protocol Corporate Standard, its Scope 2 Guidance and the Scope 3 "
                "Standard, as the section requires, wherever in the world they arise.",
                RULE,
                "The recorded generations are a part of the entity's emissions; the rest is as the inputs "
                "file states it. Scopes 1 and 2 are due from 2026 (by 10 August in the first year, by "
                "the Air Resources Board's regulation), Scope 3 from 2027.",
            ),
            figures=(fig.count(facts.total(), "records", "Recorded generations", "requests"),),
            tables=(stated_words(inputs, words, name="stated", title="Statements of the entity"),),
        ),
        Section(
            title="Scope 1",
            reference=_SCOPE_1,
            text=("The log records no combustion of fuels: Scope 1 is as stated.",),
            figures=(fig.asked(inputs, "scope1_t", INPUTS["scope1_t"]),),
        ),
        _scope_2(facts, inputs, sides),
        _scope_3(inputs, sides),
        Section(
            title="Factors and quality of data",
            reference=f"{_CODE}(c)(2)",
            tables=(
                factor_table(facts),
                breakdown(
                    facts, "method", name="by_method", title="How the energy is known", heading="Method",
                    measures=("records", fig.ENERGY_MWH, fig.CARBON_T), none="unknown",
                ),
            ),
        ),
    )  # fmt: skip


def _scope_2(facts: Facts, inputs: Inputs, sides: Boundary) -> Section:
    own = "the records of own operation"
    figures: list[Figure] = []
    for method, quantity in (("location", fig.CARBON_T), ("market", fig.CARBON_MARKET_T)):
        other = f"other_scope2_{method}_t"
        figures.append(
            sides.total(
                "own", quantity, name=f"scope2_{method}", over=own, reference=_SCOPE_2,
                label=f"Scope 2 of own generations, {method}-based",
            )
        )  # fmt: skip
        figures.append(
            fig.added(
                f"scope2_{method}_entity",
                f"Scope 2 of the entity, {method}-based",
                _T,
                {
                    f"scope2_{method}": sides.part("own", quantity),
                    f"inputs: {other}": inputs.number(other, INPUTS[other].what),
                },
                places=quantity.places,
                reference=_SCOPE_2,
            )
        )
    return Section(
        title="Scope 2",
        reference=f"{_SCOPE_2}; GHG Protocol Scope 2 Guidance",
        figures=tuple(figures),
        tables=(
            rows_of(
                [row for row in facts.rows("site", "provider") if sides.is_own(row["provider"])],
                lambda row: words_of(row["site"], row["provider"], none="site not stated"),
                name="own_by_site", title="Own generations by site", heading="Site",
                measures=("records", fig.ENERGY_MWH, fig.CARBON_T, fig.CARBON_MARKET_T),
                chart="carbon_location",
            ),
        ),
    )  # fmt: skip


def _scope_3(inputs: Inputs, sides: Boundary) -> Section:
    what = INPUTS["other_scope3_t"].what
    return Section(
        title="Scope 3",
        reference=f"{_SCOPE_3}; GHG Protocol Scope 3 Standard, table 5.4",
        text=("Bought generations are category 1, purchased goods and services.",),
        figures=(
            sides.total(
                "bought", fig.CARBON_T, name="scope3_1", over="the records of bought generations",
                label="Category 1: use of bought generations", reference=_SCOPE_3,
            ),
            fig.added(
                "scope3_entity", "Scope 3 of the entity", _T,
                {
                    "scope3_1": sides.part("bought", fig.CARBON_T),
                    "inputs: other_scope3_t": inputs.number("other_scope3_t", what),
                },
                places=fig.CARBON_T.places, reference=_SCOPE_3,
            ),
        ),
        tables=(
            rows_of(
                sides.bought,
                lambda row: words_of(row["provider"]),
                name="bought_by_provider", title="Bought generations by provider", heading="Provider",
                measures=("records", "tokens", fig.CARBON_T, fig.EMBODIED_T), chart="carbon_location",
            ),
        ),
    )  # fmt: skip
