"""Roll-ups: exact sums over records, by hour, day, model, deployment or tenant."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field, create_model

from ledger.service.auth import own_tenant, require
from ledger.service.openapi import answers, examples
from ledger.service.records import From, To, check_period
from ledger.service.routes import StrictRoute
from ledger.service.runtime import service_of
from ledger.store import queries
from ledger.store.tables import ROLLUP_SUMS

__all__ = ["router"]

router = APIRouter(tags=["rollups"], route_class=StrictRoute, dependencies=[Depends(require("read"))])


class RollupKey(BaseModel):
    """What a row is about: the dimensions that were asked for."""

    hour: int | None = Field(default=None, description="Unix seconds of the hour's beginning")
    day: int | None = Field(default=None, description="Unix seconds of the day's beginning (UTC)")
    model: str | None = None
    deployment: str | None = None
    tenant: str | None = Field(default=None, description="Empty for records without one")


_SUMS: dict[str, Any] = dict.fromkeys(ROLLUP_SUMS, (int | None, None))
RollupRow = create_model(
    "RollupRow",
    __base__=RollupKey,
    __doc__="Sums over one group. A figure that no record of it has is absent; `*_records` count who has it.",
    **_SUMS,
)


class Rollups(BaseModel):
    """Rows, ordered by their keys."""

    rows: list[RollupRow]  # type: ignore[valid-type]


_ROW = {
    "day": 1763856000,
    "model": "SmolLM2-135M-Instruct",
    "records": 4096,
    "input_tokens": 592896,
    "output_tokens": 110592,
    "cached_input_tokens": 65536,
    "reasoning_tokens": 0,
    "measured_records": 4096,
    "modelled_records": 0,
    "estimated_records": 0,
    "energy_uj": 6144000000,
    "energy_low_uj": 6144000000,
    "energy_high_uj": 6144000000,
    "carbon_records": 0,
    "carbon_market_records": 0,
    "embodied_records": 0,
    "water_records": 0,
}


@router.get(
    "/rollups",
    operation_id="sum_records",
    summary="Sum records",
    response_model=Rollups,
    responses=answers(
        ok={200: examples("application/json", {"rows": [_ROW]}, "One row for each group.")}, key=True
    ),
)
def sum_records(
    request: Request,
    by: Annotated[
        list[Literal["hour", "day", "model", "deployment", "tenant"]],
        Query(max_length=5, description="Group by; may be repeated. Without it, one row sums all."),
    ] = [],  # noqa: B006 - FastAPI copies it
    from_us: From = None,
    to_us: To = None,
    model: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
    deployment: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None,
    tenant: Annotated[str | None, Query(max_length=64, description="Empty: records without a tenant")] = None,
) -> Response:
    """Exact integer sums over the records that started in the period, whose ends must be full hours."""
    check_period(from_us, to_us)
    with service_of(request).store.read() as connection:
        rows = queries.rollups(
            connection,
            list(dict.fromkeys(by)),
            from_us=from_us,
            to_us=to_us,
            model=model,
            deployment=deployment,
            tenant=own_tenant(request, tenant),
        )
    return Response(msgspec.json.encode({"rows": rows}), media_type="application/json")
