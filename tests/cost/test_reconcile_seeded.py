"""Errors seeded at random into invoices of random logs: all of them are found, and nothing else."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.cost.differences import Difference, Reconciliation
from ledger.cost.invoices import read_invoice
from ledger.cost.reconcile import reconcile
from tests.cost.invoices import Case, random_case, seed_errors, utc


def reconciled(case: Case) -> Reconciliation:
    invoice = read_invoice(case.csv(), zone=case.zone)
    low, high = case.period
    return reconcile(invoice, case.usage, [case.book], zone=case.zone, from_us=low, until_us=high)


def shown(found: Difference, case: Case) -> tuple[object, ...]:
    return found.what, found.model, utc(found.from_us).astimezone(case.zone).date(), found.lines


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64))
def test_right_invoices_have_no_difference(seed: int) -> None:
    case = random_case(Random(seed))
    if case.rows:
        result = reconciled(case)
        assert [shown(each, case) for each in result.differences] == []
        assert result.outside == result.unpriced == result.estimated == ()


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64))
def test_all_seeded_errors_are_found_and_no_other(seed: int) -> None:
    chance = Random(seed)
    case = random_case(chance)
    seed_errors(case, chance, most=4)
    if not case.rows:
        return
    result = reconciled(case)
    lines = {row.key: row.line for row in case.rows}
    left = list(result.differences)
    for each in sorted(case.seeded, key=lambda each: not each.rows):  # what names lines first
        named = {lines[row] for row in each.rows}
        match = [
            found
            for found in left
            if found.what in each.what
            and found.model == each.model
            and utc(found.from_us).astimezone(case.zone).date() == each.day
            and {*found.billed, *found.logged} & each.kinds
            and (not named or set(found.lines) & named)
        ]
        assert match, (each, [shown(found, case) for found in result.differences])
        found = match[0]
        left.remove(found)
        if each.belongs is not None:
            assert found.belongs_us is not None
            assert utc(found.belongs_us).astimezone(case.zone).date() == each.belongs
        if found.what == "double":
            assert {*found.lines, found.first} == named
    assert [shown(found, case) for found in left] == []
