"""Owns the memory of file digests: SHA-256 of files that may be hundreds of gigabytes, each hashed once.

A file is known by its device, inode, size, modification and change time; when one of them differs, it is
hashed again. The memory is a JSON file of mode 0600 in the user's cache directory. It saves time and proves
nothing: what is logged is the issuer's own statement either way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from ledger.emit._disk import locked_file, replace_file

__all__ = ["DigestCache", "default_cache", "file_state"]

_MAX_ENTRIES = 4096
"""Files remembered; the ones longest unused are forgotten first. About 200 bytes each."""
_MAX_BYTES = 4 << 20
"""A cache file larger than this was not written here."""
_BLOCK_BYTES = 1 << 20
_is_digest = re.compile("[0-9a-f]{64}").fullmatch


def default_cache() -> Path:
    """``tallystick/digests.json`` in the user's cache directory (XDG Base Directory)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "tallystick" / "digests.json"


def file_state(path: Path) -> str:
    """What tells one content of a file from another without reading it.

    Raises:
        OSError: there is no such file.
    """
    of = path.stat()
    return f"{of.st_dev}:{of.st_ino}:{of.st_size}:{of.st_mtime_ns}:{of.st_ctime_ns}"


class DigestCache:
    """Digests by name and state. Safe to share between threads and processes: the file has a lock beside it.

    Args:
        path: the file that remembers; ``default_cache()`` if absent.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_cache()

    def get(self, name: str, state: str) -> str | None:
        """The digest remembered for ``name`` in this state."""
        entry = self._read().get(name)
        return entry[1] if entry is not None and entry[0] == state else None

    def put(self, name: str, state: str, digest: str) -> None:
        """Remember it, instead of what was known for another state. Failing to costs time only."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked_file(self._path.with_suffix(".lock")):
                known = self._read()
                known.pop(name, None)  # so that it comes last: order is age
                known[name] = (state, digest)
                kept = dict(list(known.items())[-_MAX_ENTRIES:])
                replace_file(self._path, json.dumps(kept).encode())

    def file_digest(self, path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
        """SHA-256 of a file, hex; remembered.

        Args:
            path: symbolic links are followed.
            on_bytes: called with the size of each block that was hashed, or of the file if it was known.

        Raises:
            OSError: the file cannot be read.
        """
        path = path.resolve()
        state = file_state(path)
        if (digest := self.get(str(path), state)) is not None:
            if on_bytes is not None:
                on_bytes(path.stat().st_size)
            return digest
        digest = _hash(path, on_bytes)
        if file_state(path) == state:  # else it was written to meanwhile
            self.put(str(path), state, digest)
        return digest

    def _read(self) -> dict[str, tuple[str, str]]:
        try:
            if self._path.stat().st_size > _MAX_BYTES:
                return {}
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {
            name: (entry[0], entry[1])
            for name, entry in found.items()
            if isinstance(entry, list)
            and len(entry) == 2
            and all(isinstance(each, str) for each in entry)
            and _is_digest(entry[1])
        }


def _hash(path: Path, on_bytes: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    block = bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(view[:size])
            if on_bytes is not None:
                on_bytes(size)
    return digest.hexdigest()
