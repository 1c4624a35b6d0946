"""Owns tiles and entry bundles: paths, encodings, reading and appending (C2SP tlog-tiles).

A tile at level ``l`` holds up to 256 consecutive hashes, each the tree hash of ``256**l`` leaves; a bundle
holds up to 256 entries. All but the rightmost of a level are full and never change.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

from ledger.core.errors import CorruptError, InvalidError
from ledger.core.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    MAX_SIZE,
    consistency_ranges,
    fold_pairs,
    inclusion_ranges,
    node_hash,
)

__all__ = [
    "MAX_ENTRY",
    "MAX_LEVEL",
    "TILE_HEIGHT",
    "TILE_WIDTH",
    "TileCache",
    "TileReader",
    "TileRef",
    "append_tiles",
    "decode_bundle",
    "encode_bundle",
    "entries_path",
    "parse_tile_path",
    "tile_path",
    "tile_widths",
]

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_SIZE = TILE_WIDTH * HASH_SIZE
MAX_LEVEL = 63
# An entry's length is a uint16.
MAX_ENTRY = 65_535
# A proof touches at most two tiles a level, and a tree within MAX_SIZE has eight levels of tiles.
_CACHED_TILES = 64

_PATH = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([0-9]{1,3}))?")


@dataclass(frozen=True, slots=True)
class TileRef:
    """Which tile or bundle a path names.

    Args:
        level: the tile's level, None for an entry bundle.
        index: its index within the level.
        width: how many hashes or entries it holds: 1 to 256, the latter for a full one.
    """

    level: int | None
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the log's prefix."""
        if self.level is None:
            return entries_path(self.index, self.width)
        return tile_path(self.level, self.index, self.width)


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of a tile, such as ``tile/0/x001/x234/067.p/5``."""
    if not 0 <= level <= MAX_LEVEL:
        raise InvalidError(f"Tile level {level} is out of range", where="tile path", remedy="use 0 to 63")
    return f"tile/{level}/{_index_path(index, width)}"


def entries_path(index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of an entry bundle, such as ``tile/entries/x001/x234/067.p/5``."""
    return f"tile/entries/{_index_path(index, width)}"


def parse_tile_path(text: str) -> TileRef:
    """Return what a path names: the exact inverse of :func:`tile_path` and :func:`entries_path`."""
    match = _PATH.fullmatch(text)
    if match:
        level, index, width = match.groups()
        ref = TileRef(
            level=None if level == "entries" else int(level),
            index=int(index.replace("x", "").replace("/", "")),
            width=int(width) if width else TILE_WIDTH,
        )
        in_range = (ref.level or 0) <= MAX_LEVEL and ref.index <= MAX_SIZE and 1 <= ref.width <= TILE_WIDTH
        if in_range and ref.path == text:
            return ref
    raise InvalidError(
        f"{text[:80]!r} names no tile",
        where="tile path",
        remedy="use tile/<level>/<index>[.p/<width>] or tile/entries/<index>[.p/<width>]",
    )


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Return the bytes of an entry bundle: each entry after its length as a big-endian uint16."""
    if not 1 <= len(entries) <= TILE_WIDTH:
        raise InvalidError(
            f"A bundle holds 1 to {TILE_WIDTH} entries, not {len(entries)}",
            where="entry bundle",
            remedy="split the entries at multiples of 256",
        )
    parts = []
    for position, entry in enumerate(entries):
        if len(entry) > MAX_ENTRY:
            raise InvalidError(
                f"An entry has at most {MAX_ENTRY} bytes, not {len(entry)}",
                where=f"entry {position} of the bundle",
                remedy="log a smaller statement",
            )
        parts.append(len(entry).to_bytes(2, "big"))
        parts.append(entry)
    return b"".join(parts)


def decode_bundle(data: bytes, count: int) -> list[bytes]:
    """Return the entries of a bundle, which must hold exactly ``count`` and nothing after them."""
    if not 1 <= count <= TILE_WIDTH:
        raise InvalidError(
            f"A bundle holds 1 to {TILE_WIDTH} entries, not {count}",
            where="entry bundle",
            remedy="pass the width its path names",
        )
    entries = []
    offset, total = 0, len(data)
    for position in range(count):
        start = offset + 2
        offset = start + int.from_bytes(data[offset:start], "big")
        if offset > total:
            raise InvalidError(
                "The bundle ends within an entry",
                where=f"entry {position} of {count}",
                remedy="fetch the bundle again",
            )
        entries.append(bytes(data[start:offset]))
    if offset != total:
        raise InvalidError(
            f"The bundle has {total - offset} bytes after its {count} entries",
            where="entry bundle",
            remedy="fetch the bundle again, or the one of the right width",
        )
    return entries


def tile_widths(size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (level, number of full tiles, width of the partial one or 0) for a tree of ``size`` leaves."""
    level = 0
    while size:
        yield level, size >> TILE_HEIGHT, size % TILE_WIDTH
        size >>= TILE_HEIGHT
        level += 1


class TileCache:
    """Tiles with the nodes inside them, the least recently used dropped first. Safe to share between threads.

    A tile of given level, index and width never changes, unless it was read inside a transaction that was
    then undone: never share a cache with those.

    Args:
        tiles: how many to keep; a full one takes about 40 KB.
    """

    def __init__(self, tiles: int) -> None:
        self._limit = tiles
        self._lock = Lock()  # guards _tiles
        self._tiles: OrderedDict[tuple[int, int, int], tuple[list[bytes], ...]] = OrderedDict()

    def get(self, key: tuple[int, int, int]) -> tuple[list[bytes], ...] | None:
        """Return the nodes of tile (level, index, width), bottom level first, if they are here."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
            return self._tiles.get(key)

    def put(self, key: tuple[int, int, int], nodes: tuple[list[bytes], ...]) -> None:
        """Keep the nodes of a tile."""
        with self._lock:
            self._tiles[key] = nodes
            if len(self._tiles) > self._limit:
                self._tiles.popitem(last=False)


class TileReader:
    """Reads roots and proofs of a tree from its tiles, and only the tiles that matter: O(log size) of them.

    It checks the length of each tile, not its content: check what it returns against a signed root.

    Args:
        fetch: returns the bytes of tile (level, index, width); its errors pass through.
        size: number of leaves of the tree the tiles belong to.
        cache: tiles to share with other readers of the same log; only levels above 0, of which a log
            has few, so that each proof hashes one tile whatever the size of the log.
    """

    def __init__(
        self, fetch: Callable[[int, int, int], bytes], size: int, *, cache: TileCache | None = None
    ) -> None:
        if not 0 <= size <= MAX_SIZE:
            raise InvalidError(f"Tree size {size} is out of range", where="tiles", remedy="use 0 to 2^63 - 1")
        self.size = size
        self._fetch = fetch
        self._shared = cache
        self._own = TileCache(_CACHED_TILES)

    def root(self, size: int | None = None) -> bytes:
        """Return the tree hash over the first ``size`` leaves, by default all."""
        return self.subtree_hash(0, self.size if size is None else size)

    def inclusion_path(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the inclusion proof of leaf ``index`` in the tree of the first ``size`` leaves."""
        size = self.size if size is None else size
        return [self.subtree_hash(start, end) for start, end in inclusion_ranges(index, size)]

    def consistency_path(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """Return the proof that the tree of ``new_size``, by default all, extends that of ``old_size``."""
        new_size = self.size if new_size is None else new_size
        return [self.subtree_hash(start, end) for start, end in consistency_ranges(old_size, new_size)]

    def subtree_hash(self, start: int, end: int) -> bytes:
        """Return MTH(D[start:end]); ``start`` must be a multiple of the largest 2^n within the subtree."""
        length = end - start
        if not 0 <= start <= end <= self.size or (length and start % (1 << (length.bit_length() - 1))):
            raise InvalidError(
                f"[{start}, {end}) is no subtree of a tree of {self.size} leaves",
                where="tiles",
                remedy="ask for the ranges of an inclusion or consistency proof",
            )
        if not length:
            return EMPTY_ROOT
        perfect = []  # the perfect subtrees that make it up, left to right
        while start < end:
            height = (end - start).bit_length() - 1
            perfect.append(self._node(height, start >> height))
            start += 1 << height
        result = perfect.pop()
        while perfect:
            result = node_hash(perfect.pop(), result)
        return result

    def _node(self, height: int, index: int) -> bytes:
        """Return the hash of the perfect subtree of ``2**height`` leaves with this index at its height."""
        level, within = divmod(height, TILE_HEIGHT)
        tile, first = divmod(index << within, TILE_WIDTH)
        return self._tile(level, tile)[within][first >> within]

    def _tile(self, level: int, index: int) -> tuple[list[bytes], ...]:
        width = min(TILE_WIDTH, (self.size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH)
        key = (level, index, width)
        cache = self._shared if self._shared is not None and level else self._own
        cached = cache.get(key)
        if cached is not None:
            return cached
        data = self._fetch(level, index, width)
        if len(data) != width * HASH_SIZE:
            raise CorruptError(
                f"The tile has {len(data)} bytes instead of {width * HASH_SIZE}",
                where=tile_path(level, index, width),
                remedy="fetch it again, or rebuild it from the entries",
            )
        levels = [_hashes(data)]
        while len(levels) <= TILE_HEIGHT:
            levels.append(fold_pairs(levels[-1]))
        nodes = tuple(levels)
        cache.put(key, nodes)
        return nodes


def append_tiles(
    old_size: int, leaf_hashes: Sequence[bytes], last_tiles: Mapping[int, bytes]
) -> dict[tuple[int, int], bytes]:
    """Return every tile, full or partial, that changes when ``leaf_hashes`` are appended.

    Args:
        old_size: number of leaves before.
        leaf_hashes: the hashes of the new leaves.
        last_tiles: level -> bytes of the rightmost partial tile of the old tree; a level whose last tile is
            full needs none.

    Returns:
        (level, index) -> bytes; the width is the length divided by 32.
    """
    if not 0 <= old_size <= MAX_SIZE - len(leaf_hashes):
        raise InvalidError(f"Tree size {old_size} is out of range", where="tiles", remedy="use 0 to 2^63 - 1")
    tiles: dict[tuple[int, int], bytes] = {}
    level, position, hashes = 0, old_size, list(leaf_hashes)
    while hashes:
        index, width = divmod(position, TILE_WIDTH)
        if width:
            last = last_tiles.get(level, b"")
            if len(last) != width * HASH_SIZE:
                raise InvalidError(
                    f"The last tile has {len(last)} bytes instead of {width * HASH_SIZE}",
                    where=tile_path(level, index, width),
                    remedy="pass the rightmost partial tile of each level of the old tree",
                )
            hashes = _hashes(last) + hashes
        data = b"".join(hashes)
        if len(data) != len(hashes) * HASH_SIZE:
            raise InvalidError(
                f"A hash does not have {HASH_SIZE} bytes",
                where="leaf hashes",
                remedy="pass RFC 6962 leaf hashes",
            )
        for offset in range(0, len(data), TILE_SIZE):
            tiles[level, index + offset // TILE_SIZE] = data[offset : offset + TILE_SIZE]
        # What fills a tile rises one level: the roots of the full tiles, all hashed together.
        del hashes[len(hashes) - len(hashes) % TILE_WIDTH :]
        for _ in range(TILE_HEIGHT):
            hashes = fold_pairs(hashes)
        position >>= TILE_HEIGHT
        level += 1
    return tiles


def _hashes(data: bytes) -> list[bytes]:
    return [data[offset : offset + HASH_SIZE] for offset in range(0, len(data), HASH_SIZE)]


def _index_path(index: int, width: int) -> str:
    if not 0 <= index <= MAX_SIZE or not 1 <= width <= TILE_WIDTH:
        raise InvalidError(
            f"No tile has index {index} and width {width}",
            where="tile path",
            remedy="use an index of 0 to 2^63 - 1 and a width of 1 to 256",
        )
    parts = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        parts.append(f"x{index % 1000:03d}")
    path = "/".join(reversed(parts))
    return path if width == TILE_WIDTH else f"{path}.p/{width}"
