"""Owns what became of recent records: their batch, their place in it, and the receipt once it is here."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ledger.core.merkle import inclusion_path
from ledger.core.statements import SignedStatement
from ledger.emit.seal import Block

__all__ = ["Deliveries", "RecordReceipt"]

_POLL_S = 0.05


@dataclass(frozen=True)
class RecordReceipt:
    """All that shows, offline and without the ledger, that a record is in the log.

    ``record`` are its canonical bytes, ``position`` and ``path`` lead from their hash to the root in
    ``statement``, and ``receipt`` leads from that to the log's signed root, at ``leaf_index``.
    """

    record_id: str
    record: bytes
    position: int
    path: tuple[bytes, ...]
    statement: bytes
    leaf_index: int
    receipt: bytes


@dataclass
class _Batch:
    statement: SignedStatement
    ids: list[str]
    lines: list[bytes]
    hashes: list[bytes]
    leaf_index: int = -1
    receipt: bytes | None = None


class Deliveries:
    """The newest batches of this process, up to ``limit`` records. Safe to use from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()  # guards all that follows
        self._batches: OrderedDict[int, _Batch] = OrderedDict()
        self._places: dict[str, int] = {}  # record id to the seq of its batch

    def sealed(self, block: Block, statement: SignedStatement) -> None:
        """Remember a batch that was just put into the spool."""
        if not self._limit:
            return
        seq = statement.payload.seq
        with self._changed:
            self._batches[seq] = _Batch(statement, block.ids, block.lines, block.hashes)
            self._places.update(dict.fromkeys(block.ids, seq))
            while len(self._places) > self._limit and len(self._batches) > 1:
                _, oldest = self._batches.popitem(last=False)
                for record_id in oldest.ids:
                    del self._places[record_id]

    def delivered(
        self, seq: int, leaf_index: int, receipt: bytes, statement: SignedStatement | None = None
    ) -> None:
        """Note the verified receipt of the batch ``seq``; ``statement`` is what it is for.

        That differs from what was sealed if the chain had to be mended and the statement signed anew.
        """
        with self._changed:
            batch = self._batches.get(seq)
            if batch is not None and statement is not None:
                if statement.subject != batch.statement.subject:  # another batch: it names the root
                    return
                batch.statement = statement
            if batch is not None:
                batch.leaf_index, batch.receipt = leaf_index, receipt
                self._changed.notify_all()

    def find(
        self,
        record_id: str,
        timeout_s: float | None,
        fetch: Callable[[int, SignedStatement], tuple[int, bytes] | None],
    ) -> RecordReceipt | None:
        """The record's receipt, waiting for it at most ``timeout_s``.

        ``fetch`` looks for a receipt that another process left for the batch.
        """
        deadline = time.monotonic() + (timeout_s or 0.0)
        while True:
            with self._changed:
                seq = self._places.get(record_id, -1)
                batch = self._batches.get(seq)
            if batch is not None:
                if batch.receipt is None and (found := fetch(seq, batch.statement)) is not None:
                    self.delivered(seq, *found)
                if batch.receipt is not None:
                    position = batch.ids.index(record_id)
                    return RecordReceipt(
                        record_id=record_id,
                        record=batch.lines[position][:-1],
                        position=position,
                        path=tuple(inclusion_path(batch.hashes, position)),
                        statement=batch.statement.entry,
                        leaf_index=batch.leaf_index,
                        receipt=batch.receipt,
                    )
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            with self._changed:
                self._changed.wait(min(left, _POLL_S))
