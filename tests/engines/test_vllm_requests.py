"""The vLLM hook around a real ``OutputProcessor``, without an engine: the ways in which requests can end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from ledger.core.records import Record
from ledger.emit import Recorder
from ledger.emit.engines._vllm_requests import SEAMS, Fields, Requests
from tests.build import make_deployment
from tests.engines.logged import Logged

pytest.importorskip("vllm")

import torch
from vllm import PoolingParams, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest


class Rig:
    """An output processor that is recorded into a spool."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.recorder = Recorder(spool=spool, issuer="tests.example/vllm")
        self.processor = OutputProcessor(None, log_stats=False)
        self.changes: list[None] = []
        self.hook = Requests(
            self.processor,
            self.recorder,
            lambda _: make_deployment(),
            Fields("team", "cause"),
            lambda: self.changes.append(None),
        )

    def add(self, request_id: str, prompt: list[int] | None = None, **more: Any) -> RequestOutputCollector:
        """Register a request, as ``AsyncLLM`` does; ``more`` is for the engine's request."""
        params = more.pop("params", SamplingParams(output_kind=RequestOutputKind.DELTA))
        parent, index = more.pop("parent", None), more.pop("index", 0)
        sampling = params if isinstance(params, SamplingParams) else None
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=[1, 2, 3] if prompt is None and "prompt_embeds" not in more else prompt,
            mm_features=None,
            sampling_params=sampling,
            pooling_params=None if sampling else params,
            arrival_time=more.pop("arrival_time", time.time()),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=more.pop("external_req_id", request_id),
            **more,
        )
        queue = RequestOutputCollector(RequestOutputKind.DELTA, request_id)
        self.processor.add_request(request, None, parent, index, queue)
        return queue

    def step(
        self, request_id: str, tokens: list[int], reason: FinishReason | None = None, **more: Any
    ) -> None:
        """Tokens of one request arrive."""
        output = EngineCoreOutput(request_id=request_id, new_token_ids=tokens, finish_reason=reason, **more)
        self.processor.process_outputs([output])

    def logged(self) -> Logged:
        assert self.recorder.close()
        return Logged(self.spool)

    def one(self) -> Record:
        return self.logged().one()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "spool")
    yield rig
    rig.recorder.close()


def test_it_ends_by_itself(rig: Rig) -> None:
    rig.add("a", [5, 6])
    rig.step("a", [7])
    time.sleep(0.01)
    rig.step("a", [8, 9], FinishReason.LENGTH)
    logged = rig.logged()
    record = logged.one()
    assert (record.usage.input_tokens, record.usage.output_tokens) == (2, 3)
    assert record.finish_reason == "length"
    assert isinstance(record.first_token_us, int)
    assert record.ended_us - record.first_token_us >= 10_000
    assert logged.dropped == 0


def test_it_is_aborted_before_its_first_token(rig: Rig) -> None:
    rig.add("a")
    assert rig.processor.abort_requests(["a"], internal=True) == ["a"]
    record = rig.one()
    assert record.finish_reason == "abort"
    assert record.usage.output_tokens == 0
    assert record.usage.cached_input_tokens is UNSET  # the engine had not told
    assert record.first_token_us is UNSET


def test_all_samples_of_a_request_are_aborted(rig: Rig) -> None:
    params = SamplingParams(n=3, output_kind=RequestOutputKind.DELTA)
    request = EngineCoreRequest("p", [1], None, params, None, time.time(), None, None, None)
    request.external_req_id = "outside"
    parent = ParentRequest(request)
    for index in range(3):
        child, child_params = parent.get_child_info(index)
        rig.add(child, [1], params=child_params, parent=parent, index=index, external_req_id="outside")
    rig.step("0_p", [4], FinishReason.STOP)
    rig.step("1_p", [4, 5])
    rig.processor.abort_requests(["p"], internal=True)
    logged = rig.logged()
    ended = sorted((str(each.finish_reason), each.usage.output_tokens) for each in logged.records)
    assert ended == [("abort", 0), ("abort", 2), ("stop", 1)]


def test_the_engine_dies(rig: Rig) -> None:
    rig.add("made some")
    rig.add("made none")
    rig.step("made some", [4])
    rig.processor.propagate_error(RuntimeError("the engine is dead"))
    logged = rig.logged()
    assert logged.one().finish_reason == "error"
    assert logged.dropped == 0


def test_it_is_freed_without_a_reason(rig: Rig) -> None:
    """As vLLM 0.33 does with what the engine rejects on arrival."""
    original = vars(rig.processor)["process_outputs"]
    rig.add("rejected")
    rig.processor._finish_request(rig.processor.request_states["rejected"])
    original([])
    logged = rig.logged()
    assert logged.records == []
    assert logged.dropped == 0


def test_a_streamed_prompt_is_one_record(rig: Rig) -> None:
    rig.add("s", [1, 2], resumable=True)
    rig.step("s", [7], FinishReason.STOP)
    rig.add("s", [3], resumable=True)
    rig.step("s", [8, 9], FinishReason.STOP)
    rig.add("s", [0], resumable=False)  # says that no more will come
    record = rig.one()
    assert record.finish_reason == "stop"
    assert (record.usage.input_tokens, record.usage.output_tokens) == (3, 3)


def test_a_streamed_prompt_that_ends_before_its_answer(rig: Rig) -> None:
    rig.add("s", [1, 2], resumable=True)
    rig.add("s", [0], resumable=False)
    rig.step("s", [7, 8], FinishReason.LENGTH)
    record = rig.one()
    assert (record.finish_reason, record.usage.output_tokens) == ("length", 2)


def test_a_prompt_of_embeddings_has_no_commitment(rig: Rig) -> None:
    rig.add("e", None, prompt_embeds=torch.zeros(4, 8))
    rig.step("e", [7], FinishReason.STOP)
    record = rig.one()
    assert record.usage.input_tokens == 4
    assert record.input is UNSET
    assert record.output is not UNSET


def test_an_embedding_has_no_output(rig: Rig) -> None:
    rig.add("v", [1, 2], params=PoolingParams(task="embed"))
    rig.step("v", [], FinishReason.STOP, pooling_output=torch.zeros(8))
    record = rig.one()
    assert (record.usage.input_tokens, record.usage.output_tokens) == (2, 0)
    assert record.output is UNSET


def test_another_version_of_the_weights_is_told(rig: Rig) -> None:
    rig.add("a")
    for version, changes in [(None, 0), ("default", 0), ("step-1", 1), ("step-1", 1), ("step-2", 2)]:
        output = EngineCoreOutput(request_id="a", new_token_ids=[7])
        rig.processor.process_outputs([output], weight_version=version)
        assert len(rig.changes) == changes


def test_what_callers_say_cannot_spoil_a_record(rig: Rig) -> None:
    bad: list[Any] = ["", 7, ["x"], "x" * 300, "half \ud800", "two\nlines", None]
    for number, value in enumerate(bad):
        params = SamplingParams(
            output_kind=RequestOutputKind.DELTA, extra_args={"team": value, "cause": value}
        )
        rig.add(str(number), params=params, arrival_time=0.0)
        rig.step(str(number), [4], FinishReason.STOP)
    logged = rig.logged()
    assert len(logged.records) == len(bad)
    assert {each.tenant for each in logged.records} == {each.parent for each in logged.records} == {UNSET}
    assert all(each.started_us > 1_600_000_000_000_000 for each in logged.records)  # not 1970
    assert logged.dropped == 0


def test_a_hook_that_fails_does_not_touch_vllm(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(rig.recorder, "begin", fail)
    queue = rig.add("a")
    rig.step("a", [4], FinishReason.STOP)
    assert queue.get_nowait().outputs[0].token_ids == [4]
    monkeypatch.undo()
    monkeypatch.setattr(rig.recorder, "record", fail)
    queue = rig.add("b")
    rig.step("b", [4], FinishReason.STOP)
    assert queue.get_nowait().outputs[0].token_ids == [4]
    assert [each.levelno for each in caplog.records if each.name == "tallystick.emit"] == [logging.ERROR]


def test_methods_are_wrapped_on_the_one_instance(rig: Rig) -> None:
    assert not set(SEAMS) & set(vars(OutputProcessor(None, log_stats=False)))
    assert set(SEAMS) <= set(vars(rig.processor))
