"""Hostile clients on the wire: replays, slow heads and bodies, bombs, deep nesting, against a real server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from cli.folder import Folder
from cli.init import init_folder
from ledger import zstd
from ledger.service.admin import grant_api_key
from tests.build import ORIGIN, Issuer, make_deployment, make_records

BATCH = "application/vnd.tallystick.batch+cbor"


class Server:
    def __init__(self, folder: Path) -> None:
        init_folder(folder, ORIGIN)
        self.issuer = Issuer()
        opened = Folder(folder)
        store = opened.open()
        with opened.sequencer(store) as sequencer:
            sequencer.add_key(self.issuer.name, self.issuer.key.public).result(30)
            self.token = grant_api_key(sequencer, "x", ["emit", "read"])
        store.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = {
            "TALLYSTICK_BODY_TIMEOUT_S": "1", "TALLYSTICK_LIMIT_CONCURRENCY": "8",
            "TALLYSTICK_PREPARE_PROCESSES": "0",
            "TALLYSTICK_MAX_BATCH_BYTES": "1000000", "TALLYSTICK_MAX_ENTRY_BYTES": "200000",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", "serve", str(folder), "--port", str(self.port)],
            env=os.environ | settings,
            stderr=subprocess.DEVNULL,
        )
        self.pool = urllib3.HTTPConnectionPool("127.0.0.1", self.port, retries=False, maxsize=4)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if self.pool.request("GET", "/healthz").status == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError("the service did not start")

    def send(self, path: str, body: bytes, media_type: str, **headers: str) -> Any:
        more = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": media_type,
            "Accept": "application/json",
        }
        return self.pool.request("POST", path, body=body, headers=more | headers)

    def healthy(self) -> bool:
        return bool(self.pool.request("GET", "/healthz", timeout=10).status == 200)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("wire") / "ledger-data")
    sent = made.send("/entries", made.issuer.deployment(make_deployment()).entry, "application/cose")
    assert sent.status == 201
    yield made
    made.process.terminate()
    made.process.wait(30)


def test_replay_gives_the_same_receipt_and_logs_nothing(server: Server) -> None:
    batch = server.issuer.batch(make_records(3, make_deployment()))
    first = server.send("/batches", batch.body, BATCH)
    size = server.pool.request("GET", "/log").json()["size"]
    for _ in range(3):
        again = server.send("/batches", batch.body, BATCH)
        assert (again.status, again.data) == (200, first.data)
    assert first.status == 201
    assert server.pool.request("GET", "/log").json()["size"] == size
    # The same records in a statement of their own are a replay, too.
    other = server.issuer.batch(make_records(3, make_deployment()), advance=False)
    refused = server.send("/batches", other.body, BATCH)
    assert (refused.status, refused.json()["type"]) == (409, "/problems/duplicate-record")


def test_bombs_and_deep_nesting(server: Server) -> None:
    bomb = zstd.compress(bytes(50_000_000), level=3)
    assert len(bomb) < 20_000
    answer = server.send("/batches", bomb, BATCH, **{"Content-Encoding": "zstd"})
    assert (answer.status, answer.json()["type"]) == (413, "/problems/compressed-bomb")
    cases = {
        b"\x81" * 5_000 + b"\x00": "/entries",
        b"\xd2" * 5_000: "/entries",
        b"\x9f" * 1_000: "/entries",
        b"\x82\x40\x5a\xff\xff\xff\xff": "/batches",
        b"\xbb" + b"\xff" * 8: "/entries",
    }
    for body, path in cases.items():
        media_type = "application/cose" if path == "/entries" else BATCH
        assert 400 <= server.send(path, body, media_type).status < 500
    nested = b'{"token":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    assert 400 <= server.send("/enrolments", nested, "application/json").status < 500
    assert server.send("/entries", bytes(300_000), "application/cose").status == 413
    assert server.healthy()


def _open(server: Server) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    made.settimeout(30)
    return made


def _ends(connection: socket.socket) -> tuple[float, bytes]:
    begun, data = time.monotonic(), b""
    with contextlib.suppress(OSError):
        while chunk := connection.recv(4096):
            data += chunk
    connection.close()
    return time.monotonic() - begun, data


def test_slow_heads_hold_no_places(server: Server) -> None:
    """Slowloris: as many half heads as there are connections, and yet others are served, soon."""
    held = [_open(server) for _ in range(8)]
    for each in held:
        each.sendall(b"GET /log HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    begun = time.monotonic()
    while time.monotonic() - begun < 20:
        for each in held:
            with contextlib.suppress(OSError):
                each.sendall(b"a")
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            if server.pool.request("GET", "/healthz", timeout=5).status == 200:
                break
        time.sleep(0.5)
    waited_s = time.monotonic() - begun
    assert waited_s < 15, waited_s
    ends = [_ends(each)[0] for each in held]
    assert max(ends) < 15
    assert server.healthy()


def test_slow_bodies_are_ended(server: Server) -> None:
    connection = _open(server)
    connection.sendall(
        b"POST /entries HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + server.token.encode()
        + b"\r\nContent-Type: application/cose\r\nAccept: application/json\r\nContent-Length: 1000\r\n\r\nx"
    )
    seconds, data = _ends(connection)
    assert b" 408 " in data.partition(b"\r\n")[0]
    assert b"body-timeout" in data
    assert seconds < 12
    assert server.healthy()


@pytest.mark.parametrize(
    "head",
    [
        b"POST /entries HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /log",
        b"POST /entries HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"GET /log HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ],
)
def test_smuggled_and_broken_heads(server: Server, head: bytes) -> None:
    connection = _open(server)
    with contextlib.suppress(OSError):
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
    _, data = _ends(connection)
    assert not data.startswith(b"HTTP/1.1 5")
    assert b" 200 " not in data.partition(b"\r\n")[0]
    assert server.healthy()
