"""Owns which generations are in flight: begun, and neither recorded nor abandoned yet."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ledger.core.errors import InvalidError
from ledger.emit.ids import RecordIds, is_of_lineage, made_us

__all__ = ["ABANDONED", "LONGEST_S", "LOST", "Began", "Flights", "Mark"]

LONGEST_S = 86_400.0
"""What has been in flight for longer is given up: nobody will tell its end. A day, as times that span more
give a record no energy either (``energising``)."""

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

    def give_up(self, now_ns: int) -> list[str]:
        """Let go of what has been in flight for longer than ``LONGEST_S``, and return its ids.

        Args:
            now_ns: a steady time; all that was reported by then has landed or ended here.
        """
        before_ns = now_ns - int(LONGEST_S * 1e9)
        overdue = []
        for id, began in self._open.items():  # in the order in which they began, but for some microseconds
            if began.stamp_ns >= before_ns:
                break
            overdue.append(id)
        for id in overdue:
            del self._open[id]
        return overdue

    def gave_up(self, id: str) -> bool:
        """Whether what is told of ``id`` comes after it was given up.

        Told by the time in the id, so that nothing is kept of what was given up. By that alone, an old id
        that was recorded before looks the same; a second record of it is as little a loss.
        """
        if id in self._open:
            return False
        try:
            return self._ids.gave(id) and self._ids.now_us() - made_us(id) >= LONGEST_S * 1e6
        except (AttributeError, ValueError):  # it is no id
            return False

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
