"""Reconciliation by example: what the seeded tests leave to chance, and what they do not have."""

from __future__ import annotations

from typing import Any

import pytest

from ledger.core.errors import InvalidError
from ledger.core.price_books import Rate
from ledger.cost.differences import CLASSES, Reconciliation
from ledger.cost.invoices import Invoice, Line
from ledger.cost.prices import make_price_book
from ledger.cost.reconcile import reconcile
from ledger.cost.usage import LoggedUsage

DAY = 86_400_000_000
BOOK = make_price_book(
    [Rate(model="m", input_nano_per_mtok=10**9, output_nano_per_mtok=2 * 10**9)],
    name="b",
    version="1",
    currency="USD",
    source="s",
)


def used(day: int, inputs: int, outputs: int = 0, model: str = "m", **fields: Any) -> LoggedUsage:
    known = {"version": None, "provider": None, "region": None, "longer_than": 0, "requests": 1}
    known |= {"cached_input_tokens": 0, "reasoning_tokens": 0}
    return LoggedUsage(
        at_us=day * DAY, model=model, input_tokens=inputs, output_tokens=outputs, **(known | fields)
    )


def line(
    number: int, day: int, *, days: int = 1, model: str = "m", cost: int | None = None, **counts: int
) -> Line:
    currency = None if cost is None else "USD"
    return Line(number, day * DAY, (day + days) * DAY, model, tuple(counts.items()), cost, currency)


def found(lines: list[Line], usage: list[LoggedUsage], **options: Any) -> Reconciliation:
    return reconcile(
        Invoice("plain", tuple(lines)), usage, **({"from_us": 0, "until_us": 10 * DAY} | options)
    )


def told(result: Reconciliation) -> list[tuple[object, ...]]:
    return [(each.what, each.from_us // DAY, each.lines) for each in result.differences]


def test_lines_whose_days_were_exchanged() -> None:
    result = found([line(2, 1, input=7), line(3, 0, input=5)], [used(0, 7), used(1, 5)])
    assert told(result) == [("wrong-day", 0, (3,)), ("wrong-day", 1, (2,))]


def test_a_line_for_another_model() -> None:
    usage = [used(0, 7), used(0, 5, model="n"), used(1, 1, model="n")]
    result = found([line(2, 0, input=12, model="n"), line(3, 1, input=1, model="n")], usage)
    assert {what for what, *_ in told(result)} == {"missing", "wrong-quantity"}
    result = found(
        [line(2, 0, input=5, model="n"), line(3, 0, input=7, model="n"), line(4, 1, input=1, model="n")],
        usage,
    )
    assert told(result) == [("wrong-model", 0, (3,))]
    assert result.differences[0].belongs_to == "m"


def test_a_line_that_is_there_three_times() -> None:
    lines = [line(n, 0, input=7) for n in (2, 3, 4)] + [line(5, 0, input=1)]
    assert told(found(lines, [used(0, 8)])) == [("double", 0, (3,)), ("double", 0, (4,))]
    assert told(found(lines, [used(0, 22)])) == []


def test_a_kind_without_any_line_is_missing() -> None:
    result = found([line(2, 0, output=5), line(3, 1, output=6)], [used(0, 7, 5), used(1, 0, 6)])
    assert told(result) == [("missing", 0, ())]
    assert result.differences[0].logged == {"input": 7}


def test_a_first_or_last_day_without_lines_is_missing() -> None:
    result = found([line(2, 1, input=5)], [used(0, 7), used(1, 5), used(9, 3)])
    assert told(result) == [("missing", 0, ()), ("missing", 9, ())]
    unbounded = found([line(2, 1, input=5)], [used(0, 7), used(1, 5)], from_us=None, until_us=None)
    assert told(unbounded) == []


def test_what_is_partly_outside_is_left_out() -> None:
    result = found([line(2, 0, days=2, input=5), line(3, 2, input=1)], [used(1, 5), used(2, 1)], from_us=DAY)
    assert result.outside == (2,)
    assert told(result) == [("missing", 1, ())]


def test_lines_of_a_month() -> None:
    result = found([line(2, 0, days=10, input=12)], [used(0, 7), used(9, 5)])
    assert told(result) == []
    result = found([line(2, 0, days=10, input=13)], [used(0, 7), used(9, 5)])
    assert told(result) == [("wrong-quantity", 0, (2,))]


def test_periods_that_overlap_are_refused() -> None:
    with pytest.raises(InvalidError) as caught:
        found([line(2, 0, days=10, input=12), line(3, 1, input=1)], [used(0, 7)])
    assert caught.value.code == "bad-invoice"


def test_periods_that_cut_quarters_of_an_hour_are_refused() -> None:
    odd = Line(2, 0, 2 * DAY + 60_000_000, "m", (("input", 1),))
    with pytest.raises(InvalidError):
        found([odd], [used(0, 1)])


def test_hours_are_compared_by_their_day() -> None:
    hour = DAY // 24
    lines = [Line(n + 2, n * hour, (n + 1) * hour, "m", (("input", n),)) for n in range(24)]
    assert told(found(lines, [used(0, 276)])) == []
    assert told(found(lines, [used(0, 275)])) == [("unlogged", 0, (3,))]


def test_estimated_counts_are_told_and_not_called_wrong() -> None:
    usage = [used(0, 1000, estimated_requests=1, estimated_input_tokens=200)]
    close = found([line(2, 0, input=1090)], usage)
    assert (told(close), close.estimated) == ([], (("m", 0, DAY),))
    far = found([line(2, 0, input=1101)], usage)
    assert (told(far), far.estimated) == ([("wrong-quantity", 0, (2,))], ())
    double = found([line(2, 0, input=950), line(3, 0, input=50), line(4, 0, input=50)], usage)
    assert told(double) == [("double", 0, (4,))]


def test_a_version_stands_for_its_model_and_aliases_for_any() -> None:
    usage = [used(0, 7, model="gpt", version="gpt-2026-01")]
    assert told(found([line(2, 0, input=7, model="gpt-2026-01")], usage)) == []
    other = [line(2, 0, input=7, model="GPT (2026)")]
    assert told(found(other, usage, aliases={"GPT (2026)": "gpt"})) == []
    assert [what for what, *_ in told(found(other, usage))] == ["wrong-model"]


def test_amounts_are_checked_to_half_of_the_last_digit() -> None:
    exact = 7_000_000  # 7,000 tokens at a dollar for a million
    for cost, wrong in ((exact, False), (exact + 1, False), (exact - 1, False), (exact + 2, True)):
        result = found([line(2, 0, input=7000, cost=cost)], [used(0, 7000)], books=[BOOK])
        assert bool(result.differences) is wrong
    loose = found([line(2, 0, input=7000, cost=exact + 2)], [used(0, 7000)], books=[BOOK], tolerance_nano=1)
    assert told(loose) == []


def test_a_wrong_rate_says_what_it_would_be() -> None:
    (wrong,) = found([line(2, 0, output=10, cost=30_000)], [used(0, 0, 10)], books=[BOOK]).differences
    assert (wrong.what, wrong.expected_nano, wrong.amount_nano, wrong.currency) == (
        "wrong-rate",
        20_000,
        10_000,
        "USD",
    )


def test_tokens_written_to_a_cache_are_logged_as_input() -> None:
    lines = [line(2, 0, input=5, cache_write=2), line(3, 1, input=1)]
    assert told(found(lines, [used(0, 7), used(1, 1)])) == []


def test_requests_are_compared_where_they_are_told() -> None:
    usage = [used(0, 7, requests=3)]
    assert told(found([line(2, 0, input=7, requests=3)], usage)) == []
    (wrong,) = found([line(2, 0, input=7, requests=4)], usage).differences
    assert (wrong.what, wrong.billed, wrong.logged) == ("wrong-quantity", {"requests": 4}, {"requests": 3})


def test_every_class_has_its_words() -> None:
    assert all(words and words[0].islower() for words in CLASSES.values())


def test_an_invoice_of_nothing_that_was_logged() -> None:
    result = found([line(2, 0, input=7, model="x"), line(3, 1, input=8, model="x")], [])
    assert told(result) == [("unlogged", 0, (2,)), ("unlogged", 1, (3,))]
