"""``tallystick records`` and ``tallystick rollups``: look at what was logged."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import ApiKeyFile, From, Json, Target, To, command

if TYPE_CHECKING:
    from cli.target import Ledger

__all__ = ["app", "rollups", "said_later"]

app = typer.Typer(help="List and show records.", no_args_is_help=True)

_PAGE = 1_000
"""Records asked for at once; the service gives no more."""

Model = Annotated[str | None, typer.Option(metavar="NAME", help="Of this model.")]
Deployment = Annotated[str | None, typer.Option(metavar="DIGEST", help="Of this deployment.")]
Tenant = Annotated[str | None, typer.Option(metavar="PSEUDONYM", help="Of this tenant.")]


@command(
    app,
    "tallystick records list demo-data",
    "tallystick records list demo-data --model SmolLM2-135M-Instruct --from 2026-01-01 --to 2026-02-01",
    "tallystick records list http://127.0.0.1:8090 --api-key-file demo-data/admin.key --all --json",
    name="list",
)
def list_records(
    target: Target,
    from_: From = None,
    to: To = None,
    model: Model = None,
    deployment: Deployment = None,
    tenant: Tenant = None,
    issuer: Annotated[str | None, typer.Option(metavar="NAME", help="Logged by this issuer.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    all_: Annotated[bool, typer.Option("--all", help="All of them, however many pages that takes.")] = False,
    cursor: Annotated[str | None, typer.Option(metavar="CURSOR", help="Go on after an earlier page.")] = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """List records in the order of the log.

    With --json: records (each leaf_index, position, issuer, record) and next, the cursor of what follows,
    absent at the end. `record` is the record as it was logged.
    """
    from cli.figures import check_period, parse_time
    from cli.output import note, print_json
    from cli.target import open_ledger

    from_us, to_us = parse_time(from_, "--from"), parse_time(to, "--to")
    check_period(from_us, to_us)
    query = {
        "from_us": from_us,
        "to_us": to_us,
        "model": model,
        "deployment": _digest(deployment),
        "tenant": tenant,
        "issuer": issuer,
    }
    ledger = open_ledger(target, api_key_file)
    found, following = _pages(ledger, query, cursor, None if all_ else limit)
    if json:
        print_json({"records": found} | ({} if following is None else {"next": following}))
        return
    if not found:
        note("no records")
        return
    _print_records(found, ledger.models())
    if following is not None:
        note(f"there are more: --all, or --cursor {following}")


def _digest(text: str | None) -> str | None:
    from ledger.core.errors import InvalidError

    if text is not None and re.fullmatch("[0-9a-f]{64}", text) is None:
        raise InvalidError(
            f"{text[:80]!r} is not the digest of a deployment",
            where="--deployment",
            remedy="pass its 64 hex digits, as `tallystick records show` has them",
            code="bad-parameter",
        )
    return text


def _pages(
    ledger: Ledger, query: dict[str, Any], cursor: str | None, limit: int | None
) -> tuple[list[dict[str, Any]], str | None]:
    """Up to ``limit`` records after ``cursor``, and the cursor behind them."""
    found: list[dict[str, Any]] = []
    while True:
        wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
        page = ledger.records(query | {"limit": wanted, "cursor": cursor})
        found += page["records"]
        cursor = page.get("next")
        if cursor is None or (limit is not None and len(found) >= limit):
            return found, cursor


def _print_records(found: list[dict[str, Any]], models: dict[str, str]) -> None:
    from cli import figures
    from cli.output import table

    rows = []
    for place in found:
        record = place["record"]
        energy = record.get("energy", {})
        method = energy.get("method", "measured")
        rows.append(
            (
                record["id"],
                figures.time(record["started_us"]),
                models.get(record["deployment"]) or figures.short(record["deployment"]),
                record.get("tenant", ""),
                figures.count(record["usage"]["input_tokens"]),
                figures.count(record["usage"]["output_tokens"]),
                figures.energy(energy.get("energy_uj"), method),
                energy.get("method", ""),
                figures.carbon(record.get("carbon_ng"), method),
                f"{place['leaf_index']}/{place['position']}",
            )
        )
    columns = ("record", "started", "model", "tenant", "in", "out", "energy", "how", "carbon", "leaf")
    table(columns, rows, right=("in", "out", "energy", "carbon", "leaf"))


@command(
    app,
    "tallystick records show demo-data 0198c0de-0000-7000-8000-000000000000",
    "tallystick records show https://log.example.com 0198c0de-0000-7000-8000-000000000000 --json",
)
def show(
    target: Target,
    record: Annotated[str, typer.Argument(metavar="RECORD", help="The record's id.")],
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Show one record, where the log has it, and what was said later: corrections and evaluations.

    Figures are as logged; a restated one stands beside it.

    With --json: leaf_index, position, issuer, record (as it was logged), and where there are any: corrections
    (leaf_index, issuer, issued_us, reason, figures), corrected (the figures that stand now), evaluations
    (leaf_index, issuer, issued_us, evaluator, about, metrics), later_is_whole (false if there is more).
    """
    from cli import figures
    from cli.output import fields, print_json
    from cli.target import open_ledger

    ledger = open_ledger(target, api_key_file)
    place = ledger.record(record)
    if json:
        print_json(place)
        return
    found = place["record"]
    usage = found["usage"]
    energy = found.get("energy", {})
    method = energy.get("method", "measured")
    rows = [
        ("record", found["id"]),
        ("leaf", f"{place['leaf_index']}, position {place['position']}"),
        ("issuer", place["issuer"]),
        ("model", ledger.models().get(found["deployment"], "")),
        ("deployment", found["deployment"]),
        ("factors", found.get("factors", "")),
        ("tenant", found.get("tenant", "")),
        ("started", figures.time(found["started_us"])),
        ("took", figures.duration(found["ended_us"] - found["started_us"])),
        ("first token", _after(found, "first_token_us")),
        ("finish reason", found.get("finish_reason", "")),
        *((name.replace("_", " "), figures.count(usage[name])) for name in usage),
        ("energy", figures.energy_of(found)),
        ("energy range", _energy_range(energy)),
        ("energy source", energy.get("source", "")),
        ("carbon", figures.carbon(found.get("carbon_ng"), method)),
        (
            "carbon market",
            figures.carbon(found["carbon_market_ng"], method) if "carbon_market_ng" in found else "",
        ),
        ("embodied", figures.carbon(found["embodied_ng"], method) if "embodied_ng" in found else ""),
        ("cost", figures.cost(found.get("cost_nano"), found.get("currency"))),
        ("input", _commitment(found.get("input"))),
        ("output", _commitment(found.get("output"))),
        ("request", found.get("request", "")),
        ("parent", found.get("parent", "")),
    ]
    rows += [
        (f"quality {name}", f"{each['value']} / 10^{each['scale']}")
        for name, each in found.get("quality", {}).items()
    ]
    rows += said_later(place)
    fields((name, value) for name, value in rows if value)


def said_later(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was said later about a record, in words."""
    from cli import figures

    view = found["record"] | found.get("corrected", {})
    rows = [(f"restated {name}", figures.restated(view, name)) for name in found.get("corrected", ())]
    for each in found.get("corrections", ()):
        restated = ", ".join(each["figures"])
        rows.append(("correction", f"leaf {each['leaf_index']}: {restated}: {each['reason']}"))
    for each in found.get("evaluations", ()):
        metrics = ", ".join(
            f"{name} {figures.scaled(one['value'], one['scale'])}" for name, one in each["metrics"].items()
        )
        rows.append(
            (
                "evaluation",
                f"leaf {each['leaf_index']}: {metrics}, of its {each['about']} by {each['evaluator']}",
            )
        )
    if not found.get("later_is_whole", True):
        rows.append(("incomplete", "more was said later than is looked through here; an export has all"))
    return [(name, text.replace("of its record", "of it")) for name, text in rows]


def _after(record: dict[str, Any], name: str) -> str:
    from cli import figures

    return f"after {figures.duration(record[name] - record['started_us'])}" if name in record else ""


def _energy_range(energy: dict[str, Any]) -> str:
    from cli import figures

    if "low_uj" not in energy and "high_uj" not in energy:
        return ""
    low, high = energy.get("low_uj"), energy.get("high_uj")
    return " to ".join("?" if end is None else figures.energy(end) for end in (low, high))


def _commitment(commitment: dict[str, Any] | None) -> str:
    return "" if commitment is None else f"{commitment['digest']} (salted hash of {commitment['of']})"


class Dimension(StrEnum):
    """What roll-ups can be summed by."""

    HOUR = "hour"
    DAY = "day"
    MODEL = "model"
    DEPLOYMENT = "deployment"
    TENANT = "tenant"


_BY = "hour, day, model, deployment or tenant. Default: day and model."


def rollups(
    target: Target,
    by: Annotated[list[Dimension] | None, typer.Option(metavar="DIMENSION", help=_BY)] = None,
    from_: From = None,
    to: To = None,
    model: Model = None,
    deployment: Deployment = None,
    tenant: Tenant = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Sum tokens, energy and carbon by day, hour, model, deployment or tenant.

    Times must be full hours. With --json: rows, each with the dimensions, records, and the sums by name
    (input_tokens, output_tokens, energy_uj, carbon_ng, ...); a figure that no record has is absent.
    """
    from cli import figures
    from cli.output import print_json, table
    from cli.target import open_ledger

    from_us, to_us = figures.parse_time(from_, "--from"), figures.parse_time(to, "--to")
    figures.check_period(from_us, to_us)
    query = {
        "from_us": from_us,
        "to_us": to_us,
        "model": model,
        "deployment": _digest(deployment),
        "tenant": tenant,
    }
    dimensions = [each.value for each in by] if by else ["day", "model"]
    rows = open_ledger(target, api_key_file).rollups(dimensions, query)
    if json:
        print_json({"rows": rows})
        return
    columns = (*dimensions, "records", "in", "out", "energy", "how", "carbon")
    table(
        columns,
        ((*(_dimension(name, row[name]) for name in dimensions), *_sums(row)) for row in rows),
        right=("records", "in", "out", "energy", "carbon"),
    )


def _dimension(name: str, value: Any) -> str:
    from cli import figures

    if name == "day":
        return figures.time(value * 1_000_000)[:10]
    if name == "hour":
        return figures.time(value * 1_000_000)[:16] + "Z"
    return figures.short(value) if name == "deployment" else str(value)


def _sums(row: dict[str, Any]) -> tuple[str, ...]:
    from cli import figures

    methods = [name for name in ("measured", "modelled", "estimated") if row.get(f"{name}_records")]
    worst = methods[-1] if methods else "measured"
    return (
        figures.count(row["records"]),
        figures.count(row["input_tokens"]),
        figures.count(row["output_tokens"]),
        figures.energy(row.get("energy_uj"), worst),
        " + ".join(methods),
        figures.carbon(row.get("carbon_ng"), worst),
    )
