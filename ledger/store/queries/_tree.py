"""The tree as it is stored: head, checkpoint, tiles, bundles and proofs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from ledger.core.checkpoint import Checkpoint, parse_checkpoint_text
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.merkle import HASH_SIZE
from ledger.core.note import parse_note
from ledger.core.tiles import TILE_WIDTH, TileReader
from ledger.store.tables import LogHead, StatementRow, Tile, table

__all__ = [
    "Head",
    "checkpoint",
    "consistency",
    "inclusion",
    "log_head",
    "read_bundle",
    "read_tile",
    "tile_fetcher",
    "tile_reader",
]


@dataclass(frozen=True)
class Head:
    """The log as it stands."""

    origin: str
    size: int
    root: bytes
    checkpoint: str


def log_head(connection: Connection) -> Head:
    """Read the head.

    Raises:
        InvalidError: there is no log in this database.
    """
    row = connection.execute(select(table(LogHead))).one_or_none()
    if row is None:
        raise InvalidError(
            "there is no log in this database",
            where="log_head",
            remedy="run `tallystick init`",
            code="no-log",
        )
    return Head(row.origin, row.size, row.root, row.checkpoint)


def checkpoint(connection: Connection) -> Checkpoint:
    """The newest checkpoint, parsed (its signature was made by us)."""
    return parse_checkpoint_text(parse_note(log_head(connection).checkpoint.encode()).text)


def read_tile(connection: Connection, level: int, index: int, width: int) -> bytes:
    """The first ``width`` hashes of a tile.

    Raises:
        CorruptError: the tile is missing or too narrow.
    """
    tiles = table(Tile)
    query = select(tiles.c.hashes).where(tiles.c.level == level, tiles.c.idx == index)
    data = connection.execute(query).scalar_one_or_none()
    if data is None or len(data) < width * HASH_SIZE:
        raise CorruptError(
            f"tile is missing or narrower than {width}",
            where=f"tile level {level} index {index}",
            remedy="run `tallystick audit` on the database",
            code="missing-tile",
        )
    return bytes(data[: width * HASH_SIZE])


def tile_fetcher(connection: Connection) -> Callable[[int, int, int], bytes]:
    """``read_tile`` as ``TileReader`` wants it."""
    return lambda level, index, width: read_tile(connection, level, index, width)


def tile_reader(connection: Connection, size: int) -> TileReader:
    """A reader of the tree of ``size`` leaves, sharing tiles with other readers of this store."""
    cache = connection.get_execution_options().get("tallystick_tiles")
    return TileReader(tile_fetcher(connection), size, cache=cache)


def read_bundle(connection: Connection, index: int, width: int) -> list[bytes]:
    """The entries of a bundle."""
    rows = table(StatementRow)
    first = index * TILE_WIDTH
    query = (
        select(rows.c.entry)
        .where(rows.c.leaf_index >= first, rows.c.leaf_index < first + width)
        .order_by(rows.c.leaf_index)
    )
    return [bytes(entry) for entry in connection.execute(query).scalars()]


def inclusion(connection: Connection, leaf_index: int, tree_size: int) -> list[bytes]:
    """The inclusion path of a leaf in the tree of ``tree_size`` leaves.

    Raises:
        InvalidError: the tree is not that large, or the leaf is not in it.
    """
    _check_size(connection, tree_size)
    if not 0 <= leaf_index < tree_size:
        raise InvalidError(
            f"leaf {leaf_index} is not in a tree of {tree_size}", where="leaf_index", code="out-of-range"
        )
    return tile_reader(connection, tree_size).inclusion_path(leaf_index)


def consistency(connection: Connection, old_size: int, new_size: int) -> list[bytes]:
    """The proof that the tree of ``new_size`` extends that of ``old_size``."""
    _check_size(connection, new_size)
    if not 0 <= old_size <= new_size:
        raise InvalidError(
            f"a tree of {new_size} does not extend one of {old_size}", where="from", code="out-of-range"
        )
    return tile_reader(connection, new_size).consistency_path(old_size)


def _check_size(connection: Connection, tree_size: int) -> None:
    size = log_head(connection).size
    if not 0 <= tree_size <= size:
        raise InvalidError(
            f"the log has {size} leaves, not {tree_size}", where="tree_size", code="out-of-range"
        )
