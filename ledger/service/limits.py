"""Bounds what the service holds at once: bytes of request bodies across all connections."""

from __future__ import annotations

from ledger.core.errors import UnavailableError

__all__ = ["Budget"]


class Budget:
    """Counts bytes taken and given back. Used from the event loop alone, so it needs no lock.

    Args:
        total: how many bytes may be taken at once.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0

    def take(self, count: int) -> None:
        """Take ``count`` bytes.

        Raises:
            UnavailableError: ``overloaded``: they are not there now. One request alone always fits.
        """
        if self.taken and self.taken + count > self.total:
            raise UnavailableError(
                "request bodies fill the memory that the service may use for them",
                remedy="send again after the time that Retry-After names",
                code="overloaded",
            )
        self.taken += count

    def give(self, count: int) -> None:
        """Give ``count`` bytes back."""
        self.taken -= count
