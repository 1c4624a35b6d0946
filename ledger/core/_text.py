"""Owns the strict text primitives of the C2SP formats: canonical base64 and decimal numbers.

Each value has exactly one accepted spelling, so that no changed byte of a signed or published file can pass
unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import re

from ledger.core.errors import InvalidError
from ledger.core.merkle import MAX_SIZE

__all__ = ["decode_base64", "decode_decimal", "encode_base64", "is_clean"]

_MAX_DIGITS = len(str(MAX_SIZE))
# Lone surrogates have no UTF-8 encoding.
_UNCLEAN = re.compile("[\x00-\x09\x0b-\x1f\ud800-\udfff]")


def encode_base64(data: bytes) -> str:
    """Return the standard base64 of ``data`` (RFC 4648 section 4), padded."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str, where: str) -> bytes:
    """Return the bytes that ``text`` spells; only the spelling :func:`encode_base64` gives is accepted."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = None
    # The re-encoding also catches stray bits before the padding, which the decoder lets pass.
    if data is None or encode_base64(data) != text:
        raise InvalidError(
            "The text is not canonical base64", where=where, remedy="pass it exactly as its author wrote it"
        )
    return data


def decode_decimal(text: str, where: str) -> int:
    """Return the number that ``text`` spells: ASCII digits, no leading zero, at most 2^63 - 1."""
    digits = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    if not digits or (text[0] == "0" and text != "0") or int(text) > MAX_SIZE:
        raise InvalidError(
            f"{text[:40]!r} is not a decimal number from 0 to 2^63 - 1 without leading zeros",
            where=where,
            remedy="pass it exactly as its author wrote it",
        )
    return int(text)


def is_clean(text: str) -> bool:
    """Tell whether ``text`` is UTF-8 without ASCII control characters (below U+0020) other than newline."""
    return _UNCLEAN.search(text) is None
