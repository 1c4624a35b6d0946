"""Reads a log from a service's URL for an audit: checkpoint, tiles and entry bundles, receipts and records.

The server is not trusted: every answer has a size limit, redirections are not followed, and answers come
uncompressed. Some requests run at once, so that an audit is not as slow as the network is far.
"""

from __future__ import annotations

import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from ledger.audit.sources import Leaf, Row
from ledger.core.checkpoint import parse_checkpoint_text
from ledger.core.errors import InvalidError, TallystickError, UnavailableError
from ledger.core.merkle import HASH_SIZE
from ledger.core.note import MAX_NOTE_BYTES, parse_note
from ledger.core.records import MAX_RECORD_BYTES
from ledger.core.statements import Batch, decode_statement
from ledger.core.tiles import MAX_ENTRY, TILE_WIDTH, decode_bundle, entries_path, tile_path

__all__ = ["UrlSource"]

_MAX_RECEIPT_BYTES = 16_384
_MAX_PROBLEM_BYTES = 65_536
_CONNECT_S, _READ_S, _TOTAL_S = 10.0, 60.0, 300.0
_RETRIES = 4
_BACKOFF_S = 0.5
_MAX_WAIT_S = 30.0
_RETRIED = frozenset({429, 502, 503, 504})
_AHEAD = 4
"""Requests in flight per worker: enough to keep it busy, little enough to hold in memory."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Reply:
    status: int
    body: bytes


class UrlSource:
    """A service, read over HTTP. Its tables are its own affair: only what it publishes is audited.

    Args:
        url: the service's base URL.
        api_key: of scope ``read``; without one, records are not audited.
        workers: how many requests may run at once.

    Raises:
        InvalidError: the URL or the API key cannot be used.
    """

    has_tables = False

    def __init__(self, url: str, *, api_key: str | None = None, workers: int = 8) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidError(
                "is not the URL of a service", remedy="use http:// or https://", code="bad-target"
            )
        if parts.username is not None or parts.password is not None:
            raise InvalidError(
                "the URL has a password in it",
                where=parts.hostname,
                remedy="pass an API key instead",
                code="bad-target",
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise InvalidError("the API key has characters that no key has", code="bad-api-key")
        self.name = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self._host = parts.hostname
        self._scheme = parts.scheme
        self._api_key = api_key
        self._workers = max(1, workers)
        self._note: bytes | None = None
        self._pool: Any = None
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> UrlSource:
        import urllib3

        proxy = None
        if self._host not in _LOOPBACK and not urllib.request.proxy_bypass(self._host):
            proxy = urllib.request.getproxies().get(self._scheme)
        options: dict[str, Any] = {"num_pools": 1, "maxsize": self._workers, "block": True}
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="tallystick-audit")
        try:
            self._note = self._get("/checkpoint", MAX_NOTE_BYTES)
        except TallystickError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        if self._pool is not None:
            self._pool.clear()

    def newest_notes(self) -> Iterator[bytes]:
        """The service's checkpoint, as it was when the audit began."""
        if self._note is not None:
            yield self._note

    def checkpoints(self) -> Iterator[tuple[Any, Any]]:
        """The same: a service shows one checkpoint."""
        if self._note is not None:
            try:
                size = parse_checkpoint_text(parse_note(self._note).text).size
            except TallystickError:
                return  # reported already: it is not the log's
            yield size, self._note

    def leaves(self, size: int) -> Iterator[Leaf]:
        """The entries below ``size``, batches with their records, all with their receipts."""
        bundles = self._ahead(
            range(0, size, TILE_WIDTH), lambda first: self._bundle(first, min(TILE_WIDTH, size - first))
        )
        return self._ahead((pair for bundle in bundles for pair in bundle), self._leaf)

    def _bundle(self, first: int, width: int) -> list[tuple[int, bytes]]:
        path = entries_path(first // TILE_WIDTH, width)
        try:
            entries = decode_bundle(self._get(f"/{path}", width * (MAX_ENTRY + 2)), width)
        except InvalidError as error:
            raise UnavailableError(error.what, where=path, code="unreadable") from None
        return list(enumerate(entries, start=first))

    def _leaf(self, pair: tuple[int, bytes]) -> Leaf:
        """Fetch what belongs to an entry. What cannot be had is left out, with the reason."""
        index, entry = pair
        missing: list[tuple[str, str]] = []
        receipt = self._try("receipts", missing, f"/entries/{index}", _MAX_RECEIPT_BYTES)
        lines = None
        try:
            payload = decode_statement(entry).payload
        except TallystickError:
            payload = None  # the audit finds it
        if isinstance(payload, Batch):
            if self._api_key is None:
                missing.append(("records", "they need an API key of scope read, and none was given"))
            else:
                limit = payload.count * (MAX_RECORD_BYTES + 1)
                lines = self._try("records", missing, f"/entries/{index}/records", limit)
        return Leaf(index, entry, lines=lines, receipt=receipt, missing=tuple(missing))

    def _try(self, what: str, missing: list[tuple[str, str]], path: str, limit: int) -> bytes | None:
        try:
            return self._get(path, limit)
        except UnavailableError as error:
            missing.append((what, error.what))
            return None

    def tile(self, level: int, index: int, width: int) -> bytes | None:
        """A tile of exactly this width; None if the service has none."""
        reply = self._fetch(f"/{tile_path(level, index, width)}", width * HASH_SIZE)
        if reply.status == 404:
            return None
        return self._body(reply)

    def tile_keys(self) -> Iterator[tuple[Any, Any]]:
        """Nothing: a service does not list its tiles."""
        return iter(())

    def rows(self, table: str) -> Iterator[Row]:
        """Not offered by a service."""
        raise UnavailableError(f"a service does not show its table {table}", where=self.name)

    def open_index(self) -> Callable[[int], list[Row]]:
        """Not offered by a service."""
        raise UnavailableError("a service does not show its record_index", where=self.name)

    def unexpected(self) -> Iterator[str]:
        """Nothing."""
        return iter(())

    # --- requests ---

    def _ahead(self, items: Any, work: Callable[[Any], _T]) -> Iterator[_T]:
        """Yield ``work(item)`` in order, with some requests under way ahead of the reader."""
        assert self._executor is not None, "enter the source first"  # noqa: S101
        waiting: deque[Future[_T]] = deque()
        for item in items:
            waiting.append(self._executor.submit(work, item))
            if len(waiting) >= _AHEAD * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _get(self, path: str, limit: int) -> bytes:
        return self._body(self._fetch(path, limit))

    def _body(self, reply: _Reply) -> bytes:
        if reply.status == 200:
            return reply.body
        reasons = {401: "the API key is missing or wrong", 403: "the API key does not have scope read"}
        reason = reasons.get(reply.status, "the service did not give it")
        raise UnavailableError(f"{reason} (status {reply.status})", where=self.name, code="not-given")

    def _fetch(self, path: str, limit: int) -> _Reply:
        """Fetch ``path``, again where that may help.

        Raises:
            UnavailableError: no answer, too long, or too slow.
        """
        wait_s = _BACKOFF_S
        for left in reversed(range(_RETRIES)):
            try:
                reply, retry_after_s = self._request(path, limit)
                if reply.status not in _RETRIED or not left:
                    return reply
                wait_s = max(wait_s, retry_after_s)
            except ConnectionError as error:
                if not left:
                    raise UnavailableError(
                        f"the service cannot be reached: {error}", where=self.name, code="unreachable"
                    ) from None
            time.sleep(min(wait_s, _MAX_WAIT_S))
            wait_s *= 2
        raise AssertionError  # the last round returned or raised

    def _request(self, path: str, limit: int) -> tuple[_Reply, float]:
        import urllib3

        headers = {"Accept-Encoding": "identity", "Accept": "*/*"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        deadline = time.monotonic() + _TOTAL_S
        try:
            response = self._pool.request(
                "GET",
                self.name + path,
                headers=headers,
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
            )
            try:
                allowed = limit if response.status == 200 else _MAX_PROBLEM_BYTES
                received = bytearray()
                while chunk := response.read1(64 * 1024):
                    received += chunk
                    if len(received) > allowed or time.monotonic() > deadline:
                        response.close()
                        raise UnavailableError(
                            f"the answer to {path} is longer than {allowed} bytes, or too slow",
                            where=self.name,
                            code="too-large",
                        )
                retry_after = response.headers.get("Retry-After", "")
                seconds = float(retry_after) if retry_after.isdecimal() else 0.0
                return _Reply(response.status, bytes(received)), seconds
            finally:
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ConnectionError(type(error).__name__) from None
