"""Owns checkpoints, a log's signed tree heads: their text, signing and opening (C2SP tlog-checkpoint)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.core._text import decode_base64, decode_decimal, encode_base64, is_clean
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.merkle import EMPTY_ROOT, HASH_SIZE, MAX_SIZE
from ledger.core.note import (
    COSIGNATURE_ML_DSA_44,
    Note,
    VerifierKey,
    format_note,
    keys_by_id,
    parse_note,
    sign_ed25519_note,
    verify_note,
)

__all__ = [
    "Checkpoint",
    "LogKeys",
    "format_checkpoint_text",
    "open_checkpoint",
    "parse_checkpoint_text",
    "sign_checkpoint",
    "verify_log_signatures",
]


LogKeys: TypeAlias = VerifierKey | Collection[VerifierKey]
"""A log's verifier key, or all that it has had: Ed25519 (01) or ML-DSA-44 (06), each named by the origin."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head.

    Args:
        origin: the log's name.
        size: number of leaves.
        root: the tree hash over them.
        extensions: further lines; witnesses make no statement about them.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for line in (self.origin, *self.extensions):
            if not line or "\n" in line or not is_clean(line):
                raise _malformed("a line is empty, has control characters or is not UTF-8")
        if not 0 <= self.size <= MAX_SIZE:
            raise _malformed(f"the size {self.size} is not from 0 to 2^63 - 1")
        if len(self.root) != HASH_SIZE:
            raise _malformed(f"the root has {len(self.root)} bytes instead of {HASH_SIZE}")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise _malformed("the root of an empty tree is not the hash of nothing")


def parse_checkpoint_text(text: str) -> Checkpoint:
    """Return the checkpoint that a note's text spells; the inverse of :func:`format_checkpoint_text`."""
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop():
        raise _malformed("it does not have three lines, each ending in a newline")
    origin, size, root, *extensions = lines
    return Checkpoint(
        origin,
        decode_decimal(size, "checkpoint size"),
        decode_base64(root, "checkpoint root"),
        tuple(extensions),
    )


def format_checkpoint_text(checkpoint: Checkpoint) -> str:
    """Return the note text of a checkpoint."""
    lines = (checkpoint.origin, str(checkpoint.size), encode_base64(checkpoint.root), *checkpoint.extensions)
    return "".join(f"{line}\n" for line in lines)


def sign_checkpoint(checkpoint: Checkpoint, private_key: Ed25519PrivateKey) -> bytes:
    """Return the note of a checkpoint, signed by the log: the key's name is the origin."""
    text = format_checkpoint_text(checkpoint)
    return format_note(Note(text, (sign_ed25519_note(text, checkpoint.origin, private_key),)))


def open_checkpoint(data: bytes, log_key: LogKeys) -> Checkpoint:
    """Return the checkpoint of a note once the log's signature verifies.

    Of several keys, one must have signed, and the signatures of all that did must verify.

    Raises:
        InvalidError: the note or its text is malformed.
        CorruptError: the log's signature is missing or wrong, or the checkpoint is another log's.
    """
    keys = (log_key,) if isinstance(log_key, VerifierKey) else tuple(log_key)
    note = parse_note(data)
    verify_log_signatures(note, keys)
    checkpoint = parse_checkpoint_text(note.text)
    names = {key.name for key in keys}
    if names != {checkpoint.origin}:
        raise CorruptError(
            f"The checkpoint is of {checkpoint.origin!r}, not of {', '.join(sorted(names))!r}",
            where="checkpoint origin",
            remedy="pass the verifier key of the log that the checkpoint names",
        )
    return checkpoint


def verify_log_signatures(note: Note, keys: Collection[VerifierKey]) -> None:
    """Check that one of a log's keys signed a note, and that the signatures of all that did verify.

    Raises:
        CorruptError: one does not, or there is none.
        InvalidError: a key is none of a log, or two share name and ID.
    """
    lattice = keys_by_id(key for key in keys if key.sig_type == COSIGNATURE_ML_DSA_44)
    others = [key for key in keys if key.sig_type != COSIGNATURE_ML_DSA_44]
    if lattice:
        # Cosignatures are about checkpoints, so their module needs this one.
        from ledger.core.cosignature import verify_cosignature

        found = 0
        for each in note.signatures:
            key = lattice.get((each.name, each.key_id))
            if key is not None:
                verify_cosignature(note.text, each, key)
                found += 1
        known = {(key.name, key.key_id) for key in others}
        if found and not any((each.name, each.key_id) in known for each in note.signatures):
            return
    verify_note(note, others)


def _malformed(why: str) -> InvalidError:
    return InvalidError(f"The checkpoint is malformed: {why}", where="checkpoint", remedy="fetch it again")
