"""Registers one statement: read the body, check it on a worker thread, append it, answer with its receipt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from ledger.service.bodies import content_encoding, decompress, read_body, require_media_type
from ledger.service.runtime import Service, service_of
from ledger.store import Prepared, prepare_statement

__all__ = ["COSE", "register"]

COSE = "application/cose"

Split: TypeAlias = Callable[[bytes], tuple[bytes, bytes | None]]
"""Cuts a body into the statement and, for a batch, its records."""


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
        prepared = await asyncio.get_running_loop().run_in_executor(
            service.prepare_pool, _prepare, service, body, compressed, max_bytes, split
        )
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


def _prepare(service: Service, body: bytes, compressed: bool, max_bytes: int, split: Split) -> Prepared:
    """All work that needs no transaction; runs on the preparing threads."""
    if compressed:
        body = decompress(body, max_bytes=max_bytes)
    entry, records = split(body)
    return prepare_statement(
        entry,
        records,
        key_of=service.issuer_key,
        now_us=time.time_ns() // 1000,
        limits=service.limits,
    )
