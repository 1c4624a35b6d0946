"""What stays of a record whose bytes were erased: its hash, on the line where the record was.

A batch's records travel and are stored as lines. An erased record's line is ``{"erased":"<hash>"}``, the hash
in 64 lower-case hex digits: no record, since every record has an id, and yet the batch's root, and with it
every other record's proof, can be computed as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ledger.core.merkle import HASH_SIZE, leaf_hash

__all__ = ["ERASED_MARK", "erased_hash", "erased_line", "line_hash", "line_hashes"]

ERASED_MARK = b'{"erased":"'
"""How an erased record's line begins; no record's does."""
_line = re.compile(rb'\{"erased":"([0-9a-f]{64})"\}').fullmatch


def erased_line(record_hash: bytes) -> bytes:
    """The line of an erased record.

    Args:
        record_hash: the RFC 6962 leaf hash of the bytes that were erased.
    """
    if len(record_hash) != HASH_SIZE:
        raise ValueError("a record's hash has 32 bytes")
    return ERASED_MARK + record_hash.hex().encode() + b'"}'


def erased_hash(line: bytes) -> bytes | None:
    """The hash of the record that was erased from this line; None if the line is not such a one."""
    if not line.startswith(ERASED_MARK):
        return None
    match = _line(line)
    return None if match is None else bytes.fromhex(match[1].decode())


def line_hash(line: bytes) -> bytes:
    """The hash of the record that is or was on this line."""
    erased = erased_hash(line)
    return leaf_hash(line) if erased is None else erased


def line_hashes(lines: Iterable[bytes]) -> list[bytes]:
    """The hashes of the records that are or were on these lines."""
    return [line_hash(line) for line in lines]
