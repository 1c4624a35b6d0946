"""Owns what reports show of the evidence itself: chains, leaves, evaluations, erasures."""

from __future__ import annotations

from ledger.export.reports.chain import metrics_in_words
from ledger.export.reports.document import Column, Table
from ledger.export.reports.facts import Facts
from ledger.export.reports.words import time_of

__all__ = ["erasure_table", "evaluation_table", "issuer_table", "reference_table", "span_table"]

_MINUTE_US = 60_000_000


def span_table(facts: Facts) -> Table:
    """From when to when each issuer's records of the scope go."""
    found = facts.scoped(
        "issuer, count(*) AS records, min(epoch_us(started_at)) AS first_us, "
        "max(epoch_us(ended_at)) AS last_us",
        "GROUP BY issuer ORDER BY issuer",
    )
    return Table(
        name="span",
        title="Span of the events",
        columns=(
            Column(name="issuer", label="Issuer"),
            Column(name="first", label="First start"),
            Column(name="last", label="Last end"),
            Column(name="records", label="Events", unit="requests"),
        ),
        rows=tuple(
            (row["issuer"], time_of(row["first_us"]), time_of(row["last_us"]), str(row["records"]))
            for row in found
        ),
        derivation="records of the scope, by issuer",
        chart="records",
    )


def issuer_table(facts: Facts) -> Table:
    """What the export has of each issuer's chain."""
    told = facts.told()
    return Table(
        name="issuers",
        title="Issuers and their chains",
        columns=(
            Column(name="issuer", label="Issuer"),
            Column(name="seq", label="Statements"),
            Column(name="missing", label="Not here"),
            Column(name="batches", label="Batches", unit="batches"),
            Column(name="records", label="Events", unit="requests"),
            Column(name="lost", label="Lost", unit="requests"),
            Column(name="heartbeats", label="Signs of life", unit="heartbeats"),
            Column(name="late", label="Late", unit="requests"),
            Column(name="erased", label="Erased", unit="requests"),
            Column(name="silence", label="Longest silence", unit="min"),
        ),
        rows=tuple(
            (
                each.issuer,
                f"{each.first_seq} to {each.last_seq}",
                ", ".join(f"{first} to {last}" for first, last in each.missing_seqs) or "none",
                str(each.batches),
                str(each.records),
                str(each.dropped),
                str(each.heartbeats),
                str(each.late_records),
                str(each.erased_records),
                None if each.longest_silence_us is None else str(each.longest_silence_us // _MINUTE_US),
            )
            for each in told.issuers
        ),
        derivation="every statement of the period, whatever else narrows the scope; numbers (seq) run on "
        "without gaps in each chain, so a missing one shows",
    )


def evaluation_table(facts: Facts) -> Table:
    """Evaluations of the scope's records, batches and deployments."""
    evaluated = "WHERE id IN (SELECT payload ->> '$.record' FROM statements WHERE kind = 'evaluation')"
    inside: dict[str, set[object]] = {
        "deployment": {row["deployment"] for row in facts.scoped("DISTINCT deployment")},
        "leaf": {row["leaf_index"] for row in facts.scoped("DISTINCT leaf_index")},
        "record": {row["id"] for row in facts.scoped("id", evaluated)},
    }
    rows = [
        (
            str(row["leaf_index"]),
            row["evaluator"],
            f"{kind} {row[kind]}",
            metrics_in_words(row["metrics"]),
            time_of(row["registered_us"]),
        )
        for row in facts.fetch(_EVALUATIONS)
        for kind, ours in inside.items()
        if row[kind] in ours
    ]
    return Table(
        name="evaluations",
        title="Evaluations",
        columns=(
            Column(name="leaf", label="Leaf"),
            Column(name="evaluator", label="Evaluator"),
            Column(name="of", label="Of"),
            Column(name="metrics", label="Metrics"),
            Column(name="registered", label="Registered"),
        ),
        rows=tuple(rows),
        derivation="evaluation statements about deployments, batches and records of the scope",
    )


_EVALUATIONS = """
SELECT e.leaf_index, epoch_us(e.registered_at) AS registered_us, e.payload ->> '$.evaluator' AS evaluator,
       (e.payload -> '$.metrics')::VARCHAR AS metrics, e.payload ->> '$.record' AS record,
       e.payload ->> '$.deployment' AS deployment, s.leaf_index AS leaf
FROM statements e LEFT JOIN statements s ON s.leaf_hash = e.payload ->> '$.statement'
WHERE e.kind = 'evaluation' ORDER BY e.leaf_index"""


def erasure_table(facts: Facts) -> Table:
    """Every erasure that the export tells of, with its rule."""
    found = facts.fetch(_ERASURES)
    return Table(
        name="erasures",
        title="Erasures",
        columns=(
            Column(name="leaf", label="Leaf"),
            Column(name="batch", label="Of the batch at leaf"),
            Column(name="issuer", label="Batch by"),
            Column(name="rule", label="Rule"),
            Column(name="registered", label="Registered"),
            Column(name="records", label="Events", unit="requests"),
        ),
        rows=tuple(
            (
                str(row["leaf_index"]),
                None if row["batch"] is None else str(row["batch"]),
                row["issuer"],
                row["rule"],
                time_of(row["registered_us"]),
                str(row["records"]),
            )
            for row in found
        ),
        derivation="erasure statements of the whole export",
    )


_ERASURES = """
SELECT e.leaf_index, s.leaf_index AS batch, s.issuer, e.payload ->> '$.rule' AS rule,
       epoch_us(e.registered_at) AS registered_us,
       len(from_json(e.payload -> '$.positions', '["INTEGER"]')) AS records
FROM statements e LEFT JOIN statements s ON s.leaf_hash = e.payload ->> '$.statement'
WHERE e.kind = 'erasure' ORDER BY e.leaf_index"""


def reference_table(facts: Facts) -> Table:
    """Where the records of the scope stand in the log: first and last leaf of each issuer."""
    found = facts.scoped(
        "issuer, count(DISTINCT leaf_index) AS batches, min(leaf_index) AS first, max(leaf_index) AS last",
        "GROUP BY issuer ORDER BY issuer",
    )
    leaves = {
        row["leaf_index"]: row["leaf_hash"]
        for row in facts.fetch(
            "SELECT leaf_index, leaf_hash FROM statements WHERE list_contains($1, leaf_index)",
            [[leaf for row in found for leaf in (row["first"], row["last"])]],
        )
    }
    return Table(
        name="references",
        title="References into the log",
        columns=(
            Column(name="issuer", label="Issuer"),
            Column(name="first", label="First leaf"),
            Column(name="first_hash", label="Its hash"),
            Column(name="last", label="Last leaf"),
            Column(name="last_hash", label="Its hash"),
            Column(name="batches", label="Batches", unit="batches"),
        ),
        rows=tuple(
            (
                row["issuer"],
                str(row["first"]),
                leaves[row["first"]],
                str(row["last"]),
                leaves[row["last"]],
                str(row["batches"]),
            )
            for row in found
        ),
        derivation="batch statements that hold records of the scope",
    )
