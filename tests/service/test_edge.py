"""The edge: HEAD, headers, metrics. Settings, budgets and decompression by themselves."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as some
from starlette.testclient import TestClient

from ledger import zstd
from ledger.core.errors import InvalidError, UnavailableError
from ledger.service import Settings, create_app, settings_from_environment
from ledger.service.bodies import decompress
from ledger.service.limits import Budget
from tests.build import Ledger
from tests.service.conftest import Harness

HEADERS = (
    "x-content-type-options", "content-security-policy", "referrer-policy", "cross-origin-resource-policy",
    "cache-control",
)  # fmt: skip


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/checkpoint", "/docs", "/entries/99", "/records"])
def test_security_headers(harness: Harness, path: str) -> None:
    answer = harness.get(path, None)
    for name in HEADERS:
        assert answer.headers[name]
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers


def test_cross_origin_requests_get_no_permission(harness: Harness) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = harness.client.options("/batches", headers=headers)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/healthz", "/checkpoint", "/tile/0/000.p/3", "/nowhere", "/records"])
def test_head_is_get_without_content(harness: Harness, path: str) -> None:
    got, headed = harness.get(path), harness.client.head(path, headers=harness.headers("read"))
    assert headed.status_code == got.status_code
    assert headed.content == b""
    assert headed.headers["content-length"] == got.headers["content-length"]
    assert headed.headers["content-type"] == got.headers["content-type"]


def sample(text: str, name: str) -> float:
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).rpartition(" ")[2])


def test_metrics(harness: Harness) -> None:
    harness.log_batch(5)
    bad = harness.issuer.heartbeat()
    harness.issuer.heartbeat()
    harness.send(bad)
    late = harness.issuer.heartbeat()
    assert harness.send(late).status_code == 409
    harness.get("/entries/3")
    harness.get("/entries/4")
    harness.get("/made/up/address")
    text = harness.get("/metrics", None).text
    assert sample(text, "tallystick_records_total") == 5
    assert sample(text, "tallystick_statements_total") == 2
    assert sample(text, "tallystick_refused_statements_total") == 1
    assert sample(text, "tallystick_tree_size") == 5
    assert sample(text, "tallystick_commit_seconds_count") == 3
    assert sample(text, "tallystick_commit_statements_sum") == 2
    assert sample(text, 'tallystick_problems_total{code="seq-gap"}') == 1
    route = 'method="GET",route="/entries/{entry_id}",status="200"'
    assert sample(text, f"tallystick_http_requests_total{{{route}}}") == 2
    assert sample(text, 'tallystick_http_requests_total{method="GET",route="none",status="404"}') == 1
    assert sample(text, 'tallystick_http_request_seconds_count{route="/batches"}') == 1
    assert sample(text, "tallystick_buffered_bytes") == 0
    for secret in (harness.issuer.name, "t-0", *harness.tokens.values()):
        assert secret not in text


def test_two_apps_count_apart(ledger: Ledger) -> None:
    with TestClient(create_app(ledger.store, ledger.log_key)) as one:
        one.get("/healthz")
    with TestClient(create_app(ledger.store, ledger.log_key)) as two:
        assert 'route="/healthz"' not in two.get("/metrics").text
        assert sample(two.get("/metrics").text, "tallystick_tree_size") == 3


def test_methods_that_nobody_knows_share_a_label(harness: Harness) -> None:
    for method in ("BREW", "WHEN"):
        harness.client.request(method, "/healthz")
    text = harness.get("/metrics", None).text
    assert sample(text, 'tallystick_http_requests_total{method="other",route="/healthz",status="405"}') == 2


def test_requests_are_logged_without_their_query(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(create_app(ledger.store, ledger.log_key, Settings(log_requests=True))) as client:
        with caplog.at_level("INFO", "ledger.service"):
            client.get("/records?api_key=tsk_secret")
            client.get("/a%0Ab")
        assert "GET '/records' 400 bad-parameter " in caplog.text
        assert "GET '/a\\nb' 404 not-found " in caplog.text
        assert "tsk_secret" not in caplog.text


def test_health_after_the_stop(ledger: Ledger) -> None:
    app = create_app(ledger.store, ledger.log_key)
    with TestClient(app) as client:
        assert client.get("/healthz").json() == {"status": "ok", "size": 3, "version": app.version}
        app.state.service.serving = False
        answer = client.get("/healthz")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/stopping")


def test_docs_can_be_switched_off(ledger: Ledger) -> None:
    with TestClient(create_app(ledger.store, ledger.log_key, Settings(docs=False))) as client:
        assert client.get("/docs").status_code == 404


# --- settings ---


def test_every_setting_has_a_text() -> None:
    for each in fields(Settings):
        assert each.metadata["text"].endswith("."), each.name


def test_settings_from_the_environment() -> None:
    found = settings_from_environment(
        {"TALLYSTICK_READ_THREADS": "3", "TALLYSTICK_DOCS": "off", "TALLYSTICK_OTHER": "x"}, keep_alive_s=7
    )
    assert (found.read_threads, found.docs, found.keep_alive_s) == (3, False, 7)
    assert settings_from_environment({}, keep_alive_s=None) == Settings()
    assert settings_from_environment({"TALLYSTICK_KEEP_ALIVE_S": "9"}, keep_alive_s=7).keep_alive_s == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TALLYSTICK_READ_THREADS", "0"),
        ("TALLYSTICK_READ_THREADS", "13"),
        ("TALLYSTICK_READ_THREADS", "-1"),
        ("TALLYSTICK_READ_THREADS", "many"),
        ("TALLYSTICK_READ_THREADS", ""),
        ("TALLYSTICK_READ_THREADS", "1.5"),
        ("TALLYSTICK_DOCS", "perhaps"),
        ("TALLYSTICK_API_KEY_CACHE_S", "301"),
    ],
)
def test_bad_settings_name_the_variable(name: str, value: str) -> None:
    with pytest.raises(InvalidError) as caught:
        settings_from_environment({name: value})
    assert (caught.value.code, caught.value.where) == ("bad-setting", name)


# --- budgets and decompression ---


def test_budget() -> None:
    budget = Budget(100)
    budget.take(60)
    with pytest.raises(UnavailableError) as caught:
        budget.take(41)
    assert caught.value.code == "overloaded"
    budget.take(40)
    budget.give(100)
    budget.take(1000)  # alone, one request always fits
    budget.give(1000)
    assert budget.taken == 0


@given(data=some.binary(max_size=2000), limit=some.integers(0, 2000))
def test_decompression_is_bounded(data: bytes, limit: int) -> None:
    packed = zstd.compress(data)
    if len(data) <= limit:
        assert decompress(packed, max_bytes=limit) == data
    else:
        with pytest.raises(InvalidError) as caught:
            decompress(packed, max_bytes=limit)
        assert caught.value.code == "compressed-bomb"


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(100)), zstd.compress(b"abc")[:-1]])
def test_other_bytes_do_not_decompress(data: bytes) -> None:
    with pytest.raises(InvalidError) as caught:
        decompress(data, max_bytes=1000)
    assert caught.value.code == "bad-compression"
