"""Problems: every code is documented, both forms carry the same, nothing internal leaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cbor2
import pytest

import ledger
from ledger.core import errors
from ledger.service._local_problem_table import LOCAL_TABLE
from ledger.service._problem_table import TABLE
from ledger.service.problem_types import PROBLEM_TYPES, problem_type_of
from tests.service.conftest import Harness

SOURCES = Path(ledger.__file__).parent
CODE = re.compile(r'\bcode(?::\s*str)?\s*=\s*"([a-z0-9-]+)"')


def test_every_code_that_is_raised_is_documented() -> None:
    missing = {
        code: str(path.relative_to(SOURCES))
        for path in sorted(SOURCES.rglob("*.py"))
        for code in CODE.findall(path.read_text())
        if code not in PROBLEM_TYPES
    }
    assert not missing


def test_tables_do_not_overlap() -> None:
    rows = [*TABLE, *LOCAL_TABLE]
    assert len({row[0] for row in rows}) == len(rows)


def test_every_class_has_a_default() -> None:
    for name in errors.__all__:
        error = getattr(errors, name)("x")
        assert problem_type_of(error).code == error.default_code
    assert problem_type_of(errors.RefusedError("x", code="never-heard-of")).code == "refused"


@pytest.mark.parametrize("code", PROBLEM_TYPES)
def test_types_are_complete(code: str) -> None:
    kind = PROBLEM_TYPES[code]
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", code)
    assert 400 <= kind.status < 600
    assert kind.title
    assert not kind.title.endswith(".")
    for text in (kind.explanation, kind.remedy):
        assert text.endswith(".")


def test_each_type_is_explained_at_its_address(harness: Harness) -> None:
    listed = harness.get("/problems", None).json()["problems"]
    assert {each["type"] for each in listed} == {kind.path for kind in PROBLEM_TYPES.values()}
    for each in listed:
        assert harness.get(each["type"], None).json() == each
    page = harness.client.get("/problems/seq-gap", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "Gap in the issuer" in page.text
    assert "script" not in page.text
    assert harness.get("/problems/none-such", None).status_code == 404


CONCISE = "application/concise-problem-details+cbor"
JSON = "application/problem+json"


@pytest.mark.parametrize(
    ("path", "accept", "expected"),
    [
        ("/entries/99", None, CONCISE),
        ("/entries/99", "*/*", CONCISE),
        ("/entries/99", "application/cose", CONCISE),
        ("/entries/99", "application/json", JSON),
        ("/entries/99", "application/problem+json", JSON),
        ("/entries/99", "application/cose, application/json;q=0.5", JSON),
        ("/entries/99", f"{CONCISE}, application/json", JSON + "|" + CONCISE),
        ("/entries/99", f"{CONCISE};q=0.9, application/json;q=0.5", CONCISE),
        ("/entries/99/records", "application/x-ndjson", CONCISE),
        ("/.well-known/scitt-keys/AAAA", None, CONCISE),
        ("/.well-known/scitt-keys/AAAA", "application/json", JSON),
        ("/records/x", None, JSON),
        ("/records/x", "application/cbor", JSON),
        ("/records/x", CONCISE, CONCISE),
        ("/entriesfoo", None, JSON),
        ("/nowhere", "text/html", JSON),
    ],
)
def test_negotiation(harness: Harness, path: str, accept: str | None, expected: str) -> None:
    headers = {"Accept": accept} if accept is not None else {"Accept": ""}
    answer = harness.get(path, headers=headers)
    assert answer.headers["content-type"] in expected.split("|")


def test_both_forms_say_the_same(harness: Harness) -> None:
    as_json = harness.get("/entries/99", headers={"Accept": "application/json"}).json()
    answer = harness.get("/entries/99", headers={"Accept": "application/cose"})
    concise = cbor2.loads(answer.content)
    assert concise[-1] == as_json["title"]
    assert concise[-2] == as_json["detail"]
    tunnel = concise[7807]
    assert (tunnel[0], tunnel[1]) == (as_json["type"], as_json["status"])
    assert (tunnel["where"], tunnel["remedy"]) == (as_json["where"], as_json["remedy"])
    assert answer.status_code == as_json["status"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/records/", 404, "not-found"),
        ("GET", "/healthz/", 404, "not-found"),
        ("PUT", "/records", 405, "method-not-allowed"),
        ("DELETE", "/batches", 405, "method-not-allowed"),
        ("OPTIONS", "/batches", 405, "method-not-allowed"),
        ("GET", "/batches", 405, "method-not-allowed"),
        ("POST", "/healthz", 405, "method-not-allowed"),
        ("GET", "/healthz?x=1", 400, "bad-parameter"),
        ("GET", "/%00", 404, "not-found"),
    ],
)
def test_errors_of_routing_are_problems_too(
    harness: Harness, method: str, path: str, status: int, code: str
) -> None:
    answer = harness.client.request(method, path, headers=harness.headers("admin"))
    assert answer.headers["content-type"] == JSON
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{code}")
    if status == 405:
        assert answer.headers["allow"]


def test_unexpected_errors_leak_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret /etc/path password=hunter2")

    from ledger.store import queries

    monkeypatch.setattr(queries, "log_head", broken)
    answer = harness.get("/checkpoint", None)
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
    assert "hunter2" not in answer.text
    assert "RuntimeError" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    instance = answer.json()["instance"]
    assert instance.startswith("urn:uuid:")
    assert instance in caplog.text
    assert "hunter2" in caplog.text  # the operator sees it
    metrics = harness.get("/metrics", None).text
    assert 'tallystick_problems_total{code="internal"} 1.0' in metrics


def test_failing_database_is_a_problem_of_its_own(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy.exc import OperationalError

    from ledger.store import queries

    def broken(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT secret", {}, Exception("disk I/O error"))

    monkeypatch.setattr(queries, "log_head", broken)
    answer = harness.get("/healthz", None)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/storage-failed")
    assert answer.headers["retry-after"]
    assert "SELECT" not in answer.text
    assert "disk I/O error" in caplog.text


def test_damaged_evidence_is_reported_not_hidden(harness: Harness) -> None:
    from sqlalchemy import text

    harness.log_batch()
    with harness.ledger.store.write() as connection:
        connection.execute(text("UPDATE statement SET records = zeroblob(1) WHERE leaf_index = 3"))
    answer = harness.get("/entries/3/records", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/corrupt")
    assert answer.json()["instance"]
