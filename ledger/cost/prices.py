"""Owns price books as people write them: JSON with the rates in any order, and CSV with decimal rates.

A rate in CSV is in units of the currency for a million tokens, as providers publish them (``0.15``), and is
read exactly: what has more digits than a billionth of the unit is refused, not rounded.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from ledger.core.canonical import MAX_SAFE_INTEGER, check_nesting
from ledger.core.errors import InvalidError
from ledger.core.price_books import PriceBook, Rate, check_price_book, rate_key

__all__ = ["CSV_COLUMNS", "load_price_book", "make_price_book", "nano", "read_price_book", "read_rates_csv"]

MAX_FILE_BYTES = 16 << 20
"""Four thousand rates with aliases take less than three."""
_NANO = 10**9
_MAX_DIGITS = 40

_AMOUNTS = {
    "input_per_mtok": "input_nano_per_mtok",
    "cached_input_per_mtok": "cached_input_nano_per_mtok",
    "cache_write_per_mtok": "cache_write_nano_per_mtok",
    "output_per_mtok": "output_nano_per_mtok",
    "reasoning_per_mtok": "reasoning_nano_per_mtok",
    "per_request": "request_nano",
}
_WORDS = ("model", "aliases", "provider", "region", "tier", "above_input_tokens")
CSV_COLUMNS = (*_WORDS, *_AMOUNTS)
"""Columns of a CSV of rates. ``model``, ``input_per_mtok`` and ``output_per_mtok`` are needed; ``aliases``
are separated by spaces."""
_NEEDED = ("model", "input_per_mtok", "output_per_mtok")


def nano(text: str, where: str) -> int:
    """Billionths of an amount that is written in decimals; exact.

    Raises:
        InvalidError: no number, negative, or with more digits than a billionth.
    """
    try:
        value = Decimal(text.strip()) if len(text) <= _MAX_DIGITS else None
    except InvalidOperation:
        value = None
    if value is None or not value.is_finite() or value < 0 or value > MAX_SAFE_INTEGER:
        raise InvalidError(
            f"{text[:_MAX_DIGITS]!r} is not an amount of money",
            where=where,
            remedy="write decimals such as 0.15",
            code="bad-price-book",
        )
    scaled = value * _NANO
    if scaled != scaled.to_integral_value() or scaled > MAX_SAFE_INTEGER:
        raise InvalidError(
            f"{text[:_MAX_DIGITS]!r} cannot be told in billionths of the currency",
            where=where,
            remedy="write at most nine decimal places",
            code="bad-price-book",
        )
    return int(scaled)


def make_price_book(
    rates: Iterable[Rate],
    *,
    name: str,
    version: str,
    currency: str,
    source: str,
    valid_from_us: int | None = None,
    valid_until_us: int | None = None,
    where: str = "prices",
) -> PriceBook:
    """A checked price book of ``rates`` in any order.

    Raises:
        InvalidError: a value has the wrong form, or the book is inconsistent in itself.
    """
    book = PriceBook(
        name=name,
        version=version,
        currency=currency,
        source=source,
        rates=tuple(sorted(rates, key=rate_key)),
        valid_from_us=UNSET if valid_from_us is None else valid_from_us,
        valid_until_us=UNSET if valid_until_us is None else valid_until_us,
    )
    return read_price_book(msgspec.json.encode(book), where=where)


def read_price_book(data: bytes, *, where: str = "prices") -> PriceBook:
    """Read a price book's JSON, in any spelling and with its rates in any order; return the sound book.

    Raises:
        InvalidError: not JSON, too large, of another shape, or inconsistent in itself.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InvalidError(f"has more than {MAX_FILE_BYTES} bytes", where=where, code="bad-price-book")
    try:
        check_nesting(data, where=where)
        book = msgspec.json.decode(data, type=PriceBook)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(
            f"is not a price book: {str(error)[:200]}",
            where=where,
            remedy="see schemas/prices.schema.json, or make one: tallystick prices make",
            code="bad-price-book",
        ) from None
    book = msgspec.structs.replace(book, rates=tuple(sorted(book.rates, key=rate_key)))
    check_price_book(book, where=where)
    return book


def load_price_book(path: Path) -> PriceBook:
    """Read a price book's file.

    Raises:
        InvalidError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="name a price book's JSON file; `tallystick prices make` writes one",
            code="bad-price-book",
        ) from None
    return read_price_book(data, where=str(path))


def read_rates_csv(text: str, *, where: str = "rates") -> list[Rate]:
    """Read rates from CSV with a line of names out of ``CSV_COLUMNS``.

    Raises:
        InvalidError: a column is unknown or missing, or a cell is not usable; ``where`` names the line.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        unknown = [name for name in columns if name not in CSV_COLUMNS]
        missing = [name for name in _NEEDED if name not in columns]
        if unknown or missing or len(set(columns)) < len(columns):
            told = f"has no column {missing[0]!r}" if missing else f"has a column {(unknown or columns)[0]!r}"
            raise InvalidError(
                told,
                where=where,
                remedy=f"the columns are {', '.join(CSV_COLUMNS)}, each once",
                code="bad-price-book",
            )
        reader.fieldnames = columns
        return [_rate(row, f"{where}:{reader.line_num}") for row in reader]
    except csv.Error as error:
        raise InvalidError(f"is not CSV: {error}", where=where, code="bad-price-book") from None


def _rate(row: Mapping[str | None, str | None], where: str) -> Rate:
    def cell(name: str) -> str | UnsetType:
        return (row.get(name) or "").strip() or UNSET

    if None in row:
        raise InvalidError("has more cells than columns", where=where, code="bad-price-book")
    missing = [name for name in _NEEDED if cell(name) is UNSET]
    if missing:
        raise InvalidError(f"{missing[0]} is empty", where=where, code="bad-price-book")
    above = cell("above_input_tokens")
    if isinstance(above, str) and not (above.isascii() and above.isdigit() and len(above) < 16):
        raise InvalidError(f"{above[:40]!r} is no number of tokens", where=where, code="bad-price-book")
    aliases = cell("aliases")
    amounts = {
        field: nano(text, f"{where} {name}")
        for name, field in _AMOUNTS.items()
        if isinstance(text := cell(name), str)
    }
    words = {name: text for name in ("provider", "region", "tier") if (text := cell(name)) is not UNSET}
    try:
        return msgspec.convert(
            {"model": cell("model")}
            | words
            | amounts
            | ({"aliases": tuple(aliases.split())} if isinstance(aliases, str) else {})
            | ({"above_input_tokens": int(above)} if isinstance(above, str) else {}),
            Rate,
        )
    except msgspec.ValidationError as error:
        raise InvalidError(str(error)[:200], where=where, code="bad-price-book") from None
