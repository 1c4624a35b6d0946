"""The TensorRT-LLM hook, by the behaviour that its source documents: it needs a GPU even to be imported.

``RequestOutput`` below does what ``GenerationResult`` of ``tensorrt_llm/executor/result.py`` (1.x) does
with a response: ``_result_step`` and ``_aresult_step`` take it from a queue and give it to
``self._handle_response``.
"""

from __future__ import annotations

import asyncio
import gc
import queue
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import UNSET

from ledger.core.records import Adapter, Deployment, Speculative
from ledger.emit.engines import tensorrt_llm as hook

DEPLOYMENT = Deployment(model="m", engine="tensorrt-llm")


@dataclass(slots=True)
class CompletionOutput:
    index: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None


class RequestOutput:
    def __init__(self, prompt: list[int], responses: list[Any], n: int, *, streaming: bool) -> None:
        self.prompt_token_ids = prompt
        self._outputs = [CompletionOutput(at) for at in range(n)]
        self._streaming = streaming
        self._done = False
        self.cached_tokens = 0
        self.metrics_dict: dict[str, float] = {}
        self.queue: queue.Queue[Any] = queue.Queue()
        for each in responses:
            self.queue.put(each)

    @property
    def outputs(self) -> list[CompletionOutput]:
        return self._outputs[:]

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        self.queue.put({"finish": ["cancelled"] * len(self._outputs)})

    def _handle_response(self, response: Any) -> None:
        if isinstance(response, Exception):
            raise response
        for output, tokens in zip(self._outputs, response.get("tokens", ()), strict=False):
            output.token_ids.extend(tokens)
        self.cached_tokens = response.get("cached", self.cached_tokens)
        self.metrics_dict = response.get("metrics", self.metrics_dict)
        if "stop_string" in response:  # found while detokenizing: ends the request itself
            self._outputs[0].finish_reason = "stop"
            self.abort()
            self._done = True
        if "finish" in response:
            self._done = True
            for output, reason in zip(self._outputs, response["finish"], strict=True):
                output.finish_reason = reason

    def _result_step(self) -> None:
        self._handle_response(self.queue.get())

    async def _aresult_step(self) -> None:
        self._handle_response(await asyncio.to_thread(self.queue.get))

    def result(self) -> RequestOutput:
        while not self._done:
            self._result_step()
        return self

    async def aresult(self) -> RequestOutput:
        while not self._done:
            await self._aresult_step()
        return self

    def __await__(self) -> Any:
        return self.aresult().__await__()

    def __iter__(self) -> RequestOutput:
        return self

    def __next__(self) -> RequestOutput:
        if self._done:
            raise StopIteration
        self._result_step()
        return self

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        await self._aresult_step()
        return self


class LLM:
    """``generate`` waits for what ``generate_async`` gives, as in ``tensorrt_llm/llmapi/llm.py``."""

    def __init__(self, responses: list[Any], n: int = 1) -> None:
        self.responses, self.n = responses, n

    def generate(self, inputs: list[int], **kwargs: Any) -> RequestOutput:
        return self.generate_async(inputs, **kwargs).result()

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: Any = None,
        lora_request: Any = None,
        streaming: bool = False,
    ) -> RequestOutput:
        if not inputs:
            raise ValueError("refused")
        return RequestOutput(inputs, self.responses, self.n, streaming=streaming)


class Captured(list[Any]):
    """Stands for a recorder: keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.open: set[str] = set()
        self.lost: list[str] = []
        self.count = 0

    def begin(self, *, input_tokens: int | None = None) -> str:
        self.count += 1
        self.open.add(f"record-{self.count}")
        return f"record-{self.count}"

    def abandon(self, id: str) -> None:
        self.open.remove(id)

    def lose(self, id: str) -> None:
        self.open.remove(id)
        self.lost.append(id)

    def record(self, **fields: Any) -> str:
        self.open.remove(fields["id"])
        assert (
            fields["started_us"] <= (fields["first_token_us"] or fields["started_us"]) <= fields["ended_us"]
        )
        self.append(fields)
        return str(fields["id"])


STREAM = [{"tokens": [[7]], "cached": 2}, {"tokens": [[8, 9]]}, {"tokens": [[10]], "finish": ["length"]}]


@pytest.mark.parametrize("way", ["result", "iterate", "await", "async for", "generate"])
def test_a_request_is_recorded_once_however_it_is_waited_for(way: str) -> None:
    records, request = Captured(), hook.Request(tenant="t-1", request_id="r-1")
    llm = hook.attach(LLM(STREAM), records, deployment=DEPLOYMENT)  # type: ignore[arg-type]

    async def run() -> None:
        output = llm.generate_async([1, 2, 3], streaming=True, tallystick=request)
        if way == "await":
            await output
        else:
            async for _ in output:
                pass

    if way == "generate":
        llm.generate([1, 2, 3], tallystick=request)
    elif way in ("await", "async for"):
        asyncio.run(run())
    else:
        output = llm.generate_async([1, 2, 3], streaming=True, tallystick=request)
        if way == "result":
            assert output.result() is output
        else:
            assert len(list(output)) == 3
    gc.collect()
    assert len(records) == 1
    assert not records.open
    record = records[0]
    assert record["input_ids"] == [1, 2, 3]
    assert record["output_ids"] == [7, 8, 9, 10]
    assert record["finish_reason"] == "length"
    assert record["usage"].output_tokens == 4
    assert record["usage"].cached_input_tokens == 2
    assert (record["first_token_us"] is None) == (way == "generate")  # unknown without a stream
    assert (record["tenant"], record["request_id"]) == ("t-1", "r-1")
    assert request.record_ids == ["record-1"]


def test_several_outputs_are_records_of_their_own() -> None:
    records = Captured()
    responses = [{"tokens": [[5], [6, 7]]}, {"finish": ["stop", "length"], "metrics": {"ttft": 0.0001}}]
    hook.attach(LLM(responses, n=2), records, deployment=DEPLOYMENT).generate([1])  # type: ignore[arg-type]
    assert [record["output_ids"] for record in records] == [[5], [6, 7]]
    assert [record["finish_reason"] for record in records] == ["stop", "length"]
    assert records[0]["first_token_us"] is not None


def test_what_is_aborted_or_goes_away_has_its_tokens_so_far() -> None:
    records = Captured()
    llm = hook.attach(LLM(STREAM), records, deployment=DEPLOYMENT)  # type: ignore[arg-type]
    output = llm.generate_async([1, 2], streaming=True)
    next(output)
    next(output)
    output.abort()
    gone = llm.generate_async([1, 2], streaming=True)
    next(gone)
    del gone
    never = llm.generate_async([1, 2], streaming=True)
    del never
    gc.collect()
    assert [record["output_ids"] for record in records] == [[7, 8, 9], [7]]
    assert {record["finish_reason"] for record in records} == {"abort"}
    assert not records.open


def test_a_stop_string_is_a_stop_though_the_engine_aborts_by_itself() -> None:
    records = Captured()
    responses = [{"tokens": [[7]]}, {"tokens": [[8]], "stop_string": True}]
    hook.attach(LLM(responses), records, deployment=DEPLOYMENT).generate([1])  # type: ignore[arg-type]
    assert [(record["output_ids"], record["finish_reason"]) for record in records] == [([7, 8], "stop")]


def test_errors_pass_on() -> None:
    records = Captured()
    failing = hook.attach(LLM([{"tokens": [[7]]}, RuntimeError("lost")]), records, deployment=DEPLOYMENT)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="lost"):
        failing.generate([1])
    with pytest.raises(ValueError, match="refused"):
        failing.generate([])
    assert [(record["output_ids"], record["finish_reason"]) for record in records] == [([7], "error")]
    hook.detach(failing)
    assert "generate_async" not in vars(failing)


def test_what_cannot_be_recorded_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Captured()
    monkeypatch.setattr(hook._Watch, "_us", lambda *_: 1 // 0)
    llm = hook.attach(LLM([{"tokens": [[7]], "finish": ["stop"]}]), records, deployment=DEPLOYMENT)  # type: ignore[arg-type]
    assert llm.generate([1]).outputs[0].token_ids == [7]
    assert (records, records.lost, records.open) == ([], ["record-1"], set())


def test_the_deployment_is_read_from_the_arguments(tmp_path: Any) -> None:
    args = SimpleNamespace(
        model="org/name",
        revision="v1",
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        quant_config=SimpleNamespace(quant_algo=SimpleNamespace(value="FP8")),
        attn_backend="TRTLLM",
        speculative_config=SimpleNamespace(
            decoding_type="Eagle", max_draft_len=3, speculative_model_dir="/models/eagle-head"
        ),
        dtype="auto",
    )
    found = hook.deployment_of(SimpleNamespace(args=args), accelerator="NVIDIA H100", power_mw=700_000)()
    assert (found.model, found.version, found.weights) == ("org/name", "v1", UNSET)
    assert (found.quantization, found.attention) == ("FP8", "TRTLLM")
    assert found.speculative == Speculative(method="Eagle", model="eagle-head", tokens=3)
    assert (found.tensor_parallel, found.pipeline_parallel, found.accelerators) == (2, 2, 4)
    args = SimpleNamespace(model=str(tmp_path), dtype="bfloat16")
    (tmp_path / "config.json").write_text("{}")
    found = hook.deployment_of(SimpleNamespace(args=args), digest_cache=tmp_path.parent / "cache.json")()
    assert found.weights
    assert found.quantization == "bfloat16"
    records = Captured()
    llm = hook.attach(LLM([{"tokens": [[1]], "finish": ["stop"]}]), records, deployment=found)  # type: ignore[arg-type]
    llm.generate([1], lora_request=SimpleNamespace(lora_name="tuned"))
    assert records[0]["deployment"].adapters == (Adapter(name="tuned"),)
    assert time.time_ns() // 1000 - records[0]["ended_us"] < 10_000_000
