"""Generates with ``LLM`` in a process of its own, as a user's script would; writes down what vLLM says.

There is not a word of Tallystick here: the plugin is found by vLLM.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest

WORDS = ["the", "tally", "stick", "was", "split", "in", "two", "parts", "to", "keep", "the", "count"]


def said(output: RequestOutput, **more: Any) -> list[dict[str, Any]]:
    """What vLLM says of each sample of a request."""
    return [
        {
            "request": output.request_id,
            "input_ids": output.prompt_token_ids,
            "output_ids": list(sample.token_ids),
            "cached": output.num_cached_tokens,
            "reason": sample.finish_reason,
        }
        | more
        for sample in output.outputs
    ]


def main(model: str, lora: str, told: str) -> None:
    """Generate in all the ways that ``LLM`` offers."""
    llm = LLM(
        model,
        enforce_eager=True,
        dtype="float32",
        max_model_len=2048,
        enable_lora=True,
        max_lora_rank=8,
    )
    seen: list[dict[str, Any]] = []

    prompts = [" ".join(WORDS[: 1 + i % len(WORDS)] * (1 + i // 4)) for i in range(40)]
    params = [SamplingParams(max_tokens=1 + i, seed=i, ignore_eos=i % 2 == 0) for i in range(40)]
    for output in llm.generate(prompts, params, use_tqdm=False):
        seen += said(output)

    # The same long prompt again: most of it comes from the cache.
    for _ in range(2):
        (output,) = llm.generate([" ".join(WORDS * 20)], SamplingParams(max_tokens=4), use_tqdm=False)
        seen += said(output)

    # Ids for a prompt, three samples of it, and no text wanted.
    several = SamplingParams(n=3, max_tokens=8, temperature=1.0, seed=7, detokenize=False)
    for output in llm.generate([{"prompt_token_ids": [5, 6, 7, 8]}], several, use_tqdm=False):
        seen += said(output)

    # A stop string that is there: the text of the third token of this very answer.
    free = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    (output,) = llm.generate(["stop"], free, use_tqdm=False)
    seen += said(output)
    tokenizer = llm.get_tokenizer()
    stop = tokenizer.decode(output.outputs[0].token_ids[2:3])
    stopping = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True, stop=[stop])
    (output,) = llm.generate(["stop"], stopping, use_tqdm=False)
    assert len(output.outputs[0].token_ids) <= 3
    seen += said(output)

    adapter = LoRARequest("arithmetic", 1, lora)
    for output in llm.generate(["with it", "and again"], free, use_tqdm=False, lora_request=adapter):
        seen += said(output, lora="arithmetic")

    for output in llm.chat([[{"role": "user", "content": "hello"}]], free, use_tqdm=False):
        seen += said(output)

    cause = "01900000-0000-7000-8000-000000000000"
    for named, kept in ({"team": "acme", "cause": cause}, True), ({"team": 7, "cause": "' or 1"}, False):
        whose = SamplingParams(max_tokens=4, extra_args=named)
        for output in llm.generate(["for whom"], whose, use_tqdm=False):
            seen += said(output, **({"tenant": "acme", "parent": cause} if kept else {}))

    # One that is stopped from outside, through the engine beneath.
    engine = llm.llm_engine
    engine.add_request("left", "leave", SamplingParams(max_tokens=1000, ignore_eos=True))
    partial: list[RequestOutput] = []
    while len(partial) < 5:
        partial += engine.step()
    engine.abort_request(["left"])
    seen += [said(partial[-1])[0] | {"reason": "abort"}]

    try:
        llm.generate(["too long " * 3000], use_tqdm=False)
    except VLLMValidationError:
        pass
    else:
        raise AssertionError("vLLM took a prompt that is too long")
    Path(told).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:4])
