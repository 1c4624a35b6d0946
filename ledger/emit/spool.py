"""Owns the spool: one directory that holds one issuer's chain until the ledger has it.

Each statement is a file named by its ``seq``, with what goes beside it on the wire. It is written whole,
flushed, renamed and only then counts; a checksum shows one that was cut or changed afterwards. Several
processes may share a spool: the chain grows under one file lock (``Spool.locked``), and one process at a time
sends.

What must hold, whatever is killed and whenever:

- A statement is never sent before the head on disk counts it. So no ``seq`` is ever given twice.
- When file and head disagree, the file wins: it was complete before the head was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import UNSET

from ledger.core.errors import CorruptError, InvalidError, RefusedError, UnavailableError
from ledger.core.statements import (
    Batch,
    Heartbeat,
    SignedStatement,
    check_issuer_id,
    decode_statement,
)
from ledger.emit._disk import append_file, locked_file, replace_file
from ledger.emit.head import Head, create_head, read_head, write_head
from ledger.emit.session import abandoned_sessions, settle_session

__all__ = ["Chain", "Spool", "Spooled"]

_log = logging.getLogger("tallystick.emit")

_MAGIC = b"tspool1\n"
_FRAME = struct.Struct("<8s32s")
_FIXED = struct.Struct("<8sQI")
_PENDING = ".statement"
_KEPT = ".sent"
_TORN = ".torn"
_USAGE_AGE_S = 10.0


@dataclass(frozen=True)
class Spooled:
    """One statement as the spool holds it.

    ``body`` is the compressed body of ``POST /batches``; for other kinds it is empty and the entry is sent.
    ``session`` and ``settled`` say which process made it and how far its count is settled by it.
    """

    statement: SignedStatement
    body: bytes
    session: str
    settled: int


def encode_spooled(spooled: Spooled) -> bytes:
    """The file's bytes."""
    entry = spooled.statement.entry
    fixed = _FIXED.pack(bytes.fromhex(spooled.session), spooled.settled, len(entry))
    rest = b"".join((fixed, entry, spooled.body))
    return _FRAME.pack(_MAGIC, hashlib.sha256(rest).digest()) + rest


def decode_spooled(data: bytes, *, where: str) -> Spooled:
    """Read a file's bytes.

    Raises:
        CorruptError: cut, changed, or not a spool file.
    """
    bad = CorruptError(
        "the spool file was cut or changed",
        where=where,
        remedy="check the disk; what it held cannot be sent from here",
        code="spool-corrupt",
    )
    if len(data) < _FRAME.size + _FIXED.size:
        raise bad
    magic, digest = _FRAME.unpack_from(data)
    rest = memoryview(data)[_FRAME.size :]
    if magic != _MAGIC or hashlib.sha256(rest).digest() != digest:
        raise bad
    session, settled, length = _FIXED.unpack_from(rest)
    if length > len(rest) - _FIXED.size:
        raise bad
    entry = bytes(rest[_FIXED.size : _FIXED.size + length])
    try:
        statement = decode_statement(entry, where=where)
    except InvalidError:
        raise bad from None
    return Spooled(statement, bytes(rest[_FIXED.size + length :]), session.hex(), settled)


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
        self._documents_path = directory / "documents"
        self._limit_bytes = limit_bytes
        self._inherited: set[int] = set()
        self._usage = (-_USAGE_AGE_S, 0)  # when counted, bytes; only an estimate, so no lock
        self._checked = False
        try:
            for each in (directory, self.sessions, self.receipts):
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
        if not self._head_path.exists():
            waiting = self.waiting()
            if waiting:  # the head was lost; the newest statement tells where the chain stands
                last = self.load(waiting[-1])
                head = _after(Head(issuer=last.statement.issuer), last)
            elif issuer is not None:
                head = Head(issuer=check_issuer_id(issuer))
            else:
                raise InvalidError(
                    "the spool has no chain yet, so it needs an issuer name",
                    where=str(self.directory),
                    code="bad-issuer-name",
                )
            create_head(self._head_path, head)
        with self._open_head() as file:
            found = read_head(file, where=str(self._head_path)).head.issuer
        if issuer not in (None, found):
            raise RefusedError(
                f"the spool holds the chain of issuer {found}, not of {issuer}",
                where=str(self.directory),
                remedy="use one spool directory for each issuer",
                code="other-issuer",
            )
        return found

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
                found = read_head(file, where=str(self._head_path))
                chain = Chain(self, file, found.head)
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

    def path_of(self, seq: int) -> Path:
        """Where the statement ``seq`` waits."""
        return self.directory / f"{seq:016d}{_PENDING}"

    def waiting(self) -> list[int]:
        """The ``seq`` of each statement whose receipt is not yet here, in order."""
        return sorted(self._sequence(_PENDING))

    def kept(self) -> list[int]:
        """The ``seq`` of each statement that was sent without a log key to check its receipt with."""
        return sorted(self._sequence(_KEPT))

    def torn(self) -> list[str]:
        """Names of spool files that were found cut or changed."""
        return sorted(path.name for path in self.directory.glob(f"*{_TORN}*"))

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
        path = self.path_of(seq)
        path = path.with_suffix(_KEPT) if kept else path
        spooled = decode_spooled(path.read_bytes(), where=path.name)
        if spooled.statement.payload.seq != seq:
            raise CorruptError(
                "the spool file holds another statement", where=path.name, code="spool-corrupt"
            )
        return spooled

    def remove(self, seq: int, *, kept: bool = False) -> None:
        """Delete a statement. Only for one whose receipt was verified."""
        path = self.path_of(seq)
        path = path.with_suffix(_KEPT) if kept else path
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._usage = (self._usage[0], max(0, self._usage[1] - size))

    def keep(self, seq: int) -> None:
        """Set a statement aside that was sent, but whose receipt could not be checked."""
        self.path_of(seq).rename(self.path_of(seq).with_suffix(_KEPT))

    def check_room(self, size: int) -> None:
        """Count ``size`` bytes more.

        Raises:
            UnavailableError: the statements that wait would take more than the limit.
        """
        counted, used = self._usage
        if time.monotonic() - counted > _USAGE_AGE_S:
            used = 0
            for entry in os.scandir(self.directory):
                if entry.name.endswith((_PENDING, _KEPT)):
                    with contextlib.suppress(FileNotFoundError):
                        used += entry.stat().st_size
            counted = time.monotonic()
        self._usage = (counted, used)
        if used + size > self._limit_bytes:
            raise UnavailableError(
                f"the spool holds {used} bytes; its limit is {self._limit_bytes}",
                where=str(self.directory),
                remedy="restore the connection to the ledger, or raise the limit",
                code="spool-full",
            )
        self._usage = (counted, used + size)

    def documents(self) -> set[str]:
        """Digests of the documents that this chain has published."""
        try:
            text = self._documents_path.read_text("ascii", errors="replace")
        except FileNotFoundError:
            return set()
        return {line for line in text.split("\n") if len(line) == 64}


class Chain:
    """The chain's end, while its lock is held (``Spool.locked``)."""

    def __init__(self, spool: Spool, file: int, head: Head) -> None:
        self._spool = spool
        self._file = file
        self.head = head

    def recover(self, *, thorough: bool) -> None:
        """Make the head count every statement that is complete on disk; pass settled counts on."""
        spool = self._spool
        if thorough:
            for leftover in spool.directory.glob(f"*{_PENDING}.tmp"):
                leftover.unlink()  # never complete: only a holder of the lock writes one
            beyond = [seq for seq in spool.waiting() if seq > self.head.next_seq]
            if beyond and not spool.path_of(self.head.next_seq).exists():
                # The newest slot was lost and an older one found: the statements know better.
                self._write(_after(self.head, spool.load(beyond[-1])))
        while spool.path_of(self.head.next_seq).exists():
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
                path = spool.path_of(seq)
                path.rename(path.with_suffix(f"{_TORN}-{time.time_ns()}"))
                break
            self._write(_after(self.head, spooled))
        if self.head.session:
            settle_session(spool.sessions, self.head.session, self.head.settled)

    def append(self, spooled: Spooled) -> None:
        """Add the next statement; durable when this returns.

        Raises:
            UnavailableError, OSError: nothing was added.
        """
        data = encode_spooled(spooled)
        spool = self._spool
        spool.check_room(len(data))
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
        head = _after(self.head, spooled)
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
        """Note that the document ``digest`` is in the chain. Lost in a crash, it is published once more."""
        append_file(self._spool._documents_path, f"\n{digest}\n".encode())

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
        self.head = write_head(self._file, head)


def _after(head: Head, spooled: Spooled) -> Head:
    """The head once ``spooled`` is in the chain."""
    payload = spooled.statement.payload
    told = payload.dropped if isinstance(payload, Batch | Heartbeat) else 0
    return msgspec.structs.replace(
        head,
        next_seq=payload.seq + 1,
        last_leaf=spooled.statement.leaf_hash.hex(),
        issued_us=payload.issued_us,
        dropped=max(0, head.dropped - told),
        session=spooled.session,
        settled=spooled.settled,
    )
