"""The checkpoint last published, in a file outside the database.

It is there so that a database that was restored from an older copy is noticed at the next start. Replicas on
one machine may share the file: it never goes back.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from pathlib import Path

from ledger.core.checkpoint import LogKeys, open_checkpoint
from ledger.core.errors import TallystickError

__all__ = ["PUBLISH_INTERVAL_S", "Publisher"]

_logger = logging.getLogger(__name__)

PUBLISH_INTERVAL_S = 0.1
"""Between two writes: restored copies are older than that."""


class Publisher:
    """Writes committed checkpoints to ``path``, at most one in each interval, and the last one always.

    Owned by the sequencer's thread.
    """

    def __init__(self, path: Path | None, key: LogKeys) -> None:
        self._path = path
        self._key = key
        self._next = 0.0
        self._waiting: bytes | None = None

    @property
    def waiting(self) -> bool:
        """Whether ``flush`` has something to write."""
        return self._waiting is not None

    def publish(self, checkpoint: bytes) -> None:
        """Publish a checkpoint that was committed, now or soon."""
        self._waiting = checkpoint if self._path is not None else None
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Publish what waits: the last one of a burst must not wait for more. Failures are logged."""
        checkpoint, self._waiting = self._waiting, None
        if self._path is None or checkpoint is None:
            return
        self._next = time.monotonic() + PUBLISH_INTERVAL_S
        try:
            _advance(self._path, checkpoint, self._key)
        except OSError:
            _logger.exception("could not write the published checkpoint to %s", self._path)


def _advance(path: Path, checkpoint: bytes, key: LogKeys) -> None:
    """Replace the file's checkpoint by a newer one, whole and durably; an older one changes nothing."""
    with open(path.with_suffix(".lock"), "a") as lock:  # replicas on this machine take turns
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError, TallystickError):
            if open_checkpoint(path.read_bytes(), key).size > open_checkpoint(checkpoint, key).size:
                return
        temporary = path.with_suffix(".new")
        with open(temporary, "wb") as file:
            file.write(checkpoint)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
