"""What the vLLM plugin takes of vLLM's throughput: one engine, recorded and not in turns, in one process.

Run by ``make bench-engines``, or by ``python -m benchmarks.engines_vllm [PAIRS [MODEL]]``.
Each half of a pair generates the same requests, with the lengths of production conversations (see
``tests/engines/conversations.py``), and ends when all its records are on disk. The order within a pair
alternates. The default model is a Llama of two layers: its steps are so short that what the frontend does
weighs as much as it ever can. CPU time is that of the frontend's process with all its threads; the engine
runs in another.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from typing import Any

PAIRS = 15
REQUESTS = 400
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def run(pairs: int = PAIRS, model: str | None = None) -> dict[str, Any]:
    """Measure; the ratio is the median over the pairs of throughput recorded over not recorded."""
    os.environ.update(SETTINGS)
    from vllm import LLM, SamplingParams

    from ledger.emit import Recorder
    from ledger.emit.engines import vllm as tallystick
    from ledger.emit.engines._vllm_requests import SEAMS
    from tests.engines.conversations import conversations
    from tests.engines.smollm2 import tiny_llama

    for name in list(os.environ):
        if name.startswith("TALLYSTICK_"):
            del os.environ[name]
    llm = LLM(model or str(tiny_llama()), enforce_eager=True, dtype="float32", max_model_len=2048)
    processor = llm.llm_engine.output_processor
    sent = conversations(REQUESTS, "any", seed=5)
    prompts = [str(one.body.get("prompt") or one.body["messages"][0]["content"]) for one in sent]
    params = [SamplingParams(max_tokens=min(125, one.body["max_tokens"]), ignore_eos=True) for one in sent]

    with tempfile.TemporaryDirectory() as folder, Recorder(spool=folder) as recorder:
        tallystick.attach(llm, recorder)
        hooks = {name: vars(processor)[name] for name in SEAMS}

        def half(recorded: bool) -> tuple[float, float]:
            """Seconds and seconds of CPU of one run. Prompts are new to the cache each time."""
            for name, hook in hooks.items():
                if recorded:
                    setattr(processor, name, hook)
                else:
                    vars(processor).pop(name, None)
            llm.reset_prefix_cache()
            cpu, began = time.process_time(), time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            if recorded:
                assert recorder.sync(60)
            return time.perf_counter() - began, time.process_time() - cpu

        half(True), half(False)  # warm
        rows = []
        for number in range(pairs):
            first = number % 2 == 0
            halves = {first: half(first), not first: half(not first)}
            rows.append((*halves[True], *halves[False]))
        status = recorder.status()
    assert status.dropped == 0
    ratios = [plain / recorded for recorded, _, plain, _ in rows]
    quarters = statistics.quantiles(ratios, n=4)
    return seam() | {
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratio_q1": quarters[0],
        "throughput_ratio_q3": quarters[2],
        "requests_per_s": REQUESTS / statistics.median(row[0] for row in rows),
        "requests_per_s_without": REQUESTS / statistics.median(row[2] for row in rows),
        "cpu_us_per_request_more": statistics.median((row[1] - row[3]) / REQUESTS * 1e6 for row in rows),
        "cpu_us_per_request_without": statistics.median(row[3] for row in rows) / REQUESTS * 1e6,
        "pairs": pairs,
    }


def seam(rounds: int = 15, requests: int = 64, prompt: int = 512, answer: int = 256) -> dict[str, float]:
    """What the hook costs the frontend's thread: vLLM's own output processor, without an engine.

    All requests are in every step, a token each. Times are the thread's CPU; the median of the differences.
    """
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
    from vllm.v1.engine.output_processor import OutputProcessor

    from ledger.emit import Recorder
    from ledger.emit.engines._vllm_requests import Fields, Requests
    from tests.build import make_deployment

    ids = [1000 + number for number in range(prompt)]
    params = SamplingParams(max_tokens=answer)
    deployment = make_deployment()
    steps = [
        [
            EngineCoreOutput(
                str(each), [step], finish_reason=FinishReason.LENGTH if step == answer - 1 else None
            )
            for each in range(requests)
        ]
        for step in range(answer)
    ]

    def cpu(processor: OutputProcessor) -> float:
        fresh = [
            EngineCoreRequest(str(each), list(ids), None, params, None, time.time(), None, None, None)
            for each in range(requests)
        ]
        for request in fresh:
            request.external_req_id = request.request_id
        began = time.thread_time_ns()
        for request in fresh:
            processor.add_request(request, None)
        for outputs in steps:
            processor.process_outputs(outputs)
        return (time.thread_time_ns() - began) / requests / 1000

    plain = OutputProcessor(None, log_stats=False)
    hooked = OutputProcessor(None, log_stats=False)
    with tempfile.TemporaryDirectory() as folder, Recorder(spool=folder) as recorder:
        Requests(hooked, recorder, lambda _: deployment, Fields())
        cpu(plain), cpu(hooked)
        pairs = [(cpu(plain), cpu(hooked)) for _ in range(rounds)]
    return {
        "hook_thread_us": statistics.median(each[1] - each[0] for each in pairs),
        "hook_thread_us_without": statistics.median(each[0] for each in pairs),
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    for label, value in run(int(given[0]) if given else PAIRS, *given[1:2]).items():
        print(f"{label:28}{value:12.4g}")
