"""Owns how an amount is divided: between weights, and between the generations that share a machine.

Both divisions are exact in integers, so that what the records of a window state adds up to what the window
used, and never to more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ledger.core.errors import InvalidError

__all__ = ["Share", "SharedMeter", "split_exactly"]

_SCALE = 1 << 20
"""Sub-units of the meter's shared value: what a division drops stays below a millionth of a unit."""


def split_exactly(total: int, weights: Sequence[int]) -> list[int]:
    """Divide ``total`` in proportion to ``weights`` by the largest-remainder method.

    Each part is its exact share rounded down; the units left over go to the largest remainders, and among
    equal remainders to the earlier position. If all weights are zero the parts are equal by the same rule.

    Returns:
        One part for each weight, in order; their sum is ``total``.

    Raises:
        InvalidError: ``total`` or a weight is negative, or there is no weight to receive a ``total``.
    """
    if total < 0 or any(weight < 0 for weight in weights):
        raise InvalidError("an amount and its weights cannot be negative", code="bad-weights")
    if not weights:
        if total:
            raise InvalidError("there is nothing to divide the amount between", code="bad-weights")
        return []
    whole = sum(weights)
    if whole == 0:
        weights = [1] * len(weights)
        whole = len(weights)
    products = [total * weight for weight in weights]
    parts = [product // whole for product in products]
    left = total - sum(parts)
    if left:
        remainders = [product % whole for product in products]
        # Sorting keeps equals in their order, in reverse too.
        for position in sorted(range(len(parts)), key=remainders.__getitem__, reverse=True)[:left]:
            parts[position] += 1
    return parts


@dataclass
class Share:
    """One generation's membership in a ``SharedMeter``, which alone changes it."""

    joined_at: int
    amount: int | None = None


class SharedMeter:
    """Divides a growing counter (time, energy) equally between whoever is active while it grows.

    The rule: each increase of the counter is divided by the number of generations active during it. A
    generation alone on the machine gets all of it; with four parallel slots busy, each gets a quarter. So
    the shares of all generations sum to what the counter gained while at least one was active (to within
    one unit for each of them), and what it gained while none was is nobody's: idle is not attributed.

    This is processor sharing in virtual time: one running value, the sum of increase / active, whose
    difference between joining and leaving is a generation's share. It costs the same for any number of slots.
    """

    def __init__(self, read: Callable[[], int]) -> None:
        """Args: ``read`` returns the counter, which must not fall."""
        self._read = read
        self._lock = threading.RLock()  # guards all that follows; a finalizer may leave while we join
        self._active = 0
        self._last = 0
        self._virtual = 0

    def join(self) -> Share:
        """Start a generation's share."""
        with self._lock:
            self._advance()
            self._active += 1
            return Share(self._virtual)

    def leave(self, share: Share) -> int:
        """End it and return its amount. A second call returns the same amount."""
        with self._lock:
            if share.amount is None:
                try:
                    self._advance()
                finally:  # an unreadable counter must not leave a ghost that dilutes everybody's share
                    self._active -= 1
                share.amount = (self._virtual - share.joined_at) // _SCALE
            return share.amount

    def _advance(self) -> None:
        now = self._read()
        if self._active and now > self._last:
            self._virtual += (now - self._last) * _SCALE // self._active
        self._last = now
