from __future__ import annotations

import cbor2
import pytest

from ledger.core import cose, merkle, receipts
from ledger.core.errors import CorruptError, InvalidError
from tests.build import ORIGIN
from tests.core.examples import ALGORITHMS, SUBJECT, key_of, logged

SHAPES = [(1, 0), (2, 1), (3, 2), (5, 0), (6, 0), (7, 3), (8, 7), (9, 8), (33, 31), (100, 64)]
KEY = key_of("ed25519").public


def opens(data, leaf, key=KEY, **more):
    """Decode and verify."""
    receipt = receipts.decode_receipt(data)
    return receipts.verify_receipt(receipt, leaf, key, **more)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("size", "index"), SHAPES)
def test_a_receipt_proves_the_root_that_the_log_signed(size, index, algorithm):
    place = logged(size, index, algorithm)
    receipt = receipts.decode_receipt(place.receipt)
    assert (receipt.tree_size, receipt.leaf_index, receipt.origin) == (size, index, ORIGIN)
    assert (receipt.subject, receipt.registered_s) == (SUBJECT, 1_760_000_400)
    root = receipts.verify_receipt(receipt, place.leaf, key_of(algorithm).public, subject=SUBJECT)
    assert root == place.root


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_receipt_can_be_rebuilt_from_its_signature(algorithm):
    place = logged(11, 6, algorithm)
    receipt = receipts.decode_receipt(place.receipt)
    again = receipts.assemble_receipt(
        origin=receipt.origin,
        subject=receipt.subject,
        registered_s=receipt.registered_s,
        tree_size=receipt.tree_size,
        leaf_index=receipt.leaf_index,
        path=list(receipt.path),
        signature=receipt.message.signature,
        key=key_of(algorithm).public,
    )
    assert again == place.receipt


@pytest.mark.parametrize(("size", "index"), [(1, 0), (5, 0), (6, 0), (6, 4), (13, 12)])
def test_any_changed_byte_is_refused(size, index):
    place = logged(size, index)
    for position in range(len(place.receipt)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            changed = bytearray(place.receipt)
            changed[position] ^= mask
            try:
                opens(bytes(changed), place.leaf, subject=SUBJECT)
            except (InvalidError, CorruptError):
                continue
            pytest.fail(f"byte {position} ^ {mask:#x} passed")


@pytest.mark.parametrize("algorithm", ["es256", "ml-dsa-44"])
def test_any_changed_byte_is_refused_whatever_the_algorithm(algorithm):
    place, key = logged(6, 0, algorithm), key_of(algorithm).public
    positions = [*range(250), *range(250, len(place.receipt), 37)]
    for position in positions:
        changed = bytearray(place.receipt)
        changed[position % len(changed)] ^= 0x10
        with pytest.raises((InvalidError, CorruptError)):
            opens(bytes(changed), place.leaf, key, subject=SUBJECT)


def proof_of(data):
    """The inclusion proof in a receipt, and a function that puts another one in its place."""
    protected, unprotected, payload, signature = cbor2.loads(data).value
    size, index, path = cbor2.loads(unprotected[396][-1][0])

    def with_proof(*parts):
        header = {396: {-1: [cbor2.dumps(list(parts))]}}
        return cbor2.dumps(cbor2.CBORTag(18, [protected, header, payload, signature]))

    return size, index, list(path), with_proof


@pytest.mark.parametrize("other", [5, 7, 8])
def test_another_tree_size_for_the_same_root_is_refused(other):
    # Leaf 0 has the same path in trees of 5 to 8 leaves, so the root alone does not tell.
    place = logged(6, 0)
    _, index, path, with_proof = proof_of(place.receipt)
    assert merkle.root_from_inclusion(place.leaf, 0, other, path) == place.root
    with pytest.raises(InvalidError, match="tree size"):
        receipts.decode_receipt(with_proof(other, index, path))


def test_a_size_and_index_that_fit_together_are_refused():
    place = logged(3, 2)  # the path of leaf 2 of 3 is also that of leaf 1 of 2
    _, _, path, with_proof = proof_of(place.receipt)
    assert merkle.root_from_inclusion(place.leaf, 1, 2, path) == place.root
    with pytest.raises(InvalidError, match="tree size"):
        receipts.decode_receipt(with_proof(2, 1, path))


def test_receipts_without_a_signed_size_are_read():
    # Other logs do not sign it. An inclusion proof then vouches for the root alone.
    place = logged(6, 0)
    key = key_of("ed25519")
    header = receipts.receipt_header(origin=ORIGIN, subject=SUBJECT, registered_s=5, tree_size=6)
    del header[receipts.TREE_SIZE]
    message = cose.sign1(header, place.root, key, detached=True)
    _, _, path, _ = proof_of(place.receipt)
    unprotected = {396: {-1: [cbor2.dumps([6, 0, path])]}}
    data = cose.encode_sign1(
        cose.Sign1(message.protected, message.header, unprotected, None, message.signature)
    )
    assert opens(data, place.leaf) == place.root


def test_other_leaves_keys_and_subjects_are_refused():
    place, other = logged(7, 3), logged(7, 4)
    with pytest.raises(CorruptError):
        opens(place.receipt, other.leaf)
    for key in (key_of("ed25519", 1).public, key_of("es256").public):
        with pytest.raises(InvalidError) as caught:
            opens(place.receipt, place.leaf, key)
        assert caught.value.code == "other-key"
    with pytest.raises(InvalidError) as caught:
        opens(place.receipt, place.leaf, subject="tallystick:heartbeat:8")
    assert caught.value.code == "other-subject"


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_leaf_hash_has_32_bytes(length):
    with pytest.raises(InvalidError):
        opens(logged(7, 3).receipt, bytes(length))


HASH = b"h" * 32
PROOFS = {
    "index past the size": (7, 7, [HASH] * 3),
    "size 0": (0, 0, []),
    "path too short": (7, 3, [HASH] * 2),
    "path too long": (7, 3, [HASH] * 4),
    "path of 64": (7, 3, [HASH] * 64),
    "short hash": (7, 3, [HASH, HASH, HASH[:-1]]),
    "hash is text": (7, 3, ["h" * 32] * 3),
    "path is bytes": (7, 3, HASH),
    "path is null": (7, 3, None),
    "size negative": (-1, 3, [HASH] * 3),
    "index negative": (7, -1, [HASH] * 3),
    "size is text": ("7", 3, [HASH] * 3),
    "size is a boolean": (True, 0, []),
    "size 2^63": (2**63, 3, [HASH] * 3),
    "size past 2^64": (2**64, 3, [HASH] * 3),
    "two parts": (7, 3),
    "four parts": (7, 3, [HASH] * 3, 0),
}


@pytest.mark.parametrize("proof", PROOFS.values(), ids=PROOFS.keys())
def test_other_proofs_are_refused(proof):
    place = logged(7, 3)
    _, _, _, with_proof = proof_of(place.receipt)
    with pytest.raises((InvalidError, CorruptError)):
        opens(with_proof(*proof), place.leaf)


def sign_receipt(header=None, *, drop=(), unprotected=None, claims=None, payload=None):
    """A receipt of leaf 3 of 7 whose signature verifies, with the headers changed."""
    key = key_of("ed25519")
    place = logged(7, 3)
    _, _, path, _ = proof_of(place.receipt)
    full = {
        cose.ALG: key.public.alg,
        cose.KID: key.public.kid,
        **receipts.receipt_header(origin=ORIGIN, subject=SUBJECT, registered_s=5, tree_size=7),
    }
    full[cose.CWT_CLAIMS] |= claims or {}
    full[cose.CWT_CLAIMS] = {c: value for c, value in full[cose.CWT_CLAIMS].items() if value is not ...}
    full = {label: value for label, value in (full | (header or {})).items() if label not in drop}
    protected = cose.encode_cbor(full)
    signature = key.sign(cbor2.dumps(["Signature1", protected, b"", place.root]))
    proofs = {396: {-1: [cbor2.dumps([7, 3, path])]}} if unprotected is None else unprotected
    return cbor2.dumps(cbor2.CBORTag(18, [protected, proofs, payload, signature]))


GOOD_PROOF = cbor2.dumps([7, 3, proof_of(logged(7, 3).receipt)[2]])
HEADERS = {
    "no alg": {"drop": (cose.ALG,)},
    "other alg": {"header": {cose.ALG: -7}},
    "no kid": {"drop": (cose.KID,)},
    "other kid": {"header": {cose.KID: b"x" * 32}},
    "kid is text": {"header": {cose.KID: "x"}},
    "no claims": {"drop": (cose.CWT_CLAIMS,)},
    "claims are null": {"header": {cose.CWT_CLAIMS: None}},
    "no issuer": {"claims": {cose.CWT_ISS: ...}},
    "no subject": {"claims": {cose.CWT_SUB: ...}},
    "no iat": {"claims": {cose.CWT_IAT: ...}},
    "iat is text": {"claims": {cose.CWT_IAT: "5"}},
    "iat is negative": {"claims": {cose.CWT_IAT: -5}},
    "iat is a boolean": {"claims": {cose.CWT_IAT: True}},
    "no vds": {"drop": (cose.VDS,)},
    "vds of CCF": {"header": {cose.VDS: 2}},
    "vds is a boolean": {"header": {cose.VDS: True}},
    "critical label not understood": {"header": {cose.CRIT: [99], 99: 0}},
    "critical label that is not there": {"header": {cose.CRIT: [cose.CONTENT_TYPE]}},
    "tree size of another tree": {"header": {receipts.TREE_SIZE: 6}},
    "tree size is text": {"header": {receipts.TREE_SIZE: "7"}},
    "payload attached": {"payload": logged(7, 3).root},
    "payload empty": {"payload": b""},
    "no proofs": {"unprotected": {}},
    "vdp is an array": {"unprotected": {396: [GOOD_PROOF]}},
    "vdp is empty": {"unprotected": {396: {}}},
    "a consistency proof": {"unprotected": {396: {-2: [GOOD_PROOF]}}},
    "both kinds of proof": {"unprotected": {396: {-1: [GOOD_PROOF], -2: [GOOD_PROOF]}}},
    "no inclusion proof": {"unprotected": {396: {-1: []}}},
    "two inclusion proofs": {"unprotected": {396: {-1: [GOOD_PROOF, GOOD_PROOF]}}},
    "proof not wrapped": {"unprotected": {396: {-1: [[7, 3, []]]}}},
    "proof alone": {"unprotected": {396: {-1: GOOD_PROOF}}},
    "more unprotected": {"unprotected": {4: b"x", 396: {-1: [GOOD_PROOF]}}},
    "vds unprotected": {"drop": (cose.VDS,), "unprotected": {395: 1, 396: {-1: [GOOD_PROOF]}}},
    "proof followed by more": {"unprotected": {396: {-1: [GOOD_PROOF + b"\x00"]}}},
    "proof with a long size": {"unprotected": {396: {-1: [b"\x83\x18\x07" + GOOD_PROOF[2:]]}}},
}


def test_the_example_that_is_changed_is_good():
    assert opens(sign_receipt(), logged(7, 3).leaf, subject=SUBJECT) == logged(7, 3).root
    assert opens(sign_receipt({cose.CRIT: [cose.VDS]}), logged(7, 3).leaf) == logged(7, 3).root
    assert opens(sign_receipt({cose.ALG: -19}), logged(7, 3).leaf) == logged(7, 3).root


@pytest.mark.parametrize("changes", HEADERS.values(), ids=HEADERS.keys())
def test_other_headers_are_refused_although_the_signature_verifies(changes):
    with pytest.raises(InvalidError):
        opens(sign_receipt(**changes), logged(7, 3).leaf, subject=SUBJECT)


@pytest.mark.parametrize("payload", [logged(7, 3).root, b""])
def test_an_attached_root_is_refused_before_anything_is_verified(payload):
    with pytest.raises(InvalidError, match="detached"):
        receipts.decode_receipt(sign_receipt(payload=payload))


def test_the_root_is_not_believed_before_it_is_verified():
    place = logged(7, 3)
    size, index, path, with_proof = proof_of(place.receipt)
    for level in range(len(path)):
        forged = [*path[:level], HASH, *path[level + 1 :]]
        with pytest.raises(CorruptError) as caught:
            opens(with_proof(size, index, forged), place.leaf)
        assert caught.value.code == "bad-signature"


def test_cut_receipts_are_refused():
    place = logged(7, 3)
    for length in range(len(place.receipt)):
        with pytest.raises(InvalidError):
            receipts.decode_receipt(place.receipt[:length])
