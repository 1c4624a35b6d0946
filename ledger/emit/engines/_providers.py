"""Owns the reading of each provider's own usage fields into ``Usage``: pure, and careful with foreign values.

Takes what a provider's API sends as JSON, or what its SDK makes of it: dicts and objects with attributes are
read alike. A value of another type than expected counts as absent, nothing raises. ``input_tokens`` of a
record includes cached tokens and ``output_tokens`` includes reasoning, which the providers' own fields do or
do not:

- OpenAI, Azure OpenAI, Anyscale, Together: both included (``_openai.usage_of``; ``openai`` 3.54). xAI counts
  reasoning beside ``completion_tokens`` but within ``total_tokens``, by its page on consumption and limits.
- Anthropic: ``input_tokens`` leaves out what the cache gave and took (``anthropic`` 2.12).
- Bedrock: so do Converse's ``inputTokens`` (``botocore`` 1.44) and InvokeModel's headers.
- Gemini and Vertex AI: ``candidatesTokenCount`` leaves out thoughts; ``promptTokenCount`` leaves out what
  tools brought in, and includes the cached part (``google-genai`` 3.4).
- Replicate: counts of its language models only, nothing of caches.

Records do not tell cache writes, audio tokens and tool calls apart: writes and audio are among the input or
output tokens, server-side tool calls are not tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from msgspec import UNSET, UnsetType

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.records import Usage
from ledger.emit.engines._openai import is_count, usage_of

__all__ = [
    "READERS",
    "Reader",
    "anthropic_usage",
    "bedrock_converse_usage",
    "bedrock_invoke_usage",
    "bedrock_metrics_usage",
    "field",
    "gemini_usage",
    "merged_anthropic",
    "openai_usage",
    "plain",
    "replicate_usage",
    "together_usage",
]

Reader: TypeAlias = Callable[[Any], Usage | None]

_DETAILS = (
    "prompt_tokens_details",
    "completion_tokens_details",
    "input_tokens_details",
    "output_tokens_details",
)
_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "accepted_prediction_tokens",
    "rejected_prediction_tokens",
)


# --- OpenAI and those alike ------------------------------------------------------------------------------


def openai_usage(value: Any) -> Usage | None:
    """``usage`` of OpenAI and Azure OpenAI (chat completions, completions, responses) and of Anyscale.

    ``rejected_prediction_tokens`` were made too: they are among ``completion_tokens``.
    """
    return usage_of(plain(value))


def together_usage(value: Any) -> Usage | None:
    """``usage`` of Together: OpenAI's, with ``cached_tokens`` beside the counts where the model caches."""
    usage = plain(value)
    if "cached_tokens" in usage and "prompt_tokens_details" not in usage:
        usage = {**usage, "prompt_tokens_details": {"cached_tokens": usage["cached_tokens"]}}
    return usage_of(usage)


def plain(value: Any) -> dict[str, Any]:
    """The usage fields of a dict or object that has OpenAI's names, as plain dicts; absent ones left out."""
    found: dict[str, Any] = {name: count for name in _COUNTS if is_count(count := field(value, name))}
    for name in _DETAILS:
        if (details := field(value, name)) is not None:
            found[name] = {each: count for each in _COUNTS if is_count(count := field(details, each))}
    return found


# --- Anthropic -------------------------------------------------------------------------------------------


def anthropic_usage(value: Any) -> Usage | None:
    """``usage`` of Anthropic's Messages API, of a whole message or ``merged_anthropic`` of a stream's events.

    ``output_tokens_details.thinking_tokens``, where it is told, are reasoning tokens.
    """
    fresh, outputs = field(value, "input_tokens"), field(value, "output_tokens")
    read, written = field(value, "cache_read_input_tokens"), field(value, "cache_creation_input_tokens")
    thinking = field(field(value, "output_tokens_details"), "thinking_tokens")
    return _usage(fresh, outputs, read=read, written=written, reasoning=thinking)


def merged_anthropic(so_far: Mapping[str, Any], event: Any) -> dict[str, Any]:
    """The usage after one more event of a Messages stream.

    ``message_start`` has the input's counts and the first output tokens; each ``message_delta`` has
    cumulative ones, which replace those that it names.
    """
    kind = field(event, "type")
    told = field(field(event, "message"), "usage") if kind == "message_start" else None
    if kind == "message_delta":
        told = field(event, "usage")
    if told is None:
        return dict(so_far)
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    new: dict[str, Any] = {name: count for name in names if is_count(count := field(told, name))}
    thinking = field(field(told, "output_tokens_details"), "thinking_tokens")
    if is_count(thinking):
        new["output_tokens_details"] = {"thinking_tokens": thinking}
    return {**so_far, **new}


# --- Bedrock ---------------------------------------------------------------------------------------------


def bedrock_converse_usage(value: Any) -> Usage | None:
    """``usage`` of Converse, and of the ``metadata`` event that ends ConverseStream (``TokenUsage``)."""
    fresh, outputs = field(value, "inputTokens"), field(value, "outputTokens")
    read, written = field(value, "cacheReadInputTokens"), field(value, "cacheWriteInputTokens")
    return _usage(fresh, outputs, read=read, written=written)


_HEADER = "x-amzn-bedrock-"


def bedrock_invoke_usage(headers: Any) -> Usage | None:
    """Response headers of InvokeModel, ``x-amzn-bedrock-*-token-count``, in any case, as strings."""
    if not isinstance(headers, Mapping):
        return None
    counts = {
        name.lower(): int(text)
        for name, text in headers.items()
        if isinstance(name, str) and isinstance(text, str) and text.isascii() and text.isdigit()
        if len(text) <= _MAX_DIGITS
    }
    return _usage(
        counts.get(f"{_HEADER}input-token-count"),
        counts.get(f"{_HEADER}output-token-count"),
        read=counts.get(f"{_HEADER}cache-read-input-token-count"),
        written=counts.get(f"{_HEADER}cache-write-input-token-count"),
    )


def bedrock_metrics_usage(value: Any) -> Usage | None:
    """``amazon-bedrock-invocationMetrics`` of the last chunk of InvokeModelWithResponseStream."""
    return _usage(
        field(value, "inputTokenCount"),
        field(value, "outputTokenCount"),
        read=field(value, "cacheReadInputTokenCount"),
        written=field(value, "cacheWriteInputTokenCount"),
    )


_MAX_DIGITS = 16

# --- Gemini and Vertex AI --------------------------------------------------------------------------------


def gemini_usage(value: Any) -> Usage | None:
    """``usageMetadata`` of generateContent, in JSON or as ``google-genai`` names it; the last of a stream.

    Where a model counts thoughts among the candidates' tokens, ``totalTokenCount`` shows it: then they are
    not added again.
    """

    def count(name: str) -> Any:
        found = field(value, name)
        return field(value, _snake(name)) if found is None else found

    prompt, candidates = count("promptTokenCount"), count("candidatesTokenCount")
    thoughts, tools, total = (count(f"{name}TokenCount") for name in ("thoughts", "toolUsePrompt", "total"))
    if not is_count(prompt) or not (candidates is None or is_count(candidates)):
        return None
    made = candidates or 0
    brought = tools if is_count(tools) else 0
    thought = thoughts if is_count(thoughts) else 0
    if not (thought and is_count(total) and total == prompt + brought + made and made >= thought):
        made += thought
    return _usage(
        prompt + brought,
        made,
        cached=count("cachedContentTokenCount"),
        reasoning=thoughts,
    )


def _snake(name: str) -> str:
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name)


# --- Replicate -------------------------------------------------------------------------------------------


def replicate_usage(value: Any) -> Usage | None:
    """``metrics`` of a prediction. Language models have ``input_token_count`` and ``output_token_count``."""
    return _usage(field(value, "input_token_count"), field(value, "output_token_count"))


READERS: dict[str, Reader] = {
    "openai": openai_usage,
    "azure": openai_usage,
    "anyscale": openai_usage,
    "together": together_usage,
    "anthropic": anthropic_usage,
    "bedrock": bedrock_converse_usage,
    "gemini": gemini_usage,
    "vertex-ai": gemini_usage,
    "replicate": replicate_usage,
}
"""The reader of each provider's usage, for what a whole answer has."""

# --- shared ----------------------------------------------------------------------------------------------


def field(value: Any, name: str) -> Any:
    """The field of a dict, or the attribute of an object; None if there is none, or asking for it raises.

    The SDKs' objects are pydantic models, whose search for an attribute that is not there takes 5 us: where
    they keep their values is looked into instead.
    """
    if isinstance(value, dict):
        return value.get(name)
    try:
        kept = value.__dict__
        if name in kept:
            return kept[name]
        extra = value.__pydantic_extra__
    except Exception:
        return _attribute(value, name)
    return extra.get(name) if isinstance(extra, dict) else None


def _attribute(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _usage(
    inputs: Any,
    outputs: Any,
    *,
    read: Any = None,
    written: Any = None,
    cached: Any = None,
    reasoning: Any = None,
) -> Usage | None:
    """Usage of ``inputs`` tokens plus those that the cache gave and took.

    Args:
        inputs: input tokens besides ``read`` and ``written``.
        outputs: output tokens, reasoning included.
        read: input tokens that came from the cache, not among ``inputs``.
        written: input tokens that went into the cache, not among ``inputs``.
        cached: input tokens that came from the cache and are among ``inputs``.
        reasoning: those of the output.
    """
    if not is_count(inputs) or not (outputs is None or is_count(outputs)):
        return None
    total = inputs + (read if is_count(read) else 0) + (written if is_count(written) else 0)
    made = outputs or 0
    if total > MAX_SAFE_INTEGER or made > MAX_SAFE_INTEGER:
        return None
    hit: int | UnsetType = UNSET
    for each in (read, cached):
        if is_count(each) and each <= total:
            hit = each
    return Usage(
        input_tokens=total,
        output_tokens=made,
        cached_input_tokens=hit,
        reasoning_tokens=reasoning if is_count(reasoning) and reasoning <= made else UNSET,
    )
