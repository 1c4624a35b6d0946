"""What is compared before a log is served: head, checkpoint, tiles, statements, and what was published.

Safe beside replicas that append: the file is read before the snapshot is taken, and whatever it names was
committed before that.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, text

from ledger.core.checkpoint import Checkpoint, LogKeys, open_checkpoint
from ledger.core.errors import CorruptError, InvalidError, TallystickError, UnavailableError
from ledger.core.tiles import TileReader
from ledger.store import queries
from ledger.store.engine import Store
from ledger.store.upgrade import check_revision, differences

__all__ = ["check_consistent", "check_database", "check_durable", "settle"]


def settle(store: Store) -> None:
    """SQLite: bring what the write-ahead log holds to the disk before anything is read from it.

    A process that ended because the disk did not confirm a commit may have left pages that the system still
    shows and the disk lacks; after this they are in the database's file, and confirmed.

    Raises:
        UnavailableError: the disk does not take it.
    """
    if store.engine.dialect.name == "sqlite":
        connection = store.engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            raise UnavailableError(
                f"the disk does not take what the database must write: {error}",
                where="database",
                remedy="look after the disk: is it read-only, full, broken? Then start again",
                code="storage-failed",
            ) from None
        finally:
            connection.close()


def check_durable(connection: Connection) -> None:
    """Refuse a PostgreSQL server that cannot keep what it acknowledges.

    Raises:
        UnavailableError: it is a standby, or runs without fsync or full_page_writes.
    """
    if connection.dialect.name != "postgresql":
        return
    query = "SELECT pg_is_in_recovery(), current_setting('fsync'), current_setting('full_page_writes')"
    standby, fsync, full_page_writes = connection.execute(text(query)).one()
    if standby:
        raise UnavailableError(
            "the database is a standby, which takes nothing and may lag",
            where="database",
            remedy="name the primary: several hosts with target_session_attrs=read-write in the URL find it",
            code="standby-database",
        )
    if "off" in (fsync, full_page_writes):
        raise UnavailableError(
            "the server runs without fsync or full_page_writes: a crash would undo what was acknowledged",
            where="database",
            remedy="set both to on in postgresql.conf",
            code="not-durable",
        )


def check_consistent(store: Store, key: LogKeys, published: Path | None) -> Checkpoint:
    """Compare the head, its checkpoint, the tiles and the published checkpoint.

    Returns:
        The head's checkpoint.

    Raises:
        CorruptError: they contradict each other; ``where`` names what.
    """
    note = _read(published)  # first: what it names is in the snapshot, or was never committed here
    with store.read() as connection:
        return _check(connection, key, published, note)


def check_database(
    store: Store, key: LogKeys, published: Path | None
) -> tuple[int | None, list[TallystickError]]:
    """Everything that would keep a service from serving this database.

    Returns:
        The log's leaves, if there is a log that can be read, and what is wrong.
    """
    findings: list[TallystickError] = []
    try:
        check_revision(store)
    except TallystickError as error:
        findings.append(error)
        if error.code == "no-log":
            return None, findings
    findings += [
        CorruptError(each, where="tables", remedy="undo what was changed by hand", code="other-tables")
        for each in (differences(store) if not findings else [])
    ]
    with store.read() as connection:
        try:
            check_durable(connection)
        except TallystickError as error:
            findings.append(error)
    try:
        return check_consistent(store, key, published).size, findings
    except TallystickError as error:
        return None, [*findings, error]


def _read(published: Path | None) -> bytes | None:
    if published is None:
        return None
    try:
        return published.read_bytes()
    except FileNotFoundError:
        return None


def _contradiction(what: str, where: str, code: str = "inconsistent-log") -> CorruptError:
    return CorruptError(
        what, where=where, remedy="do not start; run `tallystick audit`, restore a good copy", code=code
    )


def _check(connection: Connection, key: LogKeys, published: Path | None, note: bytes | None) -> Checkpoint:
    head = queries.log_head(connection)
    signed = open_checkpoint(head.checkpoint.encode(), key)
    if (signed.size, signed.root) != (head.size, head.root):
        raise _contradiction("the head's checkpoint is for another tree", "log_head")
    reader = TileReader(queries.tile_fetcher(connection), head.size)
    if reader.root() != head.root:
        raise _contradiction(f"the tiles do not hash to the root at size {head.size}", "tile")
    if queries.statement_count(connection) != head.size:
        raise _contradiction(f"there are not exactly {head.size} statements", "statement")
    if note is not None:
        try:
            seen = open_checkpoint(note, key)
        except InvalidError as error:  # cut by a crash, or another log's
            raise _contradiction(
                f"is not a checkpoint of this log ({error.what}); once an audit finds the database sound, "
                "remove the file",
                str(published),
            ) from None
        if seen.size > head.size:
            raise _contradiction(
                f"a checkpoint of size {seen.size} was published, but the database ends at {head.size}: "
                "it is an older copy",
                str(published),
                "log-rolled-back",
            )
        if reader.root(seen.size) != seen.root:
            raise _contradiction(
                f"the published checkpoint of size {seen.size} is of another history", str(published)
            )
    return signed
