"""Compares a customer's own log with a settlement bundle, and makes and checks the dispute that follows.

A dispute is one line of JSON: what differs, record by record, and the customer's signature (COSE_Sign1,
detached) over its canonical bytes. It names the bundle by digest, so each side shows the other the very
record. Requests are matched by record id (the header ``x-tallystick-record`` of the answer) or by the
customer's own request id where the bundle opens the commitments to those.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.audit.own_log import COUNTS, MAX_TEXT, Counts, OwnRow, bad_log, read_own_log
from ledger.audit.settled import SettledRecord
from ledger.core import cose
from ledger.core.canonical import decode_canonical, encode_canonical
from ledger.core.commitments import commit_request
from ledger.core.errors import InvalidError
from ledger.core.keys import PublicKey, Signer
from ledger.core.records import Amount, Hex32, Pseudonym, TimeUs
from ledger.core.statements import check_issuer_id

__all__ = [
    "Compared",
    "Counts",
    "Difference",
    "Dispute",
    "OwnRow",
    "check_against",
    "compare",
    "digest_of",
    "open_dispute",
    "read_own_log",
    "sign_dispute",
]

MAX_DIFFERENCES = 100_000
MAX_DISPUTE_BYTES = 128 << 20
MAX_TRIALS = 20_000_000
"""Request ids times records that are tried where nothing but the id tells which belongs to which: 20 s."""
CONTENT_TYPE = "application/vnd.tallystick.dispute+json"


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing on which the two sides differ.

    ``figures-differ``: both have the request, with other figures (``figures`` names them). ``not-in-bundle``:
    the customer has it, the bundle has not. ``not-in-own-log``: the bundle has a record that the customer
    does not know. ``twice``: the customer has two rows for one record.
    """

    kind: Literal["figures-differ", "not-in-bundle", "not-in-own-log", "twice"]
    own_line: Amount | UnsetType = UNSET
    request: Annotated[str, Meta(max_length=MAX_TEXT)] | UnsetType = UNSET
    record: Annotated[str, Meta(max_length=MAX_TEXT)] | UnsetType = UNSET
    leaf_index: Amount | UnsetType = UNSET
    position: Amount | UnsetType = UNSET
    figures: tuple[str, ...] | UnsetType = UNSET
    own: Counts | UnsetType = UNSET
    logged: Counts | UnsetType = UNSET


class Dispute(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a customer signs. ``bundle`` is the SHA-256 of the bundle's bytes."""

    format: Literal["tallystick-dispute"] = "tallystick-dispute"
    version: Literal[1] = 1
    customer: Annotated[str, Meta(min_length=1, max_length=255)]
    bundle: Hex32
    origin: Annotated[str, Meta(min_length=1, max_length=255)]
    tenant: Pseudonym
    made_us: TimeUs
    own_rows: Amount
    records: Amount
    matched: Amount
    differences: Annotated[tuple[Difference, ...], Meta(min_length=1, max_length=MAX_DIFFERENCES)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    dispute: msgspec.Raw
    signature: bytes


@dataclass(frozen=True)
class Compared:
    """How the two sides compare: ``matched`` requests are in both, whether or not they agree."""

    own_rows: int
    records: int
    matched: int
    differences: tuple[Difference, ...]


_file = msgspec.json.Decoder(_File)
_dispute = msgspec.json.Decoder(Dispute)
_UNDERSTOOD = frozenset({cose.ALG, cose.CONTENT_TYPE, cose.KID, cose.CWT_CLAIMS})


# --- comparing -------------------------------------------------------------------------------------------


def _logged(record: SettledRecord) -> Counts:
    usage = record.record.usage
    return Counts(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cost_nano=record.view.cost_nano
    )


def compare(records: Sequence[SettledRecord], rows: Sequence[OwnRow]) -> Compared:
    """Match the customer's rows with the bundle's records and say where they differ.

    Raises:
        InvalidError: rows name requests only, and the bundle does not open those, or too many would have to
            be tried; or there are more differences than a dispute may hold.
    """
    places = {each.record.id: at for at, each in enumerate(records)}
    matches: dict[int, int] = {}  # row to record
    by_request: list[int] = []
    for number, row in enumerate(rows):
        if row.record is not None:
            if row.record in places:
                matches[number] = places[row.record]
        else:
            by_request.append(number)
    if by_request:
        matches |= _match_requests(records, rows, by_request, set(matches.values()))
    seen: set[int] = set()
    found: list[Difference] = []
    for number, row in enumerate(rows):
        at = matches.get(number)
        if at is None:
            found.append(_difference("not-in-bundle", row, None))
        elif at in seen:
            found.append(_difference("twice", row, records[at]))
        else:
            seen.add(at)
            other = _logged(records[at])
            differing = tuple(
                name
                for name in COUNTS
                if getattr(row.counts, name) is not UNSET
                and getattr(row.counts, name) != getattr(other, name)
            )
            if differing:
                found.append(_difference("figures-differ", row, records[at], differing))
    found += [_difference("not-in-own-log", None, each) for at, each in enumerate(records) if at not in seen]
    if len(found) > MAX_DIFFERENCES:
        raise InvalidError(
            f"there are {len(found):,} differences, more than {MAX_DIFFERENCES:,}",
            remedy="check that both sides are about the same tenant and period; settle a shorter one",
            code="too-large",
        )
    return Compared(len(rows), len(records), len(seen), tuple(found))


def _match_requests(
    records: Sequence[SettledRecord], rows: Sequence[OwnRow], wanted: list[int], taken: set[int]
) -> dict[int, int]:
    """Rows to records by the caller's request id, which each record commits to with a salt of its own."""
    open_records = [
        at for at, each in enumerate(records) if each.request_salt is not None and at not in taken
    ]
    if not any(each.request_salt is not None for each in records):
        raise bad_log(
            "names requests, but the bundle opens none: name records (x-tallystick-record), or ask for one "
            "made with the recorder's secrets",
            f"own log, line {rows[wanted[0]].line}",
        )
    made: dict[int, int] = {}
    trials = 0

    def is_it(number: int, at: int) -> bool:
        nonlocal trials
        trials += 1
        if trials > MAX_TRIALS:
            raise InvalidError(
                f"more than {MAX_TRIALS:,} pairs of requests and records would have to be tried",
                where="own log",
                remedy="name records (x-tallystick-record) in it, or settle a shorter period",
                code="too-large",
            )
        each = records[at]
        if each.record.request is UNSET or each.request_salt is None:
            return False
        commitment = commit_request(str(rows[number].request), each.request_salt)
        return compare_digest(commitment.hex(), each.record.request)

    # Most rows agree, and then the counts tell which few records to try. The rest are tried one by one.
    for key in (_counts_key, lambda _: None):
        groups: dict[Any, list[int]] = defaultdict(list)
        used = set(made.values())
        for at in open_records:
            if at not in used:
                groups[key(_logged(records[at]))].append(at)
        for number in wanted:
            if number in made:
                continue
            candidates = groups.get(key(rows[number].counts), [])
            place = next((n for n, at in enumerate(candidates) if is_it(number, at)), None)
            if place is not None:
                made[number] = candidates.pop(place)
    # A row that names a request again: its record is taken already.
    first: dict[str, int] = {}
    for number, at in made.items():
        first.setdefault(str(rows[number].request), at)
    for number in wanted:
        if number not in made and rows[number].request in first:
            made[number] = first[str(rows[number].request)]
    return made


def _counts_key(counts: Counts) -> tuple[Any, Any]:
    return counts.input_tokens, counts.output_tokens


def _difference(
    kind: Any, row: OwnRow | None, record: SettledRecord | None, figures: tuple[str, ...] | UnsetType = UNSET
) -> Difference:
    own_record = None if row is None else row.record
    return Difference(
        kind=kind,
        own_line=UNSET if row is None else row.line,
        request=UNSET if row is None or row.request is None else row.request,
        record=(own_record or UNSET) if record is None else record.record.id,
        leaf_index=UNSET if record is None else record.leaf_index,
        position=UNSET if record is None else record.position,
        figures=figures,
        own=UNSET if row is None else row.counts,
        logged=UNSET if record is None else _logged(record),
    )


# --- the file --------------------------------------------------------------------------------------------


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex: how a dispute names its bundle."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sign_dispute(dispute: Dispute, key: Signer) -> bytes:
    """The dispute file, signed by the customer."""
    check_issuer_id(dispute.customer)
    data = encode_canonical(dispute)
    header = {
        cose.CONTENT_TYPE: CONTENT_TYPE,
        cose.CWT_CLAIMS: {
            cose.CWT_ISS: dispute.customer,
            cose.CWT_SUB: f"tallystick:dispute:{dispute.bundle}",
        },
    }
    signature = cose.encode_sign1(cose.sign1(header, data, key, detached=True))
    return encode_canonical(_File(dispute=msgspec.Raw(data), signature=signature)) + b"\n"


def open_dispute(data: bytes, key: PublicKey, *, where: str = "dispute") -> Dispute:
    """The dispute, once it is shown that the customer's ``key`` signed it.

    Raises:
        InvalidError: it is none, or signed by another key. CorruptError: the signature does not verify.
    """
    if len(data) > MAX_DISPUTE_BYTES:
        raise InvalidError(f"has more than {MAX_DISPUTE_BYTES} bytes", where=where, code="too-large")
    file = decode_canonical(data.removesuffix(b"\n"), _file, where=where)
    dispute = decode_canonical(bytes(file.dispute), _dispute, where=where)
    message = cose.decode_sign1(file.signature, where=f"{where} signature")
    expected = {cose.CWT_ISS: dispute.customer, cose.CWT_SUB: f"tallystick:dispute:{dispute.bundle}"}
    if (
        message.payload is not None
        or message.unprotected
        or message.header.get(cose.CONTENT_TYPE) != CONTENT_TYPE
        or message.header.get(cose.CWT_CLAIMS) != expected
        or message.header.keys() - _UNDERSTOOD
    ):
        raise InvalidError(
            "is not the signature of this dispute", where=f"{where} signature", code="bad-dispute"
        )
    if message.header.get(cose.KID) != key.kid:
        raise InvalidError(
            "was signed by another key",
            where=f"{where} signature",
            remedy="use the key that the customer gave you",
            code="other-key",
        )
    cose.verify_sign1(message, key, payload=bytes(file.dispute), understood=_UNDERSTOOD, where=where)
    return dispute


def check_against(dispute: Dispute, bundle: str, records: Iterable[SettledRecord]) -> Iterator[str]:
    """What of a dispute does not hold against the bundle that it names; nothing if all does.

    That a request is missing can be checked where it names a record; that the customer made it, cannot.
    """
    if dispute.bundle != bundle:
        yield "it is about another bundle"
        return
    by_id = {each.record.id: each for each in records}
    if dispute.records != len(by_id):
        yield f"it says that the bundle has {dispute.records:,} records, but it has {len(by_id):,}"
    for number, each in enumerate(dispute.differences, 1):
        where = f"difference {number}"
        found = None if each.record is UNSET else by_id.get(each.record)
        if each.kind == "not-in-bundle":
            if found is not None:
                yield f"{where}: record {each.record} is in the bundle"
            continue
        if found is None:
            yield f"{where}: the bundle has no record {'' if each.record is UNSET else each.record}"
            continue
        if (each.leaf_index, each.position, each.logged) != (
            found.leaf_index,
            found.position,
            _logged(found),
        ):
            yield f"{where}: the bundle says something else of record {each.record}"
        if each.kind == "figures-differ" and (
            each.own is UNSET
            or each.figures is UNSET
            or not each.figures
            or any(name not in COUNTS for name in each.figures)
            or any(getattr(each.own, name) == getattr(_logged(found), name) for name in each.figures)
        ):
            yield f"{where}: the figures that it names do not differ"
