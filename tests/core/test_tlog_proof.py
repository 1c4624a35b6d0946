from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ledger.core import cosignature, merkle, note
from ledger.core.checkpoint import Checkpoint, format_checkpoint_text, sign_checkpoint
from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.tlog_proof import TlogProof, format_tlog_proof, parse_tlog_proof, verify_tlog_proof

LEAVES = [merkle.leaf_hash(b"%d" % i) for i in range(11)]
INDEX = 5
LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ED = Ed25519PrivateKey.from_private_bytes(bytes(32))
ML = MLDSA44PrivateKey.from_seed_bytes(bytes(32))
LOG_KEY = note.VerifierKey.of("example.com/log", note.ED25519, LOG.public_key().public_bytes_raw())
ED_KEY = note.VerifierKey.of("w.example/1", note.COSIGNATURE_ED25519, ED.public_key().public_bytes_raw())
ML_KEY = note.VerifierKey.of("w.example/2", note.COSIGNATURE_ML_DSA_44, ML.public_key().public_bytes_raw())
CHECKPOINT = Checkpoint(LOG_KEY.name, len(LEAVES), merkle.root(LEAVES))


def cosigned(*kinds):
    signed = note.parse_note(sign_checkpoint(CHECKPOINT, LOG))
    text = format_checkpoint_text(CHECKPOINT)
    made = {
        "ed": lambda: cosignature.cosign_ed25519(text, ED_KEY.name, ED, 1_700_000_000),
        "ml": lambda: cosignature.cosign_ml_dsa_44(CHECKPOINT, ML_KEY.name, ML, 1_700_000_000),
    }
    return note.format_note(note.Note(text, signed.signatures + tuple(made[kind]() for kind in kinds)))


def proof_of(*kinds, extra=None):
    return TlogProof(INDEX, tuple(merkle.inclusion_path(LEAVES, INDEX)), cosigned(*kinds), extra)


def b64(data):
    return base64.b64encode(data).decode()


def test_files_of_the_format():
    h1, h2 = sha256(b"hash1").digest(), sha256(b"hash2").digest()
    expected = {
        TlogProof(5, (h1, h2), b"test checkpoint\n"): f"index 5\n{b64(h1)}\n{b64(h2)}\n\ntest checkpoint\n",
        TlogProof(10, (h1,), b"c\n", b"extra information"): (
            f"extra ZXh0cmEgaW5mb3JtYXRpb24=\nindex 10\n{b64(h1)}\n\nc\n"
        ),
        TlogProof(0, (), b"checkpoint\n\nmore\n"): "index 0\n\ncheckpoint\n\nmore\n",
    }
    for proof, text in expected.items():
        data = f"c2sp.org/tlog-proof@v1\n{text}".encode()
        assert format_tlog_proof(proof) == data
        assert parse_tlog_proof(data) == proof


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=64),
    st.binary(min_size=1, max_size=100),
    st.none() | st.binary(min_size=1, max_size=100),
)
def test_files_round_trip(index, path, checkpoint_note, extra):
    proof = TlogProof(index, tuple(path), checkpoint_note, extra)
    assert parse_tlog_proof(format_tlog_proof(proof)) == proof


HEAD = "c2sp.org/tlog-proof@v1\n"
HASH = b64(bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD,
        f"{HEAD}\ncheckpoint\n",
        f"{HEAD}index 0\n",
        f"{HEAD}index 0\n\n",
        f"{HEAD}index 0\ncheckpoint\n",
        f"wrong\nindex 0\n{HASH}\n\ncheckpoint\n",
        f" {HEAD}index 0\n{HASH}\n\ncheckpoint\n",
        f"{HEAD}extra !!notbase64!!\nindex 0\n\ncheckpoint\n",
        f"{HEAD}extra \nindex 0\n\ncheckpoint\n",
        f"{HEAD}extra AAAA\nextra AAAA\nindex 0\n\ncheckpoint\n",
        f"{HEAD}index 0\nextra AAAA\n\ncheckpoint\n",
        f"{HEAD}index notanumber\n\ncheckpoint\n",
        f"{HEAD}index -5\n\ncheckpoint\n",
        f"{HEAD}index 00\n\ncheckpoint\n",
        f"{HEAD}index {2**63}\n\ncheckpoint\n",
        f"{HEAD}index\n\ncheckpoint\n",
        f"{HEAD}index 0\n!!notbase64!!\n\ncheckpoint\n",
        f"{HEAD}index 0\n{b64(bytes(64))}\n\ncheckpoint\n",
        f"{HEAD}index 0\n{HASH}\r\n\ncheckpoint\n",
        f"{HEAD}index 0\n{HASH} \n\ncheckpoint\n",
        f"{HEAD}index 0\n{HASH[:-2]}B=\n\ncheckpoint\n",
        f"{HEAD}index 0\n" + f"{HASH}\n" * 65 + "\ncheckpoint\n",
        f"{HEAD}indéx 0\n\ncheckpoint\n",
        f"{HEAD}index 0\n\n" + "x" * 2_000_000,
    ],
)
def test_malformed_files_are_refused(text):
    with pytest.raises(InvalidError):
        parse_tlog_proof(text.encode())


def test_a_proof_without_witnesses_verifies():
    proof = parse_tlog_proof(format_tlog_proof(proof_of(extra=b"anything")))
    assert verify_tlog_proof(proof, LEAVES[INDEX], LOG_KEY) == CHECKPOINT


@pytest.mark.parametrize("index", range(len(LEAVES)))
def test_every_leaf_is_provable(index):
    proof = TlogProof(index, tuple(merkle.inclusion_path(LEAVES, index)), cosigned())
    assert verify_tlog_proof(proof, LEAVES[index], LOG_KEY) == CHECKPOINT
    with pytest.raises(CorruptError):
        verify_tlog_proof(proof, LEAVES[index - 1], LOG_KEY)


def test_quorums():
    keys = [ED_KEY, ML_KEY]
    assert verify_tlog_proof(proof_of("ed", "ml"), LEAVES[INDEX], LOG_KEY, keys, 2) == CHECKPOINT
    assert verify_tlog_proof(proof_of("ml"), LEAVES[INDEX], LOG_KEY, keys, 1) == CHECKPOINT
    for kinds in ((), ("ed",), ("ed", "ed"), ("ml",)):
        with pytest.raises(CorruptError, match="2 are needed") as caught:
            verify_tlog_proof(proof_of(*kinds), LEAVES[INDEX], LOG_KEY, keys, 2)
        assert caught.value.code == "quorum-missed"
    for quorum in (-1, 3):
        with pytest.raises(InvalidError, match="cannot be asked"):
            verify_tlog_proof(proof_of("ed", "ml"), LEAVES[INDEX], LOG_KEY, keys, quorum)


def test_a_wrong_cosignature_by_a_known_witness_fails_without_a_quorum_too():
    parsed = note.parse_note(cosigned("ed"))
    wrong = note.NoteSignature(ED_KEY.name, ED_KEY.key_id, b"\0" * 72)
    data = note.format_note(note.Note(parsed.text, (*parsed.signatures, wrong)))
    proof = TlogProof(INDEX, proof_of().path, data)
    assert verify_tlog_proof(proof, LEAVES[INDEX], LOG_KEY) == CHECKPOINT
    with pytest.raises(CorruptError):
        verify_tlog_proof(proof, LEAVES[INDEX], LOG_KEY, [ED_KEY])


def test_a_proof_of_another_tree_fails():
    for index, path in (
        (INDEX, merkle.inclusion_path(LEAVES[:9], INDEX)),
        (INDEX + 1, merkle.inclusion_path(LEAVES, INDEX)),
        (len(LEAVES), merkle.inclusion_path(LEAVES, INDEX)),
        (INDEX, []),
    ):
        with pytest.raises(CorruptError):
            verify_tlog_proof(TlogProof(index, tuple(path), cosigned()), LEAVES[INDEX], LOG_KEY)


def test_every_flipped_bit_is_noticed():
    data = format_tlog_proof(proof_of("ed"))
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(TallystickError):
                verify_tlog_proof(parse_tlog_proof(bytes(changed)), LEAVES[INDEX], LOG_KEY, [ED_KEY], 1)


def test_what_is_no_proof_cannot_be_made():
    for arguments in (
        (-1, (), b"c"),
        (2**63, (), b"c"),
        (0, (bytes(31),), b"c"),
        (0, (bytes(32),) * 65, b"c"),
        (0, (), b""),
        (0, (), b"c", b""),
    ):
        with pytest.raises(InvalidError):
            TlogProof(*arguments)
