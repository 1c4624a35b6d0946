"""API keys: what each scope may do, and what happens without one."""

from __future__ import annotations

import hashlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from ledger.core.errors import InvalidError, RefusedError
from ledger.service import Settings, create_api_key, create_app, list_api_keys, revoke_api_key
from ledger.service.auth import ApiKeys, check_sum
from tests.build import Ledger
from tests.service.conftest import Harness

KID = "ab" * 32
NEEDS: list[tuple[str, str, set[str]]] = [
    ("POST", "/entries", {"emit", "admin"}),
    ("POST", "/batches", {"emit", "admin"}),
    ("GET", "/entries/2", {"emit", "read", "admin"}),
    ("GET", "/entries/2/statement", {"emit", "read", "admin"}),
    ("GET", "/entries/2/transparent", {"emit", "read", "admin"}),
    ("GET", "/entries/2/proof", {"emit", "read", "admin"}),
    ("GET", "/entries/2/records", {"read", "admin"}),
    ("GET", "/proofs/inclusion?leaf_index=0", {"emit", "read", "admin"}),
    ("GET", "/proofs/consistency?from=1", {"emit", "read", "admin"}),
    ("GET", "/records", {"read", "admin"}),
    ("GET", f"/records/{KID}", {"read", "admin"}),
    ("GET", f"/records/{KID}/proof", {"read", "admin"}),
    ("GET", "/rollups", {"read", "admin"}),
    ("GET", "/issuers", {"read", "admin"}),
    ("GET", "/issuers/gpu-7.example.com/llama/keys", {"emit", "read", "admin"}),
    ("POST", "/issuers", {"admin"}),
    ("POST", f"/issuers/gpu-7.example.com/llama/keys/{KID}/revoke", {"admin"}),
    ("GET", "/deployments", {"emit", "read", "admin"}),
    ("GET", f"/deployments/{KID}", {"emit", "read", "admin"}),
    ("GET", "/factors", {"emit", "read", "admin"}),
    ("GET", f"/factors/{KID}", {"emit", "read", "admin"}),
    ("GET", "/prices", {"emit", "read", "admin"}),
    ("GET", f"/prices/{KID}", {"emit", "read", "admin"}),
    ("POST", "/invitations", {"admin"}),
    ("GET", "/acts", {"admin"}),
    ("GET", "/query?from_us=0&to_us=3600000000", {"read", "admin"}),
    ("POST", "/query", {"read", "admin"}),
    ("GET", "/budgets", {"read", "admin"}),
    ("POST", "/budgets", {"admin"}),
    ("POST", "/budgets/x/remove", {"admin"}),
    ("GET", "/budgets/alerts", {"read", "admin"}),
    ("POST", "/budgets/check", {"emit", "admin"}),
    ("POST", "/budgets/release", {"emit", "admin"}),
]
PUBLIC = [
    "/healthz", "/metrics", "/checkpoint", "/tile/0/000.p/1", "/tile/entries/000.p/1", "/log",
    "/.well-known/scitt-keys", "/problems", "/problems/seq-gap", "/openapi.json", "/docs",
]  # fmt: skip
JSON = {"Accept": "application/json"}


def ask(client: Any, method: str, path: str, token: str | None) -> Any:
    headers = JSON if token is None else JSON | {"Authorization": f"Bearer {token}"}
    return client.request(method, path, headers=headers)


@pytest.mark.parametrize(("method", "path", "scopes"), NEEDS)
def test_scopes(harness: Harness, method: str, path: str, scopes: set[str]) -> None:
    missing = ask(harness.client, method, path, None)
    assert (missing.status_code, missing.json()["type"]) == (401, "/problems/missing-key")
    assert missing.headers["www-authenticate"].startswith("Bearer")
    for scope in ("emit", "read", "admin"):
        answer = ask(harness.client, method, path, harness.tokens[scope])
        if scope in scopes:
            assert answer.status_code not in (401, 403, 500), answer.content
        else:
            assert (answer.status_code, answer.json()["type"]) == (403, "/problems/missing-scope")


@pytest.mark.parametrize("path", PUBLIC)
def test_public(harness: Harness, path: str) -> None:
    assert ask(harness.client, "GET", path, None).status_code == 200


def test_every_operation_is_in_one_of_the_lists(harness: Harness) -> None:
    covered = {path.partition("?")[0] for _, path, _ in NEEDS} | set(PUBLIC)
    covered.add("/enrolments")  # its key is in its body: see tests/security
    for path, operations in harness.get("/openapi.json", None).json()["paths"].items():
        for method in operations:
            pattern = path.replace("{path}", "x")
            filled = (
                pattern.replace("{entry_id}", "2")
                .replace("{issuer}", "gpu-7.example.com/llama")
                .replace("{code}", "seq-gap")
                .replace("{name}", "x")
            )
            for name in ("{kid}", "{digest}", "{record_id}"):
                filled = filled.replace(name, KID)
            if path in ("/tile/{path}", "/.well-known/scitt-keys/{kid}"):
                continue
            assert filled in covered, (method, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1] + ("a" if token[-1] != "a" else "b"),
        lambda token: token + "a",
        lambda token: token.replace("tsk_", "tsk-"),
        lambda token: "tsk_000000000000_" + token.rpartition("_")[2],
        lambda token: token.upper(),
        lambda token: "x",
        lambda token: "x" * 10_000,
        lambda token: "tsk_' OR 1=1 --_",
    ],
)
def test_wrong_keys_all_get_the_same_answer(harness: Harness, change: Any) -> None:
    answer = ask(harness.client, "GET", "/records", change(harness.tokens["read"]))
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/wrong-key")
    assert answer.json()["detail"] == "the API key is malformed, unknown or revoked"


@pytest.mark.parametrize("value", ["", "Basic dXNlcjpwYXNz", "Bearer", "tsk_x"])
def test_other_schemes_are_no_key(harness: Harness, value: str) -> None:
    answer = harness.client.get("/records", headers={"Authorization": value})
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/missing-key")


def test_key_in_the_query_is_refused(harness: Harness) -> None:
    answer = harness.client.get(f"/records?api_key={harness.tokens['read']}")
    assert answer.status_code == 400
    assert harness.tokens["read"] not in answer.text


def test_revoked_key(harness: Harness) -> None:
    token = harness.tokens["read"]
    assert ask(harness.client, "GET", "/records", token).status_code == 200
    revoke_api_key(harness.ledger.store, token.split("_")[1])
    answer = ask(harness.client, "GET", "/records", token)
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/wrong-key")


def test_revoked_key_is_forgotten_after_the_cache_time(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = create_api_key(ledger.store, "short", ["read"])
    with TestClient(create_app(ledger.store, ledger.log_key, Settings(api_key_cache_s=300))) as client:
        assert ask(client, "GET", "/records", token).status_code == 200
        revoke_api_key(ledger.store, token.split("_")[1])
        assert ask(client, "GET", "/records", token).status_code == 200
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 301)
        monkeypatch.setattr("ledger.service.auth.time", later)
        assert ask(client, "GET", "/records", token).status_code == 401


def test_store_has_no_token(ledger: Ledger) -> None:
    token = create_api_key(ledger.store, "somebody", ["emit"])
    with ledger.store.read() as connection:
        rows = [tuple(row) for row in connection.execute(text("SELECT * FROM api_key"))]
    assert token.rpartition("_")[2] not in str(rows)
    assert rows[0][1] == hashlib.sha256(token.encode()).digest()


@pytest.mark.parametrize("edit", ["scopes = 'admin'", "label = 'x'", "created_s = 0"])
def test_edited_row_is_refused(ledger: Ledger, edit: str) -> None:
    token = create_api_key(ledger.store, "somebody", ["emit"])
    keys = ApiKeys(ledger.store, ttl_s=0)
    assert keys.check(token).scopes == ("emit",)
    with ledger.store.write() as connection:
        connection.execute(text(f"UPDATE api_key SET {edit}"))
    with pytest.raises(RefusedError) as caught:
        keys.check(token)
    assert caught.value.code == "wrong-key"


def test_revival_of_a_revoked_key_shows(ledger: Ledger) -> None:
    token = create_api_key(ledger.store, "somebody", ["emit"])
    revoke_api_key(ledger.store, token.split("_")[1])
    revoke_api_key(ledger.store, token.split("_")[1])  # again: nothing happens
    with ledger.store.write() as connection:
        connection.execute(text("UPDATE api_key SET revoked_s = NULL"))
    with pytest.raises(RefusedError):
        ApiKeys(ledger.store, ttl_s=0).check(token)


def test_listing(ledger: Ledger) -> None:
    token = create_api_key(ledger.store, "prüfer 1", ["read", "emit"])
    (info,) = list_api_keys(ledger.store)
    assert (info.id, info.scopes, info.label) == (token.split("_")[1], ("emit", "read"), "prüfer 1")
    assert info.revoked_s is None
    assert "tsk" not in repr(info)


@pytest.mark.parametrize(
    ("label", "scopes", "code"),
    [
        ("x", [], "bad-scope"),
        ("x", ["write"], "bad-scope"),
        ("x", ["read", "root"], "bad-scope"),
        ("", ["read"], "bad-parameter"),
        ("two\nlines", ["read"], "bad-parameter"),
        ("x" * 201, ["read"], "bad-parameter"),
    ],
)
def test_unusable_keys_are_not_made(ledger: Ledger, label: str, scopes: list[str], code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        create_api_key(ledger.store, label, scopes)
    assert caught.value.code == code
    assert list_api_keys(ledger.store) == []


def test_unknown_key_cannot_be_revoked(ledger: Ledger) -> None:
    with pytest.raises(InvalidError) as caught:
        revoke_api_key(ledger.store, "nope")
    assert caught.value.code == "not-found"


def test_check_sum_covers_every_column() -> None:
    row: dict[str, Any] = {
        "id": "a", "token_sha256": b"b", "scopes": "emit", "label": "c", "created_s": 1, "revoked_s": None
    }  # fmt: skip
    changes = {
        "id": "b",
        "token_sha256": b"c",
        "scopes": "admin",
        "label": "d",
        "created_s": 2,
        "revoked_s": 3,
    }
    sums = {check_sum(**(row | {name: value})) for name, value in changes.items()} | {check_sum(**row)}
    assert len(sums) == 7
