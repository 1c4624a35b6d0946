"""Tenant A cannot read, count, infer from errors or time, or prove what is tenant B's."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from ledger.core.errors import InvalidError, RefusedError
from ledger.core.records import Quality, document_digest, encode_record, record_hash
from ledger.core.statements import Acknowledgement, Correction, Evaluation
from ledger.service import Settings, create_app, edge
from ledger.service.admin import grant_api_key
from ledger.service.edge import EVEN_S
from ledger.store.tenancy import bind_issuer, check_tenant, tenant_of_issuer
from tests.build import Issuer, make_deployment, make_records
from tests.security.conftest import World

UNKNOWN = "019ab0c2-7d1e-7a55-9a3b-0f1e2d3c4b5a"
BATCH = "application/vnd.tallystick.batch+cbor"
COSE = "application/cose"
JSON = {"Accept": "application/json"}


class Service:
    """A running app over a world with tenants a and b, whose records are apart and mixed."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.world = world
        self.apart_a = world.log_batch(["a", "a"])
        self.apart_b = world.log_batch(["b", "b", "b"])
        self.mixed = world.log_batch(["a", "b"])
        self.issuers = {name: Issuer(f"{name}.example.com/vllm") for name in "ab"}
        for name, issuer in self.issuers.items():
            world.sequencer.add_key(issuer.name, issuer.key.public, tenant=name).result(30)
        grant = lambda scopes, tenant=None: grant_api_key(world.sequencer, "x", scopes, tenant=tenant)  # noqa: E731
        self.tokens = {
            "a": grant(["read", "emit"], "a"),
            "b": grant(["read", "emit"], "b"),
            "all": grant(["read"]),
            "admin": grant(["admin"]),
            "emit": grant(["emit"]),
        }
        app = create_app(world.store, world.log_key, Settings(api_key_cache_s=0, **settings))
        self.client = TestClient(app, raise_server_exceptions=False)

    def get(self, path: str, who: str = "a", **options: Any) -> Any:
        headers = JSON | {"Authorization": f"Bearer {self.tokens[who]}"} | options.pop("headers", {})
        return self.client.get(path, headers=headers, **options)

    def send(self, path: str, body: bytes, media_type: str, who: str) -> Any:
        headers = JSON | {"Authorization": f"Bearer {self.tokens[who]}", "Content-Type": media_type}
        return self.client.post(path, content=body, headers=headers)


@pytest.fixture
def service(sqlite_world: World) -> Iterator[Service]:
    made = Service(sqlite_world)
    with made.client:
        yield made


def pair(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json().get("type", "") if answer.status_code >= 400 else ""


def same_but_for(one: Any, other: Any, *names: str) -> bool:
    """Whether two answers tell the same, the names that were asked for aside."""
    texts = [answer.text for answer in (one, other)]
    for name in names:
        texts = [text.replace(name, "X") for text in texts]
    return one.status_code == other.status_code and texts[0] == texts[1]


def test_reading(service: Service) -> None:
    world = service.world
    own = {record.id for record in world.records_of("a")}
    listed = service.get("/records?limit=1000").json()["records"]
    assert {each["record"]["id"] for each in listed} == own
    assert {each["record"]["tenant"] for each in listed} == {"a"}
    everything = service.get("/records?limit=1000", "all").json()["records"]
    assert len(everything) == len(world.logged)
    for record in world.records_of("a"):
        assert service.get(f"/records/{record.id}").json()["record"]["id"] == record.id
        assert service.get(f"/records/{record.id}/proof").status_code == 200
    lines = service.get(f"/entries/{service.mixed}/records").text.splitlines()
    assert len(lines) == 1
    assert '"tenant":"a"' in lines[0]


def test_counting(service: Service) -> None:
    rows = service.get("/rollups?by=tenant").json()["rows"]
    assert [(row["tenant"], row["records"]) for row in rows] == [("a", 3)]
    assert service.get("/rollups").json()["rows"][0]["records"] == 3
    for asked in ("b", "", "nobody"):
        answers = [service.get(f"{path}?tenant={asked}") for path in ("/rollups",)]
        answers += [service.get(f"/records?tenant={asked}")] if asked else []
        assert {pair(answer) for answer in answers} == {(403, "/problems/other-tenant")}
    assert same_but_for(service.get("/rollups?tenant=b"), service.get("/rollups?tenant=nobody"))
    page = service.get("/records?limit=1").json()
    seen = 1
    while "next" in page:
        page = service.get(f"/records?limit=1&cursor={page['next']}").json()
        seen += len(page["records"])
    assert seen == 3


@pytest.mark.parametrize("suffix", ["", "/proof"])
def test_another_tenants_record_is_as_one_that_is_not_there(service: Service, suffix: str) -> None:
    unknown = service.get(f"/records/{UNKNOWN}{suffix}")
    assert pair(unknown) == (404, "/problems/not-found")
    for record in service.world.records_of("b"):
        other = service.get(f"/records/{record.id}{suffix}")
        assert same_but_for(other, unknown, record.id, UNKNOWN)
        assert {k.lower() for k in other.headers} == {k.lower() for k in unknown.headers}


@pytest.mark.parametrize("suffix", ["", "/statement", "/transparent", "/proof", "/records"])
def test_another_tenants_entries_are_as_some_that_are_not_there(service: Service, suffix: str) -> None:
    missing = service.get(f"/entries/9999{suffix}")
    assert pair(missing) == (404, "/problems/not-found")
    other = service.get(f"/entries/{service.apart_b}{suffix}")
    assert same_but_for(other, missing, str(service.apart_b), "9999")
    leaf = next(batch for _, at, batch in service.world.logged if at == service.apart_b)
    by_hash = service.get(f"/entries/{leaf.statement.leaf_hash.hex()}{suffix}")
    assert pair(by_hash) == (404, "/problems/not-found")
    for own in (service.apart_a, service.mixed):
        assert service.get(f"/entries/{own}{suffix}").status_code == 200
    assert service.get(f"/entries/{service.apart_b}{suffix}", "all").status_code == 200


def test_proofs_of_another_tenants_entries(service: Service) -> None:
    assert service.get(f"/proofs/inclusion?leaf_index={service.apart_a}").status_code == 200
    answer = service.get(f"/proofs/inclusion?leaf_index={service.apart_b}")
    assert pair(answer) == (404, "/problems/not-found")


def test_documents_and_issuers(service: Service) -> None:
    world = service.world
    second = make_deployment(model="only b's")
    world.log(world.issuer.deployment(second))
    world.log_batch(["b"])
    shown = service.get("/deployments").json()["deployments"]
    assert [each["model"] for each in shown] == [make_deployment().model]
    digests = [each["digest"] for each in service.get("/deployments", "all").json()["deployments"]]
    assert len(digests) == 2
    missing = service.get(f"/deployments/{'ab' * 32}")
    hidden = service.get(f"/deployments/{digests[1]}")
    assert same_but_for(missing, hidden, "ab" * 32, digests[1])
    assert [each["issuer"] for each in service.get("/issuers").json()["issuers"]] == ["a.example.com/vllm"]
    assert service.get("/issuers/a.example.com%2Fvllm/keys").status_code == 200
    unknown = service.get("/issuers/z.example.com%2Fvllm/keys")
    there = service.get("/issuers/b.example.com%2Fvllm/keys")
    assert same_but_for(unknown, there, "z.example.com/vllm", "b.example.com/vllm")
    assert service.get("/acts").status_code == 403


def test_time_does_not_tell_either(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that say no come at multiples of one interval: what looking took does not show."""
    other = service.world.records_of("b")[0].id
    step_s, waits, clock = [0.0], [], itertools.count()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(seconds)

    monkeypatch.setattr(edge, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(edge, "time", SimpleNamespace(perf_counter=lambda: next(clock) * step_s[0]))
    for record_id, step_s[0] in ((UNKNOWN, 0.007), (other, 0.032)):  # looking takes so long
        begun = time.perf_counter()
        assert service.get(f"/records/{record_id}").status_code == 404
        assert time.perf_counter() - begun >= EVEN_S - 0.007
    assert waits == pytest.approx([EVEN_S - 0.007, 2 * EVEN_S - 0.032])
    assert service.get(f"/records/{UNKNOWN}", "all").status_code == 404  # who may see all need not wait
    assert len(waits) == 2


def test_logging_for_another_tenant(service: Service) -> None:
    issuer = service.issuers["a"]
    own = issuer.batch(make_records(1, make_deployment(), first=900, tenant="a"))
    assert service.send("/batches", own.body, BATCH, "b").json()["type"] == "/problems/other-tenant"
    assert service.send("/batches", own.body, BATCH, "a").status_code == 201
    chain = dict(vars(issuer))
    for tenants in (["b"], ["a", "b"], ["a", None]):
        records = []
        for number, tenant in enumerate(tenants):
            changes = {} if tenant is None else {"tenant": tenant}
            (record,) = make_records(1, make_deployment(), first=910 + number, **changes)
            if tenant is None:
                from msgspec import UNSET, structs

                record = structs.replace(record, tenant=UNSET)
            records.append(record)
        batch = issuer.batch(records)
        for who in ("a", "emit"):  # also a key that may log for all: the issuer is one tenant's
            answer = service.send("/batches", batch.body, BATCH, who)
            assert pair(answer) == (403, "/problems/other-tenant"), tenants
        vars(issuer).update(chain)
    shared = service.world.issuer.batch(make_records(1, make_deployment(), first=950, tenant="a"))
    assert pair(service.send("/batches", shared.body, BATCH, "a")) == (403, "/problems/other-tenant")


def test_correcting_another_tenants_record(service: Service) -> None:
    issuer = service.issuers["a"]
    own, other = service.world.records_of("a")[0], service.world.records_of("b")[0]
    chain = dict(vars(issuer))

    def tries(record_id: str, digest: bytes) -> list[Any]:
        payloads = [
            Correction(record=record_id, record_hash=digest.hex(), reason="x", cost_nano=1, **issuer.chain()),
        ]
        answers = []
        for payload in payloads:
            answers.append(service.send("/entries", issuer.sign(payload).entry, COSE, "a"))
            if answers[-1].status_code != 201:
                vars(issuer).update(chain)
        evaluation = Evaluation(
            evaluator="x", metrics={"f": Quality(value=1, scale=0)}, record=record_id, **issuer.chain()
        )
        answers.append(service.send("/entries", issuer.sign(evaluation).entry, COSE, "a"))
        if answers[-1].status_code != 201:
            vars(issuer).update(chain)
        return answers

    hidden = tries(other.id, record_hash(encode_record(other)))
    missing = tries(UNKNOWN, bytes(32))
    assert {pair(answer) for answer in hidden + missing} == {(403, "/problems/other-tenant")}
    assert all(same_but_for(x, y) for x, y in zip(hidden, missing, strict=True))
    assert {answer.status_code for answer in tries(own.id, record_hash(encode_record(own)))} == {201}


def test_evaluating_what_is_anothers(service: Service) -> None:
    world, issuer = service.world, service.issuers["a"]
    world.log(world.issuer.deployment(make_deployment(model="only b's")))
    only_b = document_digest(make_deployment(model="only b's"))
    world.log_batch(["b"])
    leaf_of = {at: batch.statement.leaf_hash.hex() for _, at, batch in world.logged}

    def tries(kind: Any, **about: str) -> Any:
        chain = dict(vars(issuer))
        fields: dict[str, Any] = {"receipt": "00" * 32}
        if kind is Evaluation:
            fields = {"evaluator": "x", "metrics": {"f": Quality(value=1, scale=0)}}
        entry = issuer.sign(kind(**fields, **about, **issuer.chain())).entry
        answer = service.send("/entries", entry, COSE, "a")
        if answer.status_code != 201:
            vars(issuer).update(chain)
        return answer

    refused = [
        tries(kind, statement=each)
        for kind in (Evaluation, Acknowledgement)
        for each in (leaf_of[service.apart_b], "ab" * 32)
    ]
    refused += [tries(Evaluation, deployment=each) for each in (only_b, "ab" * 32)]
    assert {pair(answer) for answer in refused} == {(403, "/problems/other-tenant")}
    assert len({answer.text for answer in refused}) == 1
    # What both use, each evaluates for itself: the other is shown nothing of it.
    both = (
        tries(Evaluation, deployment=document_digest(make_deployment())),
        tries(Evaluation, statement=leaf_of[service.mixed]),
    )
    assert [answer.status_code for answer in both] == [201, 201]
    own, other = (next(r for r, at, _ in world.logged[-3:] if r.tenant == name) for name in ("a", "b"))
    assert len(service.get(f"/records/{own.id}").json()["evaluations"]) == 2
    assert len(service.get(f"/records/{other.id}", "all").json()["evaluations"]) == 2
    assert "evaluations" not in service.get(f"/records/{other.id}", "b").json()
    for answer in both:
        assert service.get(answer.headers["location"], "a").status_code == 200
        assert pair(service.get(answer.headers["location"], "b")) == (404, "/problems/not-found")


def test_closed_log(sqlite_world: World) -> None:
    """Tiles show all statements: the operator can close them, and the metrics, to tenants and strangers."""
    service = Service(sqlite_world, public_log=False)
    with service.client:
        for path in ("/tile/0/000.p/1", "/tile/entries/000.p/1", "/metrics"):
            assert service.client.get(path, headers=JSON).status_code == 401
            assert pair(service.get(path, "a")) == (403, "/problems/other-tenant")
            assert service.get(path, "emit").status_code == 403
            assert service.get(path, "all").status_code == 200
        assert "public" not in service.get("/tile/0/000.p/1", "all").headers["cache-control"]
        assert service.client.get("/checkpoint").status_code == 200


def test_rates_are_for_each_tenant(sqlite_world: World) -> None:
    service = Service(sqlite_world, requests_per_s=1)
    with service.client:
        answers = [service.get("/rollups", "a") for _ in range(14)]
        codes = [answer.status_code for answer in answers]
        assert codes[:10] == [200] * 10
        refused = answers[codes.index(429)]
        assert refused.json()["type"] == "/problems/too-many-requests"
        assert int(refused.headers["retry-after"]) >= 1
        assert service.get("/rollups", "b").status_code == 200
        assert service.get("/rollups", "all").status_code == 200


def test_body_bytes_are_counted(sqlite_world: World) -> None:
    service = Service(sqlite_world, body_bytes_per_s=100)
    with service.client:
        issuer = service.issuers["a"]
        answers = []
        for number in range(4):
            batch = issuer.batch(make_records(1, make_deployment(), first=900 + number, tenant="a"))
            answers.append(service.send("/batches", batch.body, BATCH, "a").status_code)
        assert answers[0] == 201
        assert answers[-1] == 429


@pytest.mark.parametrize("tenant", ["", "a b", "-a", "a" * 65, "ä", "a\n", "a/b"])
def test_what_no_record_can_carry_is_no_tenant(tenant: str) -> None:
    with pytest.raises(InvalidError):
        check_tenant(tenant)


def test_tenants_of_keys_and_issuers_are_fixed(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    with pytest.raises(InvalidError):
        grant_api_key(world.sequencer, "x", ["admin"], tenant="a")
    with world.store.write() as connection:
        bind_issuer(connection, "new.example.com", "a")
        bind_issuer(connection, "new.example.com", "a")
        bind_issuer(connection, "new.example.com", None)  # a further key: it stays the tenant's
        assert tenant_of_issuer(connection, "new.example.com") == "a"
        for issuer, tenant in (("new.example.com", "b"), (world.issuer.name, "a")):
            with pytest.raises(RefusedError):
                bind_issuer(connection, issuer, tenant)
