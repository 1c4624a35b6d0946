"""The log itself, public: checkpoint, tiles and entry bundles (C2SP tlog-tiles), keys, state."""

from __future__ import annotations

import base64
import binascii
import gzip
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, Field

from ledger import __version__
from ledger.core.cose import encode_cbor
from ledger.core.errors import InvalidError
from ledger.core.keys import PublicKey
from ledger.core.note import format_vkey
from ledger.core.tiles import TILE_HEIGHT, TILE_WIDTH, encode_bundle, parse_tile_path
from ledger.service.auth import require_unless_public
from ledger.service.negotiation import quality
from ledger.service.openapi import answers, examples
from ledger.service.routes import StrictRoute
from ledger.service.runtime import Service, service_of
from ledger.store import queries
from ledger.store.log_keys import frozen

__all__ = ["router"]

router = APIRouter(tags=["log"], route_class=StrictRoute)

_FOREVER = "public, max-age=31536000, immutable"
_OCTETS = "application/octet-stream"
_CBOR = "application/cbor"
_GZIP_LEVEL = 5


@router.get(
    "/checkpoint",
    operation_id="get_checkpoint",
    summary="Get the newest checkpoint",
    response_class=Response,
    responses=answers(
        ok={
            200: examples(
                "text/plain",
                "log.example.com/tallystick\n1043\nlZ0W5Jp...=\n\n— log.example.com/tallystick K7x...\n",
                "The signed tree head (C2SP tlog-checkpoint in a signed-note).",
            )
        }
    ),
)
def get_checkpoint(request: Request) -> Response:
    """The newest tree head that the log signed. Everything it covers is durable and served.

    With witnesses, the newest one that their quorum cosigned, with its cosignatures.
    """
    service = service_of(request)
    head = _head(service)
    note = head.checkpoint
    if service.witnessing is not None:
        with service.store.read() as connection:
            note = service.witnessing.published(connection, head)
    return Response(
        note,
        headers={"Cache-Control": "no-store"},
        media_type="text/plain; charset=utf-8",
    )


def _head(service: Service) -> queries.Head:
    """The head; never an older one, or one of another history, than this process saw or served before."""
    seen = service.sequencer.seen
    at_least = seen.size
    with service.store.read() as connection:
        head = queries.log_head(connection)
        seen.admit(connection, head.size, head.root, at_least=at_least)
    return head


@router.get(
    "/tile/{path:path}",
    operation_id="get_tile",
    summary="Get a tile or an entry bundle",
    response_class=Response,
    responses=answers(
        "not-found",
        ok={200: examples(_OCTETS, "h'9f64a747...' (32 bytes a hash)", "Hashes, or entries with lengths.")},
        key=True,
    ),
    dependencies=[Depends(require_unless_public)],
)
def get_tile(
    path: Annotated[
        str,
        Path(
            description="`<level>/<index>[.p/<width>]` or `entries/<index>[.p/<width>]`",
            examples=["0/x001/x234/067", "entries/000.p/17"],
        ),
    ],
    request: Request,
) -> Response:
    """Up to 256 hashes of one level of the tree, or the entries themselves (C2SP tlog-tiles).

    Tiles never change. Partial ones are served for every width that a tree up to the newest has had.
    """
    try:
        ref = parse_tile_path(f"tile/{path}")
    except InvalidError:
        raise _no_tile(path) from None
    with service_of(request).store.read() as connection:
        size = queries.log_head(connection).size
        if (size >> (TILE_HEIGHT * (ref.level or 0))) - ref.index * TILE_WIDTH < ref.width:
            raise _no_tile(path)
        if ref.level is not None:
            return _forever(request, queries.read_tile(connection, ref.level, ref.index, ref.width))
        entries = queries.read_bundle(connection, ref.index, ref.width)
    bundle, headers = encode_bundle(entries), {"Vary": "Accept-Encoding"}
    if quality(request.headers.get("accept-encoding", ""), "gzip"):
        bundle = gzip.compress(bundle, _GZIP_LEVEL, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return _forever(request, bundle, headers)


def _forever(request: Request, body: bytes, headers: dict[str, str] | None = None) -> Response:
    caching = _FOREVER if service_of(request).settings.public_log else _FOREVER.replace("public", "private")
    return Response(body, headers={"Cache-Control": caching, **(headers or {})}, media_type=_OCTETS)


def _no_tile(path: str) -> InvalidError:
    return InvalidError(
        "the log has no such tile",
        where=f"tile/{path[:80]}",
        remedy="fetch the tiles that a checkpoint's size asks for",
        code="not-found",
    )


class LogInfo(BaseModel):
    """The log as it stands."""

    origin: str = Field(examples=["log.example.com/tallystick"], description="The log's name")
    vkey: str = Field(description="Verifier key of its checkpoints (signed-note)")
    vkeys: list[str] = Field(description="All verifier keys that it has had, the newest first")
    kid: str = Field(description="Thumbprint of the same key, hex: the `kid` of receipts")
    size: int = Field(description="Leaves")
    root: str = Field(description="Tree hash, hex")
    frozen: bool = Field(description="Whether it takes nothing any more")
    successor: str | None = Field(description="Of a frozen log: the origin of the one that goes on")
    version: str = Field(description="Version of the software")


@router.get(
    "/log",
    operation_id="get_log",
    summary="Describe the log",
    responses=answers(
        ok={
            200: examples(
                "application/json",
                {
                    "origin": "log.example.com/tallystick",
                    "vkey": "log.example.com/tallystick+8cd7a3b1+AWx0...",
                    "vkeys": ["log.example.com/tallystick+8cd7a3b1+AWx0..."],
                    "kid": "6f1c...",
                    "size": 1043,
                    "root": "959d16e4...",
                    "frozen": False,
                    "successor": None,
                    "version": __version__,
                },
                "Name, keys, size and root.",
            )
        }
    ),
)
def get_log(request: Request) -> LogInfo:
    """Name, keys, size and root. For trust, get the verifier key from the operator by another way."""
    service = service_of(request)
    head = _head(service)
    with service.store.read() as connection:
        end = frozen(connection)
    return LogInfo(
        origin=head.origin,
        vkey=service.vkey,
        vkeys=[format_vkey(key) for key in service.sequencer.verifier_keys],
        kid=service.log_key.kid.hex(),
        size=head.size,
        root=head.root.hex(),
        frozen=end is not None,
        successor=None if end is None else end.successor,
        version=__version__,
    )


@router.get(
    "/.well-known/scitt-keys",
    operation_id="get_log_keys",
    summary="Get the keys that verify receipts",
    response_class=Response,
    responses=answers(
        ok={200: examples(_CBOR, "[{1: 1, 2: h'6f1c...', 3: -8, -1: 6, -2: h'd75a...'}]", "COSE Key Set.")},
        concise=True,
    ),
)
def get_log_keys(request: Request) -> Response:
    """All keys that ever signed receipts of this log, so that old receipts still verify."""
    keys = [key.to_cose_key() for key in _log_keys(service_of(request))]
    return Response(encode_cbor(keys), media_type=_CBOR)


@router.get(
    "/.well-known/scitt-keys/{kid}",
    operation_id="get_log_key",
    summary="Get one key that verifies receipts",
    response_class=Response,
    responses=answers(
        "not-found",
        ok={200: examples(_CBOR, "{1: 1, 2: h'6f1c...', 3: -8, -1: 6, -2: h'd75a...'}", "COSE Key.")},
        concise=True,
    ),
)
def get_log_key(
    kid: Annotated[str, Path(max_length=64, description="The receipt's `kid`, base64url without padding")],
    request: Request,
) -> Response:
    """The key with this thumbprint (RFC 9679)."""
    try:
        wanted = base64.b64decode(kid + "=" * (-len(kid) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        wanted = b""
    for key in _log_keys(service_of(request)):
        if key.kid == wanted:
            return Response(encode_cbor(key.to_cose_key()), media_type=_CBOR)
    raise InvalidError("the log has no key with this kid", where=kid, code="not-found")


def _log_keys(service: Service) -> list[PublicKey]:
    with service.store.read() as connection:
        found = [info for info in queries.issuers(connection) if info.issuer == service.origin]
    return [key.public for info in found for key in info.keys]
