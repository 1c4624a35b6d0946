"""Budgets: setting and showing them, room for one request (``POST /budgets/check``), and alerts."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from msgspec import json
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import Connection

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.records import UUID7
from ledger.cost import budgets as rules
from ledger.cost.budgets import Budget, Measure, Room
from ledger.service import budget_counting as counting
from ledger.service.admin import enact_budget, repeal_budget
from ledger.service.auth import actor_of, own_tenant, require, tenant_of
from ledger.service.budget_counting import Answer, Check
from ledger.service.budget_webhook import described_alert
from ledger.service.json_bodies import BODY_CODES, JSON, STORABLE, json_body, parse
from ledger.service.openapi import answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import service_of
from ledger.store import budgets as rows

__all__ = ["described", "described_alert", "router"]

router = APIRouter(tags=["budgets"], route_class=StrictRoute)

_MAX_RELEASED = 1_000
_Whole = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER, strict=True)]


class NewBudget(BaseModel):
    """A budget to set; one of its name is changed."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        max_length=64, description="Lower-case letters, digits and . _ -", examples=["acme-day"]
    )
    measure: Measure = Field(description="What is limited: tokens, cost_nano, energy_uj or carbon_ng")
    limit: int = Field(gt=0, strict=True, description="How much of it within the window")
    window: str = Field(
        max_length=8, description="day, month (UTC), or a rolling one such as 24h or 7d", examples=["day"]
    )
    tenant: str | None = Field(
        default=None,
        max_length=64,
        description="Whose use counts: a tenant as records name it, * for each by itself, empty for records "
        "without one; absent for all together",
    )
    model: str | None = Field(default=None, max_length=256, description="Of this model alone")
    currency: str | None = Field(default=None, max_length=3, description="Of cost_nano; needed with it")
    alerts: list[int] = Field(
        default=list(rules.DEFAULT_ALERTS), max_length=8, description="Percent of the limit, 1 to 1,000"
    )
    refuse: bool = Field(default=True, description="Whether more is refused at the limit")


class Wanted(BaseModel):
    """What a request will use, as far as it knows."""

    model_config = ConfigDict(extra="forbid")

    tokens: _Whole = Field(description="Input tokens and the most output tokens")
    cost_nano: _Whole | None = None
    currency: str | None = Field(default=None, pattern="^[A-Z]{3}$")
    energy_uj: _Whole | None = None
    carbon_ng: _Whole | None = None


class BudgetCheck(BaseModel):
    """A request that asks for room."""

    model_config = ConfigDict(extra="forbid")

    record: str = Field(pattern=UUID7, description="Id of the record that it will have: settles it")
    tenant: str | None = Field(default=None, min_length=1, max_length=64, pattern=STORABLE)
    model: str = Field(default="", max_length=256, description="As the record's deployment names it")
    estimate: Wanted
    ttl_s: int = Field(default=900, ge=1, le=86_400, description="How long to wait for the record")

    @field_validator("record")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if value.endswith("\n"):
            raise ValueError("is not a record id")
        return value


class Release(BaseModel):
    """Requests that generated nothing."""

    model_config = ConfigDict(extra="forbid")

    records: list[Annotated[str, Field(pattern=UUID7)]] = Field(max_length=_MAX_RELEASED)


class BudgetRoom(BaseModel):
    """Where a budget stands for the tenant that asks, before this request."""

    budget: str
    measure: Measure
    currency: str | None = None
    limit: int
    used: int
    reserved: int = Field(description="By requests that run")
    wanted: int = Field(description="By this request")
    window_start_s: int
    window_end_s: int


class BudgetAnswer(BaseModel):
    """Whether the request may go on."""

    allowed: bool
    expires_s: int | None = Field(default=None, description="When the reservation ends without a record")
    budgets: list[BudgetRoom] = Field(description="The budgets that the request counts for")
    refused_by: str | None = Field(default=None, description="The budget without room")
    message: str | None = Field(default=None, description="Why, for whoever made the request")
    retry_after_s: int | None = Field(
        default=None, description="When there can be room again; absent if the request alone is too large"
    )


class BudgetStanding(BaseModel):
    """Where a budget stands now, for one tenant where it counts each by itself."""

    tenant: str
    window_start_s: int
    window_end_s: int
    used: int
    reserved: int
    records: int = Field(description="Records that are counted")
    unknown_records: int = Field(description="Records that do not tell the figure, so do not count")


class BudgetDescription(NewBudget):
    """A budget and where it stands."""

    standings: list[BudgetStanding]


class BudgetList(BaseModel):
    """All budgets, by name."""

    budgets: list[BudgetDescription]


class BudgetAlert(BaseModel):
    """That use reached a percentage of a limit."""

    budget: str
    tenant: str
    period_start_s: int
    percent: int | None = Field(default=None, description="Absent where a request was refused")
    kind: str = Field(description="threshold or refused", examples=["threshold"])
    record: str = Field(description="The record that reached it, or would have been refused's")
    used: int
    limit: int
    noticed_s: int


class BudgetAlerts(BaseModel):
    """Alerts, newest first."""

    alerts: list[BudgetAlert]


_RECORD = "0199c6f2-7b1c-7000-8000-9f1d2c3b4a59"
_NEW = {"name": "acme-day", "measure": "tokens", "limit": 1_000_000, "window": "day", "tenant": "acme"}
_BUDGET = _NEW | {
    "alerts": [80, 100],
    "refuse": True,
    "standings": [
        {
            "tenant": "acme",
            "window_start_s": 1763856000,
            "window_end_s": 1763942400,
            "used": 812_431,
            "reserved": 2_048,
            "records": 903,
            "unknown_records": 0,
        }
    ],
}
_ROOM = {
    "budget": "acme-day",
    "measure": "tokens",
    "limit": 1_000_000,
    "used": 812_431,
    "reserved": 2_048,
    "wanted": 1_500,
    "window_start_s": 1763856000,
    "window_end_s": 1763942400,
}
_ALERT = {
    "budget": "acme-day",
    "tenant": "acme",
    "period_start_s": 1763856000,
    "percent": 80,
    "kind": "threshold",
    "record": _RECORD,
    "used": 800_112,
    "limit": 1_000_000,
    "noticed_s": 1763901012,
}


def _body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": model.model_json_schema(ref_template="#/components/schemas/{model}")}
    return {"requestBody": {"required": True, "content": {JSON: content | {"example": example}}}}


def _answer(value: Any) -> Response:
    return Response(json.encode(value), media_type=JSON)


# --- what an administrator does ----------------------------------------------------------------------------


@router.get(
    "/budgets",
    operation_id="list_budgets",
    summary="List budgets",
    response_model=BudgetList,
    responses=answers(ok={200: examples(JSON, {"budgets": [_BUDGET]}, "All budgets, by name.")}, key=True),
    dependencies=[Depends(require("read"))],
)
def list_budgets(request: Request) -> Response:
    """Every budget and where it stands. A tenant's key sees what counts for that tenant alone."""
    with service_of(request).store.read() as connection:
        shown = described(connection, int(time.time()), tenant=own_tenant(request, None))
    return _answer({"budgets": shown})


@router.post(
    "/budgets",
    operation_id="set_budget",
    summary="Set a budget",
    response_model=BudgetDescription,
    responses=answers(
        *BODY_CODES,
        "bad-budget",
        "log-frozen",
        ok={200: examples(JSON, _BUDGET, "It is in force.")},
        key=True,
    ),
    openapi_extra=_body(NewBudget, _NEW),
    dependencies=[Depends(require("admin"))],
)
async def set_budget(request: Request) -> Response:
    """Set a budget, or change the one of its name. What was used in its present window counts at once."""
    wanted = parse(NewBudget, await json_body(request))
    fields = wanted.model_dump() | {"alerts": tuple(wanted.alerts)}
    return await run_in_threadpool(_set, request, Budget(**fields))


def _set(request: Request, budget: Budget) -> Response:
    service = service_of(request)
    store = service.store
    budget = enact_budget(service.sequencer, store, budget, by=actor_of(request))
    service.budget_keeper.budgets_changed()
    with store.read() as connection:
        shown = described(connection, int(time.time()))
    return _answer(next(each for each in shown if each["name"] == budget.name))


@router.post(
    "/budgets/{name}/remove",
    operation_id="remove_budget",
    summary="Remove a budget",
    response_model=BudgetList,
    responses=answers(
        "not-found",
        "log-frozen",
        ok={200: examples(JSON, {"budgets": []}, "Those that are left.")},
        key=True,
    ),
    dependencies=[Depends(require("admin"))],
)
def remove_budget(name: Annotated[str, Path(max_length=64)], request: Request) -> Response:
    """Remove a budget with its use and its alerts. Records stay as they are."""
    service = service_of(request)
    repeal_budget(service.sequencer, service.store, name, by=actor_of(request))
    return list_budgets(request)


@router.get(
    "/budgets/alerts",
    operation_id="list_budget_alerts",
    summary="List alerts of budgets",
    response_model=BudgetAlerts,
    responses=answers(ok={200: examples(JSON, {"alerts": [_ALERT]}, "Newest first.")}, key=True),
    dependencies=[Depends(require("read"))],
)
def list_budget_alerts(
    request: Request,
    since_s: Annotated[
        int, Query(ge=0, le=MAX_SAFE_INTEGER, description="Noticed then or later, Unix seconds")
    ] = 0,
) -> Response:
    """Alerts, at most 1,000. A tenant's key sees that tenant's alone."""
    tenant = own_tenant(request, None)
    with service_of(request).store.read() as connection:
        budgets = {each.name: each for each in counting.list_budgets(connection)}
        found = rows.alerts(connection, since_s=since_s, tenant=tenant)
    shown = [
        described_alert(each)
        for each in found
        if tenant is None or budgets[each.budget].tenant in (rules.EACH, tenant)
    ]
    return _answer({"alerts": shown})


# --- what a serving process does ---------------------------------------------------------------------------


@router.post(
    "/budgets/check",
    operation_id="check_budgets",
    summary="Reserve room for a request",
    response_model=BudgetAnswer,
    responses=answers(
        *BODY_CODES,
        "other-tenant",
        ok={
            200: examples(
                JSON, {"allowed": True, "expires_s": 1763901912, "budgets": [_ROOM]}, "Allowed, or refused."
            )
        },
        key=True,
    ),
    openapi_extra=_body(
        BudgetCheck,
        {"record": _RECORD, "tenant": "acme", "model": "SmolLM2-135M-Instruct", "estimate": {"tokens": 1500}},
    ),
    dependencies=[Depends(require("emit"))],
)
async def check_budgets(request: Request) -> Response:
    """Ask, before generating, whether a request may go on, and reserve what it will use at most.

    The reservation ends when the record of this id is logged, whose figures count then; when it is released;
    or after ``ttl_s``. Asking again with the same id reserves nothing more.
    """
    wanted = parse(BudgetCheck, await json_body(request))
    tenant = own_tenant(request, wanted.tenant) or ""
    given = {name: value for name, value in wanted.estimate.model_dump().items() if value is not None}
    check = Check(wanted.record, tenant, wanted.model, given, wanted.ttl_s)
    service = service_of(request)
    answer = await asyncio.wrap_future(service.budget_keeper.check(check))
    service.metrics.budget_checks.labels("allowed" if answer.refusal is None else "refused").inc()
    return _answer(_described_answer(answer, own=tenant_of(request)))


@router.post(
    "/budgets/release",
    operation_id="release_budgets",
    summary="Give room back",
    status_code=204,
    responses=answers(*BODY_CODES, ok={204: {"description": "Given back."}}, key=True),
    openapi_extra=_body(Release, {"records": [_RECORD]}),
    dependencies=[Depends(require("emit"))],
)
async def release_budgets(request: Request) -> Response:
    """Give back what was reserved for requests that generated nothing, and so have no record."""
    wanted = parse(Release, await json_body(request))
    keeper = service_of(request).budget_keeper
    await asyncio.wrap_future(keeper.release(wanted.records, tenant=tenant_of(request)))
    return Response(status_code=204)


# --- how it is shown ---------------------------------------------------------------------------------------


def described(connection: Connection, now_s: int, *, tenant: str | None = None) -> list[dict[str, Any]]:
    """All budgets and where they stand, as JSON; for a ``tenant``, what counts for it alone."""
    standings = counting.standings(connection, now_s)
    return [
        described_budget(budget)
        | {
            "standings": [
                described_standing(each)
                for each in standings
                if each.budget.name == budget.name and tenant in (None, each.tenant)
            ]
        }
        for budget in counting.list_budgets(connection)
        if tenant is None or budget.tenant in (rules.EACH, tenant)
    ]


def described_budget(budget: Budget) -> dict[str, Any]:
    """A budget as JSON."""
    shown = {name: value for name, value in vars(budget).items() if value is not None}
    return shown | {"alerts": list(budget.alerts)}


def described_standing(standing: counting.Standing) -> dict[str, Any]:
    """Where a budget stands, as JSON."""
    return {name: value for name, value in vars(standing).items() if name != "budget"}


def _described_answer(answer: Answer, *, own: str | None) -> dict[str, Any]:
    """The answer; a caller that acts for one tenant does not learn what all together use."""
    shown: dict[str, Any] = {
        "allowed": answer.refusal is None,
        "budgets": [_described_room(each) for each in answer.rooms if own is None or each.budget.tenant],
    }
    if answer.refusal is None:
        return shown | {"expires_s": answer.expires_s}
    room, retry_after_s = answer.refusal.room, answer.refusal.retry_after_s
    message = rules.told(answer.refusal, shared=own is not None and not room.budget.tenant)
    shown |= {"refused_by": room.budget.name, "message": message}
    return shown if retry_after_s is None else shown | {"retry_after_s": retry_after_s}


def _described_room(room: Room) -> dict[str, Any]:
    budget = room.budget
    start_s, end_s = rules.window_of(budget.window, room.now_s)
    shown = {
        "budget": budget.name,
        "measure": budget.measure,
        "limit": budget.limit,
        "used": room.used,
        "reserved": room.reserved,
        "wanted": room.wanted,
        "window_start_s": start_s,
        "window_end_s": end_s,
    }
    return shown if budget.currency is None else shown | {"currency": budget.currency}
