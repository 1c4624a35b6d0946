"""Backups hold every row, prove themselves, and restore into either database; none lets a log fork."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import SQLAlchemyError

from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.core.keys import generate_key
from ledger.core.log_keys import log_verifier_key
from ledger.export.backup import MANIFEST, SIGNATURE, make_backup, open_backup
from ledger.export.restore import move_log, restore_backup
from ledger.store import Sequencer, Store, migrate, open_store, queries
from ledger.store.append import create_log
from ledger.store.rows import Rows, read_rows, tables_of
from tests.build import ORIGIN, make_deployment, make_records
from tests.store.conftest import World

DEPLOYMENT = make_deployment()
NewDatabase = Callable[..., str]


def make_world(url: str, directory: Path) -> World:
    """A log with a deployment and two batches; its sequencer runs."""
    key = generate_key()
    store = open_store(url)
    migrate(store)
    create_log(store, key, ORIGIN)
    sequencer = Sequencer(store, key, published=directory / "published")
    sequencer.start()
    world = World(directory, store, key, sequencer)
    sequencer.add_key(world.issuer.name, world.issuer.key.public).result(30)
    world.log(world.issuer.deployment(DEPLOYMENT))
    for first in (0, 3):
        world.log(world.issuer.batch(make_records(3, DEPLOYMENT, first=first)))
    return world


@pytest.fixture
def world(new_database: NewDatabase, tmp_path: Path) -> Iterator[World]:
    made = make_world(new_database(), tmp_path)
    yield made
    made.sequencer.stop()
    made.store.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    """One on SQLite alone, where the database is not what the test is about."""
    made = make_world(f"sqlite:///{tmp_path / 'small.db'}", tmp_path)
    yield made
    made.sequencer.stop()
    made.store.close()


def keys_of(world: World) -> dict[str, object]:
    return {"key": world.log_key.public}


def all_rows(store: Store) -> dict[str, Rows]:
    with store.read() as connection:
        return {
            table.name: [row for group in read_rows(connection, table) for row in group]
            for table in tables_of(connection)
        }


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_what_is_restored_is_what_was_there(
    world: World, to: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    told: list[tuple[int, int]] = []
    made = make_backup(world.store, world.log_key, tmp_path / "b", lambda *each: told.append(each))
    before = all_rows(world.store)
    assert {each.name: each.rows for each in made.tables} == {name: len(r) for name, r in before.items()}
    assert told[-1] == (sum(map(len, before.values())),) * 2
    world.log(world.issuer.batch(make_records(1, DEPLOYMENT, first=6)))  # after the backup

    url = f"sqlite:///{tmp_path / 'restored.db'}"
    if to == "postgresql":
        url = request.getfixturevalue("postgres").create()
    store = open_store(url)
    try:
        checkpoint = restore_backup(tmp_path / "b", store, **keys_of(world))
        assert checkpoint.size == made.tree_size
        assert all_rows(store) == before
    finally:
        store.close()


def test_a_restored_log_goes_on(small: World, tmp_path: Path) -> None:
    make_backup(small.store, small.log_key, tmp_path / "b")
    store = open_store(tmp_path / "restored.db")
    restore_backup(tmp_path / "b", store, **keys_of(small))
    sequencer = Sequencer(store, small.log_key, published=tmp_path / "other-published")
    sequencer.start()
    try:
        restored = World(tmp_path, store, small.log_key, sequencer)
        restored.issuer = small.issuer
        batch = small.issuer.batch(make_records(2, DEPLOYMENT, first=9))
        assert restored.log(batch).fresh
        with store.read() as connection:
            assert queries.log_head(connection).size == restored.log(batch).leaf_index + 1
    finally:
        sequencer.stop()
        store.close()


def test_a_restored_log_that_is_behind_a_checkpoint_is_refused(small: World, tmp_path: Path) -> None:
    make_backup(small.store, small.log_key, tmp_path / "b")
    small.log(small.issuer.batch(make_records(1, DEPLOYMENT, first=6)))
    with small.store.read() as connection:
        newer = queries.log_head(connection).checkpoint.encode()
    target = open_store(tmp_path / "restored.db")
    before = tables_in(target)
    with pytest.raises(RefusedError, match="fork") as caught:
        restore_backup(tmp_path / "b", target, **keys_of(small), kept=[("kept", newer)])
    assert caught.value.code == "log-rolled-back"
    assert tables_in(target) == before
    assert not before or not all_rows(target)["log_head"]  # on PostgreSQL a new database has tables
    target.close()


def test_a_restored_log_of_another_history_is_refused(small: World, tmp_path: Path) -> None:
    make_backup(small.store, small.log_key, tmp_path / "b")
    (tmp_path / "fork").mkdir()
    store = open_store(tmp_path / "fork.db")
    migrate(store)
    create_log(store, small.log_key, ORIGIN)
    with store.read() as connection:
        other = queries.log_head(connection).checkpoint.encode()
    store.close()
    target = open_store(tmp_path / "restored.db")
    with pytest.raises(CorruptError, match="another one than was seen"):
        restore_backup(tmp_path / "b", target, **keys_of(small), kept=[("kept", other)])
    with target.read() as connection:
        assert not any(all_rows(target)["log_head"])
    target.close()


def tables_in(store: Store) -> list[str]:
    with store.read() as connection:
        return [table.name for table in tables_of(connection)]


def test_a_database_with_a_log_is_not_overwritten(small: World, tmp_path: Path) -> None:
    make_backup(small.store, small.log_key, tmp_path / "b")
    before = all_rows(small.store)
    with pytest.raises(RefusedError, match="has a log already"):
        restore_backup(tmp_path / "b", small.store, **keys_of(small))
    assert all_rows(small.store) == before


def test_a_backup_is_never_overwritten(small: World, tmp_path: Path) -> None:
    make_backup(small.store, small.log_key, tmp_path / "b")
    with pytest.raises(RefusedError, match="exists already"):
        make_backup(small.store, small.log_key, tmp_path / "b")


def test_another_logs_key_signs_no_backup(small: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="not a key of this log"):
        make_backup(small.store, generate_key(), tmp_path / "b")
    assert not [each for each in tmp_path.iterdir() if each.name.lstrip(".").startswith("b")]


def test_a_backup_is_read_with_its_logs_key_alone(small: World, tmp_path: Path) -> None:
    make_backup(small.store, small.log_key, tmp_path / "b")
    with pytest.raises(InvalidError, match="not signed by this key"):
        open_backup(tmp_path / "b", generate_key().public)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    directory = tmp_path_factory.mktemp("backup")
    world = make_world(f"sqlite:///{directory / 'ledger.db'}", directory)
    make_backup(world.store, world.log_key, directory / "b")
    world.sequencer.stop()
    world.store.close()
    return directory / "b", world


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_found(finished: tuple[Path, World], data: st.DataObject) -> None:
    backup, world = finished
    files = sorted(path for path in backup.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    try:
        with pytest.raises(TallystickError) as caught:
            open_backup(backup, world.log_key.public)
        name = str(path.relative_to(backup))
        assert caught.value.where.startswith((name, MANIFEST, SIGNATURE))
    finally:
        path.write_bytes(whole)
    open_backup(backup, world.log_key.public)


def test_a_missing_file_is_found(finished: tuple[Path, World], tmp_path: Path) -> None:
    backup, world = finished
    copy = tmp_path / "copy"
    shutil.copytree(backup, copy)
    (copy / "tables" / "tile.parquet").unlink()
    with pytest.raises(CorruptError) as caught:
        open_backup(copy, world.log_key.public)
    assert caught.value.where == "tables/tile.parquet"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=st.binary(max_size=300), signature=st.binary(max_size=300))
def test_foreign_bytes_are_refused(tmp_path: Path, manifest: bytes, signature: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(manifest)
    (tmp_path / SIGNATURE).write_bytes(signature)
    with pytest.raises(TallystickError):
        open_backup(tmp_path, generate_key().public)


def test_statements_of_megabytes_are_in_groups_of_their_own(finished: tuple[Path, World]) -> None:
    """What is read back at once is what was written at once, never a whole table."""
    backup, _ = finished
    for path in (backup / "tables").iterdir():
        file = pq.ParquetFile(path)
        assert all(file.metadata.row_group(n).num_rows <= 10_000 for n in range(file.num_row_groups))


def test_a_moved_log_goes_on_elsewhere_and_nowhere_else(
    world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = all_rows(world.store)
    is_postgres = world.store.engine.dialect.name == "postgresql"
    url = f"sqlite:///{tmp_path / 'new.db'}" if is_postgres else request.getfixturevalue("postgres").create()
    target = open_store(url)
    moved = move_log(world.store, target, log_verifier_key(ORIGIN, world.log_key.public))
    assert all_rows(target) == before
    sequencer = Sequencer(target, world.log_key, published=tmp_path / "published")
    sequencer.start()
    try:
        batch = world.issuer.batch(make_records(1, DEPLOYMENT, first=20))
        with pytest.raises((TallystickError, SQLAlchemyError, UnavailableError)):
            world.log(batch)
        elsewhere = World(tmp_path, target, world.log_key, sequencer)
        elsewhere.issuer = world.issuer
        assert elsewhere.log(batch).leaf_index == moved.size
    finally:
        sequencer.stop()
        target.close()
    with pytest.raises(TallystickError):
        move_log(world.store, target, log_verifier_key(ORIGIN, world.log_key.public))


def test_a_move_that_broke_off_is_finished(small: World, tmp_path: Path) -> None:
    """Broken off after the copy was committed, before the old log was ended."""
    keys = log_verifier_key(ORIGIN, small.log_key.public)
    target = open_store(tmp_path / "new.db")
    make_backup(small.store, small.log_key, tmp_path / "b")
    restore_backup(tmp_path / "b", target, **keys_of(small))
    move_log(small.store, target, keys)
    assert all_rows(small.store)["log_head"] == []
    target.close()


def test_a_log_is_not_moved_over_another(small: World, tmp_path: Path) -> None:
    target = open_store(tmp_path / "new.db")
    migrate(target)
    create_log(target, generate_key(), "other.example.com")
    with pytest.raises(RefusedError, match="another one"):
        move_log(small.store, target, log_verifier_key(ORIGIN, small.log_key.public))
    assert all_rows(small.store)["log_head"]
    target.close()
