"""Owns means of quality metrics over groups of an export's records: exact, in integers, with their counts.

A metric can be stated in the record itself (``recorded``), or later in an evaluation of the record, of its
batch or of its deployment. The four are kept apart: a hundred records weigh otherwise than one deployment. An
evaluation of a batch or deployment counts once in each group that has a record of it. Where an issuer's
evaluator says the same metric of the same thing again, the later one counts.
"""

# ruff: noqa: S608 - SQL is put together from names of the query's own dimensions

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

__all__ = ["EXTRA_SCALE", "Key", "mean_of", "quality_by_group"]

EXTRA_SCALE = 3
"""A mean has so many decimal places more than the finest of its values."""

Key = tuple[Any, ...]
_About = tuple[int, int, int, int, int]


def quality_by_group(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    keys: Sequence[tuple[str, str]],
    where: str,
    parameters: list[Any],
) -> dict[Key, list[dict[str, Any]]]:
    """Means by group.

    Args:
        connection: of ``open_export``.
        view: of the records.
        keys: name and SQL of each dimension.
        where: the WHERE clause, or nothing.
        parameters: its parameters.

    Returns:
        For each group's key (in the dimensions' own numbers) its metrics, by name and by what was evaluated:
        ``metric``, ``about``, ``count``, ``mean``, ``least``, ``most``, all at ``scale``.
    """
    chosen = "".join(f'{sql} AS "k_{name}", ' for name, sql in keys)
    names = "".join(f'"k_{name}", ' for name, _ in keys)
    found = connection.execute(
        f"""
WITH r AS (SELECT {chosen}id, leaf_index, deployment, quality FROM {view}{where}),
e AS (SELECT * FROM evaluations WHERE latest),
q AS (
    SELECT {names}'recorded' AS about, m.name AS metric, m.value AS value, m.scale AS scale
    FROM (SELECT {names}unnest(quality) AS m FROM r WHERE quality IS NOT NULL)
    UNION ALL
    SELECT {names}e.about, e.metric, e.value, e.scale FROM r JOIN e ON e.about = 'record' AND e.target = r.id
    UNION ALL
    SELECT {names}about, metric, value, scale FROM (
        SELECT DISTINCT {names}e.about, e.leaf_index, e.metric, e.value, e.scale
        FROM r JOIN statements s ON s.leaf_index = r.leaf_index
        JOIN e ON e.about = 'batch' AND e.target = s.leaf_hash)
    UNION ALL
    SELECT {names}about, metric, value, scale FROM (
        SELECT DISTINCT {names}e.about, e.leaf_index, e.metric, e.value, e.scale
        FROM r JOIN e ON e.about = 'deployment' AND e.target = r.deployment))
SELECT {names}metric, about, scale, count(*), sum(value), min(value), max(value) FROM q GROUP BY ALL""",
        parameters,
    ).fetchall()
    width = len(keys)
    parts: dict[tuple[Key, str, str], list[_About]] = defaultdict(list)
    for row in found:
        metric, about, *figures = row[width:]
        parts[row[:width], metric, about].append(tuple(map(int, figures)))  # type: ignore[arg-type]
    made: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for (key, metric, about), each in sorted(parts.items(), key=lambda item: item[0][1:]):
        made[key].append({"metric": metric, "about": about} | mean_of(each))
    return made


def mean_of(parts: Sequence[_About]) -> dict[str, int]:
    """The mean over values of several scales.

    Args:
        parts: for each scale: the scale, number, sum, least and greatest of the values.
    """
    finest = max(scale for scale, *_ in parts)
    count = sum(number for _, number, *_ in parts)
    unit = 10**EXTRA_SCALE
    total = sum(sum_ * 10 ** (finest - scale) for scale, _, sum_, _, _ in parts) * unit
    return {
        "count": count,
        "mean": rounded(total, count),
        "least": min(least * 10 ** (finest - scale) for scale, _, _, least, _ in parts) * unit,
        "most": max(most * 10 ** (finest - scale) for scale, _, _, _, most in parts) * unit,
        "scale": finest + EXTRA_SCALE,
    }


def rounded(numerator: int, denominator: int) -> int:
    """The quotient, half away from zero."""
    sign = -1 if numerator < 0 else 1
    return sign * ((2 * abs(numerator) + denominator) // (2 * denominator))
