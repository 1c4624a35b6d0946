"""Compares ``record_index`` with the records of the log, which also shows that no record id is there twice.

Log order and id order are nearly the same, since ids begin with their time: both are read once, side by side,
and only what one side has shown and the other not yet is kept. Memory grows with how far the two orders are
apart (what issuers sent late), some 200 bytes a record, not with the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from ledger.audit.report import Findings
from ledger.audit.sources import Row
from ledger.audit.tables import PLACES_PER_LEAF, place, shown
from ledger.native import parsing as _native

__all__ = ["IndexAudit", "SeenIds"]

_DRAIN_ROWS = 4_096
_ID_BYTES = 16
_MAX_OPEN = 5_000_000
"""About 1 GB. No log that was honestly written comes near; one whose index was emptied would."""


class IndexAudit:
    """The comparison as far as it has come. Owned by the one thread that audits.

    Args:
        open_index: begins to read the table: see ``Source``.
        findings: where contradictions go.
    """

    def __init__(self, open_index: Callable[[], Callable[[int], list[Row]]], findings: Findings) -> None:
        self._open_index = open_index
        self._fetch = open_index()
        self._findings = findings
        # (id, place) that one side has and the other has not shown yet. A pair comes at most once from
        # either side - ids are the table's key, places rise in the log - so a second sight means a match.
        self._open: set[Row] = set()
        self._given_up = False

    def add(self, leaf_index: int, ids: tuple[bytes, ...], positions: tuple[int, ...] | None = None) -> None:
        """Add the record ids of one batch, and their positions if these are not all from 0 on."""
        if self._given_up:
            return
        count = len(ids)
        first = leaf_index * PLACES_PER_LEAF
        stored = self._fetch(count)
        self._findings.counts.rows += len(stored)
        places: Iterable[int] = range(first, first + count)
        if positions is not None:
            places = [first + each for each in positions]
        logged: Iterable[Row] = zip(ids, places, strict=True)
        if (
            positions is None
            and _native is not None
            and (left := _native.unmatched(ids, first, stored)) is not None
        ):
            logged, stored = left  # most rows come together with their records
        self._open.symmetric_difference_update(logged)
        self._open.symmetric_difference_update(stored)
        if len(self._open) > _MAX_OPEN:
            self._give_up(leaf_index)

    def close(self, damaged: set[int]) -> None:
        """Report what has no counterpart, but for rows that lead to the leaves ``damaged``."""
        while not self._given_up and (stored := self._fetch(_DRAIN_ROWS)):
            self._findings.counts.rows += len(stored)
            self._open.symmetric_difference_update(stored)
        if self._open:
            self._explain(damaged)

    def _explain(self, damaged: set[int]) -> None:
        """Name what is wrong with each pair that is left. Reads the table once more, to tell the sides."""
        logged, stored = set(self._open), {}
        ids = {pair[0] for pair in self._open}
        present = {}
        fetch = self._open_index()
        while rows := fetch(_DRAIN_ROWS):
            for row in rows:
                if row in self._open:
                    stored[row[0]] = row[1]
                    logged.discard(row)
                elif row[0] in ids:
                    present[row[0]] = row[1]
        for each, where in sorted(logged, key=lambda pair: pair[1]):
            record = f"statement[leaf_index={where // PLACES_PER_LEAF}].records[{where % PLACES_PER_LEAF}]"
            if each in stored:
                self._findings.add(
                    "row-differs",
                    place("record_index", each, column="place"),
                    f"is {shown(stored.pop(each))}, but the record is {record}, place {where}",
                )
            elif each in present:
                self._findings.add(
                    "duplicate-record",
                    record,
                    f"has the id {each.hex()}, which the record at place {shown(present[each])} has too",
                    "one of the two was logged by going past the ledger",
                )
            else:
                self._findings.add(
                    "row-missing", place("record_index", each), f"the id of {record} is not in the table"
                )
        for each, where in stored.items():
            if not (isinstance(where, int) and where // PLACES_PER_LEAF in damaged):
                self._findings.add(
                    "row-extra",
                    place("record_index", each),
                    f"no such record is at place {shown(where)}",
                )

    def _give_up(self, leaf_index: int) -> None:
        self._findings.add(
            "row-differs",
            "record_index",
            f"differs from the records up to leaf {leaf_index} in more than {_MAX_OPEN} rows",
            "rebuild the table from the log",
        )
        self._findings.gap("record_index", f"too many differences; not compared beyond leaf {leaf_index}")
        self._given_up = True
        self._open.clear()


class SeenIds:
    """Finds record ids that come twice where no index can be compared: a service does not show its own.

    Memory: 16 bytes a record. Owned by the one thread that audits.
    """

    def __init__(self) -> None:
        self._parts = [bytearray() for _ in range(256)]  # by the last byte, which is random in a UUIDv7

    def add(self, ids: Iterable[bytes]) -> None:
        """Add the record ids of one batch, 16 bytes each."""
        parts = self._parts
        for each in ids:
            parts[each[-1]] += each

    def close(self, findings: Findings) -> None:
        """Report the ids that came more than once."""
        for part in self._parts:
            ids = [bytes(part[at : at + _ID_BYTES]) for at in range(0, len(part), _ID_BYTES)]
            if len(set(ids)) == len(ids):
                continue
            for each, count in sorted(Counter(ids).items()):
                if count > 1:
                    findings.add(
                        "duplicate-record",
                        f"record {each.hex()}",
                        f"{count} records have this id",
                        "what they report was counted more than once; ask the log's operator",
                    )
