"""``tallystick query`` and ``tallystick sql``: questions over an export, exact and local."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import From, Json, To

__all__ = ["QUERY_EXAMPLES", "SQL_EXAMPLES", "Where", "parse_conditions", "query", "sql"]

QUERY_EXAMPLES = (
    "tallystick query export-all --by model",
    "tallystick query export-all --by day --by tenant --where model=Qwen3-32B --from 2026-01-01",
    "tallystick query export-all --by model --percentiles --json",
    "tallystick query export-all --by model --quality",
)
SQL_EXAMPLES = (
    'tallystick sql export-all "SELECT model, sum(energy_uj) FROM records GROUP BY ALL"',
    'tallystick sql export-all "SELECT kind, count(*) FROM statements GROUP BY ALL" --csv > kinds.csv',
)


Export = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Only records with this value; repeat a name for more values. NAME= asks for none.",
    ),
]


class Dimension(StrEnum):
    """What can be grouped by: as ``ledger.export.query.DIMENSIONS``."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    MODEL = "model"
    VERSION = "version"
    DEPLOYMENT = "deployment"
    ENGINE = "engine"
    ENGINE_VERSION = "engine_version"
    QUANTIZATION = "quantization"
    ACCELERATOR = "accelerator"
    PROVIDER = "provider"
    REGION = "region"
    SITE = "site"
    TENANT = "tenant"
    ISSUER = "issuer"
    FINISH_REASON = "finish_reason"
    METHOD = "method"
    ENERGY_SOURCE = "energy_source"
    FACTORS = "factors"
    CURRENCY = "currency"


def query(
    export: Export,
    by: Annotated[list[Dimension] | None, typer.Option(help="Group by; may be repeated.")] = None,
    where: Where = None,
    from_: From = None,
    to: To = None,
    percentiles: Annotated[
        bool, typer.Option("--percentiles", help="Add p50, p90, p95 and p99 of times, tokens and energy.")
    ] = False,
    corrected: Annotated[
        bool,
        typer.Option(
            "--corrected/--as-logged",
            help="With corrections in place, and what was logged beside them; or as first logged.",
        ),
    ] = True,
    quality: Annotated[
        bool, typer.Option("--quality", help="Add means of quality metrics, recorded and evaluated later.")
    ] = False,
    json: Json = False,
) -> None:
    """Total records of an export by any dimension: tokens, energy, carbon, water, cost, and per 1,000 tokens.

    Sums are exact. A figure that only some records have is marked with how many; see `tallystick verify` for
    whether the export itself can be believed.

    With --json: rows, each with its dimensions and integers. `*_records` count the records that have a
    figure; a figure that none has is absent. cost_currency: of the cost, null where there are several, whose
    sum is left out. Where corrections changed something: corrected_records, and as_logged with the figures
    that were others. With --quality: quality, each metric, about, count, mean, least, most, scale (a value is
    n / 10^scale).
    """
    from cli.figures import parse_time
    from cli.output import note, print_json
    from ledger.export.query import Question, ask

    question = Question(
        by=tuple(dict.fromkeys(each.value for each in by or ())),
        where=parse_conditions(where or ()),
        from_us=parse_time(from_, "--from"),
        to_us=parse_time(to, "--to"),
        corrected=corrected,
        percentiles=percentiles,
        quality=quality,
    )
    rows = ask(export, question)
    if json:
        print_json({"rows": rows})
    elif not rows or not any(row["records"] for row in rows):
        note("no records")
    else:
        _print(rows, question.by, percentiles)
        if quality:
            _print_quality(rows, question.by)


def parse_conditions(given: Sequence[str]) -> dict[str, list[str]]:
    """Names and their values, of arguments ``NAME=VALUE``."""
    from ledger.core.errors import InvalidError

    found: dict[str, list[str]] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise InvalidError(
                f"{each!r} is not NAME=VALUE",
                where="--where",
                remedy="write for example model=Qwen3-32B",
                code="bad-parameter",
            )
        found.setdefault(name, []).append(value)
    return found


def _print(rows: Sequence[Mapping[str, Any]], by: Sequence[str], percentiles: bool) -> None:
    from cli import figures
    from cli.output import table

    headings = [*by, "records", "in", "out", "energy", "per 1k", "carbon", "per 1k", "water", "cost"]
    headings += ["p50", "p95", "first p50", "first p95"] if percentiles else []
    restated = any("corrected_records" in row for row in rows)
    headings += ["restated", "energy logged", "carbon logged", "cost logged"] if restated else []
    lines = []
    for row in rows:
        water = row.get("water_nl")
        line = [*("-" if row[name] is None else str(row[name]) for name in by), figures.count(row["records"])]
        line += [figures.count(row["input_tokens"]), figures.count(row["output_tokens"])]
        line.append(_known(row, "energy_uj", figures.energy(row.get("energy_uj"))))
        line.append(figures.energy(row.get("energy_uj_per_1k_tokens")))
        line.append(_known(row, "carbon_ng", figures.carbon(row.get("carbon_ng"))))
        line.append(figures.carbon(row.get("carbon_ng_per_1k_tokens")))
        line.append("unknown" if water is None else _known(row, "water_nl", figures.water(water)))
        line.append(_cost(row))
        if percentiles:
            for name in ("duration_us", "first_token_us"):
                line += [
                    figures.duration(row[f"{name}_p{level}"]) if f"{name}_p{level}" in row else ""
                    for level in (50, 95)
                ]
        if restated:
            before = row.get("as_logged", {})
            line.append(figures.count(row.get("corrected_records")))
            line.append(figures.energy(before["energy_uj"]) if "energy_uj" in before else "")
            line.append(figures.carbon(before["carbon_ng"]) if "carbon_ng" in before else "")
            cost = before.get("cost_nano")
            line.append(figures.cost(cost, row.get("cost_currency")))
        lines.append(line)
    table(headings, lines, right=headings[len(by) :])


def _print_quality(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> None:
    from cli import figures
    from cli.output import note, table

    lines = [
        [
            *("-" if row[name] is None else str(row[name]) for name in by),
            each["metric"],
            each["about"],
            figures.count(each["count"]),
            *(figures.scaled(each[name], each["scale"]) for name in ("mean", "least", "most")),
        ]
        for row in rows
        for each in row.get("quality", ())
    ]
    if lines:
        headings = [*by, "metric", "of", "count", "mean", "least", "most"]
        table(headings, lines, right=headings[len(by) + 2 :])
    else:
        note("no quality metrics")


def _known(row: Mapping[str, Any], name: str, text: str) -> str:
    """Mark a figure that not all records have."""
    having = row.get(f"{name}_records", row["records"])
    return text if having == row["records"] else f"{text} ({having:,} of {row['records']:,})"


def _cost(row: Mapping[str, Any]) -> str:
    from cli import figures

    if "cost_nano" in row:
        return _known(row, "cost_nano", figures.cost(row["cost_nano"], row["cost_currency"]))
    return "several currencies" if row.get("cost_currency", "") is None else ""


def sql(
    export: Export,
    statement: Annotated[str, typer.Argument(metavar="SQL", help="One query; - reads it from stdin.")],
    limit: Annotated[int, typer.Option(min=1, help="Rows to show or write at most.")] = 10_000,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV, with a line of names.")] = False,
    json: Json = False,
) -> None:
    """Ask an export in SQL (DuckDB). Views: records, records_corrected, corrections, evaluations,
    statements.

    It reads the export alone: no other file, no network, and nothing is written.

    With --json: columns, rows (an object each), truncated. Integers of any size stay exact; bytes are
    hexadecimal, times ISO 8601.
    """
    import sys

    from cli.output import note, print_json, table
    from ledger.export.reading import run_sql

    text = sys.stdin.read() if statement == "-" else statement
    columns, rows, truncated = run_sql(export, text, limit)
    if json:
        print_json(
            {
                "columns": columns,
                "rows": [dict(zip(columns, row, strict=True)) for row in rows],
                "truncated": truncated,
            }
        )
        return
    if csv:
        _write_csv(columns, rows)
    else:
        table(columns, [["" if cell is None else str(cell) for cell in row] for row in rows])
    if truncated:
        note(f"there are more than {limit:,} rows: raise --limit")


def _write_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    import csv
    import sys

    from ledger.export.tables import safe_cell

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if cell is None else safe_cell(cell) for cell in row] for row in rows])
