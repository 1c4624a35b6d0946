"""The sequencer: the one place where the log grows.

A thread takes all statements that wait and appends them in one transaction (group commit), so that many
small writers share one disk flush. A caller's future resolves only after the commit: what was acknowledged is
durable. The checkpoint is published after that, so nothing is ever published that a crash could undo.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from sqlalchemy import Connection, insert, select

from ledger.core.errors import RefusedError, TallystickError, UnavailableError
from ledger.core.keys import PublicKey, Signer
from ledger.core.log_keys import log_verifier_key
from ledger.core.merkle import EMPTY_ROOT
from ledger.core.statements import check_issuer_id
from ledger.store import queries
from ledger.store._tip import Tip, catch_up, load_tip
from ledger.store._transaction import Item, Outcome, OwnStatement, append_group
from ledger.store._write import Log, Registration
from ledger.store.acts import OPERATOR, change_issuer_key
from ledger.store.engine import Store
from ledger.store.fence import Seen, lock_head
from ledger.store.log_keys import check_log_key, frozen, key_change, log_verifier_keys
from ledger.store.prepare import Prepared
from ledger.store.published import PUBLISH_INTERVAL_S, Publisher
from ledger.store.startup import check_consistent, check_durable, settle
from ledger.store.tables import LogHead, table

__all__ = ["Commit", "Registration", "Sequencer", "create_log", "log_verifier_key"]

_logger = logging.getLogger(__name__)

MAX_GROUP_STATEMENTS = 1_024
MAX_GROUP_RECORDS = 65_536
"""Bounds on one transaction: beyond them a longer one saves nothing and delays its first statement."""
MAX_WAITING = 4_096
"""Statements that may wait. More than this and callers are told to come back."""

_Work: TypeAlias = tuple[Item, "Future[Registration]"]


@dataclass(frozen=True)
class Commit:
    """What one transaction did, for metrics."""

    statements: int
    records: int
    refused: int
    tree_size: int
    seconds: float


def create_log(store: Store, log_key: Signer, origin: str) -> None:
    """Make an empty log and append its genesis: the statement that names the log's own key.

    Leaf 0 lets an auditor who holds the log's key alone learn every other key from the log; and, since the
    tree then never has one leaf when somebody else's statement comes, each receipt has a path, as the CDDL of
    RFC 9942 demands.

    Raises:
        RefusedError: the store has a log already.
    """
    check_issuer_id(origin, what="origin")
    log_verifier_key(origin, log_key.public)
    with store.write() as connection:
        if connection.execute(select(table(LogHead))).one_or_none() is not None:
            raise RefusedError("there is a log in this database already", where="log_head", code="exists")
        connection.execute(
            insert(table(LogHead)).values(id=1, origin=origin, size=0, root=EMPTY_ROOT, checkpoint="")
        )
        genesis = OwnStatement(key_change("add", origin, log_key.public))
        tip = load_tip(connection)
        _, outcomes, _ = append_group(
            connection, Log(origin, log_key), tip, [genesis], now_s=int(time.time())
        )
        if isinstance(outcomes[0], TallystickError):
            raise outcomes[0]


class Sequencer:
    """Appends statements to the log of one store.

    Several may append to one log, each in a process of its own: see ``fence``. ``_waiting`` and ``seen`` are
    shared, thread-safe; ``_tip`` and ``_publisher`` are owned by the sequencer's thread.

    Args:
        store: the open, migrated store with a log in it.
        log_key: the log's key in force.
        beside: keys that it took over from and that sign checkpoints too, for who knows these alone.
        published: file that holds the checkpoint last published. Outside the database, so that a
            database restored from an older copy is noticed at the next start.
        observe: called after each transaction, on the sequencer's thread.
    """

    def __init__(
        self,
        store: Store,
        log_key: Signer,
        *,
        beside: Sequence[Signer] = (),
        published: Path | None = None,
        observe: Callable[[Commit], None] | None = None,
    ) -> None:
        self._store = store
        self._published = published
        self._observe = observe
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._tip: Tip | None = None
        self._thread: threading.Thread | None = None
        self.seen = Seen()
        self._closed = threading.Event()
        with store.read() as connection:
            self.log = Log(queries.log_head(connection).origin, log_key, tuple(beside))
            known = log_verifier_keys(connection)
        self.verifier_key = log_verifier_key(self.log.origin, log_key.public)
        self.verifier_keys = known if self.verifier_key in known else (self.verifier_key, *known)
        """All that the log has had, the newest first."""
        self._publisher = Publisher(published, self.verifier_keys)

    def start(self) -> None:
        """Compare database, tiles and published checkpoint, then begin to append.

        Raises:
            CorruptError: they contradict each other; ``where`` names what.
            UnavailableError: the database server cannot keep what it acknowledges.
        """
        settle(self._store)
        with self._store.read() as connection:
            check_durable(connection)
            if frozen(connection) is None:  # a frozen log is served, with whichever of its keys
                check_log_key(connection, self.log)
        tree = check_consistent(self._store, self.verifier_keys, self._published)
        self.seen.committed(tree.size, tree.root)
        self._thread = threading.Thread(target=self._run, name="tallystick-sequencer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Append what waits, then stop. Later submissions are refused."""
        if self._thread is not None and not self._closed.is_set():
            self._closed.set()
            self._waiting.put(None)
            self._thread.join()

    def submit(self, item: Prepared) -> Future[Registration]:
        """Queue a statement.

        Returns:
            A future with the registration, or the error that refused it.

        Raises:
            UnavailableError: too many are waiting, or the sequencer is stopped.
        """
        return self._enqueue(item)

    def log_own(self, statement: OwnStatement) -> Future[Registration]:
        """Log what the log itself says, and do what it says in the same transaction."""
        return self._enqueue(statement)

    def add_key(
        self,
        issuer: str,
        key: PublicKey,
        *,
        rotate: bool = False,
        tenant: str | None = None,
        invite: str | None = None,
        deed: Callable[[Connection], None] | None = None,
        by: str = OPERATOR,
    ) -> Future[Registration]:
        """Log that ``issuer`` signs with ``key`` from now on. See ``change_issuer_key``."""
        self._check_not_own(issuer)
        action: Literal["rotate", "add"] = "rotate" if rotate else "add"
        return self._enqueue(
            change_issuer_key(action, issuer, key, tenant=tenant, invite=invite, deed=deed, by=by)
        )

    def revoke_key(
        self, issuer: str, key: PublicKey, *, reason: str | None = None, by: str = OPERATOR
    ) -> Future[Registration]:
        """Log that ``key`` of ``issuer`` is refused from now on."""
        self._check_not_own(issuer)
        return self._enqueue(change_issuer_key("revoke", issuer, key, reason=reason, by=by))

    def _check_not_own(self, issuer: str) -> None:
        """The log's key comes with its genesis and stays: receipts would lose their signer."""
        check_issuer_id(issuer)
        if issuer == self.log.origin:
            raise RefusedError(
                "this name is the log's own",
                where=issuer,
                remedy="choose another issuer name",
                code="bad-issuer-name",
            )

    def _enqueue(self, item: Item) -> Future[Registration]:
        if self._thread is None or self._closed.is_set():
            raise UnavailableError("the ledger is stopping", remedy="send it again later", code="stopping")
        if self._waiting.qsize() >= MAX_WAITING:
            raise UnavailableError(
                f"{MAX_WAITING} statements are waiting already",
                remedy="send it again later",
                code="overloaded",
            )
        future: Future[Registration] = Future()
        self._waiting.put((item, future))
        return future

    # --- the sequencer's thread ---

    def _run(self) -> None:
        stopping = False
        while not stopping:
            try:
                first = self._waiting.get(timeout=PUBLISH_INTERVAL_S if self._publisher.waiting else None)
            except queue.Empty:
                self._publisher.flush()
                continue
            group: list[_Work] = []
            records = 0
            work: _Work | None = first
            while True:
                if work is None:
                    stopping = True
                    break
                group.append(work)
                item = work[0]
                records += len(item.records.ids) if isinstance(item, Prepared) and item.records else 0
                if len(group) >= MAX_GROUP_STATEMENTS or records >= MAX_GROUP_RECORDS:
                    break
                try:
                    work = self._waiting.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._append(group)
        self._publisher.flush()
        while True:  # whoever slipped in while we stopped must not wait for ever
            try:
                late = self._waiting.get_nowait()
            except queue.Empty:
                return
            if late is not None:
                late[1].set_exception(UnavailableError("the ledger is stopping", code="stopping"))

    def _append(self, group: list[_Work]) -> None:
        begun = time.perf_counter()
        # From here on a caller cannot cancel: either it was cancelled in time, or it gets its answer.
        group = [work for work in group if work[1].set_running_or_notify_cancel()]
        if not group:
            return
        items = [item for item, _ in group]
        try:
            outcomes, checkpoint, size = self._transact(items)
        except Exception as error:
            if _is_unconfirmed(error):
                self._store.failed.set()
            self._tip = None  # whatever happened, read it afresh
            if isinstance(error, TallystickError):  # it says itself what is wrong, and where
                _logger.error("appending %d statements failed; none was logged: %s", len(items), error)
            else:
                _logger.exception("appending %d statements failed; none was logged", len(items))
                error = _unavailable(error)
            for _, future in group:
                future.set_exception(error)
            return
        if checkpoint is not None:
            self._publisher.publish(checkpoint)
        if self._observe is not None:
            fresh = [
                item
                for item, out in zip(items, outcomes, strict=True)
                if isinstance(out, Registration) and out.fresh
            ]
            records = sum(len(i.records.ids) for i in fresh if isinstance(i, Prepared) and i.records)
            refused = sum(isinstance(out, TallystickError) for out in outcomes)
            seconds = time.perf_counter() - begun
            with contextlib.suppress(Exception):
                self._observe(Commit(len(fresh), records, refused, size, seconds))
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, TallystickError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _transact(self, items: list[Item]) -> tuple[list[Outcome], bytes | None, int]:
        at_least = self.seen.size
        with self._store.write() as connection:
            head = lock_head(connection)
            tip = self._tip
            if tip is None or (tip.size, tip.root) != (head.size, head.root):
                self.seen.admit(connection, head.size, head.root, at_least=at_least)
                tip = load_tip(connection) if tip is None else catch_up(connection, tip, head)
                check_log_key(connection, self.log)  # another process may have rotated it, or frozen the log
            tip, outcomes, checkpoint = append_group(connection, self.log, tip, items, now_s=int(time.time()))
        self._tip = tip  # only after the commit
        self.seen.committed(tip.size, tip.root)
        return outcomes, checkpoint, tip.size


def _is_unconfirmed(error: Exception) -> bool:
    """Whether SQLite met an I/O error: it may show pages that the disk did not confirm.

    A full disk is none: the transaction is undone. PostgreSQL shows nothing that is not flushed, and restarts
    when a flush fails.
    """
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_IOERR


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(
        "the database did not say that it took it",
        where=type(getattr(error, "orig", error)).__name__,
        remedy="send it again: if it was logged after all, that gives its receipt",
        code="storage-failed",
    )
