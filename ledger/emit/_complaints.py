"""Says what is wrong in the log: at once when it is news, else once a minute."""

from __future__ import annotations

import logging
import time

__all__ = ["Complaints"]

_EVERY_S = 60.0


class Complaints:
    """Used by one thread.

    Args:
        about: starts each message.
    """

    def __init__(self, about: str) -> None:
        self._about = about
        self._log = logging.getLogger("tallystick.emit")
        self._last = ""
        self._said_at = 0.0
        self._unsaid = 0

    def say(self, problem: str, error: BaseException | None = None) -> None:
        """Log ``problem``, unless something was just said; news waits a second, so that it cannot flood."""
        now = time.monotonic()
        wait_s = 1.0 if problem != self._last else _EVERY_S
        if self._said_at and now - self._said_at < wait_s:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more like it)" if self._unsaid else ""
        self._log.error("%s: %s%s", self._about, problem, more, exc_info=error)
        self._last, self._said_at, self._unsaid = problem, now, 0
