"""How well forecasts hold on recorded traffic: coverage of the intervals, and error beside seasonal naive.

    python -m benchmarks.forecast PATH...

Each path is a CSV of requests with the columns TIMESTAMP, ContextTokens and GeneratedTokens, as in
AzurePublicDataset's LLM inference traces (2023), or a folder of such; skipped where there is none. Those
traces are of one hour, so the periods are 10 seconds and the season a minute; a forecast is of two minutes.
From each period on, what came before it alone is known.
"""

from __future__ import annotations

import csv
import sys
from datetime import datetime
from pathlib import Path

from ledger.export.forecast import Backtest, backtest

PERIOD_S, SEASON, HORIZON = 10, 6, 12
LOW, HIGH = 85.0, 95.0
"""Percent of cases that a 90 % interval may hold the truth in."""


def series(path: Path) -> list[int]:
    """Tokens in each whole period of a trace."""
    sums: dict[int, int] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            time_s = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26]).timestamp()
            period = int(time_s // PERIOD_S)
            tokens = int(row["ContextTokens"]) + int(row["GeneratedTokens"])
            sums[period] = sums.get(period, 0) + tokens
    return [sums.get(period, 0) for period in range(min(sums) + 1, max(sums))]


def line(name: str, found: Backtest) -> str:
    """What came of one trace."""
    return (
        f"{name}: {found.forecasts} forecasts of {HORIZON * PERIOD_S} s; 90 % intervals held "
        f"{found.step_coverage[90]:.1f} % of periods and {found.total_coverage[90]:.1f} % of sums, 80 % ones "
        f"{found.step_coverage[80]:.1f} and {found.total_coverage[80]:.1f}; MASE {found.mase:.3f}, "
        f"seasonal naive {found.naive_mase:.3f}"
    )


def holds(found: Backtest) -> bool:
    """Whether intervals hold as often as they say, and the forecast beats the naive one."""
    covered = (found.step_coverage[90], found.total_coverage[90])
    return all(LOW <= each <= HIGH for each in covered) and found.mase < found.naive_mase


def main(arguments: list[str]) -> int:
    """Run on every trace that is there; 1 if one does not hold."""
    paths = [Path(each) for each in arguments]
    files = [file for path in paths for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]
    files = [file for file in files if file.is_file()]
    if not files:
        sys.stdout.write("skipped: name a CSV of requests, or a folder of such\n")
        return 0
    held = True
    for file in files:
        found = backtest(series(file), HORIZON, SEASON)
        held = held and holds(found)
        sys.stdout.write(line(file.stem, found) + ("" if holds(found) else "  NOT HELD") + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
