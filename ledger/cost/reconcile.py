"""Owns the reconciliation of an invoice with logged usage: which lines are right, what is wrong with others.

Lines and log are compared by model and day (or by a line's own period, where that is longer than a day), for
each kind of token that the invoice tells for that model, then each line's amount with the price book. What is
found is named by what would explain it (``matching``); money is compared exactly, up to half of the last
digit that the invoice writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from ledger.core.errors import InvalidError
from ledger.core.price_books import PriceBook
from ledger.cost.counting import counts_of, is_estimate, kinds_of, kinds_together, positive, within
from ledger.cost.differences import CLASSES, Compared, Difference, Reconciliation
from ledger.cost.invoices import Invoice, Line
from ledger.cost.matching import Cell, Doubled, Finding, Moved, Short, Surplus, Vector, Wrong, explain
from ledger.cost.pricing import Names, Prices
from ledger.cost.usage import QUARTER_US, LoggedUsage

__all__ = ["reconcile"]

_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COST = "cost_nano"
_PER_RATE = 1_000_000
_MAX_NAMED = 20
"""Lines that a difference names; among more, none is the wrong one."""


def reconcile(
    invoice: Invoice,
    logged: Iterable[LoggedUsage],
    books: Sequence[PriceBook] = (),
    *,
    zone: ZoneInfo | None = None,
    from_us: int | None = None,
    until_us: int | None = None,
    aliases: Mapping[str, str] | None = None,
    provider: str | None = None,
    tolerance_nano: int = 0,
) -> Reconciliation:
    """Compare an invoice with the usage that was logged.

    Args:
        invoice: its lines.
        logged: usage by quarter of an hour, of the whole period.
        books: rates; without any, amounts are not checked.
        zone: whose days usage without lines is told by; UTC if None.
        from_us: beginning of the billing period; if None, what the invoice states, else its first line's.
        until_us: its end, exclusive; likewise.
        aliases: model as the invoice names it -> as the log does.
        provider: whose rates apply, where the books have several providers'.
        tolerance_nano: by how much a line's amount may differ, beside half of its last digit.

    Raises:
        InvalidError: lines' periods overlap otherwise than by being the same, or are not whole quarters of an
            hour.
    """
    zone = ZoneInfo("UTC") if zone is None else zone
    period = _period(invoice, from_us, until_us)
    outside = tuple(n.number for n in invoice.lines if n.from_us < period[0] or n.until_us > period[1])
    lines = [each for each in invoice.lines if each.from_us >= period[0] and each.until_us <= period[1]]
    usage = [each for each in logged if period[0] <= each.at_us < period[1]]
    names = Names(books, aliases or {}, usage)
    by_model: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_model[names.of_line(line.model)].append(line)
    used: dict[str, list[LoggedUsage]] = defaultdict(list)
    for each in usage:
        used[names.of_usage(each)].append(each)
    prices = Prices(
        books,
        provider,
        {model: {each.provider for each in rows} for model, rows in used.items()},
        {model: {each.region for each in rows} for model, rows in used.items()},
    )
    told_at_all = kinds_of(lines)
    groups_at_all = kinds_together(told_at_all, lines)
    work = _Work(invoice, prices, zone, tolerance_nano)
    for model in sorted(by_model.keys() | used.keys()):
        ours = by_model.get(model, [])
        # A model without any line would have had such as the others have.
        kinds = kinds_of(ours) if ours else told_at_all
        groups = kinds_together(kinds, ours) if ours else groups_at_all
        work.model(model, ours, used.get(model, []), kinds, groups, period)
    work.across_models()
    order = list(CLASSES)
    differences = sorted(
        work.differences, key=lambda d: (d.from_us, d.model, order.index(d.what), d.lines[:1])
    )
    return Reconciliation(
        tuple(differences),
        tuple(sorted(work.compared, key=lambda each: (each.from_us, each.model))),
        *period,
        outside=outside,
        unpriced=tuple(sorted(work.unpriced)),
        estimated=tuple(work.estimated),
    )


def _period(invoice: Invoice, from_us: int | None, until_us: int | None) -> tuple[int, int]:
    stated = invoice.period_us
    starts = [line.from_us for line in invoice.lines] or [0]
    ends = [line.until_us for line in invoice.lines] or [_DAY_US]
    low = from_us if from_us is not None else stated[0] if stated else min(starts)
    high = until_us if until_us is not None else stated[1] if stated else max(ends)
    if low >= high:
        raise InvalidError("the period to compare ends before it begins", where="--to", code="bad-parameter")
    return low, high


class _Work:
    """The comparison under way: model by model, then what one lacks and another has too much."""

    def __init__(self, invoice: Invoice, prices: Prices, zone: ZoneInfo, tolerance_nano: int) -> None:
        self._quantity_tolerance = invoice.quantity_tolerance
        self._amount_tolerance = invoice.amount_tolerance_nano + tolerance_nano
        self._prices = prices
        self._zone = zone
        self._lines: dict[int, Line] = {}
        self._homes: dict[int, tuple[int, int]] = {}
        self.differences: list[Difference] = []
        self.compared: list[Compared] = []
        self.unpriced: list[int] = []
        self.estimated: list[tuple[str, int, int]] = []

    def model(
        self,
        model: str,
        lines: list[Line],
        usage: list[LoggedUsage],
        kinds: tuple[str, ...],
        groups: list[tuple[str, ...]],
        period: tuple[int, int],
    ) -> None:
        """Compare one model's lines with its usage; ``groups`` are kinds that lines tell together."""
        self._lines |= {line.number: line for line in lines}
        periods = self._periods(lines, usage, period)
        placed: dict[tuple[int, int], list[Line]] = {each: [] for each in periods}
        for line in lines:
            placed[self._period_of(line)].append(line)
        used = {each: within(usage, each) for each in periods}
        wrong: set[tuple[int, int]] = set()
        if kinds:
            for group in groups:
                wrong |= self._quantities(model, group, kinds, placed, used)
            for cell in periods:
                self._amounts(model, cell, placed[cell], used[cell], exact=cell not in wrong)
        elif self._prices.books:
            self._costs(model, placed, used)
        for cell in periods:
            self._add_compared(model, cell, placed[cell], used[cell], kinds)

    # --- periods -------------------------------------------------------------------------------------

    def _period_of(self, line: Line) -> tuple[int, int]:
        """The day that the line's period is within; if it is longer than one, its period."""
        day = self._day(line.from_us)
        return day if line.until_us <= day[1] else (line.from_us, line.until_us)

    def _day(self, at_us: int) -> tuple[int, int]:
        date = (_EPOCH + timedelta(microseconds=at_us)).astimezone(self._zone).date()
        ends = []
        for each in (date, date + timedelta(days=1)):
            moment = datetime(each.year, each.month, each.day, tzinfo=self._zone).astimezone(UTC) - _EPOCH
            ends.append((moment.days * 86_400 + moment.seconds) * 1_000_000)
        return ends[0], ends[1]

    def _periods(
        self, lines: Iterable[Line], usage: Iterable[LoggedUsage], period: tuple[int, int]
    ) -> list[tuple[int, int]]:
        """Periods of lines, and days (or what is left of them) of usage without a line."""
        found = sorted({self._period_of(line) for line in lines})
        for (_, end), (start, _) in pairwise(found):
            if start < end:
                raise InvalidError(
                    "periods of lines of one model overlap",
                    where=_shown(start),
                    remedy="pass --timezone, so that lines and days agree, or files of one kind only",
                    code="bad-invoice",
                )
        if any(bound % QUARTER_US for each in found for bound in each):
            raise InvalidError(
                "a line's period is not of whole quarters of an hour",
                remedy="export the usage by hour or day",
                code="bad-invoice",
            )
        more = set()
        for each in usage:
            if not any(low <= each.at_us < high for low, high in found):
                low, high = self._day(each.at_us)
                low = max([low, period[0], *(end for _, end in found if end <= each.at_us)])
                high = min([high, period[1], *(start for start, _ in found if start > each.at_us)])
                more.add((low, high))
        return sorted({*found, *more})

    # --- quantities ----------------------------------------------------------------------------------

    def _quantities(
        self,
        model: str,
        group: tuple[str, ...],
        kinds: tuple[str, ...],
        placed: Mapping[tuple[int, int], list[Line]],
        used: Mapping[tuple[int, int], list[LoggedUsage]],
    ) -> set[tuple[int, int]]:
        """Compare the kinds of ``group``, which lines tell together; return the periods that differ."""
        cells = []
        slack: dict[tuple[int, int], Vector] = {}
        for period, lines in placed.items():
            logged = tuple(sum(each.count(kind, kinds) for each in used[period]) for kind in group)
            cell = Cell(period, logged)
            for line in lines:
                told = counts_of(line, group)
                if any(told):
                    cell.lines.append((line.number, replace(line, number=0), told))
            slack[period] = tuple(sum(each.estimated(kind, kinds) for each in used[period]) for kind in group)
            cells.append(cell)
        tolerances = [
            self._quantity_tolerance * max(1, max((len(cell.lines) for cell in cells), default=1))
            for _ in group
        ]
        found = explain(cells, tuple(tolerances))
        for each in list(found):
            if isinstance(each, Wrong) and is_estimate(each.cell, slack[each.cell.period]):
                self.estimated.append((model, *each.cell.period))
                found.remove(each)
                continue
            self._add(model, group, each)
            if isinstance(each, Moved):
                self._homes[each.number] = each.home.period
        wrong = {each.cell.period for each in found}
        return wrong | {each.home.period for each in found if isinstance(each, Moved)}

    def _add(self, model: str, group: tuple[str, ...], found: Finding) -> None:
        cell = found.cell
        start, end = cell.period
        told = dict(zip(group, cell.billed, strict=True))
        logged = dict(zip(group, cell.logged, strict=True))
        made = Difference("wrong-quantity", model, start, end, (), told, logged)
        if isinstance(found, Short):
            told = dict.fromkeys(group, 0)
            logged = dict(zip(group, found.counts, strict=True))
            amount = self._prices.worth(model, None, start, found.counts, group)
            made = replace(made, what="missing", billed=told, logged=logged)
            made = replace(made, amount_nano=None if amount is None else -amount)
        elif isinstance(found, Doubled | Moved | Surplus):
            line = self._lines[found.number]
            told = dict(zip(group, found.counts, strict=True))
            made = replace(made, lines=(found.number,), billed=told, currency=line.currency)
            made = replace(made, logged=dict.fromkeys(group, 0), amount_nano=line.cost_nano)
            if isinstance(found, Doubled):
                made = replace(made, what="double", first=found.first)
            elif isinstance(found, Moved):
                home = found.home.period[0]
                made = replace(made, what="wrong-day", logged=told, amount_nano=0, belongs_us=home)
            else:
                made = replace(made, what="unlogged")
        else:
            numbers = tuple(number for number, _, _ in cell.lines)
            rest = tuple(b - a for a, b in zip(cell.logged, cell.billed, strict=True))
            tier = self._lines[numbers[0]].tier if len(numbers) == 1 else None
            amount = self._prices.worth(model, tier, start, rest, group)
            differing = [kind for kind, each in zip(group, rest, strict=True) if each]
            made = replace(
                made,
                lines=numbers if len(numbers) <= _MAX_NAMED else (),
                billed={kind: told[kind] for kind in differing},
                logged={kind: logged[kind] for kind in differing},
                amount_nano=amount,
            )
        if made.amount_nano is not None and made.currency is None:
            made = replace(made, currency=self._prices.currency_at(start))
        self.differences.append(made)

    def across_models(self) -> None:
        """Join what one model bills too much with what another one lacks on the same day."""
        for extra in [each for each in self.differences if each.what == "unlogged"]:
            lack = next(
                (
                    each
                    for each in self.differences
                    if each.what == "missing"
                    and (each.from_us, each.until_us) == (extra.from_us, extra.until_us)
                    and each.model != extra.model
                    and positive(each.logged) == positive(extra.billed)
                ),
                None,
            )
            if lack is not None:
                self.differences.remove(lack)
                self.differences.remove(extra)
                worth = None if extra.amount_nano is None or lack.amount_nano is None else lack.amount_nano
                amount = None if worth is None or extra.amount_nano is None else extra.amount_nano + worth
                self.differences.append(
                    replace(
                        extra,
                        what="wrong-model",
                        logged=lack.logged,
                        belongs_to=lack.model,
                        amount_nano=amount,
                    )
                )

    # --- amounts -------------------------------------------------------------------------------------

    def _amounts(
        self,
        model: str,
        period: tuple[int, int],
        lines: Sequence[Line],
        usage: Sequence[LoggedUsage],
        *,
        exact: bool,
    ) -> None:
        """Check the amounts of lines that tell quantities; ``exact``: the quantities are as logged."""
        as_one: list[Line] = []
        for line in lines:
            if line.cost_nano is None or not self._prices.books:
                continue
            if self._is_foreign(model, period, line):
                continue
            at = self._homes.get(line.number, (line.from_us, line.until_us))  # as priced on its own day
            worth = self._prices.of_line(model, replace(line, from_us=at[0], until_us=at[1]))
            if worth is None:
                self.unpriced.append(line.number)
                continue
            low, high = worth
            slack = self._amount_tolerance * _PER_RATE
            if not low - slack <= line.cost_nano * _PER_RATE <= high + slack:
                expected = _nano(low if line.cost_nano * _PER_RATE < low else high)
                self._add_rate(model, period, (line,), expected)
            elif low != high:
                as_one.append(line)
        if as_one and exact and len(as_one) == len(lines) and len({line.tier for line in lines}) == 1:
            total = self._prices.of_usage(model, as_one[0].tier, usage)
            billed = sum(line.cost_nano or 0 for line in as_one)
            # Who charges by request rounds by request.
            slack = self._amount_tolerance * len(as_one) + sum(each.requests for each in usage)
            if total is not None and abs(billed * _PER_RATE - total) > slack * _PER_RATE:
                self._add_rate(model, period, as_one, _nano(total))

    def _is_foreign(self, model: str, period: tuple[int, int], line: Line) -> bool:
        """Whether the line is in a currency that no book of its time has; then that is told."""
        currencies = self._prices.currencies_at(line.from_us)
        if line.currency is None or not currencies or line.currency in currencies:
            return False
        self.differences.append(
            Difference(
                "other-currency",
                model,
                *period,
                (line.number,),
                dict(line.quantities),
                {},
                None,
                line.currency,
            )
        )
        return True

    def _add_rate(
        self,
        model: str,
        period: tuple[int, int],
        lines: Sequence[Line],
        expected: int,
        what: str = "wrong-rate",
    ) -> None:
        billed = sum(line.cost_nano or 0 for line in lines)
        counts: dict[str, int] = defaultdict(int)
        for line in lines:
            for kind, count in line.quantities:
                counts[kind] += count
        currency = (lines[0].currency if lines else None) or self._prices.currency_at(period[0])
        self.differences.append(
            Difference(
                what,
                model,
                *period,
                tuple(line.number for line in lines),
                dict(counts),
                {},
                billed - expected,
                currency,
                expected_nano=expected,
            )
        )

    def _costs(
        self,
        model: str,
        placed: Mapping[tuple[int, int], list[Line]],
        used: Mapping[tuple[int, int], list[LoggedUsage]],
    ) -> None:
        """Compare amounts with what the logged usage costs, for lines that tell no quantities."""
        cells = []
        longest = 1
        for period, lines in placed.items():
            total = self._prices.of_usage(model, None, used[period])
            ours = [line for line in lines if not self._is_foreign(model, period, line)]
            if total is None:
                self.unpriced += [line.number for line in ours]
                continue
            longest = max(longest, len(ours) + sum(each.requests for each in used[period]) // 1_000_000)
            cell = Cell(period, (_nano(total),))
            cell.lines = [(line.number, replace(line, number=0), (line.cost_nano or 0,)) for line in ours]
            cells.append(cell)
        for found in explain(cells, (self._amount_tolerance * longest,)):
            if isinstance(found, Doubled | Moved | Surplus | Short):
                self._add(model, (_COST,), found)
            else:
                lines = [self._lines[number] for number, _, _ in found.cell.lines]
                self._add_rate(model, found.cell.period, lines, found.cell.logged[0], "wrong-amount")

    def _add_compared(
        self,
        model: str,
        period: tuple[int, int],
        lines: Sequence[Line],
        usage: Sequence[LoggedUsage],
        kinds: tuple[str, ...],
    ) -> None:
        currencies = {line.currency for line in lines if line.cost_nano is not None}
        tiers = {line.tier for line in lines} or {None}
        one = len(tiers) == 1
        expected = self._prices.of_usage(model, next(iter(tiers)), usage) if one and usage else None
        told = [line.cost_nano for line in lines if line.cost_nano is not None]
        self.compared.append(
            Compared(
                model,
                *period,
                len(lines),
                {kind: sum(counts_of(line, (kind,))[0] for line in lines) for kind in kinds},
                {kind: sum(each.count(kind, kinds) for each in usage) for kind in kinds},
                sum(told) if told and len(currencies) == 1 else None,
                None if expected is None else _nano(expected),
                (currencies - {None}).pop()
                if len(currencies - {None}) == 1
                else self._prices.currency_at(period[0]),
            )
        )


def _nano(numerator: int) -> int:
    return (2 * numerator + _PER_RATE) // (2 * _PER_RATE)


def _shown(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat()
