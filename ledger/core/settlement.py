"""Owns the form of a settlement bundle: one customer's records of a period, in one file that proves itself.

Text in lines, each but the first a canonical JSON object (RFC 8785):

    tallystick-settlement/1
    header    log and its key, checkpoint, tenant, period, issuers and their keys
    leaf      statements in the order of the log, each with its path to the checkpoint; batches with receipt
    record    records in the order of the log, each with its path to its batch's root
    total     sums by day and model, corrections in place, beside the sums as first logged where they differ
    seal      COSE_Sign1 by the log over counts and SHA-256 of each of these four parts

So any changed byte shows twice: what it says no longer follows from the log, and its part no longer has the
digest that the log signed. The same ledger, tenant, period and checkpoint give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core import cose
from ledger.core.canonical import decode_canonical, encode_canonical
from ledger.core.corrections import Restated
from ledger.core.errors import InvalidError
from ledger.core.export_layout import day_of
from ledger.core.keys import PublicKey, Signer
from ledger.core.merkle import MAX_PATH
from ledger.core.records import Amount, Currency, Hex32, Pseudonym, Record, TimeUs

__all__ = [
    "MAGIC",
    "MAX_BUNDLE_BYTES",
    "MAX_LEAVES",
    "MAX_LINE_BYTES",
    "MAX_RECORDS",
    "MAX_TOTALS",
    "PARTS",
    "Digests",
    "Line",
    "Seal",
    "SettledFigures",
    "SettlementContents",
    "SettlementHeader",
    "SettlementKey",
    "SettlementLeaf",
    "SettlementPart",
    "SettlementRecord",
    "SettlementTotal",
    "Sums",
    "decode_line",
    "encode_line",
    "open_seal",
    "seal",
]

MAGIC = b"tallystick-settlement/1\n"
MAX_LINE_BYTES = 256 << 10
"""A statement has at most 65,535 bytes, a third more in base64; paths and receipts are a few thousand."""
MAX_BUNDLE_BYTES = 4 << 30
MAX_RECORDS = 2_000_000
MAX_LEAVES = 1_000_000
MAX_TOTALS = 100_000
"""Days times models."""
CONTENT_TYPE = "application/vnd.tallystick.settlement+json"
SUBJECT = "tallystick:settlement"
PARTS = ("header", "leaf", "record", "total")
"""The parts in their order, by the kind of their lines. Each is digested with its newlines."""

_Path = Annotated[tuple[Hex32, ...], Meta(max_length=MAX_PATH)]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="line"):
    """A line; ``line`` says which."""


class SettlementKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An issuer and the thumbprint of a key that signed statements of the bundle."""

    issuer: Annotated[str, Meta(min_length=1, max_length=255)]
    kid: Hex32


class SettlementHeader(_Line, frozen=True, tag="header"):
    """What the bundle is about. ``checkpoint`` is the signed note, ``log_key`` the verifier key.

    Records have ``from_us <= started_us < to_us``; an absent end is open.
    """

    origin: Annotated[str, Meta(min_length=1, max_length=255)]
    log_key: Annotated[str, Meta(min_length=1, max_length=8192)]
    checkpoint: Annotated[str, Meta(min_length=1, max_length=MAX_LINE_BYTES)]
    tenant: Pseudonym
    issuers: Annotated[tuple[SettlementKey, ...], Meta(max_length=1000)]
    software: Annotated[str, Meta(min_length=1, max_length=255)]
    from_us: TimeUs | UnsetType = UNSET
    to_us: TimeUs | UnsetType = UNSET


class SettlementLeaf(_Line, frozen=True, tag="leaf"):
    """A statement of the log. ``receipt`` is there for batches: what an acknowledgement names."""

    entry: bytes
    leaf_index: Amount
    path: _Path
    receipt: bytes | UnsetType = UNSET


class SettlementRecord(_Line, frozen=True, tag="record"):
    """A record: the very bytes, as JSON in JSON. ``request_salt`` opens ``request`` for who knows the id."""

    leaf_index: Amount
    position: Amount
    path: _Path
    record: msgspec.Raw
    request_salt: Hex32 | UnsetType = UNSET


class SettledFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sums of figures that corrections can restate; one is absent if no record states it.

    ``*_records`` count the records that state it. ``cost_nano`` is by currency.
    """

    energy_uj: int | UnsetType = UNSET
    energy_low_uj: int | UnsetType = UNSET
    energy_high_uj: int | UnsetType = UNSET
    energy_records: int | UnsetType = UNSET
    carbon_ng: int | UnsetType = UNSET
    carbon_records: int | UnsetType = UNSET
    carbon_market_ng: int | UnsetType = UNSET
    carbon_market_records: int | UnsetType = UNSET
    embodied_ng: int | UnsetType = UNSET
    embodied_records: int | UnsetType = UNSET
    water_nl: int | UnsetType = UNSET
    water_records: int | UnsetType = UNSET
    cost_nano: Annotated[dict[Currency, int], Meta(max_length=200)] | UnsetType = UNSET
    cost_records: int | UnsetType = UNSET


class SettlementTotal(_Line, frozen=True, tag="total"):
    """Sums over the records that started on one UTC day with one model.

    ``figures`` have corrections in place; ``as_logged`` is there if that changed anything.
    """

    day: Annotated[str, Meta(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    records: int
    corrected_records: int
    input_tokens: int
    output_tokens: int
    figures: SettledFigures
    cached_input_tokens: int | UnsetType = UNSET
    reasoning_tokens: int | UnsetType = UNSET
    as_logged: SettledFigures | UnsetType = UNSET


class Seal(_Line, frozen=True, tag="seal"):
    """The log's signature over ``SettlementContents``, as a COSE_Sign1 that carries them."""

    seal: bytes


class SettlementPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One part: its number of lines and the SHA-256 of their bytes."""

    lines: Amount
    sha256: Hex32


class SettlementContents(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the seal signs."""

    format: Literal["tallystick-settlement"] = "tallystick-settlement"
    version: Literal[1] = 1
    header: SettlementPart
    leaf: SettlementPart
    record: SettlementPart
    total: SettlementPart


Line: TypeAlias = SettlementHeader | SettlementLeaf | SettlementRecord | SettlementTotal | Seal
_lines: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_contents = msgspec.json.Decoder(SettlementContents)
_UNDERSTOOD = frozenset({cose.ALG, cose.CONTENT_TYPE, cose.KID, cose.CWT_CLAIMS})


def encode_line(line: Line) -> bytes:
    """A line's bytes, its newline included."""
    return encode_canonical(line) + b"\n"


def decode_line(data: bytes, *, where: str) -> Line:
    """Read one line, without its newline.

    Raises:
        InvalidError: it is too long, not canonical, or no line of a bundle.
    """
    if len(data) > MAX_LINE_BYTES:
        raise InvalidError(f"has more than {MAX_LINE_BYTES} bytes", where=where, code="too-large")
    return decode_canonical(data, _lines, where=where)


def seal(contents: SettlementContents, origin: str, key: Signer) -> Seal:
    """Sign the contents with the log's key."""
    header = {
        cose.CONTENT_TYPE: CONTENT_TYPE,
        cose.CWT_CLAIMS: {cose.CWT_ISS: origin, cose.CWT_SUB: SUBJECT},
    }
    return Seal(seal=cose.encode_sign1(cose.sign1(header, encode_canonical(contents), key)))


def open_seal(line: Seal, origin: str, keys: Mapping[bytes, PublicKey], *, where: str) -> SettlementContents:
    """What the log signed with one of its ``keys``, by thumbprint.

    Raises:
        InvalidError: malformed, or signed by another key. CorruptError: it does not verify.
    """
    message = cose.decode_sign1(line.seal, where=where)
    expected = {cose.CWT_ISS: origin, cose.CWT_SUB: SUBJECT}
    if (
        message.payload is None
        or message.unprotected
        or message.header.get(cose.CONTENT_TYPE) != CONTENT_TYPE
        or message.header.get(cose.CWT_CLAIMS) != expected
        or message.header.keys() - _UNDERSTOOD
    ):
        raise InvalidError("is not the seal of a settlement of this log", where=where, code="bad-settlement")
    kid = message.header.get(cose.KID)
    key = keys.get(kid) if isinstance(kid, bytes) else None
    if key is None:
        raise InvalidError(
            "was not signed by the log's key",
            where=where,
            remedy="use the verifier key of the log that made the bundle",
            code="other-key",
        )
    cose.verify_sign1(message, key, understood=_UNDERSTOOD, where=where)
    return decode_canonical(message.payload, _contents, where=where)


# --- totals ----------------------------------------------------------------------------------------------

_FIGURES = {
    "carbon_ng": "carbon_records",
    "carbon_market_ng": "carbon_market_records",
    "embodied_ng": "embodied_records",
    "water_nl": "water_records",
}


class Sums:
    """Adds records up by day and model. Owned by whoever makes or checks a bundle."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, model: str, restated: Restated) -> None:
        """Add one record, with its corrections."""
        logged = restated.logged
        key = day_of(logged.started_us), model
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = {
                "records": 0, "corrected_records": 0, "input_tokens": 0, "output_tokens": 0,
                "figures": {}, "as_logged": {},
            }  # fmt: skip
        row["records"] += 1
        row["corrected_records"] += bool(restated.changed)
        usage = logged.usage
        for name in ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens"):
            value = getattr(usage, name)
            if value is not UNSET:
                row[name] = row.get(name, 0) + value
        _add_figures(row["figures"], restated.record)
        _add_figures(row["as_logged"], logged)

    def lines(self) -> Iterable[SettlementTotal]:
        """The totals, by day and model."""
        for (day, model), row in sorted(self._rows.items()):
            figures, as_logged = SettledFigures(**row["figures"]), SettledFigures(**row["as_logged"])
            plain = {name: value for name, value in row.items() if name not in ("figures", "as_logged")}
            yield SettlementTotal(
                day=day,
                model=model,
                figures=figures,
                as_logged=UNSET if figures == as_logged else as_logged,
                **plain,
            )


def _add_figures(sums: dict[str, Any], record: Record) -> None:
    def add(name: str, value: int) -> None:
        sums[name] = sums.get(name, 0) + value

    energy = record.energy
    if energy is not UNSET:
        add("energy_uj", energy.energy_uj)
        # A record without a range is known as well as its figure.
        add("energy_low_uj", energy.energy_uj if energy.low_uj is UNSET else energy.low_uj)
        add("energy_high_uj", energy.energy_uj if energy.high_uj is UNSET else energy.high_uj)
        add("energy_records", 1)
    for name, count in _FIGURES.items():
        value = getattr(record, name)
        if value is not UNSET:
            add(name, value)
            add(count, 1)
    if record.cost_nano is not UNSET and record.currency is not UNSET:
        costs: dict[str, int] = sums.setdefault("cost_nano", {})
        costs[record.currency] = costs.get(record.currency, 0) + record.cost_nano
        add("cost_records", 1)


class Digests:
    """SHA-256 and number of lines of each part, while it is written or read."""

    def __init__(self) -> None:
        self._hashes = {part: hashlib.sha256() for part in PARTS}
        self._lines = dict.fromkeys(PARTS, 0)

    def add(self, part: str, line: bytes) -> None:
        """Add a line with its newline."""
        self._hashes[part].update(line)
        self._lines[part] += 1

    def contents(self) -> SettlementContents:
        """What a seal must sign."""
        parts: dict[str, Any] = {
            part: SettlementPart(lines=self._lines[part], sha256=self._hashes[part].hexdigest())
            for part in PARTS
        }
        return SettlementContents(**parts)
