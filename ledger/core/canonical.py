"""Canonical JSON (RFC 8785), narrowed to what Tallystick signs: objects, strings, integers, arrays.

RFC 8785 sorts keys by UTF-16 code units and writes the shortest form of every value. With ASCII keys and
integers within +-(2^53 - 1) that is what msgspec's sorted order yields, so the fast encoder is the canonical
one. A byte string is accepted only when encoding what was read gives the same bytes again: there is one
spelling of each record, in every language.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ledger.core.errors import InvalidError

__all__ = ["MAX_SAFE_INTEGER", "decode_canonical", "encode_canonical"]

MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer that every JSON implementation holds exactly (RFC 8259 section 6)."""

_T = TypeVar("_T")
_encoder = msgspec.json.Encoder(order="sorted")
# Structs fix their own depth; a bound on the input keeps a hostile nested body from deep recursion.
_MAX_NESTING = 16
# The decoder's words quote field names and values of the input, which can be long.
_MAX_QUOTED = 200


def encode_canonical(value: Any) -> bytes:
    """Encode ``value`` (a struct or built-in) as RFC 8785 bytes.

    Raises:
        InvalidError: it has text that no UTF-8 can spell (half of a surrogate pair).
    """
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        raise InvalidError("has text that is not Unicode", code="schema") from None


def decode_canonical(data: bytes, decoder: msgspec.json.Decoder[_T], *, where: str = "") -> _T:
    """Decode ``data``, refusing anything that is not the canonical encoding of what it decodes to.

    Raises:
        InvalidError: not JSON, not the expected shape, or not canonical (``code`` tells which).
    """
    check_nesting(data, where=where)
    try:
        value = decoder.decode(data)
    except msgspec.ValidationError as error:
        what = f"does not match the schema: {str(error)[:_MAX_QUOTED]}"
        raise InvalidError(what, where=where, code="schema") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"is not valid JSON: {error}", where=where, code="malformed-json") from None
    if _encoder.encode(value) != data:
        raise InvalidError(
            "is not canonical JSON (RFC 8785)",
            where=where,
            remedy="sort the keys, drop white space, duplicate and unknown keys, and write integers plainly",
            code="not-canonical",
        )
    return value


def check_nesting(data: bytes, *, where: str = "") -> None:
    """Refuse JSON nested deeper than any Tallystick document can be, before it is parsed."""
    if data.count(b"[") + data.count(b"{") <= _MAX_NESTING:
        return
    depth = 0
    in_string = escaped = False
    for byte in data:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in (0x5B, 0x7B):
            depth += 1
            if depth > _MAX_NESTING:
                raise InvalidError(
                    f"JSON is nested deeper than {_MAX_NESTING} levels", where=where, code="too-deep"
                )
        elif byte in (0x5D, 0x7D):
            depth -= 1
