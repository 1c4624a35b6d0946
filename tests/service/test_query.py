"""``/query``: what it says is what a plain fold says, at a bounded cost, and of the caller's tenant alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET
from starlette.testclient import TestClient

from ledger.core.records import Record
from ledger.service import Settings, create_api_key, create_app
from ledger.store import summaries
from tests.build import ISSUER, START_US, Ledger, make_deployment, make_ledger, make_record

HOUR_US = 3_600_000_000
PERIOD = {"from_us": START_US, "to_us": START_US + 72 * HOUR_US}


class Asking:
    """A client with a key for everybody's records and one for tenant t-1's."""

    def __init__(self, ledger: Ledger, client: TestClient, records: list[Record]) -> None:
        self.ledger, self.client, self.records = ledger, client, records
        self.all = create_api_key(ledger.store, "all", ["read"])
        self.own = create_api_key(ledger.store, "own", ["read"], tenant="t-1")
        self.emit = create_api_key(ledger.store, "emit", ["emit"])

    def get(self, key: str | None = None, **query: Any) -> Any:
        headers = {"Authorization": f"Bearer {key or self.all}"}
        return self.client.get("/query", params={**PERIOD, **query}, headers=headers)

    def post(self, body: Any, key: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {key or self.all}"}
        return self.client.post("/query", json=body, headers=headers)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    ledger = make_ledger(tmp_path_factory.mktemp("query"))
    other = make_deployment(model="Qwen3-32B", engine="vllm", site="Oslo")
    ledger.append(ledger.issuer.deployment(other))
    records = []
    for batch in range(6):
        made = [
            make_record(
                (ledger.deployment, other)[n % 2],
                n=batch * 30 + n,
                started_us=START_US + batch * 7 * HOUR_US + n * 1_000_000,
                carbon_ng=UNSET if n % 3 else 1000 + n,
                cost_nano=5 * n,
                currency="EUR" if n % 4 else "USD",
                **({"tenant": UNSET} if n == 7 else {}),
            )
            for n in range(30)
        ]
        ledger.append(ledger.issuer.batch(made))
        records += made
    app = create_app(ledger.store, ledger.log_key, Settings(api_key_cache_s=0))
    with TestClient(app, base_url="http://testserver") as client:
        yield Asking(ledger, client, records)
    ledger.store.close()


def value(asking: Asking, name: str, record: Record) -> str | None:
    when = datetime.fromtimestamp(record.started_us // 10**6, UTC)
    first = record.deployment == asking.ledger.digest
    return {
        "day": f"{when:%Y-%m-%d}",
        "hour": f"{when:%Y-%m-%dT%H}:00:00Z",
        "model": "SmolLM2-135M-Instruct" if first else "Qwen3-32B",
        "site": None if first else "Oslo",
        "tenant": None if record.tenant is UNSET else record.tenant,
        "finish_reason": None if record.finish_reason is UNSET else record.finish_reason,
        "issuer": ISSUER,
    }[name]


@pytest.mark.parametrize(
    ("by", "where", "percentiles", "source"),
    [
        ((), {}, False, "rollups"),
        (("day", "model"), {}, False, "rollups"),
        (("tenant",), {"site": ["Oslo"]}, False, "rollups"),
        (("hour",), {"tenant": ["t-1", ""]}, False, "rollups"),
        (("model", "finish_reason"), {}, False, "records"),
        (("site", "tenant"), {"finish_reason": ["stop"], "model": ["Qwen3-32B"]}, True, "records"),
        (("day",), {"site": [""]}, True, "records"),
        (("model",), {"model": ["none"]}, False, "rollups"),
    ],
)
def test_rows_equal_a_plain_fold(
    asking: Asking, by: tuple[str, ...], where: dict[str, list[str]], percentiles: bool, source: str
) -> None:
    groups: dict[tuple[str | None, ...], list[Record]] = defaultdict(list)
    for record in asking.records:
        if all((value(asking, n, record) or "") in values for n, values in where.items()):
            groups[tuple(value(asking, name, record) for name in by)].append(record)
    answer = asking.get(
        by=by, where=[f"{n}={v}" for n, values in where.items() for v in values], percentiles=percentiles
    )
    assert answer.status_code == 200, answer.content
    found = answer.json()
    assert (found["source"], found["truncated"]) == (source, False)
    body = {**PERIOD, "by": by, "where": {n: [v or None for v in vs] for n, vs in where.items()}}
    assert asking.post(body | {"percentiles": percentiles}).json() == found
    rows = {tuple(row[name] for name in by): row for row in found["rows"]}
    assert list(rows) == sorted(groups, key=lambda key: [(part is not None, part or "") for part in key])
    for key, records in groups.items():
        row = rows[key]
        tokens = sum(r.usage.input_tokens + r.usage.output_tokens for r in records)
        energy = sum(r.energy.energy_uj for r in records if r.energy is not UNSET)
        having = [r for r in records if r.carbon_ng is not UNSET]
        assert row["records"] == len(records)
        assert row["input_tokens"] + row["output_tokens"] == tokens
        assert row["energy_uj"] == energy
        assert row["energy_uj_per_1k_tokens"] == (2000 * energy + tokens) // (2 * tokens)
        assert row.get("carbon_records", 0) == len(having)
        assert row.get("carbon_ng") == (sum(r.carbon_ng for r in having) if having else None)  # type: ignore[misc]
        if source == "records":
            costs: dict[str, int] = defaultdict(int)
            for r in records:
                costs[str(r.currency)] += r.cost_nano  # type: ignore[operator]
            assert row["cost_nano"] == costs
        if percentiles:
            durations = sorted(r.ended_us - r.started_us for r in records)
            assert row["duration_us_p50"] == durations[max(0, -(-len(durations) // 2) - 1)]
            assert row["output_tokens_p99"] in {r.usage.output_tokens for r in records}


def test_a_tenants_key_sees_its_own_records_alone(asking: Asking) -> None:
    own = [r for r in asking.records if r.tenant == "t-1"]
    for options in ({}, {"percentiles": True}, {"by": ["tenant"]}, {"by": ["tenant", "finish_reason"]}):
        rows = asking.get(asking.own, **options).json()["rows"]
        assert sum(row["records"] for row in rows) == len(own)
        assert {row.get("tenant", "t-1") for row in rows} == {"t-1"}
    assert asking.get(asking.own, where=["tenant=t-1"]).status_code == 200
    for where in (["tenant=t-0"], ["tenant=t-1", "tenant=t-0"], ["tenant="], ["tenant=nobody"]):
        refused = asking.get(asking.own, where=where)
        assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (403, "other-tenant")
        body = {**PERIOD, "where": {"tenant": [each.partition("=")[2] or None for each in where]}}
        assert asking.post(body, asking.own).json()["type"] == refused.json()["type"]
    assert asking.get(asking.emit).status_code == 403


def test_cost_is_bounded_before_anything_is_read(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MAX_RECORDS", 100)
    refused = asking.get(percentiles=True)
    assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (422, "query-too-large")
    assert asking.get(percentiles=True, to_us=START_US + 8 * HOUR_US).status_code == 200
    # A tenant's bound is over its own records: others' do not show in it.
    assert asking.get(asking.own, percentiles=True).status_code == 200
    monkeypatch.setattr(summaries, "MAX_BATCHES", 3)
    assert asking.get(asking.own, percentiles=True).status_code == 422
    monkeypatch.setattr(summaries, "MAX_ROLLUPS", 3)
    assert asking.get().status_code == 422


def test_rows_are_limited_and_it_says_so(asking: Asking) -> None:
    answer = asking.get(by=["hour", "tenant"], limit=2).json()
    assert len(answer["rows"]) == 2
    assert answer["truncated"] is True


@pytest.mark.parametrize(
    "query",
    [
        {"by": ["colour"]},
        {"where": ["model"]},
        {"where": ["colour=red"]},
        {"to_us": START_US},
        {"to_us": START_US + 401 * 24 * HOUR_US},
        {"limit": 0},
        {"limit": 10_001},
        {"by": ["day"] * 7},
        {"where": ["model=x"] * 101},
        {"where": ["model=" + "x" * 300]},
    ],
)
def test_bad_questions_are_refused(asking: Asking, query: dict[str, Any]) -> None:
    answer = asking.get(**query)
    assert answer.status_code == 400, answer.content
    assert answer.json()["type"].endswith("/bad-parameter")


@pytest.mark.parametrize(
    "body",
    [
        {"from_us": 1},
        {**PERIOD, "by": ["colour"]},
        {**PERIOD, "where": {"colour": ["red"]}},
        {**PERIOD, "where": {"model": []}},
        {**PERIOD, "where": {"model": ["x"] * 101}},
        {**PERIOD, "where": {"model": ["x" * 257]}},
        {**PERIOD, "where": {"model": ["a\0"]}},
        {**PERIOD, "where": {"tenant": ["\0"]}},
        {**PERIOD, "from_us": 1.5},
        {**PERIOD, "limit": True},
        {**PERIOD, "unknown": 1},
        [],
    ],
)
def test_bad_bodies_are_refused(asking: Asking, body: Any) -> None:
    assert asking.post(body).status_code == 422


def test_a_period_within_an_hour_reads_records(asking: Asking) -> None:
    begin, end = START_US + 3_000_000, START_US + 9_500_000
    answer = asking.get(from_us=begin, to_us=end).json()
    assert answer["source"] == "records"
    assert answer["rows"][0]["records"] == sum(begin <= r.started_us < end for r in asking.records) == 7


def test_the_path_is_documented(tmp_path: Path, asking: Asking) -> None:
    paths = asking.client.get("/openapi.json").json()["paths"]["/query"]
    for method in ("get", "post"):
        assert paths[method]["responses"]["200"]["content"]["application/json"]["example"]["rows"]
    assert paths["post"]["requestBody"]["content"]["application/json"]["example"]["by"]
