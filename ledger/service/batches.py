"""Batches: register a batch statement together with the records that it commits to."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from ledger.core import cose
from ledger.core.errors import InvalidError
from ledger.service.auth import require
from ledger.service.entries import RECEIPT_ANSWERS, REGISTRATION_CODES
from ledger.service.openapi import answers, binary_body
from ledger.service.registration import register
from ledger.service.routes import StrictRoute
from ledger.service.runtime import service_of

__all__ = ["BATCH", "router"]

BATCH = "application/vnd.tallystick.batch+cbor"

router = APIRouter(tags=["batches"], route_class=StrictRoute)

_EXAMPLE = """[<<18([<<{1: -8, ...}>>, {}, '{"count":2,"kind":"batch","root":"...",...}', h'5ae1...'])>>, \
'{"deployment":"5beb...","id":"019ab...",...}\\n{"deployment":"5beb...","id":"019ab...",...}\\n']"""


@router.post(
    "/batches",
    operation_id="register_batch",
    summary="Register a batch",
    response_class=Response,
    status_code=201,
    responses=answers(
        *REGISTRATION_CODES,
        "malformed-batch", "records-unexpected", "kind-not-allowed", "wrong-count", "wrong-root",
        "wrong-summary", "duplicate-record", "unknown-document", "inconsistent-record", "record-too-large",
        "total-too-large",
        ok=RECEIPT_ANSWERS,
        key=True,
    ),
    openapi_extra=binary_body(
        BATCH,
        _EXAMPLE,
        "Deterministic CBOR: an array of two byte strings, the batch statement and its records as canonical "
        "JSON lines, each ended by a newline. `Content-Encoding: zstd` is understood.",
    ),
    dependencies=[Depends(require("emit"))],
)  # fmt: skip
async def register_batch(request: Request) -> Response:
    """Check, log and acknowledge a batch of 1 to 4,096 records under one signature.

    Either the statement and all its records are logged, or nothing is. Sending the same batch again is safe:
    it gives the same receipt.
    """
    settings = service_of(request).settings
    return await register(
        request,
        media_type=BATCH,
        max_wire_bytes=settings.max_batch_wire_bytes,
        max_bytes=settings.max_batch_bytes,
        split=split_batch,
    )


def split_batch(body: bytes) -> tuple[bytes, bytes]:
    parts = cose.decode_cbor(body, where="body", max_bytes=len(body))
    if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, bytes) for part in parts)):
        raise InvalidError(
            "the body is not an array of two byte strings",
            where="body",
            remedy="send [statement, records]",
            code="malformed-batch",
        )
    return parts[0], parts[1]
