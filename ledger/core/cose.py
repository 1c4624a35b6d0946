"""COSE_Sign1 (RFC 9052 section 4.2) in one strict, deterministic encoding (RFC 8949 section 4.2.1).

Reading refuses whatever could be spelled otherwise - indefinite lengths, long integers, duplicate or
unsorted keys, trailing bytes - so that each message has exactly one byte string, and a changed byte is never
a different spelling of the same message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cbor2

from ledger.core.errors import InvalidError
from ledger.core.keys import PublicKey, Signer

__all__ = [
    "ALG",
    "CONTENT_TYPE",
    "CRIT",
    "CWT_CLAIMS",
    "CWT_IAT",
    "CWT_ISS",
    "CWT_SUB",
    "KID",
    "MAX_MESSAGE_BYTES",
    "RECEIPTS",
    "VDP",
    "VDS",
    "Sign1",
    "decode_cbor",
    "decode_sign1",
    "encode_cbor",
    "encode_sign1",
    "sign1",
    "verify_sign1",
]

# Header parameters: RFC 9052 section 3.1, RFC 9597 (CWT claims), RFC 9942 section 2 (receipts, vds, vdp).
ALG, CRIT, CONTENT_TYPE, KID = 1, 2, 3, 4
CWT_CLAIMS = 15
RECEIPTS, VDS, VDP = 394, 395, 396
# CWT claims (RFC 8392 section 3.1).
CWT_ISS, CWT_SUB, CWT_IAT = 1, 2, 6

MAX_MESSAGE_BYTES = 1 << 20
"""A transparent statement with some receipts stays far below; a bare statement is at most 65,535 bytes."""

_SIGN1_TAG = 18
_NULL = 22
# A message of ours nests 6 deep (tag, array, map, claims, proofs, path).
_MAX_DEPTH = 12
# A message of ours has dozens of items, a string being one; a megabyte of tiny ones would take half a second.
_MAX_ITEMS = 1 << 14


@dataclass(frozen=True)
class Sign1:
    """A decoded COSE_Sign1. ``payload`` is None when detached. ``protected`` keeps the signed bytes."""

    protected: bytes
    header: dict[Any, Any]
    unprotected: dict[Any, Any]
    payload: bytes | None
    signature: bytes


def encode_cbor(value: Any) -> bytes:
    """Deterministic CBOR (RFC 8949 section 4.2.1)."""
    return cbor2.dumps(_sorted(value))


def _sorted(value: Any) -> Any:
    """``value`` with the keys of its maps in bytewise order; cbor2's own order is RFC 7049's, by length."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=cbor2.dumps)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    if isinstance(value, cbor2.CBORTag):
        return cbor2.CBORTag(value.tag, _sorted(value.value))
    return value


def decode_cbor(data: bytes, *, where: str, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """Decode one deterministic CBOR item that fills ``data``.

    Raises:
        InvalidError: too large, too deep, not CBOR, or not in deterministic encoding.
    """
    if len(data) > max_bytes:
        raise InvalidError(f"has {len(data)} bytes, more than {max_bytes}", where=where, code="too-large")
    _check_structure(data, where)
    try:
        return _plain(cbor2.loads(data))
    except Exception as error:  # text that is not UTF-8; all else was checked
        raise InvalidError(
            f"is not well-formed CBOR: {type(error).__name__}", where=where, code="malformed-cbor"
        ) from None


def _check_structure(data: bytes, where: str) -> None:
    """Walk the item heads: only the types we use, in their one spelling, within what the bytes can back.

    This runs before the decoder, so a few hostile bytes can neither allocate much nor recurse far. Booleans
    are refused: Python takes ``True`` for 1, so they would be a second spelling of labels and values.
    """

    def bad(what: str) -> InvalidError:
        return InvalidError(
            what,
            where=where,
            remedy="use deterministic encoding: definite lengths, shortest heads, sorted unique keys",
            code="malformed-cbor",
        )

    position, end = 0, len(data)
    items_left = [1]  # how many items are still expected at each level
    last_key: list[bytes | None] = [None]  # at each level: the newest key of a map, None elsewhere
    for _ in range(_MAX_ITEMS):
        while items_left and items_left[-1] == 0:
            items_left.pop()
            last_key.pop()
        if not items_left:
            break
        is_key = last_key[-1] is not None and items_left[-1] % 2 == 0
        level = len(items_left) - 1
        items_left[-1] -= 1
        if position >= end:
            raise bad("is not well-formed CBOR: ends early")
        start = position
        head = data[position]
        position += 1
        major, info = head >> 5, head & 31
        if info < 24:
            argument = info
        elif info < 28:
            width = 1 << (info - 24)
            if position + width > end:
                raise bad("is not well-formed CBOR: ends early")
            argument = int.from_bytes(data[position : position + width], "big")
            if argument < (24 if width == 1 else 1 << (4 * width)):
                raise bad("has a number or length that is not in its shortest form")
            position += width
        else:
            raise bad("uses an indefinite length or a reserved head")
        if major in (2, 3):
            position += argument
            if position > end:
                raise bad("is not well-formed CBOR: a string is longer than the data")
        elif major in (4, 5):
            items = argument * (major - 3)
            if items > end - position:
                raise bad("is not well-formed CBOR: more items than bytes")
            items_left.append(items)
            last_key.append(b"" if major == 5 else None)
        elif major == 6:
            if argument != _SIGN1_TAG:
                raise bad(f"has tag {argument}, but only COSE_Sign1 (18) is expected")
            items_left.append(1)
            last_key.append(None)
        elif major == 7 and info != _NULL:
            raise bad("has a boolean, simple value or float, which Tallystick documents never do")
        if is_key:
            key, before = data[start:position], last_key[level]
            if major not in (0, 1, 3):
                raise bad("has a map key that is neither an integer nor text")
            if before is not None and key <= before:
                raise bad("has map keys that are not sorted or not unique")
            last_key[level] = key
        if len(items_left) > _MAX_DEPTH:
            raise bad(f"is nested deeper than {_MAX_DEPTH} levels")
    else:
        raise bad(f"has more than {_MAX_ITEMS} items")
    if position != end:
        raise bad(f"has {end - position} bytes after its end")


def _plain(value: Any) -> Any:
    """Tuples and frozen maps (cbor2 gives either, by version and place) as lists and dicts."""
    if isinstance(value, (bytes, str, int, type(None))):
        return value
    if isinstance(value, cbor2.CBORTag):
        return cbor2.CBORTag(value.tag, _plain(value.value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(type(value).__name__)


def encode_sign1(message: Sign1) -> bytes:
    """Tagged COSE_Sign1 bytes."""
    body = [message.protected, message.unprotected, message.payload, message.signature]
    return encode_cbor(cbor2.CBORTag(_SIGN1_TAG, body))


def decode_sign1(data: bytes, *, where: str = "COSE_Sign1", max_bytes: int = MAX_MESSAGE_BYTES) -> Sign1:
    """Decode a tagged COSE_Sign1 without verifying it.

    Raises:
        InvalidError: not deterministic CBOR, or not of the shape of COSE_Sign1.
    """
    value = decode_cbor(data, where=where, max_bytes=max_bytes)
    body = value.value if isinstance(value, cbor2.CBORTag) else None
    if not (isinstance(body, list) and len(body) == 4):
        raise InvalidError("is not a tagged COSE_Sign1 message", where=where, code="malformed-cose")
    protected, unprotected, payload, signature = body
    if not (
        isinstance(protected, bytes)
        and isinstance(unprotected, dict)
        and (payload is None or isinstance(payload, bytes))
        and isinstance(signature, bytes)
    ):
        raise InvalidError("has elements of the wrong type", where=where, code="malformed-cose")
    header = decode_cbor(protected, where=f"{where} protected header") if protected else {}
    if not isinstance(header, dict):
        raise InvalidError("protected header is not a map", where=where, code="malformed-cose")
    if header.keys() & unprotected.keys():
        raise InvalidError(
            "a label is in both protected and unprotected header", where=where, code="malformed-cose"
        )
    return Sign1(protected, header, unprotected, payload, signature)


def sign1(header: dict[int, Any], payload: bytes, key: Signer, *, detached: bool = False) -> Sign1:
    """Sign ``payload``; ``alg`` and ``kid`` are added to the protected ``header``."""
    full = {ALG: key.public.alg, KID: key.public.kid, **header}
    protected = encode_cbor(full)
    signature = key.sign(_sig_structure(protected, payload))
    return Sign1(protected, full, {}, None if detached else payload, signature)


def verify_sign1(
    message: Sign1,
    key: PublicKey,
    *,
    payload: bytes | None = None,
    understood: frozenset[int],
    where: str = "COSE_Sign1",
) -> None:
    """Verify the signature (RFC 9052 section 4.4).

    Args:
        message: the decoded message.
        key: the key to check against; the header's ``alg`` must fit it.
        payload: the detached payload; must be None exactly when the message carries its own.
        understood: header labels that the caller processes, for ``crit`` (RFC 9052 section 3.1).
        where: the place, for errors.

    Raises:
        InvalidError: algorithm or header unfit.
        CorruptError: the signature does not verify.
    """
    alg = message.header.get(ALG)
    if not isinstance(alg, int) or not key.accepts(alg):
        raise InvalidError(
            f"alg {alg!r} does not fit the key's {key.name}", where=where, code="bad-algorithm"
        )
    crit = message.header.get(CRIT)
    if crit is not None and not (
        isinstance(crit, list)
        and crit
        and all(isinstance(x, int) and x in understood and x in message.header for x in crit)
    ):
        raise InvalidError(
            "has a critical header parameter that is not understood", where=where, code="malformed-cose"
        )
    if (message.payload is None) == (payload is None):
        raise InvalidError(
            "payload must be either attached or supplied, not both or neither",
            where=where,
            code="malformed-cose",
        )
    signed = message.payload if message.payload is not None else payload
    assert signed is not None  # noqa: S101 - for the type checker: the line above decided it
    key.verify(message.signature, _sig_structure(message.protected, signed), where=where)


def _sig_structure(protected: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, b"", payload])
