"""Owns one outgoing HTTP call: bounded in size, and over by a deadline whatever the server does.

A timeout of a socket starts anew with each byte that comes, so a server that answers ``100 Continue`` for
ever, or one byte of a header at a time, would hold a caller for as long as it likes. One thread of this
process therefore shuts down the connections of calls whose time is up. What it cannot end is the resolver
looking up a name; that has limits of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family, create_connection

from ledger.core.errors import RefusedError, UnavailableError

__all__ = ["Answer", "Limits", "call", "open_direct_pool", "open_pool"]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """What a call may take. ``problem_bytes`` is for the body of a status other than 200 and 201."""

    connect_s: float
    read_s: float
    total_s: float
    body_bytes: int
    problem_bytes: int


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Call:
    """A call under way, on this thread until it is left. Its socket is guarded by the watchdog's lock."""

    def __init__(self, total_s: float) -> None:
        self.ends = time.monotonic() + total_s
        self.passed = False
        self._socket: socket.socket | None = None

    def __enter__(self) -> _Call:
        _here.call = self
        _watchdog.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.call = None
        with _watchdog.changed:
            _watchdog.calls.discard(self)
            self._release()

    def use(self, fileno: int) -> None:
        """Name the socket that the call now uses.

        Raises:
            TimeoutError: the time is up already.
        """
        with _watchdog.changed:
            self._release()
            if self.passed:
                raise TimeoutError("the time for the call is up")
            # A duplicate: TLS takes the socket out of its object, and a closed number may name another file.
            self._socket = socket.fromfd(fileno, socket.AF_INET, socket.SOCK_STREAM)

    def cut(self) -> None:
        """End the call, under the lock: who reads or writes now gets an error or the end of the stream."""
        self.passed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Watchdog:
    """Ends calls at their deadlines, on a thread that the first call starts. ``changed`` guards it all."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.calls: set[_Call] = set()
        self._thread: threading.Thread | None = None
        self._wakes = math.inf

    def add(self, new: _Call) -> None:
        with self.changed:
            self.calls.add(new)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="tallystick-deadlines", daemon=True)
                with contextlib.suppress(RuntimeError):  # at the interpreter's end none can be started
                    thread.start()
                    self._thread = thread
            elif new.ends < self._wakes:
                self.changed.notify()

    def _run(self) -> None:
        with self.changed:
            while True:
                now = time.monotonic()
                for each in [each for each in self.calls if each.ends <= now]:
                    self.calls.discard(each)
                    each.cut()
                self._wakes = min((each.ends for each in self.calls), default=math.inf)
                self.changed.wait(None if self._wakes == math.inf else self._wakes - now)


_here = threading.local()
_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.__init__)  # type: ignore[misc] # a child has no thread of its parent


class _Connection(HTTPConnection):
    """Tells the call of this thread which socket it uses."""

    judge: Callable[[str], None] | None = None
    """Raises for an address that may not be connected to; for those of a pool of its own (``outgoing``)."""

    def _new_conn(self) -> socket.socket:
        """Connect to the first address that answers, all of them within the time of the call."""
        current: _Call = _here.call
        per_address = self.timeout if isinstance(self.timeout, int | float) else math.inf
        try:
            found = socket.getaddrinfo(
                self._dns_host.strip("[]"), self.port, allowed_gai_family(), socket.SOCK_STREAM
            )
            error: OSError = OSError("the name has no address")
            for address in self._allowed(found):
                left_s = current.ends - time.monotonic()
                if left_s <= 0:
                    error = TimeoutError("the time for the call is up")
                    break
                try:
                    made = create_connection(
                        (str(address[4][0]), self.port),
                        min(per_address, left_s),
                        source_address=self.source_address,
                        socket_options=self.socket_options,
                    )
                except OSError as failed:
                    error = failed
                    continue
                try:
                    made.settimeout(self.timeout)
                    current.use(made.fileno())
                except OSError:
                    made.close()
                    raise
                return made
            raise error
        except (socket.gaierror, UnicodeError) as failed:
            reason = failed if isinstance(failed, socket.gaierror) else socket.gaierror(str(failed))
            raise NameResolutionError(self.host, self, reason) from failed
        except TimeoutError as failed:
            raise ConnectTimeoutError(self, f"connecting to {self.host} took too long") from failed
        except OSError as failed:
            raise NewConnectionError(self, f"no connection: {failed}") from failed

    def _allowed(self, found: list[Any]) -> list[Any]:
        """Those of the addresses that may be connected to.

        Raises:
            RefusedError: there are some, and none of them may.
        """
        if self.judge is None:
            return found
        allowed, refused = [], None
        for address in found:
            try:
                self.judge(str(address[4][0]))
                allowed.append(address)
            except RefusedError as error:
                refused = error
        if refused is not None and not allowed:
            raise refused
        return allowed

    def request(self, *args: Any, **options: Any) -> None:
        """Send a request, on a connection that an earlier call may have left open."""
        if self.sock is not None:
            _here.call.use(self.sock.fileno())
        super().request(*args, **options)


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def open_pool(url: str, connections: int = 1) -> urllib3.PoolManager:
    """Connections to the server of ``url``, through the proxy that the environment names, if any.

    Args:
        url: the server's.
        connections: how many are kept, and how many calls may run at once.
    """
    parts = urlsplit(url)
    proxy = None
    if parts.hostname not in _LOOPBACK and not urllib.request.proxy_bypass(parts.hostname or ""):
        proxy = urllib.request.getproxies().get(parts.scheme)
    options: dict[str, Any] = {"num_pools": 1, "maxsize": connections, "block": True}
    pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool


def open_direct_pool(judge: Callable[[str], None], connections: int = 1) -> urllib3.PoolManager:
    """Connections to one server, through no proxy, to addresses that ``judge`` lets pass.

    Args:
        judge: raises RefusedError for an address, in digits, that may not be connected to.
        connections: how many are kept, and how many calls may run at once.
    """
    plain = type("_Judged", (_Connection,), {"judge": staticmethod(judge)})
    tls = type("_JudgedTls", (_TlsConnection,), {"judge": staticmethod(judge)})
    pool = urllib3.PoolManager(num_pools=1, maxsize=connections, block=True)
    pool.pool_classes_by_scheme = {
        "http": type("_JudgedPool", (_Pool,), {"ConnectionCls": plain}),
        "https": type("_JudgedTlsPool", (_TlsPool,), {"ConnectionCls": tls}),
    }
    return pool


def call(
    pool: urllib3.PoolManager,
    method: str,
    url: str,
    limits: Limits,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> Answer:
    """Send a request and read its whole answer. Redirects are not followed, and nothing is unpacked.

    Raises:
        ConnectionError: no answer, or a broken one.
        UnavailableError: ``too-large`` or ``too-slow``.
    """
    with _Call(limits.total_s) as current:
        try:
            response = pool.request(
                method,
                url,
                body=body,
                headers={"Accept-Encoding": "identity", **headers},
                preload_content=False,
                decode_content=False,  # compressed, a small answer could unpack to any size
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=limits.connect_s, read=limits.read_s),
                pool_timeout=limits.total_s,
            )
            try:
                allowed = limits.body_bytes if response.status in (200, 201) else limits.problem_bytes
                received = bytearray()
                length = response.headers.get("Content-Length", "")
                while len(received) <= allowed and not (length.isdecimal() and int(length[:19]) > allowed):
                    chunk = response.read1(_CHUNK_BYTES)
                    if not chunk or current.ends < time.monotonic():
                        break
                    received += chunk
                else:
                    response.close()
                    raise UnavailableError(
                        f"the answer is longer than {allowed} bytes", where=url, code="too-large"
                    )
                if current.passed or current.ends < time.monotonic():  # cut off, it can look whole
                    response.close()
                    raise _too_slow(url, limits)
                fields = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, fields, bytes(received))
            finally:
                response.release_conn()
        except (HTTPError, OSError) as error:
            if current.passed or current.ends < time.monotonic():
                raise _too_slow(url, limits) from None
            raise ConnectionError(_first_cause(error)) from None


def _too_slow(url: str, limits: Limits) -> UnavailableError:
    return UnavailableError(
        f"the answer did not come whole within {limits.total_s:g} s", where=url, code="too-slow"
    )


def _first_cause(error: BaseException) -> str:
    cause = error.__cause__ or getattr(error, "reason", None) or error
    return str(cause)[:200] or type(error).__name__
