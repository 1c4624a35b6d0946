"""``tallystick reconcile``: hold a provider's invoice against the records of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import From, Json, To

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from ledger.cost.differences import Difference, Reconciliation

__all__ = ["EXAMPLES", "reconcile"]

EXAMPLES = (
    "tallystick reconcile invoice.csv --export export-2026-01 --prices book.json --where provider=openai",
    "tallystick reconcile usage.json --export export-all --from 2026-01-01 --to 2026-02-01 --json",
    "tallystick reconcile bill.csv --export export-all --column start=Day --column model=Service",
)

_DIFFERENT = 1
_UNTOLD = 2


def reconcile(
    ctx: typer.Context,
    invoice: Annotated[
        Path,
        typer.Argument(
            metavar="INVOICE", help="CSV, or JSON of OpenAI's usage or costs API. See docs/how-to/costs.md."
        ),
    ],
    export: Annotated[
        Path, typer.Option("--export", metavar="DIR", help="Folder of a Parquet export of the log.")
    ],
    prices: Annotated[
        list[Path] | None,
        typer.Option(
            "--prices",
            metavar="FILE",
            help="Price book; may be repeated. Without one, amounts are not checked.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--form", metavar="FORM", help="focus, openai-usage, openai-costs or plain; else told apart."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="FIELD=COLUMN", help="Which column tells a field; may be repeated."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            "--alias",
            metavar="INVOICED=LOGGED",
            help="Other name of a model in the invoice; may be repeated.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only records with this value, such as provider=openai."),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose rates apply, if the price book has several's.")
    ] = None,
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Whose days the invoice means, such as America/Los_Angeles.")
    ] = "UTC",
    from_: From = None,
    to: To = None,
    attributed: Annotated[
        str,
        typer.Option(
            "--attributed",
            metavar="WHEN",
            help="Requests count on the day they started or ended; auto takes what differs less.",
        ),
    ] = "auto",
    currency: Annotated[
        str | None, typer.Option(metavar="CODE", help="Currency of amounts, if the invoice does not tell.")
    ] = None,
    tolerance: Annotated[
        str,
        typer.Option(
            metavar="AMOUNT", help="By how much a line's amount may differ, beside half of its last digit."
        ),
    ] = "0",
    csv: Annotated[bool, typer.Option("--csv", help="Write the differences as CSV.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Show what agrees too, by day and model.")] = False,
    json: Json = False,
) -> None:
    """Compare an invoice with the logged tokens and a price book, by day and model, and name what is wrong.

    Finds lines that are missing, double, at a wrong rate, on a wrong day or for a wrong model, of a wrong
    quantity, in another currency, and usage that was never logged. Days are those of --timezone, and times
    without an offset are its times. Without --from and --to, what is compared is the billing period that the
    invoice states, or else the time from its first to its last line.

    Exit codes: 0 all agrees, 1 there are differences, 2 there are none, but some lines could not be checked.

    With --json: differences (what, model, from_us, until_us, lines, billed, logged, amount_nano, currency
    and, by what it is, first, belongs_us, belongs_to, expected_nano), compared, from_us, until_us, outside,
    unpriced, estimated, attributed, and others: lines that are no usage.
    """
    from cli.output import print_json
    from cli.query import parse_conditions
    from ledger.cost.invoices import MAX_INVOICE_BYTES, read_invoice
    from ledger.cost.prices import load_price_book, nano
    from ledger.export.reconcile import ATTRIBUTIONS, reconcile_export

    zone = _zone(timezone)
    if attributed not in ATTRIBUTIONS:
        raise _wrong("--attributed", f"{attributed!r} is none of {', '.join(ATTRIBUTIONS)}")
    books = [load_price_book(path) for path in prices or ()]
    with _opened(invoice) as file:
        data = file.read(MAX_INVOICE_BYTES + 1)
    read = read_invoice(
        data,
        form=form,
        columns=_pairs(column, "--column"),
        currency=currency,
        zone=zone,
        where=invoice.name,
    )
    found = reconcile_export(
        export,
        read,
        books,
        where=parse_conditions(where or ()),
        zone=zone,
        from_us=_time(from_, "--from", zone),
        until_us=_time(to, "--to", zone),
        aliases=_pairs(alias, "--alias"),
        provider=provider,
        tolerance_nano=nano(tolerance, "--tolerance"),
        attributed=attributed,
    )
    if json:
        print_json(_plain(found) | {"others": list(read.others), "form": read.form})
    elif csv:
        _write_csv(found, zone)
    else:
        _print(found, zone, every=every, others=read.others, priced=bool(books))
    if found.differences:
        ctx.exit(_DIFFERENT)
    if found.outside_log or found.unpriced:
        ctx.exit(_UNTOLD)


def _opened(path: Path) -> Any:
    from ledger.core.errors import InvalidError

    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="name a file", code="bad-invoice"
        ) from None


def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise _wrong("--timezone", f"there is no time zone {name!r}") from None


def _time(text: str | None, option: str, zone: ZoneInfo) -> int | None:
    """As ``figures.parse_time``, but what has no offset is of the zone."""
    from datetime import datetime

    from cli.figures import parse_time

    if text is not None and not text.isdigit():
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            return parse_time(text, option)
        if when.tzinfo is None:
            return parse_time(when.replace(tzinfo=zone).isoformat(), option)
    return parse_time(text, option)


def _wrong(where: str, what: str) -> Exception:
    from ledger.core.errors import InvalidError

    return InvalidError(what, where=where, code="bad-parameter")


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    found = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not equals or not name or not value:
            raise _wrong(option, f"{each!r} is not NAME=VALUE")
        found[name] = value
    return found


def _plain(found: Reconciliation) -> dict[str, Any]:
    from dataclasses import asdict

    def known(value: Any) -> dict[str, Any]:
        return {name: each for name, each in asdict(value).items() if each is not None}

    return known(found) | {
        "differences": [known(each) for each in found.differences],
        "compared": [known(each) for each in found.compared],
    }


def _day(at_us: int, zone: ZoneInfo) -> str:
    from datetime import UTC, datetime

    when = datetime.fromtimestamp(at_us // 1_000_000, UTC).astimezone(zone)
    return when.strftime("%Y-%m-%d" if (when.hour, when.minute) == (0, 0) else "%Y-%m-%d %H:%M")


def _tokens(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.items()) or ""


def _hint(found: Difference, zone: ZoneInfo) -> str:
    from cli.figures import cost

    if found.first is not None:
        return f"same as line {found.first}"
    if found.belongs_us is not None:
        return f"belongs to {_day(found.belongs_us, zone)}"
    if found.belongs_to is not None:
        return f"belongs to {found.belongs_to}"
    return "" if found.expected_nano is None else f"expected {cost(found.expected_nano, found.currency)}"


def _row(found: Difference, zone: ZoneInfo) -> list[str]:
    from cli.figures import signed_cost

    return [
        found.what,
        _day(found.from_us, zone),
        found.model,
        " ".join(map(str, found.lines)),
        _tokens(found.billed),
        _tokens(found.logged),
        signed_cost(found.amount_nano, found.currency),
        _hint(found, zone),
    ]


_HEADINGS = ("what", "day", "model", "line", "billed", "logged", "too much", "")


def _print(
    found: Reconciliation, zone: ZoneInfo, *, every: bool, others: Sequence[int], priced: bool
) -> None:
    from cli.figures import cost
    from cli.output import note, table

    if every:
        headings = ("day", "model", "lines", "billed", "logged", "billed", "by price book")
        table(
            headings,
            [
                [
                    _day(each.from_us, zone),
                    each.model,
                    str(each.lines),
                    _tokens(each.billed),
                    _tokens(each.logged),
                    cost(each.billed_nano, each.currency),
                    cost(each.expected_nano, each.currency),
                ]
                for each in found.compared
            ],
        )
    if found.differences:
        table(_HEADINGS, [_row(each, zone) for each in found.differences], right=("line", "too much"))
    else:
        print("no differences")
    note(f"compared: {_day(found.from_us, zone)} to {_day(found.until_us, zone)} ({zone}), exclusive")
    note(f"requests count when they {found.attributed}")
    for numbers, what in (
        (found.outside, "lines are outside of that, and were left out"),
        (found.outside_log, "lines are outside of what the export holds, and were left out"),
        (found.unpriced, "lines have an amount whose rate no price book has: not checked"),
        (others, "lines are charges other than for usage"),
    ):
        if numbers:
            note(f"{len(numbers)} {what}: {', '.join(map(str, numbers[:20]))}{' …' * (len(numbers) > 20)}")
    if found.estimated:
        days = ", ".join(f"{_day(at, zone)} {model}" for model, at, _ in found.estimated[:20])
        note(f"within what is estimated (half of the estimated tokens), not checked further: {days}")
    if found.dropped:
        note(f"issuers said that they lost {found.dropped} records; what those used is not logged")
    if not priced:
        note("amounts were not checked: pass --prices")


def _write_csv(found: Reconciliation, zone: ZoneInfo) -> None:
    import csv
    import sys

    from ledger.export.tables import safe_cell

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        (
            "what",
            "from",
            "until",
            "model",
            "lines",
            "kind",
            "billed",
            "logged",
            "amount_nano",
            "currency",
            "hint",
        )
    )
    for each in found.differences:
        kinds = list(dict.fromkeys([*each.billed, *each.logged])) or [""]
        for at, kind in enumerate(kinds):
            amount = "" if at or each.amount_nano is None else each.amount_nano
            writer.writerow(
                map(
                    safe_cell,
                    (
                        each.what,
                        _day(each.from_us, zone),
                        _day(each.until_us, zone),
                        each.model,
                        " ".join(map(str, each.lines)),
                        kind,
                        each.billed.get(kind, ""),
                        each.logged.get(kind, ""),
                        amount,
                        each.currency or "",
                        _hint(each, zone),
                    ),
                )
            )
