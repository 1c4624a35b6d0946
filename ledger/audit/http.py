"""Reads a log from a service's URL for an audit: checkpoint, tiles and entry bundles, receipts and records.

The server is not trusted: every answer has a size limit, redirections are not followed, and answers come
uncompressed. Some requests run at once, so that an audit is not as slow as the network is far.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from ledger.audit.sources import Leaf, Row
from ledger.core.checkpoint import parse_checkpoint_text
from ledger.core.errors import InvalidError, TallystickError, UnavailableError
from ledger.core.merkle import HASH_SIZE
from ledger.core.note import MAX_NOTE_BYTES, parse_note
from ledger.core.records import MAX_RECORD_BYTES
from ledger.core.statements import Batch, decode_statement
from ledger.core.tiles import MAX_ENTRY, TILE_WIDTH, decode_bundle, entries_path, tile_path

if TYPE_CHECKING:
    from urllib3 import PoolManager

    from ledger.http_call import Answer

__all__ = ["UrlSource"]

_MAX_RECEIPT_BYTES = 16_384
_MAX_PROBLEM_BYTES = 65_536
_CONNECT_S, _READ_S, _TOTAL_S = 10.0, 60.0, 300.0
_RETRIES = 4
_BACKOFF_S = 0.5
_MAX_WAIT_S = 30.0
_RETRIED = frozenset({429, 502, 503, 504})
_AHEAD = 4
"""Leaves in flight per worker: enough to keep it busy."""
_BUNDLES_AHEAD = 4
"""Bundles in flight, each of up to 16 MiB: they have up to 256 leaves each, so these are enough."""
_AHEAD_BYTES = 128 << 20
"""What the records of all leaves in flight may take. Those that are longer than their share of it, of up to
64 MiB, are fetched when their turn comes, one at a time. With the bundles that makes at most 256 MiB of
answers, besides the leaf that is being audited."""

_T = TypeVar("_T")


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
        try:
            parts = urlsplit(url)
        except ValueError:  # such as a bracket without its pair
            parts = urlsplit("")
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
        self._api_key = api_key
        self._workers = max(1, workers)
        self._note: bytes | None = None
        self._pool: PoolManager | None = None
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> UrlSource:
        from ledger import http_call  # which imports urllib3: not for audits of files

        self._pool = http_call.open_pool(self.name, self._workers)
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

    def witnessed(self) -> Iterator[bytes]:
        """Nothing more: the service's checkpoint carries its cosignatures."""
        return iter(())

    def leaves(self, size: int) -> Iterator[Leaf]:
        """The entries below ``size``, batches with their records, all with their receipts."""
        bundles = self._ahead(
            range(0, size, TILE_WIDTH),
            lambda first: self._bundle(first, min(TILE_WIDTH, size - first)),
            _BUNDLES_AHEAD,
        )
        entries = (pair for bundle in bundles for pair in bundle)
        for leaf, records_limit in self._ahead(entries, self._leaf, _AHEAD * self._workers):
            yield leaf if records_limit is None else self._with_records(leaf, records_limit)

    def _bundle(self, first: int, width: int) -> list[tuple[int, bytes]]:
        path = entries_path(first // TILE_WIDTH, width)
        try:
            entries = decode_bundle(self._get(f"/{path}", width * (MAX_ENTRY + 2)), width)
        except InvalidError as error:
            raise UnavailableError(error.what, where=path, code="unreadable") from None
        return list(enumerate(entries, start=first))

    def _leaf(self, pair: tuple[int, bytes]) -> tuple[Leaf, int | None]:
        """Fetch what belongs to an entry. What cannot be had is left out, with the reason.

        Returns:
            The leaf; and how long its records may be, if they are too long to be fetched ahead.
        """
        index, entry = pair
        missing: list[tuple[str, str]] = []
        receipt = None
        try:
            receipt = self._get(f"/entries/{index}", _MAX_RECEIPT_BYTES)
        except UnavailableError as error:
            missing.append(("receipts", error.what))
        leaf = Leaf(index, entry, receipt=receipt, missing=tuple(missing))
        try:
            payload = decode_statement(entry).payload
        except TallystickError:
            return leaf, None  # the audit finds it
        if not isinstance(payload, Batch):
            return leaf, None
        if self._api_key is None:
            return _without_records(leaf, "they need an API key of scope read, and none was given"), None
        limit = payload.count * (MAX_RECORD_BYTES + 1)
        share = _AHEAD_BYTES // (_AHEAD * self._workers)
        try:
            return replace(leaf, lines=self._records(index, min(limit, share))), None
        except UnavailableError as error:
            if error.code == "too-large" and limit > share:
                return leaf, limit
            return _without_records(leaf, error.what), None

    def _with_records(self, leaf: Leaf, limit: int) -> Leaf:
        try:
            return replace(leaf, lines=self._records(leaf.index, limit))
        except UnavailableError as error:
            return _without_records(leaf, error.what)

    def _records(self, index: int, limit: int) -> bytes:
        return self._get(f"/entries/{index}/records", limit)

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

    def settings(self, table: str) -> Iterator[Row]:
        """Not offered by a service."""
        raise UnavailableError(f"a service does not show its table {table}", where=self.name)

    def open_index(self) -> Callable[[int], list[Row]]:
        """Not offered by a service."""
        raise UnavailableError("a service does not show its record_index", where=self.name)

    def unexpected(self) -> Iterator[str]:
        """Nothing."""
        return iter(())

    # --- requests ---

    def _ahead(self, items: Any, work: Callable[[Any], _T], depth: int) -> Iterator[_T]:
        """Yield ``work(item)`` in order, with ``depth`` of them under way ahead of the reader."""
        assert self._executor is not None, "enter the source first"  # noqa: S101
        waiting: deque[Future[_T]] = deque()
        for item in items:
            waiting.append(self._executor.submit(work, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _get(self, path: str, limit: int) -> bytes:
        return self._body(self._fetch(path, limit))

    def _body(self, reply: Answer) -> bytes:
        if reply.status == 200:
            return reply.body
        reasons = {401: "the API key is missing or wrong", 403: "the API key does not have scope read"}
        reason = reasons.get(reply.status, "the service did not give it")
        raise UnavailableError(f"{reason} (status {reply.status})", where=self.name, code="not-given")

    def _fetch(self, path: str, limit: int) -> Answer:
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

    def _request(self, path: str, limit: int) -> tuple[Answer, float]:
        from ledger import http_call

        headers = {"Accept": "*/*"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        assert self._pool is not None, "enter the source first"  # noqa: S101
        limits = http_call.Limits(_CONNECT_S, _READ_S, _TOTAL_S, limit, _MAX_PROBLEM_BYTES)
        answer = http_call.call(self._pool, "GET", self.name + path, limits, headers=headers)
        retry_after = answer.headers.get("retry-after", "")
        return answer, float(retry_after[:9]) if retry_after.isdecimal() else 0.0


def _without_records(leaf: Leaf, why: str) -> Leaf:
    return replace(leaf, missing=(*leaf.missing, ("records", why)))
