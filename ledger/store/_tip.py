"""The tip of the log: the right edge of the tree, and what was read of the state beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from ledger.core.chain import ChainHead
from ledger.core.merkle import CompactRange
from ledger.core.tiles import TileReader, tile_widths
from ledger.store import queries
from ledger.store.tables import LogHead, table

__all__ = ["Known", "Tip", "load_tip"]

_MAX_KNOWN = 50_000


@dataclass
class Known:
    """What the transactions up to this tip read and wrote: as long as the log's head is this tip, it holds.

    Nobody appends without moving the head, so a replica that finds the head elsewhere forgets all of it.
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
        CorruptError: tiles are missing or have the wrong length.
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
    return Tip(size, compact.root(), compact, last, Known())
