"""Registers one statement: read the body, check it, append it, answer with its receipt."""

from __future__ import annotations

import asyncio

from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ledger.service.auth import ApiKeyInfo, caller_of
from ledger.service.auth_tenants import looks_up
from ledger.service.bodies import content_encoding, read_body, require_media_type
from ledger.service.preparing import Job, Split
from ledger.service.runtime import Service, service_of
from ledger.store import Prepared

__all__ = ["COSE", "register"]

COSE = "application/cose"


async def register(
    request: Request, *, media_type: str, max_wire_bytes: int, max_bytes: int, split: Split
) -> Response:
    """Register the statement in the body of ``request``.

    Returns:
        201 with the receipt, or 200 with the same receipt for a statement that is logged already.

    Raises:
        TallystickError: it was refused; nothing was logged.
    """
    service = service_of(request)
    require_media_type(request, media_type)
    compressed = content_encoding(request) == "zstd"
    body = await read_body(
        request,
        max_bytes=max_wire_bytes,
        timeout_s=service.settings.body_timeout_s,
        budget=service.budget,
    )
    held = len(body)
    caller = caller_of(request.scope)
    try:
        if caller is not None:
            service.rates.admit(caller, requests=0, body_bytes=held)
        prepared = await service.preparer.prepare(Job(body, compressed, max_bytes, split))
        del body
        await _check_tenant(service, caller, prepared)
        # Shielded: should this request be cancelled, the sequencer's future must not be.
        registration = await asyncio.shield(asyncio.wrap_future(service.sequencer.submit(prepared)))
    finally:
        service.budget.give(held)
    return Response(
        registration.receipt,
        201 if registration.fresh else 200,
        {"Location": f"/entries/{registration.leaf_index}"},
        media_type=COSE,
    )


async def _check_tenant(service: Service, caller: ApiKeyInfo | None, prepared: Prepared) -> None:
    """Refuse to log for another tenant than the caller's and the issuer's.

    Raises:
        RefusedError: ``other-tenant``.
    """
    tenants, issuer = service.tenants, prepared.statement.issuer
    known = tenants.cached(issuer)
    bound = known[0] if known is not None else await run_in_threadpool(tenants.read, issuer)
    if looks_up(prepared):
        await run_in_threadpool(tenants.check, caller, prepared, bound)
    else:
        tenants.check(caller, prepared, bound)
