"""Owns the outlook to a month's end: what was used by now, exactly, and what will have been, with intervals.

Days are whole days of UTC. A day without records is one without use. The export's first day is left out: it
is rarely whole. Of the day that runs, what is used by now is a lower bound of its forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.core.errors import InvalidError
from ledger.export.forecast import Backtest, Forecast, Interval, backtest, forecast
from ledger.export.query import Question, ask, conditions
from ledger.export.reading import open_export

if TYPE_CHECKING:
    import duckdb

__all__ = ["FIGURES", "Asked", "Day", "Outlook", "outlooks"]

FIGURES = ("tokens", "cost_nano", "energy_uj", "carbon_ng")
"""What is forecast: input and output tokens, spend by currency, energy, carbon by location."""

_SEASON_DAYS = 7
_US_PER_DAY = 86_400_000_000
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Asked:
    """What an outlook is of.

    Attributes:
        figures: of ``FIGURES``.
        where: as of ``export.query.Question``.
        as_of_us: what is known; by default up to the last record.
        check: whether to look back at how forecasts would have held.
    """

    figures: Sequence[str] = FIGURES
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    as_of_us: int | None = None
    check: bool = False


@dataclass(frozen=True)
class Day:
    """One day to come; the first is the one that runs."""

    day: str
    value: int
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Outlook:
    """One figure to the month's end.

    Attributes:
        figure: of ``FIGURES``.
        currency: of ``cost_nano``.
        month: as 2026-02.
        as_of_us: what is known ends here.
        used: in the month by then, exactly.
        records: in the month by then,
        unknown_records: and how many of them do not tell the figure.
        history_days: whole days that the forecast is made of.
        days_left: to the month's end, with the one that runs.
        total: expected for the whole month; None where it cannot be told.
        intervals: of that total.
        days: the days to come.
        cannot_tell: why there is no forecast.
        checked: how forecasts of as many days would have held; None if not asked for, or not to be told.
    """

    figure: str
    currency: str | None
    month: str
    as_of_us: int
    used: int
    records: int
    unknown_records: int
    history_days: int
    days_left: int
    total: int | None = None
    intervals: tuple[Interval, ...] = ()
    days: tuple[Day, ...] = ()
    cannot_tell: str | None = None
    checked: Backtest | None = None


@dataclass(frozen=True)
class _Use:
    value: int = 0
    records: int = 0
    known: int = 0


def outlooks(
    export: Path, asked: Asked | None = None, *, report: Callable[[int, int], None] | None = None
) -> list[Outlook]:
    """The outlook of each figure that records tell, in the order of ``FIGURES``; of spend, by currency.

    Args:
        export: folder of a Parquet export.
        asked: what of.
        report: is told (done, total).

    Raises:
        InvalidError: no export, an unknown figure or filter, or no records.
        UnavailableError: a library that this needs is not installed.
    """
    asked = asked or Asked()
    for name in asked.figures:
        if name not in FIGURES:
            raise InvalidError(
                f"there is no forecast of {name[:40]!r}",
                where="figure",
                remedy=f"use {', '.join(FIGURES)}",
                code="bad-parameter",
            )
    with open_export(export) as connection:
        first_us, last_us = _span(connection, asked)
        as_of_us = last_us + 1 if asked.as_of_us is None else asked.as_of_us
        found: list[tuple[str, str | None, dict[int, _Use]]] = []
        for name in asked.figures:
            found += _use_by_day(connection, asked, name, as_of_us)
    made = []
    for done, (name, currency, days) in enumerate(found):
        if report is not None:
            report(done, len(found))
        made.append(_outlook(name, currency, days, first_us, as_of_us, check=asked.check))
    if report is not None:
        report(len(found), len(found))
    return made


def _span(connection: duckdb.DuckDBPyConnection, asked: Asked) -> tuple[int, int]:
    chosen, parameters = conditions(Question(where=asked.where, to_us=asked.as_of_us))
    sql = f"SELECT min(epoch_us(started_at)), max(epoch_us(started_at)) FROM records{chosen}"  # noqa: S608
    row = connection.execute(sql, parameters).fetchone()
    if row is None or row[0] is None:
        raise InvalidError(
            "the export has no such records",
            where="history",
            remedy="see `tallystick query EXPORT --by day` for what there is",
            code="short-history",
        )
    return int(row[0]), int(row[1])


def _use_by_day(
    connection: duckdb.DuckDBPyConnection, asked: Asked, name: str, as_of_us: int
) -> list[tuple[str, str | None, dict[int, _Use]]]:
    """Use by day, of each currency apart; nothing of a figure that no record tells."""
    spend = name == "cost_nano"
    rows = ask(
        connection,
        Question(by=("day", "currency") if spend else ("day",), where=asked.where, to_us=as_of_us),
    )
    records: dict[int, int] = {}
    known: dict[str | None, dict[int, _Use]] = {}
    for row in rows:
        day = (date.fromisoformat(row["day"]) - _EPOCH).days
        records[day] = records.get(day, 0) + row["records"]
        currency = row["currency"] if spend else None
        value, count = _figure(row, name)
        if count:
            known.setdefault(currency, {})[day] = _Use(value, 0, count)
    return [
        (
            name,
            currency,
            {
                day: _Use(days[day].value if day in days else 0, count, days[day].known if day in days else 0)
                for day, count in records.items()
            },
        )
        for currency, days in sorted(known.items(), key=lambda each: each[0] or "")
    ]


def _figure(row: dict[str, Any], name: str) -> tuple[int, int]:
    if name == "tokens":
        return row["input_tokens"] + row["output_tokens"], row["records"]
    return row.get(name) or 0, row.get(f"{name}_records") or 0


def _outlook(
    name: str, currency: str | None, days: dict[int, _Use], first_us: int, as_of_us: int, *, check: bool
) -> Outlook:
    today = as_of_us // _US_PER_DAY
    now = datetime.fromtimestamp(today * 86_400, UTC)
    month = _days(now.year, now.month)
    in_month = [days.get(day, _Use()) for day in range(month.start, today + 1)]
    history = [days.get(day, _Use()).value for day in range(first_us // _US_PER_DAY + 1, today)]
    whole = sum(use.value for use in in_month[: today - month.start])
    used = sum(use.value for use in in_month)
    records = sum(use.records for use in in_month)
    left = month.stop - today
    known = Outlook(
        figure=name,
        currency=currency,
        month=f"{now:%Y-%m}",
        as_of_us=as_of_us,
        used=used,
        records=records,
        unknown_records=records - sum(use.known for use in in_month),
        history_days=len(history),
        days_left=left,
    )
    try:
        made = forecast(history, left, _SEASON_DAYS)
    except InvalidError as error:
        return replace(known, cannot_tell=f"{error.what}; {error.remedy}".replace("periods", "days"))
    checked = None
    if check:
        try:
            checked = backtest(history, left, _SEASON_DAYS)
        except InvalidError:
            checked = None
    return replace(
        known,
        total=max(used, whole + made.total),
        intervals=tuple(_above(each, whole, used) for each in made.total_intervals),
        days=_to_come(made, today, days.get(today, _Use()).value),
        checked=checked,
    )


def _to_come(made: Forecast, today: int, used_today: int) -> tuple[Day, ...]:
    return tuple(
        Day(
            str(_EPOCH + timedelta(days=today + n)),
            max(value, 0 if n else used_today),
            tuple(_above(each, 0, 0 if n else used_today) for each in made.intervals[n]),
        )
        for n, value in enumerate(made.values)
    )


def _above(interval: Interval, known: int, least: int) -> Interval:
    """The interval on top of what is known; it cannot end below what is used by now."""
    return Interval(interval.level, max(least, known + interval.low), max(least, known + interval.high))


def _days(year: int, month: int) -> range:
    first = date(year, month, 1)
    after = date(year + month // 12, month % 12 + 1, 1)
    return range((first - _EPOCH).days, (after - _EPOCH).days)
