"""``tallystick prices``: price books, and the list prices that installed packages know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import From, Json, To, command

if TYPE_CHECKING:
    from ledger.core.price_books import PriceBook

__all__ = ["app"]

app = typer.Typer(help="Make, show and check price books; list prices of providers.", no_args_is_help=True)

_DIFFERENT = 1
_RATES = (
    ("input_nano_per_mtok", "input"),
    ("cached_input_nano_per_mtok", "cached"),
    ("cache_write_nano_per_mtok", "cache write"),
    ("output_nano_per_mtok", "output"),
    ("reasoning_nano_per_mtok", "reasoning"),
)
Patterns = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PROVIDER[:MODEL]]...", help="Such as openai or openai:gpt-4o*; without one, all."
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the book here; else to stdout.")
]
At = Annotated[
    str | None, typer.Option("--at", metavar="TIME", help="Prices of then: ISO 8601 (UTC); else of now.")
]


@command(app, "tallystick prices list openai:gpt-4o*", "tallystick prices list --json", name="list")
def list_prices(patterns: Patterns = None, at: At = None, json: Json = False) -> None:
    """List list prices of providers' models, in US dollars for a million tokens, from an installed package.

    Nothing is fetched. The package is genai-prices (extra `prices`); it is kept by hand and can be out of
    date: an invoice is right by the contract, not by it.

    With --json: package, version, prices, each with provider, model, rates (as in a price book) and left_out.
    """
    import msgspec

    from cli.output import print_json, table
    from ledger.cost import list_prices as source

    found = source.list_prices(patterns or (), at=_time(at))
    if json:
        made = [
            {
                "provider": each.provider,
                "model": each.model,
                "rates": msgspec.to_builtins(each.rates),
                "left_out": each.left_out,
            }
            for each in found
        ]
        print_json({"package": "genai-prices", "version": source.package_version(), "prices": made})
        return
    rates = [rate for each in found for rate in each.rates]
    table(("provider", *_HEADINGS), [[str(rate.provider), *_row(rate)] for rate in rates], right=_RIGHT)


@command(app, "tallystick prices show book.json", "tallystick prices show book.json --json")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Price book, JSON.")], json: Json = False
) -> None:
    """Show a price book and its digest.

    With --json: digest, and prices: the book, its rates in canonical order.
    """
    from cli.output import print_json, table
    from ledger.core.records import document_digest
    from ledger.cost.prices import load_price_book

    book = load_price_book(file)
    if json:
        print_json({"digest": document_digest(book), "prices": _plain(book)})
        return
    _fields(book)
    table(
        ("provider", *_HEADINGS),
        [["" if not rate.provider else rate.provider, *_row(rate)] for rate in book.rates],
        right=_RIGHT,
    )


@command(
    app,
    "tallystick prices make rates.csv --name tariff --version 2026-11 --currency EUR "
    "--source 'contract 4711' --out book.json",
)
def make(
    rates: Annotated[
        Path,
        typer.Argument(
            metavar="CSV",
            help="Columns: model, input_per_mtok, output_per_mtok, and any of cached_input_per_mtok, "
            "cache_write_per_mtok, reasoning_per_mtok, per_request, aliases, provider, region, tier, "
            "above_input_tokens.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the book.")],
    version: Annotated[str, typer.Option(metavar="VERSION", help="Version of the book.")],
    currency: Annotated[str, typer.Option(metavar="CODE", help="ISO 4217 code of the rates.")],
    source: Annotated[str, typer.Option(metavar="TEXT", help="Where the rates come from.")],
    from_: From = None,
    to: To = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Make a price book of a CSV of rates, which are amounts for a million tokens, such as 0.15.

    --from and --to say for requests of which time it holds.

    With --json: digest, rates (how many), file.
    """
    from cli.figures import parse_time
    from ledger.core.errors import InvalidError
    from ledger.cost.prices import make_price_book, read_rates_csv

    try:
        text = rates.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(
            "cannot be read as UTF-8", where=str(rates), remedy=str(error)[:200], code="bad-price-book"
        ) from None
    book = make_price_book(
        read_rates_csv(text, where=rates.name),
        name=name,
        version=version,
        currency=currency,
        source=source,
        valid_from_us=parse_time(from_, "--from"),
        valid_until_us=parse_time(to, "--to"),
        where=rates.name,
    )
    _write(book, out, json)


@command(
    app,
    "tallystick prices import-list openai anthropic:claude-* --out list.json",
    "tallystick prices import-list openai:gpt-4o* --at 2026-01-01",
    name="import-list",
)
def import_list(patterns: Patterns = None, at: At = None, out: Out = None, json: Json = False) -> None:
    """Make a price book of list prices, from an installed package; see `tallystick prices list`.

    What a price book cannot say (audio, images, searches) is left out and told on stderr.

    With --json: digest, rates (how many), file.
    """
    from cli.output import note
    from ledger.cost.list_prices import list_price_book

    book, chosen = list_price_book(patterns or ("*",), at=_time(at))
    left_out = sorted({what for each in chosen for what in each.left_out})
    if left_out:
        note(f"left out: {', '.join(left_out)}")
    _write(book, out, json)


@command(
    app,
    "tallystick prices check book.json",
    "tallystick prices check --export export-2026-01 --json",
)
def check(
    ctx: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Price books to check.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="DIR", help="Check the costs of an export's records by the books in its log."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check price books' files; with --export, that each record costs what its batch's price books say.

    A record whose batch names price books was charged by one of them, or its cost was stated by whoever
    recorded it: those that no named book gives are told, and are not wrong by that alone. The exit code is 1
    if there are any, and 2 if a file is no price book.

    With --json: books (file, digest, rates, bytes, loggable) and, with --export, batches, records, by_book,
    otherwise (records that state another cost), unstated, examples.
    """
    from cli.output import note, print_json, table
    from ledger.core.canonical import encode_canonical
    from ledger.core.records import document_digest
    from ledger.cost.prices import load_price_book

    books = []
    for path in files or ():
        book = load_price_book(path)
        size = len(encode_canonical(book))
        books.append(
            {
                "file": str(path),
                "digest": document_digest(book),
                "rates": len(book.rates),
                "bytes": size,
                "loggable": size <= 61_440,
            }
        )
    made: dict[str, Any] = {"books": books}
    if export is not None:
        from dataclasses import asdict

        from cli.progress import progress
        from ledger.export.charged import check_charged

        with progress("charging records") as report:
            made |= asdict(check_charged(export, progress=report))
    if json:
        print_json(made)
    else:
        if books:
            headings = ("file", "digest", "rates", "bytes")
            table(
                headings, [[str(each[name]) for name in headings] for each in books], right=("rates", "bytes")
            )
        for each in books:
            if not each["loggable"]:
                note(f"{each['file']} is too large to be logged: keep only the rates that you use")
        if export is not None:
            print(
                f"{made['records']} records of {made['batches']} batches with price books: {made['by_book']} "
                f"cost what a book says, {made['otherwise']} something else, {made['unstated']} state no cost"
            )
            for one in made["examples"]:
                print(f"  {one}")
    if made.get("otherwise"):
        ctx.exit(_DIFFERENT)


_HEADINGS = ("model", "tier", "longer than", *(name for _, name in _RATES), "request")
_RIGHT = _HEADINGS[2:]


def _row(rate: Any) -> list[str]:
    from msgspec import UNSET

    def told(value: Any) -> str:
        return "" if value is UNSET else str(value)

    amounts = [getattr(rate, name) for name, _ in _RATES]
    return [
        rate.model if not rate.region else f"{rate.model} ({rate.region})",
        told(rate.tier),
        told(rate.above_input_tokens),
        *("" if value is UNSET else _units(value) for value in amounts),
        "" if rate.request_nano is UNSET else _units(rate.request_nano),
    ]


def _units(nano: int) -> str:
    """An amount in whole units, without zeros at its end."""
    text = f"{nano // 10**9:,}.{nano % 10**9:09d}".rstrip("0")
    return text.removesuffix(".")


def _plain(book: PriceBook) -> Any:
    import msgspec

    return msgspec.to_builtins(book)


def _fields(book: PriceBook) -> None:
    from cli.figures import time
    from cli.output import fields
    from ledger.core.records import document_digest

    told = [
        ("name", book.name),
        ("version", book.version),
        ("digest", document_digest(book)),
        ("currency", book.currency),
        ("source", book.source),
        ("from", time(book.valid_from_us or None)),
        ("until", time(book.valid_until_us or None)),
    ]
    fields((name, value) for name, value in told if value)


def _write(book: PriceBook, out: Path | None, json: bool) -> None:
    from cli.output import fields, print_json, write_bytes
    from ledger.core.canonical import encode_canonical
    from ledger.core.records import document_digest

    data = encode_canonical(book) + b"\n"
    if out is None and not json:
        write_bytes(data)
        return
    if out is not None:
        out.write_bytes(data)
    made = {
        "digest": document_digest(book),
        "rates": len(book.rates),
        "file": None if out is None else str(out),
    }
    if json:
        print_json({name: value for name, value in made.items() if value is not None})
    else:
        fields((name, str(value)) for name, value in made.items())


def _time(text: str | None) -> Any:
    from datetime import UTC, datetime

    from cli.figures import parse_time

    at_us = parse_time(text, "--at")
    return None if at_us is None else datetime.fromtimestamp(at_us / 10**6, UTC)
