"""Entries: register a statement, and get its receipt, bytes, records and proofs back (SCRAPI).

``entry_id`` is the leaf index in decimal or the leaf hash in hex. Receipts are given again byte for byte.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from sqlalchemy import Connection

from ledger.core.errors import InvalidError
from ledger.core.statements import transparent_statement
from ledger.core.tlog_proof import TlogProof, format_tlog_proof
from ledger.service.auth import require, tenant_of
from ledger.service.openapi import answers, binary_body, examples
from ledger.service.registration import COSE, register
from ledger.service.routes import StrictRoute
from ledger.service.runtime import newest_note, service_of
from ledger.store import queries
from ledger.store.tenancy import check_entry

__all__ = ["REGISTRATION_CODES", "router"]

router = APIRouter(tags=["entries"], route_class=StrictRoute)

EntryId = Annotated[
    str,
    Path(
        max_length=64,
        description="Leaf index (decimal) or leaf hash (64 hex digits)",
        examples=["1042", "9f64a747e1b97f131fabb6b447296c9b6f0201e79fb3c5356e6c77e89b6a806a"],
    ),
]

REGISTRATION_CODES = (
    "unsupported-media-type", "unsupported-encoding", "bad-length", "body-too-large", "body-timeout",
    "disconnected", "bad-compression", "compressed-bomb", "overloaded", "stopping", "storage-failed",
    "malformed-cbor", "malformed-cose", "malformed-statement", "malformed-json", "not-canonical", "schema",
    "too-deep", "too-large", "statement-too-large", "bad-issuer-name", "bad-algorithm", "bad-signature",
    "unknown-issuer", "revoked-key", "seq-gap", "seq-reused", "wrong-prev", "time-in-future", "time-too-old",
    "log-frozen",
)  # fmt: skip
"""Problems that any registration can meet."""

_RECEIPT = "18([<<{1: -8, 4: h'6f1c...', 15: {1: 'log.example.com', 2: 'tallystick:...', 6: 1763900000}, \
395: 1}>>, {396: {-1: [<<[1043, 1042, [h'9f64...', h'2e7a...']]>>]}}, null, h'c0ff...'])"
_STATEMENT = '18([<<{1: -8, 3: \'application/vnd.tallystick.statement+json\', 4: h\'41d0...\', \
15: {1: \'gpu-7.example.com/vllm\', 2: \'tallystick:heartbeat:7\'}}>>, {}, \
\'{"dropped":0,"issued_us":1763900000000000,"kind":"heartbeat","prev":"9f64...","seq":7,\
"version":1}\', h\'5ae1...\'])'
RECEIPT_ANSWERS: dict[int, dict[str, Any]] = {
    201: examples(
        COSE,
        _RECEIPT,
        "Logged. The receipt, a COSE_Sign1 over the tree's root (RFC 9942).",
        headers={"Location": {"description": "The entry's address", "schema": {"type": "string"}}},
    ),
    200: examples(COSE, _RECEIPT, "Was logged before: the same receipt, byte for byte."),
}
_READ = [Depends(require("emit", "read"))]


def split_alone(body: bytes) -> tuple[bytes, None]:
    return body, None


@router.post(
    "/entries",
    operation_id="register_statement",
    summary="Register a statement",
    response_class=Response,
    status_code=201,
    responses=answers(
        *REGISTRATION_CODES, "kind-not-allowed", "records-missing", ok=RECEIPT_ANSWERS, key=True, concise=True
    ),
    openapi_extra=binary_body(COSE, _STATEMENT, "A signed statement of any kind but `batch` and `key`"),
    dependencies=[Depends(require("emit"))],
)
async def register_statement(request: Request) -> Response:
    """Check, log and acknowledge one statement. The receipt comes after the log is durable.

    Sending the same statement again is safe: it gives the same receipt. Batches go to `/batches`.
    """
    limit = service_of(request).settings.max_entry_bytes
    return await register(request, media_type=COSE, max_wire_bytes=limit, max_bytes=limit, split=split_alone)


@router.get(
    "/entries/{entry_id}",
    operation_id="get_receipt",
    summary="Get a receipt",
    response_class=Response,
    responses=answers(
        "not-found",
        "bad-entry-id",
        ok={200: examples(COSE, _RECEIPT, "The receipt, as it was issued.")},
        key=True,
        concise=True,
    ),
    dependencies=_READ,
)
def get_receipt(entry_id: EntryId, request: Request) -> Response:
    """The receipt that registration gave, byte for byte."""
    with service_of(request).store.read() as connection:
        index = _resolve(connection, entry_id, request)
        receipt = queries.receipt(connection, index)
    return _immutable(receipt, COSE, {"Location": f"/entries/{index}"})


@router.get(
    "/entries/{entry_id}/statement",
    operation_id="get_statement",
    summary="Get a statement",
    response_class=Response,
    responses=answers(
        "not-found",
        "bad-entry-id",
        ok={200: examples(COSE, _STATEMENT, "The leaf's bytes: the statement with no unprotected header.")},
        key=True,
        concise=True,
    ),
    dependencies=_READ,
)
def get_statement(entry_id: EntryId, request: Request) -> Response:
    """The statement, exactly as it was signed."""
    with service_of(request).store.read() as connection:
        statement = queries.statement(connection, _resolve(connection, entry_id, request))
    return _immutable(statement.entry, COSE)


@router.get(
    "/entries/{entry_id}/transparent",
    operation_id="get_transparent_statement",
    summary="Get a transparent statement",
    response_class=Response,
    responses=answers(
        "not-found",
        "bad-entry-id",
        ok={
            200: examples(
                COSE,
                "18([<<{...}>>, {394: [<<receipt>>]}, '{...}', h'5ae1...'])",
                "The statement with its receipt attached (RFC 9943).",
            )
        },
        key=True,
        concise=True,
    ),
    dependencies=_READ,
)
def get_transparent_statement(entry_id: EntryId, request: Request) -> Response:
    """One file that shows what was said, by whom, and that the log has it."""
    with service_of(request).store.read() as connection:
        index = _resolve(connection, entry_id, request)
        statement, receipt = queries.statement(connection, index), queries.receipt(connection, index)
    return _immutable(transparent_statement(statement, [receipt]), COSE)


@router.get(
    "/entries/{entry_id}/records",
    operation_id="get_entry_records",
    summary="Get a batch's records",
    response_class=Response,
    responses=answers(
        "not-found",
        "bad-entry-id",
        "no-records",
        "erased",
        ok={
            200: examples(
                "application/x-ndjson",
                '{"deployment":"5beb...","ended_us":1763900000900000,"id":"019ab...",...}\n',
                "The records' canonical bytes, each ended by a newline. The batch's `root` is over them.",
            )
        },
        key=True,
        concise=True,
    ),
    dependencies=[Depends(require("read"))],
)
def get_entry_records(entry_id: EntryId, request: Request) -> Response:
    """The very bytes that the statement commits to."""
    with service_of(request).store.read() as connection:
        index = _resolve(connection, entry_id, request)
        lines = queries.record_lines(connection, index, tenant=tenant_of(request))
        kind = queries.statement(connection, index).kind
    if kind != "batch":
        raise InvalidError(
            f"the entry is a {kind} statement, which has no records", where=entry_id, code="no-records"
        )
    if not lines:  # only a tenant's, whose own issuer logged them
        raise queries.not_found("there is no such entry", f"entry {entry_id}")
    body = b"".join(line + b"\n" for line in lines)
    return Response(body, headers={"Cache-Control": "private, no-cache"}, media_type="application/x-ndjson")


@router.get(
    "/entries/{entry_id}/proof",
    operation_id="get_entry_proof",
    summary="Get an offline proof",
    response_class=Response,
    responses=answers(
        "not-found",
        "bad-entry-id",
        ok={
            200: examples(
                "text/plain",
                "c2sp.org/tlog-proof@v1\nindex 1042\nn2SnR+...=\n\nlog.example.com\n1043\nlZ0...=\n\n"
                "— log.example.com K7x...\n",
                "Inclusion proof and the newest checkpoint (C2SP tlog-proof).",
            )
        },
        key=True,
        concise=True,
    ),
    dependencies=_READ,
)
def get_entry_proof(entry_id: EntryId, request: Request) -> Response:
    """A proof file against the newest checkpoint, to be checked offline with the log's verifier key.

    With witnesses, against the newest one that their quorum cosigned, once it covers the entry.
    """
    with service_of(request).store.read() as connection:
        index = _resolve(connection, entry_id, request)
        size, note = newest_note(connection, service_of(request), index)
        path = queries.inclusion(connection, index, size)
    proof = format_tlog_proof(TlogProof(index, tuple(path), note.encode()))
    return Response(proof, media_type="text/plain; charset=utf-8")


def _resolve(connection: Connection, entry_id: str, request: Request) -> int:
    """The leaf that ``entry_id`` names, if the caller may see it.

    Raises:
        InvalidError: see ``queries.resolve_entry``.
    """
    index = queries.resolve_entry(connection, entry_id)
    check_entry(connection, tenant_of(request), index, where=f"entry {entry_id}")
    return index


def _immutable(body: bytes, media_type: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that never changes. Not for shared caches: it was given to a key's holder."""
    caching = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(body, headers=caching | (headers or {}), media_type=media_type)
