"""What operators look at: health, metrics, the API reference."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from ledger import __version__
from ledger.core.errors import InvalidError, UnavailableError
from ledger.service import pages
from ledger.service.auth import require_unless_public
from ledger.service.openapi import answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import service_of
from ledger.store import queries

__all__ = ["router"]

router = APIRouter(tags=["operations"], route_class=StrictRoute)


class Health(BaseModel):
    """The service answers, its database answers, and statements are taken."""

    status: Literal["ok"]
    size: int = Field(description="Leaves of the log")
    version: str


@router.get(
    "/healthz",
    operation_id="check_health",
    summary="Check health",
    responses=answers(
        "stopping",
        "storage-failed",
        ok={
            200: examples(
                "application/json", {"status": "ok", "size": 1043, "version": __version__}, "All is well."
            )
        },
    ),
)
def check_health(request: Request) -> Health:
    """Whether this service can log and read. For load balancers and supervisors."""
    service = service_of(request)
    if not service.serving:
        raise UnavailableError("the service is stopping", code="stopping")
    with service.store.read() as connection:
        size = queries.log_head(connection).size
    return Health(status="ok", size=size, version=__version__)


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Get metrics",
    response_class=Response,
    responses=answers(
        ok={200: examples("text/plain", "tallystick_tree_size 1043.0\n", "Prometheus' text format.")},
        key=True,
    ),
    dependencies=[Depends(require_unless_public)],
)
def get_metrics(request: Request) -> Response:
    """Counters and histograms. No tenant, issuer or record is ever a label."""
    service = service_of(request)
    service.metrics.buffered.set(service.budget.taken)
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/docs", include_in_schema=False)
def show_reference(request: Request) -> Response:
    """The API reference as one page without scripts."""
    if not service_of(request).settings.docs:
        raise InvalidError("the reference is switched off", where="/docs", code="not-found")
    page = pages.reference_page(request.app.openapi())
    return HTMLResponse(page, headers={"Content-Security-Policy": pages.POLICY})
