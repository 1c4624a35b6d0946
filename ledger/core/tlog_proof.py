"""Owns proof files, which show offline that a leaf is in a witnessed log (C2SP tlog-proof)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ledger.core._text import decode_base64, decode_decimal, encode_base64
from ledger.core.checkpoint import Checkpoint, LogKeys, open_checkpoint
from ledger.core.cosignature import verified_cosignatures
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.merkle import HASH_SIZE, MAX_PATH, MAX_SIZE, verify_inclusion
from ledger.core.note import MAX_NOTE_BYTES, VerifierKey, parse_note

__all__ = ["TlogProof", "format_tlog_proof", "parse_tlog_proof", "verify_tlog_proof"]

_HEADER = "c2sp.org/tlog-proof@v1"
_EXTRA = "extra "
_INDEX = "index "
# The note's limit once more, for the proof lines and the extra data before it.
_MAX_BYTES = 2 * MAX_NOTE_BYTES


@dataclass(frozen=True, slots=True)
class TlogProof:
    """An inclusion proof with the checkpoint it leads to.

    Args:
        index: the leaf's index in the log.
        path: its inclusion proof, the leaf's sibling first.
        checkpoint_note: the signed checkpoint, verbatim.
        extra: application data that nothing authenticates; absent rather than empty.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint_note: bytes
    extra: bytes | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index <= MAX_SIZE:
            raise _malformed(f"the index {self.index} is not from 0 to 2^63 - 1")
        if len(self.path) > MAX_PATH:
            raise _malformed(f"it has {len(self.path)} hashes, more than {MAX_PATH}")
        if any(len(each) != HASH_SIZE for each in self.path):
            raise _malformed(f"a hash does not have {HASH_SIZE} bytes")
        if not self.checkpoint_note:
            raise _malformed("it has no checkpoint")
        if self.extra == b"":
            raise _malformed("its extra data is present, yet empty")


def parse_tlog_proof(data: bytes) -> TlogProof:
    """Return the proof that a file holds; the exact inverse of :func:`format_tlog_proof`.

    The checkpoint is only cut out: :func:`verify_tlog_proof` reads it.
    """
    if len(data) > _MAX_BYTES:
        raise _malformed(f"it has {len(data)} bytes, more than {_MAX_BYTES}")
    # No line before the first empty one is empty, so it ends the proof lines.
    head, separator, checkpoint_note = data.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise _malformed("a line before the checkpoint is not ASCII") from None
    if not separator or lines.pop(0) != _HEADER:
        raise _malformed(f"it does not start with {_HEADER!r} or has no empty line before the checkpoint")
    extra = None
    if lines and lines[0].startswith(_EXTRA):
        extra = decode_base64(lines.pop(0).removeprefix(_EXTRA), "extra data of the proof")
    if not lines or not lines[0].startswith(_INDEX):
        raise _malformed("it has no index line")
    index = decode_decimal(lines.pop(0).removeprefix(_INDEX), "index of the proof")
    if len(lines) > MAX_PATH:
        raise _malformed(f"it has {len(lines)} hashes, more than {MAX_PATH}")
    path = tuple(decode_base64(line, "hash of the proof") for line in lines)
    return TlogProof(index, path, checkpoint_note, extra)


def format_tlog_proof(proof: TlogProof) -> bytes:
    """Return the bytes of a proof file (``.tlog-proof``)."""
    lines = [_HEADER]
    if proof.extra is not None:
        lines.append(_EXTRA + encode_base64(proof.extra))
    lines.append(f"{_INDEX}{proof.index}")
    lines.extend(encode_base64(each) for each in proof.path)
    return "\n".join(lines).encode() + b"\n\n" + proof.checkpoint_note


def verify_tlog_proof(
    proof: TlogProof,
    leaf_hash: bytes,
    log_key: LogKeys,
    witness_keys: Iterable[VerifierKey] = (),
    quorum: int = 0,
) -> Checkpoint:
    """Return the checkpoint once it is shown that the leaf is in it.

    Args:
        proof: what to verify.
        leaf_hash: the hash of the leaf, computed by the caller from what it holds, not from the proof.
        log_key: the log's verifier key, or all that it has had; their name is the origin.
        witness_keys: the cosignature keys of the witnesses the caller knows.
        quorum: how many of these witnesses must have cosigned, at least.

    Raises:
        InvalidError: the checkpoint is malformed, or no quorum could ever be reached.
        CorruptError: a signature or the inclusion does not verify, or too few witnesses cosigned
            (code ``quorum-missed``).
    """
    witness_keys = tuple(witness_keys)
    witnesses = len({key.name for key in witness_keys})
    if not 0 <= quorum <= witnesses:
        raise InvalidError(
            f"A quorum of {quorum} cannot be asked of {witnesses} witnesses",
            where="quorum",
            remedy="pass the keys of more witnesses, or a smaller quorum",
        )
    checkpoint = open_checkpoint(proof.checkpoint_note, log_key)
    cosigned = len(verified_cosignatures(parse_note(proof.checkpoint_note), witness_keys))
    if cosigned < quorum:
        raise CorruptError(
            f"{cosigned} known witnesses cosigned, {quorum} are needed",
            where="checkpoint of the proof",
            remedy="ask the log for a proof whose checkpoint has more cosignatures",
            code="quorum-missed",
        )
    verify_inclusion(leaf_hash, proof.index, checkpoint.size, proof.path, checkpoint.root)
    return checkpoint


def _malformed(why: str) -> InvalidError:
    return InvalidError(f"The proof file is malformed: {why}", where="proof file", remedy="fetch it again")
