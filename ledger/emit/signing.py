"""Owns the key that signs now, and its change while recorders run.

The key lives in a file: the one that was named, or ``issuer.pem`` in the spool. It is looked at before each
statement is signed, under the spool's lock, so that all processes that share a spool change over between two
statements, without a restart. The ledger must know the new key first, and keeps the old one in force until it
is revoked; so what the old one signed and what still waits stays good.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ledger.core.errors import InvalidError, TallystickError
from ledger.core.keys import PrivateKey
from ledger.emit._complaints import Complaints
from ledger.emit._disk import replace_file
from ledger.emit.identity import load_issuer_key
from ledger.emit.spool import Spool
from ledger.keyfiles import load_private_key

__all__ = ["SigningKey", "install_key"]


class SigningKey:
    """The key that signs now. Any thread may ask.

    Args:
        given: the key itself, which never changes by itself, or its file; None takes the spool's own, made at
            first use. Construct it under a lock.
        directory: the spool.

    Raises:
        InvalidError: there is no such file, or no key in it.
    """

    def __init__(self, given: PrivateKey | str | Path | None, directory: Path) -> None:
        self._complaints = Complaints("the signing key cannot be read anew, so the old one signs on")
        self.path: Path | None = None
        if isinstance(given, PrivateKey):
            self._state: tuple[PrivateKey, tuple[int, ...]] = given, ()  # replaced as one: no lock, so no
            return  # trouble with a fork while another thread holds it
        self.path = Path(given) if given else directory / "issuer.pem"
        seen = _identity(self.path)
        key = load_private_key(self.path) if given else load_issuer_key(self.path, create=True)
        self._state = key, seen or _identity(self.path)

    def current(self) -> PrivateKey:
        """The key to sign with, read anew if its file is another one now; if that fails, the old one."""
        key, known = self._state
        if self.path is not None and (seen := _identity(self.path)) != known and seen:
            try:
                key = load_private_key(self.path)
            except TallystickError as error:
                self._complaints.say(str(error))
            else:
                self._state = key, seen
        return key

    def replace(self, key: PrivateKey, spool: Spool) -> None:
        """Sign with ``key`` from the next statement on: here, and wherever else the same file is read.

        Raises:
            InvalidError, UnavailableError: the file cannot be replaced; the old key signs on.
        """
        if self.path is not None:
            install_key(spool, self.path, key)
        self._state = key, () if self.path is None else _identity(self.path)


def install_key(spool: Spool, path: Path, key: PrivateKey) -> None:
    """Put ``key`` into ``path``, and its public half beside it, between two statements of ``spool``.

    Raises:
        UnavailableError: it cannot be written; the old key stays.
    """
    if path.is_symlink():
        raise InvalidError(
            "the key file is a link, which this would replace by a file",
            where=str(path),
            remedy="put the new key where the link leads, by the means that made the link",
            code="bad-key",
        )
    with spool.locked():
        replace_file(path, key.to_pem())
        with contextlib.suppress(OSError):
            replace_file(path.with_suffix(".pub"), key.public.to_pem())


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written; empty if there is none."""
    try:
        info = os.stat(path)
    except OSError:
        return ()
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
