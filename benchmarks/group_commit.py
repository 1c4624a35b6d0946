"""Statements of one record each from 64 clients: group commit beside one transaction for each, on PostgreSQL.

Twice: through the sequencer alone, which is what group commit changes, and over HTTP, where checking and
answering share the machine's cores. Each client sends a statement once it has the receipt of the one before.
Latency is then measured at half the rate that was reached, from when each statement was due.

Peers, from the same 64 clients: a table in the same server whose rows hash the one before, one transaction
each; and (one writer, as it allows no more) pymerkle's tree in SQLite.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg

from benchmarks._databases import benchmark_postgres, ledger_in
from benchmarks.ingest import Chain, Running, make_chains
from ledger.core import cose
from ledger.core.keys import generate_key
from ledger.store import Limits, Prepared, Sequencer, append, open_store, prepare_statement
from ledger.store.append import create_log
from tests.databases import Postgres

CLIENTS = 64
STATEMENTS = 40
"""Of each client, in each measurement."""
_ONE_EACH = ("-c", "import ledger.store.append as a, cli.main; a.MAX_GROUP_STATEMENTS = 1; cli.main.main()")


def _prepared(chains: list[Chain]) -> list[list[Prepared]]:
    """Every statement of every chain, checked: what is left is to log it."""
    now_us = time.time_ns() // 1000
    made = []
    for chain in chains:
        items = []
        for path, _, body in chain.bodies:
            entry, lines = (body, None) if path == "/entries" else cose.decode_cbor(body, where="body")
            items.append(
                prepare_statement(
                    entry,
                    lines,
                    key_of=lambda *_, key=chain.key: key.public,
                    now_us=now_us,
                    limits=Limits(),
                )
            )
        made.append(items)
    return made


def _together(work: Sequence[Callable[[], None]]) -> float:
    """Seconds until all are done, each on a thread of its own."""
    threads = [threading.Thread(target=each) for each in work]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


def through_sequencer(url: str, chains: list[Chain], group: int) -> float:
    """Statements per second."""
    store, key = open_store(url), generate_key()
    create_log(store, key, "log.bench.example")
    prepared = _prepared(chains)
    with patch.object(append, "MAX_GROUP_STATEMENTS", group):
        sequencer = Sequencer(store, key)
        sequencer.start()
        for chain in chains:
            sequencer.add_key(chain.name, chain.key.public).result()
        for items in prepared:
            for item in items[:2]:
                sequencer.submit(item).result()

        def client(items: list[Prepared]) -> Callable[[], None]:
            def send() -> None:
                for item in items[2:]:
                    sequencer.submit(item).result()

            return send

        seconds = _together([client(items) for items in prepared])
        sequencer.stop()
    store.close()
    return sum(len(items) - 2 for items in prepared) / seconds


async def _post(streams: tuple[Any, Any], token: str, path: str, media_type: str, body: bytes) -> None:
    reader, writer = streams
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: {media_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    answer = await reader.readexactly(length)
    if not head.startswith(b"HTTP/1.1 201"):
        raise RuntimeError(f"{head[:40]!r} {answer[:300]!r}")


async def _send_all(
    port: int, token: str, chains: list[Chain], part: slice, per_s: float | None
) -> tuple[float, list[float]]:
    """Seconds taken, and each statement's latency: since it was due, or sent where nothing sets a pace."""
    latencies: list[float] = []
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in chains]
    begun = time.perf_counter()

    async def client(number: int, chain: Chain) -> None:
        for n, (path, media_type, body) in enumerate(chain.bodies[part]):
            due = time.perf_counter()
            if per_s is not None:
                due = begun + (n * len(chains) + number) / per_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await _post(clients[number], token, path, media_type, body)
            latencies.append(time.perf_counter() - due)

    await asyncio.gather(*[client(n, chain) for n, chain in enumerate(chains)])
    seconds = time.perf_counter() - begun
    for _, writer in clients:
        writer.close()
    return seconds, latencies


@contextmanager
def _service(server: Postgres, chains: list[Chain], program: tuple[str, ...]) -> Any:
    url = server.create_migrated()
    with tempfile.TemporaryDirectory() as name, ledger_in(url):
        service = Running(Path(name) / "ledger", chains, program)
        try:
            asyncio.run(_send_all(service.port, service.token, chains, slice(0, 2), None))
            yield service
        finally:
            service.stop()
    server.drop(url)


def over_http(server: Postgres) -> dict[str, float]:
    """Rates with and without groups; latency at half the rate with them."""
    chains = make_chains(CLIENTS * STATEMENTS, 1, CLIENTS)
    with _service(server, chains, _ONE_EACH) as service:
        seconds, _ = asyncio.run(_send_all(service.port, service.token, chains, slice(2, None), None))
        one_each = CLIENTS * STATEMENTS / seconds
    chains = make_chains(2 * CLIENTS * STATEMENTS, 1, CLIENTS)
    with _service(server, chains, ("-m", "cli")) as service:
        full = slice(2, 2 + STATEMENTS)
        seconds, _ = asyncio.run(_send_all(service.port, service.token, chains, full, None))
        grouped = CLIENTS * STATEMENTS / seconds
        rest = slice(2 + STATEMENTS, None)
        _, latencies = asyncio.run(_send_all(service.port, service.token, chains, rest, grouped / 2))
    latencies.sort()
    return {
        "http_per_s": grouped,
        "http_one_each_per_s": one_each,
        "http_ratio": grouped / one_each,
        "half_load_p50_ms": 1000 * latencies[len(latencies) // 2],
        "half_load_p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
    }


def hash_chain_table(server: Postgres, chains: list[Chain]) -> float:
    """Rows per second into a plain table where each row hashes the one before, one transaction each."""
    url = server.create()
    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain) as connection:
        connection.execute("CREATE TABLE chain (n int8 PRIMARY KEY, hash bytea, id text UNIQUE, body bytea)")
        connection.execute("CREATE TABLE head (n int8, hash bytea)")
        connection.execute("INSERT INTO head VALUES (0, %s)", (bytes(32),))

    def client(chain: Chain) -> Callable[[], None]:
        connection = psycopg.connect(plain)

        def send() -> None:
            for record_id, _, _, body in chain.rows:
                with connection.transaction():
                    n, before = connection.execute("SELECT n, hash FROM head FOR UPDATE").fetchone() or (
                        0,
                        b"",
                    )
                    digest = hashlib.sha256(before + body).digest()
                    connection.execute(
                        "INSERT INTO chain VALUES (%s, %s, %s, %s)", (n + 1, digest, record_id, body)
                    )
                    connection.execute("UPDATE head SET n = %s, hash = %s", (n + 1, digest))
            connection.close()

        return send

    seconds = _together([client(chain) for chain in chains])
    server.drop(url)
    return sum(len(chain.rows) for chain in chains) / seconds


def pymerkle_tree(chains: list[Chain], directory: Path) -> float | None:
    """Entries per second into pymerkle's SQLite tree, one at a time; None where it is not installed."""
    try:
        from pymerkle import SqliteTree
    except ImportError:
        return None
    rows = [row[3] for chain in chains for row in chain.rows]
    with SqliteTree(str(directory / "pymerkle.db")) as tree:
        begun = time.perf_counter()
        for body in rows:
            tree.append_entry(body)
        return len(rows) / (time.perf_counter() - begun)


def run(rounds: int = 3) -> dict[str, Any]:
    """Medians over ``rounds`` turns of all."""
    found: dict[str, list[float]] = {}
    with benchmark_postgres() as server:
        for _ in range(rounds):
            chains = make_chains(CLIENTS * STATEMENTS, 1, CLIENTS)
            for name, group in (("one_each_per_s", 1), ("grouped_per_s", append.MAX_GROUP_STATEMENTS)):
                url = server.create_migrated()
                found.setdefault(name, []).append(through_sequencer(url, chains, group))
                server.drop(url)
            found.setdefault("ratio", []).append(found["grouped_per_s"][-1] / found["one_each_per_s"][-1])
            for name, value in over_http(server).items():
                found.setdefault(name, []).append(value)
            found.setdefault("hash_chain_table_per_s", []).append(hash_chain_table(server, chains))
            with tempfile.TemporaryDirectory() as name:
                peer = pymerkle_tree(chains, Path(name))
            if peer is not None:
                found.setdefault("pymerkle_sqlite_per_s", []).append(peer)
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}


if __name__ == "__main__":
    os.environ.pop("TALLYSTICK_DATABASE", None)
    for label, value in run(*[int(argument) for argument in sys.argv[1:]]).items():
        print(f"{label:24} {value:12.2f}")
