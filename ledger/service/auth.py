"""API keys: making, listing and revoking them, and checking the one that a request carries.

A token is ``tsk_<id>_<secret>`` with a secret of 256 random bits; the store has its SHA-256 only. Scopes:
``emit`` (register statements), ``read`` (records and roll-ups), ``admin`` (issuers; implies the others). A
key with a tenant acts for that tenant alone. What is no API key may be a workload's token: ``auth_tokens``.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Connection, insert, select, update
from starlette.requests import Request

from ledger.core.errors import InvalidError, RefusedError
from ledger.service.auth_caller import SCOPES, ApiKeyInfo
from ledger.service.auth_tokens import Tokens, looks_like_jwt
from ledger.store import Store
from ledger.store.acts import OPERATOR
from ledger.store.tables import ApiKey
from ledger.store.tenancy import check_tenant, other_tenant

__all__ = [
    "SCOPES",
    "ApiKeyInfo",
    "ApiKeys",
    "NewApiKey",
    "actor_of",
    "caller_of",
    "create_api_key",
    "list_api_keys",
    "new_api_key",
    "own_tenant",
    "refuse_tenants",
    "require",
    "require_unless_public",
    "revoke",
    "revoke_api_key",
    "tenant_of",
]

_TOKEN = re.compile(r"tsk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}").fullmatch
_ID_BYTES = 6
_SECRET_BYTES = 32
_MAX_LABEL = 200
_MAX_CACHED = 4096
_NOBODY = bytes(32)
_log = logging.getLogger(__name__)


def _rows() -> Any:
    return ApiKey.__table__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class NewApiKey:
    """A key that is made, but not yet in the store. ``token`` is not kept: who loses it needs a new key."""

    token: str
    values: dict[str, Any]

    def insert(self, connection: Connection) -> None:
        """Put it in force."""
        connection.execute(insert(_rows()).values(**self.values, check_sha256=check_sum(**self.values)))


def create_api_key(store: Store, label: str, scopes: Iterable[str], *, tenant: str | None = None) -> str:
    """Make an API key, past the log's trail of administrative acts: for a log that has none yet.

    Returns:
        The token. It is not kept: whoever loses it needs a new one.

    Raises:
        InvalidError: see ``new_api_key``.
    """
    made = new_api_key(label, scopes, tenant=tenant)
    with store.write() as connection:
        made.insert(connection)
    return made.token


def new_api_key(label: str, scopes: Iterable[str], *, tenant: str | None = None) -> NewApiKey:
    """Make an API key; nothing is stored.

    Raises:
        InvalidError: no scope, an unknown one, an unusable label or tenant, or a tenant's administrator.
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
    if tenant is not None:
        check_tenant(tenant)
        if "admin" in chosen:
            raise InvalidError(
                "the scope admin is for the whole log, not for one tenant",
                where="scopes",
                remedy="give a tenant's key the scopes emit and read",
                code="bad-scope",
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
        "tenant": tenant,
    }
    return NewApiKey(token, values)


def revoke_api_key(store: Store, key_id: str) -> None:
    """Revoke an API key by its id (the part of the token between the underscores).

    Raises:
        InvalidError: there is no such key.
    """
    with store.write() as connection:
        revoke(connection, key_id)


def revoke(connection: Connection, key_id: str) -> None:
    """Revoke an API key within a transaction. Raises as ``revoke_api_key`` does."""
    rows = _rows()
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


_CHECKED = ("id", "token_sha256", "scopes", "label", "created_s", "revoked_s", "tenant")


def check_sum(
    *,
    id: str,
    token_sha256: bytes,
    scopes: str,
    label: str,
    created_s: int,
    revoked_s: int | None,
    tenant: str | None = None,
) -> bytes:
    """``check_sha256`` of a row: SHA-256 over the other columns, each on a line, in the table's order.

    The token's hash is in hex; ``revoked_s`` of a key in force is an empty line; a key of no tenant has no
    line for it. A row that was edited past this module shows, to the service (which refuses the key) and to
    the auditor.
    """
    lines = [
        id, token_sha256.hex(), scopes, label, str(created_s), "" if revoked_s is None else str(revoked_s)
    ]  # fmt: skip
    lines += [] if tenant is None else [tenant]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).digest()


def _info(row: Any) -> ApiKeyInfo:
    return ApiKeyInfo(row.id, tuple(row.scopes.split()), row.label, row.created_s, row.revoked_s, row.tenant)


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
        service = request.app.state.service
        token = credentials.credentials
        keys: ApiKeys | Tokens = service.tokens if looks_like_jwt(token) else service.api_keys
        info = keys.cached(token)
        if info is None:
            info = await run_in_threadpool(keys.check, token)
        request.scope[_CALLER] = info
        service.rates.admit(info)
        if not any(info.allows(scope) for scope in scopes):
            raise RefusedError(
                f"the API key lacks the scope {' or '.join(scopes)}",
                where="Authorization",
                remedy="use a key that has it",
                code="missing-scope",
            )
        return info

    return check_key


async def require_unless_public(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> None:
    """A dependency for what everybody may read, unless the operator closed the log (``public_log``)."""
    if not request.app.state.service.settings.public_log:
        await require("read")(request, credentials)
        refuse_tenants(request)


_CALLER = "tallystick.caller"


def caller_of(scope: Mapping[str, Any]) -> ApiKeyInfo | None:
    """Who makes the request of this ASGI scope; None before ``require`` let it pass, or for nobody."""
    found = scope.get(_CALLER)
    return found if isinstance(found, ApiKeyInfo) else None


def actor_of(request: Request) -> str:
    """How the trail of acts names the caller: the id of its API key, or the workload's."""
    caller = caller_of(request.scope)
    return OPERATOR if caller is None else caller.id


def tenant_of(request: Request) -> str | None:
    """The tenant that the caller is confined to; None for a caller who may see all."""
    caller = caller_of(request.scope)
    return None if caller is None else caller.tenant


def own_tenant(request: Request, asked: str | None) -> str | None:
    """The tenant that a query is about: the caller's own, where it has one.

    Raises:
        RefusedError: ``other-tenant``: it asks for another's, whether or not there is such a tenant.
    """
    own = tenant_of(request)
    if own is not None and asked not in (None, own):
        raise other_tenant("tenant")
    return asked if own is None else own


def refuse_tenants(request: Request) -> None:
    """A dependency that refuses callers who act for one tenant.

    Raises:
        RefusedError: ``other-tenant``.
    """
    if tenant_of(request) is not None:
        raise other_tenant("Authorization")
