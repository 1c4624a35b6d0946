"""Owns how much disk a spool may take: what counts against its limit, and what goes first when that is full.

Statements that wait are never deleted for room. What may go, oldest first: statements that the ledger took,
but whose receipt could not be checked (``.sent``), when the limit is reached; damaged files that were set
aside as evidence (``.torn``), beyond a bound of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ledger.core.errors import UnavailableError

__all__ = ["KEPT", "PENDING", "TORN", "Room", "bound_torn", "on_disk"]

_log = logging.getLogger("tallystick.emit")

PENDING, KEPT, TORN = ".statement", ".sent", ".torn"
_BLOCK = 4096
"""What file systems give out at least: a statement of 900 bytes takes as much."""
_COUNT_AGE_S = 10.0
_FREED_SHARE = 16
"""When kept statements have to go, a sixteenth of the limit goes at once."""
_TORN_FILES = 64
_TORN_BYTES = 64 << 20


class Room:
    """Counts what a spool takes. Its numbers are an estimate that is counted anew every few seconds: no lock.

    Args:
        directory: the spool.
        limit_bytes: for statements that wait and those that are kept.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._counted = -_COUNT_AGE_S
        self._used = 0

    def take(self, size: int) -> None:
        """Count a file of ``size`` bytes more.

        Raises:
            UnavailableError: the statements that wait would take more than the limit.
        """
        if time.monotonic() - self._counted > _COUNT_AGE_S:
            self._used = sum(on_disk(each.stat().st_size) for each in self._files(PENDING, KEPT))
            self._counted = time.monotonic()
        wanted = on_disk(size)
        if self._used + wanted > self._limit_bytes:
            self._free_kept(wanted)
        if self._used + wanted > self._limit_bytes:
            raise UnavailableError(
                f"the spool holds {self._used} bytes; its limit is {self._limit_bytes}",
                where=str(self._directory),
                remedy="restore the connection to the ledger, or raise the limit",
                code="spool-full",
            )
        self._used += wanted

    def give(self, size: int) -> None:
        """Count a file of ``size`` bytes less."""
        self._used = max(0, self._used - on_disk(size))

    def _free_kept(self, wanted: int) -> None:
        goal = self._limit_bytes - max(wanted, self._limit_bytes // _FREED_SHARE)
        gone = 0
        for each in sorted(self._files(KEPT), key=lambda entry: entry.name):
            if self._used <= goal:
                break
            with contextlib.suppress(FileNotFoundError):
                size = each.stat().st_size
                os.unlink(each.path)
                self.give(size)
                gone += 1
        if gone:
            _log.warning(
                "the spool is full: %d statements went that the ledger took, but whose receipts were not "
                "checked; set the log's key (log_key), so that none needs to be kept",
                gone,
            )

    def _files(self, *suffixes: str) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(suffixes) and entry.is_file(follow_symlinks=False):
                    yield entry


def on_disk(size: int) -> int:
    """What a file of ``size`` bytes takes."""
    return max(1, -(-size // _BLOCK)) * _BLOCK


def bound_torn(directory: Path) -> None:
    """Delete the oldest damaged files beyond 64 or 64 MiB. The newest stays, whatever its size."""
    torn = sorted(directory.glob(f"*{TORN}-*"), key=lambda path: path.name.rpartition("-")[2])
    total = sum(path.stat().st_size for path in torn)
    while len(torn) > 1 and (len(torn) > _TORN_FILES or total > _TORN_BYTES):
        oldest = torn.pop(0)
        total -= oldest.stat().st_size
        oldest.unlink()
