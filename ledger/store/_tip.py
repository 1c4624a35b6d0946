"""The tip of the log: the right edge of the tree, and what was read of the state beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from ledger.core.chain import ChainHead
from ledger.core.errors import CorruptError
from ledger.core.merkle import CompactRange
from ledger.core.tiles import TileReader, append_tiles, tile_widths
from ledger.store import queries
from ledger.store.tables import LogHead, StatementRow, table

__all__ = ["Known", "Tip", "catch_up", "load_tip"]

_MAX_KNOWN = 50_000
_MAX_CATCH_UP = 16_384
"""Statements of others that are read one by one; beyond, the tiles are read and the rest is forgotten."""


@dataclass
class Known:
    """What the transactions up to this tip read and wrote: as long as the log's head is this tip, it holds.

    Nobody appends without moving the head, so a replica that finds the head elsewhere forgets what the
    statements in between may have changed.
    """

    heads: dict[str, ChainHead] = field(default_factory=dict)
    documents: set[tuple[str, str]] = field(default_factory=set)
    """(kind, digest)"""
    keys_in_force: set[bytes] = field(default_factory=set)
    rollups: dict[tuple[int, str, str], list[int]] = field(default_factory=dict)

    def bound(self) -> None:
        """Forget what has grown too large; it is read again when needed."""
        for each in (self.heads, self.documents, self.keys_in_force, self.rollups):
            if len(each) > _MAX_KNOWN:
                each.clear()


@dataclass
class Tip:
    """All that appending needs to know. Owned by the sequencer's thread; dropped when a transaction fails."""

    size: int
    root: bytes
    range: CompactRange
    last_tiles: dict[int, bytes]
    known: Known


def load_tip(connection: Connection) -> Tip:
    """Read the tip from the tiles.

    Raises:
        CorruptError: tiles are missing, have the wrong length, or do not hash to the head's root.
    """
    head = connection.execute(select(table(LogHead))).one_or_none()
    size = head.size if head is not None else 0
    reader = TileReader(queries.tile_fetcher(connection), size)
    hashes, start = [], 0
    for bit in reversed(range(size.bit_length())):
        if size >> bit & 1:
            hashes.append(reader.subtree_hash(start, start + (1 << bit)))
            start += 1 << bit
    last = {
        level: queries.read_tile(connection, level, full, width)
        for level, full, width in tile_widths(size)
        if width
    }
    compact = CompactRange(size, hashes)
    if head is not None and compact.root() != head.root:
        raise _other_root(size)
    return Tip(size, compact.root(), compact, last, Known())


def catch_up(connection: Connection, tip: Tip, head: Any) -> Tip:
    """The tip at ``head``, which other replicas moved on: their statements are added to ours.

    Raises:
        CorruptError: with them, the tree does not get the head's root.
    """
    if not 0 < head.size - tip.size <= _MAX_CATCH_UP:
        return load_tip(connection)
    rows = table(StatementRow)
    query = select(rows.c.leaf_hash, rows.c.kind, rows.c.issuer)
    added = connection.execute(
        query.where(rows.c.leaf_index >= tip.size, rows.c.leaf_index < head.size).order_by(rows.c.leaf_index)
    ).all()
    compact = tip.range.copy()
    hashes = [bytes(row.leaf_hash) for row in added]
    compact.extend(hashes)
    if (compact.size, compact.root()) != (head.size, head.root):
        raise _other_root(head.size)
    last = dict(tip.last_tiles)
    for (level, _), data in append_tiles(tip.size, hashes, tip.last_tiles).items():
        last[level] = data
    partial = {level: last[level] for level, _, width in tile_widths(head.size) if width}
    known = tip.known
    if any(row.kind == "key" for row in added):
        known = Known()
    for issuer in {row.issuer for row in added}:
        known.heads.pop(issuer, None)
    known.rollups.clear()
    return Tip(head.size, compact.root(), compact, partial, known)


def _other_root(size: int) -> CorruptError:
    return CorruptError(
        f"the tiles or statements do not hash to the root of the log's head at size {size}",
        where="tile",
        remedy="stop the service and run `tallystick audit` on the database",
        code="corrupt",
    )
