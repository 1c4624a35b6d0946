"""Appending: group commit, idempotence, refusals that change nothing, and what a restart checks."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, inspect, text

from ledger.core import merkle, receipts
from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.core.keys import generate_key
from ledger.core.records import document_digest
from ledger.store import Sequencer, migrate, open_store, queries
from ledger.store.append import Commit, create_log
from tests.build import (
    ISSUER,
    ORIGIN,
    Issuer,
    changed,
    make_deployment,
    make_factor_set,
    make_record,
    make_records,
)
from tests.store.conftest import World

DEPLOYMENT = make_deployment()


def tables_of(world: World) -> dict[str, list[tuple]]:
    with world.store.read() as connection:
        return {
            name: sorted((tuple(row) for row in connection.execute(text(f"select * from {name}"))), key=repr)
            for name in inspect(connection).get_table_names()
        }


def all_entries(world: World) -> list[bytes]:
    with world.store.read() as connection:
        size = queries.log_head(connection).size
        return [
            entry
            for index in range(-(-size // 256))
            for entry in queries.read_bundle(connection, index, min(256, size - 256 * index))
        ]


def check_tree(world: World) -> None:
    """Everything that the store says of its tree equals what the entries say."""
    leaves = [merkle.leaf_hash(entry) for entry in all_entries(world)]
    with world.store.read() as connection:
        head = queries.log_head(connection)
        assert head.size == len(leaves)
        assert head.root == merkle.root(leaves)
        signed = open_checkpoint(head.checkpoint.encode(), world.sequencer.verifier_key)
        assert (signed.size, signed.root) == (head.size, head.root)
        for size, note in connection.execute(text("select size, note from checkpoint")):
            old = open_checkpoint(note.encode(), world.sequencer.verifier_key)
            assert (old.size, old.root) == (size, merkle.root(leaves[:size]))
        for index in range(0, head.size, max(1, head.size // 7)):
            path = queries.inclusion(connection, index, head.size)
            assert path == merkle.inclusion_path(leaves, index)
            old_size = index + 1
            assert queries.consistency(connection, old_size, head.size) == merkle.consistency_path(
                leaves, old_size
            )


def test_genesis_is_the_logs_own_key(world: World) -> None:
    with world.store.read() as connection:
        genesis = queries.statement(connection, 0)
    assert genesis.issuer == ORIGIN
    assert genesis.payload.kid == world.log_key.public.kid.hex()


def test_receipt_verifies_and_is_the_same_ever_after(world: World) -> None:
    batch = world.issuer.batch(make_records(5, DEPLOYMENT))
    first = world.log(batch)
    assert first.fresh
    decoded = receipts.decode_receipt(first.receipt)
    receipts.verify_receipt(
        decoded, batch.statement.leaf_hash, world.log_key.public, subject=batch.statement.subject
    )
    for n in range(3):
        world.log(world.issuer.batch(make_records(3, DEPLOYMENT, first=10 + 3 * n)))
    again = world.log(batch)
    assert (again.fresh, again.receipt, again.leaf_index) == (False, first.receipt, first.leaf_index)
    world.reopen()
    with world.store.read() as connection:
        assert queries.receipt(connection, first.leaf_index) == first.receipt


def test_one_group_with_good_bad_and_repeated_statements(world: World) -> None:
    """What is refused leaves no trace, and the rest of the group is logged."""
    other = Issuer("gpu-8.example.com/llama")
    world.sequencer.add_key(other.name, other.key.public).result()
    good = world.issuer.batch(make_records(4, DEPLOYMENT))
    items = [
        world.prepare(good),
        world.prepare(good),
        world.prepare(other.batch(make_records(4, DEPLOYMENT), advance=False)),  # the same ids
        world.prepare(other.batch(make_records(2, DEPLOYMENT, first=50))),
        world.prepare(
            other.batch(make_records(2, DEPLOYMENT, first=60), seq=7, prev="00" * 32, advance=False)
        ),
        world.prepare(
            other.batch(make_records(2, make_deployment(model="unheard of"), first=70), advance=False)
        ),
        world.prepare(other.heartbeat()),
    ]
    outcomes = run_as_one_group(world, items)
    codes = [out.code if isinstance(out, TallystickError) else out.fresh for out in outcomes]
    assert codes == [True, False, "duplicate-record", True, "seq-gap", "unknown-document", True]
    assert outcomes[0].receipt == outcomes[1].receipt
    assert outcomes[0].tree_size == outcomes[3].tree_size == outcomes[6].tree_size  # one commit
    check_tree(world)


def test_the_first_of_many_records_that_is_logged_already_is_named(world: World) -> None:
    logged = make_records(2, DEPLOYMENT)
    registration = world.log(world.issuer.batch(logged))
    fresh = make_records(4000, DEPLOYMENT, first=100)
    mixed = [*fresh[:2500], logged[1], *fresh[2500:], logged[0]]
    statements = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    item = world.prepare(world.issuer.batch(mixed, advance=False))
    event.listen(world.store.engine, "before_cursor_execute", count)
    try:
        error = outcome(world.sequencer.submit(item))
    finally:
        event.remove(world.store.engine, "before_cursor_execute", count)
    assert (error.code, error.where) == ("duplicate-record", "records[2500]")
    assert f"at leaf {registration.leaf_index}" in error.what
    assert len(statements) < 50  # others wait for this transaction


def run_as_one_group(world: World, items: list) -> list:
    """Let ``items`` wait until the sequencer takes them all at once."""
    gate = threading.Event()
    commits: list[Commit] = []
    world.sequencer._observe = lambda commit: (commits.append(commit), gate.wait(10))
    held = world.sequencer.add_key("spare.example.com", generate_key().public)
    while not commits:
        time.sleep(0.001)
    futures = [world.sequencer.submit(item) for item in items]
    gate.set()
    held.result(timeout=10)
    return [outcome(future) for future in futures]


def outcome(future: Future) -> object:
    try:
        return future.result(timeout=30)
    except TallystickError as error:
        return error


REFUSED = {
    "seq-gap": lambda w: w.issuer.batch(make_records(1, DEPLOYMENT), seq=w.issuer.seq + 1, advance=False),
    "wrong-prev": lambda w: w.issuer.batch(make_records(1, DEPLOYMENT), prev="ab" * 32, advance=False),
    "seq-reused": lambda w: w.issuer.batch(make_records(1, DEPLOYMENT), seq=1, prev="ab" * 32, advance=False),
    "unknown-document": lambda w: w.issuer.batch(make_records(1, "ab" * 32), advance=False),
    "duplicate-record": lambda w: w.issuer.batch(make_records(2, DEPLOYMENT, first=900), advance=False),
}


@pytest.mark.parametrize("code", REFUSED)
def test_refusals_change_nothing(world: World, code: str) -> None:
    world.log(world.issuer.batch(make_records(3, DEPLOYMENT, first=899)))
    before = tables_of(world)
    with pytest.raises(RefusedError) as caught:
        world.log(REFUSED[code](world))
    assert caught.value.code == code
    assert tables_of(world) == before


def test_a_refused_statement_does_not_break_the_chain(world: World) -> None:
    bad = world.issuer.batch(make_records(1, "ab" * 32), advance=False)
    with pytest.raises(RefusedError):
        world.log(bad)
    assert world.log(world.issuer.batch(make_records(1, DEPLOYMENT))).fresh


def test_revoked_key_is_refused_from_then_on_and_never_comes_back(world: World) -> None:
    waiting = world.prepare(world.issuer.heartbeat())  # checked before the revocation, committed after
    world.sequencer.revoke_key(ISSUER, world.issuer.key.public, reason="lost laptop").result()
    for attempt in (
        lambda: world.sequencer.submit(waiting).result(),
        lambda: world.prepare(world.issuer.heartbeat()),
    ):
        with pytest.raises(RefusedError) as caught:
            attempt()
        assert caught.value.code == "revoked-key"
    with pytest.raises(RefusedError) as caught:
        world.sequencer.add_key(ISSUER, world.issuer.key.public).result()
    assert caught.value.code == "key-exists"
    new_key = generate_key("es256")
    world.sequencer.add_key(ISSUER, new_key.public, rotate=True).result()
    successor = Issuer(ISSUER, new_key)
    with world.store.read() as connection:
        row = connection.execute(
            text("select next_seq, last_leaf from issuer where issuer = :i"), {"i": ISSUER}
        ).one()
    successor.seq, successor.prev = row
    assert world.log(successor.heartbeat()).fresh  # the chain goes on under the new key
    check_tree(world)


def test_another_issuers_key_does_not_sign_for_this_one(world: World) -> None:
    thief = Issuer("thief.example.com")
    world.sequencer.add_key(thief.name, thief.key.public).result()
    with pytest.raises(RefusedError) as caught:
        world.prepare(Issuer(ISSUER, thief.key, world.issuer.seq, world.issuer.prev).heartbeat())
    assert caught.value.code == "unknown-issuer"


def test_the_logs_own_name_cannot_be_registered(world: World) -> None:
    with pytest.raises(RefusedError):
        world.sequencer.add_key(ORIGIN, generate_key().public)


def test_the_logs_own_key_cannot_be_revoked(world: World) -> None:
    with pytest.raises(RefusedError) as caught:
        world.sequencer.revoke_key(ORIGIN, world.log_key.public)
    assert caught.value.code == "bad-issuer-name"
    assert world.log(world.issuer.batch(make_records(1, DEPLOYMENT))).fresh


def test_many_threads_make_one_history(world: World) -> None:
    issuers = [Issuer(f"gpu-{n}.example.com") for n in range(8)]
    for issuer in issuers:
        world.sequencer.add_key(issuer.name, issuer.key.public).result()
    receipts_seen: list[bytes] = []

    def work(number: int, issuer: Issuer) -> None:
        for n in range(20):
            records = make_records(3, DEPLOYMENT, first=1000 * number + 3 * n, salt=f"thread {number} ")
            batch = issuer.batch(records)
            registration = world.log(batch)
            receipts.verify_receipt(
                receipts.decode_receipt(registration.receipt), batch.statement.leaf_hash, world.log_key.public
            )
            receipts_seen.append(registration.receipt)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(issuers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(receipts_seen)) == 160
    check_tree(world)
    world.reopen()
    check_tree(world)


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_tree_is_right_across_tile_edges(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("log")
    store = open_store(path / "ledger.db")
    migrate(store)
    log_key = generate_key()
    create_log(store, log_key, ORIGIN)
    world = World(path, store, log_key, Sequencer(store, log_key, published=path / "checkpoint"))
    world.sequencer.start()
    world.sequencer.add_key(ISSUER, world.issuer.key.public).result()
    for size in sizes:
        prepared = [world.prepare(world.issuer.heartbeat()) for _ in range(size * 5)]
        for future in [world.sequencer.submit(each) for each in prepared]:
            future.result()
        check_tree(world)
    world.sequencer.stop()
    store.close()


def test_sums_pass_64_bits(world: World) -> None:
    """A roll-up is exact where a 64-bit sum would overflow into a float."""
    huge = 2**53 - 1
    for n in range(1100):
        record = make_record(DEPLOYMENT, n=n, start_us=make_record(DEPLOYMENT).started_us, carbon_ng=huge)
        world.sequencer.submit(world.prepare(world.issuer.batch([record])))
    world.log(world.issuer.heartbeat())
    with world.store.read() as connection:
        (row,) = queries.rollups(connection, ["day"])
    assert row["carbon_ng"] == 1100 * huge > 2**63


@pytest.mark.sqlite
def test_restart_refuses_an_older_copy_of_the_database(world: World) -> None:
    world.sequencer.stop()
    world.store.close()
    shutil.copy(world.path / "ledger.db", world.path / "old.db")
    world.reopen()
    world.log(world.issuer.heartbeat())
    world.sequencer.stop()
    world.store.close()
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (world.path / name).unlink(missing_ok=True)
    shutil.copy(world.path / "old.db", world.path / "ledger.db")
    world.store = open_store(world.path / "ledger.db")
    with pytest.raises(CorruptError) as caught:
        Sequencer(world.store, world.log_key, published=world.path / "checkpoint").start()
    assert caught.value.code == "log-rolled-back"


def test_last_checkpoint_of_a_burst_is_published(world: World) -> None:
    """Also when nothing follows it: otherwise a copy that lacks only the burst's end would pass for new."""
    published = world.path / "checkpoint"

    def sizes() -> tuple[int, int]:
        with world.store.read() as connection:
            head = queries.log_head(connection)
        return open_checkpoint(published.read_bytes(), world.sequencer.verifier_key).size, head.size

    for _ in range(5):
        world.log(world.issuer.heartbeat())
    deadline = time.monotonic() + 30
    while sizes()[0] != sizes()[1] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sizes()[0] == sizes()[1]
    for _ in range(5):
        world.log(world.issuer.heartbeat())
    world.sequencer.stop()
    assert sizes()[0] == sizes()[1]


def test_restart_names_a_published_checkpoint_that_was_cut(world: World) -> None:
    world.sequencer.stop()
    (world.path / "checkpoint").write_bytes(b"")
    with pytest.raises(CorruptError) as caught:
        Sequencer(world.store, world.log_key, published=world.path / "checkpoint").start()
    assert caught.value.where == str(world.path / "checkpoint")


def test_older_checkpoint_does_not_replace_a_published_one(world: World) -> None:
    published = world.path / "checkpoint"
    with world.store.read() as connection:
        old = queries.log_head(connection).checkpoint.encode()
    world.log(world.issuer.heartbeat())
    world.sequencer.stop()
    newest = published.read_bytes()
    other = Sequencer(world.store, world.log_key, published=published)
    other._publisher.publish(old)
    assert published.read_bytes() == newest != old


@pytest.mark.parametrize(
    ("sql", "where"),
    [
        ("update tile set hashes = zeroblob(length(hashes)) where level = 0", "tile"),
        ("update log_head set root = zeroblob(32)", "log_head"),
        ("delete from statement where leaf_index = 2", "statement"),
        ("delete from tile", "tile"),
    ],
)
def test_restart_refuses_a_damaged_log(world: World, sql: str, where: str) -> None:
    world.sequencer.stop()
    with world.store.write() as connection:
        connection.execute(text(sql))
    with pytest.raises(CorruptError) as caught:
        Sequencer(world.store, world.log_key).start()
    assert where in caught.value.where


def test_a_second_writer_is_seen(world: World) -> None:
    """Two sequencers on one database take turns behind the lock, and the tree stays one."""
    second = Sequencer(world.store, world.log_key)
    second.start()
    for n in range(6):
        sequencer = (world.sequencer, second)[n % 2]
        sequencer.submit(world.prepare(world.issuer.heartbeat())).result(timeout=10)
    second.stop()
    check_tree(world)


FULL = {
    "sqlite": (
        ["create trigger no_room before insert on checkpoint begin select raise(abort, 'no space'); end"],
        "drop trigger no_room",
    ),
    "postgresql": (
        [
            "create function no_room() returns trigger language plpgsql as "
            "$$ begin raise exception 'no space'; end $$",
            "create trigger no_room before insert on checkpoint execute function no_room()",
        ],
        "drop trigger no_room on checkpoint",
    ),
}
"""Statements after which no checkpoint can be written, and one that ends it."""


def test_a_failing_database_refuses_all_and_loses_nothing(world: World) -> None:
    fill, empty = FULL[world.store.engine.dialect.name]
    with world.store.write() as connection:
        for statement in fill:
            connection.execute(text(statement))
    prepared = world.prepare(world.issuer.heartbeat())
    with pytest.raises(UnavailableError) as caught:
        world.sequencer.submit(prepared).result(timeout=10)
    assert caught.value.code == "storage-failed"
    with world.store.write() as connection:
        connection.execute(text(empty))
    assert world.sequencer.submit(prepared).result(timeout=10).fresh
    check_tree(world)


def test_stopped_sequencer_refuses(world: World) -> None:
    prepared = world.prepare(world.issuer.heartbeat())
    world.sequencer.stop()
    with pytest.raises(UnavailableError):
        world.sequencer.submit(prepared)


def test_log_cannot_be_created_twice(world: World) -> None:
    with pytest.raises(RefusedError):
        create_log(world.store, world.log_key, ORIGIN)


def test_log_key_must_be_ed25519(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ledger.db")
    migrate(store)
    with pytest.raises(InvalidError):
        create_log(store, generate_key("es256"), ORIGIN)


def test_document_published_twice_keeps_its_first_leaf(world: World) -> None:
    with world.store.read() as connection:
        (before,) = queries.documents(connection, "deployment")
    world.log(world.issuer.deployment(DEPLOYMENT))
    with world.store.read() as connection:
        (after,) = queries.documents(connection, "deployment", digest=document_digest(DEPLOYMENT))
    assert before == after


def test_wrong_summary_is_refused(world: World) -> None:
    records = make_records(3, DEPLOYMENT)
    honest = world.issuer.batch(records, advance=False).statement.payload
    lies = {
        "totals": changed(honest.totals, output_tokens=honest.totals.output_tokens + 1),
        "first_us": honest.first_us + 1,
        "last_us": honest.last_us - 1,
        "factors": ("ab" * 32,),
        "deployments": (*honest.deployments, "ff" * 32),
    }
    for name, value in lies.items():
        with pytest.raises(InvalidError) as caught:
            world.prepare(world.issuer.batch(records, advance=False, **{name: value}))
        assert caught.value.code == "wrong-summary", name


def test_a_cancelled_caller_harms_nobody(world: World) -> None:
    gate, busy = threading.Event(), threading.Event()
    world.sequencer._observe = lambda _: (busy.set(), gate.wait(10))
    world.sequencer.add_key("spare.example.com", generate_key().public)
    assert busy.wait(30)
    before = (world.issuer.seq, world.issuer.prev)
    cancelled = world.sequencer.submit(world.prepare(world.issuer.heartbeat()))
    assert cancelled.cancel()
    gate.set()
    world.issuer.seq, world.issuer.prev = before  # the cancelled one was never logged
    assert world.log(world.issuer.heartbeat(dropped=1)).fresh


def test_a_document_of_the_other_kind_does_not_do(world: World) -> None:
    factors = make_factor_set()
    world.log(world.issuer.factors(factors))
    for records in (
        make_records(1, document_digest(factors)),  # a factor set in a deployment's place
        make_records(1, DEPLOYMENT, factors=document_digest(DEPLOYMENT)),
    ):
        with pytest.raises(RefusedError) as caught:
            world.log(world.issuer.batch(records, advance=False))
        assert caught.value.code == "unknown-document"
    assert world.log(world.issuer.batch(make_records(1, DEPLOYMENT, factors=document_digest(factors)))).fresh
