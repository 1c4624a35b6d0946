"""Owns the tally of a spool: what a damaged head or a damaged statement would otherwise take with it.

One file. Its first page repeats the newest head; then come small slots in a ring, one a statement, that say
how many records are lost if that statement's file is. Nothing here is flushed: after a crash of the machine
the head's own two slots and the flushed statements stand, and the tally may lag. It is there for the other
fault, a file that was cut, changed or deleted on a running system.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import msgspec

from ledger.emit.head import SLOT_BYTES, Head, decode_slot, encode_slot

__all__ = ["DELIVERED", "lost_with", "note_held", "read_copy", "write_copy"]

DELIVERED = (1 << 64) - 1
"""In place of a count: the ledger gave a receipt, so nothing is lost with the file."""
_SLOT = struct.Struct("<QQI")
_SLOT_SPACE = 32
_SLOTS = 1 << 20
"""As many as statements fit into the default limit of a spool, 4 KiB each; 32 MiB when all were used."""


def write_copy(path: Path, head: Head) -> None:
    """Repeat what ``write_head`` is about to write of ``head``.

    Raises:
        OSError: no room.
    """
    newer = msgspec.structs.replace(head, generation=head.generation + 1)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, encode_slot(newer), 0)
    finally:
        os.close(file)


def note_held(path: Path, seq: int, lost: int) -> None:
    """Note that ``lost`` records go with the statement ``seq``, or DELIVERED once it left for its receipt.

    Raises:
        OSError: no room.
    """
    fields = struct.pack("<QQ", seq, lost)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, fields + struct.pack("<I", zlib.crc32(fields)), _place(seq))
    finally:
        os.close(file)


def read_copy(path: Path) -> Head | None:
    """The head as it was noted last; None if that is not whole."""
    try:
        with open(path, "rb", buffering=0) as file:
            return decode_slot(file.read(SLOT_BYTES))
    except FileNotFoundError:
        return None


def lost_with(path: Path, seq: int) -> int | None:
    """How many records are lost with the file of statement ``seq``, or DELIVERED; None if not known."""
    try:
        with open(path, "rb", buffering=0) as file:
            slot = os.pread(file.fileno(), _SLOT.size, _place(seq))
    except FileNotFoundError:
        return None
    if len(slot) != _SLOT.size:
        return None
    noted, lost, check = _SLOT.unpack(slot)
    return int(lost) if noted == seq and zlib.crc32(slot[:16]) == check else None


def _place(seq: int) -> int:
    return SLOT_BYTES + seq % _SLOTS * _SLOT_SPACE
