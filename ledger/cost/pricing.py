"""Owns which rates an invoice's lines and logged usage are checked by, over several price books."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import UNSET

from ledger.core.price_books import PriceBook, Rate
from ledger.cost.invoices import Line
from ledger.cost.rating import TOKENS_PER_RATE, Charges, charges_of, find_rates, model_named
from ledger.cost.usage import LoggedUsage

__all__ = ["Names", "Prices"]

_NO_END_US = 1 << 63
_MANY_REQUESTS = 1 << 40


class Names:
    """One name for each model, whatever an invoice, a deployment and a price book call it.

    Args:
        books: their models' names win, since rates are looked up by them.
        aliases: model as the invoice names it -> as the log does.
        usage: what was logged: a version of a deployment stands for its model.
    """

    def __init__(
        self, books: Sequence[PriceBook], aliases: Mapping[str, str], usage: Iterable[LoggedUsage]
    ) -> None:
        self._books = books
        self._aliases = aliases
        self._known: dict[str, str | None] = {}
        self._versions: dict[str, set[str]] = {}
        self._models: set[str] = set()
        for model, version in {(each.model, each.version) for each in usage}:
            name = self._canonical(model, version)
            self._models.add(model)
            if version is not None:
                self._versions.setdefault(version, set()).add(name)

    def of_line(self, model: str) -> str:
        """The name for a model as the invoice names it."""
        model = self._aliases.get(model, model)
        known = self._in_books(model)
        if known is not None or model in self._models:
            return known or model
        versions = self._versions.get(model, set())
        return next(iter(versions)) if len(versions) == 1 else model

    def of_usage(self, usage: LoggedUsage) -> str:
        """The name for logged usage."""
        return self._canonical(usage.model, usage.version)

    def _canonical(self, model: str, version: str | None) -> str:
        return (self._in_books(version) if version else None) or self._in_books(model) or model

    def _in_books(self, name: str) -> str | None:
        if name not in self._known:
            found = (model_named(book, name) for book in self._books)
            self._known[name] = next(filter(None, found), None)
        return self._known[name]


class Prices:
    """What lines and logged usage cost; amounts are numerators over ``TOKENS_PER_RATE``, in nano-currency.

    Args:
        books: of those that hold at a time and know the model, the one that holds from the latest time on
            counts.
        provider: whose rates count; None takes the provider that the log or the line names.
        providers: providers that the log names for each model.
        regions: likewise.
    """

    def __init__(
        self,
        books: Iterable[PriceBook],
        provider: str | None,
        providers: Mapping[str, set[str | None]],
        regions: Mapping[str, set[str | None]],
    ) -> None:
        self.books = sorted(books, key=_from_us, reverse=True)
        self._provider = provider
        self._providers = providers
        self._regions = regions
        self._found: dict[tuple[int, str, str | None, str | None, str | None], tuple[Rate, ...]] = {}

    def currencies_at(self, at_us: int) -> set[str]:
        """Currencies of the books that hold then."""
        return {book.currency for book in self.books if _holds(book, at_us)}

    def currency_at(self, at_us: int) -> str | None:
        """The one currency of the books that hold then, if it is one."""
        found = self.currencies_at(at_us)
        return found.pop() if len(found) == 1 else None

    def of_line(self, model: str, line: Line) -> tuple[int, int] | None:
        """The least and the most that a line's quantities cost; None where a rate is not known.

        They differ where the price changes within its period, depends on the length of requests, or on
        counts that the line does not tell.
        """
        changes = {line.from_us}
        for book in self.books:
            changes |= {
                each for each in (_from_us(book), _until_us(book)) if line.from_us < each < line.until_us
            }
        options: list[tuple[int, int]] = []
        for at_us in changes:
            rates = self._rates(model, line.tier, at_us, line.provider, line.region)
            if not rates:
                return None
            options += [_cost(charges_of(rate), dict(line.quantities)) for rate in rates]
        return min(low for low, _ in options), max(high for _, high in options)

    def of_usage(self, model: str, tier: str | None, usage: Iterable[LoggedUsage]) -> int | None:
        """What logged usage costs; None where a rate is not known."""
        total = 0
        for each in usage:
            rates = self._rates(model, tier, each.at_us, each.provider, each.region)
            rate = next((rate for rate in rates if (rate.above_input_tokens or 0) <= each.longer_than), None)
            if rate is None:
                return None
            charges = charges_of(rate)
            total += (
                (each.input_tokens - each.cached_input_tokens) * charges.input
                + each.cached_input_tokens * charges.cached_input
                + (each.output_tokens - each.reasoning_tokens) * charges.output
                + each.reasoning_tokens * charges.reasoning
                + each.requests * charges.request * TOKENS_PER_RATE
            )
        return total

    def worth(
        self, model: str, tier: str | None, at_us: int, counts: Iterable[int], kinds: Sequence[str]
    ) -> int | None:
        """What counts (negative ones too) come to, in nano-currency, by the rates of short requests."""
        if tuple(kinds) == ("cost_nano",):
            return sum(counts)
        rates = self._rates(model, tier, at_us, None, None)
        if not rates or "tokens" in kinds:
            return None
        total = sum(
            count * each for count, each in zip(counts, _by_kind(charges_of(rates[-1]), kinds), strict=True)
        )
        return (2 * total + TOKENS_PER_RATE) // (2 * TOKENS_PER_RATE)

    def _rates(
        self, model: str, tier: str | None, at_us: int, provider: str | None, region: str | None
    ) -> tuple[Rate, ...]:
        providers = self._providers.get(model, set()) - {None}
        logged = next(iter(providers)) if len(providers) == 1 else None
        regions = self._regions.get(model, set()) - {None}
        place = region if region in regions or len(regions) != 1 else next(iter(regions))
        for at, book in enumerate(self.books):
            if not _holds(book, at_us):
                continue
            for whose in dict.fromkeys((self._provider or logged or provider, provider)):
                key = (at, model, tier, whose, place)
                if key not in self._found:
                    self._found[key] = find_rates(
                        book, (model,), provider=whose, region=place, tier=tier, any_provider=whose is None
                    )
                if self._found[key]:
                    return self._found[key]
        return ()


def _cost(charges: Charges, told: Mapping[str, int]) -> tuple[int, int]:
    """The least and the most that quantities cost at some charges."""
    low = high = sum(
        count * each for count, each in zip(told.values(), _by_kind(charges, tuple(told)), strict=True)
    )
    if "tokens" in told:
        rates = (charges.input, charges.cached_input, charges.output, charges.reasoning)
        low += told["tokens"] * min(rates)
        high += told["tokens"] * max(rates)
    if charges.request and "requests" not in told:
        high += charges.request * TOKENS_PER_RATE * _MANY_REQUESTS
    return low, high


def _by_kind(charges: Charges, kinds: Iterable[str]) -> list[int]:
    known = {
        "input": charges.input,
        "cached_input": charges.cached_input,
        "cache_write": charges.cache_write,
        "output": charges.output,
        "reasoning": charges.reasoning,
        "requests": charges.request * TOKENS_PER_RATE,
        "tokens": 0,
    }
    return [known[kind] for kind in kinds]


def _from_us(book: PriceBook) -> int:
    return -1 if book.valid_from_us is UNSET else book.valid_from_us


def _until_us(book: PriceBook) -> int:
    return _NO_END_US if book.valid_until_us is UNSET else book.valid_until_us


def _holds(book: PriceBook, at_us: int) -> bool:
    return _from_us(book) <= at_us < _until_us(book)
