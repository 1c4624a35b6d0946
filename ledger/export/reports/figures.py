"""Owns how totals become figures of a report: units, ranges, coverage, and the words that derive them.

Units: 1 kWh = 3.6e12 uJ; 1 kg = 1e12 ng; 1 l = 1e9 nl. All divisions are exact until the last, which rounds
half away from zero to the stated number of places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from ledger.export.reports.document import Figure, decimal
from ledger.export.reports.inputs import Asked, Inputs

__all__ = [
    "CARBON_KG",
    "CARBON_MARKET_KG",
    "CARBON_MARKET_T",
    "CARBON_T",
    "EMBODIED_KG",
    "EMBODIED_T",
    "ENERGY_KWH",
    "ENERGY_MWH",
    "WATER_L",
    "WATER_M3",
    "Quantity",
    "Sum",
    "added",
    "asked",
    "count",
    "coverage_of",
    "derived",
    "missing",
    "partial_in",
    "per",
    "share",
    "stated",
    "sum_in",
    "sum_of",
    "total",
    "whole",
]

PLACES = 6
"""Decimal places of totals: a millionth of a kWh, kg or litre."""
_FINE_PLACES = 9
"""The same for MWh, tonnes and cubic metres."""
_NOWHERE = "no record of the scope states it"


@dataclass(frozen=True)
class Quantity:
    """A figure that records carry: its column, the unit of reports and how many of ours make one of those."""

    name: str
    label: str
    column: str
    unit: str
    divisor: int
    low: str | None = None
    high: str | None = None
    places: int = PLACES


ENERGY_KWH = Quantity(
    "energy",
    "Energy of the IT equipment",
    "energy_uj",
    "kWh",
    3_600_000_000_000,
    "energy_low_uj",
    "energy_high_uj",
)
CARBON_KG = Quantity(
    "carbon_location",
    "Carbon, location-based",
    "carbon_ng",
    "kg CO2e",
    10**12,
    "carbon_low_ng",
    "carbon_high_ng",
)
CARBON_MARKET_KG = Quantity("carbon_market", "Carbon, market-based", "carbon_market_ng", "kg CO2e", 10**12)
EMBODIED_KG = Quantity("carbon_embodied", "Embodied carbon of the hardware", "embodied_ng", "kg CO2e", 10**12)
WATER_L = Quantity("water", "Water", "water_nl", "l", 10**9)


def _thousand(of: Quantity, unit: str) -> Quantity:
    return replace(of, unit=unit, divisor=1000 * of.divisor, places=_FINE_PLACES)


ENERGY_MWH = _thousand(ENERGY_KWH, "MWh")
CARBON_T = _thousand(CARBON_KG, "t CO2e")
CARBON_MARKET_T = _thousand(CARBON_MARKET_KG, "t CO2e")
EMBODIED_T = _thousand(EMBODIED_KG, "t CO2e")
WATER_M3 = _thousand(WATER_L, "m3")


@dataclass(frozen=True)
class Sum:
    """An exact total in a report's unit, of ``having`` out of ``records`` records.

    ``logged`` is what it was as first logged, where corrections changed it.
    """

    value: Fraction
    low: Fraction
    high: Fraction
    having: int
    records: int
    logged: Fraction | None = None

    def times(self, factor: Fraction) -> Sum:
        """As many times this."""
        low, high = sorted((self.low * factor, self.high * factor))
        logged = None if self.logged is None else self.logged * factor
        return Sum(self.value * factor, low, high, self.having, self.records, logged)

    def __add__(self, other: Sum) -> Sum:
        before = [each.value if each.logged is None else each.logged for each in (self, other)]
        return Sum(
            self.value + other.value,
            self.low + other.low,
            self.high + other.high,
            self.having + other.having,
            self.records + other.records,
            None if self.logged is other.logged is None else sum(before, Fraction(0)),
        )


def sum_of(rows: Sequence[Mapping[str, Any]], quantity: Quantity) -> Sum | None:
    """The total of ``quantity`` over groups of records; None if no record states it."""
    stating = [row for row in rows if quantity.column in row]
    if not stating:
        return None

    def over(column: str | None) -> Fraction:
        return Fraction(sum(row[column or quantity.column] for row in stating), quantity.divisor)

    return Sum(
        value=over(None),
        low=over(quantity.low),
        high=over(quantity.high),
        having=sum(row[f"{quantity.column}_records"] for row in stating),
        records=sum(row["records"] for row in rows),
        logged=_logged(stating, quantity),
    )


def _logged(rows: Sequence[Mapping[str, Any]], quantity: Quantity) -> Fraction | None:
    """The total before corrections; None if they did not change it."""
    column = quantity.column
    if not any(column in row.get("as_logged", {}) for row in rows):
        return None
    before = (row["as_logged"][column] if column in row.get("as_logged", {}) else row[column] for row in rows)
    return Fraction(sum(value or 0 for value in before), quantity.divisor)


def sum_in(figure: Figure) -> Sum | None:
    """A figure's amount and range, as stated, to compute on with; None if it is a gap."""
    if figure.value is UNSET:
        return None
    low = figure.value if figure.low is UNSET else figure.low
    high = figure.value if figure.high is UNSET else figure.high
    return Sum(Fraction(figure.value), Fraction(low), Fraction(high), 0, 0)


def derived(
    name: str,
    label: str,
    unit: str,
    found: Sum | None,
    *,
    derivation: str,
    places: int = PLACES,
    ranged: bool = True,
    why: str = _NOWHERE,
    reference: str | UnsetType = UNSET,
) -> Figure:
    """A figure of the log from an exact total."""
    if found is None:
        return missing(name, label, unit, why, derivation, reference)
    return Figure(
        name=name,
        label=label,
        unit=unit,
        value=decimal(found.value, places),
        low=decimal(found.low, places) if ranged else UNSET,
        high=decimal(found.high, places) if ranged else UNSET,
        coverage=_covered(found, places),
        derivation=derivation,
        reference=reference,
    )


def _covered(found: Sum, places: int) -> str | UnsetType:
    parts = []
    if found.having != found.records:
        parts.append(f"{found.having:,} of {found.records:,} records state it")
    if found.logged is not None:
        parts.append(f"with corrections; {decimal(found.logged, places)} as first logged")
    return "; ".join(parts) or UNSET


def coverage_of(row: Mapping[str, Any], column: str) -> str | UnsetType:
    """``n of m records``, where not all records have ``column``, and whether some are restated."""
    having, records = row.get(f"{column}_records", 0), row["records"]
    parts = [] if having == records else [f"{having:,} of {records:,} records state it"]
    if column in row.get("as_logged", {}):
        parts.append(f"with corrections: {row['corrected_records']:,} records are restated")
    return "; ".join(parts) or UNSET


def partial_in(coverage: str) -> str | None:
    """The part of a figure's ``coverage`` that says that records lack the figure; None if all have it."""
    return next((part for part in coverage.split("; ") if " records state " in part), None)


def total(
    rows: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    quantity: Quantity,
    *,
    name: str = "",
    label: str = "",
    over: str = "the records of the scope",
    why: str = _NOWHERE,
    reference: str | UnsetType = UNSET,
) -> Figure:
    """The sum of ``quantity`` over rows of totals, with its range; a gap where no record states it.

    ``over`` says in words which records the rows are of.
    """
    return derived(
        name or quantity.name,
        label or quantity.label,
        quantity.unit,
        sum_of([rows] if isinstance(rows, Mapping) else rows, quantity),
        derivation=f"sum of {quantity.column} over {over} / {quantity.divisor:,}",
        places=quantity.places,
        ranged=quantity.low is not None,
        why=why,
        reference=reference,
    )


def per(
    row: Mapping[str, Any],
    quantity: Quantity,
    unit: str,
    divisor: int,
    *,
    by: str,
    name: str = "",
    label: str = "",
    reference: str | UnsetType = UNSET,
) -> Figure:
    """An intensity: ``quantity`` per 1,000 tokens (``by="tokens"``) or per request (``by="requests"``).

    Only records that state the quantity count, above and below the line. ``unit`` is what ``divisor`` of our
    units make.
    """
    what = "1,000 tokens" if by == "tokens" else "request"
    name = name or f"{quantity.name}_per_{'1k_tokens' if by == 'tokens' else 'request'}"
    label = label or f"{quantity.label} per {what}"
    below = "input_tokens + output_tokens" if by == "tokens" else "records"
    derivation = (
        f"sum of {quantity.column} / {divisor:,} / "
        f"{'(sum of ' + below + ' / 1,000)' if by == 'tokens' else 'number of records'}, "
        f"over the records that state {quantity.column}"
    )
    full = f"{unit} per {what}"
    having = row.get(f"{quantity.column}_records", 0)
    tokens = row.get(f"{quantity.column}_tokens", 0)
    count_ = Fraction(tokens, 1000) if by == "tokens" else Fraction(having)
    if quantity.column not in row or not count_:
        return missing(name, label, full, "no record of the scope states it", derivation, reference)

    def scaled(column: str) -> str:
        return decimal(Fraction(row[column], divisor) / count_, PLACES)

    return Figure(
        name=name,
        label=label,
        unit=full,
        value=scaled(quantity.column),
        low=UNSET if quantity.low is None else scaled(quantity.low),
        high=UNSET if quantity.high is None else scaled(quantity.high),
        coverage=coverage_of(row, quantity.column),
        derivation=derivation,
        reference=reference,
    )


def count(
    row: Mapping[str, Any], column: str, label: str, unit: str, *, reference: str | UnsetType = UNSET
) -> Figure:
    """A plain sum of a column of counts."""
    derivation = (
        "number of records of the scope"
        if column == "records"
        else f"sum of {column} over the records of the scope"
    )
    if column not in row:
        return missing(column, label, unit, "no record of the scope states it", derivation, reference)
    needs_all = column in ("records", "input_tokens", "output_tokens")
    return Figure(
        name=column,
        label=label,
        unit=unit,
        value=str(row[column]),
        coverage=UNSET if needs_all else coverage_of(row, column),
        derivation=derivation,
        reference=reference,
    )


def stated(
    name: str,
    label: str,
    unit: str,
    value: Sum | Fraction | None,
    *,
    digits: int = PLACES,
    derivation: str,
    both: bool = False,
    why: str = "the inputs file does not state it",
    reference: str | UnsetType = UNSET,
) -> Figure:
    """A figure from the inputs file, or (``both``) from it and the log; a gap where something is missing.

    A sum of the log brings its range.
    """
    basis: Literal["inputs", "log and inputs"] = "log and inputs" if both else "inputs"
    if value is None:
        return Figure(
            name=name,
            label=label,
            unit=unit,
            gap=why,
            derivation=derivation,
            basis=basis,
            reference=reference,
        )
    ends = (value.low, value.high) if isinstance(value, Sum) else None
    return Figure(
        name=name,
        label=label,
        unit=unit,
        value=decimal(value.value if isinstance(value, Sum) else value, digits),
        low=UNSET if ends is None else decimal(ends[0], digits),
        high=UNSET if ends is None else decimal(ends[1], digits),
        derivation=derivation,
        basis=basis,
        reference=reference,
    )


def asked(inputs: Inputs, name: str, of: Asked) -> Figure:
    """The figure that the inputs file states under ``name``."""
    return stated(
        name,
        of.what[:1].upper() + of.what[1:],
        of.unit or "",
        inputs.number(name, of.what),
        derivation=f"inputs: {name}",
        reference=of.reference or UNSET,
    )


def added(
    name: str,
    label: str,
    unit: str,
    parts: Mapping[str, Sum | Fraction | None],
    *,
    places: int = PLACES,
    basis: Literal["log", "log and inputs"] = "log and inputs",
    reference: str | UnsetType = UNSET,
) -> Figure:
    """The sum of named parts, each from the log or from the inputs; a gap where one of them is missing."""
    derivation = "sum of: " + "; ".join(parts)
    lacking = [part for part, value in parts.items() if value is None]
    if lacking:
        why = f"missing: {'; '.join(lacking)}"
        return Figure(
            name=name,
            label=label,
            unit=unit,
            gap=why,
            derivation=derivation,
            basis=basis,
            reference=reference,
        )
    sums = [value for value in parts.values() if isinstance(value, Sum)]
    plain = sum((value for value in parts.values() if isinstance(value, Fraction)), Fraction(0))
    having, records = sum(each.having for each in sums), sum(each.records for each in sums)
    return Figure(
        name=name,
        label=label,
        unit=unit,
        value=decimal(plain + sum(each.value for each in sums), places),
        low=decimal(plain + sum(each.low for each in sums), places),
        high=decimal(plain + sum(each.high for each in sums), places),
        coverage=UNSET if having == records else "not all records state every part; see the parts",
        derivation=derivation,
        basis=basis,
        reference=reference,
    )


def share(
    name: str,
    label: str,
    part: Sum | Fraction | None,
    of: Fraction | None,
    *,
    derivation: str,
    unit: str = "%",
    times: int = 100,
    both: bool = True,
    why: str,
    reference: str | UnsetType = UNSET,
) -> Figure:
    """``part / of * times``; a gap (``why``) where either is missing or ``of`` is zero."""
    scaled: Sum | Fraction | None = None
    if part is not None and of:
        scaled = part.times(times / of) if isinstance(part, Sum) else times * part / of
    return stated(
        name,
        label,
        unit,
        scaled,
        derivation=derivation,
        both=both,
        why=why,
        reference=reference,
    )


def whole(
    name: str, label: str, unit: str, value: int, derivation: str, reference: str | UnsetType = UNSET
) -> Figure:
    """A count."""
    return Figure(
        name=name, label=label, unit=unit, value=str(value), derivation=derivation, reference=reference
    )


def missing(
    name: str, label: str, unit: str, why: str, derivation: str, reference: str | UnsetType = UNSET
) -> Figure:
    """A figure that cannot be had, and why."""
    return Figure(name=name, label=label, unit=unit, gap=why, derivation=derivation, reference=reference)
