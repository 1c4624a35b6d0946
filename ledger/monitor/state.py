"""Owns what a monitor remembers of each log: the last checkpoint it verified, and how far its reading goes.

One JSON file a log, replaced whole and durably after each round; what proves misbehaviour is kept in files of
its own beside it and is never overwritten.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from ledger.core.errors import CorruptError

__all__ = ["IssuerState", "KeyState", "LogState", "keep_evidence", "load_state", "save_state"]


class IssuerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an issuer's chain stands."""

    next_seq: int
    last_leaf: str | None


class KeyState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An issuer's key, as the log's statements tell it. ``key`` is its COSE_Key, hex."""

    issuer: str
    key: str
    added_leaf: int
    revoked_leaf: int | None
    named: bool


class LogState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a log after a round.

    ``hashes`` are those of the compact range of ``size`` leaves, which were read one by one; ``note`` is the
    last checkpoint that was verified, of ``seen`` leaves. ``documents`` are (digest, kind).
    """

    origin: str
    seen: int = 0
    note: str = ""
    changed_s: int = 0
    size: int = 0
    hashes: tuple[str, ...] = ()
    issuers: dict[str, IssuerState] = {}
    keys: dict[str, KeyState] = {}
    own: tuple[tuple[int, str], ...] = ()
    documents: tuple[tuple[str, str], ...] = ()
    alarmed: tuple[str, ...] = ()
    """Codes of alarms that have been sent and hold on: they are not sent again each round."""


_decoder = msgspec.json.Decoder(LogState)


def load_state(folder: Path, origin: str) -> LogState:
    """What is remembered of a log; an empty state of one that is new.

    Raises:
        CorruptError: the file is damaged, or is about another log.
    """
    path = _path(folder, origin)
    try:
        state = _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return LogState(origin)
    except msgspec.MsgspecError as error:
        raise CorruptError(
            f"the monitor's memory cannot be read: {error}",
            where=str(path),
            remedy="restore it; without it, a fork of what was seen before would pass",
            code="bad-monitor-state",
        ) from None
    if state.origin != origin:
        raise CorruptError("is about another log", where=str(path), code="bad-monitor-state")
    return state


def save_state(folder: Path, state: LogState) -> None:
    """Remember ``state``, durably."""
    _write(_path(folder, state.origin), msgspec.json.format(msgspec.json.encode(state)))


def keep_evidence(folder: Path, origin: str, *notes: bytes) -> Path:
    """Keep checkpoints that contradict each other; together they prove that the log's key signed both."""
    data = b"\n".join(notes)
    name = f"{_name(origin)}-{hashlib.sha256(data).hexdigest()[:16]}.notes"
    path = folder / "evidence" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data)
    return path


def _path(folder: Path, origin: str) -> Path:
    return folder / f"{_name(origin)}.json"


def _name(origin: str) -> str:
    readable = "".join(c if c.isalnum() or c in ".-" else "_" for c in origin)[:80]
    return f"{readable}-{hashlib.sha256(origin.encode()).hexdigest()[:16]}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
