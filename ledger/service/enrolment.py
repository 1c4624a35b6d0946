"""Enrolment over HTTP: invitations by administrators, keys by those invited; and the trail of acts."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from ledger.core.cose import decode_cbor
from ledger.core.errors import InvalidError, RefusedError
from ledger.core.keys import PublicKey, parse_cose_key
from ledger.core.statements import check_issuer_id
from ledger.service.auth import actor_of, require
from ledger.service.auth_tokens import looks_like_jwt
from ledger.service.issuers import is_known
from ledger.service.json_bodies import BODY_CODES, JSON, json_body, parse
from ledger.service.openapi import answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import Service, service_of
from ledger.store import acts as trail
from ledger.store import enrolment

__all__ = ["router"]

router = APIRouter(tags=["enrolment"], route_class=StrictRoute)

_KID = "6f1c2e90a37b5d4480cf1d92ab34ef5671829304a5b6c7d8e9f00112233445ff"
_DAY_S = 86_400
_MAX_ACTS = 1_000
_INVITED_ONE = "invited"
"""Who acts, in the trail, where an invitation gave the right to."""


class NewInvitation(BaseModel):
    """Whom to invite."""

    model_config = ConfigDict(extra="forbid")

    issuer: str = Field(min_length=1, max_length=255, examples=["gpu-7.example.com/vllm"])
    tenant: str | None = Field(default=None, min_length=1, max_length=64, examples=["t-7f3a"])
    valid_s: int = Field(
        default=_DAY_S, ge=1, le=enrolment.LONGEST_S, description="Seconds until it runs out"
    )


class Invitation(BaseModel):
    """An invitation. The token is shown once."""

    id: str
    token: str
    issuer: str
    tenant: str | None = None
    expires_s: int


class NewEnrolment(BaseModel):
    """A key that its holder enrols."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(min_length=1, max_length=8192, description="An invitation's, or a workload's (JWT)")
    cose_key: str = Field(
        max_length=8192, pattern="^([0-9a-f]{2})+$", description="Deterministic COSE_Key, hex"
    )
    proof: str = Field(
        max_length=16_384,
        description="COSE_Sign1 by the key over the claim, detached, base64: see the page on formats",
    )


class Enrolled(BaseModel):
    """The key is registered: the leaf that says so."""

    issuer: str
    tenant: str | None = None
    kid: str
    leaf_index: int


class ActDescription(BaseModel):
    """What an administrator did."""

    leaf_index: int
    time_us: int
    action: str
    particulars: dict[str, Any] | None = Field(
        default=None,
        description="Who did it, to whom and how. Where they are gone or are not those that were signed "
        "(intact is false): absent, or what the statement itself says",
    )
    intact: bool


class ActList(BaseModel):
    """Acts in the order of the log."""

    acts: list[ActDescription]


_INVITED = {
    "id": "0123456789ab",
    "token": "tsi_0123456789ab_...",
    "issuer": "gpu-7.example.com/vllm",
    "expires_s": 1763900000,
}
_ENROLLED = {"issuer": "gpu-7.example.com/vllm", "kid": _KID, "leaf_index": 1043}
_ACT = {
    "leaf_index": 1044,
    "time_us": 1763900000000000,
    "action": "api-key.create",
    "particulars": {"by": "operator", "key": "0123456789ab", "scopes": "read", "tenant": "t-7f3a"},
    "intact": True,
}


def _body(model: Any, example: dict[str, Any]) -> dict[str, Any]:
    content = {JSON: {"schema": model.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/invitations",
    operation_id="invite_issuer",
    summary="Invite an issuer",
    status_code=201,
    response_model_exclude_none=True,
    responses=answers(
        *BODY_CODES,
        "log-frozen",
        "bad-issuer-name",
        "bad-tenant",
        ok={201: examples(JSON, _INVITED, "The invitation, logged.")},
        key=True,
    ),
    openapi_extra=_body(NewInvitation, {"issuer": "gpu-7.example.com/vllm", "tenant": "t-7f3a"}),
    dependencies=[Depends(require("admin"))],
)
async def invite_issuer(request: Request) -> Invitation:
    """A one-time token with which somebody else registers one key of this issuer, until it runs out."""
    service = service_of(request)
    wanted = parse(NewInvitation, await json_body(request))
    _refuse_own(service, wanted.issuer)
    token, info, statement = enrolment.new_invite(
        wanted.issuer, tenant=wanted.tenant, valid_s=wanted.valid_s, by=actor_of(request)
    )
    await asyncio.shield(asyncio.wrap_future(service.sequencer.log_own(statement)))
    return Invitation(
        id=info.id, token=token, issuer=info.issuer, tenant=info.tenant, expires_s=info.expires_s
    )


@router.post(
    "/enrolments",
    operation_id="enrol_key",
    summary="Enrol a key",
    status_code=201,
    response_model_exclude_none=True,
    responses=answers(
        *BODY_CODES,
        "log-frozen",
        "bad-key",
        "bad-algorithm",
        "bad-issuer-name",
        "malformed-cbor",
        "key-exists",
        "wrong-invite",
        "bad-proof",
        "other-tenant",
        ok={201: examples(JSON, _ENROLLED, "Logged.")},
    ),
    openapi_extra=_body(
        NewEnrolment, {"token": "tsi_0123456789ab_...", "cose_key": "a5010102...", "proof": "0oRYJ6IBJw..."}
    ),
)
async def enrol_key(request: Request) -> Enrolled:
    """Whoever holds an invitation, or a workload's token, registers a key of its own.

    It proves by a signature that it holds the private half. An invitation or token is good for one key.
    """
    service = service_of(request)
    wanted = parse(NewEnrolment, await json_body(request))
    key = parse_cose_key(decode_cbor(bytes.fromhex(wanted.cose_key), where="cose_key"), where="cose_key")
    right = await run_in_threadpool(_judge, service, wanted, key)
    known = await run_in_threadpool(is_known, service, right.issuer)
    future = service.sequencer.add_key(
        right.issuer,
        key,
        rotate=known,
        tenant=right.tenant,
        invite=right.invite,
        deed=right.use,
        by=right.by,
    )
    registration = await asyncio.shield(asyncio.wrap_future(future))
    return Enrolled(
        issuer=right.issuer, tenant=right.tenant, kid=key.kid.hex(), leaf_index=registration.leaf_index
    )


@router.get(
    "/acts",
    operation_id="list_acts",
    summary="List administrative acts",
    response_model_exclude_none=True,
    responses=answers(ok={200: examples(JSON, {"acts": [_ACT]}, "Acts, in log order.")}, key=True),
    dependencies=[Depends(require("admin"))],
)
def list_acts(
    request: Request,
    after: Annotated[int, Query(ge=-1, le=2**53 - 1, description="Leaf after which to begin")] = -1,
    limit: Annotated[int, Query(ge=1, le=_MAX_ACTS)] = 100,
) -> ActList:
    """What administrators did: keys, invitations, policies, holds, erasures; each a statement in the log."""
    with service_of(request).store.read() as connection:
        found = trail.acts(connection, after=after, limit=limit)
    return ActList(
        acts=[
            ActDescription(
                leaf_index=act.leaf_index,
                time_us=act.time_us,
                action=act.action,
                particulars=None if act.particulars is None else dict(act.particulars),
                intact=act.intact,
            )
            for act in found
        ]
    )


@dataclass(frozen=True)
class _Right:
    """What a token lets its holder enrol: ``invite`` is its id, and ``use`` uses it up."""

    issuer: str
    tenant: str | None
    invite: str
    by: str
    use: Callable[[Connection], None]


def _judge(service: Service, wanted: NewEnrolment, key: PublicKey) -> _Right:
    """By which right a key is to be enrolled.

    Raises:
        RefusedError: ``wrong-invite`` or ``bad-proof``.
    """
    if looks_like_jwt(wanted.token):
        try:
            grant = service.tokens.grant(wanted.token)
        except RefusedError:
            raise enrolment.wrong_invite() from None
        if grant.enrol is None:
            raise enrolment.wrong_invite()
        issuer, tenant = grant.enrol, grant.caller.tenant
        use = enrolment.use_token(wanted.token, issuer, tenant, grant.expires_s, key)
        right = _Right(issuer, tenant, enrolment.token_id(wanted.token), grant.caller.id, use)
    else:
        with service.store.read() as connection:
            info = enrolment.find_invite(connection, wanted.token)
        right = _Right(info.issuer, info.tenant, info.id, _INVITED_ONE, enrolment.use_invite(info, key))
    _refuse_own(service, right.issuer)
    try:
        proof = base64.b64decode(wanted.proof, validate=True)
    except (binascii.Error, ValueError):
        proof = b""
    enrolment.check_proof(proof, service.origin, wanted.token, right.issuer, key)
    return right


def _refuse_own(service: Service, issuer: str) -> None:
    check_issuer_id(issuer)
    if issuer == service.origin:
        raise InvalidError("this name is the log's own", where=issuer, code="bad-issuer-name")
