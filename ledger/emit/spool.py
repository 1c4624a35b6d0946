"""Owns the spool: one directory that holds one issuer's chain until the ledger has it.

Each statement is a file named by its ``seq``, with what goes beside it on the wire. It is written whole,
flushed, renamed and only then counts; a checksum shows one that was cut or changed afterwards. Several
processes may share a spool: the chain grows under one file lock (``Spool.locked``), and one process at a time
sends.

What must hold, whatever is killed and whenever:

- A statement is never sent before the head on disk counts it. So no ``seq`` is ever given twice.
- When file and head disagree, the file wins: it was complete before the head was written.
- A statement that was counted and is damaged later is not forgotten: the tally says how many records it held,
  and ``rechain`` puts a statement into its place that counts them as dropped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ledger.core.errors import CorruptError, InvalidError, RefusedError, UnavailableError
from ledger.core.statements import check_issuer_id
from ledger.emit._disk import flush_directory, locked_file, replace_file
from ledger.emit.chain import Chain, after
from ledger.emit.head import Head, create_head, read_head
from ledger.emit.room import KEPT, PENDING, TORN, Room, bound_torn
from ledger.emit.spooled import Spooled, decode_spooled
from ledger.emit.tally import DELIVERED, lost_with, note_held, read_copy, write_copy

__all__ = ["Spool", "read_problem"]

_log = logging.getLogger("tallystick.emit")


class Spool:
    """A spool directory. Safe to use from several threads and processes at once.

    Args:
        directory: made with mode 0700 if missing.
        issuer: the chain's issuer; None takes the one that the spool already has.
        limit_bytes: how much the statements that wait may take.
    """

    def __init__(self, directory: Path, issuer: str | None = None, *, limit_bytes: int = 4 << 30) -> None:
        self.directory = directory
        self.sessions = directory / "sessions"
        self.receipts = directory / "receipts"
        self._head_path = directory / "head"
        self.documents_path = directory / "documents"
        self.tally_path = directory / "tally"
        self._mending_path = directory / "mending"
        self._moving_path = directory / "moving"
        self._problem_path = directory / "problem"
        self.room = Room(directory, limit_bytes)
        self._inherited: set[int] = set()
        self._checked = False
        try:
            for each in (directory, self.sessions, self.receipts, self.documents_path):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked_file(directory / "lock"):
                self.issuer = self._found(issuer)
        except OSError as error:
            raise UnavailableError(
                f"the spool cannot be opened: {error.strerror}",
                where=str(directory),
                remedy="name a directory on a local disk that this process may write",
                code="spool-unavailable",
            ) from error

    def _found(self, issuer: str | None) -> str:
        found = self._read_issuer()
        if found is None:
            head = self._rebuilt_head()
            if head is None and self._head_path.exists():
                self._read_issuer(strict=True)
            if head is None and issuer is None:
                raise InvalidError(
                    "the spool has no chain yet, so it needs an issuer name",
                    where=str(self.directory),
                    code="bad-issuer-name",
                )
            head = head or Head(issuer=check_issuer_id(issuer or ""))
            write_copy(self.tally_path, head)
            create_head(self._head_path, head)
            found = head.issuer
        if issuer not in (None, found):
            raise RefusedError(
                f"the spool holds the chain of issuer {found}, not of {issuer}",
                where=str(self.directory),
                remedy="use one spool directory for each issuer",
                code="other-issuer",
            )
        return found

    def _read_issuer(self, *, strict: bool = False) -> str | None:
        """The issuer that the head names; None if there is no head, or no whole one."""
        try:
            with self._open_head() as file:
                return read_head(file, where=str(self._head_path), copy=self._copy).head.issuer
        except FileNotFoundError:
            return None
        except CorruptError:
            if strict:
                raise
            return None

    def _copy(self) -> Head | None:
        return read_copy(self.tally_path)

    def _rebuilt_head(self) -> Head | None:
        """Where the chain stands, without a head: the tally repeats it, or the newest statement tells."""
        copy = self._copy()
        if copy is not None:
            return copy
        for seq in reversed(self.waiting()):
            with contextlib.suppress(CorruptError):
                last = self.load(seq)
                return after(Head(issuer=last.statement.issuer), last)
        return None

    @contextlib.contextmanager
    def _open_head(self) -> Iterator[int]:
        file = os.open(self._head_path, os.O_RDWR)
        try:
            yield file
        finally:
            os.close(file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[Chain]:
        """Hold the chain: nobody else can append meanwhile.

        Raises:
            CorruptError: the head does not verify. UnavailableError: the disk fails or is full.
        """
        try:
            with locked_file(self.directory / "lock", inherited=self._inherited), self._open_head() as file:
                found = read_head(file, where=str(self._head_path), copy=self._copy)
                chain = Chain(self, file, found.head)
                if found.damaged:
                    chain.heal()
                chain.recover(thorough=found.damaged or not self._checked)
                self._checked = True
                yield chain
        except OSError as error:
            raise UnavailableError(
                f"the spool cannot be written: {error.strerror}",
                where=str(self.directory),
                remedy="make room on its disk, or repair it",
                code="spool-unavailable",
            ) from error

    @contextlib.contextmanager
    def sending(self) -> Iterator[bool]:
        """Hold the right to send; yields False at once if another process has it."""
        with locked_file(self.directory / "send.lock", blocking=False, inherited=self._inherited) as got:
            yield got

    def forget_parent(self) -> None:
        """In a forked child: close the parent's locks, so that they end with the parent."""
        for file in self._inherited:
            with contextlib.suppress(OSError):
                os.close(file)
        self._inherited = set()

    # --- files ---------------------------------------------------------------------------------------

    def path_of(self, seq: int, *, kept: bool = False) -> Path:
        """Where the statement ``seq`` waits, or is kept."""
        return self.directory / f"{seq:016d}{KEPT if kept else PENDING}"

    def waiting(self) -> list[int]:
        """The ``seq`` of each statement whose receipt is not yet here, in order."""
        return sorted(self._sequence(PENDING))

    def kept(self) -> list[int]:
        """The ``seq`` of each statement that was sent without a log key to check its receipt with."""
        return sorted(self._sequence(KEPT))

    def torn(self) -> list[str]:
        """Names of spool files that were found cut or changed."""
        return sorted(path.name for path in self.directory.glob(f"*{TORN}*"))

    def _sequence(self, suffix: str) -> Iterator[int]:
        for entry in os.scandir(self.directory):
            stem, dot, ending = entry.name.partition(".")
            if dot + ending == suffix and stem.isdigit():
                yield int(stem)

    def load(self, seq: int, *, kept: bool = False) -> Spooled:
        """Read the statement ``seq``.

        Raises:
            FileNotFoundError: it is not (or no longer) there. CorruptError: it was cut or changed.
        """
        path = self.path_of(seq, kept=kept)
        spooled = decode_spooled(path.read_bytes(), where=path.name)
        if spooled.statement.payload.seq != seq:
            raise CorruptError(
                "the spool file holds another statement", where=path.name, code="spool-corrupt"
            )
        return spooled

    def remove(self, seq: int, *, kept: bool = False) -> None:
        """Delete a statement. Only for one whose receipt was verified."""
        path = self.path_of(seq, kept=kept)
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self.room.give(size)
        self.note_held(seq, DELIVERED)

    def keep(self, seq: int) -> None:
        """Set a statement aside that was sent, but whose receipt could not be checked."""
        self.path_of(seq).rename(self.path_of(seq, kept=True))

    def is_mending(self) -> bool:
        """Whether what waits is being signed anew (see ``rechain``), so that nothing may be sent."""
        return self._mending_path.exists() or self.is_moving()

    def is_moving(self) -> bool:
        """Whether what waits is getting other numbers, so that nothing may be appended either."""
        return self._moving_path.exists()

    def begin_mending(self, *, moving: bool = False) -> None:
        """Note that it begins; durable."""
        path = self._moving_path if moving else self._mending_path
        if not path.exists():
            replace_file(path, b"")

    def end_mending(self) -> None:
        """Note that it is done; durable."""
        self._mending_path.unlink(missing_ok=True)
        self._moving_path.unlink(missing_ok=True)
        flush_directory(self.directory)

    def set_aside(self, path: Path) -> None:
        """Keep a damaged file as evidence, out of the way."""
        path.rename(path.with_suffix(f"{TORN}-{time.time_ns()}"))
        bound_torn(self.directory)

    def note_held(self, seq: int, lost: int) -> None:
        """Note that ``lost`` records go with the file of statement ``seq``, or ``tally.DELIVERED``."""
        with contextlib.suppress(OSError):
            note_held(self.tally_path, seq, lost)

    def lost_with(self, seq: int) -> int | None:
        """How many records are lost if the file of statement ``seq`` is, or ``tally.DELIVERED``; None if that
        is not known either.
        """
        return lost_with(self.tally_path, seq)

    def documents(self) -> set[str]:
        """Digests of the documents that this chain has published."""
        return {entry.name for entry in os.scandir(self.documents_path) if len(entry.name) == 64}

    def document_at(self, seq: int) -> Spooled | None:
        """The statement ``seq``, if it published a document: those are kept twice."""
        for digest in self.documents():
            path = self.documents_path / digest
            try:
                spooled = decode_spooled(path.read_bytes(), where=path.name)
            except (FileNotFoundError, CorruptError):
                continue
            if spooled.statement.payload.seq == seq:
                return spooled
        return None

    # --- what is wrong, for other processes to read -----------------------------------------------------

    def note_problem(self, reason: str | None, *, blocked: bool = False) -> None:
        """Leave a note of what keeps statements from the ledger; None removes it."""
        with contextlib.suppress(OSError):
            if reason is None:
                self._problem_path.unlink(missing_ok=True)
                return
            note = {"reason": reason[:2000], "blocked": blocked, "at_us": time.time_ns() // 1000}
            temporary = self._problem_path.with_suffix(".tmp")
            temporary.write_text(json.dumps(note), "utf-8")
            temporary.replace(self._problem_path)

    def problem(self) -> dict[str, object] | None:
        """The note: ``reason``, ``blocked``, ``at_us``."""
        return read_problem(self._problem_path)


def read_problem(path: Path) -> dict[str, object] | None:
    """The note in ``path``, or None."""
    try:
        note = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None
