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

from ledger.emit.head import SLOT_BYTES, Head, decode_slot, encode_slot

__all__ = ["DELIVERED", "lost_with", "note_held", "read_copy", "write_tally"]

DELIVERED = (1 << 64) - 1
"""In place of a count: the ledger gave a receipt, so nothing is lost with the file."""
_SLOT = struct.Struct("<QQI")
_SLOT_SPACE = 32
_SLOTS = 1 << 20
"""As many as statements fit into the default limit of a spool, 4 KiB each; 32 MiB when all were used."""


def write_tally(path: Path, head: Head, *, lost: int | None = None) -> None:
    """Note the head and, unless ``lost`` is None, what the statement before it would cost.

    Raises:
        OSError: no room. The spool works without its tally.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, encode_slot(head), 0)
        if lost is not None:
            _write_slot(file, head.next_seq - 1, lost)
    finally:
        os.close(file)


def _write_slot(file: int, seq: int, lost: int) -> None:
    fields = struct.pack("<QQ", seq, lost)
    os.pwrite(file, fields + struct.pack("<I", zlib.crc32(fields)), _place(seq))


def note_held(path: Path, seq: int, lost: int) -> None:
    """Note that ``lost`` records go with the statement ``seq``, or DELIVERED once it left for its receipt.

    Raises:
        OSError: there is no tally.
    """
    file = os.open(path, os.O_RDWR)
    try:
        _write_slot(file, seq, lost)
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
