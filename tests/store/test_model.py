"""A stateful property test: random operations on two replicas of one log, beside a model of dicts and lists.

The model is what a reader of the documentation would write: a list of leaves, a chain for each issuer, the
records by id. It knows nothing of tiles, tips, groups or transactions.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger.core import merkle, receipts
from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import TallystickError
from ledger.core.keys import generate_key
from ledger.core.records import Record, encode_record
from ledger.store import Limits, Sequencer, migrate, open_store, prepare_statement, queries
from ledger.store.append import create_log
from ledger.store.queries import RecordFilter
from tests.build import ORIGIN, START_US, Issuer, SealedBatch, make_deployment, make_records

DEPLOYMENT = make_deployment()
DAYS_30_US = 30 * 86_400_000_000
ISSUERS = ("a.example.com", "b.example.com", "c.example.com")


@dataclass
class Model:
    """What the log should be."""

    leaves: list[bytes] = field(default_factory=list)
    receipts: dict[bytes, bytes] = field(default_factory=dict)
    """leaf hash -> receipt."""
    records: dict[str, tuple[int, int, Record]] = field(default_factory=dict)
    """id -> (leaf index, position, record)."""
    revoked: set[bytes] = field(default_factory=set)
    checkpoints: dict[int, bytes] = field(default_factory=dict)
    """size -> note, as published or served."""

    def add(self, leaf: bytes, receipt: bytes, records: list[Record]) -> None:
        index = len(self.leaves)
        self.leaves.append(leaf)
        self.receipts[leaf] = receipt
        self.records |= {record.id: (index, n, record) for n, record in enumerate(records)}


class LogMachine(RuleBasedStateMachine):
    """``databases`` makes a database for each run; two replicas append to it in turn."""

    databases: Any = None
    logged = Bundle("logged")

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.published = Path(self.directory.name) / "checkpoint"
        self.url = type(self).databases()
        self.key = generate_key()
        self.model = Model()
        self.next_record = 0
        store = open_store(self.url)
        migrate(store)
        create_log(store, self.key, ORIGIN)
        self.replicas: list[Sequencer] = []
        self.stores = [store]
        self.stores.append(open_store(self.url))
        for each in self.stores:
            self.start(each)
        with store.read() as connection:
            self.model.leaves.append(merkle.leaf_hash(queries.statement(connection, 0).entry))
        self.issuers = {name: Issuer(name) for name in ISSUERS}
        for issuer in self.issuers.values():
            self.own(0, lambda replica, issuer=issuer: replica.add_key(issuer.name, issuer.key.public))
        self.log(0, self.issuers[ISSUERS[0]].deployment(DEPLOYMENT), [])

    def start(self, store: Any) -> None:
        sequencer = Sequencer(store, self.key, published=self.published)
        sequencer.start()
        self.replicas.append(sequencer)

    def teardown(self) -> None:
        for replica, store in zip(self.replicas, self.stores, strict=True):
            replica.stop()
            store.close()
        self.directory.cleanup()

    # --- doing ---

    def submit(self, replica: int, item: Any) -> Any:
        """The registration, or the code of the refusal."""
        batch = isinstance(item, SealedBatch)

        def key_of(issuer: str, kid: bytes) -> Any:
            with self.stores[replica].read() as connection:
                info = queries.issuer_key(connection, kid)
                return info.public if info else queries.usable_key(connection, issuer, kid)

        try:
            prepared = prepare_statement(
                item.statement.entry if batch else item.entry,
                item.lines if batch else None,
                key_of=key_of,
                now_us=START_US + DAYS_30_US,
                limits=Limits(),
            )
            return self.replicas[replica].submit(prepared)
        except TallystickError as error:
            return error.code

    def outcome(self, submitted: Any) -> Any:
        if isinstance(submitted, str):
            return submitted
        try:
            return submitted.result(30)
        except TallystickError as error:
            return error.code

    def own(self, replica: int, change: Any) -> str | None:
        try:
            done = change(self.replicas[replica]).result(30)
        except TallystickError as error:
            return error.code
        self.model.add(done.leaf_hash, done.receipt, [])
        return None

    def log(self, replica: int, item: Any, records: list[Record]) -> Any:
        done = self.outcome(self.submit(replica, item))
        assert not isinstance(done, str), done
        self.accepted(item, done, records)
        return item, records, done.receipt

    def accepted(self, item: Any, done: Any, records: list[Record]) -> None:
        statement = item.statement if isinstance(item, SealedBatch) else item
        assert (done.fresh, done.leaf_index) == (True, len(self.model.leaves))
        assert done.leaf_hash == statement.leaf_hash
        self.model.add(statement.leaf_hash, done.receipt, records)

    def fresh(self, count: int, **changes: Any) -> list[Record]:
        first, self.next_record = self.next_record, self.next_record + count
        return make_records(count, DEPLOYMENT, first=first, **changes)

    def in_force(self, name: str) -> bool:
        return self.issuers[name].key.public.kid not in self.model.revoked

    # --- rules ---

    replica = st.integers(0, 1)
    issuer = st.sampled_from(ISSUERS)

    @rule(target=logged, replica=replica, issuer=issuer, count=st.integers(1, 5))
    def append_batch(self, replica: int, issuer: str, count: int) -> Any:
        records = self.fresh(count)
        item = self.issuers[issuer].batch(records, advance=self.in_force(issuer))
        if self.in_force(issuer):
            return self.log(replica, item, records)
        assert self.outcome(self.submit(replica, item)) == "revoked-key"
        return multiple()

    @rule(replica=replica, issuer=issuer)
    def append_heartbeat(self, replica: int, issuer: str) -> None:
        if self.in_force(issuer):
            self.log(replica, self.issuers[issuer].heartbeat(), [])

    @rule(replica=replica, counts=st.lists(st.tuples(issuer, st.integers(1, 3)), min_size=2, max_size=12))
    def append_group(self, replica: int, counts: list[tuple[str, int]]) -> None:
        """Many at once; they may share a transaction, and are logged in their order."""
        made = []
        for name, count in counts:
            if self.in_force(name):
                records = self.fresh(count)
                made.append((self.issuers[name].batch(records), records))
        waiting = [self.submit(replica, item) for item, _ in made]
        for (item, records), future in zip(made, waiting, strict=True):
            done = self.outcome(future)
            assert not isinstance(done, str), done
            self.accepted(item, done, records)

    @rule(replica=replica, before=logged)
    def resend(self, replica: int, before: Any) -> None:
        """The same receipt for ever, from either replica, also after the key was revoked."""
        item, _, receipt = before
        done = self.outcome(self.submit(replica, item))
        assert (done.fresh, done.receipt) == (False, receipt)

    @rule(replica=replica, issuer=issuer, ahead=st.integers(1, 5))
    def append_with_a_gap(self, replica: int, issuer: str, ahead: int) -> None:
        own = self.issuers[issuer]
        item = own.batch(self.fresh(1), advance=False, seq=own.seq + ahead, prev="ab" * 32)
        wanted = {"seq-gap"} if self.in_force(issuer) else {"revoked-key"}
        assert self.outcome(self.submit(replica, item)) in wanted

    @rule(replica=replica, issuer=issuer)
    def append_with_a_used_seq(self, replica: int, issuer: str) -> None:
        own = self.issuers[issuer]
        if own.seq > 1 and self.in_force(issuer):
            item = own.batch(self.fresh(1), advance=False, seq=own.seq - 1, prev="cd" * 32)
            assert self.outcome(self.submit(replica, item)) == "seq-reused"

    @rule(replica=replica, issuer=issuer, before=logged, count=st.integers(0, 3))
    def append_a_used_id(self, replica: int, issuer: str, before: Any, count: int) -> None:
        """Within a group of good ones: only the bad one is refused."""
        if not self.in_force(issuer):
            return
        _, records, _ = before
        bad = self.issuers[issuer].batch([*self.fresh(count), records[-1]], advance=False)
        good_records = self.fresh(2)
        submitted = self.submit(replica, bad)
        good = self.issuers[issuer].batch(good_records)
        after = self.submit(replica, good)
        assert self.outcome(submitted) == "duplicate-record"
        done = self.outcome(after)
        assert not isinstance(done, str), done
        self.accepted(good, done, good_records)

    @rule(replica=replica, issuer=issuer)
    def revoke(self, replica: int, issuer: str) -> None:
        key = self.issuers[issuer].key.public
        code = self.own(replica, lambda log: log.revoke_key(issuer, key))
        assert code == (None if self.in_force(issuer) else "unknown-key")
        self.model.revoked.add(key.kid)

    @rule(replica=replica, issuer=issuer)
    def rotate(self, replica: int, issuer: str) -> None:
        """A new key; the chain goes on."""
        own = self.issuers[issuer]
        key = generate_key()
        assert self.own(replica, lambda log: log.add_key(issuer, key.public, rotate=True)) is None
        own.key = key

    @rule(replica=replica)
    def restart(self, replica: int) -> None:
        self.replicas[replica].stop()
        self.stores[replica].close()
        self.stores[replica] = open_store(self.url)
        sequencer = Sequencer(self.stores[replica], self.key, published=self.published)
        sequencer.start()
        self.replicas[replica] = sequencer

    @rule(replica=replica)
    def serve_checkpoint(self, replica: int) -> None:
        with self.stores[replica].read() as connection:
            head = queries.log_head(connection)
        assert head.size == len(self.model.leaves)
        self.model.checkpoints[head.size] = head.checkpoint.encode()

    @rule(replica=replica, data=st.data())
    def prove(self, replica: int, data: st.DataObject) -> None:
        leaves = self.model.leaves
        size = data.draw(st.integers(1, len(leaves)))
        index = data.draw(st.integers(0, size - 1))
        old = data.draw(st.integers(1, size))
        with self.stores[replica].read() as connection:
            assert queries.inclusion(connection, index, size) == merkle.inclusion_path(leaves[:size], index)
            assert queries.consistency(connection, old, size) == merkle.consistency_path(leaves[:size], old)
            if leaves[index] in self.model.receipts:
                receipt = queries.receipt(connection, index)
                assert receipt == self.model.receipts[leaves[index]]
                receipts.verify_receipt(receipts.decode_receipt(receipt), leaves[index], self.key.public)

    @precondition(lambda self: self.model.records)
    @rule(replica=replica, data=st.data())
    def read_a_record(self, replica: int, data: st.DataObject) -> None:
        record_id = data.draw(st.sampled_from(sorted(self.model.records)))
        leaf, position, record = self.model.records[record_id]
        with self.stores[replica].read() as connection:
            proof = queries.record_proof(connection, record_id)
        assert (proof.found.leaf_index, proof.found.position) == (leaf, position)
        assert proof.found.line == encode_record(record)

    @rule(replica=replica, tenant=st.sampled_from(["t-0", "t-1", "nobody"]))
    def list_and_sum(self, replica: int, tenant: str) -> None:
        wanted = [record for _, _, record in self.model.records.values() if record.tenant == tenant]
        with self.stores[replica].read() as connection:
            found, after = [], None
            while True:
                page, after = queries.records(connection, RecordFilter(tenant=tenant), after=after, limit=7)
                found += page
                if after is None:
                    break
            rows = queries.rollups(connection, ["tenant"], tenant=tenant)
        assert [each.record for each in found] == wanted
        summed = [(row["records"], row["output_tokens"], row["energy_uj"]) for row in rows]
        total = (
            len(wanted),
            sum(record.usage.output_tokens for record in wanted),
            sum(record.energy.energy_uj for record in wanted),
        )
        assert summed == ([total] if wanted else [])

    # --- what holds after each of them ---

    @invariant()
    def the_head_is_the_models_tree(self) -> None:
        if not hasattr(self, "model"):
            return
        for store in self.stores:
            with store.read() as connection:
                head = queries.log_head(connection)
            assert (head.size, head.root) == (len(self.model.leaves), merkle.root(self.model.leaves))

    @invariant()
    def what_was_published_is_a_state_of_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        notes = [*self.model.checkpoints.values()]
        if self.published.exists():
            notes.append(self.published.read_bytes())
        for note in notes:
            tree = open_checkpoint(note, self.replicas[0].verifier_key)
            assert tree.size <= len(self.model.leaves)
            assert tree.root == merkle.root(self.model.leaves[: tree.size])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_log_is_what_the_model_is(
    kind: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    examples, steps = int(os.environ.get("TALLYSTICK_MODEL_EXAMPLES", "8")), 20
    if kind == "postgresql":
        make = request.getfixturevalue("postgres").create_migrated
        examples = examples // 2
    else:

        def make() -> str:
            return f"sqlite:///{tmp_path_factory.mktemp('model') / 'ledger.db'}"

    class Machine(LogMachine):
        databases = staticmethod(make)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
