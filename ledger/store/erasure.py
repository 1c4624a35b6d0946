"""Erasing record bytes, so that every proof of every other record stays valid.

A record's line in its batch's block becomes the line of ``core.erased``, which keeps the hash; its index row
goes, and what roll-ups and slices had of it is taken off. An ``erasure`` statement by the log says which
positions of which batch, under which rule, in the same transaction. ``purge`` then makes the database let go
of the bytes that it still has in pages it no longer uses.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET
from sqlalchemy import Connection, and_, exists, select

from ledger import zstd
from ledger.core.erased import erased_hash, erased_line
from ledger.core.errors import InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.core.merkle import leaf_hash
from ledger.core.records import Record, decode_record
from ledger.core.statements import Erasure
from ledger.store import queries
from ledger.store._sql import run, run_many
from ledger.store._transaction import OwnStatement
from ledger.store._write import Registration
from ledger.store.append import Sequencer
from ledger.store.engine import Store
from ledger.store.holds import check_not_held, holds
from ledger.store.prepare import US_PER_HOUR, ZSTD_LEVEL, rollup_sums
from ledger.store.tables import BatchSlice, StatementRow, table

__all__ = ["Erased", "Part", "Wanted", "erase", "find_records", "purge"]

MAX_IDS = 100_000
_MAX_RULE = 1024
_PAGE_BATCHES = 64
_AT_ONCE = 64
"""Statements that wait together: one transaction takes them all."""
_LOCK_WAIT_MS = 30_000
_PURGE_TRIES = 5
_REWRITTEN = ("statement", "record_index", "batch_slice", "rollup", "budget_alert", "api_key", "invite")


@dataclass(frozen=True)
class Wanted:
    """Which records: all conditions must hold. Times are about ``started_us``: from <= t < to."""

    ids: tuple[str, ...] = ()
    tenant: str | None = None
    from_us: int | None = None
    to_us: int | None = None
    others_than: frozenset[str] = frozenset()
    """Tenants whose records are not meant."""

    def check(self) -> None:
        """Refuse what would mean every record of the log, or cannot be meant.

        Raises:
            InvalidError: ``bad-parameter``.
        """
        if not self.ids and self.tenant is None and self.from_us is None and self.to_us is None:
            raise InvalidError(
                "it is not said which records",
                where="records",
                remedy="name a tenant, records or a period",
                code="bad-parameter",
            )
        if len(self.ids) > MAX_IDS:
            raise InvalidError(f"more than {MAX_IDS} records", where="ids", code="bad-parameter")
        if self.from_us is not None and self.to_us is not None and self.from_us >= self.to_us:
            raise InvalidError("the period is empty", where="from, to", code="bad-parameter")

    def means(self, record: Record) -> bool:
        """Whether a record is meant, its id aside."""
        return (
            (self.tenant is None or record.tenant == self.tenant)
            and (self.from_us is None or record.started_us >= self.from_us)
            and (self.to_us is None or record.started_us < self.to_us)
            and (record.tenant is UNSET or record.tenant not in self.others_than)
        )


@dataclass(frozen=True)
class Part:
    """Records of one batch."""

    leaf_index: int
    leaf_hash: bytes
    positions: tuple[int, ...]
    oldest_us: int
    newest_us: int


@dataclass(frozen=True)
class Erased:
    """What was done. ``held`` records were left, because a legal hold is on them."""

    records: int
    statements: int
    held: int
    first_leaf: int | None
    last_leaf: int | None


# --- finding ---------------------------------------------------------------------------------------------


def find_records(connection: Connection, wanted: Wanted, *, held: list[str] | None = None) -> Iterator[Part]:
    """The records that are meant and not erased yet, batch by batch.

    Args:
        connection: a snapshot.
        wanted: which.
        held: if given, records under a legal hold are left out, and their ids put here.

    Raises:
        InvalidError: an id is malformed, unknown, or a record's that is not meant.
    """
    wanted.check()
    in_force = holds(connection, in_force=True) if held is not None else []
    chosen: dict[int, set[int]] | None = None
    if wanted.ids:
        chosen = {}
        for each in wanted.ids:
            leaf_index, position = queries.place_of(connection, each)
            chosen.setdefault(leaf_index, set()).add(position)
    for row in _batches(connection, wanted, chosen):
        lines = queries.split_block(row.records, row.leaf_index)
        positions, times = [], []
        for position, line in enumerate(lines):
            named = chosen is not None and position in chosen[row.leaf_index]
            if (chosen is not None and not named) or erased_hash(line) is not None:
                continue
            record = decode_record(line, where=f"leaf {row.leaf_index}")
            if not wanted.means(record):
                if named:
                    raise queries.not_found("there is no such record of those meant", f"record {record.id}")
                continue
            if held is not None and any(hold.covers(record) for hold in in_force):
                held.append(record.id)
                continue
            positions.append(position)
            times.append(record.started_us)
        if positions:
            yield Part(row.leaf_index, bytes(row.leaf_hash), tuple(positions), min(times), max(times))


def _batches(connection: Connection, wanted: Wanted, chosen: dict[int, set[int]] | None) -> Iterator[Any]:
    rows, slices = table(StatementRow), table(BatchSlice)
    own = [slices.c.leaf_index == rows.c.leaf_index]  # without a slice nothing is left of it
    if wanted.tenant is not None:
        own.append(slices.c.tenant == wanted.tenant)
    query = (
        select(rows.c.leaf_index, rows.c.leaf_hash, rows.c.records)
        .where(rows.c.kind == "batch", exists().where(and_(*own)))
        .order_by(rows.c.leaf_index)
    )
    if wanted.from_us is not None:
        query = query.where(rows.c.last_us >= wanted.from_us)
    if wanted.to_us is not None:
        query = query.where(rows.c.first_us < wanted.to_us)
    if chosen is not None:
        for leaf_index in sorted(chosen):
            yield from connection.execute(query.where(rows.c.leaf_index == leaf_index)).all()
        return
    after = -1
    while page := connection.execute(query.where(rows.c.leaf_index > after).limit(_PAGE_BATCHES)).all():
        yield from page
        after = page[-1].leaf_index


# --- erasing ---------------------------------------------------------------------------------------------


def erase(
    store: Store,
    sequencer: Sequencer,
    wanted: Wanted,
    rule: str,
    *,
    leave_held: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Erased:
    """Erase records, and log which and why. What is logged is done; an error leaves the rest undone.

    Args:
        store: where they are.
        sequencer: appends to the log of this store.
        wanted: which records.
        rule: the rule under which, as the ``erasure`` statements say it. It is public: no name belongs here.
        leave_held: leave records under a legal hold; else one of them refuses all that is not yet done.
        progress: called with the number of records erased so far.

    Raises:
        InvalidError: see ``find_records``; or an unusable rule.
        RefusedError: ``legal-hold``.
    """
    if not 0 < len(rule) <= _MAX_RULE or not rule.isprintable():
        raise InvalidError("the rule is empty, too long or not printable", where="rule", code="bad-parameter")
    held: list[str] = []
    with store.read() as connection:
        parts = list(find_records(connection, wanted, held=held))
    if held and not leave_held:
        raise RefusedError(
            f"{len(held)} of these records are under a legal hold, {held[0]} among them",
            where="records",
            remedy="lift the hold first, if it no longer applies: `tallystick hold lift`",
            code="legal-hold",
        )
    records, leaves = 0, []
    for start in range(0, len(parts), _AT_ONCE):
        some = parts[start : start + _AT_ONCE]
        waiting: list[Future[Registration]] = [sequencer.log_own(_statement(part, rule)) for part in some]
        failed: TallystickError | None = None
        for part, future in zip(some, waiting, strict=True):
            try:
                leaves.append(future.result().leaf_index)
                records += len(part.positions)
            except TallystickError as error:
                failed = error
        if progress is not None:
            progress(records)
        if failed is not None:
            raise failed
    return Erased(
        records, len(leaves), len(held), leaves[0] if leaves else None, leaves[-1] if leaves else None
    )


def _statement(part: Part, rule: str) -> OwnStatement:
    def build(seq: int, prev: str | None) -> Erasure:
        return Erasure(
            seq=seq,
            issued_us=time.time_ns() // 1000,
            prev=UNSET if prev is None else prev,
            statement=part.leaf_hash.hex(),
            positions=part.positions,
            rule=rule,
        )

    return OwnStatement(build, deed=lambda connection, _: _remove(connection, part))


def _remove(connection: Connection, part: Part) -> None:
    """Take the records out of the block and of all that is derived from them.

    Raises:
        RefusedError: one of them is erased (``erased``) or held (``legal-hold``): somebody was faster.
    """
    if connection.dialect.name == "sqlite":
        run(connection, "PRAGMA secure_delete=ON")  # what is overwritten or freed is zeroed
    rows = table(StatementRow)
    query = select(rows.c.records).where(rows.c.leaf_index == part.leaf_index)
    lines = queries.split_block(connection.execute(query).scalar_one(), part.leaf_index)
    in_force = holds(connection, in_force=True)
    records = []
    for position in part.positions:
        if erased_hash(lines[position]) is not None:
            raise RefusedError(
                "one of these records was erased meanwhile",
                where=f"leaf {part.leaf_index} position {position}",
                remedy="do it again: what is erased is left out",
                code="erased",
            )
        record = decode_record(lines[position], where=f"leaf {part.leaf_index}")
        check_not_held(record, in_force)
        records.append(record)
        lines[position] = erased_line(leaf_hash(lines[position]))
    block = zstd.compress(b"".join(line + b"\n" for line in lines), level=ZSTD_LEVEL)
    run(
        connection,
        "UPDATE statement SET records = ?, records_sha256 = ? WHERE leaf_index = ?",
        (block, hashlib.sha256(block).digest(), part.leaf_index),
    )
    ids = [(bytes.fromhex(record.id.replace("-", "")),) for record in records]
    run_many(connection, "DELETE FROM record_index WHERE id = ?", ids)
    run_many(
        connection, "UPDATE budget_alert SET record = ? WHERE record = ?", [(bytes(16), *i) for i in ids]
    )
    _take_off_slices(connection, part.leaf_index, records)
    _take_off_sums(connection, records)


def _take_off_slices(connection: Connection, leaf_index: int, records: Sequence[Record]) -> None:
    counts = Counter((_tenant(record), record.deployment) for record in records)
    key = "leaf_index = ? AND tenant = ? AND deployment = ?"
    run_many(
        connection,
        f"UPDATE batch_slice SET records = records - ? WHERE {key}",  # noqa: S608 - a constant
        [(count, leaf_index, *names) for names, count in counts.items()],
    )
    run(connection, "DELETE FROM batch_slice WHERE leaf_index = ? AND records = 0", (leaf_index,))


def _take_off_sums(connection: Connection, records: Sequence[Record]) -> None:
    groups: dict[tuple[int, str, str], list[Record]] = {}
    for record in records:
        key = (record.started_us // US_PER_HOUR, _tenant(record), record.deployment)
        groups.setdefault(key, []).append(record)
    where = "WHERE hour = ? AND tenant = ? AND deployment = ?"
    for key, group in groups.items():
        row = run(connection, f"SELECT sums FROM rollup {where}", key).fetchone()  # noqa: S608 - a constant
        before = msgspec.json.decode(row[0], type=list[int])
        left = [a - b for a, b in zip(before, rollup_sums(group), strict=True)]
        if left[0]:
            text = msgspec.json.encode(left).decode()
            run(connection, f"UPDATE rollup SET sums = ? {where}", (text, *key))  # noqa: S608 - a constant
        else:
            run(connection, f"DELETE FROM rollup {where}", key)  # noqa: S608 - a constant


def _tenant(record: Record) -> str:
    return "" if record.tenant is UNSET else record.tenant


# --- letting go of the bytes -----------------------------------------------------------------------------


def purge(store: Store) -> None:
    """Make the database lose what it no longer uses: old pages, dead rows, the write-ahead log.

    The tables are written anew, which takes time and room for a copy of them and keeps writers waiting.
    PostgreSQL's own archive of its log, replicas and backups made before are beyond its reach.

    Raises:
        UnavailableError: ``not-purged``: others use the database; try again. What was erased stays erased,
            but its bytes may still be in the files.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if store.engine.dialect.name == "sqlite":
            _purge_sqlite(store)
        else:
            _purge_postgres(store)
    except SQLAlchemyError as error:
        raise _not_purged(type(getattr(error, "orig", None) or error).__name__) from None


def _purge_sqlite(store: Store) -> None:
    import sqlite3

    raw = store.engine.raw_connection()
    try:
        driver = raw.driver_connection
        assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - the dialect says so
        driver.execute("VACUUM")
        for tried in range(_PURGE_TRIES):
            busy, _, _ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
            time.sleep(0.2 * (tried + 1))
        raise _not_purged("a reader holds the write-ahead log")
    except sqlite3.Error as error:
        raise _not_purged(str(error)) from None
    finally:
        raw.close()


def _purge_postgres(store: Store) -> None:
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"SET lock_timeout = {_LOCK_WAIT_MS}")
        try:
            for name in _REWRITTEN:
                # FULL: a plain one leaves the bytes where they are until something else needs the room.
                # ANALYZE: the planner's statistics keep values, whole blocks of records among them.
                _vacuum(connection, "FULL, ANALYZE", name)
            # The statistics that these replaced. A database's owner may do so.
            _vacuum(connection, "FULL", "pg_catalog.pg_statistic")
            allowed = connection.exec_driver_sql(
                "SELECT rolsuper OR pg_has_role(current_user, 'pg_checkpoint', 'MEMBER') "
                "FROM pg_roles WHERE rolname = current_user"
            ).scalar_one()
            if allowed:
                connection.exec_driver_sql("CHECKPOINT")  # the old files are unlinked then
        finally:
            connection.exec_driver_sql("RESET lock_timeout")


def _vacuum(connection: Connection, options: str, name: str) -> None:
    """Write a table anew without its dead rows.

    Raises:
        UnavailableError: ``not-purged``: a transaction that began before they died still may see them.
    """
    dead: list[int] = []

    def heed(told: Any) -> None:
        # "2 dead row versions cannot be removed yet.", in the server's language.
        if (number := re.search("[0-9]+", told.message_detail or "")) is not None:
            dead.append(int(number[0]))

    driver: Any = connection.connection.driver_connection
    driver.add_notice_handler(heed)
    try:
        for tried in range(_PURGE_TRIES):
            dead.clear()
            connection.exec_driver_sql(f"VACUUM ({options}, VERBOSE) {name}")
            if not dead or not dead[0]:
                return
            time.sleep(0.2 * (tried + 1))
    finally:
        driver.remove_notice_handler(heed)
    raise _not_purged(f"a transaction is older than what was erased from {name}")


def _not_purged(why: str) -> UnavailableError:
    return UnavailableError(
        f"the database could not be written anew: {why}",
        where="purge",
        remedy="run `tallystick erase --purge` again when less goes on; erased records stay erased meanwhile",
        code="not-purged",
    )
