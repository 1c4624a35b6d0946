"""The outermost layer: HEAD, security headers, metrics, and the last resort for errors."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.service.problems import unexpected_response
from ledger.service.runtime import Service

__all__ = ["Edge"]

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
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
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        method = scope["method"]
        if method == "HEAD":  # RFC 9110 section 9.3.2: as GET, without the content
            scope["method"] = "GET"
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message)
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            if status:
                raise  # the head is sent: all that is left is to cut the connection
            await unexpected_response(Request(scope, receive), error)(scope, receive, send_on)
        finally:
            self._service.metrics.observe_request(
                method if method in _METHODS else "other",
                _route_of(scope),
                status,
                time.perf_counter() - begun,
                scope.get("tallystick.problem", ""),
            )


def _route_of(scope: MutableMapping[str, Any]) -> str:
    return getattr(scope.get("route"), "path", None) or "none"


def _add_headers(message: Message) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
