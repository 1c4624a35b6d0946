"""Reads over HTTP from a service on PostgreSQL: receipt, record, its proof, tile, entry bundle, checkpoint.

One client on one connection, then eight. Latency is what a client sees, p50 and p99.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._databases import benchmark_postgres, ledger_in
from benchmarks.ingest import ISSUERS, Running, make_chains
from benchmarks.workload import BATCH

RECORDS = 200_000
READS = 300
CLIENTS = 8


def _measure(service: Running, path: Callable[[random.Random], str], clients: int) -> list[float]:
    """Milliseconds of each read, in order of size."""
    times: list[float] = []

    def client(seed: int) -> None:
        chance, connection = random.Random(seed), service.connect()
        headers = {"Authorization": f"Bearer {service.token}"}
        for _ in range(READS // clients):
            begun = time.perf_counter()
            connection.request("GET", path(chance), headers=headers)
            response: http.client.HTTPResponse = connection.getresponse()
            answer = response.read()
            times.append((time.perf_counter() - begun) * 1e3)
            if response.status != 200:
                raise RuntimeError(f"{response.status} {answer[:200]!r}")
        connection.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(times)


def run(records: int = RECORDS) -> dict[str, Any]:
    """Figures of each read."""
    records -= records % (BATCH * ISSUERS)
    chains = make_chains(records)
    ids = [row[0] for chain in chains for row in chain.rows]
    found: dict[str, Any] = {"records": records}
    with benchmark_postgres() as server, tempfile.TemporaryDirectory() as name:
        with ledger_in(server.create_migrated()):
            service = Running(Path(name) / "ledger", chains)
        try:
            threads = [threading.Thread(target=service.send, args=(chain,)) for chain in chains]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            connection = service.connect()
            connection.request("GET", "/log")
            size = int(json.loads(connection.getresponse().read())["size"])
            paths: dict[str, Callable[[random.Random], str]] = {
                "receipt": lambda c: f"/entries/{c.randrange(1, size)}",
                "record": lambda c: f"/records/{c.choice(ids)}",
                "record_proof": lambda c: f"/records/{c.choice(ids)}/proof",
                "tile": lambda c: f"/tile/0/{c.randrange(size // 256):03d}",
                "bundle": lambda c: f"/tile/entries/{c.randrange(size // 256):03d}",
                "checkpoint": lambda _: "/checkpoint",
            }
            for what, path in paths.items():
                alone, together = _measure(service, path, 1), _measure(service, path, CLIENTS)
                found[f"{what}_p50_ms"] = alone[len(alone) // 2]
                found[f"{what}_p99_ms"] = alone[len(alone) * 99 // 100]
                found[f"{what}_{CLIENTS}_clients_p99_ms"] = together[len(together) * 99 // 100]
        finally:
            service.stop()
    return found


if __name__ == "__main__":
    for label, value in run(*[int(argument) for argument in sys.argv[1:]]).items():
        print(f"{label:32} {value:12.2f}")
