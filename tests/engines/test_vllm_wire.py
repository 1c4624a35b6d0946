"""Recording around vLLM's OpenAI server: the middleware in it, by its class path, and the proxy before it.

Each sees all requests: the proxy keeps its records here, the middleware's are read from its spool at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3

from ledger.core.statements import Batch
from ledger.emit.engines.asgi import RecordingMiddleware
from ledger.emit.proxy.detect import detect
from ledger.emit.proxy.forward import Forwarder
from ledger.emit.spooled import decode_spooled
from tests.emit.wire import Captured, eventually, serving
from tests.engines.smollm2 import tiny_llama
from tests.engines.vllm_server import VllmServer, serving_vllm

pytest.importorskip("vllm")
openai = pytest.importorskip("openai")

CHAT = [{"role": "user", "content": "What is the capital of France?"}]
ASKED = {"model": "test-model", "temperature": 0.5}
TALLIED: dict[str, int] = {"records": 0, "input": 0, "output": 0}
"""What the proxy recorded; the middleware must have the same."""


@dataclass(frozen=True)
class Variables:
    """What the server finds in its environment."""

    environment: dict[str, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    folder = tmp_path_factory.mktemp("vllm-wire")
    (folder / "deployment.toml").write_text('model = "test-model"\nengine = "vllm"\n')
    variables = Variables(
        {
            "TALLYSTICK_SPOOL": str(folder / "spool"),
            "TALLYSTICK_DEPLOYMENT": str(folder / "deployment.toml"),
            "VLLM_PLUGINS": "none",  # not the plugin too
        }
    )
    middleware = ("--middleware", "ledger.emit.engines.asgi.RecordingMiddleware")
    options = ("--enable-prompt-tokens-details", *middleware)
    with serving_vllm(folder, tiny_llama(), variables, *options) as running:  # type: ignore[arg-type]
        yield running
        assert running.stop() in (0, -15), running.log.read_text()[-6000:]
    totals = {"records": 0, "input": 0, "output": 0}
    for file in (folder / "spool").glob("*.statement"):
        payload = decode_spooled(file.read_bytes(), where=file.name).statement.payload
        if isinstance(payload, Batch):
            totals["records"] += payload.count
            totals["input"] += payload.totals.input_tokens
            totals["output"] += payload.totals.output_tokens
    assert totals["records"] == TALLIED["records"]
    assert totals["input"] == TALLIED["input"]
    # Of an aborted stream each knows what reached it; the one in the server knows more.
    assert TALLIED["output"] <= totals["output"] <= TALLIED["output"] + 50


@pytest.fixture(scope="module")
def captured() -> Captured:
    return Captured()


@pytest.fixture(scope="module")
def proxy(server: VllmServer, captured: Captured) -> Iterator[str]:
    with serving(RecordingMiddleware(Forwarder(server.url), captured, engine="vllm")) as url:
        yield url


@pytest.fixture
def client(proxy: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{proxy}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture
def records(captured: Captured) -> Iterator[Captured]:
    yield captured
    captured.settle()
    TALLIED["records"] += len(captured.records)
    for record in captured.records:
        TALLIED["input"] += record["usage"].input_tokens
        TALLIED["output"] += record["usage"].output_tokens
    captured.clear()


def ids_of(server: VllmServer, **body: Any) -> list[int]:
    answer = urllib3.request("POST", f"{server.url}/tokenize", json={"model": "test-model", **body})
    return list(answer.json()["tokens"])


def same(record: dict[str, Any], usage: Any) -> None:
    """Counts are the server's, and there are so many ids."""
    assert record["quality"] is None
    assert record["usage"].input_tokens == usage.prompt_tokens == len(record["input_ids"])
    assert record["usage"].output_tokens == usage.completion_tokens == len(record["output_ids"])
    if usage.prompt_tokens_details is not None:
        assert record["usage"].cached_input_tokens == usage.prompt_tokens_details.cached_tokens


def test_the_server_tells_what_it_is(server: VllmServer) -> None:
    found = detect(server.url).deployments
    assert found is not None
    assert (found.default.model, found.default.engine) == ("test-model", "vllm")
    assert str(found.default.engine_version).startswith("0.")


def test_a_chat(client: Any, server: VllmServer, records: Captured) -> None:
    raw = client.chat.completions.with_raw_response.create(messages=CHAT, max_tokens=12, **ASKED)
    completion = raw.parse()
    record = records.the_record()
    same(record, completion.usage)
    assert list(record["input_ids"]) == ids_of(server, messages=CHAT)
    mine, theirs = raw.headers["x-tallystick-record"].split(", ")[::-1]
    assert record["id"] in (mine, theirs)
    assert completion.choices[0].model_extra.get("token_ids") is None
    assert completion.model_extra.get("prompt_token_ids") is None


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("choices", [1, 3])
def test_a_stream(client: Any, server: VllmServer, records: Captured, wanted: bool, choices: int) -> None:
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    chunks = list(
        client.chat.completions.create(
            messages=CHAT,
            max_tokens=12,
            n=choices,
            stream=True,
            extra_body={"ignore_eos": True},
            **ASKED,
            **options,
        )
    )
    record = records.the_record()
    usages = [each.usage for each in chunks if each.usage is not None]
    assert len(usages) == int(wanted)
    if wanted:
        same(record, usages[0])
    assert list(record["input_ids"]) == ids_of(server, messages=CHAT)
    assert len(record["output_ids"]) == record["usage"].output_tokens == 12 * choices
    assert not any(each.model_extra.get("prompt_token_ids") for each in chunks)
    assert record["finish_reason"] == "length"


def test_prompts_and_choices_of_completions(client: Any, server: VllmServer, records: Captured) -> None:
    prompts = ["Once upon a time", "Red, green,"]
    completion = client.completions.create(
        prompt=prompts, n=2, max_tokens=5, seed=1, extra_body={"ignore_eos": True}, **ASKED
    )
    record = records.the_record()
    same(record, completion.usage)
    assert list(record["input_ids"]) == [each for prompt in prompts for each in ids_of(server, prompt=prompt)]
    assert len(record["output_ids"]) == 20


def test_a_client_that_goes_away(client: Any, server: VllmServer, records: Captured) -> None:
    stream = client.completions.create(
        prompt="Once", max_tokens=1900, stream=True, extra_body={"ignore_eos": True}, **ASKED
    )
    for _, _ in zip(range(5), stream, strict=False):
        pass
    stream.close()
    record = records.the_record()
    assert record["finish_reason"] == "abort"
    assert record["quality"] is None
    assert 5 <= record["usage"].output_tokens == len(record["output_ids"]) < 1900
    assert list(record["input_ids"]) == ids_of(server, prompt="Once")
    eventually(lambda: server.counter("vllm:num_requests_running") == 0)


def test_refusals(client: Any, records: Captured) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(prompt="word " * 5000, max_tokens=1, **ASKED)
    records.settle()
    assert records.records == []


def test_many_at_once(client: Any, records: Captured) -> None:
    def one(number: int) -> Any:
        body = {"prompt": f"Story {number}:", "max_tokens": 3 + number % 7, **ASKED}
        if number % 2:
            return client.completions.create(**body).usage
        return list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))[
            -1
        ].usage

    with ThreadPoolExecutor(16) as pool:
        usages = list(pool.map(one, range(64)))
    eventually(lambda: len(records.records) == 64)
    told = sorted((usage.prompt_tokens, usage.completion_tokens) for usage in usages)
    recorded = [(each["usage"].input_tokens, each["usage"].output_tokens) for each in records.records]
    assert sorted(recorded) == told
    assert all(each["output_ids"] is not None and each["input_ids"] is not None for each in records.records)
