"""Fuzz targets of the log's formats: each feeds one parser and allows it no error but TallystickError.

Where bytes are accepted, the parser must be a strict inverse: writing what was read gives the same bytes. A
target returns what came of its input, so that the runner keeps input with a new outcome as a seed.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.core import checkpoint, cosignature, merkle, note, tiles, tlog_proof
from ledger.core.errors import TallystickError
from tests.fuzz.targets_core import outcome_of

__all__ = ["SEEDS", "TARGETS"]

_LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(32))
_LOG_KEY = note.VerifierKey.of("example.com/log", note.ED25519, _LOG.public_key().public_bytes_raw())
_WITNESS_KEY = note.VerifierKey.of(
    "w.example", note.COSIGNATURE_ED25519, _WITNESS.public_key().public_bytes_raw()
)
_ML_DSA_KEY = note.VerifierKey.of("w.example/ml", note.COSIGNATURE_ML_DSA_44, bytes(1312))
_LEAVES = [merkle.leaf_hash(b"%d" % i) for i in range(11)]
_CHECKPOINT = checkpoint.Checkpoint(_LOG_KEY.name, len(_LEAVES), merkle.root(_LEAVES))
_TEXT = checkpoint.format_checkpoint_text(_CHECKPOINT)
_SIGNED = checkpoint.sign_checkpoint(_CHECKPOINT, _LOG)
_COSIGNED = note.format_note(
    note.Note(
        _TEXT,
        (
            *note.parse_note(_SIGNED).signatures,
            cosignature.cosign_ed25519(_TEXT, _WITNESS_KEY.name, _WITNESS, 1_700_000_000),
        ),
    )
)
_PROOF = tlog_proof.TlogProof(5, tuple(merkle.inclusion_path(_LEAVES, 5)), _COSIGNED)
_PROOF_WITH_EXTRA = tlog_proof.TlogProof(5, _PROOF.path, _COSIGNED, b"extra data")


def fuzz_note(data: bytes) -> str:
    """Parse a note, then verify it; only the log's own text can verify."""
    try:
        parsed = note.parse_note(data)
    except TallystickError as error:
        return outcome_of(error)
    assert note.format_note(parsed) == data
    try:
        note.verify_note(parsed, [_LOG_KEY])
    except TallystickError as error:
        return f"accepted, {len(parsed.signatures)} signatures, {outcome_of(error)}"
    assert parsed.text == _TEXT
    return f"verified, {len(parsed.signatures)} signatures"


def fuzz_checkpoint(data: bytes) -> str:
    """Parse a checkpoint's text; open a signed one, which can only be the one that was signed."""
    try:
        text = data.decode("utf-8", "surrogateescape")
        parsed = checkpoint.parse_checkpoint_text(text)
        assert checkpoint.format_checkpoint_text(parsed) == text
        outcome = f"accepted, {len(parsed.extensions).bit_length()} bits of extensions"
    except TallystickError as error:
        outcome = outcome_of(error)
    try:
        opened = checkpoint.open_checkpoint(data, _LOG_KEY)
    except TallystickError as error:
        return f"{outcome}, {outcome_of(error)}"
    assert opened == _CHECKPOINT
    return "verified"


def fuzz_cosignature(data: bytes) -> str:
    """Verify the cosignatures of a note; they can only be of the one text that was cosigned."""
    try:
        parsed = note.parse_note(data)
        found = cosignature.verified_cosignatures(parsed, [_WITNESS_KEY, _ML_DSA_KEY])
    except TallystickError as error:
        return outcome_of(error)
    assert not found or (parsed.text, found) == (_TEXT, [(_WITNESS_KEY.name, 1_700_000_000)])
    return "verified" if found else "accepted without a known cosignature"


def fuzz_bundle(data: bytes) -> str:
    """Decode an entry bundle; the first byte is its number of entries less one."""
    if not data:
        return "empty"
    try:
        entries = tiles.decode_bundle(data[1:], data[0] + 1)
    except TallystickError as error:
        return outcome_of(error)
    assert tiles.encode_bundle(entries) == data[1:]
    return f"accepted, some {len(entries).bit_length()} bits of entries"


def fuzz_tlog_proof(data: bytes) -> str:
    """Parse a proof file, then verify it; it can only show the leaf that it was made for."""
    try:
        proof = tlog_proof.parse_tlog_proof(data)
    except TallystickError as error:
        return outcome_of(error)
    assert tlog_proof.format_tlog_proof(proof) == data
    try:
        shown = tlog_proof.verify_tlog_proof(proof, _LEAVES[5], _LOG_KEY, [_WITNESS_KEY], 1)
    except TallystickError as error:
        return f"accepted, {outcome_of(error)}"
    assert (shown, proof.index, proof.path) == (_CHECKPOINT, 5, _PROOF.path)
    return "verified"


def fuzz_vkey(data: bytes) -> str:
    """Parse a verifier key."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        key = note.parse_vkey(text)
    except TallystickError as error:
        return outcome_of(error)
    assert note.format_vkey(key) == text
    return f"accepted, type {key.sig_type}"


def fuzz_tile_path(data: bytes) -> str:
    """Parse the path of a tile or bundle."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        ref = tiles.parse_tile_path(text)
    except TallystickError as error:
        return outcome_of(error)
    assert ref.path == text
    return (
        f"accepted, {'a bundle' if ref.level is None else 'a tile'}, {ref.index.bit_length()} bits of index"
    )


TARGETS: dict[str, Callable[[bytes], str]] = {
    "bundle": fuzz_bundle,
    "checkpoint": fuzz_checkpoint,
    "cosignature": fuzz_cosignature,
    "note": fuzz_note,
    "tile_path": fuzz_tile_path,
    "tlog_proof": fuzz_tlog_proof,
    "vkey": fuzz_vkey,
}

SEEDS: dict[str, list[bytes]] = {
    "bundle": [
        bytes([len(entries) - 1]) + tiles.encode_bundle(entries)
        for entries in ([b""], [b"a", b"bc"], [b"x" * 300] * 3, [b"%d" % i for i in range(256)])
    ],
    "checkpoint": [_TEXT.encode(), _SIGNED, _COSIGNED, _TEXT.encode() + b"extension\n"],
    "cosignature": [_COSIGNED],
    "note": [_SIGNED, _COSIGNED, "Ünïcode\n\ntext\n\n\u2014 näme AAAAAAA=\n".encode()],
    "tile_path": [b"tile/0/x001/x234/067.p/5", b"tile/entries/000", b"tile/63/999.p/255"],
    "tlog_proof": [tlog_proof.format_tlog_proof(each) for each in (_PROOF, _PROOF_WITH_EXTRA)],
    "vkey": [note.format_vkey(each).encode() for each in (_LOG_KEY, _WITNESS_KEY, _ML_DSA_KEY)],
}
