"""Owns the thread that answers for budgets: it reserves, counts what was logged, and notes alerts.

It takes all that waits and answers it in one transaction, under a lock that all replicas share: two
requests never get the same room. Each transaction first counts what was logged since the last one, so that a
request is held against all that is in the log when it asks.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy.exc import SQLAlchemyError

from ledger.core.errors import TallystickError, UnavailableError
from ledger.service.budget_counting import Answer, Check, Count, catch_up
from ledger.store import Store
from ledger.store import budgets as rows
from ledger.store.budgets import Alert

__all__ = ["BudgetKeeper"]

_log = logging.getLogger(__name__)

MAX_GROUP = 512
MAX_WAITING = 4_096
"""Requests that may wait. More than this and callers are told to come back."""
_COUNT_EVERY_S = 0.25
"""How long logged records may wait to be counted where nobody asks."""
_LOOK_EVERY_S = 5.0
"""How long a budget that another process set may go unnoticed where nobody asks."""


@dataclass(frozen=True)
class _Release:
    records: tuple[str, ...]
    tenant: str | None


_Work: TypeAlias = "tuple[Check | _Release, Future[Any]]"


class BudgetKeeper:
    """Answers checks and counts records. Its thread alone touches the database; ``submit`` only queues.

    Args:
        store: where the budgets are.
        clock: tells Unix seconds.
        noted: is told each new alert, on the keeper's thread, after it is in the database.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
        noted: Callable[[Sequence[Alert]], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._noted = noted
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._grown = threading.Event()
        self._grown.set()  # what was logged while no keeper ran
        self._any = True

    def start(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=self._run, name="tallystick-budgets", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then stop."""
        if self._thread is not None and not self._closed.is_set():
            self._closed.set()
            self._waiting.put(None)
            self._thread.join()

    def log_grew(self) -> None:
        """Records were logged: they are counted soon."""
        if not self._grown.is_set():
            self._grown.set()
            self._waiting.put(None)

    def budgets_changed(self) -> None:
        """A budget was set: there is something to count."""
        self._any = True
        self.log_grew()

    def check(self, check: Check) -> Future[Answer]:
        """Ask for room."""
        return self._enqueue(check)

    def release(self, records: Iterable[str], *, tenant: str | None = None) -> Future[None]:
        """Give back what requests without a record reserved; for a ``tenant``, not what is another's."""
        return self._enqueue(_Release(tuple(records), tenant))

    def _enqueue(self, item: Check | _Release) -> Future[Any]:
        if self._thread is None or self._closed.is_set():
            raise UnavailableError("the service is stopping", code="stopping")
        if self._waiting.qsize() >= MAX_WAITING:
            raise UnavailableError(f"{MAX_WAITING} requests are waiting already", code="overloaded")
        future: Future[Any] = Future()
        self._waiting.put((item, future))
        return future

    # --- the keeper's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        counted = looked = time.monotonic() - _LOOK_EVERY_S
        stopping = False
        while not stopping:
            next_s = looked + _LOOK_EVERY_S
            if self._any and self._grown.is_set():
                next_s = min(next_s, counted + _COUNT_EVERY_S)
            group: list[_Work] = []
            with contextlib.suppress(queue.Empty):
                work = self._waiting.get(timeout=max(0.0, next_s - time.monotonic()))
                while True:
                    if work is None:
                        stopping = stopping or self._closed.is_set()
                    else:
                        group.append(work)
                        if len(group) >= MAX_GROUP:
                            break
                    work = self._waiting.get_nowait()
            if group or time.monotonic() >= next_s:
                self._transact(group)
                counted = looked = time.monotonic()
        while True:  # whoever slipped in while we stopped must not wait for ever
            try:
                late = self._waiting.get_nowait()
            except queue.Empty:
                return
            if late is not None:
                late[1].set_exception(UnavailableError("the service is stopping", code="stopping"))

    def _transact(self, group: list[_Work]) -> None:
        group = [work for work in group if work[1].set_running_or_notify_cancel()]
        self._grown.clear()
        try:
            outcomes, noted = self._count_and_answer([item for item, _ in group])
        except Exception as error:
            self._grown.set()
            _log.exception("counting budgets failed; nothing was reserved")
            if not isinstance(error, TallystickError | SQLAlchemyError):
                error = UnavailableError("budgets could not be counted", code="storage-failed")
            for _, future in group:
                future.set_exception(error)
            return
        if noted:
            with contextlib.suppress(Exception):
                self._noted(noted)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            future.set_result(outcome)

    def _count_and_answer(self, items: Sequence[Check | _Release]) -> tuple[list[Answer | None], list[Alert]]:
        with self._store.read() as connection:
            self._any = bool(rows.budget_rows(connection))
            if not self._any:
                return [None if isinstance(each, _Release) else Answer((), None, 0) for each in items], []
            expected = rows.next_leaf(connection)
            early, size = rows.records_between(connection, expected)  # read before the lock is held
        with self._store.write() as connection:
            first = rows.lock(connection)
            count = Count(connection, int(self._clock()))
            catch_up(count, first, (expected, early, size))
            if over := rows.expired(connection, count.now_s):
                count.release(over)
            outcomes: list[Answer | None] = []
            for item in items:
                if isinstance(item, Check):
                    outcomes.append(count.reserve(item))
                else:
                    count.release(item.records, tenant=item.tenant)
                    outcomes.append(None)
            count.uses.save()
        return outcomes, count.noted
