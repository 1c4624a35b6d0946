"""The DeepSpeed hooks by recorded shapes; in an environment with ``mii``, with its own ``Response``.

``InferenceEngine`` is tested in ``tests/engines`` where DeepSpeed is installed. MII needs a GPU to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest

from ledger.emit.engines import deepspeed as hook
from tests.emit.test_tensorrt_llm import DEPLOYMENT, Captured

try:
    from mii.batching.data_classes import Response
    from mii.constants import GenerationFinishReason
except ImportError:  # as in DeepSpeed-MII 0.3.3

    class GenerationFinishReason(str, Enum):  # type: ignore[no-redef]  # noqa: UP042
        STOP = "stop"
        LENGTH = "length"
        NONE = "none"

    @dataclass
    class Response:  # type: ignore[no-redef]
        generated_text: str
        prompt_length: int
        generated_length: int
        finish_reason: Any


class Pipeline:
    """``mii.pipeline``: a list of responses, in the order of the prompts."""

    tokenizer = "a tokenizer"

    def __call__(self, prompts: Any, **kwargs: Any) -> list[Response]:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if "" in prompts:
            raise ValueError("refused")
        before = prompts if kwargs.get("return_full_text") else [""] * len(prompts)
        return [
            Response(f"{full} answer", len(prompt.split()), 5, GenerationFinishReason.LENGTH)
            for prompt, full in zip(prompts, before, strict=True)
        ]


class Client(Pipeline):
    """``MIIClient``: finish reasons are plain strings; a stream gives the length so far."""

    def generate(self, prompts: Any, streaming_fn: Any = None, **kwargs: Any) -> Any:
        if streaming_fn is None:
            return self(prompts, **kwargs)
        for at, piece in enumerate(["a", " b", ""]):
            streaming_fn([Response(piece, 3, min(at + 1, 2), "stop" if not piece else "none")])
        return None


def test_a_pipeline_gives_a_record_for_each_prompt() -> None:
    records, request = Captured(), hook.Request(tenant="t-1")
    pipe = hook.attach(Pipeline(), records, deployment=DEPLOYMENT)  # type: ignore[arg-type]
    answers = pipe(["one two", "three"], max_new_tokens=5, tallystick=request)
    assert [each.generated_text for each in answers] == [" answer", " answer"]
    assert pipe.tokenizer == "a tokenizer"
    assert [record["input_text"] for record in records] == ["one two", "three"]
    assert [record["usage"].input_tokens for record in records] == [2, 1]
    assert {record["usage"].output_tokens for record in records} == {5}
    assert {record["finish_reason"] for record in records} == {"length"}
    assert {record["output_text"] for record in records} == {" answer"}
    assert request.record_ids == ["record-1", "record-2"]
    pipe("one two", return_full_text=True)
    assert records[-1]["output_text"] == " answer"


def test_what_is_refused_is_not_recorded() -> None:
    records = Captured()
    pipe = hook.attach(Pipeline(), records, deployment=DEPLOYMENT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="refused"):
        pipe(["one", ""])
    assert not records
    assert not records.open


def test_a_stream_of_the_client_is_one_record() -> None:
    records, seen = Captured(), []
    client = hook.attach(Client(), records, deployment=DEPLOYMENT)  # type: ignore[arg-type]
    client.generate("one two three", seen.append)
    client.generate("one two three", streaming_fn=seen.append)
    client.generate(["one"])
    assert len(seen) == 6
    assert [record["usage"].output_tokens for record in records] == [2, 2, 5]
    assert records[0]["output_text"] == "a b"
    assert records[0]["finish_reason"] == "stop"
    assert records[0]["first_token_us"] is not None


def test_a_stream_that_breaks_is_an_abort() -> None:
    records = Captured()
    client = hook.attach(Client(), records, deployment=DEPLOYMENT)  # type: ignore[arg-type]

    def gone(pieces: Any) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        client.generate("one", gone)
    assert [(record["output_text"], record["finish_reason"]) for record in records] == [("a", "abort")]
