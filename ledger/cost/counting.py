"""Counts of an invoice's lines and of logged usage, by the kinds of tokens that lines tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ledger.cost.invoices import KINDS, Line
from ledger.cost.matching import Cell, Vector
from ledger.cost.usage import LoggedUsage

__all__ = ["counts_of", "is_estimate", "kinds_of", "kinds_together", "positive", "within"]


def kinds_of(lines: Iterable[Line]) -> tuple[str, ...]:
    """The kinds to compare: those that lines tell; who charges by token charges input and output."""
    told = {kind for line in lines for kind, _ in line.quantities}
    if told - {"requests", "tokens"} and "tokens" not in told:
        told |= {"input", "output"}
    return tuple(kind for kind in KINDS if kind in told and (kind != "cache_write" or "input" not in told))


def counts_of(line: Line, group: tuple[str, ...]) -> tuple[int, ...]:
    """The line's counts of the kinds in ``group``; what was written to a cache is input."""
    told = dict(line.quantities)
    if "input" in group:
        told["input"] = told.get("input", 0) + told.get("cache_write", 0)
    return tuple(told.get(kind, 0) for kind in group)


def is_estimate(cell: Cell, estimated: Vector) -> bool:
    """Whether a cell differs by no more than half of its estimated counts."""
    rest = zip(cell.billed, cell.logged, estimated, strict=True)
    return all(abs(billed - logged) <= unsure // 2 for billed, logged, unsure in rest)


def kinds_together(kinds: tuple[str, ...], lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """Kinds that lines tell together belong together."""
    groups = [{kind} for kind in kinds]
    for line in lines:
        told = {"input" if kind == "cache_write" else kind for kind, _ in line.quantities} & set(kinds)
        joined = [group for group in groups if group & told]
        if len(joined) > 1:
            groups = [group for group in groups if not group & told] + [set().union(*joined)]
    return sorted(tuple(kind for kind in kinds if kind in group) for group in groups)


def within(usage: Iterable[LoggedUsage], period: tuple[int, int]) -> list[LoggedUsage]:
    """The usage of a period."""
    return [each for each in usage if period[0] <= each.at_us < period[1]]


def positive(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts that are not zero."""
    return {kind: count for kind, count in counts.items() if count}
