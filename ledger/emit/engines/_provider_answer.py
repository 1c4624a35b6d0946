"""Owns the answer to a provider's client on its way to the SDK: it is read in passing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

from ledger.emit._complaints import Complaints
from ledger.emit.engines._exchange import Exchange
from ledger.emit.engines._openai import read_answer
from ledger.emit.engines._passing_event import pass_event
from ledger.emit.engines._sse import Events
from ledger.emit.engines._wire import Added

__all__ = ["Observed", "Observing", "stream_class"]

_MAX_BODY_BYTES = 64 << 20
"""A whole answer that is kept to be read; of a longer one the tokens are not known."""


class Observing(Protocol):
    """Takes the bytes of an answer; gives those to pass on."""

    def feed(self, data: bytes) -> bytes:
        """The next bytes."""

    def rest(self) -> bytes:
        """What was held back, at the end."""

    def break_off(self) -> None:
        """The server ended in the middle."""

    def close(self) -> None:
        """Nobody reads on."""


class Observed:
    """Reads one answer in passing."""

    def __init__(
        self,
        exchange: Exchange,
        added: Added,
        known: Callable[[], None],
        complaints: Complaints,
        *,
        streamed: bool,
        unread: bool,
    ) -> None:
        self._exchange = exchange
        self._unread = unread
        self._added = added
        self._known = known
        self._complaints = complaints
        self._events = Events() if streamed else None
        self._kept = bytearray()
        self._whole = self._broken = False

    def feed(self, data: bytes) -> bytes:
        """The next bytes, and those of them to pass on."""
        if self._events is None:
            if not self._unread and len(self._kept) + len(data) > _MAX_BODY_BYTES:
                self._give_up("an answer is too long to be read: its tokens are estimated")
            if self._unread:
                self._exchange.pass_unread(len(data))
            else:
                self._kept += data
            return data
        shown = [
            pass_event(event, self._exchange, self._added, self._complaints)
            for event in self._events.feed(data)
        ]
        if self._events.gave_up:
            self._exchange.pass_unread(len(data))
        return b"".join(shown) if self._added else data

    def rest(self) -> bytes:
        """The end came; what was held back is passed on."""
        self._whole = True
        if self._events is not None:
            rest = self._events.rest()
            if rest.strip() and not self._exchange.fed:
                self._exchange.pass_unread(len(rest))
            return rest if self._added else b""
        if self._unread or not self._kept.strip():
            return b""
        try:
            body = read_answer(self._kept)
            if body is None:
                self._give_up("an answer is no JSON: its tokens are estimated")
            else:
                self._exchange.feed(body, streamed=False)
                self._kept.clear()
        except Exception as error:
            self._give_up("an answer could not be read: its tokens are estimated", error)
        return b""

    def _give_up(self, why: str, error: Exception | None = None) -> None:
        """What came so far stays unread, and what comes."""
        self._unread = True
        self._exchange.pass_unread(len(self._kept))
        self._kept.clear()
        self._complaints.say(why, error)

    def break_off(self) -> None:
        """The connection failed in the middle of the answer."""
        self._broken = True

    def close(self) -> None:
        """The SDK is done with the answer, at its end or before."""
        try:
            if self._exchange.open:
                self._exchange.pass_unread(len(self._kept))  # it has no end
                self._known()
                if self._broken:
                    self._exchange.fail()
                elif self._whole or self._exchange.answer.finish_reason is not None:
                    self._exchange.end()
                else:
                    self._exchange.abort()
        except Exception as error:
            self._exchange.lose()  # if it is not told yet
            self._complaints.say("a generation could not be recorded", error)


@lru_cache(maxsize=8)
def stream_class(package: str, asynchronous: bool) -> Callable[[Any, Observing], Any]:
    """A byte stream for the HTTP library ``package``, which checks of what class streams are."""
    library = import_module(package)
    base: Any = library.AsyncByteStream if asynchronous else library.SyncByteStream

    class Passing(base):  # type: ignore[misc]
        """The stream of one answer."""

        def __init__(self, stream: Any, observing: Observing) -> None:
            self._stream = stream
            self._observing = observing

        def __iter__(self) -> Iterator[bytes]:
            try:
                for data in self._stream:
                    if shown := self._observing.feed(data):
                        yield shown
            except Exception:
                self._observing.break_off()
                raise
            if rest := self._observing.rest():
                yield rest

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for data in self._stream:
                    if shown := self._observing.feed(data):
                        yield shown
            except Exception:
                self._observing.break_off()
                raise
            if rest := self._observing.rest():
                yield rest

        def close(self) -> None:
            self._observing.close()
            self._stream.close()

        async def aclose(self) -> None:
            self._observing.close()
            await self._stream.aclose()

    return Passing
