"""The readers of usage against the SDKs' own classes and service models: the fields they read are there."""

from __future__ import annotations

import anthropic.types
import botocore.session
import litellm
import openai.types
import openai.types.responses
import pytest
from google.genai import types

from ledger.core.records import Usage
from ledger.emit.engines import _providers
from ledger.emit.engines._litellm_reading import answer_usage
from tests.emit.test_providers import ANTHROPIC, CONVERSE, GEMINI, OPENAI, RESPONSES, usage

EXPECTED = usage(100, 30, 64, 20)


def test_openai() -> None:
    assert _providers.openai_usage(openai.types.CompletionUsage.model_validate(OPENAI)) == EXPECTED
    told = openai.types.responses.ResponseUsage.model_validate(RESPONSES)
    assert _providers.openai_usage(told) == EXPECTED


def test_anthropic() -> None:
    told = anthropic.types.Usage.model_validate(ANTHROPIC)
    assert _providers.anthropic_usage(told) == usage(1110, 30, 1000, 20)
    start = anthropic.types.RawMessageStartEvent.construct(
        type="message_start", message=anthropic.types.Message.construct(usage=told)
    )
    delta = anthropic.types.RawMessageDeltaEvent.construct(
        type="message_delta", usage=anthropic.types.MessageDeltaUsage.construct(output_tokens=44)
    )
    merged = _providers.merged_anthropic(_providers.merged_anthropic({}, start), delta)
    assert _providers.anthropic_usage(merged) == usage(1110, 44, 1000, 20)


def test_gemini() -> None:
    told = types.GenerateContentResponseUsageMetadata.model_validate(GEMINI)
    assert _providers.gemini_usage(told) == usage(107, 30, 64, 20)


def test_bedrock() -> None:
    model = botocore.session.get_session().get_service_model("bedrock-runtime")
    assert set(CONVERSE) <= set(model.shape_for("TokenUsage").members)
    assert "usage" in model.shape_for("ConverseStreamMetadataEvent").members
    assert "usage" in model.shape_for("ConverseResponse").members


@pytest.mark.parametrize(("told", "expected"), [(OPENAI, EXPECTED)])
def test_litellm(told: dict[str, object], expected: Usage) -> None:
    assert answer_usage(litellm.ModelResponse(usage=litellm.Usage(**told))) == expected
