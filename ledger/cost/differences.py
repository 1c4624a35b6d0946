"""What a reconciliation finds: differences by class, and what was compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CLASSES", "Compared", "Difference", "Reconciliation"]

CLASSES = {
    "missing": "usage was logged, and there is no line for it",
    "double": "a line is there again",
    "wrong-day": "a line stands for another day than its tokens were logged on",
    "wrong-model": "a line stands for another model than its tokens were logged for",
    "wrong-quantity": "a line counts something else than was logged",
    "unlogged": "a line charges for what was not logged",
    "wrong-rate": "a line's amount is not its quantity times the price book's rate",
    "wrong-amount": "lines that tell no quantities charge something else than the logged usage costs",
    "other-currency": "a line is in another currency than the price book",
}
"""What can be wrong, in the order of the table."""


@dataclass(frozen=True)
class Difference:
    """One thing that is wrong.

    Attributes:
        what: one of ``CLASSES``.
        model: as the log or the price book names it.
        from_us: beginning of the period that it is about.
        until_us: its end, exclusive.
        lines: numbers of the invoice's lines.
        billed: counts as billed, by kind; ``cost_nano`` where only amounts are told.
        logged: counts as logged, by the same kinds.
        amount_nano: what is charged too much, negative if too little; None where no rate is known.
        currency: of that.
        belongs_us: for a wrong day, the beginning of the period that the line belongs to.
        belongs_to: for a wrong model, the right one.
        first: for a double line, the line that it repeats.
        expected_nano: for a wrong rate or amount, what it would be.
    """

    what: str
    model: str
    from_us: int
    until_us: int
    lines: tuple[int, ...] = ()
    billed: Mapping[str, int] = field(default_factory=dict)
    logged: Mapping[str, int] = field(default_factory=dict)
    amount_nano: int | None = None
    currency: str | None = None
    belongs_us: int | None = None
    belongs_to: str | None = None
    first: int | None = None
    expected_nano: int | None = None


@dataclass(frozen=True)
class Compared:
    """One model and period, billed and logged. Counts by kind; costs in billionths of ``currency``."""

    model: str
    from_us: int
    until_us: int
    lines: int
    billed: Mapping[str, int]
    logged: Mapping[str, int]
    billed_nano: int | None
    expected_nano: int | None
    currency: str | None


@dataclass(frozen=True)
class Reconciliation:
    """What came of it.

    Attributes:
        differences: what is wrong; empty if all is right.
        compared: each model and period.
        from_us: beginning of what was compared.
        until_us: its end, exclusive.
        outside: lines that are not wholly within that, and were left out.
        unpriced: lines with an amount whose rate no book has, so that it was not checked.
        estimated: (model, from_us, until_us) that differ by no more than their estimated token counts.
        attributed: whether requests count on the day that they ``started`` or ``ended``.
        outside_log: lines for times that the log's export does not hold, left out too.
        dropped: records that issuers said they lost, in that period.
    """

    differences: tuple[Difference, ...]
    compared: tuple[Compared, ...]
    from_us: int
    until_us: int
    outside: tuple[int, ...] = ()
    unpriced: tuple[int, ...] = ()
    estimated: tuple[tuple[str, int, int], ...] = ()
    attributed: str = "started"
    outside_log: tuple[int, ...] = ()
    dropped: int = 0
