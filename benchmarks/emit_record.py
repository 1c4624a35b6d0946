"""``Recorder.record()`` on the calling thread, against a span with a BatchSpanProcessor ended beside it.

Both are measured in turns in one process, with their background threads at work: ours composes, signs and
writes to a spool on disk; theirs exports to nothing. *Burst* calls as fast as it can, *paced* once a
millisecond, as a busy server does. ``ratio`` compares medians of bursts with the whole span (start, eight
attributes, end), as the thread that serves pays for it; ``ratio_end`` with ``span.end()`` alone.

``wait_us`` is how much later than asked a sleeping thread runs while the background thread composes without
pause, ``wait_idle_us`` the same while it sleeps: the difference is what serving threads wait for the
interpreter.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from ledger.core.records import Deployment, Usage
from ledger.emit import Recorder

ROUNDS = 60
CALLS = 500
PACED_CALLS = 1_000
WAITS = 300
QUEUE = 65_536
IDS = list(range(200))


class NoExporter(SpanExporter):
    """Takes spans and does nothing."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def run() -> dict[str, float]:
    """Measure; all times in microseconds."""
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(
            spool=Path(directory) / "spool",
            issuer="bench.example/emit",
            deployment=Deployment(model="Bench-8B-Instruct", engine="vllm"),
            queue_limit=QUEUE,
        )
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(NoExporter(), max_queue_size=QUEUE))
        tracer = provider.get_tracer("bench")

        def record() -> int:
            now = time.time_ns() // 1000
            begun = time.perf_counter_ns()
            recorder.record(
                usage=Usage(input_tokens=200, output_tokens=100),
                started_us=now - 900_000,
                first_token_us=now - 800_000,
                ended_us=now,
                input_ids=IDS,
                output_ids=IDS,
                finish_reason="stop",
                request_id="req-7f3a",
                tenant="t-12",
            )
            return time.perf_counter_ns() - begun

        ends: list[int] = []

        def span() -> int:
            begun = time.perf_counter_ns()
            each = tracer.start_span(
                "chat",
                attributes={
                    "gen_ai.operation.name": "chat",
                    "gen_ai.request.model": "Bench-8B-Instruct",
                    "gen_ai.usage.input_tokens": 200,
                    "gen_ai.usage.output_tokens": 100,
                    "gen_ai.response.finish_reasons": ("stop",),
                    "gen_ai.response.id": "req-7f3a",
                    "server.time_to_first_token": 100_000,
                    "user.id": "t-12",
                },
            )
            ending = time.perf_counter_ns()
            each.end()
            ended = time.perf_counter_ns()
            ends.append(ended - ending)
            return ended - begun

        for warm_up in (record, span):
            _burst(warm_up)
        ends.clear()
        bursts: dict[str, list[int]] = {"record": [], "span": []}
        for _ in range(ROUNDS):
            bursts["record"] += _burst(record)
            bursts["span"] += _burst(span)
        span_end = statistics.median(ends) / 1000
        paced: dict[str, list[int]] = {"record": [], "span": []}
        for _ in range(PACED_CALLS):
            for name, call in (("record", record), ("span", span)):
                time.sleep(0.001)
                paced[name].append(call())
        waits = _waits(recorder, record)
        recorder.close(30)
        dropped = recorder.status().dropped
        provider.shutdown()
    if dropped:
        raise RuntimeError(f"{dropped} records were dropped: what was measured is not what is claimed")
    figures = {}
    for kind, times in (("burst", bursts), ("paced", paced)):
        for name, values in times.items():
            values.sort()
            figures[f"{name}_{kind}_us"] = statistics.median(values) / 1000
            figures[f"{name}_{kind}_p99_us"] = values[len(values) * 99 // 100] / 1000
            figures[f"{name}_{kind}_mean_us"] = statistics.fmean(values) / 1000
    return {
        "ratio": figures["record_burst_us"] / figures["span_burst_us"],
        "ratio_paced": figures["record_paced_us"] / figures["span_paced_us"],
        "ratio_end": figures["record_burst_us"] / span_end,
        "span_end_us": span_end,
        **waits,
        **figures,
    }


def _burst(call: Callable[[], int]) -> list[int]:
    time.sleep(0.001)
    return [call() for _ in range(CALLS)]


def _waits(recorder: Recorder, record: Callable[[], int]) -> dict[str, float]:
    """How much later than asked a sleeping thread runs: at rest, and while 20,000 records are composed."""
    recorder.sync(60)
    idle = _oversleep()
    for _ in range(20_000):
        record()
    busy = _oversleep()
    return {
        "wait_idle_us": idle[WAITS // 2],
        "wait_idle_p99_us": idle[WAITS * 99 // 100],
        "wait_us": busy[WAITS // 2],
        "wait_p99_us": busy[WAITS * 99 // 100],
    }


def _oversleep() -> list[float]:
    values = []
    for _ in range(WAITS):
        begun = time.perf_counter_ns()
        time.sleep(0.001)
        values.append((time.perf_counter_ns() - begun) / 1000 - 1000)
    return sorted(values)


if __name__ == "__main__":
    for figure, value in run().items():
        sys.stdout.write(f"{figure:24} {value:10.3f}\n")
