"""Owns sessions: what one running process recorded and what of it is safe, in a file that outlives a kill.

Records wait in memory until they are sealed. A process that is killed loses those; a session makes the loss
known. Its file holds two counts (see ``ids``) in shared memory, so that counting costs the serving thread
one store; the kernel keeps them when the process dies. The process holds a lock on the file while it lives.
Whoever finds a session without a living owner adds the difference to the chain's ``dropped``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path

from ledger.emit.ids import GIVEN, SETTLED, RecordIds

__all__ = ["MAKING", "Session", "abandoned_sessions", "read_counts", "settle_session"]

MAKING = ".session-"
"""Begins the name, in the spool itself, of a session's file that is not whole yet."""
_COUNTS = struct.Struct("=QQ")
_SIZE = mmap.PAGESIZE
_SETTLED_AT = 8 * SETTLED
_MOST_UNSETTLED = 1 << 32


class Session:
    """This process's session. Settled and closed under the spool's lock.

    Opened without it, so that a serving thread may: the file appears among the others when it is whole and
    its lock is held, so that nobody takes it for one that was left behind.

    Args:
        directory: the folder of session files.
        ids: the ids whose counts it keeps from here on.

    Raises:
        OSError: there is no room for the file.
    """

    def __init__(self, directory: Path, ids: RecordIds) -> None:
        self.name = os.urandom(8).hex()
        self._ids = ids
        self._path = directory / self.name
        making = directory.with_name(f"{MAKING}{self.name}")
        self._file = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Real zeros, not a hole: a store into a hole on a full disk would kill the process (SIGBUS).
            counts = _COUNTS.pack(ids.marks[GIVEN], ids.marks[SETTLED])
            if os.write(self._file, counts.ljust(_SIZE, b"\0")) != _SIZE:
                raise OSError(errno.ENOSPC, "no room for a session file", str(self._path))
            os.fsync(self._file)
            self._map: mmap.mmap | None = mmap.mmap(self._file, _SIZE)
            making.rename(self._path)
        except BaseException:
            os.close(self._file)
            making.unlink(missing_ok=True)
            raise
        self._marks = memoryview(self._map).cast("Q")
        self._marks[GIVEN] = ids.marks[GIVEN]
        ids.marks = self._marks

    def settle(self, settled: int) -> None:
        """Note that all records up to the count ``settled`` are safe or counted as lost."""
        self._marks[SETTLED] = settled

    def close(self) -> None:
        """End the session: its file is removed if nothing of it was lost, else left to be found."""
        plain = memoryview(bytearray(self._marks)).cast("Q")
        self._ids.marks = plain
        # A serving thread may hold the view for one more store, so it is dropped, not released; the lock on
        # the file goes with the last reference.
        if self._marks[SETTLED] >= self._marks[GIVEN]:
            self._path.unlink(missing_ok=True)
        self._marks, self._map = plain, None
        os.close(self._file)

    def forget(self) -> None:
        """Let go of a parent's session in a forked child, so that only the parent keeps it alive."""
        self._marks.release()
        if self._map is not None:
            self._map.close()
        os.close(self._file)


def settle_session(directory: Path, name: str, settled: int) -> None:
    """Raise the settled count in another process's session file, if it is still there and behind."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(directory / name, os.O_RDWR)
        try:
            counts = os.pread(file, _COUNTS.size, 0)
            if len(counts) == _COUNTS.size and _COUNTS.unpack(counts)[SETTLED] < settled:
                os.pwrite(file, struct.pack("=Q", settled), _SETTLED_AT)
        finally:
            os.close(file)


def abandoned_sessions(directory: Path) -> list[tuple[str, int, int]]:
    """Name, count given, count settled of each session whose owner is gone. Call under the spool's lock."""
    found = []
    for path in sorted(directory.iterdir()):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            file = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                given, settled = read_counts(file)
            finally:
                os.close(file)
            found.append((path.name, given, settled))
    return found


def read_counts(file: int) -> tuple[int, int]:
    """Counts given and settled in an open session file; nothing lost if they cannot be right.

    The file was cut or changed then: more than memory can hold was never lost.
    """
    counts = os.pread(file, _COUNTS.size, 0)
    given, settled = _COUNTS.unpack(counts) if len(counts) == _COUNTS.size else (0, 0)
    return (given, settled) if given - settled <= _MOST_UNSETTLED else (settled, settled)
