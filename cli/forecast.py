"""``tallystick forecast``: what a month will come to, with how far it may be off."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json

if TYPE_CHECKING:
    from ledger.export.forecast import Interval
    from ledger.export.month_end import Outlook

__all__ = ["EXAMPLES", "forecast"]

EXAMPLES = (
    "tallystick forecast export-all",
    "tallystick forecast export-all --figure cost --where tenant=acme --check",
    "tallystick forecast export-all --as-of 2026-02-15 --days --json",
)


class Figure(StrEnum):
    """What can be forecast."""

    TOKENS = "tokens"
    COST = "cost"
    ENERGY = "energy"
    CARBON = "carbon"


_NAMES = {
    Figure.TOKENS: "tokens",
    Figure.COST: "cost_nano",
    Figure.ENERGY: "energy_uj",
    Figure.CARBON: "carbon_ng",
}


def forecast(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")],
    figure: Annotated[list[Figure] | None, typer.Option(help="Of these alone; may be repeated.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Only records with this value; repeat a name for more values. NAME= asks for none.",
        ),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of", metavar="TIME", help="As if known up to this time. Default: the last record."
        ),
    ] = None,
    days: Annotated[bool, typer.Option("--days", help="Show each day to come.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Show how such forecasts would have held in the past. Takes longer."),
    ] = False,
    json: Json = False,
) -> None:
    """Forecast tokens, spend, energy and carbon to the end of the month, with 80 and 90 percent intervals.

    What is used by now is exact. What is to come is an estimate; its intervals come from how far the same
    forecast was off at earlier days of this export. Days are those of UTC.

    Exit codes: 0 forecast, 2 the history is too short to tell, or it could not be read.

    With --json: outlooks, each with figure (and currency), month, as_of_us, used, records, unknown_records
    (that do not tell the figure), history_days, days_left; and total, intervals (level, low, high) and days
    (day, value, intervals), or cannot_tell; with --check, checked: forecasts, step_coverage and
    total_coverage (percent, by level), mase, naive_mase.
    """
    from cli import figures
    from cli.errors import CANNOT_TELL
    from cli.output import print_json
    from cli.progress import progress
    from cli.query import parse_conditions
    from ledger.export.month_end import Asked, outlooks

    asked = Asked(
        figures=[_NAMES[each] for each in figure or list(Figure)],
        where=parse_conditions(where or []),
        as_of_us=figures.parse_time(as_of, "--as-of"),
        check=check,
    )
    with progress("forecasting") as report:
        found = outlooks(export, asked, report=report)
    if json:
        print_json({"outlooks": [_described(each) for each in found]})
    else:
        _show(found, days=days)
    if not any(each.total is not None for each in found):
        raise typer.Exit(CANNOT_TELL)


def _described(outlook: Outlook) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: value for name, value in asdict(outlook).items() if value is not None}


def _show(found: list[Outlook], *, days: bool) -> None:
    from cli import figures
    from cli.output import note, printable, table

    if not found:
        note("no record tells any of these figures")
        return
    print(f"{found[0].month}, known up to {figures.time(found[0].as_of_us)}")
    columns = ("figure", "used", "whole month", "80 %", "90 %", "from days")
    table(
        columns,
        [
            (
                _name(each),
                _amount(each, each.used),
                "cannot tell" if each.total is None else _amount(each, each.total),
                *(_range(each, each.intervals, level) for level in (80, 90)),
                str(each.history_days),
            )
            for each in found
        ],
        right=columns[1:],
    )
    for each in found:
        if each.cannot_tell is not None:
            print(printable(f"{_name(each)}: {each.cannot_tell}"))
        if each.unknown_records:
            print(f"{_name(each)}: {each.unknown_records:,} of {each.records:,} records do not tell it")
        if each.checked is not None:
            _show_check(each)
        if days and each.days:
            rows = [
                (
                    day.day,
                    _amount(each, day.value),
                    _range(each, day.intervals, 80),
                    _range(each, day.intervals, 90),
                )
                for day in each.days
            ]
            table((_name(each), "expected", "80 %", "90 %"), rows, right=("expected", "80 %", "90 %"))


def _show_check(outlook: Outlook) -> None:
    found = outlook.checked
    assert found is not None  # noqa: S101 - the caller looked
    held = ", ".join(
        f"{level} % intervals {found.step_coverage[level]:.0f} % of days and "
        f"{found.total_coverage[level]:.0f} % of sums"
        for level in sorted(found.step_coverage)
    )
    better = "better" if found.mase < found.naive_mase else "no better"
    print(
        f"{_name(outlook)}: of {found.forecasts} earlier forecasts, {held}; error {found.mase:.2f}, "
        f"{better} than last week repeated ({found.naive_mase:.2f})"
    )


def _name(outlook: Outlook) -> str:
    plain = next(figure for figure, name in _NAMES.items() if name == outlook.figure)
    return f"{plain} ({outlook.currency})" if outlook.currency else str(plain)


def _amount(outlook: Outlook, value: int) -> str:
    from cli import figures

    if outlook.figure == "cost_nano":
        return figures.cost(value, outlook.currency)
    if outlook.figure == "tokens":
        return figures.count(value)
    return figures.energy(value) if outlook.figure == "energy_uj" else figures.carbon(value)


def _range(outlook: Outlook, intervals: tuple[Interval, ...], level: int) -> str:
    for each in intervals:
        if each.level == level:
            return f"{_amount(outlook, each.low)} to {_amount(outlook, each.high)}"
    return ""
