"""EU AI Act, Articles 12, 19 and 26(6): an extract of the automatically generated logs.

Regulation (EU) 2024/1689. The articles bind providers and deployers of high-risk AI systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from ledger.core.export_layout import RECORD_COLUMNS
from ledger.export.reports import figures as fig
from ledger.export.reports.deployed import deployment_table
from ledger.export.reports.document import Column, Figure, Section, Table, decimal
from ledger.export.reports.evidence import (
    erasure_table,
    evaluation_table,
    issuer_table,
    reference_table,
    span_table,
)
from ledger.export.reports.facts import Facts
from ledger.export.reports.inputs import Asked, Inputs
from ledger.export.reports.tables import breakdown, stated_words

__all__ = ["INPUTS", "STANDARD", "TITLE", "build"]

TITLE = "EU AI Act: extract of the logs"
STANDARD = (
    "Regulation (EU) 2024/1689 (Artificial Intelligence Act), Articles 12, 19 and 26(6), as amended by "
    "Regulation (EU) 2026/1744"
)
INPUTS: Mapping[str, Asked] = {
    "system": Asked("the high-risk AI system, its version and registration", None, "Articles 49 and 71"),
    "role": Asked("whether the reporter is the system's provider or deployer", None, "Article 3(3) and (4)"),
    "intended_purpose": Asked("the system's intended purpose", None, "Articles 12(2) and 19(1)"),
    "control": Asked("which logs are under the reporter's control", None, "Articles 19(1) and 26(6)"),
    "retention_basis": Asked("why that period of retention is appropriate", None, "Articles 19(1) and 26(6)"),
    "retention_months": Asked(
        "the period for which the logs are kept", "months", "Articles 19(1) and 26(6): at least six months"
    ),
}
_DAY_US = 86_400_000_000

_FIELDS: Mapping[str, str] = {
    "id": "12(1)",
    "issuer": "12(1)",
    "started_at": "12(1), 12(3)(a)",
    "ended_at": "12(1), 12(3)(a)",
    "first_token_at": "12(2)(c)",
    "deployment": "12(2)(a)",
    "model": "12(2)(a)",
    "version": "12(2)(a)",
    "engine": "12(2)(a)",
    "engine_version": "12(2)(a)",
    "quantization": "12(2)(a)",
    "finish_reason": "12(2)(a), 12(2)(b)",
    "input_tokens": "12(2)(c)",
    "output_tokens": "12(2)(c)",
    "tenant": "12(2)(c)",
    "request": "12(2)(a)",
    "input_digest": "12(2)(a), 12(3)(c)",
    "output_digest": "12(2)(a)",
    "parent": "12(2)(a)",
    "quality": "12(2)(b)",
    "site": "12(2)(c)",
}
"""Which provision a recorded field serves."""


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections."""
    row = facts.total()
    words = {name: asked for name, asked in INPUTS.items() if asked.unit is None}
    return (
        Section(
            title="System and reporter",
            text=(
                "Articles 12, 19 and 26(6) concern high-risk AI systems; whether a system is one, the log "
                "cannot know. They apply from 2 December 2027 (Annex III) and 2 August 2028 (Annex I).",
            ),
            reference="Articles 6, 12, 19, 26(6) and 113",
            tables=(stated_words(inputs, words, name="stated", title="Statements of the reporter"),),
        ),
        Section(
            title="Automatic recording of events",
            reference="Article 12(1)",
            text=(
                "Each generation is an event. Its issuer records it while serving, signs it in batches, and "
                "chains them; the log only appends. What was lost before signing, the issuers count.",
            ),
            figures=(
                fig.count(row, "records", "Events recorded", "requests", reference="Article 12(1)"),
                _lost(facts),
                fig.count(row, "input_tokens", "Input tokens", "tokens"),
                fig.count(row, "output_tokens", "Output tokens", "tokens"),
            ),
            tables=(span_table(facts), issuer_table(facts)),
        ),
        Section(
            title="Situations of risk and substantial modifications",
            reference="Article 12(2)(a)",
            text=(
                "Any change of model, version, weights, engine or quantization makes another deployment. "
                "Why each generation ended shows errors and aborts.",
            ),
            tables=(
                deployment_table(facts),
                breakdown(
                    facts, "finish_reason", name="finish_reasons", title="Why generations ended",
                    heading="Ended by", measures=("records", "output_tokens"), chart="records",
                ),
            ),
        ),
        Section(
            title="Post-market monitoring",
            reference="Articles 12(2)(b) and 72",
            figures=(
                _corrected(facts),
                _having(facts, "quality", "Events with their own quality metrics"),
            ),
            tables=(evaluation_table(facts),),
        ),
        Section(
            title="Monitoring of operation",
            reference="Articles 12(2)(c) and 26(5)",
            tables=(
                breakdown(
                    facts, "day", name="by_day", title="By day", heading="Day (UTC)",
                    measures=("records", "input_tokens", "output_tokens"), chart="records",
                ),
                _latency(facts),
            ),
        ),
        Section(
            title="Remote biometric identification",
            reference="Article 12(3), for systems of Annex III, point 1(a), only",
            text=(
                "(a) Period of each use: the start and end of each event are recorded. (b) Reference "
                "database: not recorded here. (c) Input data that led to a match: a salted hash of the input "
                "commits to it; the data is not in the log. (d) Persons who verified: not recorded here.",
            ),
            figures=(
                _having(facts, "input_digest", "Events with a commitment to their input"),
                _having(facts, "output_digest", "Events with a commitment to their output"),
            ),
        ),
        Section(
            title="Keeping of the logs",
            reference="Articles 19(1) and 26(6): at least six months, unless other law provides otherwise",
            text=(
                "An export shows what the log still held when it was made, and every erasure with its rule: "
                "the bytes of a record can be erased, never the fact that there was one.",
            ),
            figures=(
                _age(facts),
                fig.asked(inputs, "retention_months", INPUTS["retention_months"]),
                fig.whole(
                    "erased", "Events whose bytes were erased", "requests",
                    sum(each.erased_records for each in facts.told().issuers),
                    "erasure statements about batches that bear on the period, all issuers",
                ),
            ),
            tables=(erasure_table(facts), reference_table(facts)),
        ),
        Section(
            title="Which field serves which provision",
            reference="Article 12(2) and (3)",
            tables=(_mapping(facts),),
        ),
    )  # fmt: skip


def _lost(facts: Facts) -> Figure:
    return fig.whole(
        "events_lost", "Events lost before they were signed", "requests",
        sum(each.dropped for each in facts.told().issuers),
        "the issuers' own counts (dropped) in their chains of the period, all issuers",
        reference="Article 12(1)",
    )  # fmt: skip


def _corrected(facts: Facts) -> Figure:
    value = facts.total().get("corrected_records", 0)
    return fig.whole(
        "corrected", "Events with corrected figures", "requests", value,
        "number of records of the scope that a later signed correction restates",
    )  # fmt: skip


def _having(facts: Facts, column: str, label: str) -> Figure:
    (row,) = facts.scoped(f"count({column}) AS having")
    return fig.whole(
        f"with_{column}", label, "requests", row["having"], f"number of records of the scope with {column}"
    )


def _age(facts: Facts) -> Figure:
    (row,) = facts.scoped("min(epoch_us(started_at)) AS first_us")
    name, label = "oldest_age_days", "Age of the oldest event when the export was made"
    derivation = "(created_us of the export's manifest - first start of the scope) / 86,400,000,000"
    if row["first_us"] is None:
        return fig.missing(name, label, "days", "the scope has no record", derivation)
    age = Fraction(facts.manifest.created_us - row["first_us"], _DAY_US)
    return Figure(
        name=name, label=label, unit="days", value=decimal(age, 3), derivation=derivation,
        reference="Articles 19(1) and 26(6)",
    )  # fmt: skip


_LEVELS = (50, 90, 95, 99)


def _latency(facts: Facts) -> Table:
    (row,) = facts.rows(percentiles=True)
    measures = {"first_token_us": "Time to the first token", "duration_us": "Duration"}
    return Table(
        name="latency",
        title="Times",
        columns=(
            Column(name="measure", label="Measure"),
            *(Column(name=f"p{level}", label=f"{level} % within", unit="ms") for level in _LEVELS),
        ),
        rows=tuple(
            (label, *(decimal(Fraction(row[f"{name}_p{level}"], 1000), 3) for level in _LEVELS))
            for name, label in measures.items()
            if f"{name}_p50" in row
        ),
        derivation="percentiles over the records of the scope: the value of a record that is there",
    )


def _mapping(facts: Facts) -> Table:
    (counted,) = facts.scoped(", ".join(f"count({name}) AS {name}" for name in _FIELDS))
    said = {column.name: column.description for column in RECORD_COLUMNS}
    return Table(
        name="fields",
        title="Recorded fields",
        columns=(
            Column(name="field", label="Field"),
            Column(name="meaning", label="Meaning"),
            Column(name="provision", label="Article"),
            Column(name="records", label="Events with it", unit="requests"),
        ),
        rows=tuple((name, said[name], provision, str(counted[name])) for name, provision in _FIELDS.items()),
        derivation="number of records of the scope that have the field",
    )
