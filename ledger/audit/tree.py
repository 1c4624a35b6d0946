"""Rebuilds the tree from the leaves and compares it with every tile, checkpoint and receipt.

One pass, leaves in order. Where entry, stored hash and tile disagree about a leaf, the hash that two of them
name is carried on, so that one damaged place gives one finding and not one for each hash above it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ledger.audit.report import Findings
from ledger.audit.sources import Source
from ledger.audit.tables import place, shown
from ledger.core.checkpoint import Checkpoint, LogKeys, open_checkpoint
from ledger.core.cosignature import verified_cosignatures
from ledger.core.errors import TallystickError, UnavailableError
from ledger.core.merkle import HASH_SIZE, CompactRange, fold_pairs
from ledger.core.note import VerifierKey, parse_note
from ledger.core.tiles import TILE_HEIGHT, TILE_WIDTH, tile_path

__all__ = ["TreeAudit"]

_UNKNOWN_HASH = bytes(HASH_SIZE)
_RESTORE = "keep this copy as evidence and restore a good one; compare it with other copies of the log"


@dataclass(frozen=True)
class Candidates:
    """What is known of a leaf's hash.

    Args:
        computed: that of the entry; None if there is none.
        stored: the database's column.
        has_column: whether there is such a column.
        vouched: tells whether a receipt, if there is one, proves the entry: asked when entry and tile differ.
    """

    computed: bytes | None
    stored: Any = None
    has_column: bool = False
    vouched: Callable[[], bool] = lambda: False


class TreeAudit:
    """The tree as far as it has been rebuilt. Owned by the one thread that audits.

    Args:
        source: where tiles and checkpoints come from.
        log_key: the log's verifier key, or all that it has had.
        size: how many leaves there will be.
        findings: where contradictions go.
        known: checkpoints that the auditor holds, already verified.
        witnesses: keys of known witnesses.
    """

    def __init__(
        self,
        source: Source,
        log_key: LogKeys,
        size: int,
        findings: Findings,
        known: Iterable[Checkpoint] = (),
        witnesses: Iterable[VerifierKey] = (),
    ) -> None:
        self.size = size
        self.newest_note: str | None = None  # the stored checkpoint of that size, once it is verified
        self._source = source
        self._log_key = log_key
        self._findings = findings
        self._witnesses = tuple(witnesses)
        self._range = CompactRange()
        self._levels: list[list[bytes]] = [[]]  # the hashes of each level's rightmost tile
        self._tile: bytes | None = None  # the stored level-0 tile of the current leaves
        self._known: dict[int, list[Checkpoint]] = defaultdict(list)
        self._waiting: dict[int, list[Callable[[bytes], None]]] = {}
        self._stored = self._read_checkpoints()
        self._next = next(self._stored, None)
        for checkpoint in known:
            self._known[checkpoint.size].append(checkpoint)
        self._settle()  # a known checkpoint of the empty tree

    def add(self, index: int, leaf: Candidates) -> bytes:
        """Add leaf ``index``, the next one; return the hash that the log has for it."""
        if index % TILE_WIDTH == 0:
            self._tile = self._read_tile(0, index // TILE_WIDTH, min(TILE_WIDTH, self.size - index))
        at = index % TILE_WIDTH * HASH_SIZE
        tiled = self._tile[at : at + HASH_SIZE] if self._tile is not None else None
        if leaf.computed is not None and leaf.computed == tiled and leaf.computed == leaf.stored:
            agreed = leaf.computed
        else:
            agreed = self._decide(index, leaf, tiled if tiled else None)
        self._range.append(agreed)
        self._rise(agreed)
        self._settle()
        return agreed

    def when(self, size: int, verify: Callable[[bytes], None]) -> bool:
        """Call ``verify`` with the root of the first ``size`` leaves, as soon as there are so many.

        Returns:
            False if there never will be.
        """
        if not self._range.size < size <= self.size:
            return False
        self._waiting.setdefault(size, []).append(verify)
        return True

    def close(self) -> None:
        """Compare the partial tiles at the right edge, and look for what should not be there."""
        for level, hashes in enumerate(self._levels):
            if hashes:
                self._compare_tile(level, (self._range.size >> (TILE_HEIGHT * level)) // TILE_WIDTH, hashes)
        self._find_extra_tiles()
        while self._next is not None:
            size, note = self._next
            self._check_stored(size, note, None)
            self._next = next(self._stored, None)

    def root(self) -> bytes:
        """The root of the leaves so far."""
        return self._range.root()

    # --- leaves and tiles ---

    def _decide(self, index: int, leaf: Candidates, tiled: bytes | None) -> bytes:
        """Find out who is wrong about a leaf's hash, and return the right one as far as one can tell."""
        computed, stored = leaf.computed, leaf.stored
        if computed is None and not leaf.has_column:  # the row is missing, as its finding says
            return tiled or _UNKNOWN_HASH
        votes = [
            vote for vote in (computed, stored, tiled) if isinstance(vote, bytes) and len(vote) == HASH_SIZE
        ]
        agreed = max(votes, key=votes.count) if votes else _UNKNOWN_HASH  # of equals the first: the entry's
        if not leaf.has_column and tiled is not None and not leaf.vouched():
            agreed = tiled  # from a service: the checkpoint's root will tell whether the tile is right
        if computed != agreed:
            where = place("statement", index, column="entry") if leaf.has_column else f"entry {index}"
            self._findings.add(
                "leaf-changed",
                where,
                f"hashes to {shown(computed)}, but the tree has {shown(agreed)} at this leaf",
                _RESTORE,
            )
        if leaf.has_column and not (isinstance(stored, bytes) and stored == agreed):
            self._findings.add(
                "leaf-hash-differs",
                place("statement", index, column="leaf_hash"),
                f"is {shown(stored)}, but the leaf's hash is {shown(agreed)}",
                _RESTORE,
            )
        if tiled is not None and tiled != agreed:
            self._findings.add(
                "tile-differs",
                f"{self._tile_place(0, index // TILE_WIDTH)}, hash {index % TILE_WIDTH}",
                f"is {shown(tiled)}, but the leaf's hash is {shown(agreed)}",
                _RESTORE,
            )
        return agreed

    def _rise(self, leaf_hash: bytes) -> None:
        """Add a leaf's hash to the level-0 tile, and what fills a tile to the one above."""
        level, hashes = 0, [leaf_hash]
        while hashes:
            if level == len(self._levels):
                self._levels.append([])
            tile = self._levels[level]
            tile += hashes
            if len(tile) < TILE_WIDTH:
                return
            index = (self._range.size >> (TILE_HEIGHT * level)) // TILE_WIDTH - 1
            self._compare_tile(level, index, tile)
            hashes = tile
            for _ in range(TILE_HEIGHT):
                hashes = fold_pairs(hashes)
            self._levels[level] = []
            level += 1

    def _compare_tile(self, level: int, index: int, hashes: list[bytes]) -> None:
        """Compare a tile with the hashes that it must have. Those of level 0 were compared leaf by leaf."""
        self._findings.counts.tiles += 1
        stored = self._tile if level == 0 else self._read_tile(level, index, len(hashes))
        if stored is None:
            return
        where = self._tile_place(level, index)
        if len(stored) != len(hashes) * HASH_SIZE:
            self._findings.add(
                "tile-differs",
                where,
                f"has {len(stored)} bytes instead of {len(hashes) * HASH_SIZE}",
                _RESTORE,
            )
        if level == 0:
            return
        for at, right in enumerate(hashes):
            found = stored[at * HASH_SIZE : (at + 1) * HASH_SIZE]
            if found and found != right:
                self._findings.add(
                    "tile-differs",
                    f"{where}, hash {at}",
                    f"is {shown(found)}, but the tiles below hash to {shown(right)}",
                    _RESTORE,
                )

    def _read_tile(self, level: int, index: int, width: int) -> bytes | None:
        where = self._tile_place(level, index)
        try:
            data = self._source.tile(level, index, width)
        except UnavailableError as error:
            self._findings.gap(where, error.what)
            return None
        if data is None:
            self._findings.add("tile-missing", where, "the tile is not there", _RESTORE)
            return None
        if not isinstance(data, bytes):
            self._findings.add("tile-differs", where, f"is {shown(data)}, not bytes", _RESTORE)
            return None
        return data

    def _find_extra_tiles(self) -> None:
        try:
            for level, index in self._source.tile_keys():
                inside = (
                    isinstance(level, int)
                    and isinstance(index, int)
                    and 0 <= level < len(self._levels)
                    and 0 <= index * TILE_WIDTH < self._range.size >> (TILE_HEIGHT * level)
                )
                if not inside:
                    self._findings.add(
                        "tile-extra",
                        place("tile", level, index),
                        f"a tree of {self._range.size} leaves has no such tile",
                    )
        except UnavailableError as error:
            self._findings.gap("tile", error.what)

    def _tile_place(self, level: int, index: int) -> str:
        if self._source.has_tables:
            return place("tile", level, index)
        width = (self.size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH
        return tile_path(level, index, min(width, TILE_WIDTH))

    # --- roots ---

    def _settle(self) -> None:
        """Check everything that is about the tree of the present size."""
        size = self._range.size
        waiting = self._waiting.pop(size, None)
        known = self._known.pop(size, None)
        due = self._next is not None and self._next[0] <= size
        if not (waiting or known or due):
            return
        root = self._range.root()
        seen = False
        while self._next is not None and self._next[0] <= size:
            at, note = self._next
            seen = seen or at == size
            self._check_stored(at, note, root if at == size else None)
            self._next = next(self._stored, None)
        for verify in waiting or ():
            verify(root)
        if waiting and not seen and self._source.has_tables:
            self._findings.add(
                "checkpoint-missing",
                place("checkpoint", size),
                f"receipts name the tree of {size} leaves, but its checkpoint is not stored",
                _RESTORE,
            )
        for checkpoint in known or ():
            if checkpoint.root != root:
                self._findings.add(
                    "forked",
                    f"known checkpoint of size {size}",
                    f"its root is {checkpoint.root.hex()}, but this copy's is {root.hex()}: "
                    "the log showed two histories",
                    "keep both checkpoints: together they prove that the log's key signed a fork",
                )

    def _read_checkpoints(self) -> Iterator[tuple[int, Any]]:
        try:
            for size, note in self._source.checkpoints():
                if isinstance(size, int):
                    yield size, note
                else:
                    self._findings.add("row-extra", place("checkpoint", size), "its size is not a number")
        except UnavailableError as error:
            self._findings.gap("checkpoint", error.what)

    def _check_stored(self, size: int, note: Any, root: bytes | None) -> None:
        """Check one stored checkpoint; ``root`` is None where there is no tree of its size."""
        where = place("checkpoint", size, column="note") if self._source.has_tables else f"checkpoint {size}"
        self._findings.counts.checkpoints += 1
        if not isinstance(note, bytes):
            self._findings.add("bad-checkpoint", where, f"is {shown(note)}, not text", _RESTORE)
            return
        try:
            checkpoint = open_checkpoint(note, self._log_key)
            self._findings.counts.signatures += 1
            cosigned = len(verified_cosignatures(parse_note(note), self._witnesses))
        except TallystickError as error:
            self._findings.add_error(error, where, code="bad-checkpoint")
            return
        self._findings.counts.signatures += cosigned
        unknown = {each.name for each in parse_note(note).signatures} - {checkpoint.origin}
        if len(unknown) > cosigned:
            self._findings.note("some cosignatures were not checked: their witnesses' keys are not known")
        if checkpoint.size == size == self.size:
            self.newest_note = note.decode()
        if checkpoint.size != size:
            self._findings.add(
                "checkpoint-differs",
                where,
                f"is stored as the checkpoint of size {size}, but signs size {checkpoint.size}",
                _RESTORE,
            )
        elif root is None:
            self._findings.add(
                "checkpoint-differs",
                where,
                f"the log's key signed a tree of {size} leaves, but there are only {self._range.size}",
                _RESTORE,
            )
        elif checkpoint.root != root:
            self._findings.add(
                "checkpoint-differs",
                where,
                f"the log's key signed the root {checkpoint.root.hex()}, but the leaves hash to {root.hex()}",
                "the leaves before it were changed after it was signed; keep this copy as evidence",
            )
