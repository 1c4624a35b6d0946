"""Deployments, factor sets and price books: what records and batches refer to by digest."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, Field

from ledger.service.auth import require, tenant_of
from ledger.service.openapi import DOCUMENT, answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import service_of
from ledger.store import queries
from ledger.store.tenancy import own_deployments

__all__ = ["router"]

router = APIRouter(
    tags=["documents"], route_class=StrictRoute, dependencies=[Depends(require("emit", "read"))]
)

_DIGEST = "5beb307c577f13693b892023815508222726dfff0e4fa1aeadd52311e979c05c"
_DEPLOYMENT = {"engine": "llama.cpp", "model": "SmolLM2-135M-Instruct", "quantization": "Q8_0"}
_FACTORS = {
    "intensity_ug_per_kwh": 344000000,
    "name": "DE grid",
    "pue_milli": 1200,
    "sources": [{"factor": "intensity_ug_per_kwh", "source": "published grid mix", "year": 2025}],
    "version": "2025.1",
}

_PRICES = {
    "currency": "EUR",
    "name": "tariff",
    "rates": [
        {
            "input_nano_per_mtok": 150000000,
            "model": "SmolLM2-135M-Instruct",
            "output_nano_per_mtok": 600000000,
        }
    ],
    "source": "price list of November 2026",
    "version": "2026-11",
}

Digest = Annotated[
    str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the canonical bytes, hex", examples=[_DIGEST])
]


class PlacedDeployment(BaseModel):
    """A deployment, its digest, and the leaf that published it first."""

    digest: str
    leaf_index: int
    model: str | None = None
    version: str | None = None
    deployment: dict[str, Any] = Field(json_schema_extra={DOCUMENT: "Deployment"})


class PlacedFactorSet(BaseModel):
    """A factor set, its digest, and the leaf that published it first."""

    digest: str
    leaf_index: int
    factors: dict[str, Any] = Field(json_schema_extra={DOCUMENT: "FactorSet"})


class PlacedPriceBook(BaseModel):
    """A price book, its digest, and the leaf that published it first."""

    digest: str
    leaf_index: int
    prices: dict[str, Any] = Field(json_schema_extra={DOCUMENT: "PriceBook"})


class DeploymentList(BaseModel):
    """Deployments in log order."""

    deployments: list[PlacedDeployment]


class FactorSetList(BaseModel):
    """Factor sets in log order."""

    factors: list[PlacedFactorSet]


class PriceBookList(BaseModel):
    """Price books in log order."""

    prices: list[PlacedPriceBook]


_PLACED_DEPLOYMENT = {
    "digest": _DIGEST,
    "leaf_index": 2,
    "model": "SmolLM2-135M-Instruct",
    "deployment": _DEPLOYMENT,
}
_PLACED_FACTORS = {"digest": _DIGEST, "leaf_index": 3, "factors": _FACTORS}
_PLACED_PRICES = {"digest": _DIGEST, "leaf_index": 4, "prices": _PRICES}


def _read(request: Request, kind: str, digest: str | None = None) -> list[dict[str, Any]]:
    with service_of(request).store.read() as connection:
        rows = queries.documents(connection, kind, digest=digest)
        tenant = tenant_of(request)
        if tenant is not None and (kind == "deployment" or digest is None):
            # A digest of a factor set or price book is known from a record; a list would show other tenants'.
            own = own_deployments(connection, tenant) if kind == "deployment" else frozenset()
            rows = [row for row in rows if row.digest in own]
            if digest is not None and not rows:
                raise queries.not_found(f"there is no such {kind} document", f"{kind} {digest}")
    found = []
    for row in rows:
        place: dict[str, Any] = {"digest": row.digest, "leaf_index": row.leaf_index}
        for name in ("model", "version"):
            if getattr(row, name) is not None:
                place[name] = getattr(row, name)
        found.append(place | {kind: msgspec.Raw(bytes(row.body))})
    return found


def _answer(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


@router.get(
    "/deployments",
    operation_id="list_deployments",
    summary="List deployments",
    response_model=DeploymentList,
    responses=answers(
        ok={200: examples("application/json", {"deployments": [_PLACED_DEPLOYMENT]}, "All of them.")},
        key=True,
    ),
)
def list_deployments(request: Request) -> Response:
    """Every deployment that was published, in log order."""
    return _answer({"deployments": _read(request, "deployment")})


@router.get(
    "/deployments/{digest}",
    operation_id="get_deployment",
    summary="Get a deployment",
    response_model=PlacedDeployment,
    responses=answers(
        "not-found", ok={200: examples("application/json", _PLACED_DEPLOYMENT, "The deployment.")}, key=True
    ),
)
def get_deployment(digest: Digest, request: Request) -> Response:
    """The deployment with this digest."""
    return _answer(_read(request, "deployment", digest)[0])


@router.get(
    "/factors",
    operation_id="list_factor_sets",
    summary="List factor sets",
    response_model=FactorSetList,
    responses=answers(
        ok={200: examples("application/json", {"factors": [_PLACED_FACTORS]}, "All of them.")}, key=True
    ),
)
def list_factor_sets(request: Request) -> Response:
    """Every factor set that was published, in log order."""
    return _answer({"factors": _read(request, "factors")})


@router.get(
    "/factors/{digest}",
    operation_id="get_factor_set",
    summary="Get a factor set",
    response_model=PlacedFactorSet,
    responses=answers(
        "not-found", ok={200: examples("application/json", _PLACED_FACTORS, "The factor set.")}, key=True
    ),
)
def get_factor_set(digest: Digest, request: Request) -> Response:
    """The factor set with this digest."""
    return _answer(_read(request, "factors", digest)[0])


@router.get(
    "/prices",
    operation_id="list_price_books",
    summary="List price books",
    response_model=PriceBookList,
    responses=answers(
        ok={200: examples("application/json", {"prices": [_PLACED_PRICES]}, "All of them.")}, key=True
    ),
)
def list_price_books(request: Request) -> Response:
    """Every price book that was published, in log order."""
    return _answer({"prices": _read(request, "prices")})


@router.get(
    "/prices/{digest}",
    operation_id="get_price_book",
    summary="Get a price book",
    response_model=PlacedPriceBook,
    responses=answers(
        "not-found", ok={200: examples("application/json", _PLACED_PRICES, "The price book.")}, key=True
    ),
)
def get_price_book(digest: Digest, request: Request) -> Response:
    """The price book with this digest."""
    return _answer(_read(request, "prices", digest)[0])
