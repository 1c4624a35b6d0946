"""Reads a customer's own log of requests: CSV or JSON lines, as it is, for comparison with a settlement."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError
from ledger.core.records import Amount

__all__ = ["COUNTS", "MAX_TEXT", "Counts", "OwnRow", "bad_log", "read_own_log"]

MAX_OWN_BYTES = 256 << 20
MAX_OWN_ROWS = 2_000_000
COUNTS = ("input_tokens", "output_tokens", "cost_nano")
"""What is compared."""
MAX_TEXT = 1024
"""Characters of an id."""
_NAMES = ("record", "request", *COUNTS)


class Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What one side says of a request. What it does not say is absent, and not compared."""

    input_tokens: Amount | UnsetType = UNSET
    output_tokens: Amount | UnsetType = UNSET
    cost_nano: Amount | UnsetType = UNSET


@dataclass(frozen=True)
class OwnRow:
    """A request in the customer's log. ``line`` is its place there, from 1."""

    line: int
    record: str | None
    request: str | None
    counts: Counts


def read_own_log(data: bytes, *, where: str = "own log") -> list[OwnRow]:
    """Rows of the customer's log: CSV with a line of names, or one JSON object a line.

    Names: ``record`` or ``request`` (or both), and some of ``input_tokens``, ``output_tokens``,
    ``cost_nano``. Other columns are passed over: it is somebody's own log.

    Raises:
        InvalidError: too large, or a row cannot be read; ``where`` names it.
    """
    if len(data) > MAX_OWN_BYTES:
        raise InvalidError(
            f"has more than {MAX_OWN_BYTES} bytes",
            where=where,
            remedy="settle a shorter period",
            code="too-large",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise bad_log("is not UTF-8 text", where) from None
    made: list[OwnRow] = []
    for line, fields in _json_rows(text, where) if text.lstrip()[:1] == "{" else _csv_rows(text, where):
        if len(made) == MAX_OWN_ROWS:
            raise InvalidError(
                f"has more than {MAX_OWN_ROWS:,} rows",
                where=where,
                remedy="settle a shorter period",
                code="too-large",
            )
        made.append(_row(line, fields, f"{where}, line {line}"))
    if not made:
        raise bad_log("has no row", where)
    return made


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [each.strip() for each in next(reader, [])]
        chosen = [(at, name) for at, name in enumerate(names) if name in _NAMES]
        if len({name for _, name in chosen}) < len(chosen):
            raise bad_log("has a column twice", f"{where}, line 1")
        if not {"record", "request"} & set(names) or not set(COUNTS) & set(names):
            raise bad_log("the first line must name record or request, and tokens", f"{where}, line 1")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise bad_log(
                    f"has {len(row)} cells, but the first line {len(names)}",
                    f"{where}, line {reader.line_num}",
                )
            yield reader.line_num, {name: cell for at, name in chosen if (cell := row[at].strip())}
    except csv.Error as error:
        raise bad_log(f"is not CSV: {error}", f"{where}, line {reader.line_num}") from None


def _json_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise bad_log(f"is not JSON: {str(error)[:200]}", f"{where}, line {number}") from None
        if not isinstance(row, dict):
            raise bad_log("is not an object", f"{where}, line {number}")
        yield number, {name: row[name] for name in _NAMES if row.get(name) is not None}


def _row(line: int, fields: dict[str, Any], where: str) -> OwnRow:
    record, request = fields.get("record"), fields.get("request")
    if record is None and request is None:
        raise bad_log("names neither a record nor a request", where)
    for text in (record, request):
        if text is not None and (not isinstance(text, str) or len(text) > MAX_TEXT):
            raise bad_log(f"an id is no text of at most {MAX_TEXT} characters", where)
    counts: dict[str, Any] = {}
    for name in COUNTS:
        value = fields.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 16:
            value = int(value)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SAFE_INTEGER:
            raise bad_log(f"{name} is {str(value)[:40]!r}, not a whole number", where)
        counts[name] = value
    return OwnRow(line, record, request, Counts(**counts))


def bad_log(what: str, where: str) -> InvalidError:
    """The error for a log that cannot be read or compared."""
    return InvalidError(
        what,
        where=where,
        remedy="give record or request ids and whole numbers; see docs/how-to/settle.md",
        code="bad-dispute",
    )
