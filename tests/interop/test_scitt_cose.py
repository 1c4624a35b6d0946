"""Statements and receipts against ``scitt-cose``, an independent implementation of RFC 9942 and RFC 9943."""

from __future__ import annotations

import cbor2
import pytest
import scitt_cose

from ledger.core import cose, merkle, receipts
from ledger.core import statements as s
from ledger.core.canonical import encode_canonical
from ledger.core.errors import CorruptError, InvalidError
from tests.build import ISSUER, ORIGIN
from tests.core.examples import KINDS, SUBJECT, key_of, logged, payload_of, statement_of

# What the other implementation knows; it has no ML-DSA.
ALGORITHMS = {"ed25519": "EdDSA", "es256": "ES256"}
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 65]
HALF_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551 // 2


# --- theirs verifies ours --------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
def test_they_verify_our_statements(kind, algorithm):
    statement = statement_of(kind, algorithm)
    parsed = scitt_cose.parse_signed_statement(
        statement.entry, public_key_pem=key_of(algorithm).public.to_pem()
    )
    assert parsed["signature_verified"] is True
    assert parsed["issuer"] == ISSUER
    assert parsed["subject"] == statement.subject
    assert parsed["content_type"] == s.CONTENT_TYPE
    assert parsed["alg"] == ALGORITHMS[algorithm]
    assert parsed["payload"] == encode_canonical(statement.payload)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_they_refuse_our_statements_under_another_key_or_changed(algorithm):
    entry = statement_of("heartbeat", algorithm).entry
    other = key_of(algorithm, 1).public.to_pem()
    assert scitt_cose.parse_signed_statement(entry, public_key_pem=other)["signature_verified"] is False
    changed = entry[:-1] + bytes([entry[-1] ^ 1])
    pem = key_of(algorithm).public.to_pem()
    assert scitt_cose.parse_signed_statement(changed, public_key_pem=pem)["signature_verified"] is False


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_they_verify_our_receipts(size, algorithm):
    for index in sorted({0, size // 2, size - 1}):
        place = logged(size, index, algorithm)
        result = scitt_cose.verify_receipt(
            place.receipt,
            leaf_entry_hex=(b"%d" % index).hex(),
            log_public_key_pem=key_of(algorithm).public.to_pem(),
        )
        assert result.ok, result.errors
        assert (result.tree_size, result.leaf_index, result.root) == (size, index, place.root.hex())
        assert (result.issuer, result.subject, result.iat) == (ORIGIN, SUBJECT, 1_760_000_400)
        assert result.protected_header_ext[receipts.TREE_SIZE] == size
        assert result.protected_header_ext[cose.KID] == key_of(algorithm).public.kid


def test_they_refuse_our_receipts_for_another_leaf():
    place = logged(7, 3)
    result = scitt_cose.verify_receipt(
        place.receipt, leaf_entry_hex=b"4".hex(), log_public_key_pem=key_of("ed25519").public.to_pem()
    )
    assert not result.ok


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_they_take_our_transparent_statements_apart(algorithm):
    statement = statement_of("batch", algorithm)
    attached = [
        logged(9, index, subject=statement.subject, entry=statement.entry).receipt for index in (2, 8)
    ]
    transparent = s.transparent_statement(statement, attached)
    assert scitt_cose.extract_receipts(transparent) == attached
    pem = key_of(algorithm).public.to_pem()
    assert scitt_cose.parse_signed_statement(transparent, public_key_pem=pem)["signature_verified"] is True
    for receipt in scitt_cose.extract_receipts(transparent):
        assert scitt_cose.verify_receipt(
            receipt,
            leaf_entry_hex=statement.entry.hex(),
            log_public_key_pem=key_of("ed25519").public.to_pem(),
        ).ok


def test_they_attach_receipts_as_we_do():
    statement = statement_of("heartbeat")
    attached = [logged(5, index, subject=statement.subject).receipt for index in (0, 4)]
    theirs = scitt_cose.attach_receipts(statement.entry, attached)
    assert theirs == s.transparent_statement(statement, attached)


# --- ours verifies theirs --------------------------------------------------------------------------------


def signed_by_them(protected, payload, algorithm, **more):
    """Their COSE_Sign1. They write maps in the order given and force ``alg`` to what the key is."""
    return scitt_cose.sign_sign1(
        payload,
        alg=ALGORITHMS[algorithm],
        private_key_pem=key_of(algorithm).to_pem(),
        protected=protected,
        **more,
    )


def low_s(make, algorithm):
    """What ``make`` gives; for ES256 the first that has a low s, which every second one has."""
    while True:
        data = make()
        signature = cbor2.loads(data).value[3]
        if algorithm != "es256" or int.from_bytes(signature[32:], "big") <= HALF_ORDER:
            return data


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
def test_we_verify_statements_that_they_sign(kind, algorithm):
    payload = payload_of(kind)
    key = key_of(algorithm).public
    header = {
        cose.ALG: None,
        cose.CONTENT_TYPE: s.CONTENT_TYPE,
        cose.KID: key.kid,
        cose.CWT_CLAIMS: {cose.CWT_ISS: ISSUER, cose.CWT_SUB: s.subject_of(payload)},
    }
    data = low_s(lambda: signed_by_them(header, encode_canonical(payload), algorithm), algorithm)
    statement = s.decode_statement(data)
    s.verify_statement(statement, key)
    assert statement.payload == payload
    if algorithm == "ed25519":  # deterministic: the same bytes from both
        assert data == s.sign_statement(payload, issuer=ISSUER, key=key_of(algorithm)).entry


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_we_verify_receipts_that_they_sign(size, algorithm):
    key = key_of(algorithm).public
    entries = [(b"%d" % n).hex() for n in range(size)]
    root = scitt_cose.merkle_root(entries)
    for index in sorted({0, size // 2, size - 1}):
        path = [bytes.fromhex(each) for each in scitt_cose.inclusion_proof(entries, index)]
        header = {
            cose.ALG: None,
            cose.KID: key.kid,
            cose.CWT_CLAIMS: {cose.CWT_ISS: ORIGIN, cose.CWT_SUB: SUBJECT, cose.CWT_IAT: 1_760_000_400},
            cose.VDS: 1,
            receipts.TREE_SIZE: size,
        }
        proofs = {cose.VDP: {-1: [cbor2.dumps([size, index, path])]}}
        data = low_s(
            lambda header=header, proofs=proofs: signed_by_them(
                header, bytes.fromhex(root), algorithm, unprotected=proofs, detached=True
            ),
            algorithm,
        )
        leaf = merkle.leaf_hash(b"%d" % index)
        proven = receipts.verify_receipt(receipts.decode_receipt(data), leaf, key, subject=SUBJECT)
        assert proven.hex() == root
        if algorithm == "ed25519":
            assert data == logged(size, index).receipt


def test_their_roots_and_proofs_are_ours():
    for size in range(1, 40):
        entries = [b"%d" % n for n in range(size)]
        leaves = [merkle.leaf_hash(each) for each in entries]
        theirs = [each.hex() for each in entries]
        assert scitt_cose.merkle_root(theirs) == merkle.root(leaves).hex()
        for index in range(size):
            ours = [each.hex() for each in merkle.inclusion_path(leaves, index)]
            assert scitt_cose.inclusion_proof(theirs, index) == ours
        for old in range(size + 1):
            ours = [each.hex() for each in merkle.consistency_path(leaves, old)]
            assert scitt_cose.consistency_proof(theirs, old, size) == ours


# --- where the formats differ ----------------------------------------------------------------------------


def test_maps_out_of_order_are_refused_by_us_alone():
    # Their builders write ``alg`` last. RFC 9052 allows it; a Tallystick statement has one spelling.
    payload = payload_of("heartbeat")
    key = key_of("ed25519")
    data = scitt_cose.build_signed_statement(
        encode_canonical(payload),
        alg="EdDSA",
        private_key_pem=key.to_pem(),
        issuer=ISSUER,
        subject=s.subject_of(payload),
        content_type=s.CONTENT_TYPE,
        kid=key.public.kid,
    )
    parsed = scitt_cose.parse_signed_statement(data, public_key_pem=key.public.to_pem())
    assert parsed["signature_verified"] is True
    with pytest.raises(InvalidError, match="sorted") as caught:
        s.decode_statement(data)
    assert "deterministic" in caught.value.remedy


def test_a_high_s_is_refused_by_us_alone():
    while True:
        data = signed_by_them({cose.ALG: None}, b"payload", "es256")
        if int.from_bytes(cbor2.loads(data).value[3][32:], "big") > HALF_ORDER:
            break
    public = key_of("es256").public
    assert scitt_cose.verify_sign1(data, public_key_pem=public.to_pem()).payload == b"payload"
    with pytest.raises(CorruptError, match="high s"):
        cose.verify_sign1(cose.decode_sign1(data), public, understood=frozenset())


def test_a_restated_tree_size_passes_there_and_not_here():
    # Leaf 0 has one path in trees of 5 to 8 leaves. The size in the proof is not signed (RFC 9942), so
    # others believe it; ours is signed beside it.
    place = logged(6, 0)
    value = cbor2.loads(place.receipt).value
    _, index, path = cbor2.loads(value[1][396][-1][0])
    restated = cbor2.dumps(
        cbor2.CBORTag(18, [value[0], {396: {-1: [cbor2.dumps([7, index, list(path)])]}}, None, value[3]])
    )
    theirs = scitt_cose.verify_receipt(
        restated, leaf_entry_hex=b"0".hex(), log_public_key_pem=key_of("ed25519").public.to_pem()
    )
    assert (theirs.ok, theirs.tree_size) == (True, 7)
    with pytest.raises(InvalidError, match="tree size"):
        receipts.decode_receipt(restated)
