"""Owns the bodies of ``add-checkpoint``: what a log sends to a witness and gets back (C2SP tlog-witness)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ledger.core._text import decode_base64, decode_decimal, encode_base64
from ledger.core.errors import InvalidError
from ledger.core.merkle import HASH_SIZE
from ledger.core.note import MAX_NOTE_BYTES, Note, NoteSignature, format_note, parse_note

__all__ = [
    "MAX_REQUEST_BYTES",
    "AddCheckpoint",
    "format_request",
    "format_signatures",
    "origin_hash",
    "parse_conflict",
    "parse_request",
    "parse_signatures",
]

MAX_PROOF_LINES = 63
"""The specification's limit."""
_PROOF_BYTES = 5 + 20 + MAX_PROOF_LINES * 45
MAX_REQUEST_BYTES = MAX_NOTE_BYTES + _PROOF_BYTES
_MAX_SIZE_DIGITS = 20


@dataclass(frozen=True)
class AddCheckpoint:
    """A request to cosign ``note``: the proof leads to its tree from the one of ``old_size``."""

    old_size: int
    proof: tuple[bytes, ...]
    note: bytes


def format_request(request: AddCheckpoint) -> bytes:
    """Return the body of a request."""
    lines = [f"old {request.old_size}\n", *(f"{encode_base64(each)}\n" for each in request.proof), "\n"]
    return "".join(lines).encode() + request.note


def parse_request(body: bytes) -> AddCheckpoint:
    """Return the request that a body spells. The checkpoint is only cut out.

    Raises:
        InvalidError: it does not follow the specification.
    """
    if len(body) > MAX_REQUEST_BYTES:
        raise _malformed(f"it has {len(body)} bytes, more than {MAX_REQUEST_BYTES}")
    head, separator, note = body.partition(b"\n\n")
    try:
        first, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise _malformed("a line before the checkpoint is not ASCII") from None
    if not separator or not first.startswith("old "):
        raise _malformed("it does not begin with an old size, or has no empty line")
    if len(lines) > MAX_PROOF_LINES:
        raise _malformed(f"it has {len(lines)} proof lines, more than {MAX_PROOF_LINES}")
    proof = tuple(decode_base64(line, "consistency proof") for line in lines)
    if any(len(each) != HASH_SIZE for each in proof):
        raise _malformed(f"a proof line is not a hash of {HASH_SIZE} bytes")
    return AddCheckpoint(decode_decimal(first.removeprefix("old "), "old size"), proof, note)


def format_signatures(signatures: Sequence[NoteSignature]) -> bytes:
    """Return the body of a witness's answer: signature lines alone."""
    return format_note(Note("\n", tuple(signatures))).removeprefix(b"\n\n")


def parse_signatures(body: bytes) -> tuple[NoteSignature, ...]:
    """Return the signature lines of a witness's answer, not yet verified.

    Raises:
        InvalidError: it is anything else.
    """
    return parse_note(b"\n\n" + body).signatures


def parse_conflict(body: bytes) -> int:
    """Return the size that a witness answers with 409: that of the latest checkpoint it cosigned.

    Raises:
        InvalidError: it is anything else.
    """
    if len(body) > _MAX_SIZE_DIGITS or not body.endswith(b"\n"):
        raise _malformed("a conflict's body is not a size and a newline")
    try:
        return decode_decimal(body[:-1].decode("ascii"), "size of the conflict")
    except UnicodeDecodeError:
        raise _malformed("a conflict's body is not a size and a newline") from None


def origin_hash(origin: str) -> str:
    """The name under which a witness serves the latest checkpoint of a log: SHA-256 of its origin, hex."""
    return hashlib.sha256(origin.encode()).hexdigest()


def _malformed(why: str) -> InvalidError:
    return InvalidError(
        f"The request is malformed: {why}",
        where="add-checkpoint",
        remedy="send it as C2SP tlog-witness says",
        code="bad-witness-request",
    )
