"""How the cost of a proof grows with the log: look-ups at 10 thousand and at 10 million leaves."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from ledger.core.merkle import root_from_inclusion
from ledger.core.tiles import append_tiles, tile_widths
from ledger.store import Store, migrate, open_store, queries
from ledger.store.tables import LogHead, Tile

SMALL, LARGE = 10_000, 10_000_000
LOOKUPS = 600
_STEP = 1 << 18


def _leaf(index: int) -> bytes:
    return index.to_bytes(32, "little")


def build(path: Path, size: int) -> Store:
    """A store with the tiles of a tree of ``size`` made-up leaves: all that proofs read."""
    store = open_store(path)
    migrate(store)
    last: dict[int, bytes] = {}
    done = 0
    while done < size:
        count = min(_STEP, size - done)
        changed = append_tiles(done, [_leaf(done + i) for i in range(count)], last)
        partial = {(level, full) for level, full, width in tile_widths(done) if width}
        done += count
        with store.write() as connection:
            for level, index in partial & changed.keys():
                row = Tile.__table__
                connection.execute(row.delete().where(row.c.level == level, row.c.idx == index))
            connection.execute(
                insert(Tile.__table__),
                [{"level": level, "idx": i, "hashes": data} for (level, i), data in changed.items()],
            )
        tails = {level: (full, width) for level, full, width in tile_widths(done) if width}
        last = {level: changed.get((level, full), last.get(level, b"")) for level, (full, _) in tails.items()}
    with store.write() as connection:
        root = queries.tile_reader(connection, size).root()
        connection.execute(
            insert(LogHead.__table__).values(
                id=1, origin="bench.example", size=size, root=root, checkpoint=""
            )
        )
    return store


def _time(store: Store, size: int, chance: random.Random, look_up: Callable[..., Any]) -> float:
    index = chance.randrange(size)
    with store.read() as connection:
        begun = time.perf_counter()
        look_up(connection, index)
        return time.perf_counter() - begun


def run(lookups: int = LOOKUPS) -> dict[str, Any]:
    """Median microseconds of an inclusion and a consistency proof at both sizes, taken in turn."""
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        stores = {size: build(Path(folder) / f"{size}.db", size) for size in (SMALL, LARGE)}
        for size, store in stores.items():  # each proof must be right, whatever it takes
            with store.read() as connection:
                root = queries.log_head(connection).root
                for index in (0, size // 3, size - 1):
                    path = queries.inclusion(connection, index, size)
                    assert root_from_inclusion(_leaf(index), index, size, path) == root
        times: dict[tuple[int, str], list[float]] = {}
        for _ in range(lookups):
            for size, store in stores.items():
                for kind, look_up in {
                    "inclusion": lambda c, i, n=size: queries.inclusion(c, i, n),
                    "consistency": lambda c, i, n=size: queries.consistency(c, i, n),
                }.items():
                    times.setdefault((size, kind), []).append(_time(store, size, chance, look_up))
        for store in stores.values():
            store.close()
    # The first look-ups fill the shared tiles, at either size.
    medians = {key: statistics.median(values[lookups // 3 :]) * 1e6 for key, values in times.items()}
    return {
        "inclusion_us_10k": medians[SMALL, "inclusion"],
        "inclusion_us_10M": medians[LARGE, "inclusion"],
        "inclusion_ratio": medians[LARGE, "inclusion"] / medians[SMALL, "inclusion"],
        "consistency_us_10k": medians[SMALL, "consistency"],
        "consistency_us_10M": medians[LARGE, "consistency"],
        "consistency_ratio": medians[LARGE, "consistency"] / medians[SMALL, "consistency"],
    }


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name:22} {value:12.2f}")
