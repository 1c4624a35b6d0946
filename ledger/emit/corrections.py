"""Reads files of restated figures (JSON or CSV) and makes corrections of them, each pinned to its record.

A correction names the hash of the record that it corrects, so the record is fetched, and shown to be in its
statement. Only the issuer of a record can correct it: anybody else's correction would count for nothing, and
is refused before it is signed.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from msgspec import UNSET

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError
from ledger.core.merkle import root_from_inclusion
from ledger.core.records import Energy, Method, Record, decode_record, record_hash
from ledger.core.statements import Batch, Correction, decode_statement
from ledger.emit.client import Client
from ledger.emit.submission import MAX_CONTENTS, UNPLACED

__all__ = ["FIGURES", "Restatement", "correction", "fetch_record", "read_corrections", "restatement"]

FIGURES = (
    "energy_uj",
    "low_uj",
    "high_uj",
    "carbon_ng",
    "carbon_market_ng",
    "embodied_ng",
    "water_nl",
    "cost_nano",
)
"""What can be restated: integers in the unit that the name says."""
_WORDS = ("method", "source")
_OWN = ("carbon_ng", "carbon_market_ng", "embodied_ng", "water_nl", "cost_nano")
MAX_FILE_BYTES = 32 << 20
_METHODS = ("measured", "modelled", "estimated")


@dataclass(frozen=True)
class Restatement:
    """What is to be said of one record, before the record was looked up.

    Attributes:
        record: its id.
        reason: why, for every reader of the log.
        figures: by the names of ``FIGURES``.
        method: how the restated energy is known; the record's own if absent.
        source: where it comes from; likewise.
        where: the place, for errors.
    """

    record: str
    reason: str
    figures: Mapping[str, int]
    method: str | None = None
    source: str | None = None
    where: str = "correction"


def restatement(fields: Mapping[str, object], *, where: str = "correction") -> Restatement:
    """Check one row's fields, named as the columns of a file.

    Raises:
        InvalidError: unknown names, no figure, or a figure that is no whole number from 0 to 2^53 - 1.
    """
    unknown = fields.keys() - {"record", "reason", *FIGURES, *_WORDS}
    if unknown:
        raise _bad(
            f"has {sorted(unknown)[0]!r}; known are record, reason, {', '.join((*FIGURES, *_WORDS))}", where
        )
    for name in ("record", "reason"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise _bad(f"needs {name}", where)
    figures = {name: _whole(name, fields[name], where) for name in FIGURES if name in fields}
    if not figures.keys() & {"energy_uj", *_OWN}:
        raise _bad("restates no figure", where)
    if "energy_uj" not in figures and (figures.keys() & {"low_uj", "high_uj"} or fields.keys() & set(_WORDS)):
        raise _bad("restates parts of energy without energy_uj", where)
    for name in _WORDS:
        if name in fields and not isinstance(fields[name], str):
            raise _bad(f"{name} is not text", where)
    method = cast("str | None", fields.get("method"))
    if method is not None and method not in _METHODS:
        raise _bad(f"method is {method[:40]!r}, not one of {', '.join(_METHODS)}", where)
    return Restatement(
        record=str(fields["record"]),
        reason=str(fields["reason"]),
        figures=figures,
        method=method,
        source=cast("str | None", fields.get("source")),
        where=where,
    )


def correction(said: Restatement, record: Record, data: bytes) -> Correction:
    """The correction of ``record``, whose canonical bytes are ``data``, to be given to ``submit``.

    Raises:
        InvalidError: it does not fit the record: a cost where there is no currency, energy without a known
            method or source, or nothing that differs from what was logged.
    """
    figures = said.figures
    fields: dict[str, Any] = {name: figures[name] for name in _OWN if name in figures}
    if "cost_nano" in fields and record.currency is UNSET:
        raise _bad(f"restates the cost of record {record.id}, which has no currency", said.where)
    if "energy_uj" in figures:
        known = None if record.energy is UNSET else record.energy
        method, source = said.method or (known and known.method), said.source or (known and known.source)
        if not method or not source:
            raise _bad(
                f"must say method and source: record {record.id} has no energy to take them from", said.where
            )
        fields["energy"] = Energy(
            energy_uj=figures["energy_uj"],
            low_uj=figures.get("low_uj", UNSET),
            high_uj=figures.get("high_uj", UNSET),
            method=cast("Method", method),
            source=source,
        )
    if all(getattr(record, name) == value for name, value in fields.items()):
        raise _bad(f"states nothing else than record {record.id} does", said.where)
    return Correction(
        record=record.id, record_hash=record_hash(data).hex(), reason=said.reason, **fields, **UNPLACED
    )


def fetch_record(client: Client, record_id: str, issuer: str) -> tuple[Record, bytes]:
    """A record of ``issuer`` and its bytes, shown to be in the statement that its issuer signed.

    Raises:
        InvalidError: the ledger has no such record. RefusedError: it is another issuer's, or the ledger does
            not give it. CorruptError: what the ledger gave does not fit. UnavailableError: no answer.
    """
    where = f"record {record_id[:64]}"
    reply = client.get(f"/records/{quote(record_id, safe='')}/proof")
    if reply.status in (400, 404, 410, 422):
        raise InvalidError(
            "the ledger does not have it", where=where, remedy="check the id", code="not-found"
        )
    if reply.status != 200:
        raise RefusedError(
            f"the ledger answered {reply.status}",
            where=where,
            remedy="use an API key of scopes emit and read",
            code="refused",
        )
    try:
        proof = json.loads(reply.body)
        data = base64.b64decode(proof["record"], validate=True)
        statement = decode_statement(base64.b64decode(proof["statement"], validate=True))
        path = [bytes.fromhex(each) for each in proof["path"]]
        batch = statement.payload
        assert isinstance(batch, Batch)  # noqa: S101 - told below like any other mistake
        root = root_from_inclusion(record_hash(data), int(proof["position"]), batch.count, path)
        record = decode_record(data)
        sound = root.hex() == batch.root and record.id == record_id
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError, TallystickError):
        sound = False
    if not sound:
        raise CorruptError(
            "what the ledger gave does not prove the record",
            where=where,
            remedy="audit the ledger",
            code="bad-record-proof",
        )
    if statement.issuer != issuer:
        raise RefusedError(
            f"was issued by {statement.issuer}: a correction by {issuer} would not count",
            where=where,
            remedy="let its own issuer correct it, from its own spool",
            code="other-issuer",
        )
    return record, data


def read_corrections(data: bytes, *, where: str = "file") -> list[Restatement]:
    """The corrections in a file's bytes; JSON if it begins with a bracket, else CSV.

    Raises:
        InvalidError: too large, or a row is not sound; ``where`` names it.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InvalidError(
            f"has more than {MAX_FILE_BYTES} bytes", where=where, remedy="split it", code="too-large"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _bad("is not UTF-8 text", where) from None
    rows = _json_rows(text, where) if text.lstrip()[:1] in ("[", "{") else _csv_rows(text, where)
    made: list[Restatement] = []
    for place, fields in rows:
        if len(made) == MAX_CONTENTS:
            raise InvalidError(
                f"has more than {MAX_CONTENTS:,} rows", where=where, remedy="split it", code="too-large"
            )
        made.append(restatement(fields, where=place))
    if not made:
        raise _bad("has no correction", where)
    return made


def _whole(name: str, value: object, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SAFE_INTEGER:
        raise _bad(f"{name} is {str(value)[:40]!r}, not a whole number from 0 to 2^53 - 1", where)
    return value


def _csv_rows(text: str, where: str) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [each.strip() for each in next(reader, [])]
        if len(set(names)) < len(names):
            raise _bad("has a column twice", f"{where}, line 1")
        for row in reader:
            place = f"{where}, line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise _bad(f"has {len(row)} cells, but the first line {len(names)}", place)
            yield place, {n: cell.strip() for n, cell in zip(names, row, strict=True) if cell.strip()}
    except csv.Error as error:
        raise _bad(f"is not CSV: {error}", f"{where}, line {reader.line_num}") from None


def _json_rows(text: str, where: str) -> Iterator[tuple[str, dict[str, object]]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(f"is not JSON: {str(error)[:200]}", where) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _bad("is not an array of objects", where)
    for number, row in enumerate(rows, 1):
        yield f"{where}, number {number}", row


def _bad(what: str, where: str) -> InvalidError:
    return InvalidError(
        what,
        where=where,
        remedy="name the record, the reason and whole numbers such as energy_uj; see docs/how-to/correct.md",
        code="bad-correction",
    )
