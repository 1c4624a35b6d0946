"""Owns what a witness remembers: the logs it knows, by which keys, and the last tree of each it cosigned.

A SQLite file; each change is on the disk before it is answered (``synchronous=FULL``). Comparing with the
last tree and remembering the next is one transaction that holds the write lock from its beginning, so that
two requests, on two threads or in two processes, cannot both extend the same tree. Forgetting what was
cosigned is the one thing a witness must never do: never restore an older copy of this file. After a commit
that the disk did not confirm, nothing is read or cosigned any more: what is in memory may not be on it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ledger.core.errors import CorruptError, InvalidError, RefusedError, UnavailableError
from ledger.core.merkle import EMPTY_ROOT
from ledger.core.note import VerifierKey, format_vkey, keys_by_id, parse_vkey

__all__ = ["Cosigned", "KnownLog", "WitnessState", "create_state"]

_VERSION = 1
_BUSY_S = 10.0
_TABLES = """
CREATE TABLE log (
    origin TEXT PRIMARY KEY,
    size INTEGER NOT NULL DEFAULT 0,
    root BLOB NOT NULL,
    note BLOB,
    cosigned_s INTEGER
) STRICT;
CREATE TABLE log_key (
    origin TEXT NOT NULL REFERENCES log (origin),
    vkey TEXT NOT NULL,
    PRIMARY KEY (origin, vkey)
) STRICT;
CREATE TABLE misbehaviour (
    id INTEGER PRIMARY KEY,
    origin TEXT NOT NULL REFERENCES log (origin),
    seen_s INTEGER NOT NULL,
    why TEXT NOT NULL,
    request BLOB NOT NULL
) STRICT;
"""
_KEPT_REQUESTS = 64
"""Of each log, how many requests that may prove its misbehaviour are kept."""


@dataclass(frozen=True)
class Cosigned:
    """The last tree of a log that was cosigned; size 0 and no note where none was yet."""

    size: int
    root: bytes
    note: bytes | None
    cosigned_s: int | None


@dataclass(frozen=True)
class KnownLog:
    """A log that the witness watches."""

    origin: str
    keys: tuple[VerifierKey, ...]
    last: Cosigned


def create_state(path: Path) -> None:
    """Make an empty state.

    Raises:
        RefusedError: the file exists.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise RefusedError(
            "file exists",
            where=str(path),
            remedy="a witness's state is never overwritten; name another folder",
            code="exists",
        ) from None
    connection = _connect(path)
    try:
        connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
    finally:
        connection.close()


class WitnessState:
    """An open state. Safe to share between threads: each has a connection of its own.

    Args:
        path: the file, which ``create_state`` made.

    Raises:
        InvalidError: there is none.
        CorruptError: the file is damaged, or of a version that this one does not know.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: list[sqlite3.Connection] = []  # guarded by the lock
        self._failed = threading.Event()  # set for good
        if not path.is_file():
            raise InvalidError(
                "there is no witness here",
                where=str(path),
                remedy="run `tallystick witness init`",
                code="no-witness",
            )
        self._settle()
        with self._read() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            sound = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if version != _VERSION or sound != "ok":
            raise CorruptError(
                f"the witness's state is damaged or of another version ({version}, {sound[:80]})",
                where=str(path),
                remedy="never restore an older copy, which could cosign a fork: make a new witness",
                code="bad-witness-state",
            )

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def add_log(self, origin: str, keys: tuple[VerifierKey, ...]) -> bool:
        """Know a log by these keys too. What was cosigned of it stays remembered.

        Returns:
            Whether the log is new.

        Raises:
            InvalidError: two of its keys cannot be told apart.
        """
        with self._write() as connection:
            known = connection.execute("SELECT 1 FROM log WHERE origin = ?", (origin,)).fetchone()
            if known is None:
                connection.execute("INSERT INTO log (origin, root) VALUES (?, ?)", (origin, EMPTY_ROOT))
            keys_by_id((*self._keys(connection, origin), *keys))
            connection.executemany(
                "INSERT OR IGNORE INTO log_key VALUES (?, ?)", [(origin, format_vkey(key)) for key in keys]
            )
        return known is None

    def remove_key(self, origin: str, key: VerifierKey) -> None:
        """Trust a log's key no longer. The log itself is never forgotten: it could come back as a fork.

        Raises:
            InvalidError: the log has no such key.
        """
        with self._write() as connection:
            query = "DELETE FROM log_key WHERE origin = ? AND vkey = ?"
            if connection.execute(query, (origin, format_vkey(key))).rowcount != 1:
                raise InvalidError("the witness has no such key for this log", where=origin, code="not-found")

    def logs(self) -> list[KnownLog]:
        """All logs, by origin."""
        with self._read() as connection:
            origins = [row[0] for row in connection.execute("SELECT origin FROM log ORDER BY origin")]
            return [self._log(connection, origin) for origin in origins]

    def log(self, origin: str) -> KnownLog | None:
        """One log; None if it is not known."""
        with self._read() as connection:
            known = connection.execute("SELECT 1 FROM log WHERE origin = ?", (origin,)).fetchone()
            return None if known is None else self._log(connection, origin)

    @contextlib.contextmanager
    def locked(self, origin: str) -> Iterator[tuple[Cosigned, sqlite3.Connection]]:
        """The last tree of a known log, under the write lock; what ``remember`` writes is durable on exit."""
        with self._write() as connection:
            yield self._last(connection, origin), connection

    def remember(self, connection: sqlite3.Connection, origin: str, new: Cosigned) -> None:
        """Within ``locked``: the tree that is cosigned now."""
        connection.execute(
            "UPDATE log SET size = ?, root = ?, note = ?, cosigned_s = ? WHERE origin = ?",
            (new.size, new.root, new.note, new.cosigned_s, origin),
        )

    def keep_evidence(self, origin: str, why: str, request: bytes) -> None:
        """Keep a request that the log's key signed and that contradicts what was cosigned."""
        with self._write() as connection:
            count = connection.execute("SELECT COUNT(*) FROM misbehaviour WHERE origin = ?", (origin,))
            if count.fetchone()[0] < _KEPT_REQUESTS:
                connection.execute(
                    "INSERT INTO misbehaviour (origin, seen_s, why, request) VALUES (?, ?, ?, ?)",
                    (origin, int(time.time()), why, request),
                )

    def evidence(self, origin: str | None = None) -> list[tuple[str, int, str, bytes]]:
        """(origin, second, why, request) of what was kept, oldest first."""
        columns = "SELECT origin, seen_s, why, request FROM misbehaviour"
        with self._read() as connection:
            return list(
                connection.execute(f"{columns} WHERE ?1 IS NULL OR origin = ?1 ORDER BY id", (origin,))
            )

    # --- connections ---

    def _settle(self) -> None:
        """Bring what the write-ahead log holds to the disk, also what an earlier process left unconfirmed."""
        try:
            self._mine().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.DatabaseError as error:
            raise self._unavailable(str(error)) from None

    def _log(self, connection: sqlite3.Connection, origin: str) -> KnownLog:
        return KnownLog(origin, self._keys(connection, origin), self._last(connection, origin))

    def _keys(self, connection: sqlite3.Connection, origin: str) -> tuple[VerifierKey, ...]:
        rows = connection.execute("SELECT vkey FROM log_key WHERE origin = ? ORDER BY vkey", (origin,))
        return tuple(parse_vkey(row[0]) for row in rows)

    def _last(self, connection: sqlite3.Connection, origin: str) -> Cosigned:
        query = "SELECT size, root, note, cosigned_s FROM log WHERE origin = ?"
        return Cosigned(*connection.execute(query, (origin,)).fetchone())

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        if self._failed.is_set():
            raise self._unavailable("the disk did not confirm what was written; start the witness anew")
        try:
            connection = self._mine()
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
                self._failed.set()
            raise self._unavailable(str(error)) from None

    def _unavailable(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"the witness's state cannot be read or written: {why}",
            where=str(self._path),
            remedy="see that its disk is sound and not full; nothing was cosigned",
            code="storage-failed",
        )

    def _mine(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _connect(self._path)
            with self._lock:
                self._open.append(connection)
        return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection
