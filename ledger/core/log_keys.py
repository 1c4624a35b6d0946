"""Owns what a log's keys are: their verifier keys, and the signing of tree heads with one or several of them.

A log signs with Ed25519 (a note signature, type 01) or ML-DSA-44 (a cosignature of its own checkpoint, type
06, as C2SP tlog-checkpoint recommends). While one key takes over from another, both sign.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.core.checkpoint import Checkpoint, format_checkpoint_text
from ledger.core.cosignature import cosign
from ledger.core.errors import InvalidError
from ledger.core.keys import (
    EDDSA,
    ML_DSA_44,
    PublicKey,
    Signer,
    public_from_ed25519,
    public_from_ml_dsa_44,
)
from ledger.core.note import (
    COSIGNATURE_ML_DSA_44,
    ED25519,
    Note,
    NoteSignature,
    VerifierKey,
    format_note,
    key_id,
    keys_by_id,
    parse_vkey,
)

__all__ = ["log_verifier_key", "parse_log_keys", "public_of_log_key", "sign_tree_head"]

MAX_LOG_KEYS = 64
_SIG_TYPES = {EDDSA: ED25519, ML_DSA_44: COSIGNATURE_ML_DSA_44}


def log_verifier_key(origin: str, key: PublicKey) -> VerifierKey:
    """The verifier key that stands for the log: all that an auditor needs."""
    sig_type = _SIG_TYPES.get(key.alg)
    if sig_type is None:
        raise InvalidError("the log's key must be Ed25519 or ML-DSA-44", where="log key", code="bad-key")
    return VerifierKey.of(origin, sig_type, key.raw_bytes())


def public_of_log_key(key: VerifierKey) -> PublicKey:
    """The public key of a log's verifier key: what verifies its receipts.

    Raises:
        InvalidError: it is a witness's key, or no usable one.
    """
    if key.sig_type == ED25519:
        return public_from_ed25519(key.public_key, where=key.name)
    if key.sig_type == COSIGNATURE_ML_DSA_44:
        return public_from_ml_dsa_44(key.public_key, where=key.name)
    raise InvalidError(
        "is the key of a witness, not of a log",
        where=key.name,
        remedy="pass the log's own key",
        code="bad-key",
    )


def parse_log_keys(text: str) -> tuple[VerifierKey, ...]:
    """The verifier keys of one log: one a line, or one alone. A log that rotated its key has several.

    Raises:
        InvalidError: one is malformed or a witness's, or they are of several logs.
    """
    words = text.split()
    if not 1 <= len(words) <= MAX_LOG_KEYS:
        raise InvalidError(
            f"{len(words)} verifier keys are given, not 1 to {MAX_LOG_KEYS}",
            where="log key",
            remedy="pass the log's verifier keys, one a line",
            code="bad-key",
        )
    keys = tuple(dict.fromkeys(parse_vkey(word) for word in words))
    for key in keys:
        public_of_log_key(key)
    if len({key.name for key in keys}) > 1:
        raise InvalidError(
            "the verifier keys are of several logs",
            where=", ".join(sorted({key.name for key in keys})),
            remedy="pass the keys of one log",
            code="bad-key",
        )
    keys_by_id(keys)
    return keys


def sign_tree_head(checkpoint: Checkpoint, signers: Sequence[Signer], timestamp_s: int) -> bytes:
    """Return the note of a checkpoint, signed by each of the log's ``signers``.

    Args:
        checkpoint: without extension lines if a key is ML-DSA-44, which does not sign them.
        signers: at least one.
        timestamp_s: POSIX time, which ML-DSA-44 signatures state.
    """
    text = format_checkpoint_text(checkpoint)
    signatures = []
    for signer in signers:
        key = log_verifier_key(checkpoint.origin, signer.public)
        if key.sig_type == ED25519:
            identity = key_id(checkpoint.origin, ED25519, signer.public.raw_bytes())
            signatures.append(NoteSignature(checkpoint.origin, identity, signer.sign(text.encode())))
        else:
            signatures.append(cosign(text, checkpoint.origin, signer, timestamp_s))
    return format_note(Note(text, tuple(signatures)))
