"""The route class that every router uses: it refuses query parameters that the operation does not have.

A typing error in a filter's name would otherwise be ignored, and the answer silently be about more than was
asked for. U+0000 is refused in addresses: no name has it, and PostgreSQL's text cannot hold it.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from ledger.core.errors import InvalidError

__all__ = ["StrictRoute"]


class StrictRoute(APIRoute):
    """A route that knows its query parameters, each of which may come once unless it is a list."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind the check of parameters."""
        handler = super().get_route_handler()
        repeatable: dict[str, bool] = {}
        for field in get_flat_params(self.dependant):
            info = field.field_info
            if isinstance(info, params.Query):
                repeatable[field.alias] = typing.get_origin(info.annotation) is list

        async def strict(request: Request) -> Response:
            if "\0" in request.scope["path"]:
                raise _unusable("path")
            if request.scope["query_string"]:
                _check(request, repeatable)
            return await handler(request)

        return strict


def _check(request: Request, repeatable: dict[str, bool]) -> None:
    seen: set[str] = set()
    for name, value in request.query_params.multi_items():
        if name not in repeatable:
            known = ", ".join(repeatable) or "none"
            raise InvalidError(
                f"there is no query parameter {name[:40]!r} here",
                where="query",
                remedy=f"known parameters: {known}",
                code="bad-parameter",
            )
        if name in seen and not repeatable[name]:
            raise InvalidError(f"query parameter {name!r} came twice", where="query", code="bad-parameter")
        if "\0" in value:
            raise _unusable(f"query.{name}")
        seen.add(name)


def _unusable(where: str) -> InvalidError:
    return InvalidError("U+0000 is in no name", where=where, remedy="leave it out", code="bad-parameter")
