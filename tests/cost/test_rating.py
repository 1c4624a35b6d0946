"""Which rate applies, and what it comes to: rules by example, arithmetic against fractions."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.price_books import PriceBook, Rate, check_price_book, decode_price_book
from ledger.core.records import Deployment, Usage, document_digest
from ledger.cost.prices import make_price_book, nano, read_price_book, read_rates_csv
from ledger.cost.rating import Charges, Rater, charges_of, cost_nano, find_rates, model_named
from tests.build import make_price_book as example_book
from tests.core import strategies

amounts = st.integers(0, 10**13)
counts = st.integers(0, 10**7)


def rate(model: str, nano: int = 1, **fields: object) -> Rate:
    return Rate(model=model, input_nano_per_mtok=nano, output_nano_per_mtok=nano, **fields)  # type: ignore[arg-type]


def book(*rates: Rate, **fields: object) -> PriceBook:
    return make_price_book(rates, name="b", version="1", currency="USD", source="s", **fields)  # type: ignore[arg-type]


@given(st.builds(Charges, *[amounts] * 6), counts, counts, counts, counts)
def test_cost_is_the_fraction_rounded_half_up(
    charges: Charges, fresh: int, cached: int, plain: int, reasoning: int
) -> None:
    usage = Usage(
        input_tokens=fresh + cached,
        cached_input_tokens=cached,
        output_tokens=plain + reasoning,
        reasoning_tokens=reasoning,
    )
    exact = Fraction(
        fresh * charges.input
        + cached * charges.cached_input
        + plain * charges.output
        + reasoning * charges.reasoning,
        10**6,
    )
    rounded = (exact + Fraction(1, 2)).__floor__()
    assert cost_nano(charges, usage) == rounded + charges.request


def test_absent_rates_are_those_of_input_and_output() -> None:
    charges = charges_of(Rate(model="m", input_nano_per_mtok=3, output_nano_per_mtok=5))
    assert charges == Charges(3, 3, 3, 5, 5, 0)


def test_unknown_counts_earn_no_discount() -> None:
    charges = Charges(10**6, 1, 1, 10**6, 1, 0)
    assert cost_nano(charges, Usage(input_tokens=7, output_tokens=2)) == 9


def test_more_reasoning_than_output_is_all_of_it() -> None:
    usage = Usage(input_tokens=0, output_tokens=2, reasoning_tokens=9)
    assert cost_nano(Charges(0, 0, 0, 5 * 10**6, 10**6, 0), usage) == 2


def found(chosen: PriceBook, *names: str, **where: object) -> int | None:
    rates = find_rates(chosen, names, **where)  # type: ignore[arg-type]
    return rates[0].input_nano_per_mtok if rates else None


def test_the_most_specific_rate_wins() -> None:
    chosen = book(
        rate("m", 1),
        rate("m", 2, provider="OpenAI"),
        rate("m", 3, provider="OpenAI", region="eu"),
        rate("n", 4, aliases=("m-*",)),
        rate("o", 5, aliases=("m-large-*", "m-x")),
    )
    assert found(chosen, "m") == 1
    assert found(chosen, "m", provider="openai") == 2
    assert found(chosen, "m", provider="openai", region="eu") == 3
    assert found(chosen, "m", provider="azure") == 1
    assert found(chosen, "m-7") == 4
    assert found(chosen, "m-large-7") == found(chosen, "m-x") == 5
    assert found(chosen, "unknown", "m-7") == 4
    assert found(chosen, "M") is None


def test_a_tier_has_its_own_rates_or_none() -> None:
    chosen = book(rate("m", 2), rate("m", 1, tier="batch"), rate("n", 3))
    assert found(chosen, "m", tier="batch") == 1
    assert found(chosen, "n", tier="batch") is None
    assert found(chosen, "m", tier="priority") is None


def test_a_provider_that_is_not_known_has_no_providers_rates() -> None:
    chosen = book(rate("m", 2, provider="openai"))
    assert found(chosen, "m") is None
    assert found(chosen, "m", any_provider=True) == 2
    assert found(chosen, "m", provider="azure", any_provider=True) is None


@pytest.mark.parametrize(("tokens", "cost"), [(0, 0), (100, 100), (101, 202), (200, 400), (201, 603)])
def test_long_requests_are_charged_whole_at_their_rate(tokens: int, cost: int) -> None:
    chosen = book(
        rate("m", 10**6),
        rate("m", 2 * 10**6, above_input_tokens=100),
        rate("m", 3 * 10**6, above_input_tokens=200),
    )
    deployment = Deployment(model="m", engine="e")
    rated = Rater([chosen]).rate(
        deployment, document_digest(deployment), Usage(input_tokens=tokens, output_tokens=0), 5
    )
    assert rated is not None
    assert rated[0] == cost


def test_the_newest_book_that_holds_and_knows_the_model_counts() -> None:
    old, new = book(rate("m", 10**6), rate("n", 10**6)), book(rate("m", 2 * 10**6), valid_from_us=100)
    ended = book(rate("m", 9 * 10**6), valid_from_us=200, valid_until_us=300)
    rater = Rater([ended, old, new])

    def cost(model: str, at: int) -> int | None:
        deployment = Deployment(model=model, engine="e")
        usage = Usage(input_tokens=1, output_tokens=0)
        rated = rater.rate(deployment, document_digest(deployment), usage, at)
        return None if rated is None else rated[0]

    assert [cost("m", at) for at in (0, 99, 100, 199, 200, 299, 300)] == [1, 1, 2, 2, 9, 9, 2]
    assert [cost("n", at) for at in (0, 250)] == [1, 1]
    assert cost("o", 0) is None


def test_the_version_is_looked_up_before_the_model() -> None:
    chosen = book(rate("m", 10**6), rate("m-2026-08-01", 2 * 10**6))
    deployment = Deployment(model="m", version="m-2026-08-01", engine="e")
    usage = Usage(input_tokens=1, output_tokens=0)
    rated = Rater([chosen]).rate(deployment, document_digest(deployment), usage, 0)
    assert rated is not None
    assert rated[0] == 2
    assert model_named(chosen, "m-2026-08-01") == "m-2026-08-01"


# --- documents -------------------------------------------------------------------------------------------


@given(strategies.price_books)
def test_books_come_back_from_any_spelling(made: PriceBook) -> None:
    data = encode_canonical(made)
    assert decode_price_book(data) == made
    assert read_price_book(json.dumps(json.loads(data), indent=2).encode()) == made


@pytest.mark.parametrize(
    "changes",
    [
        {"rates": (rate("b"), rate("a"))},
        {"rates": (rate("a"), rate("a"))},
        {"rates": (rate("a", aliases=("x",)), rate("b", aliases=("x",)))},
        {"rates": (rate("a", aliases=("b",)), rate("b"))},
        {"rates": (rate("a*"),)},
        {"rates": (rate("a", aliases=("x*y",)),)},
        {"rates": (rate("a", aliases=("*",)),)},
        {"valid_from_us": 5, "valid_until_us": 5},
    ],
)
def test_inconsistent_books_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidError) as caught:
        check_price_book(example_book(**changes))
    assert caught.value.code == "bad-price-book"


def test_names_may_be_shared_by_providers_and_tiers() -> None:
    book(
        rate("a", aliases=("x",)),
        rate("b", aliases=("x",), provider="p"),
        rate("a", aliases=("x",), tier="batch"),
        rate("a", aliases=("x",), above_input_tokens=5),
    )


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_book_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        read_price_book(data)


@given(st.integers(0, 2**53 - 1))
def test_amounts_are_read_exactly(value: int) -> None:
    assert nano(f"{value // 10**9}.{value % 10**9:09d}", "x") == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1e99", "NaN", "0.0000000001", "1,5", "9" * 41, "inf"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        nano(text, "x")


def test_csv_of_rates() -> None:
    text = (
        "model,aliases,provider,tier,above_input_tokens,input_per_mtok,cached_input_per_mtok,output_per_mtok,per_request\n"
        "m,m-1 m-2*,openai,,,0.15,0.075,0.6,\n"
        "m,,openai,batch,128000,0.075,,0.3,0.000001\n"
    )
    assert read_rates_csv(text) == [
        Rate(
            model="m",
            aliases=("m-1", "m-2*"),
            provider="openai",
            input_nano_per_mtok=150_000_000,
            cached_input_nano_per_mtok=75_000_000,
            output_nano_per_mtok=600_000_000,
        ),
        Rate(
            model="m",
            provider="openai",
            tier="batch",
            above_input_tokens=128_000,
            input_nano_per_mtok=75_000_000,
            output_nano_per_mtok=300_000_000,
            request_nano=1000,
        ),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model,input_per_mtok\n",
        "model,input_per_mtok,output_per_mtok,colour\nm,1,1,red\n",
        "model,input_per_mtok,output_per_mtok\nm,,1\n",
        "model,input_per_mtok,output_per_mtok\nm,1,1,1\n",
        "model,input_per_mtok,output_per_mtok,above_input_tokens\nm,1,1,many\n",
        "model,input_per_mtok,output_per_mtok,tier\nm,1,1,no tier\n",
        "model,model,input_per_mtok,output_per_mtok\nm,m,1,1\n",
    ],
)
def test_unusable_rates_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        read_rates_csv(text)
