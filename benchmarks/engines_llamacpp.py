"""Throughput of llama.cpp with the hook over without it: SmolLM2-135M on CPUs, eight requests at once, in
turns.

Half of the requests stream. Needs the engines' environment: ``make engines-setup``, then
``.venv-engines/bin/python -m benchmarks.engines_llamacpp``. The recorder seals, signs and writes to its
spool meanwhile.
"""

from __future__ import annotations

import os
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PAIRS = int(os.environ.get("TALLYSTICK_BENCH_PAIRS", "15"))
PROMPT, ANSWER, AT_ONCE, SLOTS = 96, 32, 8, 4


def run() -> dict[str, float]:
    """Measure; see ``compared`` for the figures."""
    import xllamacpp

    from benchmarks._interleaved import compared
    from ledger.emit import Recorder
    from ledger.emit.engines import llamacpp as hook
    from tests.engines.smollm2 import gguf

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf())
    params.n_ctx, params.n_parallel = SLOTS * 512, SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    server = xllamacpp.Server(params)
    rng = random.Random(0)
    prompts = [[rng.randrange(20, 40_000) for _ in range(PROMPT)] for _ in range(AT_ONCE)]

    def send(to: Any, at: int) -> int:
        body = {"prompt": prompts[at], "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
        body["cache_prompt"] = False
        if at % 2:
            return int(to.handle_completions(body)["usage"]["completion_tokens"])
        chunks: list[Any] = []
        to.handle_completions({**body, "stream": True}, chunks.append)
        return ANSWER

    def work(to: Any) -> int:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return sum(pool.map(lambda at: send(to, at), range(AT_ONCE)))

    with tempfile.TemporaryDirectory() as folder:
        deployment = hook.deployment_of(params)
        with Recorder(spool=Path(folder) / "spool", deployment=deployment) as recorder:
            recorded = hook.attach(server, recorder, params=params)
            return compared(lambda: work(server), lambda: work(recorded), PAIRS)


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name:24}{value:12.4g}")
