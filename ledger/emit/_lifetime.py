"""Owns the list of open recorders, and what happens to them when a process ends or forks."""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import Protocol

__all__ = ["close_with_worker", "unwatch", "watch"]

_EXIT_S = 5.0
"""How long the interpreter's exit may wait for the ledger. What is not sent by then waits in the spool."""


class _Recorder(Protocol):
    def close(self, timeout_s: float) -> bool: ...

    def forget_parent(self) -> None: ...


_open: set[_Recorder] = set()
"""Those not closed yet; kept alive, since what they hold must be sealed at the end."""
_hooked_in = 0  # the process id in which the hook of multiprocessing was set


def watch(recorder: _Recorder) -> None:
    """Close ``recorder`` when the process ends."""
    _open.add(recorder)


def unwatch(recorder: _Recorder) -> None:
    """Forget a recorder that was closed."""
    _open.discard(recorder)


def close_with_worker() -> None:
    """Children of multiprocessing end without the interpreter's exit hooks, but run their own."""
    global _hooked_in  # noqa: PLW0603 - one hook for each process
    if "multiprocessing.util" in sys.modules and _hooked_in != os.getpid():
        _hooked_in = os.getpid()
        import multiprocessing.process
        import multiprocessing.util

        if multiprocessing.process.parent_process() is not None:
            multiprocessing.util.Finalize(None, _close_all, exitpriority=0)


def _close_all() -> None:
    deadline = time.monotonic() + _EXIT_S
    for recorder in list(_open):
        recorder.close(max(0.0, deadline - time.monotonic()))


def _forget_parents() -> None:
    for recorder in list(_open):
        recorder.forget_parent()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_parents)
