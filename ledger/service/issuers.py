"""Issuers: who may sign statements, with which keys. Each change is itself a statement in the log."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from ledger.core.cose import decode_cbor, encode_cbor
from ledger.core.errors import InvalidError, RefusedError
from ledger.core.keys import PublicKey, parse_cose_key, parse_public_pem
from ledger.core.statements import check_issuer_id
from ledger.service.auth import actor_of, require, tenant_of
from ledger.service.json_bodies import BODY_CODES, JSON, json_body, parse
from ledger.service.openapi import answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import Service, service_of
from ledger.store import queries
from ledger.store.tenancy import check_tenant, own_issuers

__all__ = ["is_known", "router"]

router = APIRouter(tags=["issuers"], route_class=StrictRoute)

_KID = "6f1c2e90a37b5d4480cf1d92ab34ef5671829304a5b6c7d8e9f00112233445ff"

IssuerName = Annotated[
    str,
    Path(
        max_length=255,
        description="Issuer name; its slashes may be escaped",
        examples=["gpu-7.example.com/vllm"],
    ),
]
Kid = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="Key thumbprint, hex", examples=[_KID])]


class NewIssuerKey(BaseModel):
    """A key to register: as PEM or as COSE_Key, one of them."""

    model_config = ConfigDict(extra="forbid")

    issuer: str = Field(min_length=1, max_length=255, examples=["gpu-7.example.com/vllm"])
    public_key_pem: str | None = Field(
        default=None, max_length=16_384, description="SubjectPublicKeyInfo PEM"
    )
    cose_key: str | None = Field(
        default=None, max_length=8192, pattern="^([0-9a-f]{2})+$", description="Deterministic COSE_Key, hex"
    )
    tenant: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Tenant whose records alone a new issuer may log; absent for those of any",
    )


class Revocation(BaseModel):
    """Why a key is revoked."""

    model_config = ConfigDict(extra="forbid")

    reason: str | None = Field(
        default=None, min_length=1, max_length=1024, examples=["host was decommissioned"]
    )


class KeyChange(BaseModel):
    """The change is logged: the leaf that says so."""

    issuer: str
    kid: str
    leaf_index: int


class KeyDescription(BaseModel):
    """An issuer's key."""

    kid: str = Field(description="COSE Key Thumbprint (RFC 9679), hex")
    algorithm: str = Field(examples=["ed25519"])
    cose_key: str = Field(description="Deterministic COSE_Key, hex")
    added_leaf: int
    revoked_leaf: int | None = None


class IssuerDescription(BaseModel):
    """An issuer and its keys."""

    issuer: str
    next_seq: int = Field(description="The `seq` that its next statement must have")
    last_leaf: str | None = Field(
        default=None,
        description="Leaf hash of its last statement, hex: the `prev` that its next one must have",
    )
    keys: list[KeyDescription]


class IssuerList(BaseModel):
    """All issuers, the log itself among them."""

    issuers: list[IssuerDescription]


_ISSUER = {
    "issuer": "gpu-7.example.com/vllm",
    "next_seq": 311,
    "last_leaf": "c3f0b12d4e5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
    "keys": [{"kid": _KID, "algorithm": "ed25519", "cose_key": "a5010102...", "added_leaf": 1}],
}
_CHANGE = {"issuer": "gpu-7.example.com/vllm", "kid": _KID, "leaf_index": 1043}


def _visible(connection: Connection, request: Request) -> list[queries.IssuerInfo]:
    """The issuers that the caller may see: a tenant's own, or all."""
    found, tenant = queries.issuers(connection), tenant_of(request)
    if tenant is None:
        return found
    own = own_issuers(connection, tenant)
    return [info for info in found if info.issuer in own]


def _describe(info: queries.IssuerInfo) -> IssuerDescription:
    keys = [
        KeyDescription(
            kid=key.kid.hex(),
            algorithm=key.public.name,
            cose_key=encode_cbor(key.public.to_cose_key()).hex(),
            added_leaf=key.added_leaf,
            revoked_leaf=key.revoked_leaf,
        )
        for key in info.keys
    ]
    return IssuerDescription(
        issuer=info.issuer,
        next_seq=info.next_seq,
        last_leaf=None if info.last_leaf is None else info.last_leaf.hex(),
        keys=keys,
    )


@router.get(
    "/issuers",
    operation_id="list_issuers",
    summary="List issuers",
    response_model_exclude_none=True,
    responses=answers(ok={200: examples(JSON, {"issuers": [_ISSUER]}, "All issuers, by name.")}, key=True),
    dependencies=[Depends(require("read"))],
)
def list_issuers(request: Request) -> IssuerList:
    """Who may sign statements of this log, with which keys, and who once could."""
    with service_of(request).store.read() as connection:
        return IssuerList(issuers=[_describe(info) for info in _visible(connection, request)])


@router.get(
    "/issuers/{issuer:path}/keys",
    operation_id="get_issuer_keys",
    summary="Get an issuer's keys",
    response_model_exclude_none=True,
    responses=answers("not-found", ok={200: examples(JSON, _ISSUER, "The issuer and its keys.")}, key=True),
    dependencies=[Depends(require("emit", "read"))],
)
def get_issuer_keys(issuer: IssuerName, request: Request) -> IssuerDescription:
    """One issuer: how far its chain goes, and its keys."""
    with service_of(request).store.read() as connection:
        for info in _visible(connection, request):
            if info.issuer == issuer:
                return _describe(info)
    raise InvalidError("there is no such issuer", where=issuer[:80], code="not-found")


@router.post(
    "/issuers",
    operation_id="add_issuer_key",
    summary="Register an issuer's key",
    status_code=201,
    responses=answers(
        *BODY_CODES,
        "log-frozen",
        "bad-key",
        "bad-issuer-name",
        "bad-tenant",
        "key-exists",
        ok={201: examples(JSON, _CHANGE, "Logged.")},
        key=True,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": NewIssuerKey.model_json_schema(),
                    "example": {
                        "issuer": "gpu-7.example.com/vllm",
                        "public_key_pem": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA...\n",
                    },
                }
            },
        }
    },
    dependencies=[Depends(require("admin"))],
)
async def add_issuer_key(request: Request) -> KeyChange:
    """The log signs and logs that the issuer signs with this key from now on. Older keys stay in force."""
    service = service_of(request)
    wanted = parse(NewIssuerKey, await json_body(request))
    key = _public_key(wanted)
    check_issuer_id(wanted.issuer)
    known = await run_in_threadpool(is_known, service, wanted.issuer)
    if wanted.tenant is not None:
        check_tenant(wanted.tenant)
    future = service.sequencer.add_key(
        wanted.issuer, key, rotate=known, tenant=wanted.tenant, by=actor_of(request)
    )
    registration = await asyncio.shield(asyncio.wrap_future(future))
    return KeyChange(issuer=wanted.issuer, kid=key.kid.hex(), leaf_index=registration.leaf_index)


@router.post(
    "/issuers/{issuer:path}/keys/{kid}/revoke",
    operation_id="revoke_issuer_key",
    summary="Revoke an issuer's key",
    responses=answers(
        *BODY_CODES,
        "log-frozen",
        "bad-key",
        "unknown-key",
        "kind-not-allowed",
        ok={200: examples(JSON, _CHANGE, "Logged.")},
        key=True,
    ),
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {
                JSON: {
                    "schema": Revocation.model_json_schema(),
                    "example": {"reason": "host was decommissioned"},
                }
            },
        }
    },
    dependencies=[Depends(require("admin"))],
)
async def revoke_issuer_key(issuer: IssuerName, kid: Kid, request: Request) -> KeyChange:
    """The log signs and logs that this key is refused from now on. What it signed before stays valid."""
    service = service_of(request)
    body = await json_body(request, optional=True)
    reason = parse(Revocation, body).reason if body else None
    if issuer == service.origin:
        raise RefusedError(
            "the log's own key cannot be revoked: receipts and checkpoints would lose their signer",
            where=issuer,
            code="kind-not-allowed",
        )
    key = await run_in_threadpool(_known_key, service, issuer, bytes.fromhex(kid))
    future = service.sequencer.revoke_key(issuer, key, reason=reason, by=actor_of(request))
    registration = await asyncio.shield(asyncio.wrap_future(future))
    return KeyChange(issuer=issuer, kid=kid, leaf_index=registration.leaf_index)


def _public_key(wanted: NewIssuerKey) -> PublicKey:
    if (wanted.public_key_pem is None) == (wanted.cose_key is None):
        raise InvalidError(
            "exactly one of public_key_pem and cose_key must be given", where="body", code="schema"
        )
    if wanted.public_key_pem is not None:
        return parse_public_pem(wanted.public_key_pem.encode(), where="public_key_pem")
    return parse_cose_key(
        decode_cbor(bytes.fromhex(wanted.cose_key or ""), where="cose_key"), where="cose_key"
    )


def is_known(service: Service, issuer: str) -> bool:
    """Whether the log has an issuer of this name. Blocks."""
    with service.store.read() as connection:
        return any(info.issuer == issuer for info in queries.issuers(connection))


def _known_key(service: Service, issuer: str, kid: bytes) -> PublicKey:
    with service.store.read() as connection:
        info = queries.issuer_key(connection, kid)
    if info is None or info.issuer != issuer:
        raise InvalidError(
            f"{issuer} has no key {kid.hex()}",
            where="kid",
            remedy="see the issuer's keys",
            code="unknown-key",
        )
    return info.public
