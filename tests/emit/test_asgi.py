"""The middleware in front of small apps that do what servers do, well and badly, under a real ASGI server."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket

import pytest
import urllib3

from ledger.core.records import Deployment, Usage
from ledger.emit.engines import asgi
from ledger.emit.engines._exchange import USAGE_ESTIMATED
from ledger.emit.engines._sse import Events
from ledger.emit.engines.asgi import RecordingMiddleware
from tests.emit.wire import Captured, eventually, serving

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ANSWER = {
    "id": "chatcmpl-1",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


def chunk(reason=None, usage=None, **delta):
    body = {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return b"data: " + json.dumps(body | ({} if usage is None else {"usage": usage})).encode() + b"\n\n"


END = b"data: " + json.dumps({"id": "x", "choices": [], "usage": USAGE}).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"


async def read(receive):
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body"):
            return data


class App:
    """Answers every request with the same parts; keeps what it was asked."""

    def __init__(self, *parts, headers=JSON, status=200, pause_s=0.0):
        self.parts, self.headers, self.status, self.pause_s = parts, headers, status, pause_s
        self.bodies, self.heads = [], []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.heads.append(dict(scope["headers"]))
        self.bodies.append(await read(receive))
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(self.pause_s)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture
def records():
    return Captured()


def call(app, records, body=CHAT, *, path="/v1/chat/completions", headers=(), options=None, data=None):
    with serving(RecordingMiddleware(app, records, **(options or {})), lifespan="off") as url:
        answer = urllib3.request(
            "POST",
            url + path,
            body=json.dumps(body).encode() if data is None else data,
            headers={"content-type": "application/json", **dict(headers)},
            decode_content=False,
            retries=False,
        )
        records.settle()
    return answer


# --- whole answers ---------------------------------------------------------------------------------------


def test_a_whole_answer_passes_as_it_is_and_is_recorded(records):
    data = json.dumps(ANSWER, indent=3).encode()
    app = App(data[:40], data[40:], headers=[*JSON, (b"content-length", str(len(data)).encode())])
    answer = call(app, records)
    assert answer.data == data
    assert answer.headers["content-length"] == str(len(data))
    record = records.the_record()
    assert answer.headers["x-tallystick-record"] == record["id"]
    assert record["usage"] == Usage(input_tokens=3, output_tokens=2)
    assert (record["input_text"], record["output_text"]) == (
        '{"messages":[{"content":"Hi","role":"user"}]}',
        "Hello",
    )
    assert (record["finish_reason"], record["request_id"], record["quality"]) == ("stop", "chatcmpl-1", None)
    assert record["started_us"] <= record["ended_us"]
    assert record["first_token_us"] is None
    assert app.bodies == [json.dumps(CHAT).encode()]  # nothing to ask for


def test_what_was_asked_for_is_taken_out_again(records):
    shown = ANSWER | {"prompt_token_ids": [1, 2, 3]}
    shown["choices"] = [shown["choices"][0] | {"token_ids": [8, 9]}]
    app = App(json.dumps(shown).encode())
    answer = call(app, records, options={"engine": "vllm"})
    assert json.loads(answer.data) == ANSWER
    assert answer.headers["content-length"] == str(len(answer.data))
    assert json.loads(app.bodies[0]) == CHAT | {"return_token_ids": True}
    assert app.heads[0][b"content-length"] == str(len(app.bodies[0])).encode()
    record = records.the_record()
    assert (record["input_ids"], record["output_ids"]) == ([1, 2, 3], [8, 9])
    assert (record["input_text"], record["output_text"]) == (None, None)


def test_what_the_client_asked_for_stays(records):
    shown = ANSWER | {"prompt_token_ids": [1, 2, 3]}
    answer = call(
        App(json.dumps(shown).encode()),
        records,
        CHAT | {"return_token_ids": True},
        options={"engine": "vllm"},
    )
    assert json.loads(answer.data) == shown
    assert records.the_record()["input_ids"] == [1, 2, 3]


def test_ids_are_not_asked_for_where_that_is_switched_off(records):
    app = App(json.dumps(ANSWER).encode())
    call(app, records, options={"engine": "vllm", "ask_ids": False})
    assert json.loads(app.bodies[0]) == CHAT


def test_the_clients_own_bytes_stay_in_the_request(records):
    data = b' {"model":"m", "seed": 12345678901234567890123, "x": 1.10, "messages": [], "stream": true}'
    app = App(END, DONE, headers=EVENTS)
    call(app, records, data=data)
    assert app.bodies[0] == b'{"stream_options":{"include_usage":true},' + data.lstrip()[1:]


# --- streams ---------------------------------------------------------------------------------------------


STREAM = CHAT | {"stream": True}


def test_a_stream_is_made_to_tell_its_usage_which_the_client_does_not_see(records):
    app = App(
        chunk(content="He"),
        chunk(content="llo") + chunk("stop")[:20],
        chunk("stop")[20:] + END,
        DONE,
        headers=EVENTS,
    )
    answer = call(app, records, STREAM)
    assert answer.data == chunk(content="He") + chunk(content="llo") + chunk("stop") + DONE
    assert json.loads(app.bodies[0])["stream_options"] == {"include_usage": True}
    record = records.the_record()
    assert record["usage"] == Usage(input_tokens=3, output_tokens=2)
    assert (record["output_text"], record["finish_reason"]) == ("Hello", "stop")
    assert record["started_us"] <= record["first_token_us"] <= record["ended_us"]


def test_a_client_that_asks_for_usage_gets_all_bytes(records):
    parts = (b": ping\r\n\r\n", chunk(content="Hello"), chunk("stop"), END, DONE)
    answer = call(App(*parts, headers=EVENTS), records, STREAM | {"stream_options": {"include_usage": True}})
    assert answer.data == b"".join(parts)
    assert records.the_record()["usage"] == Usage(input_tokens=3, output_tokens=2)


@pytest.mark.parametrize("given", [{"include_usage": False}, {"include_usage": None, "other": 1}])
def test_options_of_the_client_are_kept(records, given):
    app = App(END, DONE, headers=EVENTS)
    answer = call(app, records, STREAM | {"stream_options": given})
    assert json.loads(app.bodies[0])["stream_options"] == given | {"include_usage": True}
    assert answer.data == DONE


def test_usage_is_not_asked_for_where_that_is_switched_off(records):
    app = App(chunk(content="a"), chunk("stop", content="b"), DONE, headers=EVENTS)
    call(app, records, STREAM, options={"ask_usage": False})
    assert json.loads(app.bodies[0]) == STREAM
    record = records.the_record()
    assert record["quality"] == USAGE_ESTIMATED
    assert record["usage"].output_tokens == 2


def test_null_usage_on_each_chunk_is_not_shown(records):
    """As OpenAI sends it, to a client that asked."""
    null = chunk(content="a").replace(b'"choices"', b'"usage": null, "choices"')
    answer = call(App(null, chunk("stop"), END, DONE, headers=EVENTS), records, STREAM)
    assert b"usage" not in answer.data
    assert json.loads(answer.data.split(b"\n\n")[0][6:])["choices"][0]["delta"] == {"content": "a"}


def test_a_chunk_without_a_choice_stays_unless_it_is_that_of_usage(records):
    """Azure OpenAI: the first chunk tells what its filters found in the prompt."""
    first = {"id": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    told = b"data: " + json.dumps(first | {"usage": None}).encode() + b"\n\n"
    answer = call(App(told, chunk("stop", content="a"), END, DONE, headers=EVENTS), records, STREAM)
    shown = [event.data for event in Events().feed(answer.data)]
    assert json.loads(shown[0]) == first
    assert [json.loads(data).get("usage") for data in shown[1:-1]] == [None]
    assert records.the_record()["usage"] == Usage(input_tokens=3, output_tokens=2)


def test_chunks_pass_at_once(records):
    app = App(chunk(content="a"), chunk("stop"), END, DONE, headers=EVENTS, pause_s=0.4)
    with serving(RecordingMiddleware(app, records), lifespan="off") as url:
        answer = urllib3.request("POST", f"{url}/v1/chat/completions", json=STREAM, preload_content=False)
        parts = answer.stream()
        assert next(parts) == chunk(content="a")
        assert records.records == []  # the rest is not even sent
        assert b"".join(parts) == chunk("stop") + DONE
    records.the_record()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_cuts_do_not_matter(records, cut):
    whole = chunk(content="Hel") + chunk(content="lo é€") + chunk("stop") + END + DONE
    parts = [whole[i : i + cut] for i in range(0, len(whole), cut)]
    answer = call(App(*parts, headers=EVENTS), records, STREAM)
    assert answer.data == whole.replace(END, b"")
    assert records.the_record()["output_text"] == "Hello é€"


def test_tool_calls_as_openais_client_sees_them(records):
    """The small model here makes no calls, so the server is an app that answers as the API reference says."""
    openai = pytest.importorskip("openai")
    calls = [("get_weather", '{"city": "Paris"}'), ("get_time", "{}")]
    parts = [chunk(role="assistant", content=None)]
    for index, (name, arguments) in enumerate(calls):
        function = {"name": name, "arguments": ""}
        parts.append(
            chunk(tool_calls=[{"index": index, "id": "c", "type": "function", "function": function}])
        )
        pieces = [
            {"index": index, "function": {"arguments": each}} for each in (arguments[:3], arguments[3:])
        ]
        parts += [chunk(tool_calls=[piece]) for piece in pieces]
    parts += [chunk("tool_calls"), END, DONE]
    whole = [{"id": "c", "type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    message = {"role": "assistant", "content": None, "tool_calls": whole}
    answer = ANSWER | {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    for stream, app in ((True, App(*parts, headers=EVENTS)), (False, App(json.dumps(answer).encode()))):
        with serving(RecordingMiddleware(app, records), lifespan="off") as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
            got = client.chat.completions.create(**CHAT, stream=stream)
            if stream:
                deltas = [each.choices[0].delta for each in got]
                functions = [call.function for delta in deltas for call in delta.tool_calls or ()]
            else:
                functions = [call.function for call in got.choices[0].message.tool_calls]
        record = records.the_record()
        text = "".join((each.name or "") + (each.arguments or "") for each in functions)
        assert record["output_text"] == text == "".join(name + arguments for name, arguments in calls)
        assert record["usage"] == Usage(input_tokens=3, output_tokens=2)
        assert record["finish_reason"] == "tool_calls"
        records.clear()


# --- ends ------------------------------------------------------------------------------------------------


def go_away_after(url, body, size):
    """Read so many bytes of a stream, and hang up."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        seen = b""
        while seen.count(b"data:") < size:
            seen += client.recv(65536)
    return seen


class Endless:
    """Streams a token every few milliseconds, until the client is gone, as Starlette's responses do."""

    def __init__(self):
        self.stopped = False
        self.sent = 0

    async def __call__(self, scope, receive, send):
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})

        async def stream():
            while True:
                self.sent += 1
                part = chunk(content="a", usage={"prompt_tokens": 3, "completion_tokens": self.sent})
                await send({"type": "http.response.body", "body": part, "more_body": True})
                await asyncio.sleep(0.005)

        work = asyncio.ensure_future(stream())
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            work.cancel()
            self.stopped = True


def test_a_client_that_goes_away_is_an_abort_with_what_was_streamed(records):
    app = Endless()
    with serving(RecordingMiddleware(app, records), lifespan="off") as url:
        go_away_after(url, STREAM, 5)
        record = records.the_record()
    assert app.stopped
    assert record["finish_reason"] == "abort"
    tokens = record["usage"].output_tokens
    assert 5 <= tokens <= app.sent  # what was under way to the client counts too
    assert record["output_text"] == "a" * tokens
    assert record["quality"] is None  # each chunk told the counts


def test_an_app_that_hears_of_the_client_by_sending(records):
    """ASGI 2.4: ``send`` raises ``OSError``."""

    async def app(scope, receive, send):
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        for _ in range(2):
            await send({"type": "http.response.body", "body": chunk(content="a"), "more_body": True})

    sent = []

    async def run():
        async def receive():
            return {"type": "http.request", "body": json.dumps(STREAM).encode(), "more_body": False}

        async def send(message):
            sent.append(message)
            if len(sent) == 3:
                raise OSError("gone")

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        await RecordingMiddleware(app, records)(scope, receive, send)

    with pytest.raises(OSError, match="gone"):
        asyncio.run(run())
    record = records.the_record()
    assert (record["finish_reason"], record["output_text"]) == ("abort", "aa")
    assert record["quality"] == USAGE_ESTIMATED


def test_a_client_that_goes_away_before_the_answer(records):
    """What was generated is unknown: the record says that its counts are estimates."""

    class Slow:
        async def __call__(self, scope, receive, send):
            await read(receive)
            while (await receive())["type"] != "http.disconnect":
                pass

    with serving(RecordingMiddleware(Slow(), records), lifespan="off") as url:
        with pytest.raises(urllib3.exceptions.TimeoutError):
            urllib3.request("POST", f"{url}/v1/chat/completions", json=CHAT, timeout=2, retries=False)
        record = records.the_record()
    assert (record["finish_reason"], record["quality"]) == ("abort", USAGE_ESTIMATED)
    assert record["usage"].output_tokens == 0


@pytest.mark.parametrize("limit", [1 << 20, 10])
def test_a_client_that_leaves_while_it_asks_has_asked_for_nothing(records, limit):
    """Whether the request is read first, or passes unread."""
    heard = []

    async def app(scope, receive, send):
        while (message := await receive()).get("more_body"):
            pass
        heard.append(message["type"])

    messages = [
        {"type": "http.request", "body": b'{"messages": ', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    asyncio.run(RecordingMiddleware(app, records, max_body_bytes=limit)(scope, receive, None))
    assert (records.records, records.lost, records.abandoned) == ([], [], records.begun)
    assert heard == ([] if limit > 10 else ["http.disconnect"])


def test_an_app_that_breaks_off_after_tokens_is_an_error(records):
    class Broken(App):
        async def __call__(self, scope, receive, send):
            await read(receive)
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            await send({"type": "http.response.body", "body": chunk(content="a"), "more_body": True})
            raise RuntimeError("out of memory")

    with pytest.raises(urllib3.exceptions.HTTPError):
        call(Broken(), records, STREAM)
    assert records.the_record()["finish_reason"] == "error"


def test_an_error_within_a_stream(records):
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    answer = call(App(chunk(content="a"), error, DONE, headers=EVENTS), records, STREAM)
    assert error in answer.data
    assert records.the_record()["finish_reason"] == "error"


def test_a_stream_that_ends_without_a_reason_is_an_error(records):
    call(App(chunk(content="a"), headers=EVENTS), records, STREAM)
    assert records.the_record()["finish_reason"] == "error"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_what_is_refused_is_not_recorded(records, status):
    error = json.dumps({"error": {"message": "no"}}).encode()
    answer = call(App(error, status=status), records)
    assert (answer.status, answer.data) == (status, error)
    assert "x-tallystick-record" not in answer.headers
    assert (records.records, records.abandoned) == ([], ["record-1"])


@pytest.mark.parametrize("status", [504, 524])
def test_what_a_gateway_gave_up_on_counts_as_dropped(records, status, caplog):
    answer = call(App(b"", status=status), records)
    assert answer.status == status
    assert "x-tallystick-record" not in answer.headers
    assert (records.records, records.lost) == ([], ["record-1"])
    assert f"answered {status}" in caplog.text


class Budget:
    """Has room, or fails."""

    def __init__(self, error=None):
        self.error, self.released = error, []

    async def areserve(self, record, **_):
        if self.error is not None:
            raise self.error

    def release(self, record):
        self.released.append(record)


def test_what_cannot_be_recorded_counts_as_dropped(records, monkeypatch, caplog):
    budget = Budget()

    def fail(**_):
        raise RuntimeError("no room")

    monkeypatch.setattr(records, "record", fail)
    answer = call(App(json.dumps(ANSWER).encode()), records, options={"budgets": budget})
    assert json.loads(answer.data) == ANSWER
    assert (records.lost, records.abandoned) == (["record-1"], [])
    eventually(lambda: budget.released == ["record-1"])
    assert "could not be recorded" in caplog.text


def test_a_request_that_is_cancelled_while_budgets_are_asked(records):
    budget = Budget(asyncio.CancelledError())

    async def receive():
        return {"type": "http.request", "body": json.dumps(CHAT).encode()}

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(RecordingMiddleware(App(), records, budgets=budget)(scope, receive, None))
    assert records.abandoned == budget.released == ["record-1"]


def test_an_error_before_the_first_token_is_not_recorded(records):
    call(App(b'data: {"error": {"message": "full"}}\n\n', DONE, headers=EVENTS), records, STREAM)
    assert (records.records, records.abandoned) == ([], ["record-1"])


# --- what passes unread ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/tokenize"),
    ],
)
def test_other_requests_are_none_of_its_business(records, method, path):
    app = App(b"{}", headers=[*JSON, (b"x-kept", b"1")])
    with serving(RecordingMiddleware(app, records), lifespan="off") as url:
        answer = urllib3.request(method, url + path, headers={"accept-encoding": "br"})
    assert (answer.data, answer.headers["x-kept"], records.begun) == (b"{}", "1", [])
    assert app.heads[0][b"accept-encoding"] == b"br"


def test_a_recorded_request_asks_for_no_compression(records):
    app = App(json.dumps(ANSWER).encode())
    call(app, records, headers={"accept-encoding": "gzip"})
    assert app.heads[0][b"accept-encoding"] == b"identity"


def test_a_compressed_answer_passes_untouched(records, caplog):
    data = gzip.compress(json.dumps(ANSWER).encode())
    answer = call(App(data, headers=[*JSON, (b"content-encoding", b"gzip")]), records)
    assert answer.data == data
    assert "compressed" in caplog.text
    record = records.the_record()
    assert answer.headers["x-tallystick-record"] == record["id"]
    assert (record["quality"], record["output_text"]) == (USAGE_ESTIMATED, None)
    assert record["usage"].output_tokens == -(-len(data) // 4)


def test_a_compressed_request_passes_untouched_and_its_answer_is_recorded(records):
    data = gzip.compress(json.dumps(CHAT).encode())
    app = App(json.dumps(ANSWER).encode())
    call(app, records, data=data, headers={"content-encoding": "gzip"})
    assert app.bodies == [data]
    record = records.the_record()
    assert record["usage"] == Usage(input_tokens=3, output_tokens=2)
    assert (record["input_text"], record["output_text"]) == (None, "Hello")


UNCOUNTED = json.dumps({key: value for key, value in ANSWER.items() if key != "usage"}).encode()


@pytest.mark.parametrize(
    ("data", "headers", "options"),
    [
        (gzip.compress(json.dumps(CHAT).encode()), {"content-encoding": "gzip"}, {}),
        (json.dumps(CHAT | {"user": "x" * 900}).encode(), {}, {"max_body_bytes": 500}),
        (b"model: m", {}, {}),
    ],
    ids=["compressed", "long", "no JSON"],
)
def test_the_prompt_of_a_request_that_cannot_be_read_is_estimated(records, caplog, data, headers, options):
    app = App(UNCOUNTED)
    call(app, records, data=data, headers=headers, options=options)
    assert app.bodies == [data]
    assert "a request could not be read" in caplog.text
    record = records.the_record()
    assert record["usage"] == Usage(input_tokens=-(-len(data) // 4), output_tokens=2)
    assert record["quality"] == USAGE_ESTIMATED


@pytest.mark.parametrize("odd", [b"NaN", b'"\\ud83d"'])
def test_a_request_that_only_other_servers_read_is_read_and_passes_as_it_is(records, odd):
    data = b'{"messages": [{"role": "user", "content": "Hi"}], "stream": true, "x": %s}' % odd
    app = App(chunk(content="a"), chunk("stop"), headers=EVENTS)
    call(app, records, data=data)
    assert app.bodies == [data]
    record = records.the_record()
    assert record["input_text"] == '{"messages":[{"content":"Hi","role":"user"}]}'
    assert record["quality"] == USAGE_ESTIMATED


@pytest.mark.parametrize("data", [b"[]", b"{", b"", b"\xff\xfe"])
def test_a_request_that_is_no_json_passes_untouched(records, data):
    app = App(b'{"error": {}}', status=400)
    call(app, records, data=data)
    assert app.bodies == [data]
    assert records.abandoned == ["record-1"]


def test_a_large_request_passes_unread(records):
    body = CHAT | {"messages": [{"role": "user", "content": "x" * 300_000}]}
    app = App(json.dumps(ANSWER).encode())
    call(app, records, body, options={"engine": "vllm", "max_body_bytes": 100_000})
    assert app.bodies == [json.dumps(body).encode()]
    record = records.the_record()
    assert (record["usage"].input_tokens, record["input_text"]) == (3, None)


@pytest.mark.parametrize("engine", [None, "vllm"])
def test_a_large_answer_passes_unread(records, engine, caplog):
    long = ANSWER | {"padding": "x" * 200_000}
    data = json.dumps(long).encode()
    answer = call(
        App(data[:150_000], data[150_000:]), records, options={"engine": engine, "max_body_bytes": 100_000}
    )
    assert answer.data == data
    assert "too long" in caplog.text
    record = records.the_record()
    assert answer.headers["x-tallystick-record"] == record["id"]
    assert (record["quality"], record["output_text"]) == (USAGE_ESTIMATED, None)
    assert record["usage"].output_tokens == -(-len(data) // 4)


def test_an_event_without_end_passes_unread(records, monkeypatch):
    monkeypatch.setattr("ledger.emit.engines._asgi_answer.Events", lambda: Events(100))
    parts = [b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', b"data:" + b" " * 200, b"\n\n", END]
    answer = call(App(*parts, headers=EVENTS), records, STREAM)
    assert answer.data == b"".join(parts)
    record = records.the_record()
    assert (record["quality"], record["output_text"]) == (USAGE_ESTIMATED, None)
    assert record["finish_reason"] is None  # it was not seen
    assert record["usage"].output_tokens == 1 + -(-sum(map(len, parts[1:])) // 4)


TEXT = [(b"content-type", b"text/plain; charset=utf-8")]


@pytest.mark.parametrize("asked", [CHAT, CHAT | {"stream": True}])
@pytest.mark.parametrize("engine", [None, "vllm"])
@pytest.mark.parametrize("headers", [TEXT, [(b"content-type", b"text/html")], JSON, EVENTS, []])
def test_an_answer_that_cannot_be_read_is_estimated(records, caplog, headers, engine, asked):
    answer = call(App(b"hello", b", you", headers=headers), records, asked, options={"engine": engine})
    assert answer.data == b"hello, you"
    assert "estimated" in caplog.text
    record = records.the_record()
    assert (record["usage"].output_tokens, record["quality"]) == (3, USAGE_ESTIMATED)
    assert record["output_text"] is None


@pytest.mark.parametrize("headers", [TEXT, []])
def test_a_stream_that_is_not_named_as_one_is_read(records, headers):
    app = App(chunk(content="Hello"), chunk("stop"), END, DONE, headers=headers)
    answer = call(app, records, STREAM)
    assert answer.data == chunk(content="Hello") + chunk("stop") + DONE
    record = records.the_record()
    assert (record["usage"], record["output_text"]) == (Usage(input_tokens=3, output_tokens=2), "Hello")


@pytest.mark.parametrize("headers", [TEXT, []])
def test_json_that_is_not_named_so_is_read(records, headers):
    call(App(json.dumps(ANSWER).encode(), headers=headers), records)
    assert records.the_record()["usage"] == Usage(input_tokens=3, output_tokens=2)


def test_an_answer_with_numbers_that_json_does_not_have_is_read(records):
    data = json.dumps(ANSWER | {"logprobs": [float("nan")]}).encode()
    assert call(App(data), records).data == data
    assert records.the_record()["usage"] == Usage(input_tokens=3, output_tokens=2)


def test_a_stream_with_chunks_that_are_no_json(records, caplog):
    junk = b"data: so far so good\n\n"
    call(App(chunk(content="a"), junk, chunk("stop"), headers=EVENTS), records, STREAM)
    assert "a chunk is no JSON" in caplog.text
    record = records.the_record()
    assert (record["usage"].output_tokens, record["quality"]) == (1 + 4, USAGE_ESTIMATED)


def test_a_whole_answer_that_is_cut_is_estimated(records):
    class Broken(App):
        async def __call__(self, scope, receive, send):
            await read(receive)
            await send({"type": "http.response.start", "status": 200, "headers": JSON})
            await send({"type": "http.response.body", "body": b"x" * 40, "more_body": True})
            raise RuntimeError("out of memory")

    with pytest.raises(urllib3.exceptions.HTTPError):
        call(Broken(), records)
    record = records.the_record()
    assert (record["finish_reason"], record["quality"]) == ("error", USAGE_ESTIMATED)
    assert record["usage"].output_tokens == 10


@pytest.mark.parametrize(("status", "data"), [(204, b""), (200, b""), (200, b" "), (302, b"Moved")])
def test_an_answer_without_anything_is_none(records, status, data):
    call(App(*([data] if data else []), status=status), records)
    assert records.abandoned == ["record-1"]


# --- other paths -----------------------------------------------------------------------------------------


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/", "/anthropic/v1/messages"])
def test_anthropics_api_is_recorded(records, path):
    data = json.dumps(MESSAGE).encode()
    answer = call(App(data), records, CHAT | {"max_tokens": 9}, path=path, options={"engine": "vllm"})
    assert answer.data == data
    record = records.the_record()
    assert record["usage"] == Usage(input_tokens=3, output_tokens=2)
    assert (record["output_text"], record["finish_reason"]) == ("Hello", "stop")
    assert record["request_id"] == "msg_1"


def test_a_stream_of_anthropics_api(records):
    events = [
        {"type": "message_start", "message": MESSAGE | {"content": [], "usage": {"input_tokens": 3}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    parts = [b"event: %s\ndata: %s\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events]
    app = App(*parts, headers=EVENTS)
    answer = call(app, records, STREAM | {"max_tokens": 2}, path="/v1/messages")
    assert answer.data == b"".join(parts)
    assert json.loads(app.bodies[0]) == STREAM | {"max_tokens": 2}  # it tells its usage unasked
    record = records.the_record()
    assert record["usage"] == Usage(input_tokens=3, output_tokens=2)
    assert (record["output_text"], record["finish_reason"]) == ("Hello", "length")


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        (CHAT, {"return_token_ids": True}),
        ({"prompt": "Hi"}, {"return_token_ids": True}),
        ({"input": "Hi"}, None),
    ],
)
def test_invocations_are_what_their_body_says(records, body, asks):
    app = App(json.dumps(ANSWER).encode())
    call(app, records, body, path="/invocations", options={"engine": "vllm"})
    assert json.loads(app.bodies[0]) == body | (asks or {})
    assert len(records.records) == (asks is not None)


def test_messages_that_were_embedded_are_no_generation(records):
    call(
        App(json.dumps({"usage": USAGE | {"completion_tokens": 0}, "data": []}).encode()),
        records,
        path="/invocations",
    )
    assert records.abandoned == ["record-1"]


def test_generations_at_unknown_paths_are_told_once_each(records, caplog):
    app = App(json.dumps(ANSWER).encode())
    embedding = App(json.dumps({"usage": {"prompt_tokens": 3, "total_tokens": 3}}).encode())
    for served, path in ((app, "/v2/generate"), (app, "/v3/generate"), (embedding, "/v1/embeddings")):
        with serving(RecordingMiddleware(served, records), lifespan="off") as url:
            for _ in range(3):
                urllib3.request("POST", url + path, json=CHAT)
    assert caplog.text.count("POST /v2/generate count generated tokens, and are not recorded") == 1
    assert caplog.text.count("not recorded") == 2
    assert records.begun == []


def test_only_so_many_unknown_paths_are_remembered(records, caplog):
    middleware = RecordingMiddleware(App(json.dumps(ANSWER).encode()), records)
    with serving(middleware, lifespan="off") as url:
        for place in range(100):
            urllib3.request("POST", f"{url}/x/{place}", json=CHAT)
    assert caplog.text.count("not recorded") == 64


def test_websockets_pass(records):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope["type"])

    asyncio.run(RecordingMiddleware(app, records)({"type": "websocket", "path": "/v1/realtime"}, None, None))
    assert scopes == ["websocket"]


# --- who asks --------------------------------------------------------------------------------------------


def test_headers_tell_tenant_and_parent_only_where_that_is_configured(records):
    headers = {"x-tenant": "acme", "x-parent": "p", "x-request-id": "r"}
    answer = json.dumps({key: value for key, value in ANSWER.items() if key != "id"}).encode()
    call(App(answer), records, headers=headers)
    record = records.the_record()
    assert (record["tenant"], record["parent"], record["request_id"]) == (None, None, "r")
    records.clear()
    call(
        App(answer),
        records,
        headers=headers,
        options={"tenant_header": "X-Tenant", "parent_header": "X-Parent"},
    )
    record = records.the_record()
    assert (record["tenant"], record["parent"]) == ("acme", "p")


def test_the_model_that_answers_names_the_deployment(records):
    other = Deployment(model="m-lora", engine="vllm")
    for name, deployment in (("m", None), ("m-lora", other), ("unheard-of", None)):
        call(
            App(json.dumps(ANSWER | {"model": name}).encode()),
            records,
            options={"deployments": {"m-lora": other}},
        )
        assert records.the_record()["deployment"] == deployment
        records.clear()


# --- trouble ---------------------------------------------------------------------------------------------


def test_an_error_in_recording_does_not_reach_the_client(records, monkeypatch, caplog):
    def fail(**_):
        raise RuntimeError("broken recorder")

    monkeypatch.setattr(records, "record", fail)
    answer = call(App(json.dumps(ANSWER).encode()), records=Forgiving(records))
    assert json.loads(answer.data) == ANSWER
    assert "could not be recorded" in caplog.text


class Forgiving:
    """A recorder whose records nobody waits for."""

    def __init__(self, inner):
        self.begin, self.record, self.abandon = inner.begin, inner.record, inner.abandon

    def settle(self):
        pass


@pytest.mark.parametrize("stage", ["begin", "feed"])
def test_an_error_in_reading_does_not_reach_the_client(records, monkeypatch, caplog, stage):
    def fail(*_, **__):
        raise RuntimeError("broken reader")

    if stage == "begin":
        monkeypatch.setattr(records, "begin", fail)
    else:
        monkeypatch.setattr(asgi.Exchange, "feed", fail)
    for body, app in (
        (CHAT, App(json.dumps(ANSWER).encode())),
        (STREAM, App(chunk(content="a"), chunk("stop"), END, DONE, headers=EVENTS)),
    ):
        answer = call(app, records, body)
        assert answer.status == 200
        assert b"Hello" in answer.data or chunk(content="a") in answer.data
    assert "could not be read" in caplog.text


# --- a recorder from the environment ---------------------------------------------------------------------


def test_a_class_path_is_enough(tmp_path, monkeypatch):
    """As ``vllm serve --middleware ledger.emit.engines.asgi.RecordingMiddleware`` adds it."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    (tmp_path / "deployment.toml").write_text(
        'model = "m"\nengine = "vllm"\n[models."m-lora"]\nadapters = [{ name = "lora" }]\n'
    )
    monkeypatch.setenv("TALLYSTICK_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("TALLYSTICK_DEPLOYMENT", str(tmp_path / "deployment.toml"))
    app = FastAPI()
    bodies = []

    @app.post("/v1/chat/completions")
    async def chat(body: dict):
        bodies.append(body)
        return JSONResponse(ANSWER)

    app.add_middleware(RecordingMiddleware)
    with serving(app) as url:
        answer = urllib3.request("POST", f"{url}/v1/chat/completions", json=CHAT)
        assert answer.status == 200
        assert len(answer.headers["x-tallystick-record"]) == 36
    assert bodies[0]["return_token_ids"] is True
    assert list((tmp_path / "spool").glob("*.statement"))  # the end of the app's lifespan sealed it


def test_without_a_deployment_the_app_still_serves(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TALLYSTICK_SPOOL", str(tmp_path / "spool"))
    monkeypatch.delenv("TALLYSTICK_DEPLOYMENT", raising=False)
    with serving(RecordingMiddleware(App(json.dumps(ANSWER).encode())), lifespan="off") as url:
        for _ in range(2):
            answer = urllib3.request("POST", f"{url}/v1/chat/completions", json=CHAT)
            assert json.loads(answer.data) == ANSWER
            assert "x-tallystick-record" not in answer.headers
    assert caplog.text.count("there is no recorder") == 1


def test_a_recorder_that_cannot_be_made_now_is_made_later(tmp_path, monkeypatch):
    deployment = tmp_path / "deployment.json"
    monkeypatch.setenv("TALLYSTICK_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("TALLYSTICK_DEPLOYMENT", str(deployment))
    monkeypatch.setattr(asgi, "_TRY_AGAIN_S", 0.2)
    middleware = RecordingMiddleware(App(json.dumps(ANSWER).encode()))
    with serving(middleware, lifespan="off") as url:

        def recorded():
            return (
                "x-tallystick-record"
                in urllib3.request("POST", f"{url}/v1/chat/completions", json=CHAT).headers
            )

        assert not recorded()
        deployment.write_text('{"model": "m", "engine": "e"}')
        assert not recorded()  # not before there is use in it
        assert eventually(recorded)
    middleware._recorder.close()


def test_budgets_that_cannot_be_asked_let_nothing_pass_if_closed(tmp_path, monkeypatch):
    deployment = tmp_path / "deployment.json"
    deployment.write_text('{"model": "m", "engine": "e"}')
    monkeypatch.setenv("TALLYSTICK_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("TALLYSTICK_DEPLOYMENT", str(deployment))
    monkeypatch.setenv("TALLYSTICK_BUDGETS", "closed")
    monkeypatch.delenv("TALLYSTICK_URL", raising=False)
    app = App(json.dumps(ANSWER).encode())
    with serving(RecordingMiddleware(app), lifespan="off") as url:
        for _ in range(3):
            answer = urllib3.request("POST", f"{url}/v1/chat/completions", json=CHAT, retries=False)
            assert answer.status == 503
    assert app.bodies == []


def test_ray_serve_gets_starlettes_middleware(records):
    """Its HTTP proxy makes each from what the callback returns: ``cls(app, *args, **kwargs)``."""
    from starlette.middleware import Middleware

    from ledger.emit.engines.ray_serve import middlewares

    (made,) = middlewares()
    assert isinstance(made, Middleware)
    app = made.cls(App(json.dumps(ANSWER).encode()), *made.args, **{**made.kwargs, "recorder": records})
    with serving(app, lifespan="off") as url:
        assert urllib3.request("POST", f"{url}/v1/chat/completions", json=CHAT).json() == ANSWER
    assert records.the_record()["output_text"] == "Hello"


def test_several_requests_at_once(records):
    from concurrent.futures import ThreadPoolExecutor

    app = App(chunk(content="a"), chunk("stop"), END, DONE, headers=EVENTS, pause_s=0.01)
    with serving(RecordingMiddleware(app, records), lifespan="off") as url:
        pool = urllib3.PoolManager(maxsize=20)
        with ThreadPoolExecutor(20) as workers:
            answers = list(
                workers.map(
                    lambda _: pool.request("POST", f"{url}/v1/chat/completions", json=STREAM), range(60)
                )
            )
        eventually(lambda: len(records.records) == 60)
    assert {answer.data for answer in answers} == {chunk(content="a") + chunk("stop") + DONE}
    assert {answer.headers["x-tallystick-record"] for answer in answers} == {r["id"] for r in records.records}
