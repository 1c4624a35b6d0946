"""Several replicas on one log: one history, whoever appends; none signs for a database that went back."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from ledger.core import merkle
from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import CorruptError, RefusedError, UnavailableError
from ledger.core.keys import generate_key
from ledger.store import Sequencer, fence, migrate, open_store, queries
from ledger.store.append import create_log
from ledger.store.fence import Seen, lock_head
from ledger.store.startup import check_consistent, check_durable
from tests.build import ORIGIN, Issuer, make_deployment, make_records
from tests.databases import Postgres, database_name
from tests.store.conftest import World
from tests.store.test_append import check_tree

DEPLOYMENT = make_deployment()


@pytest.fixture
def replicas(new_database: Callable[[], str], tmp_path: Path) -> Iterator[list[World]]:
    """Three replicas of one log, each with connections of its own; they share a published checkpoint."""
    yield from three_replicas(new_database(), tmp_path)


def three_replicas(url: str, directory: Path) -> Iterator[list[World]]:
    log_key = generate_key()
    store = open_store(url)
    migrate(store)
    create_log(store, log_key, ORIGIN)
    store.close()
    worlds = []
    for _ in range(3):
        store = open_store(url)
        sequencer = Sequencer(store, log_key, published=directory / "checkpoint")
        sequencer.start()
        worlds.append(World(directory, store, log_key, sequencer))
    first = worlds[0]
    first.sequencer.add_key(first.issuer.name, first.issuer.key.public).result(timeout=30)
    for each in worlds:
        each.issuer = first.issuer
    first.log(first.issuer.deployment(DEPLOYMENT))
    yield worlds
    for each in worlds:
        each.sequencer.stop()
        each.store.close()


def test_replicas_write_one_history(replicas: list[World]) -> None:
    """Each issuer resends some of its statements to another replica, as after a lost answer."""
    issuers = [Issuer(f"gpu-{n}.example.com") for n in range(6)]
    for issuer in issuers:
        replicas[0].sequencer.add_key(issuer.name, issuer.key.public).result(30)
    errors: list[BaseException] = []

    def work(number: int, issuer: Issuer) -> None:
        try:
            for n in range(15):
                records = make_records(3, DEPLOYMENT, first=1000 * number + 3 * n, salt=f"{number} ")
                batch = issuer.batch(records)
                first = replicas[(number + n) % 3].log(batch)
                if n % 3 == 0:
                    again = replicas[(number + n + 1) % 3].log(batch)
                    assert (again.fresh, again.receipt) == (False, first.receipt)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(issuers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    check_tree(replicas[1])
    with replicas[2].store.read() as connection:
        (row,) = queries.rollups(connection, ["day"])
    assert row["records"] == 6 * 15 * 3


def test_a_replica_knows_at_once_what_another_one_did(replicas: list[World]) -> None:
    one, two, _ = replicas
    two.log(two.issuer.batch(make_records(2, DEPLOYMENT)))  # both have read key, chain, sums
    one.log(one.issuer.batch(make_records(2, DEPLOYMENT, first=10)))
    two.log(two.issuer.batch(make_records(2, DEPLOYMENT, first=20)))
    waiting = two.prepare(two.issuer.heartbeat())
    one.sequencer.revoke_key(one.issuer.name, one.issuer.key.public).result(30)
    with pytest.raises(RefusedError) as caught:
        two.sequencer.submit(waiting).result(30)
    assert caught.value.code == "revoked-key"
    check_tree(two)
    with one.store.read() as connection:
        (row,) = queries.rollups(connection, ["day"])
    assert row["records"] == 6


def test_catching_up_reads_no_tile(replicas: list[World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over tile edges as well; and the tip is then the one that the tiles give."""
    one, two, _ = replicas
    for each in (one, two):
        each.log(each.issuer.heartbeat())

    def fail(*_: object) -> None:
        raise AssertionError("read from the tiles")

    with monkeypatch.context() as patch:
        patch.setattr("ledger.store.append.load_tip", fail)
        patch.setattr("ledger.store._tip.load_tip", fail)
        for count in (1, 254, 3, 600):
            for prepared in [one.prepare(one.issuer.heartbeat()) for _ in range(count)]:
                future = one.sequencer.submit(prepared)
            future.result(30)
            two.log(two.issuer.heartbeat())
    check_tree(two)


def test_a_reader_sees_one_snapshot(replicas: list[World]) -> None:
    one, two, _ = replicas
    with one.store.read() as connection:
        before = queries.log_head(connection)
        two.log(two.issuer.heartbeat())
        assert queries.log_head(connection) == before
    with one.store.read() as connection:
        assert queries.log_head(connection).size == before.size + 1


def test_starting_beside_a_running_replica_finds_nothing_wrong(replicas: list[World]) -> None:
    one, two, _ = replicas
    stop = threading.Event()

    def append() -> None:
        while not stop.is_set():
            one.log(one.issuer.heartbeat())

    thread = threading.Thread(target=append)
    thread.start()
    try:
        sizes = [
            check_consistent(two.store, two.sequencer.verifier_key, two.path / "checkpoint").size
            for _ in range(40)
        ]
    finally:
        stop.set()
        thread.join()
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_the_shared_published_checkpoint_never_goes_back(replicas: list[World]) -> None:
    published, key = replicas[0].path / "checkpoint", replicas[0].sequencer.verifier_key
    sizes = []
    for n in range(30):
        replicas[n % 3].log(replicas[n % 3].issuer.heartbeat())
        sizes.append(open_checkpoint(published.read_bytes(), key).size)
        time.sleep(0.02)
    assert sizes == sorted(sizes)
    for each in replicas:
        each.sequencer.stop()
    with replicas[0].store.read() as connection:
        assert open_checkpoint(published.read_bytes(), key).size == queries.log_head(connection).size


# --- the database went back ------------------------------------------------------------------------------


def swap(postgres: Postgres, url: str, other: str) -> None:
    """Put another database in this one's place, as a restore or a failover does under running replicas."""
    name, with_name = database_name(url), database_name(other)
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    postgres.execute(f'ALTER DATABASE "{name}" RENAME TO "{secrets.token_hex(6)}"')
    postgres.execute(f'ALTER DATABASE "{with_name}" RENAME TO "{name}"')


def copy_of(postgres: Postgres, url: str, *stores: World) -> str:
    for each in stores:
        each.store.close()
    return postgres.create(template=database_name(url))


def test_a_running_replica_does_not_sign_a_second_history(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.create()
    worlds = three_replicas(url, tmp_path)
    one, two, three = next(worlds)
    old = copy_of(postgres, url, one, two, three)
    forked = copy_of(postgres, url)
    for n in range(3):
        (one, two, three)[n].log(one.issuer.heartbeat())
    seen = one.sequencer.seen.size
    two.sequencer.stop()

    swap(postgres, url, old)
    for _ in range(2):  # it does not forget either
        with pytest.raises(CorruptError) as caught:
            one.log(one.issuer.heartbeat())
        assert caught.value.code == "log-rolled-back"
    with pytest.raises(CorruptError) as caught:
        Sequencer(two.store, two.log_key, published=two.path / "checkpoint").start()
    assert caught.value.code == "log-rolled-back"

    # Another process, which knows of nothing, makes a second history that is longer.
    victim = open_store(forked)
    innocent = Sequencer(victim, one.log_key)
    innocent.start()
    spare = [innocent.add_key(f"spare-{n}.example.com", generate_key().public) for n in range(8)]
    assert [each.result(30).fresh for each in spare] == [True] * 8
    innocent.stop()
    victim.close()
    swap(postgres, url, forked)
    with pytest.raises(CorruptError) as caught:
        one.sequencer.add_key("late.example.com", generate_key().public).result(30)
    assert caught.value.code == "inconsistent-log"
    assert one.sequencer.seen.size == seen
    next(worlds, None)


def test_a_tree_that_was_seen_is_the_least_that_is_served(replicas: list[World]) -> None:
    one, two, _ = replicas
    seen = Seen()
    with one.store.read() as connection:
        head = queries.log_head(connection)
        seen.admit(connection, head.size, head.root, at_least=seen.size)
        assert seen.size == head.size
        with pytest.raises(CorruptError) as caught:
            seen.admit(connection, head.size, merkle.leaf_hash(b"another"), at_least=seen.size)
        assert caught.value.code == "inconsistent-log"
        with pytest.raises(CorruptError) as caught:
            seen.admit(connection, head.size - 1, head.root, at_least=seen.size)
        assert caught.value.code == "log-rolled-back"
    two.log(two.issuer.heartbeat())
    with one.store.read() as connection:
        newer = queries.log_head(connection)
        seen.admit(connection, newer.size, newer.root, at_least=seen.size)
    with two.store.read() as connection:  # a snapshot from before: nobody is accused
        seen.admit(connection, head.size, head.root, at_least=head.size)
    assert seen.size == newer.size


# --- PostgreSQL alone ------------------------------------------------------------------------------------


def test_a_replica_that_hangs_is_ended_and_leaves_no_trace(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "_IDLE_MS", 300)
    worlds = three_replicas(postgres.create_migrated(), tmp_path)
    one, two, _ = next(worlds)
    begun = time.monotonic()
    with pytest.raises(SQLAlchemyError), one.store.write() as hanging:  # noqa: PT012 - it is the commit that fails
        lock_head(hanging)
        hanging.execute(text("UPDATE log_head SET size = size + 1"))
        two.log(two.issuer.heartbeat())  # waits until the other one is ended
    assert 0.25 < time.monotonic() - begun < 10
    one.log(one.issuer.heartbeat())
    check_tree(one)
    next(worlds, None)


def test_an_append_does_not_wait_for_ever(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "_LOCK_TIMEOUT_MS", 200)
    worlds = three_replicas(postgres.create_migrated(), tmp_path)
    one, two, _ = next(worlds)
    prepared = two.prepare(two.issuer.heartbeat())
    with one.store.write() as connection:
        lock_head(connection)
        with pytest.raises(UnavailableError) as caught:
            two.sequencer.submit(prepared).result(30)
        assert caught.value.code == "storage-failed"
    assert two.sequencer.submit(prepared).result(30).fresh
    next(worlds, None)


def test_what_is_acknowledged_is_durable_whatever_the_database_defaults_to(postgres: Postgres) -> None:
    url = postgres.create()
    name = database_name(url)
    for wanted, got in (("off", "on"), ("remote_apply", "remote_apply"), ("on", "on")):
        postgres.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = {wanted}')
        store = open_store(url)
        with store.write() as connection:
            assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == got
        store.close()


def test_a_server_that_keeps_nothing_is_refused(postgres: Postgres) -> None:
    def checked() -> None:
        store = open_store(url)
        with store.read() as connection:
            check_durable(connection)
        store.close()

    url = postgres.create()
    checked()
    for setting in ("fsync", "full_page_writes"):
        postgres.configure(setting, "off")
        try:
            with pytest.raises(UnavailableError) as caught:
                checked()
            assert caught.value.code == "not-durable"
        finally:
            postgres.configure(setting, "on")
    checked()
