"""Owns which recorded generations are a reporter's own operation, and which it bought from others.

GHG Protocol Scope 2 Guidance and Scope 3 Standard: electricity that own equipment uses is Scope 2; a service
bought from others is Scope 3, category 1. A deployment that names no ``provider`` is the reporter's own; one
that names a provider was bought there, unless the inputs file names that provider in ``own_providers``
(rented equipment under the reporter's operational control).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from msgspec import UNSET, UnsetType, structs

from ledger.export.reports import figures as fig
from ledger.export.reports.document import Figure
from ledger.export.reports.facts import Facts
from ledger.export.reports.figures import Sum
from ledger.export.reports.inputs import Asked, Inputs

__all__ = ["OWN_PROVIDERS", "RULE", "Boundary", "facility_energy", "split"]

OWN_PROVIDERS: dict[str, Asked] = {
    "own_providers": Asked(
        "providers, separated by commas, whose deployments are the reporter's own operation",
        None,
        "GHG Protocol Corporate Standard, chapter 3 (operational control)",
        needed=False,
    )
}
RULE = (
    "A recorded generation is the reporter's own operation if its deployment names no provider, or one that "
    "the inputs file lists in own_providers; all others were bought."
)


@dataclass(frozen=True)
class Boundary:
    """Totals by provider, on both sides of the boundary."""

    own: tuple[Mapping[str, Any], ...]
    bought: tuple[Mapping[str, Any], ...]
    is_own: Callable[[str | None], bool]

    def part(self, side: str, quantity: fig.Quantity) -> Sum | None:
        """The total of a side (``own`` or ``bought``). None if there are records and none states it.

        A side without any record adds nothing, so its total is zero; not so if the whole scope is empty.
        """
        rows = self.own if side == "own" else self.bought
        if not rows and (self.own or self.bought):
            return Sum(Fraction(0), Fraction(0), Fraction(0), 0, 0)
        return fig.sum_of(rows, quantity)

    def total(
        self,
        side: str,
        quantity: fig.Quantity,
        *,
        name: str,
        label: str,
        over: str,
        reference: str | UnsetType = UNSET,
    ) -> Figure:
        """A side's total as a figure; ``over`` says in words which records are on that side."""
        rows = self.own if side == "own" else self.bought
        figure = fig.derived(
            name,
            label,
            quantity.unit,
            self.part(side, quantity),
            derivation=f"sum of {quantity.column} over {over} / {quantity.divisor:,}",
            places=quantity.places,
            ranged=quantity.low is not None and bool(rows),
            reference=reference,
        )
        if rows or figure.value is UNSET:
            return figure
        return structs.replace(figure, coverage=f"the scope has none of {over}")


def split(facts: Facts, inputs: Inputs) -> Boundary:
    """The scope's records by provider, told apart."""
    listed = inputs.text("own_providers", None) or ""
    names = {name.strip() for name in listed.split(",") if name.strip()}

    def is_own(provider: str | None) -> bool:
        return provider is None or provider in names

    rows = facts.rows("provider")
    own = tuple(row for row in rows if is_own(row["provider"]))
    return Boundary(own, tuple(row for row in rows if not is_own(row["provider"])), is_own)


def facility_energy(facts: Facts, quantity: fig.Quantity, of: Callable[[str | None], bool]) -> Sum | None:
    """Energy with the site's overhead: each record's energy times the PUE of the factor set that it names.

    ``of`` chooses by provider. Records without energy or factor set are not in it.
    """
    known = facts.factor_sets()
    rows = [row for row in facts.rows("provider", "factors") if of(row["provider"])]
    return _scaled(rows, quantity, {digest: made.pue_milli for digest, made in known.items()})


def _scaled(rows: Sequence[Mapping[str, Any]], quantity: fig.Quantity, pue: Mapping[str, int]) -> Sum | None:
    made, records = None, sum(row["records"] for row in rows)
    for row in rows:
        factor = pue.get(row["factors"] or "")
        if factor is None or (found := fig.sum_of([row], quantity)) is None:
            continue
        times = Fraction(factor, 1000)
        scaled = Sum(times * found.value, times * found.low, times * found.high, found.having, 0)
        made = scaled if made is None else made + scaled
    return None if made is None else Sum(made.value, made.low, made.high, made.having, records)
