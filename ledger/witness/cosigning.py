"""Decides what a witness answers to ``add-checkpoint``, in the order of C2SP tlog-witness, and cosigns.

Nothing is cosigned that is not consistent with all that was cosigned of this log before; what is cosigned is
durably remembered before it is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ledger.core.checkpoint import Checkpoint, parse_checkpoint_text, verify_log_signatures
from ledger.core.cosignature import cosign
from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.keys import EDDSA, PublicKey, Signer
from ledger.core.merkle import verify_consistency
from ledger.core.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_ML_DSA_44,
    Note,
    VerifierKey,
    format_note,
    parse_note,
)
from ledger.witness import wire
from ledger.witness.state import Cosigned, WitnessState
from ledger.witness.wire import AddCheckpoint, format_signatures, parse_request

__all__ = ["Cosigner", "Reply", "witness_verifier_key"]

TEXT = "text/plain; charset=utf-8"
SIZE = "text/x.tlog.size"


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. ``outcome`` is one word for metrics."""

    status: int
    outcome: str
    body: bytes
    media_type: str = TEXT


def witness_verifier_key(name: str, key: PublicKey) -> VerifierKey:
    """The verifier key of a witness's cosignatures."""
    sig_type = COSIGNATURE_ED25519 if key.alg == EDDSA else COSIGNATURE_ML_DSA_44
    return VerifierKey.of(name, sig_type, key.raw_bytes())


class Cosigner:
    """One witness. Safe to share between threads.

    Args:
        name: its name, in every cosignature.
        signers: its keys, each Ed25519 or ML-DSA-44; each makes a cosignature.
        state: what it remembers.
        clock_s: POSIX time.
    """

    def __init__(
        self,
        name: str,
        signers: Sequence[Signer],
        state: WitnessState,
        *,
        clock_s: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self.name = name
        self.state = state
        self.keys = tuple(witness_verifier_key(name, signer.public) for signer in signers)
        self._signers = tuple(signers)
        self._clock_s = clock_s

    def add_checkpoint(self, body: bytes) -> Reply:
        """Answer one request.

        Raises:
            UnavailableError: the state cannot be written, or a key does not sign: nothing was answered.
        """
        try:
            request = parse_request(body)
            note = parse_note(request.note)
        except InvalidError as error:
            return _refusal(400, "malformed", error.what)
        known = self.state.log(note.text.partition("\n")[0])
        if known is None:
            return _refusal(404, "unknown-log", "this witness does not know the log")
        try:
            verify_log_signatures(note, known.keys)
        except TallystickError as error:
            return _refusal(403, "untrusted", error.what)
        try:
            checkpoint = parse_checkpoint_text(note.text)
        except InvalidError as error:
            # An empty tree with the root of another one is told apart from what is no checkpoint at all.
            empty = note.text.split("\n")[1:2] == ["0"] and request.old_size == 0
            return _refusal(422 if empty else 400, "malformed", error.what)
        if request.old_size > checkpoint.size:
            return _refusal(400, "malformed", "the old size is larger than the checkpoint's")
        with self.state.locked(checkpoint.origin) as (last, connection):
            refused = _refused(last, request, checkpoint)
            if refused is None:
                cosigned, answer = self._cosign(note, known.keys)
                new = Cosigned(checkpoint.size, checkpoint.root, cosigned, self._clock_s())
                self.state.remember(connection, checkpoint.origin, new)
        if refused is None:
            return Reply(200, "cosigned", answer)
        if refused.outcome in (
            "forked",
            "inconsistent",
        ):  # the log's key signed it: perhaps a proof of a fork
            self.state.keep_evidence(checkpoint.origin, refused.body.decode().strip(), body)
        return refused

    def latest(self, origin_hash: str) -> bytes | None:
        """The latest cosigned checkpoint of the log whose origin has this hash; None if there is none."""
        for each in self.state.logs():
            if wire.origin_hash(each.origin) == origin_hash:
                return each.last.note
        return None

    def _cosign(self, note: Note, log_keys: Sequence[VerifierKey]) -> tuple[bytes, bytes]:
        """The checkpoint with the log's signatures and ours, and ours alone."""
        now_s = self._clock_s()
        ours = tuple(cosign(note.text, self.name, signer, now_s) for signer in self._signers)
        trusted = {(key.name, key.key_id) for key in log_keys}
        theirs = tuple(each for each in note.signatures if (each.name, each.key_id) in trusted)
        return format_note(Note(note.text, theirs + ours)), format_signatures(ours)


def _refused(last: Cosigned, request: AddCheckpoint, checkpoint: Checkpoint) -> Reply | None:
    """Why a signed checkpoint is not cosigned; None if it is consistent with the last one."""
    if request.old_size != last.size:
        return Reply(409, "conflict", f"{last.size}\n".encode(), SIZE)
    if request.old_size == 0:
        if request.proof:
            return _refusal(422, "inconsistent", "a proof from the empty tree must be empty")
        return None  # a checkpoint of size 0 with another root than the empty tree's is no checkpoint
    if request.old_size == checkpoint.size and last.root != checkpoint.root:
        return _refusal(422, "forked", "another root of this size was cosigned before")
    try:
        verify_consistency(last.size, checkpoint.size, last.root, checkpoint.root, request.proof)
    except (CorruptError, InvalidError) as error:
        return _refusal(422, "inconsistent", error.what)
    return None


def _refusal(status: int, outcome: str, why: str) -> Reply:
    return Reply(status, outcome, f"{why}\n".encode())
