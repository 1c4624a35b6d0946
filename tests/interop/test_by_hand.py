"""The evidence checked once more as a stranger would: hashlib, json, a CBOR library, a signature library.

Nothing of ``ledger`` reads or verifies here; it only makes what is checked. Whoever writes a verifier in
another language can follow these lines.
"""

from __future__ import annotations

import hashlib
import hmac
import json

import cbor2
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ledger.core import commitments, merkle, receipts
from tests.build import ORIGIN, Issuer, make_deployment, make_records
from tests.core.examples import key_of


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1 over leaf hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01", tree_hash(leaves[:split]), tree_hash(leaves[split:]))


def climb(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """RFC 9162 section 2.1.3.2, step by step."""
    assert index < size
    fn, sn, node = index, size - 1, leaf
    for sibling in path:
        assert sn
        if fn & 1 or fn == sn:
            node = sha256(b"\x01", sibling, node)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = sha256(b"\x01", node, sibling)
        fn, sn = fn >> 1, sn >> 1
    assert sn == 0
    return node


def sig_structure(protected: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, b"", payload])


def test_a_record_in_a_statement_in_the_log():
    issuer, log_key = Issuer(), key_of("ed25519")
    batch = issuer.batch(make_records(21, make_deployment()))
    leaves = [merkle.leaf_hash(b"%d" % n) for n in range(13)] + [batch.statement.leaf_hash]
    receipt, _ = receipts.issue_receipt(
        origin=ORIGIN,
        subject=batch.statement.subject,
        registered_s=1_760_000_500,
        tree_size=14,
        leaf_index=13,
        path=merkle.inclusion_path(leaves, 13),
        root=merkle.root(leaves),
        key=log_key,
    )
    issuer_key = issuer.key.public.raw_bytes()
    check_by_hand(batch.lines, batch.statement.entry, receipt, issuer_key, log_key.public.raw_bytes())
    lines = batch.lines.replace(b'"input_tokens":125', b'"input_tokens":124')
    assert lines != batch.lines
    with pytest.raises((AssertionError, InvalidSignature)):
        check_by_hand(lines, batch.statement.entry, receipt, issuer_key, log_key.public.raw_bytes())


def check_by_hand(lines: bytes, entry: bytes, receipt: bytes, issuer_key: bytes, log_key: bytes) -> None:
    # 1. The records hash to the statement's root, and sum to its totals.
    protected, unprotected, payload, signature = cbor2.loads(entry).value
    assert not unprotected
    claimed = json.loads(payload)
    rows = lines.split(b"\n")[:-1]
    hashes = [sha256(b"\x00", row) for row in rows]
    assert tree_hash(hashes).hex() == claimed["root"]
    assert claimed["count"] == len(rows)
    assert claimed["totals"]["energy_uj"] == sum(json.loads(row)["energy"]["energy_uj"] for row in rows)
    # 2. The issuer signed the statement.
    Ed25519PublicKey.from_public_bytes(issuer_key).verify(signature, sig_structure(protected, payload))
    header = cbor2.loads(protected)
    okp = b"\xa3\x01\x01\x20\x06\x21\x58\x20" + issuer_key
    assert (header[1], header[4]) == (-8, sha256(okp))  # EdDSA; RFC 9679 thumbprint
    assert header[15][2] == f"tallystick:batch:{claimed['root']}"
    # 3. The log signed a root that leads back to the statement.
    log_protected, proofs, detached, log_signature = cbor2.loads(receipt).value
    size, index, path = cbor2.loads(proofs[396][-1][0])
    assert detached is None
    root = climb(sha256(b"\x00", entry), index, size, list(path))
    Ed25519PublicKey.from_public_bytes(log_key).verify(log_signature, sig_structure(log_protected, root))
    log_header = cbor2.loads(log_protected)
    assert (log_header[395], log_header[15][2], log_header[-65600]) == (1, header[15][2], size)


def chunk_salt(salt: bytes, index: int) -> bytes:
    return hashlib.shake_256(b"tallystick chunk v1" + salt).digest(32 * index + 32)[32 * index :]


def top(kind: bytes, count: int, root: bytes) -> bytes:
    return sha256(b"tallystick commitment v1", kind, count.to_bytes(8, "little"), root)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 200, 1000])
def test_an_opening_shows_the_tokens_that_were_committed_to(count):
    tokens = [n * 2654435761 % 2**32 for n in range(count)]
    issuer_secret, tenant_secret = b"i" * 32, b"t" * 32
    record_id = "0199c7d1-0000-7000-8000-000000000000"
    key = commitments.tenant_key(issuer_secret, tenant_secret)
    digest = commitments.commit_tokens(tokens, commitments.record_salt(key, record_id, "input"))
    # HKDF (RFC 5869): extract, then one block of expand.
    prk = hmac.digest(issuer_secret, tenant_secret, "sha256")
    info = b"tallystick salt v1" + record_id.encode() + b"/input"
    salt = hmac.digest(prk, info + b"\x01", "sha256")
    content = b"".join(token.to_bytes(4, "little") for token in tokens)
    chunks = [content[at : at + 256] for at in range(0, len(content), 256)]
    leaves = [sha256(b"\x00", chunk_salt(salt, i), chunk) for i, chunk in enumerate(chunks)]
    assert top(b"t", count, tree_hash(leaves)) == digest


@pytest.mark.parametrize(("count", "index"), [(1, 0), (64, 0), (65, 1), (200, 2), (1000, 15)])
def test_an_opened_chunk_shows_its_tokens_and_hides_the_rest(count, index):
    salt = bytes(range(32))
    whole = commitments.Opening("tokens", salt, commitments.token_bytes(range(count)))
    digest = commitments.commit_tokens(range(count), salt)
    shown = commitments.open_chunk(whole, index)
    expected = b"".join(n.to_bytes(4, "little") for n in range(count))[256 * index : 256 * index + 256]
    assert shown.content == expected
    leaf = sha256(b"\x00", shown.salt, shown.content)
    root = climb(leaf, shown.index, -(-count // 64), list(shown.path))
    assert top(b"t", shown.count, root) == digest


def test_text_is_committed_to_in_chunks_of_256_bytes():
    text = "Grüße, " * 100
    salt = bytes(range(32))
    content = text.encode()
    chunks = [content[at : at + 256] for at in range(0, len(content), 256)]
    leaves = [sha256(b"\x00", chunk_salt(salt, i), chunk) for i, chunk in enumerate(chunks)]
    assert top(b"x", len(content), tree_hash(leaves)) == commitments.commit_text(text, salt)
