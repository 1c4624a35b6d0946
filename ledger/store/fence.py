"""The fence: what makes many replicas write one history, and none of them a second one.

Whoever appends locks the row of the log's head first and keeps it until its transaction ends, so that appends
form a queue. Nothing of an append lies outside its transaction: a replica that was paused, cut off or
declared dead commits whole or not at all. It needs no lease, which could run out while it believes in it.

A lock does not help against a database that went back: a restored copy, a standby that lacked the last
commits. So each process remembers the newest tree that it saw committed (``Seen``), and neither signs nor
serves what does not extend it.
"""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Connection, select

from ledger.core.errors import CorruptError
from ledger.core.merkle import EMPTY_ROOT
from ledger.core.tiles import TileReader
from ledger.store import queries
from ledger.store.tables import LogHead, table

__all__ = ["Seen", "lock_head"]

_IDLE_MS = 20_000
"""A transaction that does nothing for so long is ended by PostgreSQL: its process hangs, others wait."""
_LOCK_TIMEOUT_MS = 40_000
"""How long an append waits for the others: longer than a hanging one is let live."""


def lock_head(connection: Connection) -> Any:
    """Lock the head's row until the transaction ends; the row, as it is once it is ours."""
    if connection.dialect.name == "postgresql":
        # One message: three statements cost no more than one.
        cursor = connection.connection.cursor()
        cursor.execute(
            f"SET LOCAL idle_in_transaction_session_timeout = {_IDLE_MS}; "
            f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}"
        )
    return connection.execute(select(table(LogHead)).with_for_update()).one()


class Seen:
    """The newest tree that this process saw committed. ``_size`` and ``_root`` are guarded by ``_lock``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._size = 0
        self._root = EMPTY_ROOT

    @property
    def size(self) -> int:
        """Its leaves. To be read before a snapshot is taken: the snapshot then has at least as many."""
        return self._size

    def admit(self, connection: Connection, size: int, root: bytes, *, at_least: int) -> None:
        """Check that a committed tree extends the newest seen, and remember it if it is newer.

        Args:
            connection: the snapshot that the tree was read from.
            size: its leaves.
            root: its hash.
            at_least: ``size`` of this object before the snapshot was taken.

        Raises:
            CorruptError: the database went back, or has another history.
        """
        if size < at_least:
            raise CorruptError(
                f"the database ends at {size}, but a tree of {at_least} leaves was committed before",
                where="log_head",
                remedy="stop all replicas; the database went back to an older state: restore the newest",
                code="log-rolled-back",
            )
        with self._lock:
            seen, seen_root = self._size, self._root
        if size < seen:
            return  # somebody else saw a newer one while this snapshot was read
        if seen and size > seen:
            old = TileReader(queries.tile_fetcher(connection), size).root(seen)
        else:
            old = root if seen else EMPTY_ROOT
        if old != seen_root:
            raise CorruptError(
                f"the tree of {seen} leaves is not the one that was committed before",
                where="log_head",
                remedy="stop all replicas: the database has another history; audit it, restore a good copy",
                code="inconsistent-log",
            )
        self.committed(size, root)

    def committed(self, size: int, root: bytes) -> None:
        """Remember a tree that is known to extend the newest seen."""
        with self._lock:
            if size > self._size:
                self._size, self._root = size, root
