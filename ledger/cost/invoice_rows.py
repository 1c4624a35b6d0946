"""Rows and cells of invoices' files: CSV, OpenAI's JSON pages, decimal numbers, times."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from ledger.core.canonical import MAX_SAFE_INTEGER, check_nesting
from ledger.core.errors import InvalidError

__all__ = ["bad", "csv_rows", "decimal", "json_rows", "places", "time_of", "unix_us"]

_NANO = 10**9
_US_PER_S = 1_000_000
_MAX_CELL = 4096
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Rows = Iterable[tuple[int, Mapping[str, str]]]


def decimal(text: str, where: str) -> Decimal:
    """The number that a cell writes, with marks of thousands and a currency sign or without."""
    plain = text.strip().replace("'", "").replace(" ", "")
    plain = plain.lstrip("$€£") if plain[:1] in "$€£" else plain
    if re.fullmatch(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?", plain):
        plain = plain.replace(",", "")
    try:
        value = Decimal(plain) if len(plain) <= 60 else None
    except InvalidOperation:
        value = None
    if value is None or not value.is_finite() or abs(value) * _NANO > MAX_SAFE_INTEGER * 1024:
        raise bad(f"{text[:60]!r} is no number", where, "write 1234.56")
    return value


def places(value: Decimal) -> int:
    """How many decimal places a number is written with."""
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def time_of(text: str, zone: ZoneInfo, where: str) -> datetime:
    """The time that a cell writes: ISO 8601, in ``zone`` without an offset, or Unix time."""
    try:
        if text.isascii() and text.isdigit() and len(text) in (10, 13):
            return _EPOCH + timedelta(milliseconds=int(text) * (1 if len(text) == 13 else 1000))
        when = datetime.fromisoformat(text.removesuffix(" UTC") + ("Z" if text.endswith(" UTC") else ""))
        when = when.replace(tzinfo=zone) if when.tzinfo is None else when
        unix_us(when)
    except (ValueError, OverflowError):
        raise bad(f"{text[:60]!r} is no time", where, "write 2026-01-31 or 2026-01-31T00:00:00Z") from None
    return when


def unix_us(when: datetime) -> int:
    """Unix microseconds."""
    delta = when.astimezone(UTC) - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * _US_PER_S + delta.microseconds


def csv_rows(text: str, where: str) -> tuple[list[str], Iterable[tuple[int, Mapping[str, str]]]]:
    """The columns, and each row with the number of its line."""
    head = text.partition("\n")[0]
    delimiter = max((",", ";", "\t"), key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise bad(f"is not CSV: {error}", where) from None
    if len(set(names)) < len(names) or not names:
        raise bad("its first line does not name each column once", f"{where}:1")

    def rows() -> Iterable[tuple[int, Mapping[str, str]]]:
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise bad(f"is not CSV: {error}", f"{where}:{number}") from None
            if row is None:
                return
            if len(row) > len(names):
                raise bad("has more cells than there are columns", f"{where}:{number}")
            if any(cell.strip() for cell in row):
                yield number, dict(zip(names, row, strict=False))

    return names, rows()


def json_rows(text: str, where: str) -> tuple[list[str], list[tuple[int, Mapping[str, str]]]]:
    """Rows of OpenAI's pages: buckets (``start_time``, ``end_time``) with results."""
    data = text.encode()
    try:
        check_nesting(data, where=where)
        value: Any = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise bad(f"is not valid JSON: {str(error)[:200]}", where) from None
    pages = value if isinstance(value, list) else [value]
    rows: list[tuple[int, Mapping[str, str]]] = []
    names: dict[str, None] = {}
    for page in pages:
        buckets = page.get("data") if isinstance(page, dict) else None
        if not isinstance(buckets, list):
            raise bad("is not a page of OpenAI's usage or costs API", where, "pass the whole answers")
        for bucket in buckets:
            results = bucket.get("results") if isinstance(bucket, dict) else None
            if not isinstance(results, list):
                raise bad("has a bucket without results", where)
            for result in results:
                if not isinstance(result, dict):
                    raise bad("has a result that is no object", where)
                amount = result.get("amount")
                flat = {**result, "start_time": bucket.get("start_time"), "end_time": bucket.get("end_time")}
                if isinstance(amount, dict):
                    flat |= {f"amount_{name}": amount.get(name) for name in ("value", "currency")}
                row = {str(name): _plain(cell) for name, cell in flat.items()}
                names |= dict.fromkeys(row)
                rows.append((len(rows) + 1, row))
    return list(names), rows


def _plain(cell: Any) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return str(cell)[:_MAX_CELL] if isinstance(cell, str | int | float) else ""


def bad(what: str, where: str, remedy: str = "") -> InvalidError:
    """The refusal of an invoice."""
    return InvalidError(what, where=where, remedy=remedy, code="bad-invoice")
