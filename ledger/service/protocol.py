"""HTTP/1.1 connections, bounded: what uvicorn leaves open, this closes.

A head must come whole within a time and a size, a connection may not dwell in a body that nobody reads, and
past the limit of connections the answer is a problem like any other. Bodies are bounded in ``bodies``.
"""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle
from typing import Any, cast

from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledger.service.problem_types import PROBLEM_TYPES
from ledger.service.problems import problem_response

__all__ = ["BoundedProtocol"]

MAX_HEAD_BYTES = 32 * 1024
"""Bytes without progress: a request's head, a chunk's extensions, or trailers. Ours have some hundred."""
HEAD_TIMEOUT_S = 10.0
"""How long a head may take: an idle connection must not hold a place that others need."""


async def _overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    answer = problem_response(
        Request(scope, receive), PROBLEM_TYPES["overloaded"], headers={"Connection": "close"}
    )
    await answer(scope, receive, send)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. All state belongs to it and is touched on the event loop alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most_connections = self.limit_concurrency
        self.limit_concurrency = None  # checked here, to answer with a problem
        self._whole_app = self.app
        self._stalled_bytes = 0  # since the parser last got anywhere
        self._progress = False
        self._closing: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin: the first head is expected."""
        super().connection_made(cast("Any", transport))
        self._close_after(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._keep_open()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and give up where it leads nowhere."""
        self._progress = False
        super().data_received(data)
        self._stalled_bytes = 0 if self._progress else self._stalled_bytes + len(data)
        if self._stalled_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
                    b"content-length: 0\r\nconnection: close\r\n\r\n"
                )
            self.transport.close()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._closing is None:
            self._close_after(HEAD_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        """The head is whole: choose who answers."""
        self._progress = True
        self._keep_open()
        most = self._most_connections
        full = most is not None and (len(self.connections) > most or len(self.tasks) >= most)
        self.app = cast("Any", _overloaded) if full else self._whole_app
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._progress = True
        self._keep_open()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is sent. Who still sends a body was given time enough (``edge``)."""
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
            self.transport.close()

    def _close_after(self, seconds: float) -> None:
        self._keep_open()
        self._closing = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _keep_open(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
