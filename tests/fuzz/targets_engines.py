"""Fuzz targets of what engine hooks read: the traffic of OpenAI-compatible servers."""

from __future__ import annotations

from collections.abc import Callable

from ledger.emit.engines._openai import read_answer, read_json, read_request
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._openai_responses import feed_response
from ledger.emit.engines._routes import wire_of
from ledger.emit.engines._sse import Events
from ledger.emit.engines._wire import Asking, hide, with_additions

__all__ = ["SEEDS", "TARGETS"]


def fuzz_openai(data: bytes) -> str:
    """Read ``data`` as a stream of an OpenAI-compatible server, cut in the middle, then as a whole answer."""
    events = Events(max_event_bytes=1 << 16)
    cut = len(data) // 2
    found = [*events.feed(data[:cut]), *events.feed(data[cut:])]
    assert b"".join(event.raw for event in found) + events.rest() == data
    bodies = [body for event in found if (body := read_json(event.data)) is not None]
    whole = read_json(data)
    outcome = f"accepted {min(len(bodies), 3)} {whole is not None}"
    for feed in (Answer.feed, feed_response):
        answer = Answer()
        for body in bodies:
            feed(answer, body, streamed=True)
        if whole is not None:
            feed(answer, whole, streamed=False)
        counts = answer.counts()
        if counts is not None:
            assert min(counts.input_tokens, counts.output_tokens) >= 0
            answer.output_ids(counts.output_tokens)
        assert (answer.output_text() is not None) == answer.whole
        outcome += f" {answer.has_output} {counts is not None} {answer.failed} {answer.finish_reason is None}"
    if whole is not None:
        kinds = ("chat", "completions", "responses")
        outcome += f" {[read_request(kind, whole).input_text is None for kind in kinds]}"
    return outcome


_USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}'
_CHUNK = (
    b'{"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"a",'
    b'"tool_calls":[{"function":{"name":"f"}}]}'
)
_OPENAI = [
    b"data: "
    + _CHUNK
    + b',"token_ids":[5,6],"finish_reason":"stop"}],"prompt_token_ids":[1,2]}\n\ndata: [DONE]\n\n',
    b"data: " + _CHUNK + b'}],"timings":{"prompt_n":2,"cache_n":1,"predicted_n":1}}\r\n\r\n',
    b'data: {"choices":[],' + _USAGE + b"}\n\n",
    b'{"choices":[{"index":0,"message":{"content":"a"}}],' + _USAGE + b"}",
    b'data: {"type":"response.output_text.delta","delta":"a"}\n\n'
    b'data: {"type":"response.completed","response":{"status":"completed","output":[{"type":'
    b'"message","content":[{"text":"a"}]}],"usage":{"input_tokens":1,"output_tokens":1}}}\n\n',
    b'{"messages":[{"role":"user","content":"a"}],"n":2,"stream":true,"stream_options":{"include_usage":true}}',
    b'{"prompt":[[1,2],[3]],"input":"a","tools":[{"b":1.5}]}',
]


def fuzz_wire(data: bytes) -> str:
    """Read ``data`` as request and answer of each engine: asking, feeding and hiding must go together."""
    body = read_answer(data)
    if body is None:
        return "rejected"
    outcome = "accepted"
    for path, engine in _ROUTES:
        wire = wire_of(path, engine)
        assert wire is not None
        request = wire.read(body)
        more, added = wire.ask(body, Asking(engine))
        if "items" not in body and read_json(data) is not None:  # what is read leniently passes as it is
            asked = read_json(with_additions(data, body, more))
            assert asked is not None
            assert asked == {**body, **more}
            assert wire.ask(asked, Asking(engine))[0] == {}, "asks twice"
        for streamed in (False, True):
            answer = Answer(request.choices)
            wire.feed(answer, body, streamed=streamed)
            counts = answer.counts()
            if counts is not None:
                answer.output_ids(counts.output_tokens)
            answer.prompt_ids()
            hide(body, added, streamed=streamed)
            outcome += "+" if counts is not None else "-"
    return outcome


_ROUTES = (
    *(("/v1/chat/completions", engine) for engine in (None, "vllm", "sglang", "llama.cpp")),
    *(("/v1/completions", engine) for engine in ("vllm", "sglang", "llama.cpp", "tgi")),
    ("/v1/responses", None),
    ("/v1/messages", None),
    ("/invocations", "vllm"),
    ("/generate", "sglang"),
    ("/generate", "tgi"),
    ("/generate_stream", "tgi"),
    ("/completion", "llama.cpp"),
)
_WIRE = [
    *(each.split(b"\n")[0].removeprefix(b"data: ").strip() for each in _OPENAI),
    b'{"text":"a","output_ids":[5],"prompt_token_ids":[1],"meta_info":{"id":"r","finish_reason":{"type":"stop"},'
    b'"prompt_tokens":3,"completion_tokens":1,"cached_tokens":1},"index":0}',
    b'[{"generated_text":"a","details":{"finish_reason":"eos_token","generated_tokens":1,"prefill":[{"id":1}],'
    b'"tokens":[{"id":5,"text":"a","special":false}],"input_length":3}}]',
    b'{"index":1,"token":{"id":5,"text":"a","special":false},"generated_text":null,"details":null}',
    b'{"type":"message","content":[{"type":"text","text":"a\\ud83d"}],"usage":{"input_tokens":1,"output_tokens":NaN}}',
    b'{"index":0,"content":"a","tokens":[5],"stop":true,"stop_type":"eos","tokens_predicted":1,'
    b'"tokens_evaluated":3,"timings":{"prompt_n":2,"cache_n":1,"predicted_n":1}}',
    b'{"choices":[{"index":0,"delta":{}}],"sglext":{"input_ids":[1],"output_ids":[[5]]},"usage":null}',
    b'{"inputs":"a","parameters":{"details":false},"sampling_params":{"n":2},"stream":true,"n_cmpl":2}',
]

TARGETS: dict[str, Callable[[bytes], str | None]] = {"openai": fuzz_openai, "wire": fuzz_wire}

SEEDS: dict[str, list[bytes]] = {"openai": _OPENAI, "wire": _WIRE}
