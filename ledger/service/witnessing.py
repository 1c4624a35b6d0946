"""Asks the witnesses of a policy to cosign each published checkpoint, in rounds, and keeps what they answer.

One thread makes the rounds: it takes the newest checkpoint and has all witnesses asked for that same one,
since a quorum is about one tree. Registration never waits for a witness. One that fails is asked again with
growing pauses; one that is slow misses rounds and holds up nobody.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from ledger.core.checkpoint import parse_checkpoint_text
from ledger.core.errors import CorruptError, InvalidError, TallystickError, UnavailableError
from ledger.core.note import Note, NoteSignature, VerifierKey, parse_note
from ledger.core.policy import NONE, Policy, cosigned_by, parse_policy
from ledger.outgoing import PUBLIC_ONLY, Reach
from ledger.store import Store, queries
from ledger.store.witnessed import add_cosignatures, newest_witnessed, witnessed_at
from ledger.witness.ask import WitnessClient
from ledger.witness.guard import refuse_if_seen_larger

__all__ = ["WitnessEvent", "Witnessing", "load_policy"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0
_REFRESH_S = 3_600.0
"""After this time, a tree that did not grow is cosigned anew: a cosignature says "as of now"."""
_STOP_S = 2.0


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        InvalidError: it cannot be read, or is no policy.
    """
    try:
        return parse_policy(path.read_bytes())
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="name a policy as C2SP tlog-policy says",
            code="bad-policy",
        ) from None


@dataclass(frozen=True)
class WitnessEvent:
    """What came of asking one witness. ``outcome``: cosigned, overtaken, or the code of the error."""

    witness: str
    outcome: str
    seconds: float


@dataclass
class _Asked:
    """One witness. ``busy`` and the pause are the round thread's; the client is whoever's turn it is."""

    client: WitnessClient
    busy: bool = False
    size: int = -1
    cosigned_at: float = 0.0
    not_before: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    failing: str = ""


@dataclass
class _Answer:
    asked: _Asked
    size: int
    note: bytes
    cosignature: NoteSignature | None = None
    error: TallystickError | None = None
    seconds: float = 0.0


@dataclass
class _Floor:
    """What was served last, or is until the first quorum: the newest checkpoint when that was first asked."""

    size: int = 0
    note: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Witnessing:
    """Owned by one service. ``_asked`` belongs to the round thread once it runs.

    Args:
        store: the log's.
        policy: the witnesses, with addresses, and the quorum.
        log_keys: the log's verifier keys.
        reach: internal hosts that witnesses may be on.
        interval_s: between the beginnings of two rounds.
        timeout_s: how long one witness may take.
        publish_unwitnessed: whether the newest checkpoint is served before a quorum cosigned it.
        observe: called with each answer, on the round thread.

    Raises:
        InvalidError: a witness has no usable address.
        RefusedError: one is on an internal host that ``reach`` does not allow.
    """

    def __init__(
        self,
        store: Store,
        policy: Policy,
        log_keys: Sequence[VerifierKey],
        *,
        reach: Reach = PUBLIC_ONLY,
        interval_s: float = 1.0,
        timeout_s: float = 10.0,
        publish_unwitnessed: bool = False,
        observe: Callable[[WitnessEvent], None] = lambda _: None,
    ) -> None:
        self.policy = policy
        self._store = store
        self._log_keys = tuple(log_keys)
        self._interval_s = interval_s
        self._publish_unwitnessed = publish_unwitnessed or policy.quorum == NONE
        self._observe = observe
        self._asked = [
            _Asked(WitnessClient(each, timeout_s=timeout_s, reach=reach)) for each in policy.witnesses
        ]
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._floor = _Floor()

    def check_before_start(self, *, strict: bool = False) -> None:
        """Refuse to run an older copy of a log that a witness has seen larger.

        Args:
            strict: whether each witness must answer; else those that do not are logged.

        Raises:
            CorruptError: ``log-rolled-back`` or ``forked``.
            TallystickError: with ``strict``, what kept a witness from answering.
        """
        clients = [each.client for each in self._asked]
        unasked = refuse_if_seen_larger(
            self._head_note, self._prove, self._log_keys, witnesses=clients, strict=strict
        )
        for error in unasked:
            _log.warning("starting without having asked a witness: %s", error)

    def start(self) -> None:
        """Begin the rounds."""
        if self._asked:
            self._thread = threading.Thread(target=self._run, name="tallystick-witnessing", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the rounds; answers that are still to come are dropped."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def notify(self) -> None:
        """Say that there is a new checkpoint. From any thread."""
        self._wake.set()

    def published(self, connection: Connection, head: queries.Head) -> str:
        """The note to serve: the newest checkpoint that a quorum cosigned, or the newest one of all.

        Never an older one than before: until the first quorum, what was the newest at the first call stays.
        """
        if self._publish_unwitnessed:
            found = witnessed_at(connection, head.size)
            return head.checkpoint if found is None else found.note
        newest = newest_witnessed(connection)
        with self._floor.lock:
            if newest is not None and newest.size >= self._floor.size:
                self._floor.size, self._floor.note = newest.size, newest.note
                return newest.note
            if not self._floor.note:
                self._floor.size, self._floor.note = head.size, head.checkpoint
            return self._floor.note

    # --- the round thread ---

    def _run(self) -> None:
        with ThreadPoolExecutor(len(self._asked), thread_name_prefix="tallystick-witness") as threads:
            while not self._stopping.is_set():
                begun = time.monotonic()
                try:
                    self._round(threads)
                except Exception:  # the database may be away; the next round tries again
                    _log.exception("a round of witnessing failed")
                    self._stopping.wait(_FIRST_PAUSE_S)
                left = self._interval_s - (time.monotonic() - begun)
                if left > 0 and self._stopping.wait(left):
                    break
                self._wake.wait(self._idle_s())
                self._wake.clear()
            threads.shutdown(wait=False, cancel_futures=True)
            for each in self._asked:
                with contextlib.suppress(Exception):
                    each.client.close()

    def _round(self, threads: ThreadPoolExecutor) -> None:
        note = self._head_note()
        size = parse_checkpoint_text(parse_note(note).text).size
        now = time.monotonic()
        for each in self._asked:
            stale = now - each.cosigned_at > _REFRESH_S
            if not each.busy and now >= each.not_before and (each.size != size or stale):
                each.busy = True
                threads.submit(self._ask, each, size, note)
        self._take_answers()

    def _take_answers(self) -> None:
        """Write what comes until all who were asked have answered, or the next round is due."""
        ends = time.monotonic() + self._interval_s
        while True:
            waiting = any(each.busy for each in self._asked)
            left = ends - time.monotonic()
            answers: list[_Answer] = []
            with contextlib.suppress(queue.Empty):
                if waiting and left > 0 and not self._stopping.is_set():
                    answers.append(self._answers.get(timeout=min(left, 0.25)))
                while True:
                    answers.append(self._answers.get_nowait())
            for answer in answers:
                self._settle(answer)
            self._write([each for each in answers if each.cosignature is not None])
            if not waiting or left <= 0 or self._stopping.is_set():
                return

    def _settle(self, answer: _Answer) -> None:
        asked, error = answer.asked, answer.error
        asked.busy = False
        if error is None:
            if asked.failing:
                _log.info("the witness %s cosigns again", asked.client.name)
            if answer.cosignature is not None:
                asked.size, asked.cosigned_at = answer.size, time.monotonic()
            asked.failing, asked.pause_s, asked.not_before = "", _FIRST_PAUSE_S, 0.0
        else:
            if isinstance(error, CorruptError):
                _log.error("ALARM: %s", error)  # each time: somebody has to look
            elif asked.failing != error.code:
                _log.warning("%s", error)
            asked.failing = error.code
            asked.not_before = time.monotonic() + asked.pause_s * random.uniform(0.5, 1.0)  # noqa: S311
            asked.pause_s = min(asked.pause_s * 2, _LONGEST_PAUSE_S)
        with contextlib.suppress(Exception):
            outcome = error.code if error else "cosigned" if answer.cosignature else "overtaken"
            self._observe(WitnessEvent(asked.client.name, outcome, answer.seconds))

    def _write(self, answers: list[_Answer]) -> None:
        if not answers:
            return
        with self._store.write() as connection:
            for size in sorted({each.size for each in answers}):
                some = [each for each in answers if each.size == size]
                found = [each.cosignature for each in some if each.cosignature is not None]
                add_cosignatures(connection, size, some[0].note, found, self._is_quorum, int(time.time()))

    def _is_quorum(self, note: Note) -> bool:
        return self.policy.satisfied_by(cosigned_by(note, self.policy))

    def _idle_s(self) -> float:
        """How long to sleep where nothing new is notified: other replicas append too, and pauses end."""
        now = time.monotonic()
        pauses = [each.not_before - now for each in self._asked if each.not_before > now]
        return max(0.01, min([self._interval_s * 5, *pauses]))

    # --- on other threads ---

    def _ask(self, asked: _Asked, size: int, note: bytes) -> None:
        begun = time.monotonic()
        answer = _Answer(asked, size, note)
        try:
            answer.cosignature, _ = asked.client.cosign(note, lambda old: self._prove(old, size))
        except TallystickError as error:
            if error.code != "log-rolled-back" or not self._grown_to(asked.client.largest):
                answer.error = error
            # Otherwise another replica was faster, and asks about the larger tree.
        except Exception as error:
            _log.exception("asking the witness %s failed", asked.client.name)
            answer.error = UnavailableError(str(error), code="witness-unavailable")
        answer.seconds = time.monotonic() - begun
        self._answers.put(answer)

    def _grown_to(self, size: int) -> bool:
        with self._store.read() as connection:
            return queries.log_head(connection).size >= size

    def _head_note(self) -> bytes:
        with self._store.read() as connection:
            return queries.log_head(connection).checkpoint.encode()

    def _prove(self, old_size: int, new_size: int) -> list[bytes]:
        with self._store.read() as connection:
            return queries.consistency(connection, old_size, new_size)
