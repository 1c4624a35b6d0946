"""Owns what a report is: a signed JSON document of figures, each with its unit, reference and derivation.

A report says on what it stands: the log's checkpoint, period and scope, the export it was computed from,
factor sets, how the energy is known, what it does not cover, and the inputs that the log cannot know. The
same export, scope and inputs give the same bytes: canonical JSON (RFC 8785), a COSE_Sign1 beside it.

Amounts are decimal text (``"1234.567"``): totals pass what JSON numbers hold, and nothing may round them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core.canonical import decode_canonical, encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.keys import PrivateKey, PublicKey
from ledger.core.records import Hex32, TimeUs
from ledger.export.reports.signing import SignedKind, check_beside, sign_beside

__all__ = [
    "CONTENT_TYPE",
    "MAX_REPORT_BYTES",
    "Column",
    "Figure",
    "Report",
    "Scope",
    "Section",
    "Table",
    "UsedFactors",
    "decimal",
    "open_report",
    "sign_report",
]

CONTENT_TYPE = "application/vnd.tallystick.report+json"
MAX_REPORT_BYTES = 64 << 20
_KIND = SignedKind("report", CONTENT_TYPE, "tallystick:report", "malformed-report", "reporter")

Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4096)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[a-z0-9][a-z0-9_.-]*(?!\n)$")]
Decimal: TypeAlias = Annotated[str, Meta(max_length=128, pattern=r"^-?[0-9]+(\.[0-9]+)?(?!\n)$")]
Cell: TypeAlias = str | None


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Base of the parts of a report."""


class Figure(_Part, frozen=True):
    """One stated amount.

    ``basis`` tells whether it follows from the log, from the inputs file, or from both. Without a ``value``
    there is a ``gap`` that says why. ``low`` and ``high`` bound the value as the records bound theirs.
    ``coverage`` says of how many records it was computed, where not all have what it needs.
    """

    name: Name
    label: Text
    unit: Annotated[str, Meta(max_length=64)]
    derivation: Text
    basis: Literal["log", "inputs", "log and inputs"] = "log"
    value: Decimal | UnsetType = UNSET
    low: Decimal | UnsetType = UNSET
    high: Decimal | UnsetType = UNSET
    coverage: Text | UnsetType = UNSET
    reference: Text | UnsetType = UNSET
    gap: Text | UnsetType = UNSET


class Column(_Part, frozen=True):
    """A column of a table. Without a unit it holds text."""

    name: Name
    label: Text
    unit: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class Table(_Part, frozen=True):
    """Rows of cells; null is unknown. ``chart`` names a column to draw as bars over the first one."""

    name: Name
    title: Text
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    derivation: Text
    chart: Name | UnsetType = UNSET
    reference: Text | UnsetType = UNSET


class Section(_Part, frozen=True):
    """A part of a report: some words, figures, tables."""

    title: Text
    reference: Text | UnsetType = UNSET
    text: tuple[Text, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


class Scope(_Part, frozen=True):
    """Which records: started in ``from_us <= t < to_us`` (open if absent), with one of ``where``'s values."""

    from_us: TimeUs | UnsetType = UNSET
    to_us: TimeUs | UnsetType = UNSET
    where: dict[str, tuple[str, ...]] = {}


class UsedFactors(_Part, frozen=True):
    """A factor set that records of the scope were computed with, and how many."""

    digest: Hex32
    name: Text
    version: Text
    records: int
    region: Text | UnsetType = UNSET
    sources: tuple[Text, ...] = ()


class Report(_Part, frozen=True, omit_defaults=False):
    """A report. ``methods`` counts records by how their energy is known (``unknown``: they have none)."""

    kind: Name
    title: Text
    standard: Text
    subject: Text
    origin: Text
    checkpoint: Text
    scope: Scope
    export_manifest: Annotated[Hex32, Meta(description="SHA-256 of the export's manifest.json")]
    software: Text
    records: int
    methods: dict[str, int]
    factors: tuple[UsedFactors, ...]
    completeness: tuple[Text, ...]
    gaps: tuple[Text, ...]
    inputs: dict[str, str]
    inputs_stated_by: Text | None
    inputs_digest: Hex32 | None
    sections: tuple[Section, ...]
    inputs_signed_by: Hex32 | UnsetType = UNSET
    format: Literal["tallystick-report"] = "tallystick-report"
    version: Literal[1] = 1


_decoder = msgspec.json.Decoder(Report)


def decimal(value: int | Fraction, digits: int = 0) -> str:
    """``value`` with ``digits`` decimal places, rounded half away from zero. Exact: no floats."""
    scaled = Fraction(value) * 10**digits
    whole = (2 * abs(scaled.numerator) + scaled.denominator) // (2 * scaled.denominator)
    text = str(whole).rjust(digits + 1, "0")
    sign = "-" if scaled < 0 and whole else ""
    return sign + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)


def sign_report(report: Report, key: PrivateKey, *, issuer: str) -> tuple[bytes, bytes]:
    """The report's bytes, and the COSE_Sign1 (detached payload) by ``issuer`` over them."""
    data = encode_canonical(report)
    decode_canonical(data, _decoder, where="report")  # what a reader would refuse must not be signed
    return data, sign_beside(data, key, _KIND, issuer=issuer)


def open_report(data: bytes, signature: bytes, key: PublicKey) -> Report:
    """The report, once it is shown that ``key`` signed it. What it says is not yet checked against a log.

    Raises:
        InvalidError: malformed, or signed by another key. CorruptError: it was changed.
    """
    where = "report"
    if len(data) > MAX_REPORT_BYTES:
        raise InvalidError(f"has more than {MAX_REPORT_BYTES} bytes", where=where, code="too-large")
    check_beside(data, signature, key, _KIND)
    return decode_canonical(data, _decoder, where=where)
