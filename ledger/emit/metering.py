"""Owns the reading of a recorder's meter: once a window on a thread of its own, at once when asked to.

One process meters at a time among those that share a spool: two that each attributed the host's whole energy
would state it twice. The others' records have no energy.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ledger.core.errors import TallystickError
from ledger.emit._complaints import Complaints
from ledger.energy.meters.counting import AnyMeter, MeterReset
from ledger.energy.meters.modelled import ModelledMeter
from ledger.energy.windows import Window

__all__ = ["Metering"]

GRACE_NS = 50_000_000
"""A window is handed on so much later than it ended, so that what began in it is known by then."""
_MILLI = 1000
_STAMP = struct.Struct("<Q")
_LOCK_WAIT_S = 5.0


class Metering:
    """Reads a meter. Belongs to one process; ``run`` is its thread's, ``read`` may be called by any.

    Args:
        meter: what to read.
        directory: of the spool, for the lock between processes.
        window_s: how often.
        wake: called when a window is ready.
    """

    def __init__(self, meter: AnyMeter, directory: Path, window_s: float, wake: Callable[[], None]) -> None:
        self.meter = meter
        self.problem: str | None = None
        self._path = directory / "meter.lock"
        self._window_s = window_s
        self._wake = wake
        self._windows: deque[Window] = deque()  # appended under the lock, taken by the sealer
        self._lock = threading.Lock()  # held while the meter is read; guards what follows
        self._last: tuple[int, int] | None = None  # when, and what the meter showed
        self._tried_at = -math.inf
        self._file: int | None = None  # open while this process is the one that meters
        self._closed = False
        self._ending = threading.Event()
        self._complaints = Complaints("the energy meter cannot be used")

    def look(self) -> None:
        """Read the meter before there is anything to attribute, so that the first window begins here."""
        with self._lock:
            self._guarded(self._read)

    def is_active(self) -> bool:
        """Whether what is active now is metered here. Reads the meter if that was not tried lately."""
        if self._file is None and time.monotonic() - self._tried_at >= self._window_s:
            self.read()
        return self._file is not None and self._last is not None

    def run(self) -> None:
        """Read until closed. Nothing that goes wrong ends the thread."""
        due = time.monotonic()
        while not self._ending.is_set():
            self.read()
            due = max(due + self._window_s, time.monotonic())
            grace_s = min(GRACE_NS / 1e9, self._window_s)
            if not self._ending.wait(grace_s):
                self._wake()
                self._ending.wait(max(0.0, due - time.monotonic()))

    def read(self) -> int | None:
        """Read the meter now; the end of the window that this closes, in steady nanoseconds, None if none."""
        if not self._lock.acquire(timeout=_LOCK_WAIT_S):
            return None  # another thread waits for the meter already
        try:
            self._tried_at = time.monotonic()
            if self._closed:
                return None
            return self._guarded(lambda: self._read() if self._is_ours() else None)
        finally:
            self._lock.release()

    def take(self, until_ns: int) -> list[Window]:
        """The windows that ended by then, in order."""
        taken = []
        while self._windows and self._windows[0].end_ns <= until_ns:
            taken.append(self._windows.popleft())
        return taken

    def end(self) -> None:
        """Let the thread end; ``read`` still works, so that what is read last is also attributed."""
        self._ending.set()

    def close(self) -> None:
        """Read no more, and let another process meter."""
        self.end()
        self._closed = True
        if not self._lock.acquire(timeout=_LOCK_WAIT_S):
            return  # the meter hangs; the file is closed with the process
        try:
            self._last = None
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)  # not by closing alone: a child may hold a copy
                os.close(self._file)
                self._file = None
        finally:
            self._lock.release()

    def forget_parent(self) -> None:
        """In a forked child: the lock is the parent's."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

    # --- under the lock ------------------------------------------------------------------------------

    def _guarded(self, read: Callable[[], int | None]) -> int | None:
        try:
            return read()
        except TallystickError as error:
            self._failed(str(error), None)
        except Exception as error:  # whatever the meter is: serving goes on
            self._failed(f"reading the meter failed: {error!r}", error)
        return None

    def _read(self) -> int | None:
        last, meter = self._last, self.meter
        if isinstance(meter, ModelledMeter):
            now, total = time.monotonic_ns(), 0
        else:
            try:
                total = meter.read()
            except MeterReset as error:
                self._failed(str(error), None)
                if last is not None:  # remembered: of several counters, the next one may say so only now
                    last = self._last = (last[0], -1)
                total = meter.read()
            now = time.monotonic_ns()
        if last is not None and now <= last[0]:
            return None
        self._last = (now, total)
        self.problem = None
        if last is None:
            return None
        self._windows.append(self._window(last, now, total))
        if self._file is not None:
            os.pwrite(self._file, _STAMP.pack(now), 0)
        return now

    def _window(self, last: tuple[int, int], now: int, total: int) -> Window:
        start, before = last
        meter = self.meter
        if isinstance(meter, ModelledMeter):
            return Window(start, now, power_mw=meter.power_mw, low=meter.low_mw, high=meter.high_mw)
        if before < 0 or total < before:
            return Window(start, now)  # the counter started anew: what was used is not known
        energy, accuracy = total - before, meter.accuracy_milli
        if accuracy is None:
            return Window(start, now, energy)
        low = energy * (_MILLI - accuracy) // _MILLI
        high = -(-energy * (_MILLI + accuracy) // _MILLI)
        return Window(start, now, energy, low=max(0, low), high=high)

    def _is_ours(self) -> bool:
        if self._file is None:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                self.problem = "another process of this spool meters: records of this one have no energy"
                self._complaints.say(self.problem)
                return False
            except BaseException:
                os.close(file)
                raise
            self._file = file
            # What was used until another process's last window is not ours to attribute again. A time that is
            # still to come was written before the machine started anew.
            told = os.pread(file, _STAMP.size, 0)
            until = _STAMP.unpack(told)[0] if len(told) == _STAMP.size else 0
            if self._last is not None and self._last[0] < until <= time.monotonic_ns():
                self._last = None
        return True

    def _failed(self, problem: str, error: BaseException | None) -> None:
        self.problem = problem
        self._complaints.say(problem, error)
