"""Durable writes: all bytes or an error, whole files or none."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["append_file", "flush_directory", "locked_file", "replace_file", "write_all"]


def write_all(file: int, data: bytes) -> None:
    """Write all of ``data``; a short write means that the disk is full, and the next call says so."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def flush_directory(directory: Path) -> None:
    """Make new, renamed and removed names in ``directory`` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Write ``path`` with mode 0600 so that it has all of ``data`` or does not change; durable on return."""
    temporary = path.with_name(path.name + ".tmp")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            write_all(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    flush_directory(path.parent)


def append_file(path: Path, data: bytes) -> None:
    """Append ``data`` to a file of mode 0600; durable on return. A crash may leave a part of it."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        write_all(file, data)
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def locked_file(path: Path, *, blocking: bool = True, inherited: set[int] | None = None) -> Iterator[bool]:
    """Hold an exclusive lock on ``path`` between processes and between threads.

    Each use opens the file anew, because a lock belongs to an open file. ``inherited`` collects the open
    files, for a forked child to close.

    Yields:
        Whether the lock was got; always True when ``blocking``.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if inherited is not None:
        inherited.add(file)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # not by closing alone: a child may hold a copy
    finally:
        if inherited is not None:
            inherited.discard(file)
        os.close(file)
