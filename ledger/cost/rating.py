"""Owns the step from token counts to money: which rate applies to a request, and what it comes to, exactly.

With token counts of one request and rates in billionths of the currency for a million tokens::

    cost_nano = round((fresh * input + cached * cached_input + (output - reasoning) * output_rate
                       + reasoning * reasoning_rate) / 1,000,000) + request

``fresh`` is input less cached, since the input of a record includes what a cache served, and its output
includes reasoning; where a rate of its own is absent, cached input costs what input costs, and reasoning what
output costs. Computed whole in integers and rounded once, half up. A count that a record does not state
(``cached_input_tokens``) earns no discount.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from msgspec import UNSET, UnsetType

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.price_books import PriceBook, Rate
from ledger.core.records import Deployment, Usage, document_digest

__all__ = [
    "TOKENS_PER_RATE",
    "By",
    "Charges",
    "Rated",
    "Rater",
    "charges_of",
    "cost_nano",
    "find_rates",
    "for_length",
    "model_named",
    "rounded",
]

TOKENS_PER_RATE = 1_000_000
"""Rates are for a million tokens."""
_ALWAYS = 1 << 63


class Charges(NamedTuple):
    """What a rate comes to for each kind of token, defaults filled in; nano-currency per million tokens."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    request: int
    """Nano-currency for each request."""


class By(NamedTuple):
    """By what a request was charged."""

    currency: str
    digest: str
    book: PriceBook


Rated: TypeAlias = tuple[int, By]
"""What a request costs in billionths, and by what. A plain tuple: it is made for each record."""


def charges_of(rate: Rate) -> Charges:
    """The charges of a rate."""
    return Charges(
        rate.input_nano_per_mtok,
        _or(rate.cached_input_nano_per_mtok, rate.input_nano_per_mtok),
        _or(rate.cache_write_nano_per_mtok, rate.input_nano_per_mtok),
        rate.output_nano_per_mtok,
        _or(rate.reasoning_nano_per_mtok, rate.output_nano_per_mtok),
        _or(rate.request_nano, 0),
    )


def cost_nano(charges: Charges, usage: Usage) -> int:
    """What one request costs, as the module says."""
    fresh_rate, cached_rate, _, output_rate, reasoning_rate, request = charges
    output = usage.output_tokens
    exact = usage.input_tokens * fresh_rate + output * output_rate
    # ``UNSET`` is false, as zero is.
    if cached := usage.cached_input_tokens:
        exact += cached * (cached_rate - fresh_rate)
    if reasoning := usage.reasoning_tokens:
        exact += (output if reasoning > output else reasoning) * (reasoning_rate - output_rate)
    return (2 * exact + TOKENS_PER_RATE) // (2 * TOKENS_PER_RATE) + request


def rounded(numerator: int, denominator: int) -> int:
    """A quotient rounded half up; the denominator is positive."""
    return (2 * numerator + denominator) // (2 * denominator)


def find_rates(
    book: PriceBook,
    names: Iterable[str | UnsetType | None],
    *,
    provider: str | UnsetType | None = None,
    region: str | UnsetType | None = None,
    tier: str | None = None,
    any_provider: bool = False,
) -> tuple[Rate, ...]:
    """The rates of a model in a book, for falling lengths of input; none if the book does not know it.

    Rates for the deployment's provider win over those for any, then those for its region, then those whose
    name fits better: the whole name over an alias, a longer beginning over a shorter one. Without a rate for
    ``tier`` there is none: a tier's price is not that of another.

    Args:
        book: the price book.
        names: of the model, the best one first: the first that the book knows is taken.
        provider: of the deployment; compared without regard to case.
        region: of the deployment.
        tier: None is the ordinary way of asking.
        any_provider: take a provider's rates too where the provider is not known.
    """
    wanted_provider = provider.casefold() if isinstance(provider, str) else None
    for name in names:
        if not isinstance(name, str):
            continue
        best: tuple[int, int, int] | None = None
        found: list[Rate] = []
        for rate in book.rates:
            if (None if rate.tier is UNSET else rate.tier) != tier:
                continue
            foreign = rate.provider is not UNSET and rate.provider.casefold() != wanted_provider
            if foreign and not (any_provider and wanted_provider is None):
                continue
            if rate.region is not UNSET and rate.region != region:
                continue
            fit = _fit(rate, name)
            if fit == 0:
                continue
            score = (int(rate.provider is not UNSET), int(rate.region is not UNSET), fit)
            if best is None or score > best:
                best, found = score, [rate]
            elif score == best and _same_model(rate, found[0]):
                found.append(rate)
        if found:
            return tuple(sorted(found, key=_threshold, reverse=True))
    return ()


def model_named(book: PriceBook, name: str) -> str | None:
    """The model that a name stands for in a book, by whatever provider and tier; None if for none."""
    best = max(book.rates, key=lambda rate: _fit(rate, name))
    return best.model if _fit(best, name) else None


def for_length(rates: Sequence[Rate], input_tokens: int) -> Rate | None:
    """The one of a model's rates (of ``find_rates``) that a request with so much input is charged by."""
    for rate in rates:
        if rate.above_input_tokens is UNSET or input_tokens > rate.above_input_tokens:
            return rate
    return None


def _same_model(one: Rate, other: Rate) -> bool:
    return (one.provider, one.model, one.region) == (other.provider, other.model, other.region)


def _threshold(rate: Rate) -> int:
    return -1 if rate.above_input_tokens is UNSET else rate.above_input_tokens


def _fit(rate: Rate, name: str) -> int:
    """How well a rate's names fit: 0 not at all, more for a longer beginning, most for the model's name."""
    if rate.model == name:
        return 1000
    best = 0
    for alias in () if rate.aliases is UNSET else rate.aliases:
        if alias == name:
            return 999
        if alias[-1] == "*" and name.startswith(alias[:-1]):
            best = max(best, len(alias))
    return best


class _Entry(NamedTuple):
    """How one deployment is charged by one book."""

    from_us: int
    until_us: int
    steps: tuple[tuple[int, Charges], ...]
    by: By


class Rater:
    """Rates requests by price books; remembers how each deployment is charged. Used by one thread.

    Args:
        books: of those that hold at a request's time and know its model, the one that holds from the latest
            time on is taken.
        tier: rates of which tier are taken.
    """

    def __init__(self, books: Iterable[PriceBook], *, tier: str | None = None) -> None:
        ordered = sorted(books, key=lambda book: _or(book.valid_from_us, -1), reverse=True)
        self._books = [(book, document_digest(book)) for book in ordered]
        self._tier = tier
        self._known: dict[str, tuple[_Entry, ...]] = {}

    def rate(self, deployment: Deployment, digest: str, usage: Usage, started_us: int) -> Rated | None:
        """What a request costs; None if no book that holds then knows the deployment's model.

        Args:
            deployment: what generated. Its ``version`` is looked up first, then its ``model``.
            digest: the deployment's.
            usage: the request's token counts.
            started_us: when it came, Unix microseconds.
        """
        entries = self._known.get(digest)
        if entries is None:
            entries = self._known[digest] = self._look_up(deployment)
        for from_us, until_us, steps, by in entries:
            if from_us <= started_us < until_us:
                for above, charges in steps:
                    if usage.input_tokens > above:
                        cost = cost_nano(charges, usage)
                        return None if cost > MAX_SAFE_INTEGER else (cost, by)
        return None

    def _look_up(self, deployment: Deployment) -> tuple[_Entry, ...]:
        found = []
        for book, digest in self._books:
            rates = find_rates(
                book,
                (deployment.version, deployment.model),
                provider=deployment.provider,
                region=deployment.region,
                tier=self._tier,
            )
            if rates:
                found.append(
                    _Entry(
                        _or(book.valid_from_us, 0),
                        _or(book.valid_until_us, _ALWAYS),
                        tuple((_threshold(rate), charges_of(rate)) for rate in rates),
                        By(book.currency, digest, book),
                    )
                )
        return tuple(found)


def _or(value: int | UnsetType, otherwise: int) -> int:
    return otherwise if isinstance(value, UnsetType) else value
