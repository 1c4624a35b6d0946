"""The log's public read API: an independent reader verifies everything from checkpoint, tiles and keys."""

from __future__ import annotations

import base64

import cbor2
import pytest

from ledger.core import merkle
from ledger.core.checkpoint import open_checkpoint
from ledger.core.keys import parse_cose_key
from ledger.core.merkle import leaf_hash, verify_consistency, verify_inclusion
from ledger.core.note import parse_vkey
from ledger.core.receipts import decode_receipt, verify_receipt
from ledger.core.statements import decode_statement, verify_statement
from ledger.core.tiles import TileReader, decode_bundle, tile_path
from ledger.core.tlog_proof import parse_tlog_proof, verify_tlog_proof
from tests.service.conftest import COSE, Harness


def grow(h: Harness, size: int) -> None:
    statements = [h.issuer.heartbeat() for _ in range(size - 3)]
    futures = []
    service = h.client.app.state.service
    from ledger.store import Limits, prepare_statement

    for statement in statements:
        prepared = prepare_statement(
            statement.entry, None, key_of=lambda *_: h.issuer.key.public, now_us=2**53 - 1, limits=Limits()
        )
        futures.append(service.sequencer.submit(prepared))
    for future in futures:
        future.result(60)


def test_whole_log_verifies_from_public_addresses(harness: Harness) -> None:
    grow(harness, 600)
    log = harness.get("/log", None).json()
    vkey = parse_vkey(log["vkey"])
    head = open_checkpoint(harness.get("/checkpoint", None).content, vkey)
    assert (head.size, head.root.hex(), head.origin) == (600, log["root"], log["origin"])
    entries: list[bytes] = []
    for path, width in (("000", 256), ("001", 256), ("002.p/88", 88)):
        entries += decode_bundle(harness.get(f"/tile/entries/{path}", None).content, width)
    assert merkle.root([leaf_hash(entry) for entry in entries]) == head.root

    def fetch(level: int, index: int, width: int) -> bytes:
        answer = harness.get(f"/{tile_path(level, index, width)}", None)
        assert answer.status_code == 200
        return bytes(answer.content)

    assert TileReader(fetch, 600).root() == head.root
    first = decode_statement(entries[0])
    verify_statement(first, harness.ledger.log_key.public)
    assert (first.kind, first.issuer) == ("key", log["origin"])


def test_headers(harness: Harness) -> None:
    checkpoint = harness.get("/checkpoint", None)
    assert checkpoint.headers["content-type"] == "text/plain; charset=utf-8"
    assert checkpoint.headers["cache-control"] == "no-store"
    for path in ("/tile/0/000.p/3", "/tile/entries/000.p/3"):
        tile = harness.get(path, None)
        assert tile.headers["content-type"] == "application/octet-stream"
        assert tile.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert tile.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "0/000", "0/000.p/4", "0/001.p/1", "1/000.p/1", "entries/000", "entries/000.p/4", "0/0", "0/000.p/0",
        "0/000.p/03", "00/000.p/1", "-1/000", "64/000", "0/x000/000.p/1", "", "x", "0/000.p/256",
        "entries/x001/000", "0/000.p/1/", "0/٠٠٠.p/1",
    ],
)  # fmt: skip
def test_no_other_tile_is_served(harness: Harness, path: str) -> None:
    answer = harness.get(f"/tile/{path}", None)
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


def test_partial_tiles_of_every_earlier_size_stay(harness: Harness) -> None:
    seen = {}
    for size in range(3, 12):
        if size > 3:
            assert harness.send(harness.issuer.heartbeat()).status_code == 201
        seen[size] = harness.get(f"/tile/0/000.p/{size}", None).content
    for size, data in seen.items():
        assert harness.get(f"/tile/0/000.p/{size}", None).content == data
        assert data == seen[11][: 32 * size]


def test_full_tile_and_what_is_above_it(harness: Harness) -> None:
    grow(harness, 256)
    assert len(harness.get("/tile/0/000", None).content) == 8192
    assert len(harness.get("/tile/1/000.p/1", None).content) == 32
    assert harness.get("/tile/0/001.p/1", None).status_code == 404
    assert len(harness.get("/tile/0/000.p/255", None).content) == 255 * 32


def test_bundles_are_compressed_where_asked(harness: Harness) -> None:
    plain = harness.client.get("/tile/entries/000.p/3", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = harness.client.get("/tile/entries/000.p/3", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert packed.content == plain.content  # the client unpacks
    refused = harness.client.get("/tile/entries/000.p/3", headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in refused.headers


def test_keys_verify_receipts(harness: Harness) -> None:
    statement = harness.issuer.heartbeat()
    receipt = decode_receipt(harness.send(statement).content)
    answer = harness.get("/.well-known/scitt-keys", None)
    assert answer.headers["content-type"] == "application/cbor"
    (key,) = [parse_cose_key(each) for each in cbor2.loads(answer.content)]
    verify_receipt(receipt, statement.leaf_hash, key)
    kid = base64.urlsafe_b64encode(receipt.kid).rstrip(b"=").decode()
    one = harness.get(f"/.well-known/scitt-keys/{kid}", None)
    assert one.headers["content-type"] == "application/cbor"
    assert parse_cose_key(cbor2.loads(one.content)).kid == receipt.kid


@pytest.mark.parametrize("kid", ["AAAA", "!!!!", "a", "%20", "A" * 43])
def test_unknown_key(harness: Harness, kid: str) -> None:
    answer = harness.get(f"/.well-known/scitt-keys/{kid}", None)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/concise-problem-details+cbor"


def test_inclusion_and_consistency(harness: Harness) -> None:
    grow(harness, 20)
    for size in (4, 7, 20):
        old = harness.get(f"/proofs/consistency?from={size}").json()
        assert (old["old_size"], old["new_size"]) == (size, 20)
        verify_consistency(
            size,
            20,
            bytes.fromhex(old["old_root"]),
            bytes.fromhex(old["new_root"]),
            [bytes.fromhex(each) for each in old["path"]],
        )
        for index in (0, size - 1):
            proof = harness.get(f"/proofs/inclusion?leaf_index={index}&tree_size={size}").json()
            assert proof["root"] == old["old_root"]
            entry = harness.get(f"/entries/{index}/statement").content
            assert leaf_hash(entry).hex() == proof["leaf_hash"]
            path = [bytes.fromhex(each) for each in proof["path"]]
            verify_inclusion(leaf_hash(entry), index, size, path, bytes.fromhex(proof["root"]))
    newest = harness.get("/proofs/inclusion?leaf_index=5").json()
    assert newest["tree_size"] == 20
    assert newest["root"] == harness.get("/log", None).json()["root"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/proofs/inclusion?leaf_index=3&tree_size=3", "out-of-range"),
        ("/proofs/inclusion?leaf_index=0&tree_size=4", "out-of-range"),
        ("/proofs/inclusion?leaf_index=9", "out-of-range"),
        ("/proofs/consistency?from=4", "out-of-range"),
        ("/proofs/consistency?from=3&to=2", "out-of-range"),
        ("/proofs/inclusion", "bad-parameter"),
        ("/proofs/inclusion?leaf_index=x", "bad-parameter"),
        ("/proofs/inclusion?leaf_index=-1", "bad-parameter"),
        ("/proofs/inclusion?leaf_index=9223372036854775808", "bad-parameter"),
        ("/proofs/inclusion?leaf_index=0&tree_size=0", "bad-parameter"),
        ("/proofs/consistency?from=1&too=2", "bad-parameter"),
    ],
)
def test_impossible_proofs(harness: Harness, path: str, code: str) -> None:
    answer = harness.get(path)
    assert (answer.status_code, answer.json()["type"]) == (400, f"/problems/{code}")


def test_offline_proof(harness: Harness) -> None:
    batch = harness.log_batch()
    harness.send(harness.issuer.heartbeat())
    answer = harness.get("/entries/3/proof")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    vkey = parse_vkey(harness.get("/log", None).json()["vkey"])
    checkpoint = verify_tlog_proof(parse_tlog_proof(answer.content), batch.statement.leaf_hash, vkey)
    assert checkpoint.size == 5


def test_transparent_statement(harness: Harness) -> None:
    batch = harness.log_batch()
    answer = harness.get("/entries/3/transparent")
    assert answer.headers["content-type"] == COSE
    statement = decode_statement(answer.content)
    verify_statement(statement, harness.issuer.key.public)
    assert statement.entry == batch.statement.entry == harness.get("/entries/3/statement").content
    (receipt,) = statement.receipts
    assert receipt == harness.get("/entries/3").content
    verify_receipt(decode_receipt(receipt), statement.leaf_hash, harness.ledger.log_key.public)


@pytest.mark.parametrize(
    ("entry", "status", "code"),
    [
        ("99", 404, "not-found"),
        ("ff" * 32, 404, "not-found"),
        ("zz" * 32, 404, "not-found"),
        ("-1", 400, "bad-entry-id"),
        ("1.0", 400, "bad-entry-id"),
        ("abc", 400, "bad-entry-id"),
        ("9" * 19, 400, "bad-entry-id"),
        ("9" * 65, 400, "bad-parameter"),
        ("٣", 400, "bad-entry-id"),
    ],
)
def test_entries_that_are_not_there(harness: Harness, entry: str, status: int, code: str) -> None:
    for suffix in ("", "/statement", "/transparent", "/proof", "/records"):
        answer = harness.get(f"/entries/{entry}{suffix}", headers={"Accept": "application/json"})
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{code}")


def test_other_kinds_have_no_records(harness: Harness) -> None:
    answer = harness.get("/entries/2/records", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/no-records")
