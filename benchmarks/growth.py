"""What a record costs as the log grows: appending, disk, reads, at 100 thousand and at 10 million records.

Batches of 256, signed and chained as issuers do, are appended through the sequencer, 16 in a transaction.
Checking them, which does not depend on the log, is left out: the batches share one block of record bytes,
under ids of their own. Reads are of receipts, proofs, tiles and entry bundles at random places, and of the
record index.
"""

from __future__ import annotations

import hashlib
import random
import sys
import tempfile
import time
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
"""Records whose appending is timed, before each size."""
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

    def grow(self, records: int) -> tuple[float, float]:
        """Append until there are so many; the seconds that the sequencer took, and how many it appended."""
        seconds, begun_at = 0.0, self.records
        while self.records < records:
            group = [self._next() for _ in range(GROUP)]
            begun = time.perf_counter()
            futures = [self.sequencer.submit(item) for item in group]
            for future in futures:
                future.result()
            seconds += time.perf_counter() - begun
        return seconds, self.records - begun_at

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


def grown(url: str, server: Postgres | None, records: int) -> dict[str, float]:
    """Figures of one database."""
    writer = Writer(url)
    try:
        writer.grow(SMALL - WINDOW // 2)
        seconds, count = writer.grow(SMALL + WINDOW // 2)
        small, small_reads = 1e6 * seconds / count, reads(writer.store)
        writer.grow(records - WINDOW)
        seconds, count = writer.grow(records)
        large, large_reads = 1e6 * seconds / count, reads(writer.store)
    finally:
        writer.close()
    size = size_of(server, url) if server is not None else Path(url).stat().st_size
    found = {
        "append_us_small": small,
        "append_us_large": large,
        "append_ratio": large / small,
        "bytes_per_record": size / writer.records,
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
            url = server.create_migrated()
            found |= {f"postgresql_{name}": v for name, v in grown(url, server, records).items()}
    if "sqlite" in databases:
        with tempfile.TemporaryDirectory() as name:
            url = str(Path(name) / "ledger.db")
            found |= {f"sqlite_{key}": v for key, v in grown(url, None, records).items()}
    return found


if __name__ == "__main__":
    try:
        for label, value in run(int(sys.argv[1]) if sys.argv[1:] else RECORDS, *sys.argv[2:3]).items():
            print(f"{label:32} {value:14.2f}")
    except TallystickError as error:
        sys.exit(str(error))
