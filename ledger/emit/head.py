"""Owns the head file of a spool: where the issuer's chain stands, written so that no crash can tear it.

The file has two slots of one page each, allocated once; a write goes to the slot that does not hold the
newest state and is flushed before it counts. A torn write leaves the other slot; a full disk does not matter,
since no new block is needed. Should both be cut or changed later, the copy in the tally stands in.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ledger.core.errors import CorruptError
from ledger.emit._disk import replace_file

__all__ = ["SLOT_BYTES", "Head", "create_head", "decode_slot", "encode_slot", "read_head", "write_head"]

SLOT_BYTES = 4096  # one page: a torn write of one slot cannot touch the other
_PREFIX = struct.Struct("<32sI")


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the chain stands.

    ``next_seq`` and ``last_leaf`` (hex) are what the next statement must carry; ``issued_us`` the time of the
    last one; ``dropped`` the records known to be lost that no statement has told yet. ``session`` and
    ``settled`` repeat the settled count of the session that wrote last, so that record counts and chain
    change together.
    """

    issuer: str
    next_seq: int = 0
    last_leaf: str | None = None
    issued_us: int = 0
    dropped: int = 0
    session: str = ""
    settled: int = 0
    generation: int = 0


@dataclass(frozen=True)
class Found:
    """What a head file holds. ``damaged``: a slot was torn or changed, so the newest state may be missing."""

    head: Head
    damaged: bool


_decoder = msgspec.json.Decoder(Head)


def encode_slot(head: Head) -> bytes:
    """One slot's bytes."""
    body = msgspec.json.encode(head)
    slot = _PREFIX.pack(hashlib.sha256(body).digest(), len(body)) + body
    return slot.ljust(SLOT_BYTES, b"\0")


def decode_slot(slot: bytes) -> Head | None:
    """The head in a slot; None if it is not whole."""
    if len(slot) != SLOT_BYTES:
        return None
    digest, length = _PREFIX.unpack_from(slot)
    body = slot[_PREFIX.size : _PREFIX.size + length]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError:
        return None


def create_head(path: Path, head: Head) -> None:
    """Make the file, both slots alike."""
    replace_file(path, encode_slot(head) * 2)


def read_head(file: int, *, where: str, copy: Callable[[], Head | None] = lambda: None) -> Found:
    """Read the newer of the two slots; where one is damaged, the ``copy`` counts as a third.

    Raises:
        CorruptError: none is whole.
    """
    data = os.pread(file, 2 * SLOT_BYTES, 0)
    slots = [decode_slot(data[:SLOT_BYTES]), decode_slot(data[SLOT_BYTES:])]
    whole = [head for head in slots if head is not None]
    damaged = len(whole) < len(slots)
    if damaged and (kept := copy()) is not None:
        whole.append(kept)
    if not whole:
        raise CorruptError(
            "the head of the spool does not verify",
            where=where,
            remedy="run `tallystick spool restore`: the ledger knows where the chain stands",
            code="spool-corrupt",
        )
    return Found(max(whole, key=lambda head: head.generation), damaged)


def write_head(file: int, head: Head) -> Head:
    """Write ``head`` as the next generation and return it as written. Durable when this returns."""
    newer = msgspec.structs.replace(head, generation=head.generation + 1)
    os.pwrite(file, encode_slot(newer), newer.generation % 2 * SLOT_BYTES)
    os.fsync(file)
    return newer
