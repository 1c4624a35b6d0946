"""Owns the tables that several reports have: totals by a dimension, and words from the inputs file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from msgspec import UNSET, UnsetType

from ledger.export.reports import figures as fig
from ledger.export.reports.document import Cell, Column, Table, decimal
from ledger.export.reports.facts import Facts
from ledger.export.reports.inputs import Asked, Inputs

__all__ = ["breakdown", "rows_of", "stated_words", "words_of"]

Measure = fig.Quantity | str
_COUNTS = {
    "records": ("Requests", "requests"),
    "input_tokens": ("Input tokens", "tokens"),
    "output_tokens": ("Output tokens", "tokens"),
    "tokens": ("Tokens", "tokens"),
}
NOT_STATED = "not stated"
"""Stands in a table where the inputs file has nothing."""


def words_of(*values: str | None, none: str = "not stated") -> str:
    """The values that are there, with spaces between; ``none`` if there is none."""
    return " ".join(value for value in values if value is not None) or none


def breakdown(
    facts: Facts,
    *by: str,
    name: str,
    title: str,
    heading: str,
    measures: Sequence[Measure],
    chart: str = "",
    where: Mapping[str, tuple[str, ...]] | None = None,
    none: str = "not stated",
    reference: str | UnsetType = UNSET,
) -> Table:
    """Totals of ``measures`` for each group of records of the scope.

    The first column holds the groups' values; ``none`` where records have none of them.
    """
    return rows_of(
        facts.rows(*by, where=where),
        lambda row: words_of(*(row[each] for each in by), none=none),
        name=name,
        title=title,
        heading=heading,
        measures=measures,
        chart=chart,
        reference=reference,
    )


def rows_of(
    rows: Sequence[Mapping[str, Any]],
    label: Callable[[Mapping[str, Any]], str],
    *,
    name: str,
    title: str,
    heading: str,
    measures: Sequence[Measure],
    chart: str = "",
    reference: str | UnsetType = UNSET,
) -> Table:
    """The same of rows that are there already."""
    quantities = [measure for measure in measures if isinstance(measure, fig.Quantity)]
    sums = ", ".join(f"{each.column} / {each.divisor:,}" for each in quantities)
    partial = "".join(f"; {_partly(rows, each)}" for each in quantities if _partly(rows, each))
    return Table(
        name=name,
        title=title,
        columns=(Column(name="group", label=heading), *map(_column, measures)),
        rows=tuple((label(row), *(_cell(row, measure) for measure in measures)) for row in rows),
        chart=chart or UNSET,
        derivation="sums over the records of each group" + (f": {sums}" if sums else "") + partial,
        reference=reference,
    )


def _partly(rows: Sequence[Mapping[str, Any]], of: fig.Quantity) -> str:
    """In words, that sums of ``of`` lack records that do not state it; empty where all or none do."""
    having = sum(row.get(f"{of.column}_records", 0) for row in rows)
    records = sum(row["records"] for row in rows)
    return f"{having:,} of {records:,} records state {of.column}" if 0 < having < records else ""


def _column(measure: Measure) -> Column:
    if isinstance(measure, fig.Quantity):
        return Column(name=measure.name, label=measure.label, unit=measure.unit)
    label, unit = _COUNTS[measure]
    return Column(name=measure, label=label, unit=unit)


def _cell(row: Mapping[str, Any], measure: Measure) -> Cell:
    if measure == "tokens":
        return str(row["input_tokens"] + row["output_tokens"])
    if isinstance(measure, str):
        return str(row[measure])
    if measure.column not in row:
        return None
    return decimal(Fraction(row[measure.column], measure.divisor), measure.places)


def stated_words(
    inputs: Inputs, asks: Mapping[str, Asked], *, name: str, title: str, reference: str | UnsetType = UNSET
) -> Table:
    """What the inputs file says in words, one row for each name of ``asks`` that has no unit."""
    rows = []
    for key, asked in asks.items():
        if asked.unit is None:
            value = inputs.text(key, asked.what if asked.needed else None)
            rows.append((asked.what[:1].upper() + asked.what[1:], value or NOT_STATED, asked.reference))
    return Table(
        name=name,
        title=title,
        columns=(
            Column(name="item", label="Item"),
            Column(name="statement", label="As stated in the inputs file"),
            Column(name="reference", label="Reference"),
        ),
        rows=tuple(rows),
        derivation="words of the inputs file, as they are",
        reference=reference,
    )
