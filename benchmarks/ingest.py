"""Batches of 256 records over HTTP into SQLite, verified and durable, against plain inserts of their bytes.

The service runs as its own process, with the store that `tallystick init` makes; sixteen issuers send, each
waiting for its receipt before the next batch. The limit beside it is `executemany` of the same record bytes
into a table with three indexes and the same durability (WAL, synchronous=FULL), one commit a batch.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.workload import BATCH, Issuer, make_records
from cli.folder import Folder
from cli.init import init_folder
from ledger.core.cose import encode_cbor
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.records import Record
from ledger.keyfiles import load_private_key
from ledger.store import Sequencer

ISSUERS = 16
RECORDS = 200_000


class Chain(Issuer):
    """An issuer with its statements ready to be sent."""

    def __init__(self, name: str, key: PrivateKey) -> None:
        super().__init__(name, key)
        self.bodies: list[tuple[str, str, bytes]] = []
        self.rows: list[tuple[str, int, str, bytes]] = []

    def publish(self) -> None:
        """Add the documents."""
        self.bodies += [("/entries", "application/cose", each.entry) for each in self.documents()]

    def add(self, records: list[Record]) -> None:
        """Add a batch."""
        statement, lines = self.seal(records)
        body = encode_cbor([statement.entry, lines])
        self.bodies.append(("/batches", "application/vnd.tallystick.batch+cbor", body))
        self.rows += [
            (r.id, r.started_us, str(r.tenant), line)
            for r, line in zip(records, lines[:-1].split(b"\n"), strict=True)
        ]


def make_chains(records: int, batch: int = BATCH, issuers: int = ISSUERS) -> list[Chain]:
    """Chains that together hold ``records`` records."""
    chance = random.Random(1)
    chains = [Chain(f"gpu-{n}.bench.example", generate_key()) for n in range(issuers)]
    now = time.time_ns() // 1000 - 600_000_000
    for chain in chains:
        chain.publish()
    for n in range(records // batch):
        chains[n % issuers].add(make_records(batch, now + n * batch * 200, chance))
    return chains


class Running:
    """A service in a folder of its own, as an operator runs it."""

    def __init__(self, folder: Path, chains: list[Chain], program: tuple[str, ...] = ("-m", "cli")) -> None:
        init_folder(folder, "log.bench.example")
        key = load_private_key(folder / "keys" / "log.pem")
        store = Folder(folder).open()
        sequencer = Sequencer(store, key, published=folder / "published.checkpoint")
        sequencer.start()
        for chain in chains:
            sequencer.add_key(chain.name, chain.key.public).result()
        sequencer.stop()
        store.close()
        self.token = (folder / "admin.key").read_text().strip()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, *program, "serve", str(folder), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1_200):
            try:
                self.connect().request("GET", "/healthz")
            except OSError:
                time.sleep(0.05)
            else:
                return
        self.stop()
        raise RuntimeError("the service did not start")

    def connect(self) -> http.client.HTTPConnection:
        """A connection of the caller's own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(self, chain: Chain) -> None:
        """Send a chain in order, each statement after the receipt of the one before."""
        connection = self.connect()
        for path, media_type, body in chain.bodies:
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": media_type}
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            receipt = response.read()
            if response.status != 201:
                raise RuntimeError(f"{response.status} {receipt[:300]!r}")

    def size(self) -> int:
        """How many leaves its log has."""
        connection = self.connect()
        connection.request("GET", "/log")
        return int(json.loads(connection.getresponse().read())["size"])

    def stop(self) -> None:
        """Stop it as an operator would."""
        self.process.terminate()
        self.process.wait(60)


def over_http(chains: list[Chain], records: int, folder: Path) -> float:
    """Records per second, from the first byte sent to the last receipt."""
    service = Running(folder, chains)
    try:
        threads = [threading.Thread(target=service.send, args=(chain,)) for chain in chains]
        expected = service.size() + sum(len(chain.bodies) for chain in chains)
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        if service.size() != expected:
            raise RuntimeError(f"{service.size()} leaves instead of {expected}")
    finally:
        service.stop()
    return records / seconds


def plain_inserts(chains: list[Chain], records: int, path: Path, commit_every: int) -> float:
    """Records per second of `executemany` into one table with three indexes, as durable as ours."""
    rows = [row for chain in chains for row in chain.rows]
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode=WAL")
    connection.execute("pragma synchronous=FULL")
    connection.execute("create table record (id text, started_us integer, tenant text, body blob)")
    connection.execute("create unique index record_id on record (id)")
    connection.execute("create index record_time on record (started_us)")
    connection.execute("create index record_tenant on record (tenant, started_us)")
    begun = time.perf_counter()
    for start in range(0, len(rows), commit_every):
        connection.execute("begin immediate")
        connection.executemany("insert into record values (?, ?, ?, ?)", rows[start : start + commit_every])
        connection.execute("commit")
    seconds = time.perf_counter() - begun
    connection.close()
    return records / seconds


def run(records: int = RECORDS, rounds: int = 3) -> dict[str, Any]:
    """Medians over ``rounds`` turns of both."""
    records -= records % (BATCH * ISSUERS)
    figures: dict[str, list[float]] = {"http": [], "plain_256": [], "plain_1000": []}
    for _ in range(rounds):
        chains = make_chains(records)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            figures["http"].append(over_http(chains, records, folder / "ledger"))
            figures["plain_256"].append(plain_inserts(chains, records, folder / "256.db", 256))
            figures["plain_1000"].append(plain_inserts(chains, records, folder / "1000.db", 1000))
            size = sum(f.stat().st_size for f in (folder / "ledger").iterdir() if "ledger.db" in f.name)
    medians = {name: sorted(values)[len(values) // 2] for name, values in figures.items()}
    return {
        "records_per_s": medians["http"],
        "plain_256_per_s": medians["plain_256"],
        "plain_1000_per_s": medians["plain_1000"],
        "ratio_256": medians["http"] / medians["plain_256"],
        "ratio_1000": medians["http"] / medians["plain_1000"],
        "bytes_per_record": size / records,
    }


if __name__ == "__main__":
    os.environ.pop("TALLYSTICK_DATABASE", None)
    for label, value in run(*[int(argument) for argument in sys.argv[1:]]).items():
        print(f"{label:20} {value:12.2f}")
