"""Calls end at their deadlines, whatever the server does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ledger import http_call
from ledger.audit.http import UrlSource
from ledger.core.errors import UnavailableError
from ledger.emit.client import Client

TOTAL_S = 0.3
LATE_S = 15.0
"""Far beyond the deadline, far below the other timeouts."""

Behaviour = Callable[[socket.socket], None]


def drip(start: bytes, repeated: bytes) -> Behaviour:
    """Answer ``start``, then ``repeated`` for ever, each time before a read timeout comes."""

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(start)
        while True:
            connection.sendall(repeated)
            time.sleep(0.01)

    return behave


def silent(connection: socket.socket) -> None:
    time.sleep(LATE_S)


HOSTILE = {
    "continue for ever": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "status by the byte": drip(b"HTTP/1.1 200 O", b"K"),
    "header by the byte": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "chunk size by the byte": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "body by the byte": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
    "body without a length": drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "nothing read, nothing said": silent,
}


@contextmanager
def serving(behave: Behaviour) -> Iterator[int]:
    """A server of one thread that behaves so towards each connection, until its peer leaves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        open_ones: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    open_ones.append(connection)
                    with connection, contextlib.suppress(OSError):
                        behave(connection)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield port
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for each in open_ones:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


def limits(total_s: float = TOTAL_S) -> http_call.Limits:
    return http_call.Limits(30.0, 30.0, total_s, 1 << 20, 1 << 20)


@pytest.mark.parametrize("name", HOSTILE)
def test_call_ends_by_its_deadline(name: str) -> None:
    with serving(HOSTILE[name]) as port:
        url = f"http://127.0.0.1:{port}"
        begun = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            http_call.call(http_call.open_pool(url), "POST", url, limits(), headers={}, body=bytes(1 << 23))
        assert caught.value.code == "too-slow"
        assert TOTAL_S <= time.monotonic() - begun < LATE_S


def test_tls_handshake_ends_by_the_deadline() -> None:
    with serving(silent) as port:
        url = f"https://127.0.0.1:{port}"
        begun = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            http_call.call(http_call.open_pool(url), "GET", url, limits(), headers={})
        assert caught.value.code == "too-slow"
        assert time.monotonic() - begun < LATE_S


def test_addresses_that_do_not_answer_share_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(address: tuple[str, int], timeout: float, **options: object) -> socket.socket:
        time.sleep(min(timeout, 0.1))
        raise TimeoutError

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 80)) for n in range(200)]
    monkeypatch.setattr(http_call.socket, "getaddrinfo", lambda *_: found)
    monkeypatch.setattr(http_call, "create_connection", connect)
    url = "http://127.0.0.1"
    begun = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        http_call.call(http_call.open_pool(url), "GET", url, limits(), headers={})
    assert caught.value.code == "too-slow"
    assert time.monotonic() - begun < LATE_S


def test_kept_connection_is_used_again_and_still_ends() -> None:
    connections = []

    def behave(connection: socket.socket) -> None:
        connections.append(connection)
        for _ in range(2):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n")(connection)

    with serving(behave) as port:
        url = f"http://127.0.0.1:{port}"
        pool = http_call.open_pool(url)
        for _ in range(2):
            assert http_call.call(pool, "GET", url, limits(10.0), headers={}).body == b"x"
        with pytest.raises(UnavailableError):
            http_call.call(pool, "GET", url, limits(), headers={})
        assert len(connections) == 1


def test_announced_length_beyond_the_limit_is_not_read() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n"
    with serving(drip(answer, b"")) as port:
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(UnavailableError, match="longer than 1048576 bytes"):
            http_call.call(http_call.open_pool(url), "GET", url, limits(10.0), headers={})


def test_emitter_and_auditor_set_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.emit.client._TOTAL_S", TOTAL_S)
    monkeypatch.setattr("ledger.audit.http._TOTAL_S", TOTAL_S)
    with serving(HOSTILE["continue for ever"]) as port:
        url = f"http://127.0.0.1:{port}"
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match=r"within 0\.3 s"):
            Client(url, None).post("/batches", b"x", media_type="x/y")
        with pytest.raises(UnavailableError, match=r"within 0\.3 s"), UrlSource(url):
            pass
        assert time.monotonic() - begun < LATE_S
