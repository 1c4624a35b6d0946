"""``python -m benchmarks [NAME ...]``: run the benchmarks and write ``benchmarks/results.md``.

With names, those sections of the page are written anew and the others stay. Those of engines run only by
name.

Each bar is a ratio to a limit measured in the same run, or a rate on this machine; the page says which hold.
"""

from __future__ import annotations

import importlib
import os
import platform
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import __version__


@dataclass(frozen=True)
class Bar:
    """What a figure must reach: at least ``least`` or at most ``most``."""

    figure: str
    least: float | None = None
    most: float | None = None

    def verdict(self, figures: dict[str, Any]) -> str:
        """The bar in words, with whether it holds."""
        value = figures[self.figure]
        if self.least is not None:
            return f"at least {self.least:,g}: {'holds' if value >= self.least else 'MISSED'}"
        return f"at most {self.most:,g}: {'holds' if value <= self.most else 'MISSED'}"


BENCHMARKS: dict[str, tuple[str, tuple[Bar, ...]]] = {
    "ingest": (
        "Batches of 256 records over HTTP into SQLite, verified and durable, beside `executemany` of the "
        "same record bytes with three indexes, as durable, with one commit per 256 (and per 1,000) records.",
        (Bar("ratio_256", least=0.6), Bar("records_per_s", least=30_000)),
    ),
    "postgres": (
        "Batches of 256 records over HTTP into PostgreSQL, verified and durable, beside COPY of the same "
        "record bytes into a table with three indexes in the same server, a commit per 256 (and per 1,000).",
        (Bar("ratio_256", least=0.6), Bar("bytes_per_record", most=450)),
    ),
    "group_commit": (
        "Statements of one record from 64 clients into PostgreSQL: group commit beside one transaction each, "
        "through the sequencer and over HTTP; latency at half the rate over HTTP. Beside it a table in the "
        "same server whose rows hash the one before, one transaction each, and pymerkle's tree in SQLite.",
        (Bar("ratio", least=10), Bar("half_load_p99_ms", most=100)),
    ),
    "replay": (
        "The Azure LLM inference traces of 2023 (named by `TALLYSTICK_TRACES`), a hundred times as fast, "
        "through four recorders into a service on PostgreSQL.",
        (Bar("dropped", most=0), Bar("not_logged", most=0), Bar("problems", most=0)),
    ),
    "reads": (
        "Reads over HTTP from a service on PostgreSQL with 200,000 records, by one client and by eight.",
        (),
    ),
    "growth": (
        "What a record costs at 100 thousand and at 10 million records, on PostgreSQL and on SQLite: a large "
        "log and small ones beside it, in turns. `append_us_fresh`: at 100 thousand in a server just "
        "started, whose memory still takes all pages.",
        (
            Bar("postgresql_append_ratio", most=1.2),
            Bar("postgresql_bytes_per_record", most=450),
            Bar("sqlite_append_ratio", most=1.2),
            Bar("sqlite_bytes_per_record", most=450),
        ),
    ),
    "capacity": (
        "Tiles, proofs and appends of trees of up to a trillion leaves: of equal leaves, so that tiles need "
        "no storage, by the code that the service runs, each proof verified.",
        (Bar("append_ratio", most=1.2),),
    ),
    "audit": (
        "Audit of a log of 1,000,000 records on one core, sealed in batches of 256: everything, and what "
        "signatures vouch for alone (`--evidence-only`: every signature, record hash, root, chain, tile, "
        "checkpoint). Beside it the same without the native part, and a log of batches of 1,024.",
        (Bar("records_per_s", least=200_000), Bar("evidence_only_per_s", least=200_000)),
    ),
    "emit_record": (
        "`Recorder.record()` on the calling thread, beside ending an OpenTelemetry span with a "
        "BatchSpanProcessor.",
        (Bar("ratio_end", most=0.5), Bar("ratio", most=0.5)),
    ),
    "emit_overhead": (
        "A recorded request of 512 + 256 tokens, all threads of the serving process, beside an OpenTelemetry "
        "span sent as OTLP over HTTP; memory over a million records.",
        (Bar("record_cpu_us", most=30), Bar("record_calling_us", most=3)),
    ),
    "emit_workers": (
        "Four processes that record on one machine: one spool and chain for all, beside one for each.",
        (),
    ),
    "proxy": (
        "`tallystick proxy` before a server that streams as vLLM does, 32 streams of 50 tokens a second: "
        "latency added, CPU for each request and chunk, throughput beside going straight. Server, "
        "proxy and client share the machine.",
        (Bar("throughput_ratio", least=0.9),),
    ),
    "proofs": (
        "Proof look-up in a log of 10 million leaves, beside one of 10 thousand.",
        (Bar("inclusion_ratio", most=1.5), Bar("consistency_ratio", most=1.5)),
    ),
    "query": (
        "Group-by over 10,000,000 exported records, as `tallystick query` asks.",
        (Bar("by_model_s", most=2), Bar("by_tenant_s", most=2), Bar("by_day_and_model_s", most=2)),
    ),
    "export": (
        "Parquet export with proofs and digests, durable, beside pyarrow writing the same rows and no more "
        "(`ratio`: of the rates, median of pairs; `cpu_ratio`: of the CPU time); adding 20,000 records to an "
        "export of 200,000.",
        (Bar("ratio", least=0.5),),
    ),
    "footprint": (
        "Import time of `ledger.emit` and size of the base install.",
        (Bar("import_ms", most=150), Bar("install_mb", most=30)),
    ),
    "engines_vllm_serve": (
        "`vllm serve` with the plugin beside one without it, on a Llama of two layers: 500 conversations at "
        "once over HTTP, half of them streamed. Servers and client share the machine.",
        (Bar("throughput_ratio", least=0.99),),
    ),
    "engines_vllm": (
        "One vLLM engine in one process, recorded and not in turns, 400 conversations at once on a Llama of "
        "two layers: its steps are so short that what the frontend does weighs as much as it can. Beside "
        "it the hook alone: CPU of the frontend's thread for a request of 512 + 256 tokens, a token a step.",
        (Bar("throughput_ratio", least=0.99),),
    ),
    "engines_transformers": (
        "transformers' `generate` with the hook beside without it, SmolLM2-135M on one CPU thread, batches "
        "of two.",
        (Bar("throughput_ratio", least=0.99),),
    ),
    "engines_llamacpp": (
        "llama.cpp with the hook beside without it, SmolLM2-135M on CPUs, eight requests at once, half of "
        "them streamed.",
        (Bar("throughput_ratio", least=0.99),),
    ),
}
ENGINES = tuple(name for name in BENCHMARKS if name.startswith("engines_"))
"""These need the engines' environment, and run only by name."""
RESULTS = Path(__file__).with_name("results.md")


def main(names: list[str]) -> int:
    """Run, print and write. Returns the exit code: 1 if a bar was missed."""
    kept = _sections(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    missed = False
    for name in names or [name for name in BENCHMARKS if name not in ENGINES]:
        title, bars = BENCHMARKS[name]
        print(f"{name} ...", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        figures = importlib.import_module(f"benchmarks.{name}").run()
        verdicts = {bar.figure: bar.verdict(figures) for bar in bars}
        missed |= any("MISSED" in verdict for verdict in verdicts.values())
        rows = [f"| {key} | {_number(value)} | {verdicts.get(key, '')} |" for key, value in figures.items()]
        kept[name] = "\n".join(
            [
                f"## {name}",
                "",
                title,
                "",
                _machine(),
                "",
                "| figure | value | bar |",
                "| --- | ---: | --- |",
                *rows,
            ]
        )
        print("\n".join(rows), f"\n{time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    text = "\n\n".join([_header(), *(kept[name] for name in BENCHMARKS if name in kept)]) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    return int(missed)


def _sections(text: str) -> dict[str, str]:
    """The sections of an earlier page, by name."""
    return {part.split("\n", 1)[0]: f"## {part.rstrip()}" for part in text.split("\n## ")[1:]}


def _header() -> str:
    return (
        "# Benchmarks\n\n"
        "Written by `make bench` and `make bench-engines`. Compare ratios, measured in one run; rates are "
        "those of the machine that a section names."
    )


def _machine() -> str:
    """On what a section was measured: some are measured anew when others are not."""
    return (
        f"Tallystick {__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{os.cpu_count()} cores of {_processor()}, {platform.system()}."
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
