"""What LiteLLM's callbacks cost for each request: ours, one that does nothing, and one that ends a span.

Needs LiteLLM: ``make litellm-setup``, then ``.venv-litellm/bin/python -m benchmarks.litellm_callback``. Each
callback gets what LiteLLM gives: the beginning of a call and its success, with a chat of 512 prompt and 256
output tokens as text. CPU time is that of all threads until everything is on disk (ours, in batches), or
handed to an exporter that does nothing (spans). ``litellm_request_us`` is what LiteLLM itself spends on such
a request that it answers with a mock, with the callback that does nothing.
"""

from __future__ import annotations

import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 7
CALLS = 2_000
MOCKED = 300
PROMPT = "A tally stick was split in two, so that neither could change it. " * 32
ANSWER = "Notches record an amount; the two halves must fit. " * 24
_NS_PER_US = 1000


def run() -> dict[str, float]:
    """Measure; all times in microseconds of CPU for each request, the median of the rounds."""
    import litellm
    from litellm.integrations.custom_logger import CustomLogger
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from ledger.emit import Recorder
    from ledger.emit.engines import litellm as tallystick

    class NoExporter(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    class Spans(CustomLogger):
        """A span for each call, with the attributes of the GenAI conventions."""

        def log_pre_api_call(self, model: Any, messages: Any, kwargs: dict[str, Any]) -> None:
            kwargs["span"] = tracer.start_span("chat")

        def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            span = kwargs["span"]
            span.set_attributes(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": kwargs["custom_llm_provider"],
                    "gen_ai.request.model": kwargs["model"],
                    "gen_ai.response.model": response_obj.model,
                    "gen_ai.response.id": response_obj.id,
                    "gen_ai.usage.input_tokens": response_obj.usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": response_obj.usage.completion_tokens,
                    "gen_ai.response.finish_reasons": (response_obj.choices[0].finish_reason,),
                }
            )
            span.end()

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(NoExporter(), max_queue_size=2 * CALLS))
    tracer = provider.get_tracer("bench")
    response = litellm.ModelResponse(
        model="gpt-4o-2024-08-06",
        choices=[{"message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop", "index": 0}],
        usage=litellm.Usage(prompt_tokens=512, completion_tokens=256, total_tokens=768),
    )
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(
            spool=Path(directory) / "spool", issuer="bench.example/litellm", queue_limit=65_536
        )
        ours = tallystick.callback(recorder)
        cases: dict[str, tuple[Any, Callable[[], object]]] = {
            "noop": (CustomLogger(), lambda: None),
            "span": (Spans(), provider.force_flush),
            "tallystick": (ours, lambda: recorder.sync(60)),
        }
        totals: dict[str, list[float]] = {name: [] for name in cases}
        calling: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, (callback, settle) in cases.items():
                cpu, own = _round(callback, response, settle)
                totals[name].append(cpu)
                calling[name].append(own)
        mocked = _mocked(litellm)
        recorder.close(60)
        dropped = recorder.status().dropped
    provider.shutdown()
    if dropped:
        raise RuntimeError(f"{dropped} records were dropped: what was measured is not what is claimed")
    figures = {f"{name}_cpu_us": statistics.median(values) for name, values in totals.items()}
    figures |= {f"{name}_calling_us": statistics.median(values) for name, values in calling.items()}
    return {
        **figures,
        "ratio_span": figures["tallystick_cpu_us"] / figures["span_cpu_us"],
        "litellm_request_us": mocked,
        "share_of_request": figures["tallystick_cpu_us"] / mocked,
    }


def _round(callback: Any, response: Any, settle: Callable[[], object]) -> tuple[float, float]:
    """CPU microseconds of a request: of all threads, and of the calling one."""
    now = datetime.datetime.now()
    calls = [_details() for _ in range(CALLS)]
    all_threads, own = time.process_time_ns(), time.thread_time_ns()
    for each in calls:
        callback.log_pre_api_call(model="gpt-4o", messages=each["messages"], kwargs=each)
        callback.log_success_event(kwargs=each, response_obj=response, start_time=now, end_time=now)
    own = time.thread_time_ns() - own
    settle()
    return (time.process_time_ns() - all_threads) / CALLS / _NS_PER_US, own / CALLS / _NS_PER_US


def _details() -> dict[str, Any]:
    return {
        "call_type": "completion",
        "model": "gpt-4o",
        "custom_llm_provider": "openai",
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": False,
        "litellm_call_id": "c0ffee",
        "optional_params": {},
        "litellm_params": {"api_base": "https://api.openai.com/v1", "metadata": {}},
        "additional_args": {"complete_input_dict": {}},
        "response_cost": 0.00384,
    }


def _mocked(litellm: Any) -> float:
    from litellm.integrations.custom_logger import CustomLogger

    litellm.callbacks = [CustomLogger()]
    messages = [{"role": "user", "content": PROMPT}]
    for warm_up in (True, False):
        begun = time.process_time_ns()
        for _ in range(20 if warm_up else MOCKED):
            litellm.completion(model="gpt-4o", messages=messages, mock_response=ANSWER)
        spent = time.process_time_ns() - begun
    litellm.callbacks = []
    return spent / MOCKED / _NS_PER_US


if __name__ == "__main__":
    for figure, value in run().items():
        sys.stdout.write(f"{figure:24} {value:10.3f}\n")
