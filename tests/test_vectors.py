"""The published vectors, checked by code that shares nothing with Tallystick.

This file imports nothing of ``ledger``: it is what an implementer in another language would write, with plain
hashes and with other people's libraries for canonical JSON, COSE, trees and notes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import cbor2
import pytest
import rfc8785
import scitt_cose
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tlog_scales import signing, tlog

VECTORS = Path(__file__).parent.parent / "schemas" / "vectors"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / name).read_bytes())
    return found


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word by word, over leaf hashes."""
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:]))


def path_of(leaves: list[bytes], m: int) -> list[bytes]:
    """PATH(m, D[n]) of RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*path_of(leaves[:k], m), tree_hash(leaves[k:])]
    return [*path_of(leaves[k:], m - k), tree_hash(leaves[:k])]


def unhex(values: list[str]) -> list[bytes]:
    return [bytes.fromhex(each) for each in values]


def public_keys() -> dict[str, Any]:
    """Public keys by kid, made from the seeds."""
    found = {}
    for key in load("keys.json")["keys"]:
        seed = bytes.fromhex(key["seed"])
        if key["algorithm"] == "ed25519":
            public: Any = ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key()
            raw = public.public_bytes_raw()
            members = {1: 1, -1: 6, -2: raw}
        elif key["algorithm"] == "es256":
            public = ec.derive_private_key(int.from_bytes(seed, "big"), ec.SECP256R1()).public_key()
            raw = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            members = {1: 2, -1: 1, -2: raw[1:33], -3: raw[33:]}
        else:
            public = mldsa.MLDSA44PrivateKey.from_seed_bytes(seed).public_key()
            raw = public.public_bytes_raw()
            members = {1: 7, 3: -48, -1: raw}
        assert raw.hex() == key["public_key"]
        assert cbor2.dumps(members, canonical=True).hex() == key["thumbprint_input"]
        kid = sha256(bytes.fromhex(key["thumbprint_input"]))
        assert kid.hex() == key["kid"]
        full = {**members, 2: kid, 3: key["alg"]}
        assert cbor2.dumps(full, canonical=True).hex() == key["cose_key"]
        found[kid.hex()] = public
    return found


def verify(public: Any, signature: bytes, message: bytes) -> None:
    if isinstance(public, ec.EllipticCurvePublicKey):
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        assert s <= (1 << 255), "the high form of s is never written"
        public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    else:
        public.verify(signature, message)


def pem(public: Any) -> bytes:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_keys() -> None:
    assert len(public_keys()) == 4


def test_records_are_canonical_and_hash() -> None:
    for each in load("records.json")["records"]:
        data = rfc8785.dumps(each["json"])
        assert data.hex() == each["bytes"]
        assert sha256(b"\x00" + data).hex() == each["record_hash"]


def test_rejected_records_are_not_canonical_or_break_a_rule() -> None:
    """What is refused as not canonical is indeed another spelling, and nothing else is."""
    good = {each["bytes"] for each in load("records.json")["records"]}
    for each in load("records.json")["rejected"]:
        data = bytes.fromhex(each["bytes"])
        assert each["bytes"] not in good
        try:
            again = rfc8785.dumps(json.loads(data))
        except (ValueError, UnicodeDecodeError):
            assert each["code"] in {"malformed-json", "schema"}
            continue
        assert (again != data) or each["code"] != "not-canonical", each["name"]


def test_documents() -> None:
    for each in load("documents.json")["documents"]:
        data = rfc8785.dumps(each["json"])
        assert (data.hex(), sha256(data).hex()) == (each["bytes"], each["digest"])


def test_statements() -> None:
    keys = public_keys()
    chains: dict[str, tuple[int, str | None]] = defaultdict(lambda: (0, None))
    statements = load("statements.json")["statements"]
    for each in statements:
        entry = bytes.fromhex(each["entry"])
        message = cbor2.loads(entry)
        protected, unprotected, payload, signature = message.value
        assert message.tag == 18
        assert not unprotected
        assert protected.hex() == each["protected"]
        assert payload.decode() == each["payload"]
        assert rfc8785.dumps(json.loads(payload)) == payload
        header = dict(cbor2.loads(protected))
        assert header[3] == "application/vnd.tallystick.statement+json"
        assert header[4].hex() == each["kid"]
        assert dict(header[15]) == {1: each["issuer"], 2: each["subject"]}
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        assert signed.hex() == each["sig_structure"]
        verify(keys[each["kid"]], signature, signed)
        assert sha256(b"\x00" + entry).hex() == each["leaf_hash"]
        body = json.loads(payload)
        assert (body["seq"], body.get("prev")) == chains[each["issuer"]]
        chains[each["issuer"]] = (body["seq"] + 1, each["leaf_hash"])
    assert len({each["kind"] for each in statements}) == 11


def test_statements_by_another_library() -> None:
    """scitt-cose knows EdDSA (-8) and ES256, and checks the encoding strictly."""
    keys = public_keys()
    for each in load("statements.json")["statements"]:
        entry = bytes.fromhex(each["entry"])
        result = scitt_cose.verify_sign1(entry, public_key_pem=pem(keys[each["kid"]]))
        assert result.payload.decode() == each["payload"]


def test_rejected_statements_fail_elsewhere_too() -> None:
    statements = load("statements.json")
    keys = public_keys()
    batch = statements["statements"][4]
    for each in statements["rejected"]:
        assert each["code"]
        with pytest.raises((scitt_cose.CoseError, InvalidSignature, ValueError)):
            scitt_cose.verify_sign1(bytes.fromhex(each["entry"]), public_key_pem=pem(keys[batch["kid"]]))


def test_ml_dsa_44_statement() -> None:
    each = load("statement-ml-dsa-44.json")["statement"]
    protected, _, payload, signature = cbor2.loads(bytes.fromhex(each["entry"])).value
    assert cbor2.loads(protected)[1] == -48
    verify(public_keys()[each["kid"]], signature, cbor2.dumps(["Signature1", protected, b"", payload]))


def test_batch() -> None:
    batch = load("batch.json")
    lines = batch["records"].encode().split(b"\n")
    assert lines.pop() == b""
    leaves = [sha256(b"\x00" + line) for line in lines]
    assert [leaf.hex() for leaf in leaves] == batch["record_hashes"]
    assert tree_hash(leaves).hex() == batch["root"]
    for index, path in enumerate(batch["paths"]):
        assert path_of(leaves, index) == unhex(path)
    assert scitt_cose.merkle_root([line.hex() for line in lines]) == batch["root"]
    statement = load("statements.json")["statements"][batch["leaf_index"]]
    payload = json.loads(statement["payload"])
    assert (payload["root"], payload["count"], payload["totals"]) == (batch["root"], 3, batch["totals"])
    entry, records = cbor2.loads(bytes.fromhex(batch["body"]))
    assert (entry.hex(), records.decode()) == (statement["entry"], batch["records"])
    totals: dict[str, int] = defaultdict(int)
    for line in lines:
        record = json.loads(line)
        merged = record | record["usage"] | record.get("energy", {})
        for name in batch["totals"]:
            totals[name] += merged.get(name, 0)
    assert totals == batch["totals"]


def test_receipts() -> None:
    keys = public_keys()
    statements = load("statements.json")["statements"]
    leaves = unhex([each["leaf_hash"] for each in statements])
    log = statements[0]["kid"]
    for each in load("receipts.json")["receipts"]:
        index, size = each["leaf_index"], each["tree_size"]
        assert path_of(leaves[:size], index) == unhex(each["path"])
        root = tree_hash(leaves[:size])
        assert root.hex() == each["root"]
        data = bytes.fromhex(each["receipt"])
        protected, unprotected, payload, signature = cbor2.loads(data).value
        header = dict(cbor2.loads(protected))
        assert payload is None
        assert (header[4].hex(), header[395], header[-65600]) == (log, 1, size)
        claims = {1: statements[0]["issuer"], 2: statements[index]["subject"], 6: each["registered_s"]}
        assert dict(header[15]) == claims
        assert list(cbor2.loads(unprotected[396][-1][0])) == [size, index, unhex(each["path"])]
        verify(keys[log], signature, cbor2.dumps(["Signature1", protected, b"", root]))
        result = scitt_cose.verify_receipt(
            data, leaf_entry_hex=statements[index]["entry"], log_public_key_pem=pem(keys[log])
        )
        assert result.ok, result.errors
        assert (result.tree_size, result.leaf_index, result.root) == (size, index, each["root"])


def test_transparent_statement() -> None:
    found = load("receipts.json")["transparent_statement"]
    entry = load("statements.json")["statements"][found["leaf_index"]]["entry"]
    message = cbor2.loads(bytes.fromhex(found["bytes"]))
    protected, unprotected, payload, signature = message.value
    assert cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature])).hex() == entry
    receipts = scitt_cose.extract_receipts(bytes.fromhex(found["bytes"]))
    assert receipts == list(unprotected[394])
    matching = [r for r in load("receipts.json")["receipts"] if r["receipt"] == receipts[0].hex()]
    assert [r["leaf_index"] for r in matching] == [found["leaf_index"]]


# --- commitments, from the description in the read-me ---


def commitment(kind: bytes, content: bytes, salt: bytes) -> bytes:
    chunks = [content[at : at + 256] for at in range(0, len(content), 256)]
    salts = hashlib.shake_256(b"tallystick chunk v1" + salt).digest(32 * len(chunks))
    leaves = [sha256(b"\x00" + salts[32 * i : 32 * i + 32] + chunk) for i, chunk in enumerate(chunks)]
    count = len(content) // 4 if kind == b"t" else len(content)
    return sha256(b"tallystick commitment v1" + kind + struct.pack("<Q", count) + tree_hash(leaves))


def test_commitments() -> None:
    found = load("commitments.json")
    secret = bytes.fromhex(found["issuer_secret"]), bytes.fromhex(found["tenant_secret"])
    key = hmac.new(secret[0], secret[1], "sha256").digest()
    assert key.hex() == found["tenant_key"]
    for purpose, salt in found["salts"].items():
        info = f"tallystick salt v1{found['record']}/{purpose}".encode()
        assert HKDFExpand(hashes.SHA256(), 32, info).derive(key).hex() == salt
    for each in found["tokens"]:
        content = struct.pack(f"<{len(each['tokens'])}I", *each["tokens"])
        assert commitment(b"t", content, bytes.fromhex(each["salt"])).hex() == each["digest"]
    for each in found["text"]:
        digest = commitment(b"x", each["text"].encode(), bytes.fromhex(each["salt"]))
        assert digest.hex() == each["digest"]
    request = found["request"]
    expected = hmac.new(bytes.fromhex(request["salt"]), request["request_id"].encode(), "sha256")
    assert expected.hexdigest() == request["digest"]
    record = load("records.json")["records"][0]["json"]
    assert [record["input"]["digest"], record["output"]["digest"], record["request"]] == [
        found["tokens"][0]["digest"],
        found["tokens"][1]["digest"],
        request["digest"],
    ]


def test_chunk_openings() -> None:
    found = load("commitments.json")["chunks"]
    leaves = [
        sha256(b"\x00" + bytes.fromhex(each["salt"]) + bytes.fromhex(each["content"]))
        for each in found["openings"]
    ]
    for each in found["openings"]:
        assert path_of(leaves, each["index"]) == unhex(each["path"])
        head = b"tallystick commitment v1t" + struct.pack("<Q", each["count"])
        assert sha256(head + tree_hash(leaves)).hex() == found["digest"]


# --- notes and proofs ---


def split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    text, _, block = note.rpartition("\n\n")
    signatures = []
    for line in block.splitlines():
        dash, name, encoded = line.split(" ")
        assert dash == "—"
        signatures.append((name, base64.b64decode(encoded, validate=True)))
    return text + "\n", signatures


def open_vkey(vkey: str) -> tuple[str, bytes, int, ed25519.Ed25519PublicKey]:
    name, key_id, encoded = vkey.split("+", 2)
    material = base64.b64decode(encoded, validate=True)
    assert sha256(name.encode() + b"\n" + material)[:4].hex() == key_id
    return name, bytes.fromhex(key_id), material[0], ed25519.Ed25519PublicKey.from_public_bytes(material[1:])


def check_note(note: str, vkey: str) -> tuple[str, int, bytes]:
    text, signatures = split_note(note)
    name, key_id, kind, key = open_vkey(vkey)
    assert kind == 1
    ((signer, signature), *_) = signatures
    assert (signer, signature[:4]) == (name, key_id)
    key.verify(signature[4:], text.encode())
    origin, size, root = text.splitlines()
    assert origin == name
    return text, int(size), base64.b64decode(root, validate=True)


def test_checkpoints() -> None:
    found = load("checkpoints.json")
    leaves = unhex([each["leaf_hash"] for each in load("statements.json")["statements"]])
    for each in found["checkpoints"]:
        _, size, root = check_note(each["note"], found["log_vkey"])
        assert (size, root.hex()) == (each["size"], each["root"])
        assert root == tree_hash(leaves[:size])


def test_cosigned_checkpoint() -> None:
    found = load("checkpoints.json")
    cosigned = found["cosigned"]
    text, _, _ = check_note(cosigned["note"], found["log_vkey"])
    name, key_id, kind, key = open_vkey(cosigned["witness_vkey"])
    assert kind == 4
    _, (signer, signature) = split_note(cosigned["note"])[1]
    assert (signer, signature[:4]) == (name, key_id)
    timestamp = int.from_bytes(signature[4:12], "big")
    assert timestamp == cosigned["timestamp_s"]
    key.verify(signature[12:], f"cosignature/v1\ntime {timestamp}\n{text}".encode())


def test_proof_file() -> None:
    found = load("proofs.json")
    header, index, *rest = found["tlog_proof"].split("\n")
    end = rest.index("")
    path = [base64.b64decode(line, validate=True) for line in rest[:end]]
    leaves = unhex([each["leaf_hash"] for each in load("statements.json")["statements"]])
    assert header == "c2sp.org/tlog-proof@v1"
    leaf = int(index.removeprefix("index "))
    assert leaf == load("batch.json")["leaf_index"]
    assert path == path_of(leaves, leaf)
    _, size, root = check_note("\n".join(rest[end + 1 :]), load("checkpoints.json")["log_vkey"])
    assert (size, root) == (len(leaves), tree_hash(leaves))
    assert root.hex() == found["root"]


def test_consistency_proofs() -> None:
    leaves = unhex([each["leaf_hash"] for each in load("statements.json")["statements"]])
    for each in load("proofs.json")["consistency"]:
        old, new = each["old_size"], each["new_size"]
        roots = each["old_root"], each["new_root"]
        assert roots == (tree_hash(leaves[:old]).hex(), tree_hash(leaves[:new]).hex())
        assert scitt_cose.verify_consistency(*roots, old, new, each["path"])


def test_notes_by_another_library() -> None:
    found = load("checkpoints.json")
    vkey = signing.Vkey.from_string(found["log_vkey"])
    for each in found["checkpoints"]:
        checkpoint = tlog.Checkpoint.from_text(each["note"])
        assert (checkpoint.size, checkpoint.root_hash.hex()) == (each["size"], each["root"])
        vkey.get_verifier().verify_note(checkpoint.signatures[0], checkpoint)


def test_tiles() -> None:
    found = load("tiles.json")
    statements = load("statements.json")["statements"]
    assert found["tile"]["bytes"] == "".join(each["leaf_hash"] for each in statements)
    bundle = bytes.fromhex(found["bundle"]["bytes"])
    for each in statements:
        size = int.from_bytes(bundle[:2], "big")
        assert bundle[2 : 2 + size].hex() == each["entry"]
        bundle = bundle[2 + size :]
    assert not bundle
    assert found["tile"]["path"] == f"tile/0/000.p/{len(statements)}"
    assert [each["path"] for each in found["paths"]] == [
        "tile/0/000",
        "tile/0/x001/x234/067",
        "tile/2/999.p/1",
        "tile/5/x001/000.p/255",
    ]
    tree = found["made_up_tree"]
    leaves = [sha256(b"\x00" + str(i).encode()) for i in range(tree["size"])]
    assert tree_hash(leaves).hex() == tree["root"]
    contents = [b"".join(leaves[:256]), b"".join(leaves[256:]), tree_hash(leaves[:256])]
    paths = ["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1"]
    assert [(t["path"], t["sha256"]) for t in tree["tiles"]] == [
        (path, sha256(content).hex()) for path, content in zip(paths, contents, strict=True)
    ]


def test_export_manifest() -> None:
    found = load("export.json")
    manifest = found["manifest"].encode()
    assert rfc8785.dumps(json.loads(manifest)) == manifest
    protected, unprotected, payload, signature = cbor2.loads(bytes.fromhex(found["signature"])).value
    assert (dict(unprotected), payload) == ({}, None)
    header = cbor2.loads(protected)
    assert header[3] == "application/vnd.tallystick.export+json"
    assert dict(header[15]) == {1: json.loads(manifest)["origin"], 2: "tallystick:export"}
    signed = cbor2.dumps(["Signature1", protected, b"", manifest])
    verify(public_keys()[header[4].hex()], signature, signed)
