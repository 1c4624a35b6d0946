"""Queries: groups, exact totals and percentiles over a bounded period, from roll-ups or from records."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from ledger.core.errors import InvalidError
from ledger.service.auth import own_tenant, require, tenant_of
from ledger.service.json_bodies import BODY_CODES, JSON, STORABLE, json_body, parse
from ledger.service.openapi import answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import service_of
from ledger.store.summaries import DIMENSIONS, SummaryQuestion, summarise

__all__ = ["router"]

router = APIRouter(tags=["query"], route_class=StrictRoute, dependencies=[Depends(require("read"))])

_MAX_TIME_US = 2**53 - 1
_MAX_ROWS = 10_000
_DEFAULT_ROWS = 1_000
_MAX_VALUES = 100
_MAX_TEXT = 256

Dimension = Literal[
    "hour", "day", "month", "tenant", "deployment", "model", "version", "engine", "engine_version",
    "quantization", "accelerator", "provider", "region", "site", "issuer", "finish_reason", "method",
    "currency",
]  # fmt: skip
_Text = Annotated[str, Field(max_length=_MAX_TEXT, pattern=STORABLE)]
_Time = Annotated[int, Field(ge=0, le=_MAX_TIME_US, strict=True)]


class RecordQuery(BaseModel):
    """What is asked of the records that started in a period."""

    model_config = ConfigDict(extra="forbid")

    from_us: _Time = Field(description="Started at or after: Unix microseconds", examples=[1763900000000000])
    to_us: _Time = Field(description="Started before; at most 400 days later", examples=[1766490000000000])
    by: list[Dimension] = Field(
        default=[], max_length=6, description="Group by; without it, one row sums all"
    )
    where: dict[Dimension, list[_Text | None]] = Field(
        default={},
        max_length=len(DIMENSIONS),
        description="Values by dimension, of which a record must have one; null is absence",
    )
    percentiles: bool = Field(default=False, description="Add p50, p90, p95 and p99; reads records")
    limit: int = Field(default=_DEFAULT_ROWS, ge=1, le=_MAX_ROWS, strict=True, description="Rows at most")


class QueryAnswer(BaseModel):
    """Rows, ordered by their keys; a dimension that a record lacks is null, an unknown figure absent.

    ``cost_nano`` is by currency. Figures are as first logged.
    """

    rows: list[dict[str, Any]]
    source: Literal["rollups", "records"] = Field(description="What the rows were made of")
    truncated: bool = Field(description="Whether there are more rows than the limit")
    figures: Literal["as logged"] = Field(description="Corrections are views of an export")


_ROW = {
    "model": "SmolLM2-135M-Instruct",
    "records": 4096,
    "input_tokens": 592896,
    "output_tokens": 110592,
    "measured_records": 4096,
    "modelled_records": 0,
    "estimated_records": 0,
    "energy_uj": 6144000000,
    "energy_low_uj": 6144000000,
    "energy_high_uj": 6144000000,
    "energy_uj_per_1k_tokens": 8733624,
    "energy_uj_per_request": 1500000,
}
_ANSWER = {"rows": [_ROW], "source": "rollups", "truncated": False, "figures": "as logged"}
_OK = {200: examples(JSON, _ANSWER, "One row for each group.")}
_EXAMPLE = {
    "from_us": 1763900000000000,
    "to_us": 1766490000000000,
    "by": ["day", "model"],
    "where": {"engine": ["vllm"], "finish_reason": ["stop", "length"]},
    "percentiles": True,
}


@router.get(
    "/query",
    operation_id="query_records",
    summary="Query records",
    response_model=QueryAnswer,
    responses=answers("other-tenant", "query-too-large", ok=_OK, key=True),
)
def query_records(
    request: Request,
    from_us: Annotated[
        int, Query(ge=0, le=_MAX_TIME_US, description="Unix microseconds", examples=[1763900000000000])
    ],
    to_us: Annotated[
        int, Query(ge=0, le=_MAX_TIME_US, description="At most 400 days later", examples=[1766490000000000])
    ],
    by: Annotated[list[Dimension], Query(max_length=6, description="Group by; may be repeated")] = [],  # noqa: B006 - FastAPI copies it
    where: Annotated[
        list[Annotated[str, Field(max_length=_MAX_TEXT + 32)]],
        Query(
            max_length=_MAX_VALUES,
            description="NAME=VALUE; repeat a name for more values. NAME= asks for absence",
            examples=[["model=Qwen3-32B"]],
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
    percentiles: bool = False,
    limit: Annotated[int, Query(ge=1, le=_MAX_ROWS)] = _DEFAULT_ROWS,
) -> Response:
    """Totals, intensities and percentiles, grouped by any dimension of the records.

    Whole hours and dimensions of time, tenant and deployment come from roll-ups, at little cost; percentiles,
    other times and dimensions read records, at most 100,000 in the batches of the period.
    """
    chosen: dict[str, list[str | None]] = {}
    for each in where:
        name, equals, value = each.partition("=")
        if not equals:
            raise InvalidError(f"{each[:80]!r} is not NAME=VALUE", where="where", code="bad-parameter")
        chosen.setdefault(name, []).append(value or None)
    return _answered(request, SummaryQuestion(from_us, to_us, by, chosen, percentiles, limit))


@router.post(
    "/query",
    operation_id="query_records_by_body",
    summary="Query records, asked in a body",
    response_model=QueryAnswer,
    responses=answers(*BODY_CODES, "other-tenant", "query-too-large", ok=_OK, key=True),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": RecordQuery.model_json_schema(), "example": _EXAMPLE}},
        }
    },
)
async def query_records_by_body(request: Request) -> Response:
    """The same as `GET /query`, for questions that are too long for an address. Changes nothing."""
    asked = parse(RecordQuery, await json_body(request))
    for values in asked.where.values():
        if not 0 < len(values) <= _MAX_VALUES:
            raise InvalidError(
                f"a dimension has no value, or more than {_MAX_VALUES}", where="where", code="schema"
            )
    where: dict[str, list[str | None]] = {
        name: [value or None for value in values] for name, values in asked.where.items()
    }
    question = SummaryQuestion(asked.from_us, asked.to_us, asked.by, where, asked.percentiles, asked.limit)
    return await run_in_threadpool(_answered, request, question)


def _answered(request: Request, question: SummaryQuestion) -> Response:
    for tenant in question.where.get("tenant", ()):
        own_tenant(request, tenant or "")
    question = SummaryQuestion(
        question.from_us,
        question.to_us,
        tuple(dict.fromkeys(question.by)),
        question.where,
        question.percentiles,
        question.limit,
    )
    with service_of(request).store.read() as connection:
        found = summarise(connection, question, tenant=tenant_of(request))
    return Response(
        msgspec.json.encode(
            {
                "rows": found.rows,
                "source": found.source,
                "truncated": found.truncated,
                "figures": "as logged",
            }
        ),
        media_type=JSON,
    )
