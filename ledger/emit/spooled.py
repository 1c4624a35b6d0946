"""Owns the form of a spool file: one statement, what goes beside it on the wire, and a checksum over both."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from ledger.core.errors import CorruptError, InvalidError
from ledger.core.statements import Batch, Heartbeat, SignedStatement, decode_statement

__all__ = ["Spooled", "decode_spooled", "encode_spooled"]

_MAGIC = b"tspool1\n"
_FRAME = struct.Struct("<8s32s")
_FIXED = struct.Struct("<8sQI")


@dataclass(frozen=True)
class Spooled:
    """One statement as the spool holds it.

    ``body`` is the compressed body of ``POST /batches``; for other kinds it is empty and the entry is sent.
    ``session`` and ``settled`` say which process made it and how far its count is settled by it.
    """

    statement: SignedStatement
    body: bytes
    session: str
    settled: int

    @property
    def told(self) -> int:
        """How many records this statement says were lost."""
        payload = self.statement.payload
        return payload.dropped if isinstance(payload, Batch | Heartbeat) else 0

    @property
    def count(self) -> int:
        """How many records it holds."""
        payload = self.statement.payload
        return payload.count if isinstance(payload, Batch) else 0


def encode_spooled(spooled: Spooled) -> bytes:
    """The file's bytes."""
    entry = spooled.statement.entry
    fixed = _FIXED.pack(bytes.fromhex(spooled.session), spooled.settled, len(entry))
    rest = b"".join((fixed, entry, spooled.body))
    return _FRAME.pack(_MAGIC, hashlib.sha256(rest).digest()) + rest


def decode_spooled(data: bytes, *, where: str) -> Spooled:
    """Read a file's bytes.

    Raises:
        CorruptError: cut, changed, or not a spool file.
    """
    bad = CorruptError(
        "the spool file was cut or changed",
        where=where,
        remedy="check the disk; what it held cannot be sent from here",
        code="spool-corrupt",
    )
    if len(data) < _FRAME.size + _FIXED.size:
        raise bad
    magic, digest = _FRAME.unpack_from(data)
    rest = memoryview(data)[_FRAME.size :]
    if magic != _MAGIC or hashlib.sha256(rest).digest() != digest:
        raise bad
    session, settled, length = _FIXED.unpack_from(rest)
    if length > len(rest) - _FIXED.size:
        raise bad
    entry = bytes(rest[_FIXED.size : _FIXED.size + length])
    try:
        statement = decode_statement(entry, where=where)
    except InvalidError:
        raise bad from None
    return Spooled(statement, bytes(rest[_FIXED.size + length :]), session.hex(), settled)
