"""Budgets over HTTP: setting, checking, settling by records, who may do what, and what tenants see."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ledger.service import create_api_key
from tests.build import START_US, make_records, make_uuid7
from tests.service.conftest import Harness

MODEL = "SmolLM2-135M-Instruct"
NEW = {"name": "acme-day", "measure": "tokens", "limit": 1_000, "window": "month", "tenant": "acme"}


def post(harness: Harness, path: str, body: Any, scope: str = "emit") -> Any:
    import json

    return harness.post(path, json.dumps(body), "application/json", scope)


def check(harness: Harness, n: int, tokens: int, **changes: Any) -> Any:
    body = {"record": an_id(n), "tenant": "acme", "model": MODEL, "estimate": {"tokens": tokens}} | changes
    answer = post(harness, "/budgets/check", body)
    assert answer.status_code == 200, answer.content
    return answer.json()


def an_id(n: int) -> str:
    return make_uuid7(START_US, f"http {n}")


WANTED = {"record": an_id(0), "model": MODEL, "estimate": {"tokens": 1}}


def put(harness: Harness, **changes: Any) -> Any:
    answer = post(harness, "/budgets", NEW | changes, "admin")
    assert answer.status_code == 200, answer.content
    return answer.json()


def test_a_budget_from_setting_to_refusal(harness: Harness) -> None:
    made = put(harness)
    assert made["alerts"] == [80, 100]
    assert made["standings"][0] | {"window_start_s": 0, "window_end_s": 0} == {
        "tenant": "acme",
        "window_start_s": 0,
        "window_end_s": 0,
        "used": 0,
        "reserved": 0,
        "records": 0,
        "unknown_records": 0,
    }

    first = check(harness, 1, 600)
    assert first["allowed"]
    assert first["budgets"][0]["wanted"] == 600

    second = check(harness, 2, 600)
    assert not second["allowed"]
    assert second["refused_by"] == "acme-day"
    assert "600 reserved, 600 more are wanted" in second["message"]
    assert second["retry_after_s"] == 2

    answer = post(harness, "/budgets/release", {"records": [an_id(1)]})
    assert answer.status_code == 204
    assert check(harness, 2, 600)["allowed"]
    (listed,) = harness.get("/budgets").json()["budgets"]
    assert (listed["name"], listed["standings"][0]["reserved"]) == ("acme-day", 600)

    left = post(harness, "/budgets/acme-day/remove", None, "admin").json()
    assert left == {"budgets": []}


def test_a_record_settles_its_reservation_and_alerts(harness: Harness) -> None:
    put(harness, limit=2_000)
    now_us = time.time_ns() // 1000
    records = make_records(5, harness.ledger.digest, start_us=now_us - 5_000_000, tenant="acme")
    for each in records:
        body = {"record": each.id, "tenant": "acme", "model": MODEL, "estimate": {"tokens": 300}}
        assert post(harness, "/budgets/check", body).json()["allowed"]
    harness.issuer.now_us = now_us
    assert harness.send(harness.issuer.batch(records)).status_code == 201
    used = sum(each.usage.input_tokens + each.usage.output_tokens for each in records)
    room = check(harness, 9, 0)["budgets"][0]
    assert (room["used"], room["reserved"]) == (used, 0)

    put(harness, limit=used * 100 // 85)
    (alert,) = harness.get("/budgets/alerts").json()["alerts"]
    assert (alert["kind"], alert["percent"], alert["record"]) == ("threshold", 80, records[-1].id)
    assert harness.get(f"/budgets/alerts?since_s={alert['noticed_s'] + 1}").json() == {"alerts": []}

    refused = check(harness, 10, used)
    assert not refused["allowed"]
    text = harness.client.get("/metrics").text
    assert 'tallystick_budget_checks_total{outcome="refused"} 1.0' in text
    assert 'tallystick_budget_alerts_total{percent="refused"} 1.0' in text


def test_records_count_without_any_check(harness: Harness) -> None:
    put(harness, tenant="*", limit=100, alerts=[100])
    now_us = time.time_ns() // 1000
    harness.issuer.now_us = now_us
    batch = harness.issuer.batch(make_records(3, harness.ledger.digest, start_us=now_us - 9_000_000))
    assert harness.send(batch).status_code == 201
    deadline = time.monotonic() + 20
    while len(found := harness.get("/budgets/alerts").json()["alerts"]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {each["tenant"] for each in found} == {"t-0", "t-1", "t-2"}


@pytest.mark.parametrize(
    ("method", "path", "body", "scope", "status"),
    [
        ("POST", "/budgets", NEW, "emit", 403),
        ("POST", "/budgets", NEW, "read", 403),
        ("POST", "/budgets/acme-day/remove", None, "read", 403),
        ("POST", "/budgets/acme-day/remove", None, "admin", 404),
        ("POST", "/budgets/a%00/remove", None, "admin", 400),
        ("POST", "/budgets/check", {}, "read", 403),
        ("POST", "/budgets/check", {}, "emit", 422),
        ("POST", "/budgets/check", {**WANTED, "tenant": "a\0"}, "emit", 422),
        ("POST", "/budgets/check", WANTED, "emit", 200),
        ("POST", "/budgets", {**NEW, "limit": 0}, "admin", 422),
        ("POST", "/budgets", {**NEW, "limit": "1"}, "admin", 422),
        ("POST", "/budgets", {**NEW, "window": "week"}, "admin", 422),
        ("POST", "/budgets", {**NEW, "more": 1}, "admin", 422),
        ("POST", "/budgets/release", {"records": ["x"]}, "emit", 422),
        ("GET", "/budgets", None, "emit", 403),
        ("GET", "/budgets/alerts", None, "emit", 403),
    ],
)
def test_who_may_do_what(
    harness: Harness, method: str, path: str, body: Any, scope: str, status: int
) -> None:
    answer = harness.get(path, scope) if method == "GET" else post(harness, path, body, scope)
    assert answer.status_code == status, answer.content


def test_a_tenants_key_sees_and_uses_its_own_budgets_alone(harness: Harness) -> None:
    put(harness, name="ours", tenant="acme")
    put(harness, name="theirs", tenant="other")
    put(harness, name="each", tenant="*")
    put(harness, name="all", tenant=None, limit=10)
    harness.tokens["acme"] = create_api_key(harness.ledger.store, "a", ["emit", "read"], tenant="acme")
    harness.tokens["other"] = create_api_key(harness.ledger.store, "o", ["emit", "read"], tenant="other")

    shown = harness.get("/budgets", "acme").json()["budgets"]
    assert {each["name"] for each in shown} == {"ours", "each"}

    body = {"record": an_id(1), "model": MODEL, "estimate": {"tokens": 5}}
    answer = post(harness, "/budgets/check", body, "acme").json()
    assert answer["allowed"]
    assert {each["budget"] for each in answer["budgets"]} == {"ours", "each"}
    named = post(harness, "/budgets/check", body | {"tenant": "other"}, "acme")
    assert named.status_code == 403

    refused = post(
        harness, "/budgets/check", body | {"record": an_id(2), "estimate": {"tokens": 6}}, "acme"
    ).json()
    assert refused["refused_by"] == "all"
    assert "reserved" not in refused["message"], "what others use is not told"
    assert harness.get("/budgets/alerts", "other").json() == {"alerts": []}
    assert harness.get("/budgets/alerts", "acme").json() == {"alerts": []}

    def reserved() -> int:
        (theirs,) = [each for each in harness.get("/budgets").json()["budgets"] if each["name"] == "ours"]
        return int(theirs["standings"][0]["reserved"])

    assert reserved() == 5
    for who, left in (("other", 5), ("acme", 0)):
        assert post(harness, "/budgets/release", {"records": [an_id(1)]}, who).status_code == 204
        assert reserved() == left, who


def test_budgets_are_set_and_removed_by_acts_in_the_log(harness: Harness) -> None:
    put(harness)
    refused = post(harness, "/budgets", NEW | {"measure": "cost_nano"}, "admin")  # without a currency
    assert refused.status_code == 422
    assert post(harness, "/budgets/acme-day/remove", {}, "admin").status_code == 200
    assert post(harness, "/budgets/acme-day/remove", {}, "admin").status_code == 404
    acts = harness.get("/acts", "admin").json()["acts"]
    by = harness.tokens["admin"].split("_")[1]
    told = [(act["action"], act["particulars"]) for act in acts if act["action"].startswith("budget.")]
    assert told == [
        (
            "budget.set",
            {
                "alerts": "80 100",
                "budget": "acme-day",
                "by": by,
                "limit": "1000",
                "measure": "tokens",
                "refuse": 1,
                "tenant": "acme",
                "window": "month",
            },
        ),
        ("budget.remove", {"budget": "acme-day", "by": by}),
    ]
