"""The rule by which corrections change what a record says, in plain Python: for every reader the same.

A correction counts where its issuer is the record's own and ``record_hash`` is the record's. Later ones (by
leaf index) win, figure by figure; energy is restated whole, and a range of carbon falls with the figure that
it belonged to. The record's bytes never change: this makes a view, beside which the old figures stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from ledger.core.records import Record
from ledger.core.statements import Correction

__all__ = ["RESTATED", "Restated", "applies", "restate"]

RESTATED = ("energy", "carbon_ng", "carbon_market_ng", "embodied_ng", "water_nl", "cost_nano")
"""What a correction can restate, by the names that record and correction share."""


@dataclass(frozen=True)
class Restated:
    """A record with its corrections in place.

    Attributes:
        record: the view. Not to be encoded as a record: its hash would be another.
        logged: the record as it was logged.
        changed: names of ``RESTATED`` that a correction states, in that order.
        reasons: of the corrections that count, oldest first.
    """

    record: Record
    logged: Record
    changed: tuple[str, ...]
    reasons: tuple[str, ...]


def applies(
    correction: Correction, issuer: str, record: Record, record_hash: str, record_issuer: str
) -> bool:
    """Whether ``correction``, said by ``issuer``, counts for a record."""
    return (
        issuer == record_issuer and correction.record == record.id and correction.record_hash == record_hash
    )


def restate(record: Record, corrections: Iterable[tuple[int, Correction]]) -> Restated:
    """The view of ``record`` under corrections that count, each with its leaf index."""
    changes: dict[str, Any] = {}
    reasons = []
    for _, correction in sorted(corrections, key=lambda each: each[0]):
        reasons.append(correction.reason)
        for name in RESTATED:
            value = getattr(correction, name)
            if value is not UNSET:
                changes[name] = value
    changed = tuple(name for name in RESTATED if name in changes)
    if "carbon_ng" in changes:
        changes |= {"carbon_low_ng": UNSET, "carbon_high_ng": UNSET}
    view = msgspec.structs.replace(record, **changes) if changes else record
    return Restated(view, record, changed, tuple(reasons))
