from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tlog_scales.signing import (
    Ed25519CosignatureVerifier,
    MLDSA44CosignatureSigner,
    MLDSA44CosignatureVerifier,
    Vkey,
)
from tlog_scales.tlog import Checkpoint as TheirCheckpoint

from ledger.core import cosignature, merkle, note
from ledger.core.checkpoint import Checkpoint, format_checkpoint_text, parse_checkpoint_text
from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.note import Note, NoteSignature, VerifierKey

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "tlog_cosignature.json").read_text())
CHECKPOINT = Checkpoint("example.com/log", 123, merkle.leaf_hash(b"leaf"))
TEXT = format_checkpoint_text(CHECKPOINT)
NOW_S = 1_700_000_000
ED_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ML_KEY = MLDSA44PrivateKey.from_seed_bytes(bytes(32))
ED_VKEY = VerifierKey.of(
    "witness.example/ed", note.COSIGNATURE_ED25519, ED_KEY.public_key().public_bytes_raw()
)
ML_VKEY = VerifierKey.of(
    "witness.example/ml", note.COSIGNATURE_ML_DSA_44, ML_KEY.public_key().public_bytes_raw()
)


def by_ed(text=TEXT, timestamp_s=NOW_S, name=ED_VKEY.name):
    return cosignature.cosign_ed25519(text, name, ED_KEY, timestamp_s)


def by_ml(checkpoint=CHECKPOINT, timestamp_s=NOW_S, name=ML_VKEY.name):
    return cosignature.cosign_ml_dsa_44(checkpoint, name, ML_KEY, timestamp_s)


BOTH = [(by_ed(), ED_VKEY), (by_ml(), ML_VKEY)]
both_kinds = pytest.mark.parametrize(("signature", "key"), BOTH, ids=["ed25519", "ml-dsa-44"])


@pytest.mark.parametrize("vector", VECTORS["cosignatures"], ids=lambda v: v["name"])
def test_published_cosignatures_verify(vector):
    parsed = note.parse_note(vector["note"].encode())
    key = note.parse_vkey(vector["vkey"])
    assert cosignature.verified_cosignatures(parsed, [key]) == [(key.name, vector["timestamp_s"])]
    changed = Note(parsed.text.replace("\n300\n", "\n301\n").replace("\n1\n", "\n2\n"), parsed.signatures)
    with pytest.raises(CorruptError):
        cosignature.verified_cosignatures(changed, [key])


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS["cosignatures"] if "seed_text" in v], ids=lambda v: v["name"]
)
def test_published_ed25519_cosignatures_are_made_again(vector):
    parsed = note.parse_note(vector["note"].encode())
    key = Ed25519PrivateKey.from_private_bytes(sha256(vector["seed_text"].encode()).digest())
    name = note.parse_vkey(vector["vkey"]).name
    made = cosignature.cosign_ed25519(parsed.text, name, key, vector["timestamp_s"])
    assert made in parsed.signatures


def test_a_published_root_is_that_of_its_leaves():
    text = note.parse_note(VECTORS["cosignatures"][2]["note"].encode()).text
    leaves = [merkle.leaf_hash(b"record %d" % i) for i in range(300)]
    assert parse_checkpoint_text(text).root == merkle.root(leaves)


def test_the_messages_byte_for_byte():
    root = CHECKPOINT.root
    assert cosignature.subtree_message("w", "example.com/log", 8, 13, root) == (
        b"subtree/v1\n\0"
        b"\x01w" + bytes(8) + b"\x0fexample.com/log" + bytes(7) + b"\x08" + bytes(7) + b"\x0d" + root
    )
    ED_KEY.public_key().verify(BOTH[0][0].signature[8:], b"cosignature/v1\ntime 1700000000\n" + TEXT.encode())


@given(st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1), st.text("abc/.", min_size=1, max_size=255))
@settings(deadline=None)
def test_round_trips(timestamp_s, size, origin):
    checkpoint = Checkpoint(origin, size, CHECKPOINT.root)
    text = format_checkpoint_text(checkpoint)
    ed, ml = by_ed(text, timestamp_s), by_ml(checkpoint, timestamp_s)
    assert cosignature.verify_cosignature(text, ed, ED_VKEY) == timestamp_s
    assert cosignature.verify_cosignature(text, ml, ML_VKEY) == timestamp_s


def test_an_independent_verifier_accepts_ours():
    theirs = TheirCheckpoint(CHECKPOINT.origin, CHECKPOINT.size, CHECKPOINT.root, [])
    (ed, _), (ml, _) = BOTH
    Ed25519CosignatureVerifier(Vkey.from_string(note.format_vkey(ED_VKEY))).verify(ed.signature, theirs)
    MLDSA44CosignatureVerifier(Vkey.from_string(note.format_vkey(ML_VKEY))).verify(ml.signature, theirs)


def test_we_accept_an_independent_cosigner():
    theirs = TheirCheckpoint.make_signed(
        CHECKPOINT.origin,
        CHECKPOINT.size,
        CHECKPOINT.root,
        [MLDSA44CosignatureSigner(ML_VKEY.name, ML_KEY)],
    )
    parsed = note.parse_note(theirs.serialize().encode())
    [(name, timestamp_s)] = cosignature.verified_cosignatures(parsed, [ML_VKEY])
    assert name == ML_VKEY.name
    assert timestamp_s > NOW_S


@both_kinds
def test_a_cosignature_of_another_checkpoint_fails(signature, key):
    for text in (
        TEXT.replace("123", "124"),
        TEXT.replace("example.com/log", "example.com/lag"),
        format_checkpoint_text(Checkpoint(CHECKPOINT.origin, 123, merkle.leaf_hash(b"other"))),
    ):
        with pytest.raises(CorruptError):
            cosignature.verify_cosignature(text, signature, key)


def test_extension_lines_are_covered_by_ed25519_only():
    text = TEXT + "extension\n"
    with pytest.raises(CorruptError):
        cosignature.verify_cosignature(text, by_ed(), ED_VKEY)
    assert cosignature.verify_cosignature(text, by_ed(text), ED_VKEY) == NOW_S
    assert cosignature.verify_cosignature(text, by_ml(), ML_VKEY) == NOW_S


@both_kinds
def test_flipped_bits_are_noticed(signature, key):
    size = len(signature.signature) * 8
    for bit in range(0, size, max(1, size // 600)):
        changed = bytearray(signature.signature)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CorruptError):
            cosignature.verify_cosignature(TEXT, NoteSignature(key.name, key.key_id, bytes(changed)), key)


@both_kinds
def test_a_cosignature_of_the_wrong_length_fails(signature, key):
    for raw in (signature.signature[:-1], signature.signature + b"\0", b"\0", signature.signature[8:]):
        with pytest.raises(CorruptError, match="bytes instead of"):
            cosignature.verify_cosignature(TEXT, NoteSignature(key.name, key.key_id, raw), key)


def test_the_ml_dsa_signature_commits_to_the_witness_name():
    other = VerifierKey.of("witness.example/other", ML_VKEY.sig_type, ML_VKEY.public_key)
    renamed = NoteSignature(other.name, other.key_id, by_ml().signature)
    with pytest.raises(CorruptError):
        cosignature.verify_cosignature(TEXT, renamed, other)


def test_another_keys_cosignature_is_not_this_keys():
    with pytest.raises(CorruptError, match="another key's"):
        cosignature.verify_cosignature(TEXT, by_ed(), ML_VKEY)


def test_a_timestamp_beyond_the_limit_fails_although_signed():
    text = TEXT.encode()
    raw = ED_KEY.sign(b"cosignature/v1\ntime %d\n" % 2**63 + text)
    signature = NoteSignature(ED_VKEY.name, ED_VKEY.key_id, (2**63).to_bytes(8, "big") + raw)
    with pytest.raises(CorruptError, match="out of range"):
        cosignature.verify_cosignature(TEXT, signature, ED_VKEY)


def test_timestamps_that_cannot_be_signed():
    for timestamp_s in (-1, 0, 2**63):
        with pytest.raises(InvalidError, match="out of range"):
            by_ed(timestamp_s=timestamp_s)
    for timestamp_s in (-1, 2**63):
        with pytest.raises(InvalidError, match="out of range"):
            by_ml(timestamp_s=timestamp_s)
    assert cosignature.verify_cosignature(TEXT, by_ml(timestamp_s=0), ML_VKEY) == 0


def test_what_cannot_be_cosigned():
    with pytest.raises(InvalidError):
        by_ed(text="no checkpoint\n")
    for name in ("é" * 128, "a" * 256):
        with pytest.raises(InvalidError, match="cosigner name"):
            by_ml(name=name)
    with pytest.raises(InvalidError, match="log origin"):
        by_ml(Checkpoint("a" * 256, 1, CHECKPOINT.root))
    root = CHECKPOINT.root
    for start, end, hashed, timestamp_s in (
        (8, 13, root, 1),
        (13, 8, root, 0),
        (-1, 8, root, 0),
        (0, 2**63, root, 0),
        (0, 8, root[:-1], 0),
        (5, 5, root, 0),
    ):
        with pytest.raises(InvalidError, match="cannot be cosigned"):
            cosignature.subtree_message("w", "log", start, end, hashed, timestamp_s=timestamp_s)
    assert cosignature.subtree_message("w", "log", 5, 5, merkle.EMPTY_ROOT).endswith(merkle.EMPTY_ROOT)


def test_subtree_signatures_verify_with_the_message():
    message = cosignature.subtree_message(ML_VKEY.name, "log", 8, 13, CHECKPOINT.root)
    public_key = MLDSA44PublicKey.from_public_bytes(ML_VKEY.public_key)
    public_key.verify(ML_KEY.sign(message), message)


def test_witnesses_are_counted_once_and_unknown_ones_ignored():
    later = by_ed(timestamp_s=NOW_S + 5)
    second = VerifierKey.of(ED_VKEY.name, ML_VKEY.sig_type, ML_VKEY.public_key)
    signatures = (by_ml(name=ED_VKEY.name, timestamp_s=NOW_S + 9), later, by_ed())
    parsed = Note(TEXT, signatures)
    assert cosignature.verified_cosignatures(parsed, [ED_VKEY]) == [(ED_VKEY.name, NOW_S + 5)]
    assert cosignature.verified_cosignatures(parsed, [ED_VKEY, second]) == [(ED_VKEY.name, NOW_S + 9)]
    assert cosignature.verified_cosignatures(parsed, [ML_VKEY]) == []
    assert cosignature.verified_cosignatures(parsed, []) == []
    both = Note(TEXT, tuple(signature for signature, _ in BOTH))
    assert cosignature.verified_cosignatures(both, [ML_VKEY, ED_VKEY]) == [
        (ED_VKEY.name, NOW_S),
        (ML_VKEY.name, NOW_S),
    ]


def test_one_wrong_cosignature_by_a_known_witness_condemns_the_checkpoint():
    wrong = NoteSignature(ML_VKEY.name, ML_VKEY.key_id, by_ed().signature)
    with pytest.raises(CorruptError, match=r"witness\.example/ml"):
        cosignature.verified_cosignatures(Note(TEXT, (by_ed(), wrong)), [ED_VKEY, ML_VKEY])


def test_one_witness_cannot_stand_for_two():
    # An Ed25519 cosignature does not commit to the name: relabelled, it would verify under the second.
    alias = VerifierKey.of("witness.example/alias", ED_VKEY.sig_type, ED_VKEY.public_key)
    with pytest.raises(InvalidError, match="two names"):
        cosignature.verified_cosignatures(Note(TEXT, (by_ed(),)), [ED_VKEY, alias])


def test_keys_of_other_types_are_refused():
    key = VerifierKey.of("example.com/log", note.ED25519, ED_VKEY.public_key)
    with pytest.raises(InvalidError, match="no cosignature key"):
        cosignature.verified_cosignatures(Note(TEXT, (by_ed(),)), [key])
    with pytest.raises(InvalidError, match="makes no cosignatures"):
        cosignature.verify_cosignature(TEXT, by_ed(), key)


def test_a_cosignature_is_no_note_signature_and_the_other_way_round():
    plain = VerifierKey.of(ED_VKEY.name, note.ED25519, ED_VKEY.public_key)
    raw = by_ed().signature[8:]
    disguised = NoteSignature(plain.name, plain.key_id, raw)
    with pytest.raises(TallystickError):
        note.verify_note(Note(TEXT, (disguised,)), [plain])
    signed = note.sign_ed25519_note(TEXT, plain.name, ED_KEY)
    disguised = NoteSignature(ED_VKEY.name, ED_VKEY.key_id, NOW_S.to_bytes(8, "big") + signed.signature)
    with pytest.raises(CorruptError):
        cosignature.verify_cosignature(TEXT, disguised, ED_VKEY)
