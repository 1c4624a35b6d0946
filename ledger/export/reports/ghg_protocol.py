"""GHG Protocol: Scope 2 Guidance (2015), and Scope 3 Standard (2011) category 1 or 11, as fits."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from ledger.core.errors import InvalidError
from ledger.export.reports import figures as fig
from ledger.export.reports.boundary import OWN_PROVIDERS, RULE, facility_energy, split
from ledger.export.reports.document import Cell, Column, Section, Table, decimal
from ledger.export.reports.facts import Facts
from ledger.export.reports.inputs import Asked, Inputs
from ledger.export.reports.tables import breakdown, rows_of, stated_words, words_of

__all__ = ["INPUTS", "STANDARD", "TITLE", "build", "factor_table"]

TITLE = "GHG Protocol: Scope 2 and Scope 3 of inference"
STANDARD = (
    "GHG Protocol Scope 2 Guidance (2015); GHG Protocol Corporate Value Chain (Scope 3) Accounting and "
    "Reporting Standard (2011)"
)
INPUTS: Mapping[str, Asked] = {
    **OWN_PROVIDERS,
    "scope3_category": Asked(
        "1 if generations outside own operation were bought (the rule without this input), 11 if they are "
        "customers' use of models or software that the reporter sold",
        None,
        "Scope 3 Standard, table 5.4",
        needed=False,
    ),
    "consolidation_approach": Asked(
        "the consolidation approach: equity share, financial control or operational control",
        None,
        "Corporate Standard, chapter 3",
    ),
    "base_year": Asked(
        "the base year and its policy of recalculation", None, "Corporate Standard, chapter 5"
    ),
    "contractual_instruments": Asked(
        "the contractual instruments behind the market-based figures, and how they meet the criteria",
        None,
        "Scope 2 Guidance, chapter 7, table 7.1",
    ),
}
_UG_PER_G = 10**6
_CATEGORIES = {
    "1": ("Category 1, purchased goods and services", "bought generations"),
    "11": ("Category 11, use of sold products", "customers' generations with sold products"),
}


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections.

    Raises:
        InvalidError: ``scope3_category`` is neither 1 nor 11.
    """
    sides = split(facts, inputs)
    category = inputs.text("scope3_category", None) or "1"
    if category not in _CATEGORIES:
        raise InvalidError(
            f"is {category!r}, neither 1 nor 11", where="inputs: scope3_category", code="bad-inputs"
        )
    label, what = _CATEGORIES[category]
    own, others = "the records of own operation", f"the records of {what}"
    outside = tuple(row["provider"] for row in sides.bought)
    scope_3 = f"Scope 3 Standard, table 5.4, category {category}"
    return (
        Section(
            title="Boundary",
            reference="GHG Protocol Corporate Standard, chapters 3 and 4",
            text=(RULE, f"Generations outside own operation are accounted for in {label}."),
            figures=(
                fig.whole(
                    "own_records", "Own generations", "requests", sum(row["records"] for row in sides.own),
                    "number of records of own operation",
                ),
                fig.whole(
                    "other_records", f"{what[:1].upper()}{what[1:]}", "requests",
                    sum(row["records"] for row in sides.bought), f"number of records of {what}",
                ),
            ),
            tables=(
                stated_words(
                    inputs,
                    {name: INPUTS[name] for name in INPUTS if name not in OWN_PROVIDERS},
                    name="stated",
                    title="Statements of the reporter",
                ),
            ),
        ),
        Section(
            title="Scope 2: electricity of own generations",
            reference="GHG Protocol Scope 2 Guidance, chapters 6 and 7: both methods are reported",
            text=(
                "Location-based emissions take the grid's average where the electricity was used; "
                "market-based ones what was contracted. Both include the site's overhead (PUE).",
            ),
            figures=(
                sides.total("own", fig.ENERGY_MWH, name="own_energy_it", label="IT energy", over=own),
                fig.derived(
                    "own_energy_facility", "Electricity with the site's overhead", "MWh",
                    facility_energy(facts, fig.ENERGY_MWH, sides.is_own),
                    derivation="sum over the factor sets of energy_uj * PUE / 3,600,000,000,000,000",
                    places=fig.ENERGY_MWH.places, why="no own record states both energy and a factor set",
                ),
                sides.total(
                    "own", fig.CARBON_T, name="scope2_location", label="Scope 2, location-based",
                    over=own,
                    reference="Scope 2 Guidance, chapter 6, location-based method",
                ),
                sides.total(
                    "own", fig.CARBON_MARKET_T, name="scope2_market", label="Scope 2, market-based",
                    over=own, reference="Scope 2 Guidance, chapter 6, market-based method",
                ),
            ),
            tables=(
                rows_of(
                    [row for row in facts.rows("region", "provider") if sides.is_own(row["provider"])],
                    lambda row: words_of(row["region"], row["provider"], none="region not stated"),
                    name="own_by_region", title="Own generations by region", heading="Region",
                    measures=("records", fig.ENERGY_MWH, fig.CARBON_T, fig.CARBON_MARKET_T),
                    chart="carbon_location",
                ),
            ),
        ),
        Section(
            title=f"Scope 3: {label}",
            reference=scope_3,
            figures=(
                sides.total(
                    "bought", fig.CARBON_T, name="scope3_use", label="Emissions of the generations",
                    over=others, reference=scope_3,
                ),
                sides.total(
                    "bought", fig.EMBODIED_T, name="scope3_embodied",
                    label="Embodied share of the hardware used", over=others, reference=scope_3,
                ),
                sides.total(
                    "own", fig.EMBODIED_T, name="scope3_2_embodied",
                    label="Category 2, capital goods: embodied share of own hardware", over=own,
                    reference="Scope 3 Standard, table 5.4, category 2",
                ),
            ),
            tables=(
                rows_of(
                    sides.bought,
                    lambda row: words_of(row["provider"]),
                    name="others_by_provider", title="By provider", heading="Provider",
                    measures=("records", "tokens", fig.ENERGY_MWH, fig.CARBON_T, fig.EMBODIED_T),
                    chart="carbon_location",
                ),
                breakdown(
                    facts, "provider", "model", where={"provider": outside},
                    name="others_by_model", title="By provider and model", heading="Provider and model",
                    measures=("records", "tokens", fig.CARBON_T),
                ),
            ),
        ),
        Section(
            title="Factors and quality of data",
            reference="Scope 2 Guidance, chapter 7; Scope 3 Standard, chapter 7",
            tables=(
                factor_table(facts),
                breakdown(
                    facts, "method", name="by_method", title="How the energy is known", heading="Method",
                    measures=("records", fig.ENERGY_MWH, fig.CARBON_T), none="unknown",
                ),
            ),
        ),
    )  # fmt: skip


def factor_table(facts: Facts) -> Table:
    """The factor sets that records of the scope name, with what they say."""
    known = facts.factor_sets()
    rows: list[tuple[Cell, ...]] = []
    for row in facts.rows("factors"):
        made = known.get(row["factors"] or "")
        if made is None:
            rows.append(("no factor set", None, None, None, None, str(row["records"])))
            continue
        market, region = made.market_ug_per_kwh, made.region
        rows.append(
            (
                f"{made.name} {made.version}",
                region if isinstance(region, str) else None,
                decimal(Fraction(made.intensity_ug_per_kwh, _UG_PER_G), fig.PLACES),
                decimal(Fraction(market, _UG_PER_G), fig.PLACES) if isinstance(market, int) else None,
                decimal(Fraction(made.pue_milli, 1000), 3),
                str(row["records"]),
            )
        )
    return Table(
        name="factor_sets",
        title="Factor sets",
        columns=(
            Column(name="factor_set", label="Factor set"),
            Column(name="region", label="Region"),
            Column(name="location", label="Location-based", unit="g CO2e/kWh"),
            Column(name="market", label="Market-based", unit="g CO2e/kWh"),
            Column(name="pue", label="PUE", unit="ratio"),
            Column(name="records", label="Requests", unit="requests"),
        ),
        rows=tuple(rows),
        derivation="the factor sets in the log that records of the scope name; their sources stand below",
    )
