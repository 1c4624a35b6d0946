"""The API reference: complete, with examples, and true to what is really answered."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from sqlmodel import SQLModel

from ledger.service.openapi import TAGS
from ledger.service.problem_types import PROBLEM_TYPES
from tests.service.conftest import BATCH, COSE, Harness
from tests.service.test_bad_input import CASES

EXPECTED = {
    ("POST", "/entries"), ("POST", "/batches"), ("GET", "/entries/{entry_id}"),
    ("GET", "/entries/{entry_id}/statement"), ("GET", "/entries/{entry_id}/transparent"),
    ("GET", "/entries/{entry_id}/records"), ("GET", "/entries/{entry_id}/proof"),
    ("GET", "/.well-known/scitt-keys"), ("GET", "/.well-known/scitt-keys/{kid}"), ("GET", "/log"),
    ("GET", "/checkpoint"), ("GET", "/tile/{path}"), ("GET", "/proofs/inclusion"),
    ("GET", "/proofs/consistency"), ("GET", "/records"), ("GET", "/records/{record_id}"),
    ("GET", "/records/{record_id}/proof"), ("GET", "/rollups"), ("GET", "/issuers"), ("POST", "/issuers"),
    ("GET", "/issuers/{issuer}/keys"), ("POST", "/issuers/{issuer}/keys/{kid}/revoke"),
    ("GET", "/deployments"), ("GET", "/deployments/{digest}"), ("GET", "/factors"),
    ("GET", "/factors/{digest}"),
    ("GET", "/prices"),
    ("GET", "/prices/{digest}"), ("GET", "/problems"), ("GET", "/problems/{code}"), ("GET", "/healthz"),
    ("GET", "/metrics"), ("GET", "/query"), ("POST", "/query"), ("GET", "/budgets"), ("POST", "/budgets"),
    ("POST", "/budgets/{name}/remove"), ("GET", "/budgets/alerts"), ("POST", "/budgets/check"),
    ("POST", "/budgets/release"), ("POST", "/invitations"), ("POST", "/enrolments"), ("GET", "/acts"),
}  # fmt: skip


@pytest.fixture
def document(harness: Harness) -> dict[str, Any]:
    found: dict[str, Any] = harness.get("/openapi.json", None).json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_endpoint_is_described(document: dict[str, Any]) -> None:
    assert {(method, path) for method, path, _ in operations(document)} == EXPECTED


def test_operations_are_complete(document: dict[str, Any]) -> None:
    ids = set()
    tags = {tag["name"] for tag in TAGS}
    assert all(tag["description"] for tag in document["tags"])
    for method, path, operation in operations(document):
        place = f"{method} {path}"
        ids.add(operation["operationId"])
        assert operation["summary"], place
        assert operation["description"], place
        assert set(operation["tags"]) <= tags, place
        good = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
        assert good, place
        for answer in good:
            for content in answer.get("content", {}).values():
                if path.startswith("/problems"):
                    continue
                assert "example" in content or "schema" in content, place
        if not path.startswith("/problems"):
            assert "204" in operation["responses"] or any(
                "example" in c for answer in good for c in answer["content"].values()
            ), place
        if method == "POST" and path != "/budgets/{name}/remove":
            (content,) = operation["requestBody"]["content"].values()
            assert content["example"], place
            assert content["schema"], place
        for status, answer in operation["responses"].items():
            if not status.startswith("2"):
                assert answer["content"]["application/problem+json"]["examples"], place
    assert len(ids) == len(operations(document))


def test_problems_have_their_own_status(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            examples = answer.get("content", {}).get("application/problem+json", {}).get("examples", {})
            for code in examples:
                assert str(PROBLEM_TYPES[code].status) == status, (method, path, code)


def codes(document: dict[str, Any], method: str, path: str) -> set[str]:
    answers = document["paths"][path][method.lower()]["responses"].values()
    return {
        code
        for answer in answers
        for code in answer.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }


def test_what_is_refused_is_documented(document: dict[str, Any]) -> None:
    documented = codes(document, "POST", "/entries") | codes(document, "POST", "/batches")
    assert {code for code, _, _ in CASES.values()} <= documented


def test_keys_are_documented(document: dict[str, Any]) -> None:
    (scheme,) = document["components"]["securitySchemes"].items()
    assert scheme[1]["scheme"] == "bearer"
    for method, path, operation in operations(document):
        needs_key = "missing-key" in codes(document, method, path)
        assert ("security" in operation) == needs_key, (method, path)


def test_references_resolve(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str):
                assert reference.removeprefix("#/components/schemas/") in schemas, reference
            for each in node.values():
                walk(each)
        elif isinstance(node, list):
            for each in node:
                walk(each)

    walk(document)
    assert {"Record", "Deployment", "FactorSet", "Problem"} <= set(schemas)
    assert schemas["PlacedRecord"]["properties"]["record"] == {"$ref": "#/components/schemas/Record"}


def test_tables_never_leak(document: dict[str, Any]) -> None:
    tables = {mapper.class_.__name__ for mapper in SQLModel._sa_registry.mappers}
    assert "StatementRow" in tables
    assert not tables & set(document["components"]["schemas"])


def test_media_types(document: dict[str, Any]) -> None:
    assert list(document["paths"]["/entries"]["post"]["requestBody"]["content"]) == [COSE]
    assert list(document["paths"]["/batches"]["post"]["requestBody"]["content"]) == [BATCH]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_reference_page_needs_nothing_else(harness: Harness, document: dict[str, Any]) -> None:
    answer = harness.get("/docs", None)
    parser = Tags()
    parser.feed(answer.text)
    assert not any(tag in ("script", "link", "img", "iframe") for tag, _ in parser.found)
    assert "script" not in answer.headers["content-security-policy"]
    assert {attrs["id"] for tag, attrs in parser.found if tag == "h3"} == {
        operation["operationId"] for _, _, operation in operations(document)
    }


def test_document_does_not_change_by_itself(harness: Harness) -> None:
    first, second = harness.get("/openapi.json", None), harness.get("/openapi.json", None)
    assert first.content == second.content
