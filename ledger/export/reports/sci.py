"""Software Carbon Intensity (ISO/IEC 21031:2024): ``SCI = ((E * I) + M) per R``, R tokens and requests."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from msgspec import UNSET

from ledger.export.reports import figures as fig
from ledger.export.reports.document import Column, Figure, Section, Table, decimal
from ledger.export.reports.facts import Facts
from ledger.export.reports.inputs import Asked, Inputs

__all__ = ["INPUTS", "STANDARD", "TITLE", "build"]

TITLE = "Software Carbon Intensity"
STANDARD = "ISO/IEC 21031:2024, Information technology - Software Carbon Intensity (SCI) specification"
INPUTS: Mapping[str, Asked] = {}

_NG_PER_MG = 10**6


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:  # noqa: ARG001 - every report has the same form
    """The report's sections."""
    row = facts.total()
    return (
        Section(
            title="Functional unit and boundary",
            reference="ISO/IEC 21031, clauses on software boundary and functional unit",
            text=(
                "R, the functional unit: 1,000 tokens (input and output), and one request. Both are given.",
                "Boundary: the IT equipment that generated the recorded tokens, with the site's overhead "
                "(PUE) and the embodied share as far as the factor sets state them. Networks, storage and "
                "end-user devices are outside.",
            ),
            figures=(
                fig.count(row, "records", "Requests", "requests"),
                fig.count(row, "input_tokens", "Input tokens", "tokens"),
                fig.count(row, "output_tokens", "Output tokens", "tokens"),
            ),
        ),
        Section(
            title="Components",
            reference="SCI specification, methodology summary: O = E * I, M = TE * TS * RS",
            text=(
                "E * I is the location-based carbon of the records: energy, times PUE, times grid intensity.",
                "M is the embodied share of the hardware for the time that the generations had it busy.",
                "The specification asks for the energy of all hardware reserved. Measured energy that no "
                "record carries (idle hardware) stands beside E and is not in the score.",
            ),
            figures=(
                fig.total(row, fig.ENERGY_KWH, name="e", label="E, energy before the site's overhead"),
                _unattributed(facts),
                fig.total(row, fig.CARBON_KG, name="e_times_i", label="E * I, operational emissions"),
                fig.total(row, fig.EMBODIED_KG, name="m", label="M, embodied emissions"),
            ),
        ),
        Section(
            title="SCI",
            text=(
                "Over the records that state both E * I and M. Without M there is no SCI, only E * I per R.",
            ),
            figures=(*_scores(facts), *_operational(row)),
        ),
        Section(title="By model", tables=(_by_model(facts),)),
    )


def _unattributed(facts: Facts) -> Figure:
    """Measured energy of the period that is nobody's: idle hardware, by the issuers' own word."""
    name, label, unit = "e_unattributed", "Energy that no record carries, all issuers", "kWh"
    told = [each.unattributed_uj for each in facts.told().issuers if each.unattributed_uj is not None]
    derivation = "sum of unattributed_uj over all batches and heartbeats of the period / 3,600,000,000,000"
    if not told:
        return fig.missing(name, label, unit, "no issuer of the period states any", derivation)
    value = decimal(Fraction(sum(told), fig.ENERGY_KWH.divisor), fig.ENERGY_KWH.places)
    return Figure(name=name, label=label, unit=unit, value=value, derivation=derivation)


def _operational(row: dict[str, Any]) -> tuple[Figure, ...]:
    mg = "mg CO2e"
    return (
        fig.per(row, fig.CARBON_KG, mg, _NG_PER_MG, by="tokens", name="operational_per_1k_tokens"),
        fig.per(row, fig.CARBON_KG, mg, _NG_PER_MG, by="requests", name="operational_per_request"),
    )


def _scores(facts: Facts) -> tuple[Figure, ...]:
    """SCI over the records that have both parts."""
    told = facts.both(fig.CARBON_KG, fig.EMBODIED_KG)
    every = facts.total()["records"]
    made = []
    for unit, below, what in (
        ("1k_tokens", Fraction(told.tokens, 1000), "1,000 tokens"),
        ("request", Fraction(told.records), "request"),
    ):
        name, label = f"sci_per_{unit}", f"SCI per {what}"
        derivation = (
            f"(sum of carbon_ng + sum of embodied_ng) / {_NG_PER_MG:,} per {what}, over the records with both"
        )
        if not below:
            why = "no record states both operational and embodied emissions"
            made.append(fig.missing(name, label, f"mg CO2e per {what}", why, derivation))
            continue
        value, low, high = (
            decimal(Fraction(total, _NG_PER_MG) / below, fig.PLACES)
            for total in (told.value, told.low, told.high)
        )
        made.append(
            Figure(
                name=name,
                label=label,
                unit=f"mg CO2e per {what}",
                value=value,
                low=low,
                high=high,
                derivation=derivation,
                coverage=UNSET
                if every == told.records
                else f"{told.records:,} of {every:,} records state both",
            )
        )
    return tuple(made)


def _by_model(facts: Facts) -> Table:
    rows = []
    for row in facts.rows("model", "version"):
        value = None
        if "carbon_ng" in row and row["carbon_ng_tokens"]:
            value = decimal(
                Fraction(1000 * row["carbon_ng"], _NG_PER_MG * row["carbon_ng_tokens"]), fig.PLACES
            )
        rows.append(
            (_model(row), str(row["records"]), str(row["input_tokens"] + row["output_tokens"]), value)
        )
    return Table(
        name="by_model",
        title="Operational emissions per 1,000 tokens",
        columns=(
            Column(name="model", label="Model"),
            Column(name="records", label="Requests", unit="requests"),
            Column(name="tokens", label="Tokens", unit="tokens"),
            Column(name="operational_per_1k_tokens", label="E * I per 1,000 tokens", unit="mg CO2e"),
        ),
        rows=tuple(rows),
        chart="operational_per_1k_tokens",
        derivation="as the figure of the same name, for the records of each model",
    )


def _model(row: dict[str, Any]) -> str:
    name = row["model"] or "unknown"
    return name if row["version"] is None else f"{name} {row['version']}"
