"""A log of its own for each test, with one issuer whose key and deployment are in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ledger.core.keys import PrivateKey, generate_key
from ledger.core.statements import SignedStatement
from ledger.store import (
    Limits,
    Prepared,
    Registration,
    Sequencer,
    Store,
    migrate,
    open_store,
    prepare_statement,
)
from ledger.store.append import create_log
from ledger.store.queries import usable_key
from tests.build import ISSUER, ORIGIN, START_US, Issuer, SealedBatch, make_deployment


@dataclass
class World:
    """A store, its sequencer and an issuer."""

    path: Path
    store: Store
    log_key: PrivateKey
    sequencer: Sequencer
    issuer: Issuer = field(default_factory=Issuer)
    now_us: int = START_US + 30 * 86_400_000_000

    def prepare(self, statement: SignedStatement | SealedBatch) -> Prepared:
        def key_of(issuer: str, kid: bytes):
            with self.store.read() as connection:
                return usable_key(connection, issuer, kid)

        if isinstance(statement, SealedBatch):
            entry, lines = statement.statement.entry, statement.lines
        else:
            entry, lines = statement.entry, None
        return prepare_statement(entry, lines, key_of=key_of, now_us=self.now_us, limits=Limits())

    def log(self, statement: SignedStatement | SealedBatch) -> Registration:
        return self.sequencer.submit(self.prepare(statement)).result(timeout=30)

    def reopen(self) -> None:
        """Stop, and start again from the files."""
        self.sequencer.stop()
        self.store.close()
        self.store = open_store(self.path / "ledger.db")
        self.sequencer = Sequencer(self.store, self.log_key, published=self.path / "checkpoint")
        self.sequencer.start()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = open_store(tmp_path / "ledger.db")
    migrate(store)
    log_key = generate_key()
    create_log(store, log_key, ORIGIN)
    sequencer = Sequencer(store, log_key, published=tmp_path / "checkpoint")
    sequencer.start()
    world = World(tmp_path, store, log_key, sequencer)
    sequencer.add_key(ISSUER, world.issuer.key.public).result(timeout=30)
    world.log(world.issuer.deployment(make_deployment()))
    yield world
    world.sequencer.stop()
    world.store.close()
