"""Registers one statement: read the body, check it, append it, answer with its receipt."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from ledger.service.bodies import content_encoding, read_body, require_media_type
from ledger.service.preparing import Job, Split
from ledger.service.runtime import service_of

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
    try:
        prepared = await service.preparer.prepare(Job(body, compressed, max_bytes, split))
        del body
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
