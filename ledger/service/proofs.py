"""Proofs, ready made: that a leaf is in a tree, and that one tree extends another (RFC 9162 section 2.1)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from ledger.core.tiles import TileReader
from ledger.service.auth import require, tenant_of
from ledger.service.openapi import answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import service_of
from ledger.store import queries
from ledger.store.tenancy import check_entry

__all__ = ["router"]

router = APIRouter(tags=["proofs"], route_class=StrictRoute)

_MAX = 2**63 - 1
_HASH = "9f64a747e1b97f131fabb6b447296c9b6f0201e79fb3c5356e6c77e89b6a806a"


class InclusionProof(BaseModel):
    """Shows that a leaf is in a tree."""

    leaf_index: int
    tree_size: int
    leaf_hash: str = Field(description="RFC 6962 leaf hash of the entry, hex")
    root: str = Field(description="Root of the tree of `tree_size` leaves, hex")
    path: list[str] = Field(description="Sibling hashes in hex, the leaf's first")


class ConsistencyProof(BaseModel):
    """Shows that a tree extends an older one."""

    old_size: int
    new_size: int
    old_root: str = Field(description="hex")
    new_root: str = Field(description="hex")
    path: list[str] = Field(description="Hashes in hex, in the order of RFC 9162 section 2.1.4")


@router.get(
    "/proofs/inclusion",
    operation_id="prove_inclusion",
    summary="Prove that a leaf is in a tree",
    responses=answers(
        "out-of-range",
        "not-found",
        ok={
            200: examples(
                "application/json",
                {"leaf_index": 2, "tree_size": 3, "leaf_hash": _HASH, "root": _HASH, "path": [_HASH]},
                "The proof.",
            )
        },
        key=True,
    ),
    dependencies=[Depends(require("emit", "read"))],
)
def prove_inclusion(
    request: Request,
    leaf_index: Annotated[int, Query(ge=0, le=_MAX)],
    tree_size: Annotated[
        int | None, Query(ge=1, le=_MAX, description="Size of the tree; by default the newest")
    ] = None,
) -> InclusionProof:
    """The inclusion path of a leaf. Check the root against a signed checkpoint."""
    with service_of(request).store.read() as connection:
        size = queries.log_head(connection).size if tree_size is None else tree_size
        path = queries.inclusion(connection, leaf_index, size)
        check_entry(connection, tenant_of(request), leaf_index, where=f"entry {leaf_index}")
        leaf = queries.statement(connection, leaf_index).leaf_hash
        root = TileReader(queries.tile_fetcher(connection), size).root()
    return InclusionProof(
        leaf_index=leaf_index, tree_size=size, leaf_hash=leaf.hex(), root=root.hex(), path=_hex(path)
    )


@router.get(
    "/proofs/consistency",
    operation_id="prove_consistency",
    summary="Prove that a tree extends an older one",
    responses=answers(
        "out-of-range",
        ok={
            200: examples(
                "application/json",
                {"old_size": 2, "new_size": 3, "old_root": _HASH, "new_root": _HASH, "path": [_HASH]},
                "The proof.",
            )
        },
        key=True,
    ),
    dependencies=[Depends(require("emit", "read"))],
)
def prove_consistency(
    request: Request,
    old_size: Annotated[int, Query(alias="from", ge=0, le=_MAX, description="Size of the older tree")],
    new_size: Annotated[
        int | None,
        Query(alias="to", ge=0, le=_MAX, description="Size of the newer tree; by default the newest"),
    ] = None,
) -> ConsistencyProof:
    """The consistency path between two trees. Check both roots against signed checkpoints."""
    with service_of(request).store.read() as connection:
        newer = queries.log_head(connection).size if new_size is None else new_size
        path = queries.consistency(connection, old_size, newer)
        reader = TileReader(queries.tile_fetcher(connection), newer)
        old_root, new_root = reader.root(old_size), reader.root()
    return ConsistencyProof(
        old_size=old_size,
        new_size=newer,
        old_root=old_root.hex(),
        new_root=new_root.hex(),
        path=_hex(path),
    )


def _hex(hashes: list[bytes]) -> list[str]:
    return [each.hex() for each in hashes]
