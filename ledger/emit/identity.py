"""Owns what an emitter is known by and hides with: its issuer name, signing key and secrets.

Secrets salt the commitments (see ``ledger.core.commitments``): one of the issuer, and one for each tenant, so
that ``Tenants.forget`` makes one tenant's commitments meaningless for ever. All files have mode 0600.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from ledger.core.commitments import tenant_key
from ledger.core.errors import InvalidError, RefusedError
from ledger.core.keys import PrivateKey, generate_key
from ledger.emit._disk import append_file, locked_file, replace_file
from ledger.emit.spool import Spool
from ledger.keyfiles import load_private_key, read_private, save_private_key, write_private

__all__ = [
    "NO_TENANT",
    "Tenants",
    "default_issuer",
    "default_spool",
    "load_issuer_key",
    "load_secret",
    "open_spool",
]

NO_TENANT = ""
"""Stands for records without a tenant; their secret is kept beside the others."""

_SECRET_BYTES = 32
_SLUG = re.compile("[A-Za-z0-9][A-Za-z0-9._:~-]{0,63}").fullmatch
_PSEUDONYM_TAG = b"tallystick pseudonym v1"


def default_spool() -> Path:
    """``tallystick/spool`` in the user's state directory (XDG Base Directory)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "tallystick" / "spool"


def default_issuer() -> str:
    """A name that no other spool has: the host's name and a random part.

    Two spools under one name would fork the chain, so a name is made for each spool and kept in it.
    """
    host = re.sub(r"[^A-Za-z0-9._~-]", "-", socket.gethostname())[:64].lstrip("._~-") or "host"
    return f"{host}/{os.urandom(6).hex()}"


def open_spool(directory: Path, issuer: str | None, limit_bytes: int) -> Spool:
    """Open the spool in ``directory``; a new one without a given issuer gets a name of its own."""
    if issuer is None and not (directory / "head").exists():
        try:
            return Spool(directory, default_issuer(), limit_bytes=limit_bytes)
        except RefusedError:  # another process just made the spool, under its own name
            pass
    return Spool(directory, issuer, limit_bytes=limit_bytes)


def load_issuer_key(path: Path, *, create: bool) -> PrivateKey:
    """Read the signing key; with ``create`` make an Ed25519 key if there is none, and its public half.

    Call under a lock when ``create`` is set.
    """
    if create and not path.exists():
        key = generate_key()
        replace_file(path.with_suffix(".pub"), key.public.to_pem())
        save_private_key(path, key)
    return load_private_key(path)


def load_secret(path: Path) -> bytes:
    """Read the issuer's secret, made at first use.

    Raises:
        InvalidError: others may read the file, or it is not a secret.
    """
    if not path.exists():
        with contextlib.suppress(RefusedError):  # another process was faster
            write_private(path, os.urandom(_SECRET_BYTES).hex().encode() + b"\n")
    try:
        secret = bytes.fromhex(read_private(path).decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) < _SECRET_BYTES:
        raise InvalidError(
            "is not a secret: at least 64 hex digits are needed",
            where=str(path),
            remedy="restore it; without it no commitment can be opened",
            code="bad-secret",
        )
    return secret


class Tenants:
    """The tenants' secrets, in a file that several processes may share.

    One line a tenant: the secret in hex and the tenant's name as JSON. Used by one thread at a time.

    Args:
        path: the file; made at first use.
        issuer_secret: joined with each tenant's secret into the key that salts derive from.
    """

    def __init__(self, path: Path, issuer_secret: bytes) -> None:
        self._path = path
        self._issuer_secret = issuer_secret
        self._secrets: dict[str, bytes] = {}
        self._keys: dict[str, bytes] = {}
        self._file: int | None = None
        self._read = 0  # how many bytes of it

    def keys(self, names: Iterable[str]) -> dict[str, bytes]:
        """The salt keys of ``names``. A new tenant's secret is on disk before this returns.

        Raises:
            OSError: the file cannot be written.
        """
        self._refresh()
        names = set(names)
        if not names <= self._secrets.keys():
            with self._lock():
                self._refresh()
                made = {name: os.urandom(_SECRET_BYTES) for name in names - self._secrets.keys()}
                # The first newline ends a line that a crash may have cut.
                append_file(self._path, b"\n" + b"".join(_line(n, made[n]) for n in sorted(made)))
                self._refresh()
        for name in names - self._keys.keys():
            self._keys[name] = tenant_key(self._issuer_secret, self._secrets[name])
        return {name: self._keys[name] for name in names}

    def forget(self, name: str) -> bool:
        """Drop a tenant's secret for ever; return whether there was one.

        Nobody, the issuer included, can then open that tenant's commitments. Later records of the same
        tenant get a new secret.
        """
        with self._lock():
            self._refresh()
            if name not in self._secrets:
                return False
            rest = [_line(each, secret) for each, secret in self._secrets.items() if each != name]
            with open(self._path, "r+b") as old:
                replace_file(self._path, b"".join(rest))
                with contextlib.suppress(OSError):  # as far as the file system lets us, leave nothing behind
                    old.write(b"\0" * os.fstat(old.fileno()).st_size)
                    old.flush()
                    os.fsync(old.fileno())
            self._refresh()
            return True

    def close(self) -> None:
        """Close the file. The next use opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def names(self) -> list[str]:
        """The tenants that have a secret."""
        self._refresh()
        return sorted(self._secrets)

    def pseudonym(self, name: str) -> str:
        """What stands for the tenant in records: the name itself if it has the form of a pseudonym.

        Anything else, such as an e-mail address, is replaced by a keyed hash that ``forget`` unlinks too.
        """
        if _SLUG(name) is not None:
            return name
        return f"p-{hmac.digest(self._secrets[name], _PSEUDONYM_TAG, 'sha256').hex()[:32]}"

    def _lock(self) -> contextlib.AbstractContextManager[bool]:
        return locked_file(self._path.with_name(self._path.name + ".lock"))

    def _refresh(self) -> None:
        """Read what was added since; read all of it again if the file was replaced."""
        if self._file is not None and not self._is_current(self._file):
            self.close()
        if self._file is None:
            self._secrets, self._keys, self._read = {}, {}, 0
            try:
                # Held open, so that its inode is not given to another file while we compare by it.
                self._file = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                return
        info = os.fstat(self._file)
        if info.st_mode & 0o077:
            raise InvalidError(
                f"tenant secrets have mode {info.st_mode & 0o777:04o}: others can read them",
                where=str(self._path),
                remedy="chmod 600 the file, and consider the secrets exposed",
                code="bad-secret",
            )
        if info.st_size > self._read:
            data = os.pread(self._file, info.st_size - self._read, self._read)
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.split(b"\n"):
                self._read_line(line)
            self._read += len(whole)

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def _read_line(self, line: bytes) -> None:
        """Take one line in. One that a crash cut was never used: its tenant got another one after it."""
        digits, space, name = line.partition(b" ")
        if not space or len(digits) != 2 * _SECRET_BYTES:
            return
        try:
            secret, tenant = bytes.fromhex(digits.decode("ascii")), json.loads(name)
        except ValueError:
            return
        if isinstance(tenant, str):
            self._secrets.setdefault(tenant, secret)


def _line(name: str, secret: bytes) -> bytes:
    return f"{secret.hex()} {json.dumps(name)}\n".encode()
