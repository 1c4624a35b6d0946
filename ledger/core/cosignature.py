"""Owns cosignatures, by which witnesses vouch for checkpoints: Ed25519 and ML-DSA-44 (C2SP tlog-cosignature).

A cosignature says that the witness saw the tree grow by appending only. Its Ed25519 form signs the whole text
of the checkpoint; its ML-DSA-44 form signs witness name, origin, size and root, and can sign any subtree.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from ledger.core.checkpoint import Checkpoint, parse_checkpoint_text
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.keys import EDDSA, ML_DSA_44, Signer
from ledger.core.merkle import EMPTY_ROOT, HASH_SIZE, MAX_SIZE
from ledger.core.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_ML_DSA_44,
    Note,
    NoteSignature,
    VerifierKey,
    key_id,
    keys_by_id,
)

__all__ = [
    "cosign",
    "cosign_ed25519",
    "cosign_ml_dsa_44",
    "subtree_message",
    "verified_cosignatures",
    "verify_cosignature",
]

MAX_TIMESTAMP = 2**63 - 1

_TIMESTAMP_SIZE = 8
_SIGNATURE_SIZES = {COSIGNATURE_ED25519: 64, COSIGNATURE_ML_DSA_44: 2420}
_SUBTREE_LABEL = b"subtree/v1\n\x00"
_MAX_NAME_BYTES = 255


def cosign_ed25519(
    checkpoint_text: str, name: str, private_key: Ed25519PrivateKey, timestamp_s: int
) -> NoteSignature:
    """Return a witness's Ed25519 cosignature of a checkpoint's note text.

    Args:
        checkpoint_text: the note text, extension lines included.
        name: the witness's key name. The signature does not commit to it: one key, one witness.
        private_key: the witness's key, used for nothing else.
        timestamp_s: POSIX time at which it is made; not zero.
    """
    parse_checkpoint_text(checkpoint_text)
    _check_timestamp(timestamp_s, least=1)
    signature = private_key.sign(_ed25519_message(checkpoint_text, timestamp_s))
    identity = key_id(name, COSIGNATURE_ED25519, private_key.public_key().public_bytes_raw())
    return NoteSignature(name, identity, timestamp_s.to_bytes(_TIMESTAMP_SIZE, "big") + signature)


def cosign_ml_dsa_44(
    checkpoint: Checkpoint, name: str, private_key: MLDSA44PrivateKey, timestamp_s: int
) -> NoteSignature:
    """Return an ML-DSA-44 cosignature of a checkpoint; it covers no extension lines.

    Args:
        checkpoint: what to cosign.
        name: the witness's key name, which the signature commits to.
        private_key: the witness's key.
        timestamp_s: POSIX time at which it is made; zero makes no statement that this is the newest tree.
    """
    _check_timestamp(timestamp_s, least=0)
    message = _checkpoint_message(checkpoint, name, timestamp_s)
    identity = key_id(name, COSIGNATURE_ML_DSA_44, private_key.public_key().public_bytes_raw())
    signature = private_key.sign(message)
    return NoteSignature(name, identity, timestamp_s.to_bytes(_TIMESTAMP_SIZE, "big") + signature)


def cosign(checkpoint_text: str, name: str, signer: Signer, timestamp_s: int) -> NoteSignature:
    """Return the cosignature of a checkpoint's note text, of the kind of the signer's key.

    Raises:
        InvalidError: the text is no checkpoint, or the key is neither Ed25519 nor ML-DSA-44.
    """
    checkpoint = parse_checkpoint_text(checkpoint_text)
    _check_timestamp(timestamp_s, least=1)
    if signer.public.alg == EDDSA:
        sig_type, message = COSIGNATURE_ED25519, _ed25519_message(checkpoint_text, timestamp_s)
    elif signer.public.alg == ML_DSA_44:
        sig_type, message = COSIGNATURE_ML_DSA_44, _checkpoint_message(checkpoint, name, timestamp_s)
    else:
        raise InvalidError(
            "checkpoints are cosigned with Ed25519 or ML-DSA-44 keys", where=name, code="bad-key"
        )
    identity = key_id(name, sig_type, signer.public.raw_bytes())
    return NoteSignature(name, identity, timestamp_s.to_bytes(_TIMESTAMP_SIZE, "big") + signer.sign(message))


def verify_cosignature(checkpoint_text: str, signature: NoteSignature, key: VerifierKey) -> int:
    """Verify one cosignature and return its timestamp, POSIX seconds (ML-DSA-44: zero if none is stated).

    Raises:
        InvalidError: the text is no checkpoint, or the key is no cosignature key.
        CorruptError: the signature is another key's, or does not verify.
    """
    size = _SIGNATURE_SIZES.get(key.sig_type)
    if size is None:
        raise InvalidError(
            f"A key of type 0x{key.sig_type:02x} makes no cosignatures",
            where=f"verifier key {key.name}",
            remedy="pass the witness's cosignature key (type 04 or 06)",
        )
    checkpoint = parse_checkpoint_text(checkpoint_text)
    if (signature.name, signature.key_id) != (key.name, key.key_id):
        raise _wrong(key, "it is another key's")
    if len(signature.signature) != _TIMESTAMP_SIZE + size:
        raise _wrong(key, f"it has {len(signature.signature)} bytes instead of {_TIMESTAMP_SIZE + size}")
    timestamp_s = int.from_bytes(signature.signature[:_TIMESTAMP_SIZE], "big")
    if timestamp_s > MAX_TIMESTAMP:
        raise _wrong(key, "its timestamp is out of range")
    raw = signature.signature[_TIMESTAMP_SIZE:]
    try:
        if key.sig_type == COSIGNATURE_ED25519:
            public_key = Ed25519PublicKey.from_public_bytes(key.public_key)
            public_key.verify(raw, _ed25519_message(checkpoint_text, timestamp_s))
        else:
            message = _checkpoint_message(checkpoint, key.name, timestamp_s)
            MLDSA44PublicKey.from_public_bytes(key.public_key).verify(raw, message)
    except (InvalidSignature, ValueError):
        raise _wrong(key, "the checkpoint or the signature was changed") from None
    return timestamp_s


def verified_cosignatures(note: Note, witness_keys: Iterable[VerifierKey]) -> list[tuple[str, int]]:
    """Return (witness name, timestamp) of each known witness that cosigned, in the order of the lines.

    A witness counts once, however many of its keys and lines there are; its latest timestamp is given.
    Signatures by unknown keys are ignored.

    Raises:
        CorruptError: a cosignature by a known key does not verify.
        InvalidError: a key is no cosignature key, or one public key is listed under two names.
    """
    known = keys_by_id(witness_keys)
    names: dict[bytes, str] = {}
    for key in known.values():
        if key.sig_type not in _SIGNATURE_SIZES or names.setdefault(key.public_key, key.name) != key.name:
            raise InvalidError(
                "The key is no cosignature key, or is listed under two names",
                where=f"verifier key {key.name}",
                remedy="list each witness's cosignature keys once",
            )
    timestamps: dict[str, int] = {}
    for each in note.signatures:
        key_of = known.get((each.name, each.key_id))
        if key_of is not None:
            timestamp_s = verify_cosignature(note.text, each, key_of)
            timestamps[each.name] = max(timestamp_s, timestamps.get(each.name, 0))
    return list(timestamps.items())


def subtree_message(
    cosigner_name: str, log_origin: str, start: int, end: int, root: bytes, *, timestamp_s: int = 0
) -> bytes:
    """Return what an ML-DSA-44 cosignature of the subtree [start, end) signs: a ``cosigned_message``."""
    _check_timestamp(timestamp_s, least=0)
    stated = timestamp_s == 0 or start == 0
    empty_is_empty = start < end or root == EMPTY_ROOT
    if not (0 <= start <= end <= MAX_SIZE and len(root) == HASH_SIZE and stated and empty_is_empty):
        raise InvalidError(
            f"[{start}, {end}) with this root and timestamp cannot be cosigned",
            where="cosigned subtree",
            remedy="pass a subtree within 2^63 - 1, its root, and timestamp 0 if it does not start at 0",
        )
    return b"".join(
        (
            _SUBTREE_LABEL,
            _short_string(cosigner_name, "cosigner name"),
            timestamp_s.to_bytes(8, "big"),
            _short_string(log_origin, "log origin"),
            start.to_bytes(8, "big"),
            end.to_bytes(8, "big"),
            root,
        )
    )


def _ed25519_message(checkpoint_text: str, timestamp_s: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp_s}\n{checkpoint_text}".encode()


def _checkpoint_message(checkpoint: Checkpoint, cosigner_name: str, timestamp_s: int) -> bytes:
    return subtree_message(
        cosigner_name, checkpoint.origin, 0, checkpoint.size, checkpoint.root, timestamp_s=timestamp_s
    )


def _short_string(text: str, where: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= _MAX_NAME_BYTES:
        raise InvalidError(
            f"An ML-DSA-44 cosignature names things in 1 to {_MAX_NAME_BYTES} bytes, not {len(data)}",
            where=where,
            remedy="use a shorter name",
        )
    return len(data).to_bytes(1, "big") + data


def _check_timestamp(timestamp_s: int, *, least: int) -> None:
    if not least <= timestamp_s <= MAX_TIMESTAMP:
        raise InvalidError(
            f"Timestamp {timestamp_s} is out of range",
            where="cosignature",
            remedy=f"pass POSIX seconds from {least} to 2^63 - 1",
        )


def _wrong(key: VerifierKey, why: str) -> CorruptError:
    return CorruptError(
        f"The cosignature does not verify: {why}",
        where=f"cosignature by {key.name}",
        remedy="do not count this witness; fetch the checkpoint again",
    )
