"""Owns the queue between serving threads, which only append, and the sealer, which takes."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ledger.emit.flights import Mark
from ledger.emit.ids import RecordIds

__all__ = ["ENOUGH", "Barrier", "Inbox"]

ENOUGH = 256
"""Reports that are worth waking for. Composed so soon, their token ids are in the processor's cache still; a
second later they are not, and cost twice as much."""


@dataclass
class Barrier:
    """A mark in the queue: everything before it is in the spool once ``reached`` is set."""

    reached: threading.Event = field(default_factory=threading.Event)


class Inbox:
    """Where serving threads leave reports. Belongs to one process; a forked child makes its own."""

    __slots__ = (
        *("_lock", "barriers", "cold", "dropped", "idle", "ids", "marks", "overflowed", "queue", "wake"),
    )

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()  # reports as plain tuples, and barriers
        self.marks: deque[Mark] = deque()  # what began, and what ended without a report; never refused
        self.ids = RecordIds()
        self.cold = False  # the threads do not run yet, and should as soon as something begins
        self.idle = True  # the sealer sleeps until told; set by it, cleared by whoever wakes it
        self.wake = threading.Event()
        self.dropped = 0
        self.overflowed = 0  # of these, by reports that found no room
        self.barriers = 0  # in the queue: whoever made them waits
        self._lock = threading.Lock()  # guards the counts; held for one addition

    def drop(self, *, full: bool = False) -> None:
        """Count a report that found no room (``full``), or could not be made."""
        with self._lock:
            self.dropped += 1
            self.overflowed += full

    def put_barrier(self) -> Barrier:
        """Ask for everything so far to be sealed now."""
        barrier = Barrier()
        with self._lock:
            self.barriers += 1
        self.queue.append(barrier)
        self.wake.set()
        return barrier

    def take_barrier(self) -> None:
        """Count a barrier that left the queue."""
        with self._lock:
            self.barriers -= 1
