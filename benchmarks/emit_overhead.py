"""What a recorded request costs in CPU, over all threads of the serving process, and what it costs in memory.

Requests of 512 prompt and 256 output tokens, each with ids of its own, are recorded at a steady pace. The
statements go to a real service, a process of its own that is not counted, and leave the spool when their
receipts were verified. Beside it, in turns in the same process: an OpenTelemetry span with eight attributes,
sent as OTLP over HTTP by a BatchSpanProcessor to a sink, likewise another process.

``cpu_us`` is the process's CPU time for each request less that of the same loop with nothing recorded;
``calling_us`` the part of it on the thread that serves: medians over rounds, and the least of them.
Memory is the growth of the resident size over the last nine tenths of a million records.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchmarks.ingest import Chain, Running
from benchmarks.workload import DEPLOYMENT, FACTORS
from ledger.core.keys import generate_key
from ledger.core.records import Energy, Usage
from ledger.emit import Recorder

PROMPT, OUTPUT = 512, 256
ROUNDS = 9
REQUESTS = 20_000
A_MILLION = 1_000_000
ISSUER = "gpu-0.bench.example"
_GROUP = 25
"""Requests between two naps, so that background threads run beside the serving one, as in a server."""
_NAP_S = 0.002
_ENERGY = Energy(
    energy_uj=41_000_000, method="measured", source="nvml", low_uj=39_000_000, high_uj=43_000_000
)


def _requests(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt and output ids, no two requests the same list: an engine makes new ones each time."""
    for n in range(count):
        yield list(range(n % 97, n % 97 + PROMPT)), list(range(n % 89, n % 89 + OUTPUT))


Call: TypeAlias = Callable[[list[int], list[int]], None]
"""Does one request, given its prompt and output ids."""


def _paced(call: Call, count: int) -> int:
    """Nanoseconds of CPU time that ``count`` calls took on this thread."""
    spent = 0
    for n, (prompt, output) in enumerate(_requests(count)):
        before = time.thread_time_ns()
        call(prompt, output)
        spent += time.thread_time_ns() - before
        if n % _GROUP == 0:
            time.sleep(_NAP_S)
    return spent


def _measure(call: Call, settle: Callable[[], object]) -> tuple[float, float]:
    """Microseconds of CPU for each request: of all threads, and of the calling one."""
    settle()
    before = time.process_time_ns()
    calling = _paced(call, REQUESTS)
    settle()
    return (time.process_time_ns() - before) / REQUESTS / 1000, calling / REQUESTS / 1000


def _nothing(prompt: list[int], output: list[int]) -> None:
    """The loop itself."""


def run(requests: int = A_MILLION) -> dict[str, Any]:
    """Measure; times in microseconds, sizes in bytes."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        key = generate_key()
        service = Running(folder / "ledger", [Chain(ISSUER, key)])
        stack.callback(service.stop)
        recorder = stack.enter_context(
            Recorder(
                f"http://127.0.0.1:{service.port}",
                api_key=service.token,
                log_key=folder / "ledger" / "log.vkey",
                spool=folder / "spool",
                issuer=ISSUER,
                key=key,
                deployment=DEPLOYMENT,
                factors=FACTORS,
                when_full="block",
            )
        )
        provider = TracerProvider()
        exporter = OTLPSpanExporter(endpoint=stack.enter_context(_sink()))
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=1 << 17))
        stack.callback(provider.shutdown)
        tracer = provider.get_tracer("bench")

        def record(prompt: list[int], output: list[int]) -> None:
            now = time.time_ns() // 1000
            recorder.record(
                usage=Usage(input_tokens=PROMPT, output_tokens=OUTPUT, cached_input_tokens=128),
                started_us=now - 900_000,
                first_token_us=now - 800_000,
                ended_us=now,
                input_ids=prompt,
                output_ids=output,
                finish_reason="stop",
                request_id="chatcmpl-7f3a",
                tenant="t-12",
                energy=_ENERGY,
            )

        def span(prompt: list[int], output: list[int]) -> None:
            each = tracer.start_span(
                "chat",
                attributes={
                    "gen_ai.operation.name": "chat",
                    "gen_ai.request.model": "Bench-8B-Instruct",
                    "gen_ai.usage.input_tokens": PROMPT,
                    "gen_ai.usage.output_tokens": OUTPUT,
                    "gen_ai.response.finish_reasons": ("stop",),
                    "gen_ai.response.id": "chatcmpl-7f3a",
                    "server.time_to_first_token": 100_000,
                    "user.id": "t-12",
                },
            )
            each.end()

        turns: dict[str, tuple[Call, Callable[[], object]]] = {
            "loop": (_nothing, lambda: None),
            "record": (record, lambda: recorder.flush(120)),
            "span": (span, lambda: provider.force_flush(120_000)),
        }
        figures: dict[str, list[tuple[float, float]]] = {each: [] for each in turns}
        signing = []
        for _ in range(ROUNDS):
            signing.append(_sign_us())
            for each, (call, settle) in turns.items():
                figures[each].append(_measure(call, settle))
        memory = _memory(record, recorder, requests)
        if recorder.status().dropped:
            raise RuntimeError("records were dropped: what was measured is not what is claimed")
    told = {}
    for each in ("record", "span"):
        # Less the loop of the same round: a shared machine is not as quick from one to the next.
        for at, figure in enumerate(("cpu", "calling")):
            rounds = [own[at] - loop[at] for own, loop in zip(figures[each], figures["loop"], strict=True)]
            told[f"{each}_{figure}_us"] = statistics.median(rounds)
            told[f"{each}_{figure}_least_us"] = min(rounds)
    told["ratio_to_span"] = told["record_cpu_us"] / told["span_cpu_us"]
    told["ed25519_sign_us"] = statistics.median(signing)
    return {**told, **memory}


def _sign_us() -> float:
    """What one signature takes now: how quick the machine is, for whoever compares runs."""
    key = generate_key()
    before = time.thread_time_ns()
    for _ in range(1000):
        key.sign(b"speed")
    return (time.thread_time_ns() - before) / 1e6


def _memory(record: Call, recorder: Recorder, requests: int) -> dict[str, float]:
    """How the resident size grows while ``requests`` records go to the ledger."""
    _paced(record, requests // 10)
    recorder.flush(300)
    begin = _resident_bytes()
    _paced(record, requests - requests // 10)
    recorder.flush(300)
    grown = _resident_bytes() - begin
    return {"memory_records": requests, "resident_mb": begin / 1e6, "grown_mb": grown / 1e6}


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


# --- a sink for spans ------------------------------------------------------------------------------------


class _Taker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _take(tell: Connection) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Taker)
    tell.send(server.server_port)
    server.serve_forever()


@contextlib.contextmanager
def _sink() -> Iterator[str]:
    """The address of a process that takes whatever is posted."""
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_take, args=(tell,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{told.recv()}/v1/traces"
    finally:
        process.terminate()
        process.join(10)


if __name__ == "__main__":
    for figure, value in run(*[int(argument) for argument in sys.argv[1:]]).items():
        sys.stdout.write(f"{figure:24} {value:14.3f}\n")
