"""Owns what stands around one record: its issuer's chain, its agent chain, and later statements about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import msgspec

from ledger.core.records import record_hash
from ledger.export.reports.document import Cell, Column, Table, decimal
from ledger.export.reports.facts import Facts
from ledger.export.reports.words import time_of

__all__ = ["about", "family", "metrics_in_words", "neighbours"]

_AROUND = 2
"""Statements shown before and after."""
_MAX_ANCESTORS = 64
_MAX_CHILDREN = 256


def neighbours(facts: Facts, statement: Mapping[str, Any]) -> Table:
    """The statements around one in its issuer's chain, with what each says was lost."""
    found = facts.fetch(
        "SELECT seq, kind, leaf_index, record_count, epoch_us(registered_at) AS registered_us, "
        "(payload ->> '$.dropped')::BIGINT AS dropped FROM statements "
        "WHERE issuer = $1 AND seq BETWEEN $2 AND $3 ORDER BY seq",
        [statement["issuer"], statement["seq"] - _AROUND, statement["seq"] + _AROUND],
    )
    return Table(
        name="neighbours",
        title="Around it in the issuer's chain",
        columns=(
            Column(name="seq", label="Seq"),
            Column(name="kind", label="Statement"),
            Column(name="leaf", label="Leaf"),
            Column(name="registered", label="Registered"),
            Column(name="records", label="Records", unit="records"),
            Column(name="dropped", label="Lost before it", unit="records"),
        ),
        rows=tuple(
            (
                str(row["seq"]),
                row["kind"] + (" (its own)" if row["seq"] == statement["seq"] else ""),
                str(row["leaf_index"]),
                time_of(row["registered_us"]),
                _text(row["record_count"]),
                _text(row["dropped"]),
            )
            for row in found
        ),
        derivation="statements of the issuer with the nearest seq; what was lost is the issuer's own count",
    )


def family(facts: Facts, record: Mapping[str, Any]) -> Table:
    """The records that led to this one, and those that it caused."""
    rows = [*_ancestors(facts, record)]
    select = f"SELECT {_RELATIVE} FROM records_corrected"  # noqa: S608 - our own columns
    for relation, parent in (("caused by the same", record["parent"]), ("caused by it", record["id"])):
        if parent is None:
            continue
        children = facts.fetch(
            f"{select} WHERE parent = $1 AND id <> $2 ORDER BY started_at, id LIMIT {_MAX_CHILDREN}",
            [parent, record["id"]],
        )
        rows += [_relative(relation, row) for row in children]
    return Table(
        name="family",
        title="Agent chain",
        columns=(
            Column(name="relation", label="Relation"),
            Column(name="id", label="Record"),
            Column(name="started", label="Started"),
            Column(name="model", label="Model"),
            Column(name="finish_reason", label="Ended by"),
            Column(name="output_tokens", label="Output", unit="tokens"),
        ),
        rows=tuple(rows),
        derivation="records of the whole export by their field parent; no rows where there are none",
    )


_RELATIVE = "id, parent, epoch_us(started_at) AS started_us, model, finish_reason, output_tokens"


def _ancestors(facts: Facts, record: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    parent, seen = record["parent"], {record["id"]}
    for step in range(1, _MAX_ANCESTORS + 1):
        if parent is None or parent in seen:
            return
        seen.add(parent)
        relation = "its cause" if step == 1 else f"its cause, {step} steps up"
        found = facts.fetch(
            f"SELECT {_RELATIVE} FROM records_corrected WHERE id = $1 LIMIT 1",  # noqa: S608
            [parent],
        )
        if not found:
            yield (f"{relation} (not in the export)", parent, None, None, None, None)
            return
        yield _relative(relation, found[0])
        parent = found[0]["parent"]


def _relative(relation: str, row: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        relation,
        row["id"],
        time_of(row["started_us"]),
        row["model"],
        row["finish_reason"],
        str(row["output_tokens"]),
    )


def about(facts: Facts, record: Mapping[str, Any], statement: Mapping[str, Any]) -> Table:
    """Evaluations, corrections, erasures and acknowledgements that concern the record."""
    found = facts.fetch(_ABOUT, [record["id"], statement["leaf_hash"], record["deployment"]])
    digest = record_hash(record["record"]).hex()
    return Table(
        name="about",
        title="Statements about it",
        columns=(
            Column(name="leaf", label="Leaf"),
            Column(name="kind", label="Statement"),
            Column(name="issuer", label="By"),
            Column(name="registered", label="Registered"),
            Column(name="of", label="About"),
            Column(name="content", label="What it says"),
        ),
        rows=tuple(
            (
                str(row["leaf_index"]),
                row["kind"],
                row["issuer"],
                time_of(row["registered_us"]),
                row["of"],
                _content(row, record, digest),
            )
            for row in found
        ),
        derivation="statements of the whole export that name the record, its statement or its deployment",
    )


_ABOUT = """
SELECT leaf_index, kind, issuer, epoch_us(registered_at) AS registered_us,
       CASE WHEN payload ->> '$.record' = $1 THEN 'record'
            WHEN payload ->> '$.statement' = $2 THEN 'batch' ELSE 'deployment' END AS of,
       payload ->> '$.evaluator' AS evaluator, (payload -> '$.metrics')::VARCHAR AS metrics,
       payload ->> '$.reason' AS reason, payload ->> '$.record_hash' AS record_hash,
       payload ->> '$.rule' AS rule, payload ->> '$.note' AS note
FROM statements
WHERE kind IN ('evaluation', 'correction', 'erasure', 'acknowledgement')
  AND (payload ->> '$.record' = $1 OR payload ->> '$.statement' = $2
       OR (kind = 'evaluation' AND payload ->> '$.deployment' = $3))
ORDER BY leaf_index"""


def _content(row: Mapping[str, Any], record: Mapping[str, Any], digest: str) -> str:
    if row["kind"] == "evaluation":
        return f"{row['evaluator']}: {metrics_in_words(row['metrics'])}"
    if row["kind"] == "correction":
        holds = row["record_hash"] == digest and row["issuer"] == record["issuer"]
        return str(row["reason"]) + (
            "" if holds else " (does not hold: another record's hash, or another issuer)"
        )
    return str(row["rule"] or row["note"] or "seen")


def metrics_in_words(text: str) -> str:
    """Metrics of an evaluation: ``accuracy 0.91, ...``."""
    told = []
    for name, metric in sorted(msgspec.json.decode(text).items()):
        value = Fraction(metric["value"], 10 ** metric["scale"])
        told.append(f"{name} {decimal(value, metric['scale'])}")
    return ", ".join(told)


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)
