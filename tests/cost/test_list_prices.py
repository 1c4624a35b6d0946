"""List prices as price books: charged by our rates, every model costs what the package itself computes."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from random import Random

import pytest
from genai_prices.data import providers
from genai_prices.types import Usage as TheirUsage

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.price_books import decode_price_book
from ledger.core.records import Usage
from ledger.cost.list_prices import list_price_book, list_prices
from ledger.cost.prices import make_price_book
from ledger.cost.rating import charges_of, cost_nano, find_rates, for_length

AT = datetime(2026, 11, 1, tzinfo=UTC)


def test_every_model_costs_what_the_package_computes() -> None:
    known = {
        (provider.id, model.id): (provider, model) for provider in providers for model in provider.models
    }
    chance = Random(7)
    compared = 0
    for price in list_prices(at=AT):
        provider, model = known[price.provider, price.model]
        contexts: dict[str | None, dict[str, str]] = {None: {}}
        for variant in model.price_variants or ():
            contexts |= {value: {key: value} for key, value in variant.when.items()}
        book = make_price_book(price.rates, name="x", version="x", currency="USD", source="x")
        for tier in {rate.tier or None for rate in price.rates}:
            rates = find_rates(book, (price.model,), provider=price.provider, tier=tier)
            for bound in {rate.above_input_tokens or 0 for rate in rates}:
                inputs = max(1, bound + chance.choice([-1, 0, 1, 12_345]))
                cached, outputs = chance.randrange(inputs + 1), chance.randrange(10_000)
                rate = for_length(rates, inputs)
                assert rate is not None
                theirs = model.calc_price(
                    TheirUsage(input_tokens=inputs, cache_read_tokens=cached, output_tokens=outputs),
                    provider,
                    genai_request_timestamp=AT,
                    price_context=contexts[tier],
                )
                usage = Usage(input_tokens=inputs, output_tokens=outputs, cached_input_tokens=cached)
                ours = cost_nano(charges_of(rate), usage)
                exact = Fraction(theirs.total_price) * 10**9
                assert abs(ours - exact) <= Fraction(1, 2), (price.provider, price.model, tier, inputs)
                compared += 1
    assert compared > 2000


def test_a_book_of_one_provider_is_sound_and_can_be_logged() -> None:
    book, chosen = list_price_book(["anthropic:claude-*"], at=AT)
    data = encode_canonical(book)
    assert decode_price_book(data) == book
    assert len(data) < 61_440
    assert {rate.provider for rate in book.rates} == {"anthropic"}
    assert "genai-prices" in book.source
    assert any(rate.tier == "batch" for rate in book.rates)
    assert all(price.provider == "anthropic" for price in chosen)


def test_all_list_prices_make_one_sound_book() -> None:
    book, _ = list_price_book(["*"], at=AT)
    assert decode_price_book(encode_canonical(book)) == book
    assert len({rate.provider for rate in book.rates}) > 20


@pytest.mark.parametrize("pattern", ["nobody", "openai:no-such-model", "openai:gpt-4o-mini:x"])
def test_patterns_that_fit_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidError):
        list_prices([pattern])
