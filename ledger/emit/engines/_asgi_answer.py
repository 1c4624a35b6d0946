"""Owns the answer of an ASGI app on its way to the client: it is read in passing, and passed on at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import msgspec

from ledger.emit._complaints import Complaints
from ledger.emit.engines._exchange import Exchange
from ledger.emit.engines._openai import Body, read_answer
from ledger.emit.engines._passing_event import pass_event
from ledger.emit.engines._sse import Events
from ledger.emit.engines._wire import Added, hide

__all__ = ["RECORD_HEADER", "Passage"]

Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

RECORD_HEADER = b"x-tallystick-record"
_UNNAMED = (b"", b"text/plain")
"""What servers call an answer that they do not name."""


class Passage:
    """Passes one answer on. Owned by the task that serves the request.

    Args:
        exchange: is told what passes, and how it ended.
        added: what to take out.
        send: to the client.
        complaints: about what goes wrong here.
        limit: bytes of a whole answer that are kept to be read.
    """

    def __init__(
        self, exchange: Exchange, added: Added, send: Send, complaints: Complaints, limit: int
    ) -> None:
        self._exchange = exchange
        self._added = added
        self._send = send
        self._complaints = complaints
        self._limit = limit
        self._gone = self._ended = False
        self._asking = self._answering = False
        self._pass: Callable[[bytes, bool], Awaitable[None]] = self._pass_unread
        self._start: Message | None = None
        self._events = Events()
        self._kept = bytearray()

    def client_is_gone(self, *, asking: bool = False) -> None:
        """The client closed the connection. Once all was sent, that means nothing.

        Args:
            asking: the request had no end yet, so that the app could not begin.
        """
        self._gone = not self._ended
        self._asking = asking

    async def send(self, message: Message) -> None:
        """What the app sends."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body":
            more = bool(message.get("more_body"))
            try:
                await self._pass(message.get("body", b""), more)
            except OSError:  # what servers raise when the client is gone (ASGI 2.4)
                self.client_is_gone()
                raise
            if not more:
                self._ended = True
                self.close()
        else:
            await self._send(message)

    def close(self) -> None:
        """The app is done with the request."""
        try:
            self._exchange.pass_unread(len(self._kept))  # it has no end
            self._kept.clear()
            if self._gone and self._asking and not self._answering:
                self._exchange.refuse()
            elif self._gone:
                self._exchange.abort()
            elif self._ended:
                self._exchange.end()
            else:
                self._exchange.fail()
        except Exception as error:
            self._exchange.lose()  # if it is not told yet
            self._complaints.say("a generation could not be recorded", error)

    # --- the start -----------------------------------------------------------------------------------

    async def _begin(self, message: Message) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        known = {name.lower(): value for name, value in headers}
        kind = known.get(b"content-type", b"").partition(b";")[0].strip().lower()
        self._answering = True
        self._exchange.see_headers(known)
        self._exchange.see_status(message["status"])
        streams = self._exchange.asks_for_stream
        if not self._exchange.open:
            if self._exchange.lost:
                self._complaints.say(
                    f"a request is counted as dropped, for it was answered {message['status']}"
                )
        elif known.get(b"content-encoding", b"identity").lower() != b"identity":
            self._complaints.say("an answer is compressed: its tokens are estimated")
        elif kind == b"text/event-stream" or (kind in _UNNAMED and streams):
            self._pass = self._pass_stream
        elif kind == b"application/json" or kind.endswith(b"+json") or kind in _UNNAMED:
            self._pass = self._pass_held if self._added else self._pass_whole
        else:
            self._complaints.say("an answer is neither JSON nor events: its tokens are estimated")
        if self._exchange.open:
            headers.append((RECORD_HEADER, self._exchange.record_id.encode()))
        # A stream that is changed has another length; so has a whole answer, which knows its own then.
        if self._added and self._pass in (self._pass_stream, self._pass_held):
            headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        start = {**message, "headers": headers}
        if self._pass == self._pass_held:
            self._start = start
        else:
            await self._send(start)

    # --- bodies --------------------------------------------------------------------------------------

    async def _forward(self, data: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _pass_unread(self, data: bytes, more: bool) -> None:
        if self._exchange.open:
            self._exchange.pass_unread(len(data))
        await self._forward(data, more)

    async def _pass_whole(self, data: bytes, more: bool) -> None:
        """Pass a whole answer on as it comes, and read it at the end."""
        self._keep(data)
        if self._pass != self._pass_whole:
            self._kept.clear()
        elif not more:
            self._read_whole()
        await self._forward(data, more)

    def _keep(self, data: bytes) -> None:
        if len(self._kept) + len(data) > self._limit:
            self._exchange.pass_unread(len(self._kept) + len(data))
            self._complaints.say("an answer is too long to be read: its tokens are estimated")
            self._pass = self._pass_unread
        else:
            self._kept += data

    def _read_whole(self) -> bytes:
        """Read the answer, which is then not kept any more; return it anew if something was taken out."""
        data = bytes(self._kept)
        self._kept.clear()
        if not data.strip():
            return data
        try:
            body = read_answer(data)
            if body is None:
                self._exchange.pass_unread(len(data))
                self._complaints.say("an answer is no JSON: its tokens are estimated")
                return data
            self._exchange.feed(body, streamed=False)
            return (self._rewritten(body) if self._added else None) or data
        except Exception as error:
            self._exchange.pass_unread(len(data))
            self._complaints.say("an answer could not be read: its tokens are estimated", error)
            return data

    def _rewritten(self, body: Body) -> bytes | None:
        if "items" not in body:
            shown = hide(body, self._added, streamed=False)
            return None if shown is body else msgspec.json.encode(shown)
        items = [
            hide(each, self._added, streamed=False) if isinstance(each, dict) else each
            for each in body["items"]
        ]
        return msgspec.json.encode(items)

    async def _pass_held(self, data: bytes, more: bool) -> None:
        """Hold a whole answer back, since something must be taken out of it."""
        self._keep(data)
        if self._pass != self._pass_held:  # too long: pass on what is held, and the rest as it comes
            held = bytes(self._kept) + data
            self._kept.clear()
            await self._send(self._start or {})
            await self._forward(held, more)
        elif not more:
            whole = self._read_whole()
            start = self._start or {}
            headers = [*start["headers"], (b"content-length", str(len(whole)).encode())]
            await self._send({**start, "headers": headers})
            await self._forward(whole, False)

    async def _pass_stream(self, data: bytes, more: bool) -> None:
        """Pass on the events of a stream: all bytes at once, unless something must be taken out of some."""
        shown = self._read_events(data)
        rest = b"" if more else self._events.rest()
        if rest.strip() and not self._exchange.fed:
            self._exchange.pass_unread(len(rest))
            self._complaints.say("an answer is no stream of events: its tokens are estimated")
        shown = shown + rest if self._added else data
        if shown or not more:
            await self._forward(shown, more)

    def _read_events(self, data: bytes) -> bytes:
        shown = [
            pass_event(event, self._exchange, self._added, self._complaints)
            for event in self._events.feed(data)
        ]
        if self._events.gave_up:
            self._exchange.pass_unread(len(data))
        return b"".join(shown)
