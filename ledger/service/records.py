"""Records: list them by filter, get one, prove one. Their bytes are given exactly as they were logged."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from ledger.core.errors import InvalidError
from ledger.service.auth import own_tenant, require, tenant_of
from ledger.service.openapi import DOCUMENT, answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import newest_note, service_of
from ledger.store import queries
from ledger.store.later import described, later_of

__all__ = ["DEFAULT_PAGE", "From", "To", "check_period", "router"]

router = APIRouter(tags=["records"], route_class=StrictRoute, dependencies=[Depends(require("read"))])

DEFAULT_PAGE = 100
_MAX_TIME_US = 2**53 - 1
_CURSOR_BYTES = 8

From = Annotated[
    int | None,
    Query(
        ge=0,
        le=_MAX_TIME_US,
        description="Started at or after: Unix microseconds",
        examples=[1763900000000000],
    ),
]
To = Annotated[
    int | None,
    Query(
        ge=0, le=_MAX_TIME_US, description="Started before: Unix microseconds", examples=[1763903600000000]
    ),
]
RecordId = Annotated[str, Path(max_length=64, examples=["019ab0c2-7d1e-7a55-9a3b-0f1e2d3c4b5a"])]

_RECORD = {
    "deployment": "5beb307c577f13693b892023815508222726dfff0e4fa1aeadd52311e979c05c",
    "ended_us": 1763900000900000,
    "energy": {"energy_uj": 1500000, "method": "modelled", "source": "rated power x busy time"},
    "finish_reason": "stop",
    "id": "019ab0c2-7d1e-7a55-9a3b-0f1e2d3c4b5a",
    "started_us": 1763900000000000,
    "tenant": "t-7f3a",
    "usage": {"input_tokens": 120, "output_tokens": 24},
}
_PLACED = {"leaf_index": 1042, "position": 17, "issuer": "gpu-7.example.com/vllm", "record": _RECORD}
_SHOWN = _PLACED | {
    "corrections": [
        {
            "leaf_index": 2210,
            "issuer": "gpu-7.example.com/vllm",
            "issued_us": 1763990000000000,
            "reason": "meter was miscalibrated",
            "figures": {"energy": {"energy_uj": 1200000, "method": "measured", "source": "nvml"}},
        }
    ],
    "corrected": {"energy": {"energy_uj": 1200000, "method": "measured", "source": "nvml"}},
    "evaluations": [
        {
            "leaf_index": 2300,
            "issuer": "eval.example.com/judge",
            "issued_us": 1763995000000000,
            "evaluator": "judge-7b 1.2",
            "about": "record",
            "metrics": {"accuracy": {"scale": 2, "value": 91}},
        }
    ],
}


class PlacedRecord(BaseModel):
    """A record and where it is: statement (leaf) and position in it."""

    leaf_index: int
    position: int
    issuer: str
    record: dict[str, Any] = Field(json_schema_extra={DOCUMENT: "Record"})


class RecordCorrection(BaseModel):
    """A correction that counts for the record: by its own issuer, of these very bytes."""

    leaf_index: int
    issuer: str
    issued_us: int
    reason: str
    figures: dict[str, Any] = Field(description="What it restates, by the record's own names")


class RecordEvaluation(BaseModel):
    """Quality metrics that somebody measured later, of the record, its batch or its deployment."""

    leaf_index: int
    issuer: str
    issued_us: int
    evaluator: str
    about: Literal["record", "batch", "deployment"]
    metrics: dict[str, dict[str, int]] = Field(description="Each is value / 10^scale")


class RecordShown(PlacedRecord):
    """A record as it was logged, and beside it what was said later."""

    corrections: list[RecordCorrection] | None = Field(default=None, description="Oldest first")
    corrected: dict[str, Any] | None = Field(
        default=None, description="The figures that stand now, of those that were restated"
    )
    evaluations: list[RecordEvaluation] | None = None
    later_is_whole: bool | None = Field(
        default=None, description="False where more was said than one answer looks through; an export has all"
    )


class RecordPage(BaseModel):
    """A page of records in log order."""

    records: list[PlacedRecord]
    next: str | None = Field(
        default=None, description="Pass as `cursor` for the next page; absent at the end"
    )


class RecordProof(BaseModel):
    """Everything that proves one record offline: record -> statement -> log."""

    record: str = Field(description="The record's canonical bytes, base64")
    leaf_index: int
    position: int
    path: list[str] = Field(description="Inclusion path of the record under the statement's `root`, hex")
    statement: str = Field(description="The statement, base64")
    receipt: str = Field(description="The statement's receipt, base64")
    checkpoint: str = Field(description="The newest checkpoint")


def check_period(from_us: int | None, to_us: int | None) -> None:
    """Refuse a period that ends before it begins.

    Raises:
        InvalidError: ``bad-parameter``.
    """
    if from_us is not None and to_us is not None and from_us > to_us:
        raise InvalidError(f"from_us {from_us} is after to_us {to_us}", where="query", code="bad-parameter")


@router.get(
    "/records",
    operation_id="list_records",
    summary="List records",
    response_model=RecordPage,
    responses=answers(
        "bad-cursor",
        ok={
            200: examples(
                "application/json", {"records": [_PLACED], "next": "AAAAAABBIBE"}, "A page, in log order."
            )
        },
        key=True,
    ),
)
def list_records(
    request: Request,
    from_us: From = None,
    to_us: To = None,
    model: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
    deployment: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None,
    tenant: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
    issuer: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    limit: Annotated[int, Query(ge=1, le=queries.MAX_PAGE)] = DEFAULT_PAGE,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Records that meet all conditions, in the order of the log.

    The order never changes and new records come last, so paging neither skips nor repeats any.
    """
    check_period(from_us, to_us)
    wanted = queries.RecordFilter(
        from_us=from_us,
        to_us=to_us,
        model=model,
        deployment=deployment,
        tenant=own_tenant(request, tenant),
        issuer=issuer,
    )
    after = None if cursor is None else decode_cursor(cursor)
    with service_of(request).store.read() as connection:
        found, place = queries.records(connection, wanted, after=after, limit=limit)
    page: dict[str, Any] = {"records": [_placed(each) for each in found]}
    if place is not None:
        page["next"] = encode_cursor(place)
    return Response(msgspec.json.encode(page), media_type="application/json")


@router.get(
    "/records/{record_id}",
    operation_id="get_record",
    summary="Get a record",
    response_model=RecordShown,
    responses=answers(
        "not-found",
        "bad-record-id",
        "erased",
        ok={200: examples("application/json", _SHOWN, "The record, where it is, and what was said later.")},
        key=True,
    ),
)
def get_record(record_id: RecordId, request: Request) -> Response:
    """One record by its id, as it was logged; corrections and evaluations stand beside it."""
    with service_of(request).store.read() as connection:
        tenant = tenant_of(request)
        found = queries.record_by_id(connection, record_id, tenant=tenant)
        later = described(later_of(connection, found, tenant=tenant))
    return Response(msgspec.json.encode(_placed(found) | later), media_type="application/json")


@router.get(
    "/records/{record_id}/proof",
    operation_id="prove_record",
    summary="Prove a record",
    responses=answers(
        "not-found",
        "bad-record-id",
        "erased",
        ok={
            200: examples(
                "application/json",
                {
                    "record": "eyJkZXBsb3ltZW50Ijoi...",
                    "leaf_index": 1042,
                    "position": 17,
                    "path": ["9f64a747e1b97f131fabb6b447296c9b6f0201e79fb3c5356e6c77e89b6a806a"],
                    "statement": "0oRYo6QBJw...",
                    "receipt": "0oRYnqQBJw...",
                    "checkpoint": "log.example.com/tallystick\n1043\nlZ0W5Jp...=\n\n— log.example.com/...",
                },
                "The proof.",
            )
        },
        key=True,
    ),
)
def prove_record(record_id: RecordId, request: Request) -> RecordProof:
    """A file that shows offline, with the log's and the issuer's keys alone, that the record was logged."""
    with service_of(request).store.read() as connection:
        proof = queries.record_proof(connection, record_id, tenant=tenant_of(request))
        _, checkpoint = newest_note(connection, service_of(request), proof.found.leaf_index)
    return RecordProof(
        record=base64.b64encode(proof.found.line).decode(),
        leaf_index=proof.found.leaf_index,
        position=proof.found.position,
        path=[each.hex() for each in proof.path],
        statement=base64.b64encode(proof.entry).decode(),
        receipt=base64.b64encode(proof.receipt).decode(),
        checkpoint=checkpoint,
    )


def _placed(found: queries.Found) -> dict[str, Any]:
    return {
        "leaf_index": found.leaf_index,
        "position": found.position,
        "issuer": found.issuer,
        "record": msgspec.Raw(found.line),
    }


def encode_cursor(place: int) -> str:
    """The opaque cursor for the records after ``place``."""
    return base64.urlsafe_b64encode(place.to_bytes(_CURSOR_BYTES, "big")).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> int:
    """The place that ``encode_cursor`` was given.

    Raises:
        InvalidError: ``bad-cursor``.
    """
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    place = int.from_bytes(data, "big")
    if len(data) != _CURSOR_BYTES or place >= 2**63 or encode_cursor(place) != cursor:
        raise InvalidError(
            "the cursor is not one that this service gave",
            where="cursor",
            remedy="pass back `next` unchanged",
            code="bad-cursor",
        )
    return place
