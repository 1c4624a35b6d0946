"""Describes the API: answers and problems of each operation, and the document as a whole (OpenAPI 3.1).

Operations say what they answer with ``answers``; the problems are looked up in the table of problem types, so
that the reference and what is really sent cannot differ in title or status.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ledger.core.price_books import PriceBook
from ledger.core.records import Deployment, FactorSet, Record
from ledger.service.problem_types import PROBLEM_TYPES
from ledger.service.problems import CONCISE, PROBLEM_JSON, Problem

__all__ = ["DOCUMENT", "TAGS", "answers", "binary_body", "describe", "examples"]

TAGS = [
    {
        "name": "entries",
        "description": "Register statements and get receipts, statements and proofs back (SCITT, SCRAPI).",
    },
    {"name": "batches", "description": "Register a batch statement together with its records."},
    {
        "name": "log",
        "description": "The log as tiles and checkpoints (C2SP tlog-tiles), its keys and its state. Public.",
    },
    {"name": "proofs", "description": "Inclusion and consistency proofs, ready made."},
    {"name": "records", "description": "Records: list, get, prove. Needs the scope `read`."},
    {"name": "rollups", "description": "Exact sums over records. Needs the scope `read`."},
    {
        "name": "query",
        "description": "Groups, totals and percentiles over a bounded period. Needs the scope `read`.",
    },
    {"name": "issuers", "description": "Who may sign, with which keys. Changing needs the scope `admin`."},
    {
        "name": "enrolment",
        "description": "Invitations, keys that their holders enrol, and the trail of administrative acts.",
    },
    {"name": "documents", "description": "Deployments and factor sets, by digest. Needs the scope `read`."},
    {
        "name": "budgets",
        "description": "Limits on use, room for a request before it runs, alerts. Setting needs `admin`.",
    },
    {"name": "problems", "description": "What each problem type means. Public."},
    {"name": "operations", "description": "Health and metrics. Public."},
]

_DESCRIPTION = """\
Tallystick commits, in a log nobody can rewrite, to which model version produced which tokens, at what energy
and carbon.

* **Keys.** `Authorization: Bearer tsk_...`, with the scopes `emit`, `read` or `admin` (which implies both);
  or a workload's token (JWT) of a provider that the operator trusts. A key of a tenant sees and logs that
  tenant's records alone.
* **Errors** are problem documents (RFC 9457), or concise CBOR ones (RFC 9290) at the SCITT addresses unless
  the `Accept` header names JSON. Each `type` is an address that explains it.
* **Numbers** are integers with the unit in the name. Sums can pass 2^53: read them as big integers.
* **Query parameters** that an operation does not have are refused, and so are repeated ones.
* **Lists** are paged by an opaque `cursor`.
"""

DOCUMENT = "x-document"
"""Marks a member whose schema is that of a signed document: Record, Deployment, FactorSet or PriceBook."""

_ALWAYS = ("bad-parameter", "internal", "storage-failed", "overloaded")
_WITH_KEY = ("missing-key", "wrong-key", "missing-scope", "other-tenant", "too-many-requests")


def answers(
    *codes: str,
    ok: dict[int, dict[str, Any]] | None = None,
    key: bool = False,
    concise: bool = False,
) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an operation.

    Args:
        *codes: problems that it can answer with, beside those that every operation can.
        ok: what it answers when all is well.
        key: whether it needs an API key.
        concise: whether its problems are concise CBOR unless JSON is asked for.
    """
    result: dict[int | str, dict[str, Any]] = {status: answer for status, answer in (ok or {}).items()}  # noqa: C416
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*codes, *(_WITH_KEY if key else ()), *_ALWAYS)):
        by_status.setdefault(PROBLEM_TYPES[code].status, []).append(code)
    for status, found in sorted(by_status.items()):
        result[status] = {
            "description": "; ".join(f"`{code}`: {PROBLEM_TYPES[code].title}" for code in found),
            "content": _problem_content(found, concise=concise),
        }
    return result


def _problem_content(codes: Iterable[str], *, concise: bool) -> dict[str, Any]:
    shown = {}
    for code in codes:
        kind = PROBLEM_TYPES[code]
        value = {"type": kind.path, "title": kind.title, "status": kind.status, "detail": kind.explanation}
        shown[code] = {"summary": kind.title, "value": value | {"remedy": kind.remedy}}
    content: dict[str, Any] = {
        PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": shown}
    }
    if concise:
        content[CONCISE] = {
            "schema": {
                "type": "string",
                "contentMediaType": CONCISE,
                "description": "RFC 9290: title (-1), detail (-2), and under 7807 type (0) and status (1)",
            }
        }
    return content


def examples(media_type: str, example: Any, description: str, **more: Any) -> dict[str, Any]:
    """One successful answer with an example. Binary ones are shown in CBOR diagnostic notation or hex."""
    content: dict[str, Any] = {"example": example}
    if media_type != "application/json":
        content["schema"] = {"type": "string", "contentMediaType": media_type}
    return {"description": description, "content": {media_type: content}, **more}


def binary_body(media_type: str, example: str, description: str) -> dict[str, Any]:
    """``openapi_extra`` of an operation that reads its body itself."""
    schema = {"type": "string", "contentMediaType": media_type, "description": description}
    return {
        "requestBody": {
            "required": True,
            "description": description,
            "content": {media_type: {"schema": schema, "example": example}},
        }
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of ``app``."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="A ledger of machine-made tokens that nobody can rewrite.",
        description=_DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    for operations in document["paths"].values():
        for operation in operations.values():
            _drop_default_422(operation)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for operations in document["paths"].values():
        for operation in operations.values():
            # Bodies that operations read themselves: what their models refer to is the document's, too.
            for content in operation.get("requestBody", {}).get("content", {}).values():
                for name, schema in content.get("schema", {}).get("$defs", {}).items():
                    schemas.setdefault(name, schema)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = Problem.model_json_schema()
    _, own = msgspec.json.schema_components(
        [Record, Deployment, FactorSet, PriceBook], ref_template="#/components/schemas/{name}"
    )
    for schema in own.values():
        # A docstring, whose indentation only Python 3.13 and later take away.
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    schemas.update(own)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    _point_at_documents(document["components"]["schemas"])
    return document


def _point_at_documents(node: Any) -> None:
    """Replace members marked with ``DOCUMENT`` by a reference to the document's own schema."""
    if isinstance(node, dict):
        if DOCUMENT in node:
            name = node[DOCUMENT]
            node.clear()
            node["$ref"] = f"#/components/schemas/{name}"
        for each in node.values():
            _point_at_documents(each)
    elif isinstance(node, list):
        for each in node:
            _point_at_documents(each)


def _drop_default_422(operation: dict[str, Any]) -> None:
    """FastAPI adds an answer of its own shape; ours are problems."""
    answer = operation["responses"].get("422", {})
    if "HTTPValidationError" in str(answer):
        del operation["responses"]["422"]
