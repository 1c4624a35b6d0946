from __future__ import annotations

import email.utils
import gzip
import json
import socket
import threading

import pytest

from ledger.core.errors import InvalidError
from ledger.emit.client import Accepted, Client, Refused, Reply, Retry, judge
from ledger.emit.sender import backoff_s


def reply(status: int, code: str = "", **headers: str) -> Reply:
    body = (
        json.dumps({"type": f"/problems/{code}", "detail": "why", "remedy": "do"}).encode() if code else b""
    )
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@pytest.mark.parametrize("status", [200, 201])
def test_a_receipt_is_accepted(status: int) -> None:
    assert judge(Reply(status, {}, b"receipt"), now_s=0) == Accepted(b"receipt")


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert isinstance(judge(reply(status), now_s=0), Retry)


@pytest.mark.parametrize("status", [204, 301, 302, 307, 308, 400, 401, 403, 404, 413, 415, 422])
def test_what_cannot_pass_blocks(status: int) -> None:
    assert isinstance(judge(reply(status), now_s=0), Refused)


@pytest.mark.parametrize("code", ["seq-reused", "wrong-prev", "seq-gap", "duplicate-record"])
def test_a_conflict_in_the_chain_blocks(code: str) -> None:
    verdict = judge(reply(409, code), now_s=0)
    assert isinstance(verdict, Refused)
    assert verdict.reason == f"the ledger answered 409: {code}: why (do)"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("999999", 600.0),
        (email.utils.formatdate(1_000_030, usegmt=True), 30.0),
        (email.utils.formatdate(900_000, usegmt=True), 0.0),
        ("soon", None),
        ("-3", None),
        ("1e9", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_retry_after_is_honoured_within_bounds(header: str, expected: float | None) -> None:
    verdict = judge(reply(503, retry_after=header), now_s=1_000_000)
    assert isinstance(verdict, Retry)
    assert verdict.after_s == expected


@pytest.mark.parametrize("body", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"type": 7}', b"null"])
def test_any_body_of_a_refusal_is_borne(body: bytes) -> None:
    assert isinstance(judge(Reply(400, {}, body), now_s=0), Refused)


@pytest.mark.parametrize(
    "url",
    ["", "ledger", "ftp://x", "http://", "https://u:p@ledger.example", "http://x/?key=1", "http://x/#y"],
)
def test_unusable_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidError):
        Client(url, None)


def test_an_api_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(InvalidError):
        Client("http://127.0.0.1", "a\r\nX: y")


def test_pauses_double_within_bounds_and_differ() -> None:
    assert [backoff_s(n, lambda: 1.0) for n in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_s(10_000, lambda: 0.0) == 30.0
    assert len({backoff_s(3) for _ in range(10)}) > 1


def test_compressed_answer_is_not_unpacked() -> None:
    packed = gzip.compress(bytes(1 << 26))
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        client = Client(f"http://127.0.0.1:{server.getsockname()[1]}", None)
        assert client.get("/x").body == packed
        client.close()
        thread.join()
