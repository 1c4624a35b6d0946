"""Owns the end of a spool's chain while its lock is held: appending, and what is made of a crash."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from ledger.core.errors import CorruptError, UnavailableError
from ledger.emit._disk import replace_file
from ledger.emit.head import Head, write_head
from ledger.emit.room import PENDING
from ledger.emit.session import MAKING, abandoned_sessions, settle_session
from ledger.emit.spooled import Spooled, encode_spooled
from ledger.emit.tally import note_held, write_copy

if TYPE_CHECKING:
    from ledger.emit.spool import Spool

__all__ = ["Chain", "after"]

_log = logging.getLogger("tallystick.emit")

_MAX_DOCUMENTS = 1024
"""Published documents that a spool remembers; an older one is published once more if it comes back."""


class Chain:
    """The chain's end, while its lock is held (``Spool.locked``)."""

    def __init__(self, spool: Spool, file: int, head: Head) -> None:
        self._spool = spool
        self._file = file
        self.head = head

    def heal(self) -> None:
        """Write both slots of a damaged head anew."""
        for _ in range(2):
            self._write(self.head)

    def recover(self, *, thorough: bool) -> None:
        """Make the head count every statement that is complete on disk; pass settled counts on."""
        spool = self._spool
        if thorough:
            for leftover in spool.directory.glob(f"*{PENDING}.tmp"):
                leftover.unlink()  # never complete: only a holder of the lock writes one
            for leftover in spool.directory.glob(f"{MAKING}*"):
                leftover.unlink(missing_ok=True)  # whoever is making it makes another one
            for seq in reversed(spool.waiting()):
                if seq <= self.head.next_seq or spool.is_moving():
                    break
                # The newest slot was lost and an older one found: the statements know better.
                with contextlib.suppress(CorruptError):
                    self._write(after(self.head, spool.load(seq)))
                    break
        while spool.path_of(self.head.next_seq).exists() and not spool.is_moving():
            seq = self.head.next_seq
            try:
                spooled = spool.load(seq)
                payload = spooled.statement.payload
                if (None if payload.prev is UNSET else payload.prev) != self.head.last_leaf:
                    raise CorruptError("does not follow the chain", where=f"{seq}", code="spool-corrupt")
            except CorruptError as error:
                # It was never sent, since no head counted it; its records are still unsettled and so counted
                # as lost. The file stays as evidence and its place in the chain is free.
                _log.error("%s; set aside", error)
                spool.set_aside(spool.path_of(seq))
                break
            self._write(after(self.head, spooled))
        if self.head.session:
            settle_session(spool.sessions, self.head.session, self.head.settled)

    def append(self, spooled: Spooled) -> None:
        """Add the next statement; durable when this returns.

        Raises:
            UnavailableError, OSError: nothing was added.
        """
        data = encode_spooled(spooled)
        spool = self._spool
        if spool.is_moving():
            raise UnavailableError(
                "the spool's chain is being moved to where the ledger is",
                where=str(spool.directory),
                remedy="run `tallystick spool restore` again: it was cut off",
                code="spool-unavailable",
            )
        spool.room.take(len(data))
        note_held(spool.tally_path, self.head.next_seq, spooled.count + spooled.told)
        path = spool.path_of(self.head.next_seq)
        if path.exists():  # the lock's file was deleted under us: never write over what another one signed
            raise UnavailableError(
                f"another process wrote statement {self.head.next_seq} meanwhile",
                where=path.name,
                remedy="do not delete the spool's lock file while recorders run",
                code="spool-unavailable",
            )
        try:
            replace_file(path, data)
        except OSError:
            if not path.exists():
                raise
            _log.exception("statement %d is in the spool, but may not be durable", self.head.next_seq)
        head = after(self.head, spooled)
        try:
            self._write(head)
        except OSError:  # the file stands; the next holder of the lock makes the head count it
            _log.exception("the head of the spool could not be written")
            self.head = head

    def add_dropped(self, count: int, session: str, settled: int) -> None:
        """Remember ``count`` lost records until a statement tells them."""
        self._write(
            msgspec.structs.replace(
                self.head, dropped=self.head.dropped + count, session=session, settled=settled
            )
        )

    def publish(self, digest: str) -> None:
        """Note that the newest statement published the document ``digest``, and keep it a second time.

        Lost in a crash, it is published once more.
        """
        spool = self._spool
        data = spool.path_of(self.head.next_seq - 1).read_bytes()
        replace_file(spool.documents_path / digest, data)
        known = sorted(spool.documents_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for oldest in known[:-_MAX_DOCUMENTS]:
            oldest.unlink()

    def move_to(self, next_seq: int, last_leaf: str | None) -> None:
        """Let the chain stand elsewhere. What was there is the caller's to account for."""
        self._write(msgspec.structs.replace(self.head, next_seq=next_seq, last_leaf=last_leaf))

    def reap(self) -> int:
        """Count what processes lost that ended without closing; return how many records."""
        lost = 0
        for name, given, settled in abandoned_sessions(self._spool.sessions):
            missing = max(0, given - settled)
            if missing:
                self.add_dropped(missing, name, given)
                _log.warning("%d records were lost when a process ended early", missing)
            lost += missing
            (self._spool.sessions / name).unlink(missing_ok=True)
        return lost

    def _write(self, head: Head) -> None:
        with contextlib.suppress(OSError):
            # Before the head: whichever of the two a kill leaves as the newest is a whole state.
            write_copy(self._spool.tally_path, head)
        self.head = write_head(self._file, head)


def after(head: Head, spooled: Spooled) -> Head:
    """The head once ``spooled`` is in the chain."""
    payload = spooled.statement.payload
    return msgspec.structs.replace(
        head,
        next_seq=payload.seq + 1,
        last_leaf=spooled.statement.leaf_hash.hex(),
        issued_us=payload.issued_us,
        dropped=max(0, head.dropped - spooled.told),
        session=spooled.session,
        settled=spooled.settled,
    )
