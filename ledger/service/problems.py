"""Answers with problems: RFC 9457 JSON, or RFC 9290 concise CBOR where SCRAPI asks for it.

``GET /problems/{code}`` explains each type. Nothing internal leaks: an unexpected error is answered with an
``instance`` only, under which the service's log has the details.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ledger.core.cose import encode_cbor
from ledger.core.errors import InvalidError, TallystickError
from ledger.service import pages
from ledger.service.auth_rates import retry_after_s
from ledger.service.negotiation import quality
from ledger.service.problem_types import PROBLEM_TYPES, ProblemType, problem_type_of
from ledger.service.routes import StrictRoute

__all__ = ["CONCISE", "PROBLEM_JSON", "Problem", "install_handlers", "problem_response", "router"]

PROBLEM_JSON = "application/problem+json"
CONCISE = "application/concise-problem-details+cbor"

# RFC 9290 section 2 (standard entries) and section 5 (key 7807 carries what RFC 9457 adds).
_TITLE, _DETAIL, _INSTANCE = -1, -2, -3
_TUNNEL, _TUNNEL_TYPE, _TUNNEL_STATUS = 7807, 0, 1

_CONCISE_PLACES = ("/entries", "/.well-known/scitt-keys")
_RETRY_AFTER_S = 2
_CHALLENGE = 'Bearer realm="tallystick"'
_log = logging.getLogger(__name__)


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(
        description="Address that explains this kind of problem", examples=["/problems/seq-gap"]
    )
    title: str
    status: int
    detail: str = Field(description="What was wrong with this request")
    where: str | None = Field(default=None, description="The place: a header, member, leaf or field")
    remedy: str | None = Field(default=None, description="What the caller can do")
    instance: str | None = Field(default=None, description="Names this occurrence in the service's log")


def problem_response(
    request: Request,
    kind: ProblemType,
    detail: str = "",
    *,
    where: str = "",
    remedy: str = "",
    instance: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer for a problem, in the form that the caller reads."""
    request.scope["tallystick.problem"] = kind.code  # for the metrics
    detail, remedy = detail or kind.explanation, remedy or kind.remedy
    headers = {"Cache-Control": "no-store", **(headers or {})}
    if kind.status == 503:
        headers.setdefault("Retry-After", str(_RETRY_AFTER_S))
    if kind.status == 401:
        headers["WWW-Authenticate"] = _CHALLENGE
    if kind.code == "unsupported-encoding":
        headers["Accept-Encoding"] = "zstd"
    if _wants_concise(request):
        extra: dict[Any, Any] = {_TUNNEL_TYPE: kind.path, _TUNNEL_STATUS: kind.status, "remedy": remedy}
        if where:
            extra["where"] = where
        concise: dict[int, Any] = {_TITLE: kind.title, _DETAIL: detail, _TUNNEL: extra}
        if instance:
            concise[_INSTANCE] = instance
        return Response(encode_cbor(concise), kind.status, headers, media_type=CONCISE)
    document: dict[str, Any] = {
        "type": kind.path,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "remedy": remedy,
    }
    if where:
        document["where"] = where
    if instance:
        document["instance"] = instance
    return Response(msgspec.json.encode(document), kind.status, headers, media_type=PROBLEM_JSON)


def error_response(request: Request, error: TallystickError) -> Response:
    """The answer for an error raised on purpose."""
    kind = problem_type_of(error)
    instance = ""
    if kind.status >= 500:
        instance = _instance()
        _log.error("%s %s: %s [%s]", request.method, request.url.path, error, instance)
    wait_s = retry_after_s(error)
    headers = None if wait_s is None else {"Retry-After": str(wait_s)}
    return problem_response(
        request, kind, error.what, where=error.where, remedy=error.remedy, instance=instance, headers=headers
    )


def storage_response(request: Request, error: BaseException) -> Response:
    """The answer when the database failed. What it says stays in the log."""
    instance = _instance()
    _log.error("%s %s: database failed [%s]", request.method, request.url.path, instance, exc_info=error)
    return problem_response(request, PROBLEM_TYPES["storage-failed"], instance=instance)


def unexpected_response(request: Request, error: BaseException) -> Response:
    """The answer for an error that nobody expected. What it says stays in the log."""
    instance = _instance()
    _log.error("%s %s failed [%s]", request.method, request.url.path, instance, exc_info=error)
    return problem_response(request, PROBLEM_TYPES["internal"], instance=instance)


def install_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every error with a problem."""

    def on_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, TallystickError)  # noqa: S101 - registered for that class
        return error_response(request, error)

    def on_parameters(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for that class
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        in_body = first["loc"][:1] == ("body",)
        kind = PROBLEM_TYPES["malformed-json" if first["type"] == "json_invalid" else "schema"]
        if not in_body:
            kind = PROBLEM_TYPES["bad-parameter"]
        return problem_response(request, kind, f"{where}: {first['msg']}", where=where)

    def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for that class
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
        return problem_response(request, PROBLEM_TYPES[code], headers=error.headers)

    app.add_exception_handler(TallystickError, on_error)
    app.add_exception_handler(SQLAlchemyError, storage_response)
    app.add_exception_handler(RequestValidationError, on_parameters)
    app.add_exception_handler(HTTPException, on_http)


def _instance() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


def _wants_concise(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    as_cbor = quality(accept, CONCISE)
    as_json = max(quality(accept, PROBLEM_JSON), quality(accept, "application/json"))
    if as_cbor or as_json:
        return as_cbor > as_json
    path = request.url.path
    return any(path == place or path.startswith(place + "/") for place in _CONCISE_PLACES)


# --- GET /problems ---------------------------------------------------------------------------------------


class ProblemDescription(BaseModel):
    """What a kind of problem means."""

    type: str = Field(examples=["/problems/seq-gap"])
    status: int
    title: str
    explanation: str
    remedy: str


class ProblemList(BaseModel):
    """Every kind of problem."""

    problems: list[ProblemDescription]


router = APIRouter(tags=["problems"], route_class=StrictRoute)


def _describe(kind: ProblemType) -> ProblemDescription:
    return ProblemDescription(
        type=kind.path, status=kind.status, title=kind.title, explanation=kind.explanation, remedy=kind.remedy
    )


@router.get("/problems", operation_id="list_problems", summary="List every kind of problem")
async def list_problems() -> ProblemList:
    """All problem types, by code."""
    return ProblemList(problems=[_describe(PROBLEM_TYPES[code]) for code in sorted(PROBLEM_TYPES)])


@router.get(
    "/problems/{code}",
    operation_id="explain_problem",
    summary="Explain a kind of problem",
    response_model=ProblemDescription,
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}}},
        404: {
            "description": f"`not-found`: {PROBLEM_TYPES['not-found'].title}",
            "content": {
                PROBLEM_JSON: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {
                        "not-found": {
                            "summary": PROBLEM_TYPES["not-found"].title,
                            "value": {"type": "/problems/not-found", "title": "Not found", "status": 404},
                        }
                    },
                }
            },
        },
    },
)
async def explain_problem(code: str, request: Request) -> Any:
    """What the problem means and what to do, as JSON or, for browsers, as a page."""
    kind = PROBLEM_TYPES.get(code)
    if kind is None:
        raise InvalidError("there is no problem type of this name", where=code[:80], code="not-found")
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(pages.problem_page(kind), headers={"Content-Security-Policy": pages.POLICY})
    return _describe(kind)
