"""Counting and reserving: exact under concurrency, alerts at the right record, on SQLite and PostgreSQL."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pytest

from ledger.core.errors import InvalidError
from ledger.core.keys import generate_key
from ledger.core.records import Record
from ledger.cost.budgets import Budget
from ledger.service.budget_counting import (
    Answer,
    Check,
    Standing,
    remove_budget,
    set_budget,
    standings,
)
from ledger.service.budget_keeper import BudgetKeeper
from ledger.store import Sequencer, Store, migrate, open_store
from ledger.store import budgets as rows
from ledger.store.append import create_log
from tests.build import (
    ORIGIN,
    START_US,
    Issuer,
    Ledger,
    make_deployment,
    make_record,
    make_records,
    make_uuid7,
)

NOW_S = START_US // 1_000_000 + 600
MODEL = "SmolLM2-135M-Instruct"


@pytest.fixture
def database(new_database: Callable[..., str]) -> str:
    return new_database()


@pytest.fixture
def ledger(database: str) -> Iterator[Ledger]:
    store, log_key, issuer = open_store(database), generate_key(), Issuer()
    migrate(store)
    create_log(store, log_key, ORIGIN)
    sequencer = Sequencer(store, log_key)
    sequencer.start()
    sequencer.add_key(issuer.name, issuer.key.public).result(30)
    sequencer.stop()
    made = Ledger(store, log_key, issuer, make_deployment())
    made.append(issuer.deployment(made.deployment))
    yield made
    store.close()


@contextmanager
def running(store: Store, **options: Any) -> Iterator[BudgetKeeper]:
    keeper = BudgetKeeper(store, clock=lambda: NOW_S, **options)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


def check(n: int, tokens: int, **changes: Any) -> Check:
    fields: dict[str, Any] = {"tenant": "acme", "model": MODEL, "wanted": {"tokens": tokens}, "ttl_s": 900}
    return Check(record_id(n), **(fields | changes))


def record_id(n: int) -> str:
    return make_uuid7(START_US, f"budget {n}")


def record(ledger: Ledger, n: int, **changes: Any) -> Record:
    return make_record(ledger.digest, n=n, **({"id": record_id(n), "tenant": "acme"} | changes))


def tokens(each: Record) -> int:
    return each.usage.input_tokens + each.usage.output_tokens


def standing(store: Store, name: str = "b", tenant: str = "acme") -> Standing:
    with store.read() as connection:
        (found,) = [
            each for each in standings(connection, NOW_S) if (each.budget.name, each.tenant) == (name, tenant)
        ]
    return found


def of_acme(limit: int, **changes: Any) -> Budget:
    fields: dict[str, Any] = {"name": "b", "measure": "tokens", "window": "day", "tenant": "acme"}
    return Budget(limit=limit, **(fields | changes))


def allowed(answers: list[Answer]) -> list[Answer]:
    return [each for each in answers if each.refusal is None]


# --- concurrency -------------------------------------------------------------------------------------------


def test_many_threads_of_two_replicas_get_exactly_the_room_there_is(ledger: Ledger, database: str) -> None:
    """300 requests of 7 at once against a limit of 1,000: 142 fit, whoever asks first."""
    set_budget(ledger.store, of_acme(1_000), now_s=NOW_S)
    other = open_store(database)
    try:
        with running(ledger.store) as one, running(other) as two:
            go = threading.Barrier(12)

            def ask(worker: int) -> list[Future[Answer]]:
                go.wait()
                keeper = (one, two)[worker % 2]
                return [keeper.check(check(worker * 25 + n, 7)) for n in range(25)]

            with ThreadPoolExecutor(12) as pool:
                answers = [each.result(60) for futures in pool.map(ask, range(12)) for each in futures]
    finally:
        other.close()
    assert len(allowed(answers)) == 142
    assert standing(ledger.store).reserved == 142 * 7
    refused = next(each for each in answers if each.refusal is not None)
    assert refused.refusal is not None
    assert refused.refusal.retry_after_s == 2, "nothing is used yet: what runs may use less"


def test_records_settle_reservations_and_the_limit_holds_to_the_token(ledger: Ledger) -> None:
    """Requests and records interleave at random; what was allowed never uses more than the limit."""
    limit = 6_000
    set_budget(ledger.store, of_acme(limit), now_s=NOW_S)
    choose = random.Random(5)
    logged: list[Record] = []
    with running(ledger.store) as keeper:
        n = 0
        for _ in range(12):
            futures = []
            for _ in range(10):
                futures.append((n, keeper.check(check(n, 200))))
                n += 1
            made = [record(ledger, i) for i, future in futures if future.result(30).refusal is None]
            choose.shuffle(made)
            if not made:
                break
            assert all(tokens(each) <= 200 for each in made)
            ledger.append(ledger.issuer.batch(made))
            logged += made
            used = sum(tokens(each) for each in logged)
            answer = keeper.check(check(100_000 + n, 0)).result(30)
            assert answer.rooms[0].used == used <= limit
            assert answer.rooms[0].reserved == 0
        assert limit - sum(tokens(each) for each in logged) < 200, "and all of it could be used"
        assert standing(ledger.store).used == sum(tokens(each) for each in logged)


# --- alerts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["tokens", "energy_uj"])
def test_an_alert_names_the_record_that_reached_it(ledger: Ledger, measure: Any) -> None:
    records = [record(ledger, n, tenant="acme" if n % 3 else "other") for n in range(200)]
    figures = {
        each.id: tokens(each) if measure == "tokens" else each.energy.energy_uj  # type: ignore[union-attr]
        for each in records
    }
    own = [each for each in records if each.tenant == "acme"]
    limit = sum(figures[each.id] for each in own) * 9 // 10
    alerts: list[rows.Alert] = []
    set_budget(ledger.store, of_acme(limit, measure=measure, alerts=(50, 80, 100)), now_s=NOW_S)
    with running(ledger.store, noted=alerts.extend) as keeper:
        for start in range(0, 200, 20):
            ledger.append(ledger.issuer.batch(records[start : start + 20]))
            if start % 40:
                keeper.check(check(900 + start, 0)).result(30)
        keeper.check(check(999, 0)).result(30)
    sums = list(accumulate(figures[each.id] for each in own))
    expected = {
        percent: own[next(i for i, total in enumerate(sums) if total * 100 >= limit * percent)].id
        for percent in (50, 80, 100)
    }
    assert {each.percent: each.record for each in alerts if each.percent} == expected
    with ledger.store.read() as connection:
        stored = rows.alerts(connection)
    assert {each.percent: each.record for each in stored if each.percent} == expected
    refused = next(each for each in alerts if each.percent == 0)
    assert refused.record in {record_id(n) for n in range(900, 1200)}


def test_a_refusal_is_alerted_once_in_a_window(ledger: Ledger) -> None:
    alerts: list[rows.Alert] = []
    set_budget(ledger.store, of_acme(10), now_s=NOW_S)
    with running(ledger.store, noted=alerts.extend) as keeper:
        for n in range(5):
            answer = keeper.check(check(n, 11)).result(30)
            assert answer.refusal is not None
            assert answer.refusal.retry_after_s is None
    assert [(each.percent, each.record) for each in alerts] == [(0, record_id(0))]


# --- what counts, and since when -----------------------------------------------------------------------


def test_what_was_used_before_the_budget_counts(ledger: Ledger) -> None:
    before = [record(ledger, n) for n in range(30)]
    yesterday = [record(ledger, 100 + n, start_us=START_US - 86_400_000_000) for n in range(5)]
    ledger.append(ledger.issuer.batch([*yesterday, *before]))
    total = sum(map(tokens, before))
    set_budget(ledger.store, of_acme(total + 50, alerts=(80,)), now_s=NOW_S)
    assert standing(ledger.store).used == total
    with running(ledger.store) as keeper:
        assert keeper.check(check(500, 50)).result(30).refusal is None
        assert keeper.check(check(501, 1)).result(30).refusal is not None
    with ledger.store.read() as connection:
        (alert,) = [each for each in rows.alerts(connection) if each.percent == 80]
    sums = list(accumulate(map(tokens, before)))
    assert alert.record == before[next(i for i, s in enumerate(sums) if s * 100 >= (total + 50) * 80)].id


def test_a_changed_limit_keeps_what_is_used_and_reserved(ledger: Ledger) -> None:
    set_budget(ledger.store, of_acme(1_000), now_s=NOW_S)
    ledger.append(ledger.issuer.batch([record(ledger, 1)]))
    with running(ledger.store) as keeper:
        assert keeper.check(check(2, 100)).result(30).refusal is None
        set_budget(ledger.store, of_acme(300), now_s=NOW_S)
        found = standing(ledger.store)
        assert (found.used, found.reserved) == (tokens(record(ledger, 1)), 100)
        assert keeper.check(check(3, 100)).result(30).refusal is not None
    remove_budget(ledger.store, "b")
    with pytest.raises(InvalidError, match="no such budget"):
        remove_budget(ledger.store, "b")


def test_each_tenant_by_itself_one_model_and_all_together(ledger: Ledger) -> None:
    records = make_records(30, ledger.digest)  # tenants t-0 to t-2
    ledger.append(ledger.issuer.batch(records))
    set_budget(ledger.store, of_acme(10**6, name="each", tenant="*"), now_s=NOW_S)
    set_budget(ledger.store, of_acme(10**6, name="all", tenant=None), now_s=NOW_S)
    set_budget(ledger.store, of_acme(10**6, name="model", tenant=None, model="another"), now_s=NOW_S)
    for tenant in ("t-0", "t-1", "t-2"):
        own = sum(tokens(each) for each in records if each.tenant == tenant)
        assert standing(ledger.store, "each", tenant).used == own
    assert standing(ledger.store, "all", "").used == sum(map(tokens, records))
    assert standing(ledger.store, "model", "").used == 0
    with running(ledger.store) as keeper:
        rooms = keeper.check(check(1, 5, tenant="t-9")).result(30).rooms
        assert {each.budget.name: each.used for each in rooms} == {
            "each": 0,
            "all": sum(map(tokens, records)),
        }


# --- the end of reservations -------------------------------------------------------------------------------


def test_reservations_end_by_release_and_by_time(ledger: Ledger) -> None:
    now = [float(NOW_S)]
    set_budget(ledger.store, of_acme(100), now_s=NOW_S)
    keeper = BudgetKeeper(ledger.store, clock=lambda: now[0])
    keeper.start()
    try:
        assert keeper.check(check(1, 60)).result(30).refusal is None
        assert keeper.check(check(1, 60)).result(30).refusal is None, "asked again: the same room"
        assert keeper.check(check(2, 60)).result(30).refusal is not None
        keeper.release([record_id(1), record_id(77)]).result(30)
        assert keeper.check(check(2, 60, ttl_s=10)).result(30).refusal is None
        now[0] += 9
        assert keeper.check(check(3, 60)).result(30).refusal is not None
        now[0] += 1
        assert keeper.check(check(3, 60)).result(30).refusal is None
    finally:
        keeper.stop()


def test_without_budgets_everything_goes(ledger: Ledger) -> None:
    with running(ledger.store) as keeper:
        assert keeper.check(check(1, 10**9)).result(30).rooms == ()
