"""Random logs, the right invoices for them, and errors seeded into those: what a reconciliation must find."""

from __future__ import annotations

import csv
import io
import itertools
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from zoneinfo import ZoneInfo

from ledger.core.price_books import PriceBook, Rate, rate_key
from ledger.cost.usage import QUARTER_US, LoggedUsage

FIRST_DAY = date(2026, 10, 23)  # summer time ends in Europe two days later
ZONES = ("UTC", "America/Los_Angeles", "Asia/Kolkata", "Europe/Paris")
LONG = 200_000
KINDS = ("input", "cached_input", "output")
_KEYS = itertools.count()


def us(when: datetime) -> int:
    return round(when.timestamp()) * 1_000_000


def midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone)


def random_book(chance: Random, models: int) -> PriceBook:
    """A book of some models, with a batch tier; the first model has another price for long requests."""
    rates = []
    for n in range(models):
        name = f"model-{n}"
        whole = chance.choice([10**6, 10**7])  # rates of whole thousandths or hundredths
        values = [chance.randrange(1, 400) * whole for _ in range(3)]
        common = {"model": name, "aliases": (f"{name}-2026-*",)}
        for tier, share in ((None, 2), ("batch", 1)):
            extra = {} if tier is None else {"tier": tier}
            fields = {
                "input_nano_per_mtok": values[0] * share,
                "cached_input_nano_per_mtok": values[1] * share,
                "output_nano_per_mtok": values[2] * share,
            }
            rates.append(Rate(**common, **extra, **fields))
            if n == 0:
                longer = {key: 2 * value for key, value in fields.items()}
                rates.append(Rate(**common, **extra, **longer, above_input_tokens=LONG))
    return PriceBook(
        name="random", version="1", currency="USD", source="made up", rates=tuple(sorted(rates, key=rate_key))
    )


@dataclass
class Row:
    """One line of the invoice that is written."""

    day: date
    model: str
    counts: dict[str, int]
    tier: str | None
    amount: Decimal
    line: int = 0
    key: int = field(default_factory=lambda: next(_KEYS))


@dataclass(frozen=True)
class Seeded:
    """An error that was put in, and what a reconciliation must call it."""

    what: frozenset[str]
    model: str
    day: date
    rows: tuple[int, ...] = ()
    """Keys of the rows whose lines must be named."""
    belongs: date | None = None
    kinds: frozenset[str] = frozenset()


@dataclass
class Case:
    """A log, its book, an invoice's rows, and the errors in them."""

    zone: ZoneInfo
    book: PriceBook
    usage: list[LoggedUsage]
    rows: list[Row]
    wide: bool
    places: int
    days: int
    seeded: list[Seeded] = field(default_factory=list)

    @property
    def period(self) -> tuple[int, int]:
        first = midnight(FIRST_DAY, self.zone)
        last = midnight(FIRST_DAY + timedelta(days=self.days), self.zone)
        return us(first), us(last)

    def csv(self) -> bytes:
        """The invoice, in the plain form; numbers the rows' lines."""
        out = io.StringIO(newline="")
        names = ["start", "model", "tier", "amount", "currency"]
        names += [f"{kind}_tokens" for kind in KINDS] if self.wide else ["kind", "quantity"]
        writer = csv.writer(out)
        writer.writerow(names)
        for number, row in enumerate(self.rows, 2):
            row.line = number
            head = [row.day.isoformat(), row.model, row.tier or "", f"{row.amount:f}", "usd"]
            if self.wide:
                counts = row.counts
                writer.writerow(
                    [
                        *head,
                        counts["input"] + counts["cached_input"],
                        counts["cached_input"],
                        counts["output"],
                    ]
                )
            else:
                ((kind, count),) = row.counts.items()
                writer.writerow([*head, kind, count])
        return out.getvalue().encode()


def random_case(chance: Random) -> Case:
    """A log and the right invoice for it."""
    zone = ZoneInfo(chance.choice(ZONES))
    days, models = chance.randrange(3, 8), chance.randrange(1, 4)
    book = random_book(chance, models)
    wide, places = chance.random() < 0.5, chance.choice([2, 4, 6])
    usage: list[LoggedUsage] = []
    rows: list[Row] = []
    for n in range(models):
        model = f"model-{n}"
        for d in range(days):
            if chance.random() < 0.1:
                continue
            day = FIRST_DAY + timedelta(days=d)
            counted: dict[tuple[str | None, int], dict[str, int]] = defaultdict(
                lambda: dict.fromkeys(KINDS, 0)
            )
            tiers = [None, "batch"] if n and chance.random() < 0.5 else [None]
            begin, end = us(midnight(day, zone)), us(midnight(day + timedelta(days=1), zone))
            for tier in tiers:
                for _ in range(chance.randrange(1, 6)):
                    longer = LONG if n == 0 and chance.random() < 0.3 else 0
                    requests = chance.randrange(1, 50)
                    cached = chance.randrange(0, 90_000) if chance.random() < 0.8 else 0
                    fresh = chance.randrange(100_000, 9_000_000) + longer * requests
                    output = chance.randrange(10_000, 3_000_000)
                    usage.append(
                        LoggedUsage(
                            at_us=chance.randrange(begin, end, QUARTER_US),
                            model=model,
                            version=chance.choice([None, f"{model}-2026-08-01"]),
                            provider="example",
                            region=None,
                            longer_than=longer,
                            requests=requests,
                            input_tokens=fresh + cached,
                            cached_input_tokens=cached,
                            output_tokens=output,
                            reasoning_tokens=0,
                        )
                    )
                    counts = counted[tier, longer]
                    for kind, count in zip(KINDS, (fresh, cached, output), strict=True):
                        counts[kind] += count
            by_tier: dict[str | None, list[dict[str, int]]] = defaultdict(list)
            for (tier, longer), counts in counted.items():
                by_tier[tier].append(counts | {"longer": longer})
            for tier, parts in by_tier.items():
                invoiced = chance.choice([model, f"{model}-2026-08-01"])
                if wide:
                    total = {kind: sum(part[kind] for part in parts) for kind in KINDS}
                    amount = sum((_amount(book, model, tier, part) for part in parts), Decimal(0))
                    rows.append(Row(day, invoiced, total, tier, _rounded(amount, places)))
                    continue
                for kind in KINDS:
                    count = sum(part[kind] for part in parts)
                    amount = sum(
                        (_amount(book, model, tier, {kind: p[kind], "longer": p["longer"]}) for p in parts),
                        Decimal(0),
                    )
                    if count:
                        rows.append(Row(day, invoiced, {kind: count}, tier, _rounded(amount, places)))
    chance.shuffle(rows)
    return Case(zone, book, usage, rows, wide, places, days)


def _amount(book: PriceBook, model: str, tier: str | None, counts: dict[str, int]) -> Decimal:
    """What counts cost, in whole units: computed apart from the code under test."""
    longer = counts.get("longer", 0)
    (rate,) = (
        each
        for each in book.rates
        if each.model == model and (each.tier or None) == tier and (each.above_input_tokens or 0) == longer
    )
    per_mtok = {
        "input": rate.input_nano_per_mtok,
        "cached_input": rate.cached_input_nano_per_mtok,
        "output": rate.output_nano_per_mtok,
    }
    total = sum(counts.get(kind, 0) * value for kind, value in per_mtok.items())
    return Decimal(total) / 10**15


def _rounded(amount: Decimal, places: int) -> Decimal:
    return amount.quantize(Decimal(1).scaleb(-places))


def seed_errors(case: Case, chance: Random, most: int) -> None:
    """Put errors into the invoice, each into a cell (model, day, and kind if lines tell one) of its own."""
    used: set[tuple[str, date, str]] = set()
    plain = {row.key for row in case.rows}
    for _ in range(chance.randrange(1, most + 1)):
        free = [row for row in case.rows if row.key in plain and not _keys(case, row) & used]
        if not free:
            return
        row = chance.choice(free)
        model = _model(row.model)
        mates = [each for each in case.rows if _keys(case, each) & _keys(case, row)]
        what = chance.choice(["missing", "double", "wrong-rate", "wrong-day", "wrong-quantity", "unlogged"])
        seeded = Seeded(frozenset({what}), model, row.day, (row.key,), kinds=frozenset(row.counts))
        if what == "missing":
            case.rows.remove(row)
            both = frozenset({"missing", "wrong-quantity"})
            # Without any line for cached input, an invoice charges all of it as input.
            cached_only = set(row.counts) == {"cached_input"}
            seeded = replace(
                seeded,
                rows=(),
                what=seeded.what if len(mates) == 1 and not cached_only else both,
                kinds=seeded.kinds | ({"input"} if cached_only else set()),
            )
        elif what == "double":
            copy = replace(row, key=next(_KEYS))
            case.rows.insert(chance.randrange(len(case.rows) + 1), copy)
            seeded = replace(seeded, rows=(row.key, copy.key))
        elif what == "wrong-rate":
            step = Decimal(1).scaleb(-case.places)
            row.amount += chance.choice([1, -1]) * max(_rounded(row.amount / 5, case.places), 3 * step)
            if row.amount < 0:
                row.amount += 2 * max(_rounded(-row.amount, case.places), 4 * step)
        elif what == "wrong-day":
            others = [
                FIRST_DAY + timedelta(days=d)
                for d in range(case.days)
                if not {(model, FIRST_DAY + timedelta(days=d), kind) for _, _, kind in _keys(case, row)}
                & used
                and FIRST_DAY + timedelta(days=d) != row.day
            ]
            if not others:
                continue
            used |= _keys(case, row)
            home, row.day = row.day, chance.choice(others)
            seeded = replace(seeded, day=row.day, belongs=home)
        elif what == "wrong-quantity":
            kind = chance.choice(sorted(kind for kind, count in row.counts.items() if count))
            row.counts = row.counts | {kind: row.counts[kind] + chance.choice([1, -1, 999, 12_345])}
            if row.counts[kind] <= 0:
                row.counts[kind] = 7
            row.amount = _rounded(_line_amount(case, row), case.places)
        else:
            counts = {each: chance.randrange(5_000, 90_000) for each in row.counts}
            stranger = Row(
                row.day, "model-9" if chance.random() < 0.5 else row.model, counts, row.tier, Decimal(0)
            )
            if stranger.model == row.model:
                stranger.amount = _rounded(_line_amount(case, stranger), case.places)
            case.rows.append(stranger)
            seeded = replace(seeded, model=_model(stranger.model), rows=(stranger.key,))
        case.seeded.append(seeded)
        used |= _keys(case, row)


def _line_amount(case: Case, row: Row) -> Decimal:
    return _amount(case.book, _model(row.model), row.tier, row.counts)


def _model(name: str) -> str:
    return name.partition("-2026-")[0]


def _keys(case: Case, row: Row) -> set[tuple[str, date, str]]:
    """The cells of a row: all kinds of its model and day, since an error in one may hide another's."""
    return {
        (_model(row.model), row.day, "" if case.wide or row.model.startswith("model-0") else kind)
        for kind in row.counts
    }


def utc(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC)
