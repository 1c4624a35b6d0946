from __future__ import annotations

import functools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tlog_scales.backend import LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import PlainEd25519Signer, Vkey
from tlog_scales.writer import TilesWriter

from ledger.core import merkle, note, tiles
from ledger.core.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from ledger.core.errors import CorruptError, InvalidError

LEAVES = [merkle.leaf_hash(b"%d" % i) for i in range(70_000)]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LOG_KEY = note.VerifierKey.of("example.com/log", note.ED25519, KEY.public_key().public_bytes_raw())

sizes = st.one_of(
    st.integers(1, 1100),
    st.sampled_from([255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_792, 70_000]),
    st.integers(1, 70_000),
)


class Store:
    """What a log keeps: each tile at its newest width; counts what is read."""

    def __init__(self):
        self.size = 0
        self.tiles = {}
        self.reads = []

    def append(self, leaf_hashes):
        last = {
            level: self.tiles[level, full] for level, full, partial in tiles.tile_widths(self.size) if partial
        }
        self.tiles |= tiles.append_tiles(self.size, leaf_hashes, last)
        self.size += len(leaf_hashes)

    def fetch(self, level, index, width):
        self.reads.append((level, index))
        return self.tiles[level, index][: width * 32]

    def reader(self):
        return tiles.TileReader(self.fetch, self.size)


def store_of(*steps):
    store = Store()
    for step in steps:
        store.append(LEAVES[store.size : store.size + step])
    return store


@functools.cache
def cached_store(size):
    return store_of(size)


def defined_tiles(size):
    """The tiles of a tree by the formula of the specification, hash by hash."""
    expected = {}
    for level in range(3):
        span = 256**level
        hashes = [merkle.root(LEAVES[start : start + span]) for start in range(0, size - span + 1, span)]
        for start in range(0, len(hashes), 256):
            expected[level, start // 256] = b"".join(hashes[start : start + 256])
    return expected


@pytest.mark.parametrize(
    ("path", "ref"),
    [
        ("tile/0/000", tiles.TileRef(0, 0)),
        ("tile/0/x001/x234/067", tiles.TileRef(0, 1_234_067)),
        ("tile/0/x001/x234/067.p/5", tiles.TileRef(0, 1_234_067, 5)),
        ("tile/63/999.p/255", tiles.TileRef(63, 999, 255)),
        ("tile/1/x001/000", tiles.TileRef(1, 1000)),
        ("tile/entries/000.p/1", tiles.TileRef(None, 0, 1)),
        ("tile/entries/x123/456", tiles.TileRef(None, 123_456)),
    ],
)
def test_paths_of_the_specification(path, ref):
    assert ref.path == path
    assert tiles.parse_tile_path(path) == ref


@given(st.none() | st.integers(0, 63), st.integers(0, 2**63 - 1), st.integers(1, 256))
def test_paths_round_trip(level, index, width):
    ref = tiles.TileRef(level, index, width)
    assert tiles.parse_tile_path(ref.path) == ref
    if level is None:
        assert ref.path == tiles.entries_path(index, width)
    else:
        assert ref.path == tiles.tile_path(level, index, width)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "checkpoint",
        "tile/0",
        "tile/0/",
        "tile/0/00",
        "tile/0/0000",
        "tile/00/000",
        "tile/01/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/data/000",
        "tile/0/x000/000",
        "tile/0/x000/x001/000",
        "tile/0/001/000",
        "tile/0/x001",
        "tile/0/000.p",
        "tile/0/000.p/",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/05",
        "tile/0/000.p/1/",
        "tile/0/000 ",
        "tile/0/000\n",
        "/tile/0/000",
        "tile/0/../000",
        "tile/0/٠٠٠",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
    ],
)
def test_other_paths_are_refused(path):
    with pytest.raises(InvalidError, match="names no tile"):
        tiles.parse_tile_path(path)


def test_paths_cannot_be_made_of_impossible_tiles():
    for level, index, width in ((64, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 2**63, 1), (0, 0, 0), (0, 0, 257)):
        with pytest.raises(InvalidError):
            tiles.tile_path(level, index, width)


def test_widths_of_the_specification():
    assert list(tiles.tile_widths(70_000)) == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert list(tiles.tile_widths(256)) == [(0, 1, 0), (1, 0, 1)]
    assert list(tiles.tile_widths(0)) == []


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=256))
def test_bundles_round_trip(entries):
    data = tiles.encode_bundle(entries)
    assert tiles.decode_bundle(data, len(entries)) == entries
    assert len(data) == sum(len(entry) + 2 for entry in entries)


def test_bundle_bytes():
    assert tiles.encode_bundle([b"ab", b"", b"\xff" * 65_535]) == b"\0\2ab\0\0\xff\xff" + b"\xff" * 65_535


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 1),
        (b"\0", 1),
        (b"\0\2a", 1),
        (b"\0\1a\0", 1),
        (b"\0\1a\0", 2),
        (b"\0\1a", 2),
        (b"\0\1a\0\0", 1),
        (b"", 0),
        (b"\0\0" * 257, 257),
    ],
)
def test_malformed_bundles_are_refused(data, count):
    with pytest.raises(InvalidError):
        tiles.decode_bundle(data, count)


def test_bundles_that_cannot_be_encoded_are_refused():
    for entries in ([], [b""] * 257, [b"x" * 65_536]):
        with pytest.raises(InvalidError):
            tiles.encode_bundle(entries)


@pytest.mark.parametrize(
    "steps",
    [[1], [255, 1, 1], [256], [300, 212], [70_000], [65_535, 1], [65_536, 1], [1, 65_534, 2, 4_463]],
)
def test_appended_tiles_are_those_of_the_definition(steps):
    store = store_of(*steps)
    assert store.tiles == defined_tiles(store.size)


@given(st.lists(st.integers(0, 700), max_size=6))
@settings(deadline=None)
def test_tiles_appended_in_any_steps(steps):
    store = store_of(*steps)
    assert store.tiles == defined_tiles(store.size)


def test_only_changed_tiles_are_returned():
    store = store_of(600)
    last = {0: store.tiles[0, 2], 1: store.tiles[1, 0]}
    assert set(tiles.append_tiles(600, LEAVES[600:601], last)) == {(0, 2)}
    assert set(tiles.append_tiles(600, LEAVES[600:768], last)) == {(0, 2), (1, 0)}
    assert tiles.append_tiles(600, [], last) == {}


def test_appending_needs_the_right_last_tiles():
    for last in ({}, {0: b""}, {0: bytes(32 * 87)}, {0: bytes(32 * 89)}):
        with pytest.raises(InvalidError, match=r"tile/0/002\.p/88"):
            tiles.append_tiles(600, LEAVES[600:601], last)
    with pytest.raises(InvalidError, match=r"tile/1/000\.p/2"):
        tiles.append_tiles(600, LEAVES[600:768], {0: bytes(32 * 88)})
    with pytest.raises(InvalidError, match="leaf hashes"):
        tiles.append_tiles(0, [b"short"], {})


@given(sizes, st.data())
@settings(deadline=None, max_examples=60)
def test_the_reader_gives_the_roots_and_proofs_of_the_tree(size, data):
    store = cached_store(size)
    store.reads.clear()
    reader = store.reader()
    part = data.draw(st.integers(1, size))
    index = data.draw(st.integers(0, part - 1))
    assert reader.root(part) == merkle.root(LEAVES[:part])
    assert reader.inclusion_path(index, part) == merkle.inclusion_path(LEAVES[:part], index)
    assert reader.consistency_path(part) == merkle.consistency_path(LEAVES[:size], part)
    merkle.verify_consistency(part, size, reader.root(part), reader.root(), reader.consistency_path(part))


def test_the_reader_reads_few_tiles_and_none_twice():
    store = store_of(70_000)
    reader = store.reader()
    reader.inclusion_path(12_345)
    assert len(store.reads) <= 2 * 3
    reader.inclusion_path(12_346)
    reader.root()
    assert len(store.reads) == len(set(store.reads)) <= 2 * 3


def test_a_small_shared_cache_only_costs_reads():
    store = store_of(70_000)
    cache = tiles.TileCache(1)
    for size in (70_000, 66_000):
        reader = tiles.TileReader(store.fetch, size, cache=cache)
        assert reader.inclusion_path(12_345) == merkle.inclusion_path(LEAVES[:size], 12_345)
        assert reader.root() == merkle.root(LEAVES[:size])
    assert len(cache._tiles) == 1


def test_the_reader_of_an_empty_tree():
    reader = tiles.TileReader(Store().fetch, 0)
    assert reader.root() == merkle.EMPTY_ROOT
    with pytest.raises(InvalidError):
        reader.inclusion_path(0)


def test_a_tile_of_the_wrong_length_is_named():
    store = store_of(300)
    store.tiles[0, 1] = store.tiles[0, 1][:-1]
    with pytest.raises(CorruptError, match=r"tile/0/001\.p/44"):
        store.reader().root()


@pytest.mark.parametrize(("start", "end"), [(1, 3), (256, 301), (-1, 1), (3, 2), (0, 302), (128, 301)])
def test_what_is_no_subtree_is_refused(start, end):
    store = store_of(300)
    with pytest.raises(InvalidError, match="no subtree"):
        store.reader().subtree_hash(start, end)


def write_log(root, store, entries, checkpoint):
    (root / "checkpoint").write_bytes(checkpoint)
    for (level, index), data in store.tiles.items():
        target = root / tiles.tile_path(level, index, len(data) // 32)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    for start in range(0, len(entries), 256):
        part = entries[start : start + 256]
        target = root / tiles.entries_path(start // 256, len(part))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(tiles.encode_bundle(part))


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000, 66_000])
def test_an_independent_reader_reads_our_log(tmp_path, size):
    entries = [b"%d" % i for i in range(size)]
    store = store_of(size // 2, size - size // 2)
    root = store.reader().root()
    write_log(tmp_path, store, entries, sign_checkpoint(Checkpoint(LOG_KEY.name, size, root), KEY))

    theirs = TilesReader(LocalBackend(tmp_path))
    checkpoint = theirs.get_checkpoint()
    checkpoint.verify(Vkey.from_string(note.format_vkey(LOG_KEY)))
    assert (checkpoint.origin, checkpoint.size, checkpoint.root_hash) == (LOG_KEY.name, size, root)
    assert theirs.calculate_root_hash() == root
    ours = store.reader()
    for index in {0, size // 3, size // 2, size - 1}:
        assert theirs.get_entry(index) == entries[index]
        inclusion = theirs.get_inclusion_proof(index, size)
        assert inclusion.node_hashes == ours.inclusion_path(index)
        inclusion.check(LEAVES[index], root)
        merkle.verify_inclusion(LEAVES[index], index, size, inclusion.node_hashes, root)
        old = index + 1
        consistency = theirs.get_consistency_proof(old, size)
        assert consistency.node_hashes == ours.consistency_path(old)
        consistency.check(merkle.root(LEAVES[:old]), root)
        merkle.verify_consistency(old, size, merkle.root(LEAVES[:old]), root, consistency.node_hashes)


def test_we_read_the_log_of_an_independent_writer(tmp_path):
    writer = TilesWriter.create(tmp_path / "log", LOG_KEY.name)
    for step in (100, 400, 37):
        for _ in range(step):
            writer.add_leaf(b"%d" % (writer.size + len(writer.pending)))
        writer.commit([PlainEd25519Signer(LOG_KEY.name, KEY)])
    root = tmp_path / "log"
    checkpoint = open_checkpoint((root / "checkpoint").read_bytes(), LOG_KEY)
    assert checkpoint.size == 537

    reader = tiles.TileReader(
        lambda level, index, width: (root / tiles.tile_path(level, index, width)).read_bytes(), 537
    )
    assert reader.root() == checkpoint.root == merkle.root(LEAVES[:537])
    for index in (0, 255, 256, 536):
        merkle.verify_inclusion(LEAVES[index], index, 537, reader.inclusion_path(index), checkpoint.root)
    bundle = (root / tiles.entries_path(2, 25)).read_bytes()
    assert tiles.decode_bundle(bundle, 25) == [b"%d" % i for i in range(512, 537)]
