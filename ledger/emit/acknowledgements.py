"""Makes acknowledgements: a customer countersigns statements and their receipts. Both halves of the stick."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from msgspec import UNSET

from ledger.core.statements import Acknowledgement
from ledger.emit.submission import UNPLACED

__all__ = ["acknowledgements"]


def acknowledgements(
    seen: Iterable[tuple[bytes, bytes]], *, note: str | None = None
) -> list[Acknowledgement]:
    """One for each statement (leaf hash) and its receipt that were seen, to be given to ``submit``.

    Only verified receipts should be acknowledged: that is what it says.
    """
    return [
        Acknowledgement(
            statement=leaf.hex(),
            receipt=hashlib.sha256(receipt).hexdigest(),
            note=UNSET if note is None else note,
            **UNPLACED,
        )
        for leaf, receipt in seen
    ]
