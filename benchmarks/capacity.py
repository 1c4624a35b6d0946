"""How a log's tree grows up to a trillion leaves: tiles, proofs, appends, by the code that the service runs.

A trillion leaves cannot be stored here, but their tree can be read: if all leaves are equal, so are all
perfect subtrees of one height, and any tile is one hash repeated. Proofs are read from such tiles by the
service's own reader and verified against the root; leaves that differ are then appended, and the root that
the tiles give is compared with that of the compact range.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from ledger.core.merkle import (
    HASH_SIZE,
    CompactRange,
    consistency_ranges,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)
from ledger.core.tiles import TILE_WIDTH, TileCache, TileReader, append_tiles, tile_widths

SIZES = (10**3, 10**6, 10**9, 10**12)
PROOFS = 2_000
APPENDED = 16
"""Leaves at a time, as a group commit has them."""
APPENDS = 2_000
_LEAF = leaf_hash(b"every leaf")


def _heights() -> list[bytes]:
    """The hash of the perfect subtree of each height."""
    hashes = [_LEAF]
    while len(hashes) < 64:
        hashes.append(node_hash(hashes[-1], hashes[-1]))
    return hashes


_OF_HEIGHT = _heights()


class Grown:
    """The tiles of a log that has ``size`` equal leaves, and what was appended since."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.range = CompactRange(
            size, [_OF_HEIGHT[height] for height in range(63, -1, -1) if size >> height & 1]
        )
        self.fetched = 0
        self._last = {level: _OF_HEIGHT[8 * level] * width for level, _, width in tile_widths(size) if width}
        self._changed: dict[tuple[int, int], bytes] = {}

    def fetch(self, level: int, index: int, width: int) -> bytes:
        """The tile, as storage gives it."""
        self.fetched += 1
        found = self._changed.get((level, index))
        return found[: width * HASH_SIZE] if found else _OF_HEIGHT[8 * level] * width

    def append(self, leaves: list[bytes]) -> dict[tuple[int, int], bytes]:
        """Append, and return what is to be written."""
        changed = append_tiles(self.size, leaves, self._last)
        self.range.extend(leaves)
        self.size += len(leaves)
        self._last = {
            level: changed.get((level, full), self._last.get(level, b""))
            for level, full, width in tile_widths(self.size)
            if width
        }
        return changed

    def keep(self, changed: dict[tuple[int, int], bytes]) -> None:
        """Put what was appended into storage."""
        self._changed.update(changed)


def _check_shape() -> None:
    """The made-up tree is the tree: its root and proofs are those of leaves that exist."""
    size = 10_007
    reader = TileReader(Grown(size).fetch, size)
    if not reader.root() == root([_LEAF] * size) == Grown(size).range.root():
        raise RuntimeError("the tree of equal leaves has another root than they")


def _positions(size: int, chance: random.Random) -> Iterator[int]:
    yield from (0, size // 2, size - 1)
    for _ in range(PROOFS):
        yield chance.randrange(size)


def measure(size: int) -> dict[str, float]:
    """Times in microseconds; medians."""
    chance = random.Random(size)
    log = Grown(size)
    head = log.range.root()
    shared = TileCache(4096)
    proof_us, verify_us, cold, warm, hashes = [], [], [], [], []
    for index in _positions(size, chance):
        log.fetched = 0
        TileReader(log.fetch, size).inclusion_path(index)
        cold.append(log.fetched)
        log.fetched = 0
        begun = time.perf_counter()
        path = TileReader(log.fetch, size, cache=shared).inclusion_path(index)
        proved = time.perf_counter()
        verify_inclusion(_LEAF, index, size, path, head)
        verify_us.append((time.perf_counter() - proved) * 1e6)
        proof_us.append((proved - begun) * 1e6)
        warm.append(log.fetched)
        hashes.append(len(path))
    spans = [len(consistency_ranges(chance.randrange(1, size), size)) for _ in range(PROOFS)]
    append_us, written = _grow(log, head)
    full = sum(count for _, count, _ in tile_widths(size))
    partial = sum(width for _, _, width in tile_widths(size))
    return {
        "append_us": append_us,
        "written_bytes": written,
        "proof_us": statistics.median(proof_us),
        "verify_us": statistics.median(verify_us),
        "proof_hashes": max(hashes),
        "consistency_hashes": max(spans),
        "tiles_cold": max(cold),
        "tiles_warm": statistics.median(warm),
        "levels": sum(1 for _ in tile_widths(size)),
        "tile_bytes_a_leaf": (full * TILE_WIDTH + partial) * HASH_SIZE / size,
    }


def _grow(log: Grown, before: bytes) -> tuple[float, float]:
    """Microseconds and bytes written a leaf, of groups appended in turn; checks the outcome."""
    old, times, written = log.size, [], 0
    for group in range(APPENDS):
        leaves = [leaf_hash(f"{group}/{n}".encode()) for n in range(APPENDED)]
        begun = time.perf_counter()
        changed = log.append(leaves)
        log.range.root()
        times.append((time.perf_counter() - begun) * 1e6 / APPENDED)
        written += sum(map(len, changed.values()))
        log.keep(changed)
    reader = TileReader(log.fetch, log.size)
    if reader.root() != log.range.root():
        raise RuntimeError(f"the tiles of {log.size} leaves have another root than their compact range")
    verify_consistency(old, log.size, before, log.range.root(), reader.consistency_path(old))
    return statistics.median(times), written / (APPENDS * APPENDED)


def run() -> dict[str, Any]:
    """Measure at each size; ``_1e12`` and so on name them."""
    _check_shape()
    found = {size: measure(size) for size in SIZES}
    figures: dict[str, Any] = {}
    for name in found[SIZES[0]]:
        figures |= {f"{name}_1e{len(str(size)) - 1}": found[size][name] for size in SIZES}
    figures["append_ratio"] = found[SIZES[-1]]["append_us"] / found[SIZES[0]]["append_us"]
    return figures


if __name__ == "__main__":
    for figure, value in run().items():
        sys.stdout.write(f"{figure:28} {value:14.3f}\n")
