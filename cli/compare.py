"""``tallystick compare``: two models or two periods of an export, side by side, with uncertainty."""

from __future__ import annotations

import math
import re
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


_READ_AS = {
    "uJ": (3_600_000, "mWh"),
    "ng": (10**6, "mg"),
    "nl": (10**6, "ml"),
    "us": (1_000, "ms"),
    "billionths of": (10**9, ""),
}
"""How people read a unit: of how many of ours one is made. Programs get ours."""
_DIGITS = 3
"""That count, of an estimate."""
_IN_NAMES = re.compile(r"_(uj|ng|nl|us|nano)(?=_|$)")


def _print(found: tuple[Comparison, ...]) -> None:
    from cli.output import table

    words = {True: "yes", False: "no", None: "?"}
    lines = []
    for each in found:
        divisor, unit = _unit(each)
        sides = [_shown(side, each.scale, divisor) for side in (each.a, each.b, each.difference)]
        ratio = "" if each.ratio_milli is None else f"{each.ratio_milli / 1000:.3f}"
        lines.append(
            (_IN_NAMES.sub("", each.name).replace("_", " "), unit, *sides, ratio, words[each.distinct])
        )
    right = ("a", "b", "b - a", "b / a")
    table(("figure", "unit", "a", "b", "b - a", "b / a", "more than chance"), lines, right=right)


def _unit(each: Comparison) -> tuple[int, str]:
    """What a figure is divided by to be read, and its unit then; what it is per is in its name."""
    unit = each.unit.partition(" per ")[0]
    for ours, (divisor, theirs) in _READ_AS.items():
        if unit.startswith(ours):
            return divisor, f"{theirs}{unit.removeprefix(ours)}".strip()
    return 1, unit


def _shown(side: Estimate | None, scale: int, divisor: int) -> str:
    from cli import figures

    if side is None:
        return "unknown"

    def text(value: int) -> str:
        if divisor == 1 or not value:
            return figures.scaled(value, scale)
        exact = value / divisor
        digits = max(0, _DIGITS - 1 - math.floor(math.log10(abs(exact))))
        return f"{exact:,.{digits}f}"

    if side.low is None or side.high is None:
        return text(side.value)
    return f"{text(side.value)} [{text(side.low)} to {text(side.high)}]"
