"""ESRS E1, climate change: E1-5 (energy consumption and mix) and E1-6 (gross Scopes 1, 2, 3 and total).

From Annex I to Delegated Regulation (EU) 2023/2772. The undertaking's own totals come from the inputs file.
"""

from __future__ import annotations

from collections.abc import Mapping

from ledger.export.reports import figures as fig
from ledger.export.reports.boundary import OWN_PROVIDERS, RULE, Boundary, facility_energy, split
from ledger.export.reports.document import Figure, Section
from ledger.export.reports.facts import Facts
from ledger.export.reports.ghg_protocol import factor_table
from ledger.export.reports.inputs import Asked, Inputs
from ledger.export.reports.tables import breakdown, rows_of, stated_words, words_of

__all__ = ["INPUTS", "STANDARD", "TITLE", "build"]

TITLE = "ESRS E1: energy and greenhouse gas emissions of inference"
STANDARD = "ESRS E1 Climate change, Annex I to Commission Delegated Regulation (EU) 2023/2772: E1-5 and E1-6"

_T = "t CO2e"
_MIX = {"fossil": "37(a)", "nuclear": "37(b)", "renewable": "37(c)(ii)"}
INPUTS: Mapping[str, Asked] = {
    **OWN_PROVIDERS,
    "total_energy_mwh": Asked(
        "the undertaking's total energy consumption related to own operations",
        "MWh",
        "E1-5, paragraph 37; AR 32",
    ),
    **{
        f"energy_{source}_share_percent": Asked(
            f"the share of {source} sources in the electricity that the own generations used",
            "%",
            f"E1-5, paragraph {paragraph}",
        )
        for source, paragraph in _MIX.items()
    },
    "scope1_t": Asked("the undertaking's gross Scope 1 emissions", _T, "E1-6, paragraph 48(a)"),
    "scope1_ets_percent": Asked(
        "the share of Scope 1 emissions under regulated emission trading schemes",
        "%",
        "E1-6, paragraph 48(b)",
    ),
    "other_scope2_location_t": Asked(
        "gross location-based Scope 2 emissions besides the recorded generations", _T, "E1-6, paragraph 49(a)"
    ),
    "other_scope2_market_t": Asked(
        "gross market-based Scope 2 emissions besides the recorded generations", _T, "E1-6, paragraph 49(b)"
    ),
    "other_scope3_t": Asked(
        "gross Scope 3 emissions besides those of the bought generations' use", _T, "E1-6, paragraph 51"
    ),
    "net_revenue_million_eur": Asked(
        "the undertaking's net revenue", "million EUR", "E1-6, paragraphs 53 and 54"
    ),
    "net_revenue_line_item": Asked(
        "the line item or note of the financial statements with that net revenue",
        None,
        "E1-6, paragraph 55; AR 55",
    ),
    "contractual_instruments": Asked(
        "share and types of the contractual instruments behind the market-based figures",
        None,
        "E1-6, AR 45(d)",
    ),
}
_OWN = "the records of own operation"
_BOUGHT = "the records of bought generations"


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections."""
    sides = split(facts, inputs)
    energy = facility_energy(facts, fig.ENERGY_MWH, sides.is_own)
    parts = {
        "location": sides.part("own", fig.CARBON_T),
        "market": sides.part("own", fig.CARBON_MARKET_T),
        "bought": sides.part("bought", fig.CARBON_T),
    }
    return (
        Section(
            title="What this report covers",
            text=(
                "It states the part of the undertaking's E1 figures that the recorded generations make up. "
                "The undertaking's other consumption and emissions come from the inputs file.",
                RULE,
                "Paragraphs are those of the standard as adopted in 2023. The Commission adopted simplified "
                "standards in 2026 for financial years from 2027: check the numbering for the year reported.",
                "Energy intensity (paragraphs 40 to 43) concerns activities in high climate impact sectors "
                "only and is not stated here.",
            ),
            figures=(
                fig.count(facts.total(), "records", "Recorded generations", "requests"),
                fig.count(facts.total(), "input_tokens", "Input tokens", "tokens"),
                fig.count(facts.total(), "output_tokens", "Output tokens", "tokens"),
            ),
        ),
        _energy(facts, inputs, sides, energy),
        _scope_1_and_2(inputs, sides, parts),
        _scope_3(facts, sides),
        _totals(inputs, parts),
        Section(
            title="Methods and factors",
            reference="ESRS E1, E1-6, AR 39(b), AR 45 and AR 46(h)",
            text=(
                "Location-based: the grid's average intensity. Market-based: the contracted intensity that "
                "the factor set states; a record whose set states none is not in it. Both include PUE.",
            ),
            tables=(factor_table(facts),),
        ),
        Section(
            title="Stated with the figures",
            tables=(stated_words(inputs, _words(), name="stated", title="Statements of the undertaking"),),
        ),
    )


def _words() -> dict[str, Asked]:
    return {name: asked for name, asked in INPUTS.items() if asked.unit is None}


def _energy(facts: Facts, inputs: Inputs, sides: Boundary, energy: fig.Sum | None) -> Section:
    reference = "ESRS E1, Disclosure Requirement E1-5, paragraph 37"
    mix = []
    for source, paragraph in _MIX.items():
        name = f"energy_{source}_share_percent"
        percent = inputs.number(name, INPUTS[name].what)
        value = None if percent is None or energy is None else energy.times(percent / 100)
        mix.append(
            fig.stated(
                f"energy_{source}",
                f"Energy from {source} sources",
                "MWh",
                value,
                digits=fig.ENERGY_MWH.places,
                derivation=f"energy_own_facility * inputs: {name} / 100",
                both=True,
                why="the share is not stated, or no own record states its energy",
                reference=f"E1-5, paragraph {paragraph}",
            )
        )
    total = inputs.number("total_energy_mwh", INPUTS["total_energy_mwh"].what)
    return Section(
        title="E1-5: energy consumption and mix",
        reference=reference,
        text=("The recorded energy is that of the IT equipment; with the site's overhead it is times PUE.",),
        figures=(
            sides.total("own", fig.ENERGY_MWH, name="energy_own_it", over=_OWN, label="IT energy, own use"),
            fig.derived(
                "energy_own_facility",
                "Energy with the site's overhead, own operation",
                "MWh",
                energy,
                derivation="sum over the factor sets of energy_uj * PUE / 3,600,000,000,000,000",
                places=fig.ENERGY_MWH.places,
                why="no own record states both energy and a factor set",
                reference="E1-5, paragraph 37",
            ),
            *mix,
            fig.share(
                "energy_share_of_total",
                "Share of the undertaking's total energy",
                energy,
                total,
                derivation="energy_own_facility / inputs: total_energy_mwh",
                why="the total is not stated, or no own record states its energy",
                reference="E1-5, paragraph 37",
            ),
        ),
        tables=(
            breakdown(
                facts, "model", "version",
                name="energy_by_model", title="By model, own and bought", heading="Model",
                measures=("records", "tokens", fig.ENERGY_MWH), chart="energy",
            ),
            breakdown(
                facts, "region",
                name="energy_by_region", title="By region, own and bought", heading="Region",
                measures=("records", fig.ENERGY_MWH, fig.CARBON_T, fig.CARBON_MARKET_T), chart="energy",
            ),
            breakdown(
                facts, "method",
                name="energy_by_method", title="How the energy is known", heading="Method",
                measures=("records", fig.ENERGY_MWH), none="unknown",
            ),
        ),
    )  # fmt: skip


def _scope_1_and_2(inputs: Inputs, sides: Boundary, parts: dict[str, fig.Sum | None]) -> Section:
    def whole(method: str, paragraph: str) -> Figure:
        name = f"other_scope2_{method}_t"
        return fig.added(
            f"scope2_{method}_undertaking",
            f"Gross Scope 2, {method}-based, undertaking",
            _T,
            {
                f"scope2_{method}": parts[method],
                f"inputs: {name}": inputs.number(name, INPUTS[name].what),
            },
            places=fig.CARBON_T.places,
            reference=f"E1-6, paragraph {paragraph}",
        )

    return Section(
        title="E1-6: Scope 1 and Scope 2",
        reference="ESRS E1, Disclosure Requirement E1-6, paragraphs 44(a), 44(b), 48 and 49",
        figures=(
            fig.asked(inputs, "scope1_t", INPUTS["scope1_t"]),
            fig.asked(inputs, "scope1_ets_percent", INPUTS["scope1_ets_percent"]),
            sides.total(
                "own", fig.CARBON_T, name="scope2_location", over=_OWN,
                label="Scope 2 of own generations, location-based", reference="E1-6, paragraph 49(a)",
            ),
            sides.total(
                "own", fig.CARBON_MARKET_T, name="scope2_market", over=_OWN,
                label="Scope 2 of own generations, market-based", reference="E1-6, paragraph 49(b)",
            ),
            whole("location", "49(a)"),
            whole("market", "49(b)"),
        ),
    )  # fmt: skip


def _scope_3(facts: Facts, sides: Boundary) -> Section:
    return Section(
        title="E1-6: Scope 3",
        reference="ESRS E1, Disclosure Requirement E1-6, paragraphs 44(c) and 51",
        text=(
            "Bought generations are a purchased service: category 1, in the table of AR 48 in its optional "
            "sub-category, cloud computing and data centre services. Embodied emissions of own hardware "
            "belong to category 2, capital goods. Embodied shares are shown, and not added to the totals.",
        ),
        figures=(
            sides.total(
                "bought", fig.CARBON_T, name="scope3_1", over=_BOUGHT,
                label="Category 1: use of bought generations",
                reference="E1-6, paragraph 51; AR 51: cloud computing and data centre services",
            ),
            sides.total(
                "bought", fig.EMBODIED_T, name="scope3_1_embodied", over=_BOUGHT,
                label="Category 1: embodied share of bought generations", reference="E1-6, paragraph 51",
            ),
            sides.total(
                "own", fig.EMBODIED_T, name="scope3_2_embodied", over=_OWN,
                label="Category 2: embodied share of own generations", reference="E1-6, paragraph 51",
            ),
        ),
        tables=(
            rows_of(
                facts.rows("provider"),
                lambda row: words_of(row["provider"], none="own, no provider named"),
                name="by_provider", title="By provider", heading="Provider",
                measures=("records", "tokens", fig.ENERGY_MWH, fig.CARBON_T, fig.EMBODIED_T),
                chart="carbon_location",
            ),
        ),
    )  # fmt: skip


def _totals(inputs: Inputs, parts: dict[str, fig.Sum | None]) -> Section:
    revenue = inputs.number("net_revenue_million_eur", INPUTS["net_revenue_million_eur"].what)
    figures = []
    for method, letter in (("location", "a"), ("market", "b")):
        stated = {
            f"inputs: {name}": inputs.number(name, INPUTS[name].what)
            for name in ("scope1_t", f"other_scope2_{method}_t", "other_scope3_t")
        }
        total = fig.added(
            f"total_{method}",
            f"Total emissions, Scope 2 {method}-based",
            _T,
            {f"scope2_{method}": parts[method], "scope3_1": parts["bought"], **stated},
            places=fig.CARBON_T.places,
            reference=f"E1-6, paragraphs 44(d) and 52({letter})",
        )
        figures.append(total)
        figures.append(
            fig.share(
                f"intensity_{method}",
                f"Emissions intensity, Scope 2 {method}-based",
                fig.sum_in(total),
                revenue,
                unit="t CO2e per million EUR",
                times=1,
                derivation=f"total_{method} / inputs: net_revenue_million_eur",
                why="total or net revenue is missing",
                reference="E1-6, paragraphs 53 and 54",
            )
        )
    return Section(
        title="E1-6: total emissions and intensity",
        reference="ESRS E1, Disclosure Requirement E1-6, paragraphs 44(d), 52, 53 and 54",
        figures=tuple(figures),
    )
