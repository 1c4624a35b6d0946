"""The service as its own process: start, sockets, hostile connections, stop, refusal to start."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ledger.core.receipts import decode_receipt, verify_receipt
from ledger.keyfiles import save_private_key
from ledger.service import create_api_key
from ledger.store import queries
from tests.build import Issuer, Ledger, SealedBatch, make_records
from tests.service.conftest import BATCH

PROGRAM = """
import pathlib, sys
from ledger.core.errors import TallystickError
from ledger.service import Settings, edge, protocol, serve
edge.LINGER_S, protocol.HEAD_TIMEOUT_S = 1.0, 2.0
try:
    serve(pathlib.Path(sys.argv[1]), port=int(sys.argv[2]), log_level="warning",
          settings=Settings(max_batch_wire_bytes=1_000_000, body_timeout_s=5, limit_concurrency=50))
except TallystickError as error:
    print(error.code, file=sys.stderr)
    sys.exit(3)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    directory: Path
    token: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.directory), str(self.port)], stderr=subprocess.PIPE
        )
        for _ in range(1_200):
            with contextlib.suppress(OSError):
                if self.request("/healthz")[0] == 200:
                    return
            if self.process.poll() is not None:
                return
            time.sleep(0.05)
        raise AssertionError("the server did not answer")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors.decode()

    def request(
        self, path: str, body: bytes | None = None, media_type: str = BATCH, timeout: float = 20
    ) -> tuple[int, Any, bytes]:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = media_type
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def raw(self, data: bytes, wait_s: float = 40) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            connection.sendall(data)
            answer = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while chunk := connection.recv(65_536):
                    answer += chunk
            return answer


@pytest.fixture
def folder(ledger: Ledger, tmp_path: Path) -> Server:
    save_private_key(tmp_path / "keys" / "log.pem", ledger.log_key)
    return Server(tmp_path, create_api_key(ledger.store, "test", ["admin"]))


@pytest.fixture
def server(folder: Server) -> Iterator[Server]:
    folder.start()
    yield folder
    folder.stop(signal.SIGKILL)


def test_log_read_and_stop(server: Server, ledger: Ledger) -> None:
    batch = ledger.issuer.batch(make_records(256, ledger.digest))
    status, headers, receipt = server.request("/batches", batch.body)
    assert (status, headers["Location"]) == (201, "/entries/3")
    assert "server" not in headers
    assert "uvicorn" not in str(headers).lower()
    verify_receipt(decode_receipt(receipt), batch.statement.leaf_hash, ledger.log_key.public)
    assert server.request("/entries/3/records")[2] == batch.lines
    assert (server.directory / "published.checkpoint").read_bytes() == server.request("/checkpoint")[2]
    assert server.stop() == (0, "")
    server.start()
    assert server.request("/batches", batch.body)[::2] == (200, receipt)
    assert server.stop(signal.SIGINT)[0] == 0


def test_stop_loses_nothing_that_was_acknowledged(server: Server, ledger: Ledger) -> None:
    writers = [Issuer(name=f"gpu-{n}.example.com") for n in range(4)]
    for writer in writers:
        body = json.dumps({"issuer": writer.name, "public_key_pem": writer.key.public.to_pem().decode()})
        assert server.request("/issuers", body.encode(), "application/json")[0] == 201

    acknowledged: list[SealedBatch] = []

    def write(writer: Issuer) -> None:
        for n in range(10_000):
            batch = writer.batch(make_records(8, ledger.digest, first=8 * n, salt=writer.name))
            try:
                status = server.request("/batches", batch.body)[0]
            except OSError:
                break
            if status == 503:
                break
            assert status == 201
            acknowledged.append(batch)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write, writer) for writer in writers]
        while len(acknowledged) <= 8 and not any(future.done() for future in running):
            time.sleep(0.01)
        code, _ = server.stop()
        for future in running:
            future.result(30)
    assert code == 0
    assert len(acknowledged) > 8
    with ledger.store.read() as connection:
        for batch in acknowledged:
            index = queries.resolve_entry(connection, batch.statement.leaf_hash.hex())
            assert queries.record_lines(connection, index) == batch.lines.split(b"\n")[:-1]


def head(server: Server, *lines: str) -> bytes:
    given = (
        "POST /batches HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {server.token}",
        f"Content-Type: {BATCH}",
    )
    return "".join(f"{line}\r\n" for line in (*given, *lines, "")).encode()


def test_body_is_refused_by_its_stated_length(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(server, "Content-Length: 99999999999"))  # and not one byte of it
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(300):  # whoever keeps sending all the same is cut off
                connection.sendall(bytes(1000))
                time.sleep(0.1)
            pytest.fail("it still listens")


def test_body_that_never_comes(server: Server) -> None:
    assert server.raw(head(server, "Content-Length: 1000") + b"abc").startswith(b"HTTP/1.1 408")


def test_chunked_body_beyond_the_limit(server: Server) -> None:
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    answer = server.raw(head(server, "Transfer-Encoding: chunked") + chunk * 50 + b"0\r\n\r\n", wait_s=2)
    assert answer.startswith(b"HTTP/1.1 413")


def test_refused_caller_sees_why_before_it_is_done_sending(server: Server) -> None:
    server.token = "wrong"
    assert server.request("/batches", bytes(30_000_000))[0] == 401


def test_head_over_a_socket(server: Server) -> None:
    answer = server.raw(b"HEAD /log HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: " in answer


def test_what_is_not_http(server: Server) -> None:
    assert server.raw(b"\x16\x03\x01\x02\x00\x01\x00" * 10).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 3_000_000,
        b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * 500_000,
        b"GET /" + b"a" * 3_000_000,
    ],
)
def test_head_without_end(server: Server, data: bytes) -> None:
    begun = time.monotonic()
    try:
        answer = server.raw(data)
    except (BrokenPipeError, ConnectionResetError):
        answer = b""  # cut off while it was still sending
    assert not answer or answer.startswith(b"HTTP/1.1 431")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("piece", [b"1;" + b"x" * 3_000_000, b"0\r\n" + b"X: " + b"y" * 3_000_000])
def test_chunk_head_or_trailer_without_end(server: Server, piece: bytes) -> None:
    begun = time.monotonic()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        server.raw(head(server, "Transfer-Encoding: chunked") + piece)
    assert time.monotonic() - begun < 30


def test_idle_connections_are_closed(server: Server) -> None:
    begun = time.monotonic()
    assert server.raw(b"", wait_s=40) == b""
    assert server.raw(b"GET /healthz HTTP/1.1\r\nHost:", wait_s=40) == b""
    assert time.monotonic() - begun < 30


def test_too_many_connections_get_a_problem(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        status, headers, body = server.request("/healthz")
        assert (status, json.loads(body)["type"]) == (503, "/problems/overloaded")
        assert headers["Retry-After"]
    time.sleep(0.2)
    assert server.request("/healthz")[0] == 200


def test_pipelined_requests(server: Server) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /log HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert server.raw(one * 5 + last).count(b"HTTP/1.1 200") == 6


def test_many_idle_connections_do_not_stop_the_service(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert server.request("/healthz")[0] == 200


def test_it_refuses_to_start_on_a_contradiction(folder: Server, ledger: Ledger) -> None:
    with ledger.store.write() as connection:
        connection.execute(text("UPDATE tile SET hashes = zeroblob(96)"))
    folder.start()
    code, errors = folder.stop()
    assert code == 3
    assert "inconsistent-log" in errors
    assert "Traceback" not in errors


@pytest.mark.sqlite
def test_it_refuses_to_start_on_an_older_copy(folder: Server, ledger: Ledger) -> None:
    folder.start()
    copy = sorted(folder.directory.glob("ledger.db*"))
    folder.stop()
    old = {path: path.read_bytes() for path in copy if path.exists()}
    folder.start()
    folder.request("/batches", ledger.issuer.batch(make_records(3, ledger.digest)).body)
    folder.stop()
    ledger.store.close()
    for path in folder.directory.glob("ledger.db*"):
        path.unlink()
    for path, data in old.items():
        path.write_bytes(data)
    folder.start()
    code, errors = folder.stop()
    assert code == 3
    assert "log-rolled-back" in errors


def test_it_refuses_to_start_without_a_log(folder: Server, tmp_path: Path, ledger: Ledger) -> None:
    ledger.store.close()
    for path in folder.directory.glob("*ledger.db*"):  # on PostgreSQL: what names the database
        path.unlink()
    folder.start()
    code, errors = folder.stop()
    assert code == 3
    assert errors.strip().endswith("no-log")


def test_it_says_so_when_the_port_is_taken(folder: Server) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        folder.port = other.getsockname()[1]
        folder.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder.directory), str(folder.port)], stderr=subprocess.PIPE
        )
        _, errors = folder.process.communicate(timeout=120)
        assert folder.process.returncode == 3
        assert errors.decode().strip().endswith("not-started")
