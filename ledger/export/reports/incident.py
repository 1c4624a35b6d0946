"""Incident dossier: everything that the log holds about one record.

For Regulation (EU) 2024/1689, Articles 12(2)(a), 26(5) and 73, and for whoever must answer for one output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import msgspec

from ledger.core.errors import InvalidError
from ledger.core.export_layout import RECORD_COLUMNS
from ledger.core.records import record_hash
from ledger.export.reports import figures as fig
from ledger.export.reports.chain import about, family, neighbours
from ledger.export.reports.document import Cell, Column, Figure, Section, Table, decimal
from ledger.export.reports.facts import Facts
from ledger.export.reports.inputs import Asked, Inputs
from ledger.export.reports.tables import stated_words
from ledger.export.reports.words import time_of

__all__ = ["INPUTS", "STANDARD", "TITLE", "build"]

TITLE = "Incident dossier: one generation"
STANDARD = (
    "Regulation (EU) 2024/1689 (Artificial Intelligence Act), Articles 12(2)(a), 26(5) and 73: what the log "
    "holds about one output"
)
_ENERGY_WH = replace(fig.ENERGY_KWH, unit="Wh", divisor=fig.ENERGY_KWH.divisor // 1000)
_CARBON_MG = replace(fig.CARBON_KG, unit="mg CO2e", divisor=fig.CARBON_KG.divisor // 10**6)
"""One generation's: in kWh and kg they would be all zeros."""
INPUTS: Mapping[str, Asked] = {
    "incident": Asked("what happened, and when it became known", None, "Article 73(1) and (2)"),
    "system": Asked("the AI system, its provider and its deployer", None, "Article 73(1)"),
    "measures": Asked("investigation, risk assessment and corrective action", None, "Article 73(6)"),
}


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections.

    Raises:
        InvalidError: the scope does not name exactly one record, or two issuers have one of that id.
    """
    named = facts.scope.where.get("record", ())
    if len(named) != 1 or not named[0]:
        raise InvalidError(
            f"names {len([each for each in named if each])} records; a dossier is about one",
            where="scope",
            remedy="choose one: --where record=ID",
            code="bad-report-scope",
        )
    found = facts.scoped("*, epoch_us(started_at) AS started_us, epoch_us(ended_at) AS ended_us")
    if len(found) > 1:
        raise InvalidError(
            f"holds {len(found)} records of this id",
            where="scope",
            remedy="name the issuer too: --where issuer=NAME",
            code="bad-report-scope",
        )
    told = stated_words(inputs, INPUTS, name="stated", title="Statements of the reporter")
    if not found:
        text = (f"The scope has no record {named[0]}: either it was never logged, or its bytes were erased.",)
        return (Section(title="Record", text=text, tables=(told,)),)
    record = found[0]
    statement = facts.fetch(
        "SELECT *, epoch_us(registered_at) AS registered_us, (payload ->> '$.dropped')::BIGINT AS dropped "
        "FROM statements WHERE leaf_index = $1",
        [record["leaf_index"]],
    )[0]
    return (
        Section(title="Incident", reference="Articles 26(5) and 73", tables=(told,)),
        _record(facts.total(), record),
        Section(
            title="What generated it",
            reference="Article 12(2)(a): substantial modifications show as another deployment",
            tables=(_deployment(facts, record), _factors(facts, record)),
        ),
        Section(
            title="Where it stands in the log",
            text=(
                "The issuer signed a batch that commits to the record's hash; the log's tree commits to the "
                "batch. Both can be checked with the export and the log's key alone.",
            ),
            tables=(_proof(record, statement), neighbours(facts, statement)),
        ),
        Section(
            title="What caused it, and what it caused",
            text=("Records name the record that caused them (agent chains).",),
            tables=(family(facts, record),),
        ),
        Section(
            title="What was said about it later",
            reference="Article 72: post-market monitoring",
            tables=(about(facts, record, statement),),
        ),
        _commitments(record),
    )


def _record(row: Mapping[str, Any], record: Mapping[str, Any]) -> Section:
    said = {column.name: column.description for column in RECORD_COLUMNS if column.name != "record"}
    corrected = (
        ("The record's figures were corrected; the corrected ones are shown.",) if record["corrected"] else ()
    )
    return Section(
        title="The record",
        reference="Article 12(1) and (2)",
        text=("Fields that the record does not have are unknown and left out.", *corrected),
        figures=(
            fig.count(row, "input_tokens", "Input tokens", "tokens"),
            fig.count(row, "output_tokens", "Output tokens", "tokens"),
            Figure(
                name="duration",
                label="Duration",
                unit="ms",
                value=decimal(Fraction(record["ended_us"] - record["started_us"], 1000), 3),
                derivation="(ended_at - started_at of the record, in microseconds) / 1,000",
            ),
            fig.total(row, _ENERGY_WH),
            fig.total(row, _CARBON_MG),
        ),
        tables=(
            Table(
                name="record",
                title="Fields",
                columns=_FIELD_COLUMNS,
                rows=tuple(
                    (name, _shown(record[name]), meaning)
                    for name, meaning in said.items()
                    if record[name] is not None
                ),
                derivation="the record's columns in the export; times are UTC",
            ),
        ),
    )


_FIELD_COLUMNS = (
    Column(name="field", label="Field"),
    Column(name="value", label="Value"),
    Column(name="meaning", label="Meaning"),
)


def _shown(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return str(value.isoformat(sep=" ", timespec="microseconds"))
    if isinstance(value, list):
        return ", ".join(f"{each['name']} = {each['value']} / 10^{each['scale']}" for each in value)
    return str(value)


def _flat(document: Any) -> list[tuple[str, str]]:
    """A document's fields, nested ones by a dotted name."""
    made: list[tuple[str, str]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, each in sorted(value.items()):
                walk(f"{name}.{key}" if name else key, each)
        elif isinstance(value, list | tuple):
            for at, each in enumerate(value):
                walk(f"{name}[{at}]", each)
        else:
            made.append((name, str(value)))

    walk("", msgspec.to_builtins(document))
    return made


def _document(name: str, title: str, digest: str | None, known: Mapping[str, Any]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = ()
    if digest is not None:
        found = known.get(digest)
        fields = [("(not in the export)", "–")] if found is None else _flat(found)
        rows = (("digest", digest), *fields)
    return Table(
        name=name,
        title=title,
        columns=_FIELD_COLUMNS[:2],
        rows=rows,
        derivation="the document of that digest in the log; no rows where the record names none",
    )


def _deployment(facts: Facts, record: Mapping[str, Any]) -> Table:
    return _document("deployment", "Deployment", record["deployment"], facts.deployments())


def _factors(facts: Facts, record: Mapping[str, Any]) -> Table:
    return _document("factors", "Factor set", record["factors"], facts.factor_sets())


def _proof(record: Mapping[str, Any], statement: Mapping[str, Any]) -> Table:
    rows = (
        ("issuer", statement["issuer"], "who signed the batch"),
        ("seq", str(statement["seq"]), "number of the statement in the issuer's chain"),
        ("leaf index", str(statement["leaf_index"]), "leaf of the log"),
        ("leaf hash", statement["leaf_hash"], "RFC 6962 leaf hash of the statement"),
        ("registered", time_of(statement["registered_us"]), "when the log registered it, by its own word"),
        ("tree size", str(statement["tree_size"]), "size of the tree that its receipt proves"),
        ("position", str(record["position"]), "place of the record in the batch"),
        ("records in batch", str(statement["record_count"]), "records that the batch commits to"),
        ("record hash", record_hash(record["record"]).hex(), "RFC 6962 leaf hash of the record's bytes"),
    )
    return Table(
        name="proof",
        title="Statement and record",
        columns=_FIELD_COLUMNS,
        rows=rows,
        derivation="the batch statement that commits to the record",
        reference="RFC 9942, RFC 9943",
    )


def _commitments(record: Mapping[str, Any]) -> Section:
    rows = []
    for side in ("input", "output"):
        digest, of = record[f"{side}_digest"], record[f"{side}_of"]
        if digest is not None:
            content = "the token ids" if of == "tokens" else "the UTF-8 text"
            rows.append((side, digest, f"{content} of the {side}; the commitment's salt"))
    if record["request"] is not None:
        rows.append(("request", record["request"], "the caller's request id; its salt"))
    return Section(
        title="What would open its commitments",
        text=(
            "The log holds salted hashes, never text. Whoever shows the content with its salt proves what it "
            "was; a single chunk can be shown without the rest.",
            "Salts derive from the issuer's secret, the tenant's secret and the record's id: the holder of "
            "both can open a commitment. Without the tenant's secret nobody can.",
        ),
        tables=(
            Table(
                name="commitments",
                title="Commitments",
                columns=(
                    Column(name="of", label="Of"),
                    Column(name="digest", label="Salted hash"),
                    Column(name="needed", label="Needed to open it"),
                ),
                rows=tuple(rows),
                derivation="the record's commitments; no rows where it has none",
            ),
        ),
    )
