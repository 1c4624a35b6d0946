"""Owns the passing on of requests to one upstream server, as an ASGI app (RFC 9110 section 7.6, RFC 9112).

Only the upstream that was configured is ever spoken to: its origin is fixed, redirects are passed to the
client, names in a request's target or headers choose nothing, and proxies of the environment are not used.
Headers pass as they are, but for those of a single hop and ``host``. Bodies stream in both directions with
back-pressure. When the client goes away the request to the upstream is broken off, so that it stops
generating. A failed request is never repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from ledger.core.errors import InvalidError

__all__ = ["HEALTH_PATH", "Forwarder", "Limits", "checked_upstream"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

_logger = logging.getLogger("tallystick.proxy")

HEALTH_PATH = "/.tallystick/healthz"
"""Answered by the proxy itself. No upstream has such a path."""
_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}
_NOT_UPSTREAM = _HOP_BY_HOP | {b"host", b"expect"}
_NO_BODY = {"GET", "HEAD", "OPTIONS", "TRACE"}
_POLICY_VIOLATION = 1008


@dataclass(frozen=True)
class Limits:
    """What bounds a request.

    Attributes:
        connect_s: time to connect to the upstream.
        silence_s: time between two pieces of an answer; the first may wait for a queue and a long prompt.
        body_bytes: size of a request's body.
    """

    connect_s: float = 10.0
    silence_s: float = 600.0
    body_bytes: int = 256 << 20


def checked_upstream(url: str) -> str:
    """Return the upstream's URL without a slash at its end.

    Raises:
        InvalidError: it is not an HTTP URL of a server, or holds a password.
    """
    problem = ""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        problem = "is no URL"
    else:
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            problem = "is not an http or https URL of a server"
        elif parts.username is not None or parts.password is not None:
            problem = "holds a user name or password: the client's Authorization header is passed on"
        elif parts.query or parts.fragment:
            problem = "has a query or fragment"
    if problem:
        where = url if "@" not in url else "the upstream's URL"
        raise InvalidError(problem, where=where, remedy="pass http://HOST:PORT", code="bad-setting")
    return url.rstrip("/")


class Forwarder:
    """Passes requests on to one server. Make it within the event loop that serves, or let the lifespan do so.

    Args:
        upstream: URL of the server, with a path if all of its paths begin so.
        limits: what bounds a request.
        ca_file: PEM file of the authorities that an https upstream's certificate must come from; the
            system's if absent. Certificates are always verified.
        health: tells what the health path answers.
    """

    def __init__(
        self,
        upstream: str,
        *,
        limits: Limits | None = None,
        ca_file: str | None = None,
        health: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._base = checked_upstream(upstream)
        self._limits = limits or Limits()
        self._health = health or (lambda: {"status": "ok"})
        self._tls = ssl.create_default_context(cafile=ca_file) if self._base.startswith("https:") else None
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "not passed on"})
        elif scope["path"] == HEALTH_PATH:
            await _answer(send, 200, self._health())
        else:
            await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                self._open()
                await send({"type": "lifespan.startup.complete"})
            elif kind == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = self._limits
            # Without TLS, a connection for each request: it costs a tenth of a millisecond, and no request
            # meets a connection that the server is closing: it must not be repeated (RFC 9110, 9.2.2).
            connector = aiohttp.TCPConnector(
                limit=0, force_close=self._tls is None, ssl=True if self._tls is None else self._tls
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=limits.connect_s, sock_read=limits.silence_s
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                read_bufsize=1 << 16,
            )
        return self._session

    async def close(self) -> None:
        """Close the connections to the upstream."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- one request ---------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = bytes(scope.get("raw_path") or scope["path"].encode())
        if not path.startswith(b"/"):
            await _fail(send, 400, "the request's target is no path")
            return
        try:
            headers = _decoded(_without_hop(scope["headers"], _NOT_UPSTREAM))
        except UnicodeDecodeError:
            await _fail(send, 400, "a header's value is not UTF-8")
            return
        body = _Body(receive, self._limits.body_bytes)
        if body.is_too_long(scope["headers"]):
            await _fail(send, 413, f"the body has more than {self._limits.body_bytes} bytes")
            return
        await body.begin()
        if body.gone:
            return
        if body.too_long:
            await _fail(send, 413, f"the body has more than {self._limits.body_bytes} bytes")
            return
        sending = asyncio.ensure_future(self._exchange(scope, path, headers, body, send))
        watching = asyncio.ensure_future(body.until_client_is_gone())
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            if not sending.done():
                sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _exchange(
        self, scope: Scope, path: bytes, headers: list[tuple[str, str]], body: _Body, send: Send
    ) -> None:
        query = scope.get("query_string") or b""
        target = self._base + path.decode("latin-1") + (f"?{query.decode('latin-1')}" if query else "")
        started = False
        try:
            async with self._open().request(
                scope["method"],
                URL(target, encoded=True),
                headers=headers,
                data=body.content(scope["method"]),
                allow_redirects=False,
            ) as response:
                started = True
                shown = _without_hop(response.raw_headers, _HOP_BY_HOP)
                await send({"type": "http.response.start", "status": response.status, "headers": shown})
                async for data in response.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            if body.too_long and not started:
                await _fail(send, 413, f"the body has more than {self._limits.body_bytes} bytes")
                return
            late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
            _logger.warning("%s %s: the upstream %s", scope["method"], scope["path"], _reason(error, late))
            if started:
                raise  # the server closes the connection, so that the client sees that the answer is cut
            await _fail(send, 504 if late else 502, f"the upstream server {_reason(error, late)}")


class _Body:
    """A request's body on its way to the upstream, and the client's end of the connection after that."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.too_long = self.gone = False
        self._receive = receive
        self._limit = limit
        self._first = b""
        self._more = False
        self._sent = asyncio.Event()

    def is_too_long(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        lengths = [value for name, value in headers if name.lower() == b"content-length"]
        return any(not each.isdigit() or int(each) > self._limit for each in lengths)

    async def begin(self) -> None:
        message = await self._receive()
        self.gone = message["type"] != "http.request"
        self._first = message.get("body", b"")
        self.too_long = len(self._first) > self._limit
        self._more = bool(message.get("more_body"))
        if not self._more:
            self._sent.set()

    def content(self, method: str) -> bytes | AsyncIterator[bytes] | None:
        if self._more:
            return self._pieces()
        return self._first or (None if method in _NO_BODY else b"")

    async def _pieces(self) -> AsyncIterator[bytes]:
        size = len(self._first)
        yield self._first
        while self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise aiohttp.ClientPayloadError("the client went away")
            self._more = bool(message.get("more_body"))
            size += len(message.get("body", b""))
            if size > self._limit:
                self.too_long = True
                raise aiohttp.ClientPayloadError("the body is too long")
            yield message.get("body", b"")
        self._sent.set()

    async def until_client_is_gone(self) -> None:
        await self._sent.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _without_hop(headers: Iterable[tuple[bytes, bytes]], dropped: set[bytes]) -> Headers:
    """The headers that are meant for the other end."""
    rows = [(name.lower(), value) for name, value in headers]
    named = {
        each.strip().lower() for name, value in rows if name == b"connection" for each in value.split(b",")
    }
    return [(name, value) for name, value in rows if name not in dropped and name not in named]


def _decoded(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode()) for name, value in headers]


def _reason(error: Exception, late: bool) -> str:
    if late:
        return "did not answer in time"
    unreached = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
    return "cannot be reached" if unreached else "broke off"


async def _fail(send: Send, status: int, message: str) -> None:
    """Refuse, in the form that OpenAI's clients expect."""
    await _answer(send, status, {"error": {"message": message, "type": "proxy_error", "code": status}})


async def _answer(send: Send, status: int, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": False})
