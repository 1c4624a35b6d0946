"""Owns where a log's or witness's private keys come from: PEM files, or devices that never give them away.

A key file holds a PKCS #8 PEM, or one line with a PKCS #11 URI (RFC 7512) that names a key on a token: a
hardware security module, a smart card, SoftHSM. What signs is a ``Signer`` in either case; a key manager with
another interface needs nothing but the two members of that protocol.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.keys import PublicKey, Signer, public_from_ed25519
from ledger.keyfiles import load_private_key, read_private

__all__ = ["Pkcs11Uri", "load_signer", "open_pkcs11", "parse_pkcs11_uri"]

_SCHEME = "pkcs11:"
_MAX_URI = 4_096
_ED25519_POINT = b"\x04\x20"
"""DER: an octet string of 32 bytes."""


@dataclass(frozen=True)
class Pkcs11Uri:
    """Which key of which token, through which library (RFC 7512).

    Args:
        module_path: the library of the device's maker.
        token: the token's label.
        object: the key's label; or ``id``: its CKA_ID.
        pin_source: file that holds the PIN, mode 0600. No PIN is taken from a URI itself: those get logged.
    """

    module_path: Path
    token: str
    object: str | None = None
    id: bytes | None = None
    pin_source: Path | None = None


def load_signer(path: Path) -> Signer:
    """The key that a file holds or names.

    Raises:
        InvalidError: missing, readable by others, or neither a PEM nor a PKCS #11 URI.
        UnavailableError: the device is not there.
    """
    data = read_private(path)
    if not data.startswith(_SCHEME.encode()):
        return load_private_key(path)
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise _bad("has characters that no URI has", str(path)) from None
    return open_pkcs11(parse_pkcs11_uri(text, where=str(path)))


def parse_pkcs11_uri(text: str, *, where: str = "PKCS #11 URI") -> Pkcs11Uri:
    """Read a URI such as ``pkcs11:token=log;object=log-2026?module-path=/usr/lib/...so&pin-source=/etc/pin``.

    Raises:
        InvalidError: it is none, or names no key.
    """
    if len(text) > _MAX_URI or not text.startswith(_SCHEME) or not text.isprintable():
        raise _bad("is not a PKCS #11 URI", where)
    path, _, query = text.removeprefix(_SCHEME).partition("?")
    values: dict[str, str] = {}
    for part in (*path.split(";"), *query.split("&")):
        name, equals, value = part.partition("=")
        if part and (not equals or name in values):
            raise _bad(f"has a part {part[:40]!r} that is doubled or has no value", where)
        if part:
            values[name] = value
    known = {"token", "object", "id", "type", "module-path", "pin-source"}
    if values.keys() - known:
        raise _bad(
            f"has attributes that are not known: {', '.join(sorted(values.keys() - known))[:80]}", where
        )
    if values.get("type", "private") != "private":
        raise _bad("does not name a private key", where)
    if "module-path" not in values or "token" not in values or not {"object", "id"} & values.keys():
        raise _bad("needs module-path, token, and object or id", where)
    try:
        identity = bytes.fromhex(values["id"].replace("%", "")) if "id" in values else None
    except ValueError:
        raise _bad("has an id that is not in percent-encoded bytes", where) from None
    pin_source = unquote(values["pin-source"]) if "pin-source" in values else None
    if pin_source is not None and pin_source.startswith("file:"):
        pin_source = urlsplit(pin_source).path
    return Pkcs11Uri(
        Path(unquote(values["module-path"])),
        unquote(values["token"]),
        unquote(values["object"]) if "object" in values else None,
        identity,
        None if pin_source is None else Path(pin_source),
    )


def open_pkcs11(uri: Pkcs11Uri) -> Signer:
    """Open the token and find the key. It signs for as long as the process runs.

    Raises:
        InvalidError: there is no such token or key, the PIN is wrong, or the key is no Ed25519 key.
        UnavailableError: the library or the device does not work.
    """
    return _Pkcs11Signer(uri)


class _Pkcs11Signer:
    """An Ed25519 key on a token. The lock guards its session, opened anew after a failure or a fork."""

    def __init__(self, uri: Pkcs11Uri) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._session: Any = None
        self._key: Any = None
        self._process = 0
        with self._lock:
            self._open()
            self._public = self._read_public()

    @property
    def public(self) -> PublicKey:
        """The key that verifies what is signed."""
        return self._public

    def __repr__(self) -> str:
        return f"Pkcs11Signer(token={self._uri.token!r}, kid={self._public.kid.hex()})"

    def sign(self, message: bytes) -> bytes:
        """Have the token sign ``message``."""
        import pkcs11
        from pkcs11.mechanisms import Mechanism

        with self._lock:
            for attempt in (1, 2):
                try:
                    if self._key is None or self._process != os.getpid():
                        self._open()
                    return bytes(self._key.sign(message, mechanism=Mechanism.EDDSA))
                except pkcs11.PKCS11Error as error:
                    self._session = self._key = None  # the token may have been taken out and put back
                    if attempt == 2:
                        raise _unavailable(self._uri, error) from None
        raise AssertionError  # the second attempt returned or raised

    # --- under the lock ---

    def _open(self) -> None:
        try:
            import pkcs11
        except ImportError:
            raise UnavailableError(
                "the package python-pkcs11 is not installed",
                where="log key",
                remedy="install Tallystick with it: pip install 'tallystick[pkcs11]'",
                code="missing-package",
            ) from None
        try:
            token = pkcs11.lib(str(self._uri.module_path)).get_token(token_label=self._uri.token)
            try:
                session = token.open(user_pin=self._pin())
            except pkcs11.UserAlreadyLoggedIn:  # for another key of this token: a login is the process's
                session = token.open()
            try:
                found = session.get_key(
                    object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=self._uri.object, id=self._uri.id
                )
            except pkcs11.PKCS11Error:
                session.close()
                raise
        except (pkcs11.NoSuchKey, pkcs11.MultipleObjectsReturned, pkcs11.NoSuchToken) as error:
            raise _bad("names no key or several", self._where, type(error).__name__) from None
        except (pkcs11.PinIncorrect, pkcs11.PinLocked, pkcs11.PinInvalid, pkcs11.PinLenRange) as error:
            raise _bad("the PIN is refused", self._where, type(error).__name__) from None
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            raise _unavailable(self._uri, error) from None
        self._session, self._key, self._process = session, found, os.getpid()

    def _read_public(self) -> PublicKey:
        import pkcs11

        try:
            found = self._session.get_key(
                object_class=pkcs11.ObjectClass.PUBLIC_KEY, label=self._uri.object, id=self._uri.id
            )
            point = bytes(found[pkcs11.Attribute.EC_POINT])
        except pkcs11.PKCS11Error as error:
            raise _bad(
                "the token does not give the public half of the key", self._where, type(error).__name__
            ) from None
        if len(point) == 34 and point.startswith(_ED25519_POINT):
            point = point[2:]
        if found.key_type != pkcs11.KeyType.EC_EDWARDS or len(point) != 32:
            raise _bad("is no Ed25519 key, which is the one kind that logs use of tokens", self._where)
        return public_from_ed25519(point, where=self._where)

    def _pin(self) -> str | None:
        if self._uri.pin_source is None:
            return None
        return read_private(self._uri.pin_source).decode("utf-8", "strict").strip()

    @property
    def _where(self) -> str:
        return f"token {self._uri.token}, key {self._uri.object or (self._uri.id or b'').hex()}"


def _bad(what: str, where: str, detail: str = "") -> InvalidError:
    return InvalidError(
        what + (f" ({detail})" if detail else ""),
        where=where,
        remedy="write pkcs11:token=LABEL;object=LABEL?module-path=/path/to/lib.so&pin-source=/path/to/pin",
        code="bad-key",
    )


def _unavailable(uri: Pkcs11Uri, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"the token does not answer: {type(error).__name__} {error}".strip()[:200],
        where=f"token {uri.token}",
        remedy="see that the device is connected and its library works",
        code="key-device",
    )
