"""Owns which generations are in flight: begun, and neither recorded nor abandoned yet."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ledger.core.errors import InvalidError
from ledger.emit.ids import RecordIds, is_of_lineage

__all__ = ["ABANDONED", "LOST", "Began", "Flights", "Mark"]

ABANDONED, LOST = -1, -2
"""In a mark, in the place of the input tokens: it generated nothing; its record found no room."""

Mark: TypeAlias = tuple[str, int, int | None]
"""Id, steady time in nanoseconds, and the input tokens (None: not known) or how it ended."""


class Began(NamedTuple):
    """How a generation began: its steady time, and its input tokens if they were known then."""

    stamp_ns: int
    input_tokens: int | None


class Flights:
    """Follows the marks that serving threads leave. Used by one thread.

    Args:
        ids: gave out the ids.
    """

    def __init__(self, ids: RecordIds) -> None:
        self._ids = ids
        self._open: dict[str, Began] = {}
        self._inherited: set[str] = (
            set()
        )  # begun before a fork, recorded here; as many as were in flight then

    def __len__(self) -> int:
        return len(self._open)

    def began(self, id: str, stamp_ns: int, input_tokens: int | None) -> None:
        """A generation begins."""
        self._open[id] = Began(stamp_ns, input_tokens)

    def ended(self, id: str) -> Began | None:
        """It ended without a record; None if it was not in flight."""
        return self._open.pop(id, None)

    def landed(self, id: str) -> Began | None:
        """It ended with a record. None if it began in another process, before a fork.

        Raises:
            InvalidError: it has a record already, or never began.
        """
        began = self._open.pop(id, None)
        if began is None:
            # The id counts as given here from now on, so that its record can count as safe or as lost.
            self._ids.new()
            if self._ids.gave(id) or not is_of_lineage(id) or id in self._inherited:
                raise InvalidError(
                    "no generation with this id is in flight",
                    where=str(id)[:64],
                    remedy="call begin once for each record, and record or abandon once",
                    code="not-in-flight",
                )
            self._inherited.add(id)
        return began
