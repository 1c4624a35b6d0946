"""Owns one event of a stream on its way to whoever asked: it is read, and what we asked for is taken out."""

from __future__ import annotations

import msgspec

from ledger.emit._complaints import Complaints
from ledger.emit.engines._exchange import Exchange
from ledger.emit.engines._openai import read_json, read_leniently
from ledger.emit.engines._sse import Event
from ledger.emit.engines._wire import Added, hide

__all__ = ["pass_event"]

_DONE = b"[DONE]"


def pass_event(event: Event, exchange: Exchange, added: Added, complaints: Complaints) -> bytes:
    """Tell ``exchange`` what an event says; the bytes to pass on. Never raises.

    They are the event's own, unless something ``added`` to the request is in it.
    """
    raw, data = event.raw, event.data
    if not data or data == _DONE:
        return raw
    try:
        body = read_json(data) or read_leniently(data)
        if body is None:
            exchange.pass_unread(len(data))
            complaints.say("a chunk is no JSON: without usage, its tokens are estimated")
            return raw
        exchange.feed(body, streamed=True)
        shown = hide(body, added, streamed=True) if added else body
        if shown is body:
            return raw
        if shown is None:
            return b""
        others = [line for line in raw.splitlines() if line and not line.startswith(b"data")]
        return b"\n".join([*others, b"data: " + msgspec.json.encode(shown), b"", b""])
    except Exception as error:
        exchange.pass_unread(len(data))
        complaints.say("a chunk could not be read", error)
        return raw
