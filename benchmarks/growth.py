"""What a record costs as the log grows: appending, disk, reads, at 100 thousand and at 10 million records.

Batches of 256, signed and chained as issuers do, are appended through the sequencer, 16 in a transaction.
Checking them, which does not depend on the log, is left out: the batches share one block of record bytes,
under ids of their own. Reads are of receipts, proofs, tiles and entry bundles at random places, and of the
record index.

The large log and small ones are in one server, or on one disk, and grow in turns, a dozen transactions each:
a server that has just started writes no page back until its memory is full, whatever the log, and a small
log alone would be measured on that (``append_us_fresh``).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from benchmarks._databases import benchmark_postgres
from benchmarks.postgres import size_of
from benchmarks.workload import BATCH, Issuer, make_records
from ledger.core.errors import TallystickError
from ledger.core.keys import generate_key
from ledger.store import Limits, Prepared, Sequencer, Store, migrate, open_store, prepare_statement, queries
from ledger.store.append import create_log
from ledger.store.prepare import prepare_own
from ledger.store.queries import place_of
from ledger.store.tables import RecordIndex, table
from tests.databases import Postgres

RECORDS = 10_000_000
SMALL = 100_000
WINDOW = 100_000
"""Records whose appending is timed, around each size, in each round."""
ROUNDS = 6
"""Small logs, one after the other: one transaction may wait for the disk longer than ten."""
GROUP = 16
READS = 400
BATCHES_AN_HOUR = 400
"""Of new sums: 100,000 records an hour of their time."""


class Writer:
    """Appends batches to one log."""

    def __init__(self, url: str) -> None:
        self.store: Store = open_store(url)
        migrate(self.store)
        key = generate_key()
        create_log(self.store, key, "log.bench.example")
        self.sequencer = Sequencer(self.store, key)
        self.sequencer.start()
        self.issuer = Issuer("gpu-0.bench.example", generate_key())
        self.sequencer.add_key(self.issuer.name, self.issuer.key.public).result()
        for statement in self.issuer.documents():
            self.sequencer.submit(self._check(statement.entry, None)).result()
        self.start_us = time.time_ns() // 1000 - 40 * 86_400_000_000
        records = make_records(BATCH, self.start_us, random.Random(1))
        self.payload_statement, lines = self.issuer.seal(records)
        self.pattern = self._check(self.payload_statement.entry, lines)
        self.sequencer.submit(self.pattern).result()
        self.records = BATCH
        self.prev = self.payload_statement.leaf_hash.hex()

    def _check(self, entry: bytes, lines: bytes | None) -> Prepared:
        return prepare_statement(
            entry,
            lines,
            key_of=lambda *_: self.issuer.key.public,
            now_us=time.time_ns() // 1000,
            limits=Limits(),
        )

    def _next(self) -> Prepared:
        """A batch whose records lie 200 us after those of the one before."""
        number = self.records // BATCH
        payload = msgspec.structs.replace(
            self.payload_statement.payload,
            seq=self.issuer.seq,
            prev=self.issuer.prev,
            root=hashlib.sha256(str(number).encode()).hexdigest(),
        )
        from ledger.core.statements import sign_statement

        statement = sign_statement(payload, issuer=self.issuer.name, key=self.issuer.key)
        self.issuer.seq, self.issuer.prev = self.issuer.seq + 1, statement.leaf_hash.hex()
        pattern = self.pattern.records
        assert pattern is not None
        at = self.start_us + number * BATCH * 200
        ids = [
            (at + n * 200) // 1000 << 80
            | 7 << 76
            | (2 << 62 | random.getrandbits(62))
            | random.getrandbits(12) << 64
            for n in range(BATCH)
        ]
        hour = number // BATCHES_AN_HOUR
        rollups = {(key[0] + hour, *key[1:]): sums for key, sums in pattern.rollups.items()}
        records = replace(pattern, ids=[each.to_bytes(16, "big") for each in ids], rollups=rollups)
        self.records += BATCH
        return replace(prepare_own(statement), records=records, own=False)

    def append_group(self) -> float:
        """Append ``GROUP`` batches in a transaction; the seconds that the sequencer took."""
        group = [self._next() for _ in range(GROUP)]
        begun = time.perf_counter()
        futures = [self.sequencer.submit(item) for item in group]
        for future in futures:
            future.result()
        return time.perf_counter() - begun

    def grow(self, records: int) -> float:
        """Append until there are so many; microseconds that one took."""
        seconds, begun_at = 0.0, self.records
        while self.records < records:
            seconds += self.append_group()
        return 1e6 * seconds / max(1, self.records - begun_at)

    def close(self) -> None:
        """Stop."""
        self.sequencer.stop()
        self.store.close()


def reads(store: Store) -> dict[str, float]:
    """p50 and p99 of each read, in microseconds."""
    chance = random.Random(2)
    with store.read() as connection:
        size = queries.log_head(connection).size
        index = table(RecordIndex)
        ids = []
        for _ in range(READS):
            key = chance.getrandbits(128).to_bytes(16, "big")
            row = connection.execute(
                select(index.c.id).where(index.c.id >= key).limit(1)
            ).scalar_one_or_none()
            ids.append(row or connection.execute(select(index.c.id).limit(1)).scalar_one())

    def look_up(connection: Connection, n: int) -> None:
        text = ids[n].hex()
        place_of(connection, "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])))

    def leaf() -> int:
        return chance.randrange(4, size)

    what = {
        "receipt": lambda c, _: queries.receipt(c, leaf()),
        "inclusion": lambda c, _: queries.inclusion(c, leaf(), size),
        "consistency": lambda c, _: queries.consistency(c, leaf(), size),
        "tile": lambda c, _: queries.read_tile(c, 0, chance.randrange(max(1, size // 256)), min(size, 256)),
        "bundle": lambda c, _: queries.read_bundle(c, chance.randrange(max(1, size // 256)), min(size, 256)),
        "record_index": look_up,
    }
    found = {}
    for name, read in what.items():
        times = []
        for n in range(READS):
            begun = time.perf_counter()
            with store.read() as connection:
                read(connection, n)
            times.append((time.perf_counter() - begun) * 1e6)
        times.sort()
        found[f"{name}_p50_us"], found[f"{name}_p99_us"] = times[READS // 2], times[READS * 99 // 100]
    return found


def in_turns(large: Writer, small: Writer) -> tuple[float, float, int]:
    """Seconds that appending took in the large log and in the small one, and the records of each."""
    groups = WINDOW // 2 // (GROUP * BATCH)
    seconds = {large: 0.0, small: 0.0}
    for writer in (small, large, large, small):
        seconds[writer] += sum(writer.append_group() for _ in range(groups))
    return seconds[large], seconds[small], 2 * groups * GROUP * BATCH


def grown(new: Callable[[], str], server: Postgres | None, records: int) -> dict[str, float]:
    """Figures of one kind of database; ``new`` gives the URL of an empty one."""
    url = new()
    large_s, small_s, count = 0.0, 0.0, 0
    with contextlib.closing(Writer(url)) as large:
        large.grow(SMALL - WINDOW // 2)
        fresh_us = large.grow(SMALL + WINDOW // 2)
        large.grow(records - ROUNDS * WINDOW // 2)
        for _ in range(ROUNDS):
            with contextlib.closing(Writer(new())) as small:
                small.grow(SMALL - WINDOW // 2)
                figures = in_turns(large, small)
                large_s, small_s, count = large_s + figures[0], small_s + figures[1], count + figures[2]
                small_reads = reads(small.store)
        large_reads = reads(large.store)
    size = size_of(server, url) if server is not None else Path(url).stat().st_size
    found = {
        "append_us_fresh": fresh_us,
        "append_us_small": 1e6 * small_s / count,
        "append_us_large": 1e6 * large_s / count,
        "append_ratio": large_s / small_s,
        "bytes_per_record": size / large.records,
    }
    for name, value in large_reads.items():
        found[name] = value
        if name.endswith("p50_us"):
            found[name.replace("_p50_us", "_ratio")] = value / small_reads[name]
    return found


def run(records: int = RECORDS, databases: str = "postgresql sqlite") -> dict[str, Any]:
    """Both databases."""
    found: dict[str, Any] = {"records": records}
    if "postgresql" in databases:
        with benchmark_postgres() as server:
            figures = grown(server.create_migrated, server, records)
            found |= {f"postgresql_{name}": value for name, value in figures.items()}
    if "sqlite" in databases:
        with tempfile.TemporaryDirectory() as name:
            numbers = itertools.count()
            figures = grown(lambda: str(Path(name) / f"{next(numbers)}.db"), None, records)
            found |= {f"sqlite_{name}": value for name, value in figures.items()}
    return found


if __name__ == "__main__":
    try:
        for label, value in run(int(sys.argv[1]) if sys.argv[1:] else RECORDS, *sys.argv[2:3]).items():
            print(f"{label:32} {value:14.2f}")
    except TallystickError as error:
        sys.exit(str(error))
