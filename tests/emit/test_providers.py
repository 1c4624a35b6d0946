"""Each provider's usage fields, by what its documentation and SDK say they mean; and foreign input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.records import Usage
from ledger.emit.engines import _hosted, _providers
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._provider_wires import anthropic_wire, gemini_model, gemini_wire

READERS = [
    *_providers.READERS.values(),
    _providers.bedrock_invoke_usage,
    _providers.bedrock_metrics_usage,
]


def usage(inputs: int, outputs: int, cached: Any = UNSET, reasoning: Any = UNSET) -> Usage:
    return Usage(
        input_tokens=inputs, output_tokens=outputs, cached_input_tokens=cached, reasoning_tokens=reasoning
    )


OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 30,
    "total_tokens": 130,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 3, "cache_write_tokens": 10},
    "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 0},
}
RESPONSES = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 0},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 130,
}
ANTHROPIC = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 1000,
    "output_tokens": 30,
    "output_tokens_details": {"thinking_tokens": 20},
}
CONVERSE = {
    "inputTokens": 10,
    "outputTokens": 30,
    "totalTokens": 1140,
    "cacheReadInputTokens": 1000,
    "cacheWriteInputTokens": 100,
}
HEADERS = {
    "X-Amzn-Bedrock-Input-Token-Count": "10",
    "x-amzn-bedrock-output-token-count": "30",
    "x-amzn-bedrock-cache-read-input-token-count": "1000",
    "x-amzn-bedrock-cache-write-input-token-count": "100",
    "x-amzn-requestid": "c0ffee",
}
METRICS = {"inputTokenCount": 10, "outputTokenCount": 30, "invocationLatency": 900, "firstByteLatency": 80}
GEMINI = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 64,
    "candidatesTokenCount": 10,
    "thoughtsTokenCount": 20,
    "toolUsePromptTokenCount": 7,
    "totalTokenCount": 137,
}


@pytest.mark.parametrize(
    ("reader", "told", "expected"),
    [
        (_providers.openai_usage, OPENAI, usage(100, 30, 64, 20)),
        (_providers.openai_usage, RESPONSES, usage(100, 30, 64, 20)),
        (_providers.openai_usage, {"prompt_tokens": 5, "completion_tokens": 2}, usage(5, 2)),
        (_providers.together_usage, OPENAI, usage(100, 30, 64, 20)),
        (
            _providers.together_usage,
            {"prompt_tokens": 100, "completion_tokens": 30, "cached_tokens": 64},
            usage(100, 30, 64),
        ),
        (_providers.anthropic_usage, ANTHROPIC, usage(1110, 30, 1000, 20)),
        (_providers.anthropic_usage, {"input_tokens": 3, "output_tokens": 4}, usage(3, 4)),
        (_providers.bedrock_converse_usage, CONVERSE, usage(1110, 30, 1000)),
        (_providers.bedrock_invoke_usage, HEADERS, usage(1110, 30, 1000)),
        (_providers.bedrock_metrics_usage, METRICS, usage(10, 30)),
        (_providers.gemini_usage, GEMINI, usage(107, 30, 64, 20)),
        # Thoughts among the candidates' tokens, as the total shows: not counted twice.
        (
            _providers.gemini_usage,
            GEMINI | {"candidatesTokenCount": 30, "totalTokenCount": 137},
            usage(107, 30, 64, 20),
        ),
        (_providers.gemini_usage, {"promptTokenCount": 9}, usage(9, 0)),
        (
            _providers.replicate_usage,
            {"input_token_count": 9, "output_token_count": 4, "predict_time": 0.4, "total_time": 1.2},
            usage(9, 4),
        ),
    ],
)
def test_what_a_provider_tells(reader: _providers.Reader, told: Any, expected: Usage) -> None:
    assert reader(told) == expected


def test_attributes_are_read_like_fields() -> None:
    details = SimpleNamespace(cached_tokens=64, audio_tokens=None)
    told = SimpleNamespace(prompt_tokens=100, completion_tokens=30, prompt_tokens_details=details)
    assert _providers.openai_usage(told) == usage(100, 30, 64)
    snake = {"prompt_token_count": 100, "candidates_token_count": 10, "thoughts_token_count": 20}
    assert _providers.gemini_usage(SimpleNamespace(**snake)) == usage(100, 30, UNSET, 20)


def test_the_events_of_a_messages_stream_add_up() -> None:
    so_far: dict[str, Any] = {}
    for event in (
        {"type": "message_start", "message": {"usage": ANTHROPIC | {"output_tokens": 1}}},
        {"type": "ping"},
        {"type": "message_delta", "usage": {"output_tokens": 12}},
        {"type": "message_delta", "usage": {"output_tokens": 30, "cache_read_input_tokens": None}},
        {"type": "message_stop"},
    ):
        so_far = _providers.merged_anthropic(so_far, event)
    assert _providers.anthropic_usage(so_far) == usage(1110, 30, 1000, 20)


NAMES = sorted(
    {name for told in (OPENAI, RESPONSES, ANTHROPIC, CONVERSE, HEADERS, METRICS, GEMINI) for name in told}
    | {"type", "message", "usage", "content", "delta", "candidates", "parts", "text", "index", "items"}
    | {"thinking_tokens", "cached_tokens", "reasoning_tokens", "input", "name", "functionCall", "args"}
)
FOREIGN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=12,
)


@given(FOREIGN)
def test_foreign_usage_never_raises(value: Any) -> None:
    for reader in READERS:
        found = reader(value)
        if found is not None:
            assert msgspec.json.decode(msgspec.json.encode(found), type=Usage) == found
            assert found.cached_input_tokens is UNSET or found.cached_input_tokens <= found.input_tokens
    assert isinstance(_providers.merged_anthropic({}, value), dict)


KINDS = ["message_start", "content_block_start", "content_block_delta", "message_delta", "error", "message"]


@given(st.lists(st.tuples(st.sampled_from(KINDS), FOREIGN), max_size=4), st.booleans())
def test_foreign_answers_never_raise(told: list[tuple[str, Any]], streamed: bool) -> None:
    for wire in (anthropic_wire("/v1/messages"), gemini_wire("/v1beta/models/m:streamGenerateContent")):
        assert wire is not None
        answer = Answer()
        for kind, value in told:
            body = {"type": kind, **(value if isinstance(value, dict) else {"message": value})}
            wire.read(body)
            wire.feed(answer, body, streamed=streamed)
        answer.counts()
        answer.output_text()


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1beta/models/gemini-2.5-flash:generateContent", "gemini-2.5-flash"),
        ("/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent", "g"),
        ("/v1beta/models/gemini:countTokens", None),
        ("/v1beta/models/text-embedding:embedContent", None),
    ],
)
def test_geminis_paths(path: str, model: str | None) -> None:
    assert gemini_model(path) == model
    assert (gemini_wire(path) is None) is (model is None)


@pytest.mark.parametrize(
    ("provider", "base", "engine", "region"),
    [
        ("openai", None, "openai-api", UNSET),
        ("openai", "https://api.openai.com/v1", "openai-api", UNSET),
        ("openai", "https://eu.api.openai.com/v1", "openai-api", "eu"),
        ("openai", "http://10.0.0.7:8000/v1", "openai-compatible", UNSET),
        ("openai", "https://api.together.xyz/v1", "together", UNSET),
        ("openai", "https://generativelanguage.googleapis.com/v1beta/openai/", "gemini-api", UNSET),
        ("azure", "https://my.openai.azure.com", "azure-openai", UNSET),
        ("anthropic", "https://api.anthropic.com", "anthropic-api", UNSET),
        ("bedrock", "https://bedrock-runtime.eu-central-1.amazonaws.com/x", "bedrock", "eu-central-1"),
        ("vertex_ai", "https://europe-west4-aiplatform.googleapis.com/v1", "vertex-ai", "europe-west4"),
        ("together_ai", "https://api.together.xyz/v1", "together", UNSET),
        ("replicate", "https://api.replicate.com/v1", "replicate", UNSET),
        ("anyscale", "https://api.endpoints.anyscale.com/v1", "anyscale", UNSET),
        ("hosted_vllm", "http://10.0.0.7:8000/v1", "vllm", UNSET),
        ("groq", "https://api.groq.com/openai/v1", "groq", UNSET),
    ],
)
def test_deployments_name_the_api(provider: str, base: str | None, engine: str, region: Any) -> None:
    made = _hosted.hosted_deployment(provider, f"{provider}/m", answered_as="m-2026", api_base=base)
    assert (made.model, made.version, made.engine, made.region) == ("m", "m-2026", engine, region)
    assert made.provider == provider


@given(st.text(), st.text(), st.none() | st.text(), st.none() | st.text())
def test_any_names_make_a_deployment(provider: str, model: str, answered: Any, base: Any) -> None:
    from ledger.emit.compose import checked_deployment

    checked_deployment(_hosted.hosted_deployment(provider, model, answered_as=answered, api_base=base))
