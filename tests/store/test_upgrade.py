"""Migrations beside replicas that go on appending; two that migrate at once; revisions in words."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.config import Config
from sqlalchemy import inspect, text

import ledger.store
from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.keys import generate_key
from ledger.store import Sequencer, migrate, open_store, upgrade
from ledger.store.append import create_log
from ledger.store.upgrade import check_revision, differences, revisions
from tests.build import ORIGIN, make_deployment, make_records
from tests.store.conftest import World
from tests.store.test_append import check_tree

NEXT = """\"\"\"As the next version might have\"\"\"
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", "{head}", None, None


def upgrade():
    op.add_column("statement", sa.Column("colour", sa.String(), nullable=True))
    op.create_index("ix_statement_colour", "statement", ["colour"])
"""


@pytest.fixture
def next_version(tmp_path: Path) -> Callable[[], Config]:
    """The migrations of this version and one more."""
    scripts = tmp_path / "migrations"
    shutil.copytree(Path(ledger.store.__file__).parent / "migrations", scripts)
    config = upgrade._config()
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(config).get_current_head()
    (scripts / "versions" / "9999_next.py").write_text(NEXT.format(head=head))

    def make() -> Config:
        config = Config()
        config.set_main_option("script_location", str(scripts))
        return config

    return make


def test_replicas_go_on_while_the_database_is_upgraded(
    new_database: Callable[[], str],
    tmp_path: Path,
    next_version: Callable[[], Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while a long export reads the table, on PostgreSQL: the change waits for it, appends do not."""
    url, log_key = new_database(), generate_key()
    store = open_store(url)
    migrate(store)
    create_log(store, log_key, ORIGIN)
    sequencer = Sequencer(store, log_key)
    sequencer.start()
    world = World(tmp_path, store, log_key, sequencer)
    sequencer.add_key(world.issuer.name, world.issuer.key.public).result(30)
    world.log(world.issuer.deployment(make_deployment()))
    monkeypatch.setattr(upgrade, "_config", next_version)
    monkeypatch.setattr(upgrade, "_LOCK_TIMEOUT_MS", 200)
    monkeypatch.setattr(upgrade, "_PAUSE_S", 0.05)
    stop, appended, errors = threading.Event(), [0], []

    def append() -> None:
        try:
            while not stop.is_set():
                world.log(world.issuer.batch(make_records(2, make_deployment(), first=2 * appended[0])))
                appended[0] += 1
        except BaseException as error:
            errors.append(error)

    def export() -> None:
        with store.read() as connection:
            connection.execute(text("SELECT count(*) FROM statement")).scalar_one()
            time.sleep(1)  # the migration waits for this, and appends must not wait for it
            seen, deadline = appended[0], time.monotonic() + 60
            while appended[0] < seen + 3 and not stop.is_set():
                if time.monotonic() > deadline or errors:
                    errors.append(AssertionError("appends waited for the export"))
                    return
                time.sleep(0.01)

    with pytest.raises(InvalidError) as caught:
        check_revision(store)
    assert caught.value.code == "database-too-old"
    threads = [threading.Thread(target=append), threading.Thread(target=export)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    migrate(store)
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    with store.read() as connection:
        assert "colour" in {each["name"] for each in inspect(connection).get_columns("statement")}
    check_tree(world)
    check_revision(store)
    monkeypatch.undo()
    with pytest.raises(InvalidError) as caught:  # whoever starts now, with this version, is told
        check_revision(store)
    assert caught.value.code == "database-too-new"
    assert any("colour" in each for each in differences(store))
    sequencer.stop()
    store.close()


def test_two_may_migrate_at_once(new_database: Callable[..., str]) -> None:
    stores = [open_store(url) for url in [new_database(empty=True)] * 2]
    errors: list[BaseException] = []

    def work(store: ledger.store.Store) -> None:
        try:
            migrate(store)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    found = revisions(stores[0])
    assert (found.current, found.pending, found.known) == (found.newest, (), True)
    assert differences(stores[1]) == []
    for store in stores:
        store.close()


def test_a_table_that_is_always_in_use_is_given_up(
    postgres, next_version: Callable[[], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(postgres.create_migrated())
    monkeypatch.setattr(upgrade, "_config", next_version)
    monkeypatch.setattr(upgrade, "_LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(upgrade, "_PAUSE_S", 0)
    monkeypatch.setattr(upgrade, "_ATTEMPTS", 3)
    with store.read() as reader:
        reader.execute(text("SELECT count(*) FROM statement"))
        with pytest.raises(UnavailableError) as caught:
            migrate(store)
        assert caught.value.code == "database-busy"
    migrate(store)
    assert revisions(store).current == "9999"
    store.close()
