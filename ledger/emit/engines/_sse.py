"""Owns the cutting of a byte stream into server-sent events (WHATWG HTML, section 9.2.6), at any cut of it.

Events keep their bytes, so that a stream can be passed on unchanged but for some of them. Memory is bounded:
an event longer than ``MAX_EVENT_BYTES`` ends the reading, not the passing on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MAX_EVENT_BYTES", "Event", "Events"]

MAX_EVENT_BYTES = 8 << 20
"""The longest event that is read. Real ones have some hundred bytes; the last of the Responses API repeats
the whole answer."""

# Two line ends in a row. Atomic groups: in CR LF there is one line end, not two.
_BOUNDARY = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LONGEST_BOUNDARY = 4


@dataclass(frozen=True)
class Event:
    """One event: its bytes with the line ends that close it, and what its ``data`` lines say."""

    raw: bytes
    data: bytes
    """Empty where there is none: comments, retry times."""


class Events:
    """Cuts one stream. Owned by whoever reads it.

    Attributes:
        gave_up: an event was too long: from there on, ``feed`` gives bytes without data.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.gave_up = False
        self._max = max_event_bytes
        self._held = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[Event]:
        """Take in the next bytes; return the events that they complete."""
        if self.gave_up:
            return [Event(data, b"")] if data else []
        held = self._held
        held += data
        events = []
        begin = 0
        for boundary in _BOUNDARY.finditer(held, max(0, self._searched - _LONGEST_BOUNDARY)):
            raw = bytes(held[begin : boundary.end()])
            begin = boundary.end()
            if len(raw) > self._max:
                self.gave_up = True
                events.append(Event(raw, b""))
                break
            events.append(Event(raw, _data_of(raw)))
        del held[:begin]
        self._searched = len(held)
        if self.gave_up or len(held) > self._max:
            self.gave_up = True
            events.append(Event(self.rest(), b""))
        return events

    def rest(self) -> bytes:
        """The bytes of an event that has no end yet; they are forgotten here."""
        rest = bytes(self._held)
        self._held.clear()
        self._searched = 0
        return rest


def _data_of(raw: bytes) -> bytes:
    parts = []
    for line in raw.splitlines():
        if line.startswith(b"data"):
            if line[4:5] == b":":
                parts.append(line[6:] if line[5:6] == b" " else line[5:])
            elif len(line) == 4:
                parts.append(b"")
    return b"\n".join(parts)
