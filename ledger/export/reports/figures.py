"""Owns how totals become figures of a report: units, ranges, coverage, and the words that derive them.

Units: 1 kWh = 3.6e12 uJ; 1 kg = 1e12 ng; 1 l = 1e9 nl. All divisions are exact until the last, which rounds
half away from zero to the stated number of places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from ledger.export.reports.document import Figure, decimal

__all__ = [
    "CARBON_KG",
    "CARBON_MARKET_KG",
    "EMBODIED_KG",
    "ENERGY_KWH",
    "WATER_L",
    "Quantity",
    "count",
    "coverage_of",
    "missing",
    "per",
    "stated",
    "total",
]

PLACES = 6
"""Decimal places of totals: a millionth of a kWh, kg or litre."""


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


def coverage_of(row: Mapping[str, Any], column: str) -> str | UnsetType:
    """``n of m records``, where not all records have ``column``; absent where all do."""
    having, records = row.get(f"{column}_records", 0), row["records"]
    return UNSET if having == records else f"{having:,} of {records:,} records state it"


def total(
    row: Mapping[str, Any],
    quantity: Quantity,
    *,
    name: str = "",
    label: str = "",
    reference: str | UnsetType = UNSET,
) -> Figure:
    """The sum of ``quantity`` over a row of totals, with its range; a gap where no record states it."""
    name, label = name or quantity.name, label or quantity.label
    derivation = f"sum of {quantity.column} over the records of the scope / {quantity.divisor:,}"
    if quantity.column not in row:
        return missing(name, label, quantity.unit, "no record of the scope states it", derivation, reference)
    return Figure(
        name=name,
        label=label,
        unit=quantity.unit,
        value=_scaled(row[quantity.column], quantity),
        low=UNSET if quantity.low is None else _scaled(row[quantity.low], quantity),
        high=UNSET if quantity.high is None else _scaled(row[quantity.high], quantity),
        coverage=coverage_of(row, quantity.column),
        derivation=derivation,
        reference=reference,
    )


def _scaled(value: int, quantity: Quantity) -> str:
    return decimal(Fraction(value, quantity.divisor), PLACES)


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
    value: Fraction | None,
    *,
    digits: int = PLACES,
    derivation: str,
    both: bool = False,
    why: str = "the inputs file does not state it",
    reference: str | UnsetType = UNSET,
) -> Figure:
    """A figure from the inputs file, or (``both``) from it and the log; a gap where something is missing."""
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
    return Figure(
        name=name,
        label=label,
        unit=unit,
        value=decimal(value, digits),
        derivation=derivation,
        basis=basis,
        reference=reference,
    )


def missing(
    name: str, label: str, unit: str, why: str, derivation: str, reference: str | UnsetType = UNSET
) -> Figure:
    """A figure that cannot be had, and why."""
    return Figure(name=name, label=label, unit=unit, gap=why, derivation=derivation, reference=reference)
