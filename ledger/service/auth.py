"""API keys: making, listing and revoking them, and checking the one that a request carries.

A token is ``tsk_<id>_<secret>`` with a secret of 256 random bits; the store has its SHA-256 only. Scopes:
``emit`` (register statements), ``read`` (records and roll-ups), ``admin`` (issuers; implies the others).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import insert, select, update
from starlette.requests import Request

from ledger.core.errors import InvalidError, RefusedError
from ledger.store import Store
from ledger.store.tables import ApiKey

__all__ = [
    "SCOPES",
    "ApiKeyInfo",
    "ApiKeys",
    "create_api_key",
    "list_api_keys",
    "require",
    "revoke_api_key",
]

SCOPES = ("emit", "read", "admin")
"""``admin`` implies the others."""

_TOKEN = re.compile(r"tsk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}").fullmatch
_ID_BYTES = 6
_SECRET_BYTES = 32
_MAX_LABEL = 200
_MAX_CACHED = 4096
_NOBODY = bytes(32)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ApiKeyInfo:
    """An API key as an administrator sees it: never its secret."""

    id: str
    scopes: tuple[str, ...]
    label: str
    created_s: int
    revoked_s: int | None

    def allows(self, scope: str) -> bool:
        """Whether a request that needs ``scope`` may be made with this key."""
        return scope in self.scopes or "admin" in self.scopes


def _rows() -> Any:
    return ApiKey.__table__  # type: ignore[attr-defined]


def create_api_key(store: Store, label: str, scopes: Iterable[str]) -> str:
    """Make an API key.

    Returns:
        The token. It is not kept: whoever loses it needs a new one.

    Raises:
        InvalidError: no scope, an unknown one, or an unusable label.
    """
    chosen = tuple(scope for scope in SCOPES if scope in set(scopes))
    if not chosen or set(scopes) - set(SCOPES):
        raise InvalidError(
            f"scopes {', '.join(sorted(set(scopes))) or 'missing'}",
            where="scopes",
            remedy=f"use one or more of {', '.join(SCOPES)}",
            code="bad-scope",
        )
    if not 0 < len(label) <= _MAX_LABEL or not label.isprintable():
        raise InvalidError(
            "the label is empty, too long or not printable", where="label", code="bad-parameter"
        )
    key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    token = f"tsk_{key_id}_{secret}"
    values: dict[str, Any] = {
        "id": key_id,
        "token_sha256": hashlib.sha256(token.encode()).digest(),
        "scopes": " ".join(chosen),
        "label": label,
        "created_s": int(time.time()),
        "revoked_s": None,
    }
    with store.write() as connection:
        connection.execute(insert(_rows()).values(**values, check_sha256=check_sum(**values)))
    return token


def revoke_api_key(store: Store, key_id: str) -> None:
    """Revoke an API key by its id (the part of the token between the underscores).

    Raises:
        InvalidError: there is no such key.
    """
    rows = _rows()
    with store.write() as connection:
        row = connection.execute(select(rows).where(rows.c.id == key_id)).one_or_none()
        if row is None:
            raise InvalidError("there is no such API key", where=key_id[:40], code="not-found")
        if row.revoked_s is None:
            values = {name: row._mapping[name] for name in _CHECKED} | {"revoked_s": int(time.time())}
            connection.execute(
                update(rows)
                .where(rows.c.id == key_id)
                .values(revoked_s=values["revoked_s"], check_sha256=check_sum(**values))
            )


def list_api_keys(store: Store) -> list[ApiKeyInfo]:
    """All API keys, oldest first."""
    rows = _rows()
    with store.read() as connection:
        found = connection.execute(select(rows).order_by(rows.c.created_s, rows.c.id)).all()
    return [_info(row) for row in found]


_CHECKED = ("id", "token_sha256", "scopes", "label", "created_s", "revoked_s")


def check_sum(
    *, id: str, token_sha256: bytes, scopes: str, label: str, created_s: int, revoked_s: int | None
) -> bytes:
    """``check_sha256`` of a row: SHA-256 over the other columns, each on a line, in the table's order.

    The token's hash is in hex; ``revoked_s`` of a key in force is an empty line. A row that was edited past
    this module shows, to the service (which refuses the key) and to the auditor.
    """
    lines = (
        id, token_sha256.hex(), scopes, label, str(created_s), "" if revoked_s is None else str(revoked_s)
    )  # fmt: skip
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).digest()


def _info(row: Any) -> ApiKeyInfo:
    return ApiKeyInfo(row.id, tuple(row.scopes.split()), row.label, row.created_s, row.revoked_s)


class ApiKeys:
    """Checks tokens against the store and remembers good ones for a short time.

    ``_cache`` maps a token's SHA-256 to its key and when to forget it; ``_lock`` guards it.

    Args:
        store: where the keys are.
        ttl_s: how long a key that was checked is taken for good.
    """

    def __init__(self, store: Store, *, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._cache: dict[bytes, tuple[ApiKeyInfo, float]] = {}

    def cached(self, token: str) -> ApiKeyInfo | None:
        """The key of ``token`` if it was checked a short time ago."""
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            found = self._cache.get(digest)
            if found is not None and found[1] > time.monotonic():
                return found[0]
            self._cache.pop(digest, None)
        return None

    def check(self, token: str) -> ApiKeyInfo:
        """The key of ``token``, from the store. Blocks.

        Raises:
            RefusedError: malformed, unknown, revoked or damaged; the answer does not tell which.
        """
        match = _TOKEN(token)
        digest = hashlib.sha256(token.encode()).digest()
        row = None
        if match is not None:
            rows = _rows()
            with self._store.read() as connection:
                row = connection.execute(select(rows).where(rows.c.id == match[1])).one_or_none()
        # Compared in constant time, also where there is no such key.
        same = hmac.compare_digest(digest, bytes(row.token_sha256) if row is not None else _NOBODY)
        if row is None or not same or row.revoked_s is not None:
            raise _wrong_key()
        if bytes(row.check_sha256) != check_sum(**{name: row._mapping[name] for name in _CHECKED}):
            _log.error("API key %s: its row was edited; the key is refused", row.id)
            raise _wrong_key()
        info = _info(row)
        if self._ttl_s:
            with self._lock:
                if len(self._cache) >= _MAX_CACHED:
                    self._cache.clear()
                self._cache[digest] = (info, time.monotonic() + self._ttl_s)
        return info


def _wrong_key() -> RefusedError:
    return RefusedError(
        "the API key is malformed, unknown or revoked",
        where="Authorization",
        remedy="ask an administrator of this log for a key",
        code="wrong-key",
    )


_bearer = HTTPBearer(scheme_name="ApiKey", description="An API key: `tsk_<id>_<secret>`", auto_error=False)


def require(*scopes: str) -> Callable[..., Coroutine[Any, Any, ApiKeyInfo]]:
    """A dependency that lets a request pass whose API key has one of ``scopes``."""

    async def check_key(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
    ) -> ApiKeyInfo:
        if credentials is None:
            raise RefusedError(
                "this endpoint needs an API key",
                where="Authorization",
                remedy="send Authorization: Bearer <API key>",
                code="missing-key",
            )
        keys: ApiKeys = request.app.state.service.api_keys
        token = credentials.credentials
        info = keys.cached(token)
        if info is None:
            info = await run_in_threadpool(keys.check, token)
        if not any(info.allows(scope) for scope in scopes):
            raise RefusedError(
                f"the API key lacks the scope {' or '.join(scopes)}",
                where="Authorization",
                remedy="use a key that has it",
                code="missing-scope",
            )
        return info

    return check_key
