"""Batches of 256 records over HTTP into PostgreSQL, verified and durable, against plain COPY of their bytes.

As ``benchmarks.ingest``, on a real PostgreSQL. The limit beside it is COPY of the same record bytes into a
table with three indexes in the same server, one commit a batch (and one per 1,000 records).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from benchmarks._databases import benchmark_postgres, ledger_in
from benchmarks.ingest import ISSUERS, Chain, make_chains, over_http
from benchmarks.workload import BATCH
from tests.databases import Postgres, database_name

RECORDS = 200_000


def plain_copy(chains: list[Chain], records: int, server: Postgres, commit_every: int) -> float:
    """Records per second of COPY into one table with three indexes."""
    rows = [row for chain in chains for row in chain.rows]
    url = server.create()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE record (id text, started_us int8, tenant text, body bytea)")
        connection.execute("CREATE UNIQUE INDEX ON record (id)")
        connection.execute("CREATE INDEX ON record (started_us)")
        connection.execute("CREATE INDEX ON record (tenant, started_us)")
        begun = time.perf_counter()
        for start in range(0, len(rows), commit_every):
            with connection.cursor().copy("COPY record FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["text", "int8", "text", "bytea"])
                for row in rows[start : start + commit_every]:
                    copy.write_row(row)
        seconds = time.perf_counter() - begun
    server.drop(url)
    return records / seconds


def size_of(server: Postgres, url: str) -> int:
    """Bytes of a database on disk, after all that waits was written."""
    with psycopg.connect(server.uri, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        row = connection.execute("SELECT pg_database_size(%s)", (database_name(url),)).fetchone()
    assert row is not None
    return int(row[0])


def run(records: int = RECORDS, rounds: int = 3) -> dict[str, Any]:
    """Medians over ``rounds`` turns of all."""
    records -= records % (BATCH * ISSUERS)
    figures: dict[str, list[float]] = {"http": [], "copy_256": [], "copy_1000": [], "bytes": []}
    with benchmark_postgres() as server:
        for _ in range(rounds):
            chains = make_chains(records)
            url = server.create_migrated()
            empty = size_of(server, url)
            with tempfile.TemporaryDirectory() as name, ledger_in(url):
                figures["http"].append(over_http(chains, records, Path(name) / "ledger"))
            figures["bytes"].append((size_of(server, url) - empty) / records)
            server.drop(url)
            figures["copy_256"].append(plain_copy(chains, records, server, 256))
            figures["copy_1000"].append(plain_copy(chains, records, server, 1000))
    medians = {name: sorted(values)[len(values) // 2] for name, values in figures.items()}
    return {
        "records_per_s": medians["http"],
        "copy_256_per_s": medians["copy_256"],
        "copy_1000_per_s": medians["copy_1000"],
        "ratio_256": medians["http"] / medians["copy_256"],
        "ratio_1000": medians["http"] / medians["copy_1000"],
        "bytes_per_record": medians["bytes"],
    }


if __name__ == "__main__":
    for label, value in run(*[int(argument) for argument in sys.argv[1:]]).items():
        print(f"{label:20} {value:12.2f}")
