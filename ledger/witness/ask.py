"""Asks one witness to cosign (C2SP tlog-witness), over HTTP, with time-outs. What it answers is verified.

The address is the operator's, from a policy; it is judged by ``ledger.outgoing``, so it reaches no internal
host that the operator did not allow, and redirections are not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ledger import http_call, outgoing
from ledger.core.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint_text
from ledger.core.cosignature import verify_cosignature
from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.core.note import MAX_NOTE_BYTES, NoteSignature, VerifierKey, parse_note
from ledger.core.policy import Witness
from ledger.witness.wire import AddCheckpoint, format_request, origin_hash, parse_conflict, parse_signatures

__all__ = ["WitnessClient"]

CONNECT_S = 5.0
_PROBLEM_BYTES = 4_096
_TRIES = 4
"""How often a conflict is followed up: each time, somebody else was faster."""


class WitnessClient:
    """One witness, as a log or monitor sees it. To be used by one thread at a time.

    Args:
        witness: name, key and address (submission prefix).
        timeout_s: how long a request may take, all in all.
        reach: which internal hosts it may be on.

    Raises:
        InvalidError: it has no usable address.
        RefusedError: its address is internal.
    """

    def __init__(
        self, witness: Witness, *, timeout_s: float, reach: outgoing.Reach = outgoing.PUBLIC_ONLY
    ) -> None:
        self.name = witness.name
        self.key = witness.key
        if witness.url is None:
            raise InvalidError(
                "has no address in the policy",
                where=f"witness {witness.name}",
                remedy="add its submission prefix to its line",
                code="bad-policy",
            )
        self.url = witness.url.rstrip("/")
        self.size = 0
        """The tree of the log that the witness is taken to have cosigned last."""
        self.largest = 0
        """The largest one that it said to have cosigned."""
        self._timeout_s = timeout_s
        self._pool = outgoing.open_pool(self.url, reach)

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()

    def cosign(self, note: bytes, prove: Callable[[int], Sequence[bytes]]) -> tuple[NoteSignature, int]:
        """Get a checkpoint cosigned.

        Args:
            note: the log's checkpoint, signed by the log.
            prove: gives the consistency proof from a smaller size to the checkpoint's.

        Returns:
            The witness's cosignature by the key of the policy, verified, and its timestamp (POSIX seconds).

        Raises:
            CorruptError: it cosigned a larger tree (``log-rolled-back``) or another one (``forked``).
            RefusedError: it does not know the log, or not its key.
            UnavailableError: it does not answer, or not as the specification says.
        """
        checkpoint = parse_checkpoint_text(parse_note(note).text)
        for _ in range(_TRIES):
            self.largest = max(self.largest, self.size)
            if self.size > checkpoint.size:
                size, self.size = self.size, 0  # ask afresh next time
                raise CorruptError(
                    f"the witness {self.name} has cosigned a tree of {size} leaves, but this log ends at "
                    f"{checkpoint.size}",
                    where=self.url,
                    remedy="this is an older copy of the log: do not sign with it; restore a complete one",
                    code="log-rolled-back",
                )
            proof = tuple(prove(self.size)) if 0 < self.size < checkpoint.size else ()
            answer = self._post(format_request(AddCheckpoint(self.size, proof, note)))
            if answer.status == 200:
                found = self._verified(answer.body, note)
                self.size = checkpoint.size
                return found
            if answer.status != 409:
                raise self._refused(answer, checkpoint)
            try:
                self.size = parse_conflict(answer.body)
            except InvalidError as error:
                raise self._unusable(error.what) from None
        raise self._unusable("it names another size each time")

    def latest(self, origin: str, log_keys: Collection[VerifierKey]) -> tuple[Checkpoint, bytes] | None:
        """The latest checkpoint that the witness says to have cosigned, verified; None if there is none.

        The monitoring prefix is taken to be the submission prefix.

        Raises:
            UnavailableError: it does not answer, or with something else.
        """
        answer = self._call("GET", f"{self.url}/{origin_hash(origin)}/checkpoint", None)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self._unusable(f"status {answer.status}")
        try:
            checkpoint = open_checkpoint(answer.body, log_keys)
            self._find(parse_note(answer.body).signatures, answer.body)
        except TallystickError as error:
            raise self._unusable(error.what) from None
        return checkpoint, answer.body

    def _verified(self, body: bytes, note: bytes) -> tuple[NoteSignature, int]:
        try:
            return self._find(parse_signatures(body), note)
        except TallystickError as error:
            raise self._unusable(error.what) from None

    def _find(self, signatures: Sequence[NoteSignature], note: bytes) -> tuple[NoteSignature, int]:
        text = parse_note(note).text
        for each in signatures:
            if (each.name, each.key_id) == (self.key.name, self.key.key_id):
                seconds = verify_cosignature(text, each, self.key)
                if seconds:
                    return each, seconds
        raise CorruptError("there is no cosignature by the key of the policy", where=self.name)

    def _post(self, body: bytes) -> http_call.Answer:
        return self._call("POST", f"{self.url}/add-checkpoint", body)

    def _call(self, method: str, url: str, body: bytes | None) -> http_call.Answer:
        limits = http_call.Limits(
            min(CONNECT_S, self._timeout_s), self._timeout_s, self._timeout_s, MAX_NOTE_BYTES, _PROBLEM_BYTES
        )
        try:
            return http_call.call(
                self._pool, method, url, limits, headers={"Content-Type": "text/plain"}, body=body
            )
        except ConnectionError as error:
            raise self._unusable(str(error)) from None

    def _refused(self, answer: http_call.Answer, checkpoint: Checkpoint) -> TallystickError:
        said = answer.body[:200].decode(errors="replace").strip()
        if answer.status == 422:
            return CorruptError(
                f"the witness {self.name} finds the tree of {checkpoint.size} leaves inconsistent with what "
                f"it cosigned before: {said}",
                where=self.url,
                remedy="compare this log with the witness's checkpoint; one of them is a fork",
                code="forked",
            )
        reasons = {
            400: "takes the request for malformed",
            403: "does not know the log's key",
            404: "does not know the log",
        }
        if answer.status in reasons:
            return RefusedError(
                f"the witness {self.name} {reasons[answer.status]}: {said}",
                where=self.url,
                remedy="ask its operator to add the log with its present verifier key",
                code="witness-refused",
            )
        return self._unusable(f"status {answer.status}: {said}")

    def _unusable(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"the witness {self.name} gave no usable answer: {why}",
            where=self.url,
            remedy="it is asked again later",
            code="witness-unavailable",
        )
