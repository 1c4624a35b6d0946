"""Price books: what tokens cost, as documents that statements publish and records' costs are computed by.

A price book is content-addressed like a factor set: its digest is the SHA-256 of its canonical bytes. Rates
are integers: billionths of the book's currency for a million tokens (``*_nano_per_mtok``), so that every
reader computes the same cost to the last digit. How a cost is computed is in ``ledger.cost.rating``.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core.canonical import decode_canonical
from ledger.core.errors import InvalidError
from ledger.core.records import Amount, Currency, Name, Slug, TimeUs

__all__ = ["MAX_RATES", "PriceBook", "Rate", "check_price_book", "decode_price_book", "rate_key"]

MAX_RATES = 4096
"""Of one book. One that is logged has fewer: its statement is at most 65,535 bytes."""

ModelName: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=256, description="a name, or the beginning of names and an asterisk")
]


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """What one model's tokens cost. Rates are in billionths of the currency for a million tokens.

    Where there is no rate of its own, cached input and cache writes are charged as input, and reasoning as
    output. ``aliases`` are other names of the model; one that ends with an asterisk stands for all names that
    begin so. A rate with ``provider`` or ``region`` is for deployments that name that one; ``tier`` is a way
    of asking that has rates of its own (``batch``, ``priority``); ``above_input_tokens`` restricts the rate
    to requests whose whole input, cached tokens included, is longer than this.
    """

    model: Name
    input_nano_per_mtok: Amount
    output_nano_per_mtok: Amount
    cached_input_nano_per_mtok: Amount | UnsetType = UNSET
    cache_write_nano_per_mtok: Amount | UnsetType = UNSET
    reasoning_nano_per_mtok: Amount | UnsetType = UNSET
    request_nano: Amount | UnsetType = UNSET
    aliases: Annotated[tuple[ModelName, ...], Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    provider: Name | UnsetType = UNSET
    region: Slug | UnsetType = UNSET
    tier: Slug | UnsetType = UNSET
    above_input_tokens: Amount | UnsetType = UNSET


class PriceBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """Rates of models, in one currency, with their source. Content-addressed like a factor set.

    Holds for requests that started from ``valid_from_us`` on and before ``valid_until_us``; without them, at
    any time.
    """

    name: Name
    version: Name
    currency: Currency
    source: Annotated[str, Meta(min_length=1, max_length=1024)]
    rates: Annotated[tuple[Rate, ...], Meta(min_length=1, max_length=MAX_RATES)]
    valid_from_us: TimeUs | UnsetType = UNSET
    valid_until_us: TimeUs | UnsetType = UNSET


_decoder = msgspec.json.Decoder(PriceBook)


def rate_key(rate: Rate) -> tuple[str, str, str, str, int]:
    """What makes a rate the one of its kind, and the order of rates in a book: absent before present."""
    return (
        "" if rate.provider is UNSET else rate.provider,
        rate.model,
        "" if rate.region is UNSET else rate.region,
        "" if rate.tier is UNSET else rate.tier,
        0 if rate.above_input_tokens is UNSET else rate.above_input_tokens,
    )


def decode_price_book(data: bytes, *, where: str = "prices") -> PriceBook:
    """Decode a price book's canonical bytes, and check it.

    Raises:
        InvalidError: not canonical, of another shape, or inconsistent in itself.
    """
    book = decode_canonical(data, _decoder, where=where)
    check_price_book(book, where=where)
    return book


def check_price_book(book: PriceBook, *, where: str = "prices") -> None:
    """Check what the decoder leaves out: order, names that stand for two rates, and the period.

    Raises:
        InvalidError: the book is inconsistent in itself.
    """

    def bad(what: str) -> InvalidError:
        return InvalidError(what, where=where, code="bad-price-book")

    if (
        book.valid_from_us is not UNSET
        and book.valid_until_us is not UNSET
        and book.valid_from_us >= book.valid_until_us
    ):
        raise bad("valid_until_us is not after valid_from_us")
    keys = [rate_key(rate) for rate in book.rates]
    if keys != sorted(set(keys)):
        raise bad("rates must be sorted by provider, model, region, tier and above_input_tokens, and unique")
    named: dict[tuple[str, str, str, str, int], str] = {}
    for rate, (provider, model, *rest) in zip(book.rates, keys, strict=True):
        if "*" in model:
            raise bad(f"the model {model!r} has an asterisk, which only aliases may have")
        for name in (model, *(() if rate.aliases is UNSET else rate.aliases)):
            if "*" in name[:-1] or name == "*":
                raise bad(f"the alias {name!r} has an asterisk elsewhere than at its end")
            other = named.setdefault((provider, name, *rest), model)  # type: ignore[arg-type]
            if other != model:
                raise bad(f"{name!r} stands for {other!r} and for {model!r}")
