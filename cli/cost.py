"""``tallystick cost``: what logged tokens cost by price books, elsewhere, and on one's own hardware."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import From, Json, To, command
from cli.query import Dimension

__all__ = ["app"]

app = typer.Typer(
    help="What logged tokens cost: by price books, at other providers, on own hardware.", no_args_is_help=True
)

_UNTOLD = 2
Export = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")]
Prices = Annotated[list[Path], typer.Option("--prices", metavar="FILE", help="Price book; may be repeated.")]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Only records with this value, as in `tallystick query`."),
]
Tier = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whose rates: such as batch; else the ordinary ones.")
]


@command(
    app,
    "tallystick cost rate export-2026-01 --prices book.json --by day --by model",
    "tallystick cost rate export-all --prices old.json --prices new.json --by tenant --json",
)
def rate(
    ctx: typer.Context,
    export: Export,
    prices: Prices,
    by: Annotated[list[Dimension] | None, typer.Option(help="Group by; may be repeated.")] = None,
    where: Where = None,
    from_: From = None,
    to: To = None,
    tier: Tier = None,
    json: Json = False,
) -> None:
    """Total what records cost by price books, each record rounded by itself, exactly.

    Of several books, each record is charged by the one that held when it started. A record that no book has a
    rate for is counted and in no cost; the exit code is then 2. Where records state a cost, their total
    stands beside it.

    With --json: rows, each with its dimensions, records, input_tokens, cached_input_tokens, output_tokens,
    reasoning_tokens, rated_records, cost_nano, currency, logged_records, logged_nano, logged_currency and
    differing_records (whose stated cost is another).
    """
    from cli import figures
    from cli.output import note, print_json, table
    from ledger.cost.prices import load_price_book
    from ledger.export.costs import rated_groups
    from ledger.export.reading import open_export

    names = tuple(dict.fromkeys(each.value for each in by or ()))
    books = [load_price_book(path) for path in prices]
    with open_export(export) as connection:
        rows = rated_groups(connection, _question(names, where, from_, to), books, tier=tier)
    rows = [row for row in rows if row["records"]]
    if json:
        print_json({"rows": rows})
    elif not rows:
        note("no records")
    else:
        headings = [*names, "records", "in", "cached", "out", "cost", "per 1k", "as logged"]
        table(
            headings,
            [
                [
                    *("-" if row[name] is None else str(row[name]) for name in names),
                    figures.count(row["records"]),
                    figures.count(row["input_tokens"]),
                    figures.count(row["cached_input_tokens"]),
                    figures.count(row["output_tokens"]),
                    _rated(row),
                    _per_1k(row),
                    figures.cost(row.get("logged_nano"), row.get("logged_currency")),
                ]
                for row in rows
            ],
            right=headings[len(names) :],
        )
    if any(row["rated_records"] < row["records"] for row in rows):
        if not json:
            note("some records have no rate in the price books: their cost is not in the total")
        ctx.exit(_UNTOLD)


@command(
    app,
    "tallystick cost compare export-2026-01 --prices list.json --at openai:gpt-4o-mini "
    "--at anthropic:claude-haiku-4-5",
    "tallystick cost compare export-all --prices list.json --at gpt-4o --where model=Qwen3-32B --json",
)
def compare(
    export: Export,
    prices: Prices,
    at: Annotated[
        list[str],
        typer.Option(
            "--at", metavar="[PROVIDER:]MODEL[@TIER]", help="What to compare with; may be repeated."
        ),
    ],
    where: Where = None,
    from_: From = None,
    to: To = None,
    json: Json = False,
) -> None:
    """Tell what the same tokens would have cost elsewhere, per 1,000 tokens and in all.

    The counts are those logged: another model's tokenizer would count others, and its cache would serve
    others. Cached tokens are charged at the other provider's rate for them, reasoning at its rate. The first
    row is what the records state.

    With --json: rows (at, provider, model, tier, records, rated_records, tokens, cost_nano, currency,
    per_1k_tokens_nano), logged first.
    """
    from cli import figures
    from cli.output import note, print_json, table
    from ledger.cost.prices import load_price_book
    from ledger.cost.rating import rounded
    from ledger.export.costs import rated_groups
    from ledger.export.reading import open_export

    books = [load_price_book(path) for path in prices]
    question = _question((), where, from_, to)
    rows: list[dict[str, Any]] = []
    with open_export(export) as connection:
        for place in at:
            rest, _, tier = place.partition("@")
            provider, colon, model = rest.partition(":")
            instead = {"model": model if colon else rest, "version": None, "region": None}
            instead["provider"] = provider if colon else _only_provider(books, instead["model"] or "")
            (found,) = rated_groups(connection, question, books, tier=tier or None, instead=instead)
            tokens = found["input_tokens"] + found["output_tokens"]
            row: dict[str, Any] = {
                "at": place,
                **{k: v for k, v in instead.items() if v},
                "tier": tier or None,
            }
            row |= {name: found[name] for name in ("records", "rated_records")} | {"tokens": tokens}
            if not rows and "logged_nano" in found and found["logged_records"] == found["records"]:
                logged = {"at": "as logged", "records": found["records"], "rated_records": found["records"]}
                logged |= {"tokens": tokens, "cost_nano": found["logged_nano"]}
                rows.append(logged | {"currency": found["logged_currency"]})
            if found["rated_records"] and found["rated_records"] == found["records"]:
                row |= {"cost_nano": found["cost_nano"], "currency": found["currency"]}
            rows.append({name: value for name, value in row.items() if value is not None})
    for row in rows:
        if "cost_nano" in row and row["tokens"]:
            row["per_1k_tokens_nano"] = rounded(1000 * row["cost_nano"], row["tokens"])
    if json:
        print_json({"rows": rows})
        return
    table(
        ("at", "records", "tokens", "cost", "per 1k tokens"),
        [
            [
                row["at"],
                figures.count(row["records"]),
                figures.count(row["tokens"]),
                figures.cost(row.get("cost_nano"), row.get("currency")) or "no rate",
                figures.cost(row.get("per_1k_tokens_nano"), row.get("currency")),
            ]
            for row in rows
        ],
        right=("records", "tokens", "cost", "per 1k tokens"),
    )
    note("the same counts of tokens; another tokenizer would count others")


@command(
    app,
    "tallystick cost self-hosted export-2026-01 assumptions.json --from 2026-01-01 --to 2026-02-01",
    "tallystick cost self-hosted export-all assumptions.json --json",
    name="self-hosted",
)
def self_hosted(
    ctx: typer.Context,
    export: Export,
    assumptions: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON: hourly rates, price of electricity, PUE. See docs/how-to/costs.md."
        ),
    ],
    where: Where = None,
    from_: From = None,
    to: To = None,
    json: Json = False,
) -> None:
    """Tell what the tokens of own hardware cost: its hours, and the energy that the log has, over its tokens.

    The period is from --from to --to; without them, from the first record's start to the last one's end.
    Energy that no record carries (idle hardware, records without energy) is in no figure: it is told how many
    records have it. The exit code is 2 if there are deployments that no hardware is stated for.

    With --json: from_us, until_us, hardware (name, currency, deployments, records, tokens, output_tokens,
    hours, hardware_nano, energy_uj, energy_records, measured_records, energy_nano, other_nano, total_nano,
    per_1k_tokens_nano, per_1k_output_tokens_nano), without_hardware (deployments), assumptions.
    """
    from dataclasses import asdict

    import msgspec

    from cli import figures
    from cli.output import note, print_json, table
    from ledger.core.errors import InvalidError
    from ledger.cost.self_hosted import read_assumptions, self_hosted_cost
    from ledger.export.costs import made_by_deployment, span_us
    from ledger.export.reading import open_export

    try:
        stated = read_assumptions(assumptions.read_bytes(), where=str(assumptions))
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}", where=str(assumptions), code="bad-assumptions"
        ) from None
    question = _question((), where, from_, to)
    with open_export(export) as connection:
        made = made_by_deployment(connection, question)
        span = span_us(connection, question) or (0, 0)
    low = span[0] if question.from_us is None else question.from_us
    high = span[1] if question.to_us is None else question.to_us
    spent, unknown = self_hosted_cost(stated, made, high - low)
    if json:
        rows = [{k: v for k, v in asdict(each).items() if v is not None} for each in spent]
        others = [each.deployment for each in unknown]
        print_json(
            {
                "from_us": low,
                "until_us": high,
                "hardware": rows,
                "without_hardware": others,
                "assumptions": msgspec.to_builtins(stated),
            }
        )
    else:
        headings = (
            "hardware",
            "hours",
            "tokens",
            "hardware cost",
            "energy",
            "energy cost",
            "in all",
            "per 1k",
        )
        table(
            headings,
            [
                [
                    each.name,
                    figures.count(each.hours),
                    figures.count(each.tokens),
                    figures.cost(each.hardware_nano, each.currency),
                    figures.energy(each.energy_uj)
                    + (
                        ""
                        if each.energy_records == each.records
                        else f" ({each.energy_records:,} of {each.records:,})"
                    ),
                    figures.cost(each.energy_nano, each.currency),
                    figures.cost(each.total_nano, each.currency),
                    figures.cost(each.per_1k_tokens_nano, each.currency),
                ]
                for each in spent
            ],
            right=headings[1:],
        )
        note(f"period: {figures.time(low)} to {figures.time(high)}")
        note(
            f"electricity {figures.cost(stated.energy_nano_per_kwh, stated.currency)} a kWh: "
            f"{stated.energy_source}"
        )
        note(f"PUE {stated.pue_milli / 1000:g}: {stated.pue_source}")
        for one in stated.hardware:
            note(
                f"{one.name}: {one.units} at {figures.cost(one.hourly_nano, stated.currency)}/h: {one.source}"
            )
        for each in unknown:
            note(f"no hardware is stated for {each.model} ({figures.short(each.deployment)})")
    if unknown:
        ctx.exit(_UNTOLD)


def _question(by: Sequence[str], where: list[str] | None, from_: str | None, to: str | None) -> Any:
    from cli.figures import parse_time
    from cli.query import parse_conditions
    from ledger.export.query import Question

    return Question(
        by=by,
        where=parse_conditions(where or ()),
        from_us=parse_time(from_, "--from"),
        to_us=parse_time(to, "--to"),
    )


def _only_provider(books: Sequence[Any], model: str) -> str | None:
    """The provider of a model's rates, if the books know one only."""
    from ledger.core.errors import InvalidError

    found = {rate.provider or None for book in books for rate in book.rates if rate.model == model}
    if len(found) > 1 and None not in found:
        raise InvalidError(
            f"several providers have {model}",
            where="--at",
            remedy=f"write {' or '.join(sorted(f'{each}:{model}' for each in found)[:5])}",
            code="bad-parameter",
        )
    return found.pop() if len(found) == 1 else None


def _rated(row: dict[str, Any]) -> str:
    from cli.figures import cost

    text = cost(row.get("cost_nano"), row.get("currency"))
    return text if row["rated_records"] == row["records"] else f"{text} ({row['rated_records']:,})"


def _per_1k(row: dict[str, Any]) -> str:
    from cli.figures import cost
    from ledger.cost.rating import rounded

    tokens = row["input_tokens"] + row["output_tokens"]
    if "cost_nano" not in row or not tokens or row["rated_records"] < row["records"]:
        return ""
    return cost(rounded(1000 * row["cost_nano"], tokens), row["currency"])
