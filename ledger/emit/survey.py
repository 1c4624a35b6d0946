"""Owns looking at a spool from outside: what waits, since when, what is damaged. Reads only; takes no lock.

A running recorder may change the spool meanwhile: a statement that was sent while we looked is left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.keys import PublicKey
from ledger.core.statements import verify_statement
from ledger.emit.head import SLOT_BYTES, Head, decode_slot
from ledger.emit.room import KEPT, PENDING, TORN
from ledger.emit.session import read_counts
from ledger.emit.spool import read_problem
from ledger.emit.spooled import Spooled, decode_spooled
from ledger.emit.tally import read_copy

__all__ = ["Item", "Survey", "list_items", "read_head_of", "survey", "verify_items"]


@dataclass(frozen=True)
class Item:
    """A statement's file. ``spooled`` is None, and ``damage`` says why, if it was cut or changed."""

    seq: int
    kept: bool
    size: int
    spooled: Spooled | None
    damage: str = ""


@dataclass(frozen=True)
class Survey:
    """How a spool stands.

    Attributes:
        issuer: whose chain it is.
        next_seq: what the next statement will have.
        statements: how many wait for their receipt; ``records`` and ``bytes`` in them.
        oldest_us: when the oldest of them was signed, Unix microseconds; None if none waits.
        kept: statements that the ledger took, but whose receipt could not be checked; ``kept_bytes`` in them.
        dropped: records known to be lost that no statement has told yet.
        sessions: processes that record now; ``unsealed`` is what they hold in memory.
        ended: processes that ended early and are not accounted for yet; ``ended_records`` they lost.
        damaged: files among those that wait that were cut or changed.
        torn: such files that were set aside.
        problem: what keeps statements from the ledger, as the process that sends noted it; None if nothing.
        blocked: it will not go away until somebody acts.
        problem_us: when it was noted.
    """

    issuer: str
    next_seq: int
    statements: int
    records: int
    bytes: int
    oldest_us: int | None
    kept: int
    kept_bytes: int
    dropped: int
    sessions: int
    unsealed: int
    ended: int
    ended_records: int
    damaged: tuple[str, ...]
    torn: tuple[str, ...]
    problem: str | None
    blocked: bool
    problem_us: int | None


def survey(directory: Path, progress: Callable[[int, int], None] | None = None) -> Survey:
    """Look at the spool in ``directory``.

    Raises:
        InvalidError: there is none. CorruptError: neither head nor tally is whole.
    """
    head = read_head_of(directory)
    count = dict.fromkeys(("statements", "records", "bytes", "kept", "kept_bytes"), 0)
    oldest_us: int | None = None
    damaged = []
    for item in list_items(directory, progress):  # one after the other: they may be gigabytes
        count["kept" if item.kept else "statements"] += 1
        count["kept_bytes" if item.kept else "bytes"] += item.size
        if item.spooled is None:
            damaged.append(f"{item.seq:016d}")
        elif not item.kept:
            count["records"] += item.spooled.count
            issued_us = item.spooled.statement.payload.issued_us
            oldest_us = issued_us if oldest_us is None else min(oldest_us, issued_us)
    alive, ended = _sessions(directory / "sessions")
    note = read_problem(directory / "problem") or {}
    reason, noted = note.get("reason"), note.get("at_us")
    return Survey(
        issuer=head.issuer,
        next_seq=head.next_seq,
        oldest_us=oldest_us,
        dropped=head.dropped,
        sessions=len(alive),
        unsealed=sum(alive),
        ended=len(ended),
        ended_records=sum(ended),
        damaged=tuple(damaged),
        torn=tuple(sorted(path.name for path in directory.glob(f"*{TORN}-*"))),
        problem=reason if isinstance(reason, str) else None,
        blocked=note.get("blocked") is True,
        problem_us=noted if isinstance(noted, int) else None,
        **count,
    )


def list_items(directory: Path, progress: Callable[[int, int], None] | None = None) -> Iterator[Item]:
    """Each statement's file, in order of the chain."""
    found = sorted(
        (int(path.stem), path)
        for path in directory.iterdir()
        if path.suffix in (PENDING, KEPT) and path.stem.isdigit()
    )
    for done, (seq, path) in enumerate(found):
        if progress is not None:
            progress(done, len(found))
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # sent while we look
            continue
        try:
            spooled: Spooled | None = decode_spooled(data, where=path.name)
            damage = ""
        except CorruptError as error:
            spooled, damage = None, error.what
        if spooled is not None and spooled.statement.payload.seq != seq:
            spooled, damage = None, "the file holds another statement"
        yield Item(seq, path.suffix == KEPT, len(data), spooled, damage)


def verify_items(items: Iterable[Item], key: PublicKey | None) -> list[str]:
    """What is wrong with a run of statements: damage, gaps, broken links, and signatures where ``key`` made
    them. Empty if nothing is. Statements that another key signed (before a rotation) are not verified.
    """
    findings = []
    last: Item | None = None
    for item in items:
        if item.spooled is None:
            findings.append(f"statement {item.seq}: {item.damage}")
            last = None
            continue
        statement = item.spooled.statement
        prev = None if statement.payload.prev is UNSET else statement.payload.prev
        if last is not None and last.spooled is not None:
            if item.seq != last.seq + 1:
                findings.append(f"statements {last.seq + 1} to {item.seq - 1} are missing")
            elif prev != last.spooled.statement.leaf_hash.hex():
                findings.append(f"statement {item.seq} does not follow statement {last.seq}")
        if key is not None and statement.kid == key.kid:
            try:
                verify_statement(statement, key)
            except TallystickError as error:
                findings.append(f"statement {item.seq}: {error.what}")
        last = item
    return findings


def read_head_of(directory: Path) -> Head:
    """The newest whole state of the spool's head, without bringing it up to the files.

    Raises:
        InvalidError: there is no spool. CorruptError: neither head nor tally is whole.
    """
    try:
        data = (directory / "head").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        data = b""
        if not (directory / "sessions").is_dir():
            raise InvalidError(
                "there is no spool here",
                where=str(directory),
                remedy="name the recorder's spool directory, or set TALLYSTICK_SPOOL",
                code="no-spool",
            ) from None
    slots = [decode_slot(data[:SLOT_BYTES]), decode_slot(data[SLOT_BYTES:]), read_copy(directory / "tally")]
    whole = [head for head in slots if head is not None]
    if not whole:
        raise CorruptError(
            "the head of the spool does not verify",
            where=str(directory / "head"),
            remedy="run `tallystick spool restore`: the ledger knows where the chain stands",
            code="spool-corrupt",
        )
    return max(whole, key=lambda head: head.generation)


def _sessions(directory: Path) -> tuple[list[int], list[int]]:
    """Records that are not safe yet: of each living process, of each that ended."""
    alive, ended = [], []
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            file = os.open(path, os.O_RDONLY)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    continue
                given, settled = read_counts(file)
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    alive.append(max(0, given - settled))
                else:
                    ended.append(max(0, given - settled))
            finally:
                os.close(file)
    return alive, ended
