"""The clients of providers with their hook: OpenAI's against the real engine, the others against what their
APIs send, by the SDKs' own types."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import types
from msgspec import UNSET

from ledger.core.records import Record
from ledger.emit.engines import providers
from ledger.emit.engines._openai import prompt_text
from tests.engines_litellm.conftest import Ledger
from tests.engines_litellm.upstream import Seen, Upstream

MESSAGES: Any = [{"role": "user", "content": "Name a colour."}]
ASKED: Any = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}


def check(record: Record, seen: Seen) -> None:
    assert (record.usage.input_tokens, record.usage.output_tokens) == seen.usage
    assert record.quality is UNSET


@pytest.fixture
def client(ledger: Ledger, upstream: Upstream) -> openai.OpenAI:
    return providers.record(
        openai.OpenAI(base_url=upstream.url, api_key="any", max_retries=0), ledger.recorder, tenant="t-1"
    )


def test_an_answer(client: openai.OpenAI, ledger: Ledger, upstream: Upstream) -> None:
    answer = client.chat.completions.create(**ASKED)
    (record,) = ledger.records()
    (seen,) = upstream.seen
    check(record, seen)
    assert (record.finish_reason, record.tenant) == ("length", "t-1")
    ledger.opens(record, "input", prompt_text("chat", {"messages": MESSAGES}) or "", "t-1")
    ledger.opens(record, "output", answer.choices[0].message.content or "", "t-1")
    deployment = ledger.deployment(record)
    assert (deployment["model"], deployment["engine"]) == ("smollm2", "openai-compatible")
    assert deployment["provider"] == "openai"
    assert deployment["site"] in upstream.url


@pytest.mark.parametrize("wanted", [False, True])
def test_a_stream_is_counted_and_stays_as_it_was(
    client: openai.OpenAI, ledger: Ledger, upstream: Upstream, wanted: bool
) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if wanted else {}
    chunks = list(client.chat.completions.create(**ASKED, stream=True, **options))
    (record,) = ledger.records()
    check(record, upstream.seen[0])
    assert sum(chunk.usage is not None for chunk in chunks) == wanted
    assert wanted or all(chunk.choices for chunk in chunks)
    text = "".join(each.delta.content or "" for chunk in chunks for each in chunk.choices)
    ledger.opens(record, "output", text, "t-1")
    assert record.first_token_us is not UNSET


@pytest.mark.parametrize("streamed", [False, True])
def test_several_choices(client: openai.OpenAI, ledger: Ledger, upstream: Upstream, streamed: bool) -> None:
    answer = client.chat.completions.create(**{**ASKED, "n": 2, "temperature": 1.3}, stream=streamed)
    if streamed:
        assert {each.index for chunk in answer for each in chunk.choices} == {0, 1}
    (record,) = ledger.records()
    check(record, upstream.seen[0])
    ledger.opens(record, "output", "".join(upstream.seen[0].choices[place] for place in (0, 1)), "t-1")


def test_other_ways_to_call(client: openai.OpenAI, ledger: Ledger, upstream: Upstream) -> None:
    client.completions.create(model="smollm2", prompt="The tally stick", max_tokens=5)
    client.with_options(timeout=60).chat.completions.with_raw_response.create(**ASKED).parse()
    with client.chat.completions.with_streaming_response.create(**ASKED, stream=True) as raw:
        assert b"[DONE]" in raw.read()
    with client.chat.completions.stream(**ASKED) as events:
        assert [each.type for each in events][-1] == "content.done"
    records = ledger.records()
    for record, seen in zip(records, upstream.seen, strict=True):
        check(record, seen)


def test_an_asynchronous_client(ledger: Ledger, upstream: Upstream) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=upstream.url, api_key="any") as made:
            client = providers.record(made, ledger.recorder)
            await client.chat.completions.create(**ASKED, user="customer-9")
            async for chunk in await client.chat.completions.create(**ASKED, stream=True):
                assert chunk.choices

    asyncio.run(run())
    records = ledger.records()
    for record, seen in zip(records, upstream.seen, strict=True):
        check(record, seen)
    assert records[0].tenant == "customer-9"


def test_a_stream_that_is_left_is_an_abort(client: openai.OpenAI, ledger: Ledger, upstream: Upstream) -> None:
    texts = []
    with client.chat.completions.create(**{**ASKED, "max_tokens": 60}, stream=True) as stream:
        for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")
            if len(texts) == 5:
                break
    (record,) = ledger.records()
    assert record.finish_reason == "abort"
    assert record.quality is not UNSET
    shown = upstream.seen[0].choices[0]
    assert shown.startswith("".join(texts))
    assert 0 < record.usage.output_tokens <= 60


def test_a_stream_that_breaks_off_is_an_error(
    client: openai.OpenAI, ledger: Ledger, upstream: Upstream
) -> None:
    upstream.cut = 3
    with pytest.raises(Exception, match=r"(?i)peer closed"):
        list(client.chat.completions.create(**ASKED, stream=True))
    (record,) = ledger.records()
    assert record.finish_reason == "error"
    assert record.usage.output_tokens == 3


def test_a_client_is_hooked_once(client: openai.OpenAI, ledger: Ledger) -> None:
    providers.record(client, ledger.recorder, tenant="t-2")
    client.chat.completions.create(**ASKED)
    (record,) = ledger.records()
    assert record.tenant == "t-2"


def test_what_fails_is_no_record_and_nothing_is_lost(ledger: Ledger, upstream: Upstream) -> None:
    made = openai.OpenAI(base_url=upstream.url, api_key="any", max_retries=1)
    client = providers.record(made, ledger.recorder)
    upstream.refuse = 1
    client.chat.completions.create(**ASKED)  # retried by the SDK
    upstream.refuse = 2
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASKED)
    gone = providers.record(
        openai.OpenAI(base_url="http://127.0.0.1:9", api_key="any", max_retries=0), ledger.recorder
    )
    with pytest.raises(openai.APIConnectionError):
        gone.chat.completions.create(**ASKED)
    gc.collect()
    (record,) = ledger.records()
    check(record, upstream.seen[1])


def test_a_client_of_another_kind_is_refused(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match="no HTTP client"):
        providers.record(object(), ledger.recorder)


# --- other APIs, by what they send -------------------------------------------------------------------------


def test_anthropic(ledger: Ledger, api: str) -> None:
    client = providers.record(anthropic.Anthropic(base_url=api, api_key="any"), ledger.recorder)
    asked: Any = {"model": "claude-sonnet-4-5", "max_tokens": 99, "messages": MESSAGES}
    client.messages.create(**asked, metadata={"user_id": "customer-3"})
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_text() == "Blue."
    list(client.messages.create(**asked, stream=True))
    whole, *streamed = ledger.records()
    assert (whole.usage.input_tokens, whole.usage.cached_input_tokens) == (1110, 1000)
    assert (whole.usage.output_tokens, whole.usage.reasoning_tokens) == (25, 7)
    assert (whole.tenant, whole.finish_reason) == ("customer-3", "tool_calls")
    ledger.opens(whole, "output", 'Hm. Blue.paint{"colour":"blue"}', "customer-3")
    for record in streamed:
        assert record.usage == whole.usage
        assert record.finish_reason == "stop"
        ledger.opens(record, "output", "Blue.")
    deployment = ledger.deployment(whole)
    assert (deployment["model"], deployment["version"]) == (
        "claude-sonnet-4-5",
        "claude-sonnet-4-5-20250929",
    )
    assert (deployment["engine"], deployment["provider"]) == ("anthropic-api", "anthropic")


def test_anthropic_asynchronously(ledger: Ledger, api: str) -> None:
    async def run() -> None:
        client = providers.record(anthropic.AsyncAnthropic(base_url=api, api_key="any"), ledger.recorder)
        asked: Any = {"model": "claude-sonnet-4-5", "max_tokens": 99, "messages": MESSAGES}
        await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            await stream.get_final_message()

    asyncio.run(run())
    assert [each.usage.input_tokens for each in ledger.records()] == [1110, 1110]


def test_gemini(ledger: Ledger, api: str) -> None:
    made = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=api))
    client = providers.record(made, ledger.recorder)
    client.models.generate_content(model="gemini-2.5-flash", contents="Name a colour.")
    list(client.models.generate_content_stream(model="gemini-2.5-flash", contents="Name a colour."))
    records = ledger.records()
    assert len(records) == 2
    for record in records:
        assert (record.usage.input_tokens, record.usage.cached_input_tokens) == (53, 40)
        assert (record.usage.output_tokens, record.usage.reasoning_tokens) == (14, 9)
        assert record.finish_reason == "length"
    ledger.opens(records[0], "output", "Hm. Blue.")
    deployment = ledger.deployment(records[0])
    assert (deployment["model"], deployment["version"]) == ("gemini-2.5-flash", "gemini-2.5-flash-001")
    assert deployment["engine"] == "gemini-api"


def test_azure(ledger: Ledger, upstream: Upstream) -> None:
    made = openai.AzureOpenAI(base_url=upstream.url, api_key="any", api_version="2024-10-21", max_retries=0)
    providers.record(made, ledger.recorder).chat.completions.create(**ASKED)
    (record,) = ledger.records()
    check(record, upstream.seen[0])
    assert ledger.deployment(record)["engine"] == "azure-openai"
