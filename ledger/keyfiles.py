"""Key and secret files: private ones are written once, with mode 0600; what others may read is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ledger.core.errors import InvalidError, RefusedError
from ledger.core.keys import PrivateKey, PublicKey, parse_private_pem, parse_public_pem

__all__ = ["load_private_key", "load_public_key", "read_private", "save_private_key", "write_private"]

_MAX_KEY_BYTES = 64 * 1024


def write_private(path: Path, data: bytes) -> None:
    """Create ``path`` with mode 0600 and durable content. An existing file is never overwritten.

    Raises:
        RefusedError: the file exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise RefusedError(
            "file exists",
            where=str(path),
            remedy="keys are never overwritten; name another file",
            code="exists",
        ) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()  # half a key would block the next try
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_private(path: Path) -> bytes:
    """Read a private file.

    Raises:
        InvalidError: missing, unreadable, too large, or readable by others than its owner.
    """
    return _read(path, private=True)


def _read(path: Path, *, private: bool) -> bytes:
    """Read a small regular file. What is opened is what was checked; a pipe or device is not waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise InvalidError("key file is not a regular file", where=str(path), code="bad-key")
            if private and stat.S_IMODE(info.st_mode) & 0o077:
                raise InvalidError(
                    f"key file has mode {stat.S_IMODE(info.st_mode):04o}: others can read it",
                    where=str(path),
                    remedy="chmod 600 it, and consider the key exposed",
                    code="bad-key",
                )
            data = os.read(handle, _MAX_KEY_BYTES + 1)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise InvalidError(
            "no such key file",
            where=str(path),
            remedy="create it with `tallystick keys generate`",
            code="bad-key",
        ) from None
    except OSError as error:
        raise InvalidError(
            f"key file cannot be read: {error.strerror}",
            where=str(path),
            remedy="let this program's user own it",
            code="bad-key",
        ) from None
    if len(data) > _MAX_KEY_BYTES:
        raise InvalidError("key file is too large to be one", where=str(path), code="bad-key")
    return data


def save_private_key(path: Path, key: PrivateKey) -> None:
    """Write ``key`` as PKCS #8 PEM with mode 0600."""
    write_private(path, key.to_pem())


def load_private_key(path: Path) -> PrivateKey:
    """Read a private key that ``save_private_key`` wrote."""
    return parse_private_pem(read_private(path), where=str(path))


def load_public_key(path: Path) -> PublicKey:
    """Read a PEM public key."""
    return parse_public_pem(_read(path, private=False), where=str(path))
