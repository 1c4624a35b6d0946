"""LiteLLM's SDK against the real engine and a real ledger: the records are what the engine said it did."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import litellm
import pytest
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
from msgspec import UNSET

from ledger.core.records import Record
from ledger.emit import Recorder
from ledger.emit.engines import litellm as tallystick
from ledger.emit.engines._openai import prompt_text
from tests.emit.conftest import eventually
from tests.emit.ledger_double import LedgerDouble
from tests.emit.wire import answering
from tests.engines_litellm.conftest import Ledger
from tests.engines_litellm.upstream import Seen, Upstream

MODEL = "openai/smollm2"
MESSAGES = [{"role": "user", "content": "Name a colour and say why you like it."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
WAIT_S = 10.0


@contextlib.contextmanager
def callbacks(*given: Any) -> Iterator[None]:
    """LiteLLM with these callbacks, and as it was afterwards."""
    litellm.callbacks = [*given]
    yield
    for each in (
        litellm.callbacks,
        litellm.success_callback,
        litellm.failure_callback,
        litellm.input_callback,
        litellm._async_success_callback,
        litellm._async_failure_callback,
    ):
        each.clear()
    litellm.cache = None


@pytest.fixture
def recorded(ledger: Ledger) -> Iterator[Ledger]:
    with callbacks(tallystick.callback(ledger.recorder)):
        yield ledger


def arguments(upstream: Upstream, **more: Any) -> dict[str, Any]:
    given = {
        "model": MODEL,
        "messages": MESSAGES,
        "api_base": upstream.url,
        "api_key": "any",
        "max_tokens": 8,
        "temperature": 0,
        "max_retries": 0,
    }
    return given | more


def expect(ledger: Ledger, count: int) -> list[Record]:
    """The records, once there are ``count``; LiteLLM tells of a call's end on a thread of its own.

    A stream that was left is gone when nothing holds it: the threads that handle its chunks have come to
    their end, another call has taken its place in LiteLLM's log of errors, and the collector came by.
    """
    deadline = time.monotonic() + WAIT_S
    while len(found := ledger.records()) < count and time.monotonic() < deadline:
        litellm.error_logs.clear()
        gc.collect()
        time.sleep(0.02)
    time.sleep(0.3)  # if more came, they would be here now
    found = ledger.records()
    assert len(found) == count
    return found


def check(record: Record, seen: Seen) -> None:
    """The record's counts are the engine's."""
    assert seen.status == 200
    assert (record.usage.input_tokens, record.usage.output_tokens) == seen.usage
    assert record.usage.cached_input_tokens in (UNSET, seen.cached)
    assert record.quality is UNSET
    assert record.energy is UNSET
    assert record.cost_nano is UNSET
    assert record.started_us < record.ended_us


# --- every way to call -----------------------------------------------------------------------------------


def complete(streamed: bool) -> Callable[..., None]:
    def call(**given: Any) -> None:
        answer = litellm.completion(**given, stream=streamed)
        if streamed:
            assert all(getattr(chunk, "usage", None) is None for chunk in answer)

    return call


async def told() -> None:
    """Wait until LiteLLM's worker on this loop has told of all calls: it ends with the loop."""
    await asyncio.sleep(0.3)  # what a call still does is handed to the worker
    await asyncio.wait_for(GLOBAL_LOGGING_WORKER._queue.join(), WAIT_S)


def acomplete(streamed: bool) -> Callable[..., None]:
    async def call(given: dict[str, Any]) -> None:
        answer = await litellm.acompletion(**given, stream=streamed)
        if streamed:
            async for chunk in answer:
                assert getattr(chunk, "usage", None) is None
        await told()

    return lambda **given: asyncio.run(call(given))


CALLS = {
    "completion": complete(False),
    "completion streamed": complete(True),
    "acompletion": acomplete(False),
    "acompletion streamed": acomplete(True),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_one_record_with_the_engines_counts(
    recorded: Ledger, upstream: Upstream, call: str
) -> None:
    CALLS[call](**arguments(upstream, user="customer-1", metadata={"tallystick_parent": "no id"}))
    (record,) = expect(recorded, 1)
    (seen,) = upstream.seen
    check(record, seen)
    assert seen.request.get("stream_options") == ({"include_usage": True} if "streamed" in call else None)
    assert record.finish_reason == "length"
    assert record.tenant == "customer-1"
    assert record.parent is UNSET
    assert (record.first_token_us is not UNSET) is ("streamed" in call)
    recorded.opens(record, "input", prompt_text("chat", {"messages": MESSAGES}) or "", "customer-1")
    recorded.opens(record, "output", seen.choices[0], "customer-1")
    deployment = recorded.deployment(record)
    assert deployment["model"] == "smollm2"
    assert (deployment["engine"], deployment["provider"]) == ("openai-compatible", "openai")
    assert deployment["site"] == upstream.url.removeprefix("http://").removesuffix("/v1")


@pytest.mark.parametrize("call", CALLS)
def test_tool_calls_are_counted_and_committed_to(recorded: Ledger, upstream: Upstream, call: str) -> None:
    CALLS[call](**arguments(upstream, tools=TOOLS, tool_choice="required", max_tokens=40))
    (record,) = expect(recorded, 1)
    (seen,) = upstream.seen
    check(record, seen)
    assert "get_weather" in seen.choices[0]
    recorded.opens(record, "input", prompt_text("chat", {"messages": MESSAGES, "tools": TOOLS}) or "")
    recorded.opens(record, "output", seen.choices[0])


@pytest.mark.parametrize("call", ["completion", "acompletion"])
def test_several_choices_are_one_record(recorded: Ledger, upstream: Upstream, call: str) -> None:
    CALLS[call](**arguments(upstream, n=3, temperature=1.5, seed=7))
    (record,) = expect(recorded, 1)
    (seen,) = upstream.seen
    check(record, seen)
    assert len(seen.choices) == 3
    recorded.opens(record, "output", "".join(seen.choices[index] for index in range(3)))


@pytest.mark.parametrize("call", ["completion streamed", "acompletion streamed"])
def test_several_choices_streamed_say_what_is_estimated(
    recorded: Ledger, upstream: Upstream, call: str
) -> None:
    """LiteLLM stops reading at the second choice's end, before the chunk with the usage."""
    CALLS[call](**arguments(upstream, n=2, temperature=1.5, seed=7))
    (record,) = expect(recorded, 1)
    (seen,) = upstream.seen
    assert len(seen.choices) == 2
    assert record.quality is not UNSET
    assert "usage_estimated" in record.quality
    inputs, outputs = seen.usage
    assert record.usage.input_tokens == inputs
    assert abs(record.usage.output_tokens - outputs) <= 2
    recorded.opens(record, "output", seen.choices[0] + seen.choices[1])


def test_text_completions(recorded: Ledger, upstream: Upstream) -> None:
    given = arguments(upstream, model="text-completion-openai/smollm2", prompt="The tally stick was")
    del given["messages"]
    litellm.text_completion(**given)
    list(litellm.text_completion(**given, stream=True))
    records = expect(recorded, 2)
    for record, seen in zip(records, upstream.seen, strict=True):
        check(record, seen)
        recorded.opens(record, "input", "The tally stick was")
        recorded.opens(record, "output", seen.choices[0])


def test_calls_side_by_side(recorded: Ledger, upstream: Upstream) -> None:
    async def one(place: int) -> None:
        given = arguments(upstream, max_tokens=4 + place % 5, stream=place % 2 == 0, seed=place)
        answer = await litellm.acompletion(**given)
        if place % 2 == 0:
            async for _ in answer:
                pass

    async def all_of_them() -> None:
        await asyncio.gather(*(one(place) for place in range(24)))
        await told()

    asyncio.run(all_of_them())
    records = expect(recorded, 24)
    counted = sorted((each.usage.input_tokens, each.usage.output_tokens) for each in records)
    assert counted == sorted(each.usage for each in upstream.seen)


@pytest.mark.parametrize("streamed", [False, True])
def test_another_provider_with_its_own_fields(recorded: Ledger, api: str, streamed: bool) -> None:
    answer = litellm.completion(
        model="anthropic/claude-sonnet-4-5",
        messages=MESSAGES,
        api_base=api,
        api_key="any",
        max_tokens=99,
        stream=streamed,
    )
    if streamed:
        list(answer)
    (record,) = expect(recorded, 1)
    assert (record.usage.input_tokens, record.usage.cached_input_tokens) == (1110, 1000)
    assert record.usage.output_tokens == 25
    assert record.finish_reason == ("stop" if streamed else "tool_calls")
    assert record.cost_nano is not UNSET
    assert record.quality is UNSET
    deployment = recorded.deployment(record)
    assert (deployment["provider"], deployment["engine"]) == ("anthropic", "anthropic-api")
    assert deployment["model"] == "claude-sonnet-4-5"


def test_a_streams_cost_outlives_a_race_of_litellms_threads(
    recorded: Ledger, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that handle its chunks may set the call's cost to None after the whole answer set it."""
    end, costs = tallystick.Callback._end, []

    def raced(self: Any, mark: Any, kwargs: dict[str, Any], *rest: Any) -> None:
        costs.append(kwargs["response_cost"])
        kwargs["response_cost"] = None
        end(self, mark, kwargs, *rest)

    monkeypatch.setattr(tallystick.Callback, "_end", raced)
    call = {"model": "anthropic/claude-sonnet-4-5", "messages": MESSAGES, "api_base": api, "api_key": "any"}
    list(litellm.completion(**call, stream=True))
    (record,) = expect(recorded, 1)
    price = litellm.model_cost["claude-sonnet-4-5"]
    told = 10 * price["input_cost_per_token"] + 25 * price["output_cost_per_token"]
    told += 100 * price["cache_creation_input_token_cost"] + 1000 * price["cache_read_input_token_cost"]
    assert record.cost_nano == round(told * 1e9)
    assert costs in ([None], [pytest.approx(told)])


# --- failures, retries, caches ---------------------------------------------------------------------------


def test_what_is_refused_generates_nothing(recorded: Ledger, upstream: Upstream) -> None:
    upstream.refuse = 1
    with pytest.raises(litellm.exceptions.ServiceUnavailableError):
        litellm.completion(**arguments(upstream))
    expect(recorded, 0)


def dropping(tmp_path: Path, double: LedgerDouble, **options: Any) -> Any:
    recorder = Recorder(
        double.url, api_key=double.api_key, log_key=double.vkey, spool=tmp_path / "spool", max_age_s=0.02
    )
    double.keys[recorder.issuer] = recorder.public_key
    return tallystick.callback(recorder, **options)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_that_is_not_answered_in_time_counts_as_dropped(tmp_path: Path, asynchronous: bool) -> None:
    with (
        LedgerDouble() as double,
        answering(b"", hold=threading.Event()) as (url, requests),
        callbacks(made := dropping(tmp_path, double)),
    ):
        asked = {"model": MODEL, "messages": MESSAGES, "api_base": url, "api_key": "any", "max_retries": 0}

        async def ask() -> None:
            await litellm.acompletion(**asked, timeout=0.3)

        with pytest.raises(litellm.exceptions.Timeout):
            asyncio.run(ask()) if asynchronous else litellm.completion(**asked, timeout=0.3)
        assert requests
        assert eventually(lambda: made.recorder.status().dropped == 1)
        assert made.recorder.close(10)


def test_a_server_that_is_not_there_generates_nothing(recorded: Ledger) -> None:
    with pytest.raises(litellm.exceptions.InternalServerError):
        litellm.completion(
            model=MODEL, messages=MESSAGES, api_base="http://127.0.0.1:9", api_key="any", max_retries=0
        )
    expect(recorded, 0)


@pytest.mark.parametrize("name", ["tenant", "estimate"])
def test_a_function_of_the_caller_that_fails_has_the_call_count_as_dropped(
    upstream: Upstream, tmp_path: Path, name: str
) -> None:
    def fail(*_: Any, **_kwargs: Any) -> Any:
        raise KeyError("customer")

    with LedgerDouble() as double, callbacks(made := dropping(tmp_path, double, **{name: fail})):
        litellm.completion(**arguments(upstream))
        assert eventually(lambda: made.recorder.status().dropped == 1)
        assert made.recorder.close(10)
        assert double.records == {}


def test_a_router_falls_back_and_each_attempt_that_generated_is_recorded(
    recorded: Ledger, upstream: Upstream, engine: str
) -> None:
    with Upstream(engine) as second:
        upstream.refuse = 100
        router = litellm.Router(
            model_list=[
                {"model_name": "first", "litellm_params": arguments(upstream, messages=None)},
                {"model_name": "second", "litellm_params": arguments(second, messages=None)},
            ],
            fallbacks=[{"first": ["second"]}],
            num_retries=1,
            retry_after=0,
        )

        async def run() -> None:
            answer = await router.acompletion(model="first", messages=MESSAGES)
            assert answer.choices[0].message.content
            streamed = await router.acompletion(model="first", messages=MESSAGES, stream=True)
            async for _ in streamed:
                pass
            await told()

        asyncio.run(run())
        records = expect(recorded, 2)
        assert len(upstream.seen) > 1
        for record, seen in zip(records, second.seen, strict=True):
            check(record, seen)
            assert recorded.deployment(record)["site"] in second.url


def test_a_router_retries(recorded: Ledger, upstream: Upstream) -> None:
    router = litellm.Router(
        model_list=[{"model_name": "smollm2", "litellm_params": arguments(upstream, messages=None)}],
        num_retries=2,
        retry_after=0,
    )
    upstream.refuse = 1
    router.completion(model="smollm2", messages=MESSAGES)
    (record,) = expect(recorded, 1)
    assert [each.status for each in upstream.seen] == [503, 200]
    check(record, upstream.seen[1])


@pytest.mark.parametrize("call", ["completion streamed", "acompletion streamed"])
def test_a_stream_that_breaks_off_has_the_tokens_so_far(
    recorded: Ledger, upstream: Upstream, call: str
) -> None:
    """LiteLLM's asynchronous transport takes it for a whole one, but its ``stop`` is not believed."""
    upstream.cut = 5
    if call.startswith("a"):
        CALLS[call](**arguments(upstream))
    else:
        with pytest.raises(litellm.exceptions.APIConnectionError):
            CALLS[call](**arguments(upstream))
    (record,) = expect(recorded, 1)
    assert record.finish_reason in (("abort", UNSET) if call.startswith("a") else ("error",))
    assert record.usage.output_tokens >= 5
    assert record.quality is not UNSET
    assert "usage_estimated" in record.quality
    recorded.opens(record, "output", upstream.seen[0].choices[0])


def test_answers_from_the_cache_are_no_records(recorded: Ledger, upstream: Upstream) -> None:
    litellm.cache = litellm.Cache(type="local")
    for streamed in (False, False, True, True):
        answer = litellm.completion(**arguments(upstream, caching=True, stream=streamed))
        if streamed:
            list(answer)
        time.sleep(0.3)
    records = expect(recorded, len(upstream.seen))
    assert len(upstream.seen) < 4
    for record, seen in zip(records, upstream.seen, strict=True):
        check(record, seen)


def test_embeddings_are_no_records(recorded: Ledger, upstream: Upstream) -> None:
    with pytest.raises(Exception, match="embedding"):
        litellm.embedding(model=MODEL, input=["x"], api_base=upstream.url, api_key="any", max_retries=0)
    expect(recorded, 0)
    assert recorded.recorder.close(10)
    assert recorded.recorder.status().dropped == 0


# --- streams that are left -------------------------------------------------------------------------------


def shown(text: str, seen: Seen) -> None:
    """The caller saw the beginning of what the engine made."""
    assert text
    assert seen.choices[0].startswith(text)


def test_a_stream_that_is_left_is_an_abort(recorded: Ledger, upstream: Upstream) -> None:
    texts = []
    stream = litellm.completion(**arguments(upstream, max_tokens=60, stream=True))
    for chunk in stream:
        texts.append(chunk.choices[0].delta.content or "")
        if len(texts) == 6:
            break
    del stream, chunk
    (record,) = expect(recorded, 1)
    assert record.finish_reason == "abort"
    assert record.usage.output_tokens == 6
    assert record.usage.input_tokens > 0
    assert record.quality is not UNSET
    recorded.opens(record, "output", "".join(texts))
    shown("".join(texts), upstream.seen[0])


def test_an_asynchronous_stream_that_is_left_is_an_abort(recorded: Ledger, upstream: Upstream) -> None:
    texts = []

    async def run() -> None:
        stream = await litellm.acompletion(**arguments(upstream, max_tokens=60, stream=True))
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")
            if len(texts) == 4:
                break

    asyncio.run(run())
    (record,) = expect(recorded, 1)
    assert record.finish_reason == "abort"
    assert record.usage.output_tokens == 4
    recorded.opens(record, "output", "".join(texts))


def test_a_stream_that_is_left_at_its_finish_reason_is_whole(recorded: Ledger, upstream: Upstream) -> None:
    stream = litellm.completion(**arguments(upstream, stream=True))
    for chunk in stream:
        if chunk.choices[0].finish_reason:
            break
    del stream, chunk
    litellm.completion(**arguments(upstream))
    records = expect(recorded, 2)
    assert [each.finish_reason for each in records] == ["length", "length"]


def test_a_call_that_is_hidden_from_callbacks_is_told_as_dropped(upstream: Upstream, tmp_path: Path) -> None:
    with LedgerDouble() as double:
        recorder = Recorder(
            double.url, api_key=double.api_key, log_key=double.vkey, spool=tmp_path / "spool", max_age_s=0.02
        )
        double.keys[recorder.issuer] = recorder.public_key
        with callbacks(tallystick.callback(recorder)):
            litellm.completion(**arguments(upstream), **{"no-log": True})
            litellm.completion(**arguments(upstream))
            assert eventually(lambda: len(double.records) == 1)
        assert recorder.close(10)
        assert (len(double.records), double.dropped) == (1, 1)


# --- what else a record says -----------------------------------------------------------------------------


def test_litellms_price_becomes_an_integer(recorded: Ledger, upstream: Upstream) -> None:
    answer = litellm.completion(
        **arguments(upstream, model="openai/priced"),
        input_cost_per_token=0.000_000_15,
        output_cost_per_token=0.000_000_6,
    )
    (record,) = expect(recorded, 1)
    assert record.currency == "USD"
    assert record.cost_nano == round(answer._hidden_params["response_cost"] * 1e9)
    assert record.cost_nano >= record.usage.output_tokens * 600


def test_an_estimate_is_asked_with_what_is_known(ledger: Ledger, upstream: Upstream) -> None:
    from ledger.core.records import Energy

    asked: list[Any] = []

    class Known:
        energy = Energy(energy_uj=42, low_uj=1, high_uj=99, method="estimated", source="a table")
        busy_us = 7

    def estimate(provider: str, model: str, *, output_tokens: int, latency_us: int | None = None) -> Known:
        asked.append((provider, model, output_tokens, latency_us))
        return Known()

    with callbacks(tallystick.callback(ledger.recorder, estimate=estimate)):
        litellm.completion(**arguments(upstream))
        (record,) = expect(ledger, 1)
    assert record.energy == Known.energy
    assert asked == [("openai", "smollm2", record.usage.output_tokens, record.ended_us - record.started_us)]


def test_messages_of_earlier_answers_are_understood(recorded: Ledger, upstream: Upstream) -> None:
    first = litellm.completion(**arguments(upstream))
    litellm.completion(**arguments(upstream, messages=[*MESSAGES, first.choices[0].message, *MESSAGES]))
    for record in expect(recorded, 2):
        assert record.input is not UNSET


def test_hidden_messages_are_not_committed_to(recorded: Ledger, upstream: Upstream) -> None:
    litellm.turn_off_message_logging = True
    try:
        litellm.completion(**arguments(upstream))
        (record,) = expect(recorded, 1)
    finally:
        litellm.turn_off_message_logging = False
    check(record, upstream.seen[0])
    assert record.input is UNSET
    assert record.output is UNSET


def test_the_mark_is_text_for_other_callbacks(recorded: Ledger, upstream: Upstream) -> None:
    import copy
    import pickle

    kept: list[Any] = []
    litellm.success_callback.append(lambda kwargs, *_: kept.append(kwargs["tallystick_record"]))
    litellm.completion(**arguments(upstream))
    (record,) = expect(recorded, 1)
    (mark,) = kept
    assert json.loads(json.dumps(mark)) == record.id
    assert copy.deepcopy({"a": mark})["a"] == record.id
    assert pickle.loads(pickle.dumps(mark)) == record.id
