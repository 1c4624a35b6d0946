"""Restoring a backup, and moving a log to another database: every proof stays valid, and no fork.

A log that is restored from a backup knows nothing of what was appended after it. If it signed again, there
would be two histories, and whoever holds a newer checkpoint would see it. So checkpoints that were kept (the
published one, a witness's, a monitor's) are compared first, and a log that is behind one of them is not
restored for signing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import Connection, select, text

from ledger.core.checkpoint import Checkpoint, LogKeys, open_checkpoint
from ledger.core.cose import decode_cbor
from ledger.core.errors import CorruptError, InvalidError, RefusedError
from ledger.core.keys import PublicKey, parse_cose_key
from ledger.core.log_keys import log_verifier_key
from ledger.core.note import VerifierKey
from ledger.core.tiles import TileReader
from ledger.export.backup import Backup, open_backup, read_table
from ledger.store import Store, migrate, queries
from ledger.store.rows import clear, count_rows, has_log, load_rows, read_rows, tables_of
from ledger.store.startup import check_consistent
from ledger.store.tables import IssuerKeyRow, LogHead, table
from ledger.store.upgrade import check_revision, revisions

__all__ = ["move_log", "restore_backup"]

Progress = Callable[[int, int], None]


def restore_backup(
    folder: Path,
    store: Store,
    *,
    key: PublicKey,
    kept: Sequence[tuple[str, bytes]] = (),
    progress: Progress | None = None,
) -> Checkpoint:
    """Restore the backup in ``folder`` into a database without a log, and compare what came of it.

    Args:
        folder: what ``make_backup`` wrote.
        store: an empty database.
        key: the log's key, which signed the manifest, and so which keys the log had before.
        kept: checkpoints of this log seen elsewhere, each with where it is from.
        progress: is told rows done, and of how many.

    Returns:
        The log's checkpoint.

    Raises:
        CorruptError: the backup was changed, or contradicts itself or a kept checkpoint.
        RefusedError: the database has a log, or a kept checkpoint is newer: signing would fork.
    """
    backup = open_backup(folder, key)
    log_keys = _log_keys(folder, backup)
    signed = open_checkpoint(backup.checkpoint.encode(), log_keys)
    newest = _check_kept(signed, kept, log_keys)
    _check_empty(store)
    _migrate_to(store, backup)
    total = sum(each.rows for each in backup.tables)
    done = 0
    with store.write() as connection:
        tables = {each.name: each for each in tables_of(connection)}
        if tables.keys() != {each.name for each in backup.tables}:
            raise InvalidError(
                "has other tables than its revision", where=str(folder), code="malformed-backup"
            )
        clear(connection, list(tables.values()))
        listed = {each.name: each for each in backup.tables}
        for name, into in tables.items():
            names, groups = read_table(folder, listed[name])
            for group in groups:
                done += load_rows(connection, into, names, [group])
                if progress is not None:
                    progress(done, total)
        for origin, checkpoint in newest:
            _check_extends(connection, signed, origin, checkpoint)
    migrate(store)
    restored = check_consistent(store, log_keys, None)
    if restored != signed:
        raise CorruptError(
            "is not the tree that its manifest signs", where=str(folder), code="inconsistent-log"
        )
    return restored


def move_log(source: Store, target: Store, log_keys: LogKeys, progress: Progress | None = None) -> Checkpoint:
    """Move a log into a database without one. Afterwards nothing can append to the old one.

    Appends to the source wait meanwhile, and fail when it is done: the row that they lock is gone. Broken
    off, it can be run again.

    Raises:
        RefusedError: the target has another log. CorruptError: the log is not sound.
    """
    check_revision(source)
    check_consistent(source, log_keys, None)
    with source.write() as old:
        old.execute(select(table(LogHead)).with_for_update())
        head = queries.log_head(old)
        with target.read() as connection:
            again = has_log(connection)
            same = again and queries.log_head(connection) == head
        if again and not same:
            raise RefusedError(
                "has a log already, which is another one or of another size",
                where="target",
                remedy="name an empty database",
                code="exists",
            )
        if not again:
            migrate(target)
            _copy(old, target, progress)
        moved = check_consistent(target, log_keys, None)
        if (moved.size, moved.root) != (head.size, head.root):
            raise CorruptError("is not the tree that was moved", where="target", code="inconsistent-log")
        old.execute(text("DELETE FROM log_head"))
    return moved


def _copy(old: Connection, target: Store, progress: Progress | None) -> None:
    done = 0
    sources = {each.name: each for each in tables_of(old)}
    total = sum(count_rows(old, each) for each in sources.values())
    with target.write() as new:
        tables = tables_of(new)
        clear(new, tables)
        for each in tables:
            names = [column.name for column in sources[each.name].columns]
            for group in read_rows(old, sources[each.name]):
                done += load_rows(new, each, names, [group])
                if progress is not None:
                    progress(done, total)


def _log_keys(folder: Path, backup: Backup) -> tuple[VerifierKey, ...]:
    """The verifier keys that the log has had: kept checkpoints may be older than its key."""
    (listed,) = [each for each in backup.tables if each.name == IssuerKeyRow.__tablename__]
    names, groups = read_table(folder, listed)
    rows = [dict(zip(names, row, strict=True)) for group in groups for row in group]
    return tuple(
        log_verifier_key(backup.origin, parse_cose_key(decode_cbor(row["cose_key"], where="log key")))
        for row in rows
        if row["issuer"] == backup.origin
    )


def _check_empty(store: Store) -> None:
    with store.read() as connection:
        if has_log(connection):
            raise RefusedError(
                "has a log already", where="database", remedy="restore into an empty database", code="exists"
            )


def _migrate_to(store: Store, backup: Backup) -> None:
    found = revisions(store)
    if found.current not in (None, backup.revision):
        raise RefusedError(
            f"has tables of revision {found.current}; the backup is of {backup.revision}",
            where="database",
            remedy="restore into an empty database",
            code="exists",
        )
    if found.current is None and not any(each.split()[0] == backup.revision for each in found.pending):
        raise InvalidError(
            f"its tables are of revision {backup.revision}, which a newer version made",
            where="backup",
            remedy="use the version of the software that made it, or a newer one",
            code="database-too-new",
        )
    migrate(store, backup.revision)


def _check_kept(
    signed: Checkpoint, kept: Sequence[tuple[str, bytes]], log_keys: LogKeys
) -> list[tuple[str, Checkpoint]]:
    opened = [(origin, open_checkpoint(note, log_keys)) for origin, note in kept]
    for origin, checkpoint in opened:
        if checkpoint.size > signed.size:
            raise RefusedError(
                f"a tree of {checkpoint.size} leaves was seen; the backup ends at {signed.size}, and signing "
                "from there would fork the log",
                where=origin,
                remedy="restore a newer backup; if none is left, keep this one to read, and begin a new log",
                code="log-rolled-back",
            )
    return opened


def _check_extends(connection: Connection, signed: Checkpoint, origin: str, checkpoint: Checkpoint) -> None:
    reader = TileReader(queries.tile_fetcher(connection), signed.size)
    if checkpoint.size and reader.root(checkpoint.size) != checkpoint.root:
        raise CorruptError(
            f"the tree of {checkpoint.size} leaves is another one than was seen",
            where=origin,
            remedy="do not serve this backup: it is of another history",
            code="inconsistent-log",
        )
