"""Reading OpenAI-compatible traffic: events at any cut, chunks and answers of several servers.

The shapes are those of OpenAI's API reference, of llama.cpp's server (as it answered here), and of vLLM 0.32
and SGLang 0.5.23 (from their ``protocol.py`` and serving code).
"""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.records import Usage
from ledger.emit.engines._openai import (
    delta_text,
    kind_of,
    prompt_text,
    read_json,
    read_leniently,
    read_request,
    usage_of,
)
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._openai_responses import feed_response
from ledger.emit.engines._providers import openai_usage
from ledger.emit.engines._sse import Event, Events

# --- events ----------------------------------------------------------------------------------------------

STREAM = (
    b': hello\n\nevent: x\r\ndata: {"a":1}\r\n\r\ndata:one\ndata: two\rdata\r\rid: 7\n\n'
    b"data: \xe2\x82\xac\n\ndata: [DONE]\n\n"
)
DATA = [b"", b'{"a":1}', b"one\ntwo\n", b"", b"\xe2\x82\xac", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_at_any_cut(cuts):
    events, found = Events(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for begin, end in itertools.pairwise(places):
        found += events.feed(STREAM[begin:end])
    assert b"".join(event.raw for event in found) + events.rest() == STREAM
    # A line feed cut off from the carriage return that it belongs to makes an event of nothing.
    assert [event.data for event in found if event.raw.strip()] == DATA


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_no_byte_is_lost_or_changed(parts):
    events = Events()
    out = b"".join(event.raw for part in parts for event in events.feed(part))
    assert out + events.rest() == b"".join(parts)


def test_an_event_without_end_is_passed_on_unread():
    events = Events(max_event_bytes=100)
    assert events.feed(b"data: " + b"x" * 90) == []
    (given_up,) = events.feed(b"y" * 10)
    assert given_up == Event(b"data: " + b"x" * 90 + b"y" * 10, b"")
    assert events.gave_up
    assert events.feed(b"\n\ndata: 1\n\n") == [Event(b"\n\ndata: 1\n\n", b"")]
    assert events.rest() == b""


def test_a_long_event_that_ends_is_passed_on_unread_too():
    events = Events(max_event_bytes=10)
    found = events.feed(b"data: 1\n\ndata: " + b"x" * 10 + b"\n\ndata: 2\n\nda")
    assert events.gave_up
    assert [event.data for event in found] == [b"1", b"", b""]
    assert b"".join(event.raw for event in found) == b"data: 1\n\ndata: " + b"x" * 10 + b"\n\ndata: 2\n\nda"


# --- requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/chat/completions/", "chat"),
        ("/openai/deployments/gpt/chat/completions", "chat"),
        ("/openai/deployments/gpt/completions", "completions"),
        ("/api/v1/completions", "completions"),
        ("/v1/responses", "responses"),
        ("/v1/embeddings", None),
        ("/v1/responses/resp_1/cancel", None),
        ("/v1/models", None),
    ],
)
def test_the_path_tells_the_kind(path, kind):
    assert kind_of(path) == kind


def test_requests():
    body = {"model": "m", "messages": [{"role": "user", "content": "é"}], "n": 3, "stream": True}
    request = read_request("chat", body | {"stream_options": {"include_usage": True}, "temperature": 0.5})
    assert (request.model, request.stream, request.wants_usage, request.choices) == ("m", True, True, 3)
    assert request.input_text == '{"messages":[{"content":"é","role":"user"}]}'
    assert json.loads(prompt_text("chat", body | {"tools": [{"b": 1.5, "a": 2}]}))["tools"] == [
        {"a": 2, "b": 1.5}
    ]
    assert read_request("completions", {"prompt": "Hi"}).input_text == "Hi"
    assert read_request("completions", {"prompt": ["Hi", " you"]}).input_text == "Hi you"
    assert read_request("completions", {"prompt": [1, 2]}).input_ids == (1, 2)
    assert read_request("completions", {"prompt": [[1, 2], [3]]}).input_ids == (1, 2, 3)
    for prompt in ([1, "a"], [], [[1], "a"], [-1], [2**32], [True], 7, None):
        request = read_request("completions", {"prompt": prompt})
        assert (request.input_ids, request.input_text) == (None, None)
    assert (
        prompt_text("responses", {"input": "Hi", "instructions": "Be"})
        == '{"input":"Hi","instructions":"Be"}'
    )
    strange = read_request("chat", {"n": True, "stream": "yes", "stream_options": [], "model": 1})
    assert (strange.choices, strange.stream, strange.wants_usage, strange.model) == (1, False, False, None)


# --- usage -----------------------------------------------------------------------------------------------


def test_usage_of_chat_and_responses():
    details = {
        "prompt_tokens": 30,
        "completion_tokens": 20,
        "total_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 5,
            "accepted_prediction_tokens": 3,
            "rejected_prediction_tokens": 4,
        },
    }
    assert usage_of(details) == Usage(
        input_tokens=30,
        output_tokens=20,
        cached_input_tokens=16,
        reasoning_tokens=5,
        drafted_tokens=7,
        accepted_tokens=3,
    )
    assert usage_of(
        {
            "input_tokens": 9,
            "output_tokens": 4,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
    ) == Usage(input_tokens=9, output_tokens=4, cached_input_tokens=0, reasoning_tokens=0)
    vllm = {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": None, "prompt_tokens_details": None}
    assert usage_of(vllm) == Usage(input_tokens=5, output_tokens=0)


@pytest.mark.parametrize(
    ("outputs", "reasoning", "total", "made"),
    [
        (20, 5, 50, 20),  # OpenAI: among the output
        (20, 5, 55, 25),  # xAI: beside it
        (20, 5, None, 20),
        (2, 5, None, 7),  # more than the output
        (2, 0, 32, 2),
        (5, 2**53 - 1, None, None),
    ],
)
def test_reasoning_is_among_the_output(outputs, reasoning, total, made):
    told = {
        "prompt_tokens": 30,
        "completion_tokens": outputs,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    } | ({} if total is None else {"total_tokens": total})
    usages = [usage_of(told), openai_usage(SimpleNamespace(**told))]
    expected = (
        None if made is None else Usage(input_tokens=30, output_tokens=made, reasoning_tokens=reasoning)
    )
    assert usages == [expected, expected]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 1.5, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": 2**53, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": "2"},
        {"output_tokens": 1},
    ],
)
def test_what_is_no_usage(value):
    assert usage_of(value) is None


def test_what_contradicts_the_counts_is_left_out():
    usage = usage_of(
        {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
    )
    assert usage == Usage(input_tokens=3, output_tokens=1)


# --- answers ---------------------------------------------------------------------------------------------


def stream_of(*chunks, each=1):
    answer = Answer(each)
    for chunk in chunks:
        answer.feed(chunk, streamed=True)
    return answer


def delta(index=0, reason=None, **values):
    return {"index": index, "delta": values, "finish_reason": reason}


def test_a_chat_answer():
    answer = Answer()
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    answer.feed(
        {
            "id": "chatcmpl-1",
            "model": "m",
            "choices": [
                {"index": 1, "message": {"content": "two"}, "finish_reason": "stop"},
                {
                    "index": 0,
                    "message": {"reasoning_content": "hm", "content": None, "tool_calls": [call]},
                    "finish_reason": "tool_calls",
                },
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 8},
        }
    )
    assert answer.output_text() == 'hmf{"a":1}two'
    assert answer.counts() == Usage(input_tokens=3, output_tokens=8)
    assert (answer.finish_reason, answer.request_id, answer.model) == ("mixed", "chatcmpl-1", "m")
    assert answer.output_ids(8) is None


def test_a_stream_gives_what_the_whole_answer_gives():
    function = {"index": 0, "function": {"name": "f", "arguments": ""}}
    answer = stream_of(
        {"id": "x", "choices": [delta(role="assistant", content="")]},
        {"choices": [delta(1, content="tw")]},
        {"choices": [delta(reasoning="hm")]},
        {"choices": [delta(tool_calls=[function])]},
        {"choices": [delta(1, "stop", content="o")]},
        {"choices": [delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}])]},
        {"choices": [delta(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}])]},
        {"choices": [delta(reason="tool_calls")]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 8}},
    )
    assert answer.output_text() == 'hmf{"a":1}two'
    assert answer.counts() == Usage(input_tokens=3, output_tokens=8)
    assert answer.finish_reason == "mixed"


def test_text_of_messages():
    assert delta_text({"content": [{"type": "text", "text": "a"}, {"type": "x"}, 3]}) == "a"
    assert delta_text({"refusal": "no", "content": None}) == "no"
    assert delta_text({"function_call": {"name": "f", "arguments": "{}"}}) == "f{}"
    assert delta_text({"reasoning": "a", "reasoning_content": "a", "content": "b"}) == "ab"
    assert delta_text({"tool_calls": "x", "content": 7}) == ""


def test_vllm_shows_ids_and_an_abort_is_counted_by_them():
    answer = stream_of(
        {"choices": [delta(content="")], "prompt_token_ids": [1, 2, 3]},
        {"choices": [delta(content="a") | {"token_ids": [5]}]},
        {"choices": [delta(content="b") | {"token_ids": [6, 7]}]},
    )
    assert answer.counts() == Usage(input_tokens=3, output_tokens=3)
    assert answer.output_ids(3) == [5, 6, 7]
    assert answer.prompt_ids() == [1, 2, 3]
    assert answer.finish_reason is None
    assert answer.has_output


def test_vllm_completions_show_each_prompts_ids():
    rows = [(0, [1, 2]), (1, [1, 2]), (2, [3]), (3, [3])]
    answer = Answer(choices_each=2)
    answer.feed(
        {
            "choices": [
                {
                    "index": i,
                    "text": "x",
                    "finish_reason": "length",
                    "token_ids": [9],
                    "prompt_token_ids": ids,
                }
                for i, ids in rows
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        }
    )
    assert answer.prompt_ids() == [1, 2, 3]
    assert answer.output_ids(4) == [9] * 4
    assert answer.finish_reason == "length"


def test_continuous_usage_is_of_each_choice_until_the_last_chunk_tells_all():
    def chunk(index, tokens):
        usage = {"prompt_tokens": 4, "completion_tokens": tokens}
        return {"choices": [delta(index, content="x")], "usage": usage}

    chunks = [chunk(0, 1), chunk(1, 1), chunk(0, 2)]
    assert stream_of(*chunks, each=2).counts() == Usage(input_tokens=4, output_tokens=3)
    end = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5}}
    assert stream_of(*chunks, end, each=2).counts() == Usage(input_tokens=4, output_tokens=5)


def test_llama_server_tells_the_usage_of_each_choice():
    timings = {"cache_n": 30, "prompt_n": 1, "predicted_n": 3}
    usage = {"prompt_tokens": 31, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 30}}
    end = {"choices": [], "usage": usage, "timings": timings}
    answer = stream_of({"choices": [delta(0, "stop")]}, end, {"choices": [delta(1, "stop")]}, end, each=2)
    assert answer.counts() == Usage(input_tokens=31, output_tokens=6, cached_input_tokens=30)


def test_llama_server_times_each_token():
    timings = {"cache_n": 2, "prompt_n": 5, "predicted_n": 1, "draft_n": 4, "draft_n_accepted": 3}
    answer = stream_of(
        {"choices": [delta(content="x")], "timings": timings},
        {"choices": [delta(content="y")], "timings": timings | {"predicted_n": 2}},
    )
    assert answer.counts() == Usage(
        input_tokens=7, output_tokens=2, cached_input_tokens=2, drafted_tokens=4, accepted_tokens=3
    )


def test_llama_server_shows_ids_of_the_first_choice_only():
    answer = Answer()
    choices = [{"index": i, "text": "ab", "finish_reason": "stop"} for i in range(2)]
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    answer.feed({"choices": choices, "usage": usage, "__verbose": {"tokens": [4, 5]}})
    assert answer.output_ids(2) is None
    assert answer.output_text() == "abab"
    single = Answer()
    single.feed({"choices": choices[:1], "usage": usage, "__verbose": {"tokens": [4, 5]}})
    assert single.output_ids(2) == [4, 5]


def test_without_usage_or_ids_nothing_is_known():
    answer = stream_of({"choices": [delta(content="a")]}, {"choices": [delta(content="b")]})
    assert answer.counts() is None
    assert answer.parts == 2


def test_errors_in_a_stream():
    answer = stream_of({"choices": [delta(content="a")]}, {"error": {"message": "out of memory"}})
    assert answer.failed


# --- responses -------------------------------------------------------------------------------------------

OUTPUT = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": None},
    {
        "type": "message",
        "content": [{"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "!"}],
    },
    {"type": "function_call", "name": "f", "arguments": "{}"},
    {"type": "web_search_call"},
]
USAGE = {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 2}}


def test_a_response():
    answer = Answer()
    body = {"id": "resp_1", "model": "m", "status": "completed", "output": OUTPUT, "usage": USAGE}
    feed_response(answer, body)
    assert answer.output_text() == "hmHi!f{}"
    assert answer.counts() == Usage(input_tokens=5, output_tokens=7, reasoning_tokens=2)
    assert (answer.finish_reason, answer.request_id) == ("stop", "resp_1")


def test_a_streamed_response():
    events = [
        {"type": "response.created", "response": {"id": "resp_1", "model": "m", "status": "in_progress"}},
        {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.output_item.added", "item": {"type": "function_call", "name": "f"}},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
    ]
    broken_off = Answer()
    for event in events:
        feed_response(broken_off, event, streamed=True)
    assert broken_off.output_text() == "hmHif{}"
    assert (broken_off.counts(), broken_off.finish_reason) == (None, None)
    answer = Answer()
    why = {"reason": "max_output_tokens"}
    response = {
        "id": "resp_1",
        "status": "incomplete",
        "incomplete_details": why,
        "output": OUTPUT,
        "usage": USAGE,
    }
    for event in [*events, {"type": "response.incomplete", "response": response}]:
        feed_response(answer, event, streamed=True)
    assert answer.output_text() == "hmHi!f{}"
    assert answer.finish_reason == "length"
    assert answer.counts() == Usage(input_tokens=5, output_tokens=7, reasoning_tokens=2)


def test_a_response_in_the_background_has_generated_nothing():
    answer = Answer()
    feed_response(answer, {"id": "resp_1", "status": "queued", "output": [], "usage": None})
    assert not answer.has_output
    assert answer.counts() is None


def test_a_failed_response():
    answer = Answer()
    feed_response(answer, {"type": "error", "message": "overloaded"}, streamed=True)
    assert answer.failed


# --- foreign values --------------------------------------------------------------------------------------

NAMES = [
    "choices",
    "delta",
    "message",
    "content",
    "tool_calls",
    "function",
    "usage",
    "index",
    "text",
    "prompt_tokens",
    "completion_tokens",
    "token_ids",
    "timings",
    "__verbose",
    "type",
    "response",
    "output",
    "item",
    "status",
    "finish_reason",
    "predicted_n",
    "prompt_n",
    "stream_options",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(json_values.filter(lambda value: isinstance(value, dict)), max_size=4), st.booleans())
def test_values_of_any_type_do_no_harm(bodies, streamed):
    for feed in (Answer.feed, feed_response):
        answer = Answer()
        for body in bodies:
            feed(answer, body, streamed=streamed)
        assert isinstance(answer.output_text(), str)
        counts = answer.counts()
        assert counts is None or (counts.input_tokens >= 0 and counts.output_tokens >= 0)
    for body in bodies:
        for kind in ("chat", "completions", "responses"):
            read_request(kind, body)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1.5}', {"a": None, "b": None, "c": None, "d": 1.5}),
        (b'{"a": "x\\ud83d", "\\udc00": "\\ud83d\\ude00"}', {"a": "x?", "?": "\U0001f600"}),
        ('{"a": "é"}'.encode("utf-16"), {"a": "é"}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b"[1]", None),
        (b"{", None),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b'{"a": ' + b"9" * 10_000 + b"}", None),
        (b"\xff\xff", None),
    ],
)
def test_what_other_servers_read_is_read(data, value):
    assert read_leniently(data) == value


def test_long_texts_are_read_once_only(monkeypatch):
    monkeypatch.setattr("ledger.emit.engines._openai._MAX_LENIENT_BYTES", 9)
    assert read_leniently(b'{"a":NaN}') == {"a": None}
    assert read_leniently(b'{"a": NaN}') is None


def test_what_is_no_json_object():
    for data in (b"", b"[1]", b"\xff", b"{", b"[" * 100_000, b'{"a":"\\ud800"}'):
        assert read_json(data) is None
    assert read_json(b'{"a":1}') == {"a": 1}


def test_long_answers_are_not_kept(monkeypatch):
    monkeypatch.setattr("ledger.emit.engines._openai_answer.MAX_TEXT_CHARS", 3)
    answer = stream_of({"choices": [delta(content="abc")]})
    assert answer.output_text() == "abc"
    answer.feed({"choices": [delta(content="d")]}, streamed=True)
    assert answer.output_text() is None
    monkeypatch.setattr("ledger.emit.engines._openai_answer.MAX_IDS", 3)
    answer = stream_of(
        {"choices": [delta() | {"token_ids": [1, 2]}]}, {"choices": [delta() | {"token_ids": [3, 4]}]}
    )
    assert answer.output_ids(2) is None


def test_unknown_is_absent():
    assert usage_of({"prompt_tokens": 1, "completion_tokens": 1}).cached_input_tokens is UNSET
