"""The outermost layer: HEAD, security headers, unread bodies, metrics, and the last resort for errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.service.auth import caller_of
from ledger.service.logs import FIELDS
from ledger.service.problems import unexpected_response
from ledger.service.runtime import Service

__all__ = ["LINGER_S", "Edge"]

EVEN_S = 0.025
"""A tenant who asks for what it may not see waits for a multiple of this, as for what is not there: the time
that looking takes would tell the two apart."""
_SAYS_NO = frozenset({403, 404, 409, 410})
LINGER_S = 5.0
"""How long the rest of a body is thrown away after an answer that did not wait for it."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_log = logging.getLogger(__name__)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Edge:
    """ASGI middleware around the whole app.

    Args:
        app: what answers.
        service: whose metrics to move.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass lifespan events on."""
        if scope["type"] != "http":
            await self._app(scope, receive, _without_traceback(scope, send))
            return
        begun = time.perf_counter()
        method = scope["method"]
        if method == "HEAD":  # RFC 9110 section 9.3.2: as GET, without the content
            scope = {**scope, "method": "GET"}
        exchange = _Exchange(scope, receive, send, without_content=method == "HEAD", unread=_has_body(scope))
        tracing = self._service.tracing
        span = None if tracing is None else tracing.begin(Headers(scope=scope))
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.status:
                raise  # the head is sent: all that is left is to cut the connection
            answer = unexpected_response(Request(scope, receive), error)
            await answer(scope, exchange.receive, exchange.send)
        finally:
            seconds = time.perf_counter() - begun
            problem = scope.get("tallystick.problem", "")
            known = method if method in _METHODS else "other"
            route = getattr(scope.get("route"), "path", None) or "none"
            self._service.metrics.observe_request(known, route, exchange.status, seconds, problem)
            if tracing is not None:
                tracing.end(span, known, route, exchange.status, problem)
            if self._service.settings.log_requests:
                _log_request(method, scope["path"], route, exchange.status, problem, seconds)


def _without_traceback(scope: Scope, send: Send) -> Send:
    """Say in a line why the service does not start, where it refuses to: sixty lines would hide it."""

    async def tell(message: Message) -> None:
        failure = scope["app"].state.failure if message["type"] == "lifespan.startup.failed" else None
        await send(message if failure is None else {**message, "message": str(failure)})

    return tell


def _log_request(method: str, path: str, route: str, status: int, problem: str, seconds: float) -> None:
    """Without the query: it may hold what should not be in a log."""
    named = {
        "http.request.method": method,
        "http.route": route,
        "url.path": path,
        "http.response.status_code": status,
        "duration_ms": round(seconds * 1000, 1),
    }
    if problem:
        named["error.type"] = problem
    text = "%s %r %d %s%.1f ms"
    _log.info(text, method, path, status, problem and problem + " ", seconds * 1000, extra={FIELDS: named})


class _Exchange:
    """One request and its answer. ``unread``: the request has a body of which not all came yet."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, without_content: bool, unread: bool
    ) -> None:
        self._scope = scope
        self._begun = time.perf_counter()
        self._receive = receive
        self._send = send
        self._without_content = without_content
        self._unread = unread
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status in _SAYS_NO and (caller := caller_of(self._scope)) and caller.tenant is not None:
                passed_s = time.perf_counter() - self._begun
                await asyncio.sleep(EVEN_S - passed_s % EVEN_S)
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        elif message["type"] == "http.response.body":
            if self._without_content:
                message = {**message, "body": b""}
            if self._unread and not message.get("more_body", False):
                # Ending here would let the server close under a caller that is still sending, who would then
                # see a reset connection instead of the reason. The answer goes out; its end waits a little.
                await self._send({**message, "more_body": True})
                await self._drain()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while self._unread:
                    await self.receive()


def _has_body(scope: MutableMapping[str, Any]) -> bool:
    """Whether a body may still be coming. Who expects 100 (Continue) sends none before it."""
    found = False
    for name, value in scope["headers"]:
        if name == b"expect":
            return False
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            found = True
    return found
