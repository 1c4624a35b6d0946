"""Owns price books of providers' list prices: from the package ``genai-prices``, offline.

The package (MIT, by Pydantic) is data that people keep by hand from providers' pages; it is read where it is
installed, and nothing is fetched. Its prices are in US dollars. What has no place in a price book is left out
and told: rates for audio, images and searches, prices by the time of day, and names that only a pattern
within them identifies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from msgspec import UNSET

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.price_books import MAX_RATES, PriceBook, Rate
from ledger.cost.prices import make_price_book

__all__ = ["ListPrice", "list_price_book", "list_prices", "package_version"]

_PACKAGE = "genai-prices"
_FIELDS = {
    "input_mtok": "input_nano_per_mtok",
    "cache_read_mtok": "cached_input_nano_per_mtok",
    "cache_write_mtok": "cache_write_nano_per_mtok",
    "output_mtok": "output_nano_per_mtok",
    "output_reasoning_mtok": "reasoning_nano_per_mtok",
    "requests_kcount": "request_nano",
}
_DIVISOR = {"requests_kcount": 1000}
_NEEDED = ("input_mtok", "output_mtok")
_NANO = 10**9
_MAX_ALIASES = 64
_TIERS = {"processing": "batch", "service_tier": None}


@dataclass(frozen=True)
class ListPrice:
    """A model's list price.

    Attributes:
        provider: as the package names it.
        model: as the package names it.
        rates: the ordinary rate, those for long requests, and those of tiers.
        left_out: what a price book cannot say of it.
    """

    provider: str
    model: str
    rates: tuple[Rate, ...]
    left_out: tuple[str, ...] = field(default=())


def package_version() -> str:
    """Version of the installed package.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        raise UnavailableError(
            "genai-prices is not installed", remedy="pip install 'tallystick[prices]'", code="missing-package"
        ) from None


def list_prices(
    patterns: Iterable[str] = (), *, at: datetime | None = None, tiers: bool = True
) -> list[ListPrice]:
    """List prices of models that are charged by token.

    Args:
        patterns: ``provider`` or ``provider:model``, with ``*`` for any text; without any, all.
        at: when; now if None. Days are UTC.
        tiers: whether to add the rates of tiers (``batch``, ``priority``).

    Raises:
        UnavailableError: the package is not installed.
        InvalidError: a pattern fits nothing.
    """
    package_version()
    from genai_prices.data import providers

    when = datetime.now(UTC) if at is None else at
    wanted = list(patterns)
    fitting: set[str] = set()
    found = []
    for provider in providers:
        for model in provider.models:
            fits = {each for each in wanted if _fits(each, provider.id, model.id)}
            if wanted and not fits:
                continue
            fitting |= fits
            price = _price(provider.id, model, when, tiers=tiers)
            if price.rates:
                found.append(price)
    missed = [each for each in wanted if each not in fitting]
    if missed:
        raise InvalidError(
            f"no list price fits {missed[0]!r}",
            where=_PACKAGE,
            remedy="see `tallystick prices list`; write provider:model, as openai:gpt-4o*",
            code="unknown-model",
        )
    return sorted(found, key=lambda each: (each.provider, each.model))


def list_price_book(
    patterns: Iterable[str], *, at: datetime | None = None, tiers: bool = True
) -> tuple[PriceBook, tuple[ListPrice, ...]]:
    """A price book of list prices, and what it is made of.

    Aliases that two of a provider's models have are left out.

    Raises:
        UnavailableError: the package is not installed.
        InvalidError: a pattern fits nothing, or too much for one book.
    """
    chosen = list_prices(patterns, at=at, tiers=tiers)
    rates = [rate for price in chosen for rate in price.rates]
    if not 1 <= len(rates) <= MAX_RATES:
        raise InvalidError(
            f"{len(rates)} rates make no price book of 1 to {MAX_RATES}",
            where=_PACKAGE,
            remedy="name providers or models: openai:gpt-*",
            code="bad-price-book",
        )
    when = datetime.now(UTC) if at is None else at
    book = make_price_book(
        _without_clashes(rates),
        name="list prices",
        version=f"{when:%Y-%m-%d}",
        currency="USD",
        source=f"list prices of {', '.join(dict.fromkeys(each.provider for each in chosen))}; "
        f"package {_PACKAGE} {package_version()}"[:1024],
    )
    return book, tuple(chosen)


def _fits(pattern: str, provider: str, model: str) -> bool:
    whose, colon, name = pattern.partition(":")
    return fnmatchcase(provider, whose) and (not colon or fnmatchcase(model, name))


def _price(provider: str, model: Any, when: datetime, *, tiers: bool) -> ListPrice:
    left_out: list[str] = []
    aliases, unnamed = _aliases(model)
    if unnamed:
        left_out.append("names that a pattern identifies")
    if not hasattr(model.prices, "__dict__") and any(
        type(each.constraint).__name__ == "TimeOfDateConstraint" for each in model.prices
    ):
        return ListPrice(provider, model.id, (), ("prices by the time of day",))
    contexts: dict[str | None, dict[str, str]] = {None: {}}
    if tiers:
        for variant in model.price_variants or ():
            if len(variant.when) == 1:
                ((key, value),) = variant.when.items()
                if key in _TIERS and value not in ("default", "standard"):
                    contexts[value] = {key: value}
    rates: list[Rate] = []
    standard = model.get_prices(when)
    for tier, context in contexts.items():
        prices = model.get_prices(when, context) if context else standard
        if context and prices == standard:
            continue  # not in force then
        rates += _rates(prices, provider, model.id, aliases, tier, left_out)
    return ListPrice(provider, model.id, tuple(rates), tuple(dict.fromkeys(left_out)))


def _rates(
    prices: Any, provider: str, model: str, aliases: tuple[str, ...], tier: str | None, left_out: list[str]
) -> Iterator[Rate]:
    """The rate of requests of any length, and one for each bound of length."""
    told = {name: value for name, value in vars(prices).items() if value is not None}
    left_out += [name for name in told if name not in _FIELDS]
    told = {name: value for name, value in told.items() if name in _FIELDS}
    if not all(name in told for name in _NEEDED) or len(model) > 256 or "*" in model:
        return
    starts = sorted({0, *(tier.start for value in told.values() for tier in getattr(value, "tiers", ()))})
    for start in starts:
        amounts = {
            _FIELDS[name]: _nano(_at(value, start), _DIVISOR.get(name, 1)) for name, value in told.items()
        }
        if None in amounts.values():
            left_out.append("rates finer than a billionth")
            return
        yield Rate(
            model=model,
            provider=provider,
            aliases=aliases or UNSET,
            tier=UNSET if tier is None else tier,
            above_input_tokens=start or UNSET,
            **amounts,  # type: ignore[arg-type]
        )


def _at(value: Any, start: int) -> Decimal:
    """The price of requests longer than ``start``; the package's tiers begin beyond their start."""
    if not hasattr(value, "tiers"):
        return Decimal(value)
    reached = [tier.price for tier in value.tiers if tier.start <= start and start]
    return Decimal(reached[-1] if reached else value.base)


def _nano(value: Decimal, divisor: int) -> int | None:
    scaled = value * _NANO / divisor
    return int(scaled) if scaled == scaled.to_integral_value() and scaled >= 0 else None


def _aliases(model: Any) -> tuple[tuple[str, ...], bool]:
    """Names that the package gives the model, and whether there are more that only a pattern tells."""
    names: list[str] = []
    more = False
    clauses = [model.match]
    while clauses:
        clause = clauses.pop(0)
        kind = type(clause).__name__
        if kind == "ClauseOr":
            clauses += clause.or_
        elif kind == "ClauseEquals":
            names.append(clause.equals)
        elif kind == "ClauseStartsWith":
            names.append(f"{clause.starts_with}*")
        else:
            more = True
    sound = [each for each in dict.fromkeys(names) if 1 < len(each) <= 256 and "*" not in each[:-1]]
    return tuple(each for each in sound if each != model.id)[:_MAX_ALIASES], more


def _without_clashes(rates: list[Rate]) -> list[Rate]:
    """The rates without aliases that stand for two models of one provider."""
    import msgspec

    owners: dict[tuple[object, str], set[str]] = {}
    for rate in rates:
        for name in (rate.model, *(rate.aliases or ())):
            owners.setdefault((rate.provider, name), set()).add(rate.model)
    return [
        msgspec.structs.replace(
            rate,
            aliases=tuple(name for name in rate.aliases or () if owners[rate.provider, name] == {rate.model})
            or UNSET,
        )
        for rate in rates
    ]
