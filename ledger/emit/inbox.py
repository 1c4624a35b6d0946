"""Owns the queue between serving threads, which only append, and the sealer, which takes."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ledger.emit.flights import Mark
from ledger.emit.ids import RecordIds

__all__ = ["ENOUGH", "Barrier", "Inbox", "Wake"]

ENOUGH = 256
"""Reports that are worth waking for. Composed so soon, their token ids are in the processor's cache still; a
second later they are not, and cost twice as much."""


@dataclass
class Barrier:
    """A mark in the queue: everything before it is in the spool once ``reached`` is set."""

    reached: threading.Event = field(default_factory=threading.Event)


class Wake:
    """Wakes one waiting thread; may be set at any time, within a finalizer too.

    Hooks end what was left in finalizers, which the garbage collector runs on any thread and between any two
    steps of it, so also within this. ``threading.Event`` holds a lock while it is set or waited for, and a
    finalizer that sets it on the same thread would wait for itself.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()  # held: not set

    def set(self) -> None:
        """Wake who waits, or who waits next."""
        try:  # noqa: SIM105 - on serving threads, and a third of the time
            self._lock.release()
        except RuntimeError:  # set already
            pass

    def clear(self) -> None:
        """Forget that it was set."""
        self._lock.acquire(blocking=False)

    def wait(self, timeout_s: float) -> None:
        """Wait until it is set, and clear it; or until the time is over."""
        self._lock.acquire(timeout=timeout_s)


class Inbox:
    """Where serving threads leave reports. Belongs to one process; a forked child makes its own."""

    __slots__ = (
        "_lock", "barriers", "cold", "dropped", "idle", "ids", "marks", "overflowed", "queue", "wake",
    )  # fmt: skip

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()  # reports as plain tuples, and barriers
        self.marks: deque[Mark] = deque()  # what began, and what ended without a report; never refused
        self.ids = RecordIds()
        self.cold = False  # the threads do not run yet, and should as soon as something begins
        self.idle = True  # the sealer sleeps until told; set by it, cleared by whoever wakes it
        self.wake = Wake()
        self.dropped = 0
        self.overflowed = 0  # of these, by reports that found no room
        self.barriers = 0  # in the queue: whoever made them waits
        self._lock = threading.RLock()  # guards the counts; held for one addition, also within a finalizer

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
