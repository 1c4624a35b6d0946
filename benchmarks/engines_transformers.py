"""Throughput of transformers with the hook over without it: SmolLM2-135M on CPUs, batches of two, in turns.

Needs the engines' environment: ``make engines-setup``, then ``.venv-engines/bin/python -m
benchmarks.engines_transformers``. The recorder seals, signs and writes to its spool meanwhile.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PAIRS = int(os.environ.get("TALLYSTICK_BENCH_PAIRS", "15"))
PROMPT, ANSWER, BATCH = 64, 24, 2


def run() -> dict[str, float]:
    """Measure; see ``compared`` for the figures."""
    import torch
    import transformers

    from benchmarks._interleaved import compared
    from ledger.emit import Recorder
    from ledger.emit.engines import transformers as hook
    from tests.engines.smollm2 import smollm2

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
    ids = torch.randint(20, 40_000, (BATCH, PROMPT))
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": ANSWER, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def generate() -> int:
        out = model.generate(ids, attention_mask=mask, **options)
        return int(out.shape[0] * (out.shape[1] - PROMPT))

    with tempfile.TemporaryDirectory() as folder, Recorder(spool=Path(folder) / "spool") as recorder:

        def hooked() -> int:
            hook.attach(model, recorder, deployment=deployment)
            try:
                return generate()
            finally:
                hook.detach(model)

        deployment = hook.deployment_of(model)
        return compared(generate, hooked, PAIRS)


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name:24}{value:12.4g}")
