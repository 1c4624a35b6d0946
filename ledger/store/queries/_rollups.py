"""Roll-ups: exact sums by hour, day, model, deployment or tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from ledger.core.errors import InvalidError
from ledger.store.tables import ROLLUP_SUMS, Document, Rollup, table

__all__ = [
    "ROLLUP_DIMENSIONS",
    "present_sums",
    "rollups",
]

_HOUR_US = 3_600_000_000
ROLLUP_DIMENSIONS = ("hour", "day", "model", "deployment", "tenant")


def rollups(
    connection: Connection,
    by: Sequence[str],
    *,
    from_us: int | None = None,
    to_us: int | None = None,
    model: str | None = None,
    deployment: str | None = None,
    tenant: str | None = None,
) -> list[dict[str, Any]]:
    """Sums by ``by`` (of ``ROLLUP_DIMENSIONS``), in exact integers, ordered by their keys.

    ``hour`` and ``day`` are Unix seconds of their beginning (UTC). Whole hours only: the period's ends must
    be full hours. Figures that no record has are absent.

    Raises:
        InvalidError: unknown dimension, or a period that cuts an hour.
    """
    for name in by:
        if name not in ROLLUP_DIMENSIONS:
            raise InvalidError(
                f"cannot roll up by {name!r}",
                where="by",
                remedy=f"use {', '.join(ROLLUP_DIMENSIONS)}",
                code="bad-parameter",
            )
    for name, time_us in (("from_us", from_us), ("to_us", to_us)):
        if time_us is not None and time_us % _HOUR_US:
            raise InvalidError(
                f"{name} {time_us} is within an hour, and roll-ups are of whole hours",
                where=name,
                remedy="round it to a full hour, or list the records",
                code="bad-parameter",
            )
    rows, docs = table(Rollup), table(Document)
    query = select(rows, docs.c.model).join(docs, docs.c.digest == rows.c.deployment, isouter=True)
    if from_us is not None:
        query = query.where(rows.c.hour >= from_us // _HOUR_US)
    if to_us is not None:
        query = query.where(rows.c.hour < to_us // _HOUR_US)
    for column, value in ((docs.c.model, model), (rows.c.deployment, deployment), (rows.c.tenant, tenant)):
        if value is not None:
            query = query.where(column == value)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in connection.execute(query):
        values = {
            "hour": row.hour * 3600,
            "day": row.hour // 24 * 86_400,
            "model": row.model or "",
            "deployment": row.deployment,
            "tenant": row.tenant,
        }
        key = tuple(values[name] for name in by)
        sums = msgspec.json.decode(row.sums, type=list[int])
        before = groups.get(key)
        groups[key] = sums if before is None else [a + b for a, b in zip(before, sums, strict=True)]
    return [
        dict(zip(by, key, strict=True)) | present_sums(dict(zip(ROLLUP_SUMS, groups[key], strict=True)))
        for key in sorted(groups)
    ]


def present_sums(sums: dict[str, int]) -> dict[str, int]:
    """Drop the sums that no record contributed to: what is unknown is absent, not zero."""
    energy = sums["measured_records"] + sums["modelled_records"] + sums["estimated_records"]
    counts = {
        "cached_input_tokens": sums["cached_input_records"],
        "reasoning_tokens": sums["reasoning_records"],
        "energy_uj": energy,
        "energy_low_uj": energy,
        "energy_high_uj": energy,
        "carbon_ng": sums["carbon_records"],
        "carbon_market_ng": sums["carbon_market_records"],
        "embodied_ng": sums["embodied_records"],
        "water_nl": sums["water_records"],
    }
    return {name: value for name, value in sums.items() if counts.get(name, 1)}
