"""Reads the JSON bodies of administrative operations, bounded and checked against a model."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from ledger.core.errors import InvalidError
from ledger.service.bodies import content_encoding, read_body, require_media_type
from ledger.service.runtime import service_of

__all__ = ["BODY_CODES", "JSON", "STORABLE", "json_body", "parse"]

JSON = "application/json"
STORABLE = r"^[^\u0000]*$"
"""Text that PostgreSQL's can be compared with."""
BODY_CODES = (
    "unsupported-media-type", "unsupported-encoding", "bad-length", "body-too-large", "body-timeout",
    "disconnected", "malformed-json", "schema", "overloaded", "stopping", "storage-failed",
)  # fmt: skip
"""Problems of operations that read a JSON body."""

_Model = TypeVar("_Model", bound=BaseModel)


async def json_body(request: Request, *, optional: bool = False) -> bytes:
    """The body, as it came; empty where it is ``optional`` and none came.

    Raises:
        InvalidError: another media type or encoding, too large, too slow.
    """
    service = service_of(request)
    if not optional or request.headers.get("content-type"):
        require_media_type(request, JSON)
    if content_encoding(request) != "identity":
        raise InvalidError(
            "this body may not be compressed", where="Content-Encoding", code="unsupported-encoding"
        )
    body = await read_body(
        request,
        max_bytes=service.settings.max_json_bytes,
        timeout_s=service.settings.body_timeout_s,
        budget=service.budget,
    )
    service.budget.give(len(body))
    return body


def parse(model: type[_Model], body: bytes) -> _Model:
    """The body as a ``model``.

    Raises:
        InvalidError: ``malformed-json`` or ``schema``; ``where`` names the member.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        code = "malformed-json" if first["type"] == "json_invalid" else "schema"
        raise InvalidError(f"{where}: {first['msg']}", where=where, code=code) from None
