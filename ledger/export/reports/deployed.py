"""Owns what reports say of deployments: which model with which weights ran on what, from when to when."""

from __future__ import annotations

from msgspec import UNSET

from ledger.core.records import Deployment
from ledger.export.reports.document import Column, Table
from ledger.export.reports.facts import Facts
from ledger.export.reports.tables import words_of
from ledger.export.reports.words import time_of

__all__ = ["deployment_table"]


def deployment_table(facts: Facts) -> Table:
    """The deployments of the scope's records, by first use."""
    known = facts.deployments()
    found = facts.scoped(
        "deployment, count(*) AS records, min(epoch_us(started_at)) AS first_us, "
        "max(epoch_us(ended_at)) AS last_us",
        "GROUP BY deployment ORDER BY first_us, deployment",
    )
    return Table(
        name="deployments",
        title="Deployments, first and last use",
        columns=(
            Column(name="digest", label="Digest"),
            Column(name="model", label="Model"),
            Column(name="weights", label="Weights"),
            Column(name="runs_on", label="Runs on"),
            Column(name="first", label="First use"),
            Column(name="last", label="Last use"),
            Column(name="records", label="Requests", unit="requests"),
        ),
        rows=tuple(
            (
                row["deployment"],
                *_described(known.get(row["deployment"])),
                time_of(row["first_us"]),
                time_of(row["last_us"]),
                str(row["records"]),
            )
            for row in found
        ),
        derivation="deployments that records of the scope name; first start and last end of those records",
    )


def _described(found: Deployment | None) -> tuple[str, str, str]:
    if found is None:
        return "not in the export", "not stated", "not stated"
    given = {name: None if (value := getattr(found, name)) is UNSET else value for name in _SHOWN}
    weights = found.weights
    return (
        words_of(found.model, given["version"], given["quantization"]),
        "not stated" if weights is UNSET else f"{weights.method} {weights.digest}",
        words_of(
            found.engine, given["engine_version"], given["accelerator"], given["provider"], given["site"]
        ),
    )


_SHOWN = ("version", "quantization", "engine_version", "accelerator", "provider", "site")
