"""``tallystick compare``: two models or two periods of an export, side by side, with uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import From, Json, To

if TYPE_CHECKING:
    from ledger.export.comparison import Comparison, Estimate

__all__ = ["EXAMPLES", "compare"]

EXAMPLES = (
    "tallystick compare export-all --a model=Qwen3-32B --b model=SmolLM2-135M-Instruct",
    "tallystick compare export-all --a month=2026-01 --b month=2026-02 --where model=Qwen3-32B --json",
)

_Side = typer.Option(metavar="NAME=VALUE", help="Which records make this side; repeat it to narrow.")


def compare(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")],
    a: Annotated[list[str], _Side],
    b: Annotated[list[str], _Side],
    where: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only such records, on both sides.")
    ] = None,
    from_: From = None,
    to: To = None,
    corrected: Annotated[
        bool, typer.Option("--corrected/--as-logged", help="With corrections in place, or as first logged.")
    ] = True,
    json: Json = False,
) -> None:
    """Compare two sides: energy, carbon and cost per 1,000 tokens, latency, quality, each with an interval.

    Intervals are 95 %, closed-form, and the same each time; they say what chance does, between batches. The
    ends of energy's own range are compared beside it: that is another uncertainty.

    With --json: a_records, b_records, confidence, notes, and figures: name, unit, scale (figures are n /
    10^scale), a, b, difference (b less a): each value, low, high, count, clusters; ratio_milli (b to a, times
    1,000); distinct: whether the difference is more than chance, absent where that cannot be told.
    """
    from dataclasses import asdict

    from cli import figures
    from cli.output import note, print_json
    from cli.query import parse_conditions
    from ledger.export.comparison import CONFIDENCE
    from ledger.export.comparison import compare as run
    from ledger.export.query import Question

    common = parse_conditions(where or ())
    sides = [
        Question(
            where=_both(common, parse_conditions(side)),
            from_us=figures.parse_time(from_, "--from"),
            to_us=figures.parse_time(to, "--to"),
            corrected=corrected,
        )
        for side in (a, b)
    ]
    found = run(export, *sides)
    if json:
        print_json(
            {
                "a_records": found.a_records,
                "b_records": found.b_records,
                "confidence": CONFIDENCE,
                "figures": [_present(asdict(each)) for each in found.figures],
                "notes": found.notes,
            }
        )
        return
    _print(found.figures)
    note(f"a: {found.a_records:,} records, b: {found.b_records:,}; intervals are {CONFIDENCE}")
    for text in found.notes:
        note(text)


def _both(common: dict[str, list[str]], side: dict[str, list[str]]) -> dict[str, list[str]]:
    from ledger.core.errors import InvalidError

    twice = common.keys() & side.keys()
    if twice:
        raise InvalidError(
            f"{sorted(twice)[0]} is named for one side and for both",
            where="--where",
            remedy="name it once",
            code="bad-parameter",
        )
    return common | side


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _present(each) for name, each in value.items() if each is not None}
    return value


def _print(found: tuple[Comparison, ...]) -> None:
    from cli import figures
    from cli.output import table

    def shown(side: Estimate | None, scale: int) -> str:
        if side is None:
            return "unknown"
        text = figures.scaled(side.value, scale)
        if side.low is None or side.high is None:
            return text
        return f"{text} [{figures.scaled(side.low, scale)} to {figures.scaled(side.high, scale)}]"

    words = {True: "yes", False: "no", None: "?"}
    table(
        ("figure", "a", "b", "b - a", "b / a", "more than chance"),
        [
            (
                each.name,
                shown(each.a, each.scale),
                shown(each.b, each.scale),
                shown(each.difference, each.scale),
                "" if each.ratio_milli is None else figures.scaled(each.ratio_milli, 3),
                words[each.distinct],
            )
            for each in found
        ],
        right=("a", "b", "b - a", "b / a"),
    )
