"""Owns the reading of what LiteLLM hands to its callbacks: ``kwargs`` (``model_call_details``) and answers.

Pure. By LiteLLM 1.81.14, ``litellm_core_utils/litellm_logging.py`` and ``types/utils.py``. Values are
foreign: one of another type than expected counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.records import UUID7, Deployment, Usage
from ledger.emit.engines._exchange import NEVER_SENT
from ledger.emit.engines._hosted import hosted_deployment
from ledger.emit.engines._openai import MIXED, Kind, delta_text, mapping, prompt_text, text_or_none, usage_of
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._providers import field, plain

__all__ = [
    "answer_text",
    "answer_usage",
    "cost_nano",
    "deployment_of",
    "finish_reason_of",
    "finish_reason_of_stream",
    "generates",
    "input_text_of",
    "micros",
    "parent_of",
    "partial_answer",
    "tenant_of",
    "usage_was_told",
    "was_unanswered",
]

_KINDS: dict[str, Kind] = {
    "acompletion": "chat",
    "agenerate_content": "chat",
    "agenerate_content_stream": "chat",
    "anthropic_messages": "chat",
    "aresponses": "responses",
    "atext_completion": "completions",
    "completion": "chat",
    "generate_content": "chat",
    "generate_content_stream": "chat",
    "responses": "responses",
    "text_completion": "completions",
}
"""LiteLLM's call types that generate text. Embeddings, images, speech, moderation and lists are none."""
_REDACTED = "redacted-by-litellm"
_NEVER_SENT = NEVER_SENT | {"ClientConnectorError", "ConnectionTimeoutError"}
"""Errors of ``httpx`` and ``aiohttp`` before there is a connection, among the causes of LiteLLM's."""
_UNANSWERED = {"ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "RemoteProtocolError"}
"""Errors of ``httpx`` after that."""
_LATE = {"Timeout", "APITimeoutError", "TimeoutException", "TimeoutError"}
"""Those of either, where no cause tells more: LiteLLM's own among them."""
_MAX_CAUSES = 16
_NANO = 1_000_000_000
_US_PER_S = 1_000_000
_DEFAULT_USER = "default_user_id"
"""LiteLLM's name for whoever uses the proxy's master key."""
_is_uuid7 = re.compile(UUID7).fullmatch


def generates(kwargs: Mapping[str, Any]) -> Kind | None:
    """The kind of generation that a call is; None for calls that generate no tokens."""
    call_type = kwargs.get("call_type")
    return _KINDS.get(call_type) if isinstance(call_type, str) else None


# --- who and what ----------------------------------------------------------------------------------------


def deployment_of(kwargs: Mapping[str, Any], answered_as: str | None) -> Deployment:
    """What generated: the provider, model and host that LiteLLM chose, not the alias that was asked for."""
    provider = text_or_none(kwargs.get("custom_llm_provider")) or "unknown"
    asked = text_or_none(kwargs.get("model"))
    return hosted_deployment(
        provider,
        asked or "unknown",
        answered_as=answered_as,
        api_base=_api_base(kwargs),
        region=_region(kwargs),
    )


def _api_base(kwargs: Mapping[str, Any]) -> str | None:
    for place in (kwargs.get("litellm_params"), kwargs.get("additional_args")):
        base = mapping(place).get("api_base")
        if isinstance(base, str) and base:
            return base
        if isinstance(host := field(base, "host"), str) and host:  # httpx's parsed URL
            return host if type(port := field(base, "port")) is not int else f"{host}:{port}"
    return None


def _region(kwargs: Mapping[str, Any]) -> str | None:
    options = mapping(kwargs.get("optional_params"))
    return text_or_none(options.get("aws_region_name")) or text_or_none(options.get("vertex_location"))


def metadata_of(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The call's metadata: the caller's in the SDK, the proxy's own and the caller's in the proxy."""
    params = mapping(kwargs.get("litellm_params"))
    return mapping(params.get("metadata")) or mapping(params.get("litellm_metadata"))


def tenant_of(kwargs: Mapping[str, Any]) -> str | None:
    """Who asked: the proxy's team, else its user, else its key; in the SDK ``user``; None if nobody is named.

    The key's hash is written so that the recorder makes a pseudonym of it: a plain hash of a weak key could
    be guessed from a public log.
    """
    metadata = metadata_of(kwargs)
    for name in ("user_api_key_team_id", "user_api_key_user_id"):
        who = text_or_none(metadata.get(name))
        if who is not None and who != _DEFAULT_USER:
            return who
    key = text_or_none(metadata.get("user_api_key_hash")) or text_or_none(metadata.get("user_api_key"))
    if key is not None:
        return f"key {key}"
    return text_or_none(kwargs.get("user")) or text_or_none(
        mapping(kwargs.get("optional_params")).get("user")
    )


def parent_of(kwargs: Mapping[str, Any]) -> str | None:
    """The record that caused this one: ``metadata={"tallystick_parent": id}``."""
    metadata = metadata_of(kwargs)
    for place in (metadata, mapping(metadata.get("requester_metadata"))):
        parent = place.get("tallystick_parent")
        if isinstance(parent, str) and _is_uuid7(parent):
            return parent
    return None


# --- what was said -----------------------------------------------------------------------------------------


def input_text_of(kind: Kind, kwargs: Mapping[str, Any], said: Mapping[str, Any]) -> str | None:
    """What stands for the prompt: ``_openai.prompt_text`` of what was sent; None if it is hidden.

    Args:
        kind: of generation.
        kwargs: LiteLLM's; they have the messages of a chat.
        said: ``prompt``, ``input`` and ``instructions`` of the request, for the other kinds.
    """
    if kind != "chat":
        return prompt_text(kind, said)
    messages = kwargs.get("messages")
    if not isinstance(messages, list):
        return None
    plain_ones = [_plain_message(each) for each in messages]
    if any(each.get("content") == _REDACTED for each in plain_ones):
        return None
    tools = mapping(kwargs.get("optional_params")).get("tools")
    return prompt_text("chat", {"messages": plain_ones, "tools": tools})


def _plain_message(message: Any) -> Mapping[str, Any]:
    """A message as a dict. SDK users pass back the message objects of earlier answers."""
    if isinstance(message, dict):
        return message
    dump = getattr(message, "model_dump", None)
    return mapping(dump(exclude_none=True, warnings=False)) if callable(dump) else {}


def answer_text(answer: Any) -> str | None:
    """The text of a whole answer, as ``_openai`` defines it; None if it is hidden or of another shape."""
    choices = field(answer, "choices")
    if not isinstance(choices, list):
        return None
    parts = []
    for choice in choices:
        message = field(choice, "message")
        text = field(choice, "text") if message is None else _message_text(message)
        if text == _REDACTED:
            return None
        parts.append(text if isinstance(text, str) else "")
    return "".join(parts)


def _message_text(message: Any) -> str:
    calls = field(message, "tool_calls")
    single = field(message, "function_call")
    return delta_text(
        {
            "reasoning_content": field(message, "reasoning_content"),
            "content": field(message, "content"),
            "refusal": field(message, "refusal"),
            "tool_calls": [{"function": _function(field(call, "function"))} for call in calls]
            if isinstance(calls, list)
            else None,
            "function_call": None if single is None else _function(single),
        }
    )


def _function(function: Any) -> dict[str, Any]:
    return {"name": field(function, "name"), "arguments": field(function, "arguments")}


def answer_usage(answer: Any) -> Usage | None:
    """The usage of an answer: LiteLLM has OpenAI's fields for every provider."""
    return usage_of(plain(field(answer, "usage")))


def finish_reason_of(answer: Any) -> str | None:
    """Of all choices; ``mixed`` where they differ; a response's status where it has no choices."""
    choices = field(answer, "choices")
    if not isinstance(choices, list) or not choices:
        status = text_or_none(field(answer, "status"))
        return "stop" if status == "completed" else status
    reasons = {text_or_none(field(choice, "finish_reason")) for choice in choices}
    return reasons.pop() if len(reasons) == 1 else MIXED


# --- streams ---------------------------------------------------------------------------------------------


def finish_reason_of_stream(chunks: Sequence[Any]) -> str | None:
    """The last that the chunks had; None if the stream did not come to an end."""
    reasons = (finish_reason_of(chunk) for chunk in reversed(chunks))
    return next((reason for reason in reasons if reason is not None), None)


def usage_was_told(chunks: Iterable[Any]) -> bool:
    """Whether a stream's chunks had usage: if none had, LiteLLM counted with a tokenizer of its own."""
    usages = (usage_of(plain(field(chunk, "usage"))) for chunk in chunks)
    return any(usage is not None and (usage.input_tokens or usage.output_tokens) for usage in usages)


def partial_answer(chunks: Iterable[Any]) -> Answer:
    """What the chunks of a stream have shown so far."""
    answer = Answer()
    for chunk in chunks:
        dump = getattr(chunk, "model_dump", None)
        body = dump(exclude_none=True, warnings=False) if callable(dump) else chunk
        if isinstance(body, dict):
            answer.feed(body, streamed=True)
    return answer


def was_unanswered(error: Any) -> bool:
    """Whether a failed call may have generated all the same: the provider had it, and did not answer."""
    late = False
    for _ in range(_MAX_CAUSES):
        if not isinstance(error, BaseException):
            break
        names = {each.__name__ for each in type(error).__mro__}
        if names & _NEVER_SENT:
            return False
        if names & _UNANSWERED:
            return True
        late = late or bool(names & _LATE)
        error = error.__cause__ or error.__context__
    return late


# --- figures ---------------------------------------------------------------------------------------------


def cost_nano(value: Any) -> int | None:
    """Billionths of a dollar from LiteLLM's ``response_cost``, a float: by the digits that it prints as.

    LiteLLM gives 0 for models without a known price as well as for free ones, so 0 counts as unknown.
    """
    if type(value) not in (float, int, Decimal) or not value > 0:
        return None
    try:
        nano = (Decimal(repr(value) if type(value) is float else value) * _NANO).quantize(
            Decimal(1), rounding=ROUND_HALF_EVEN
        )
    except InvalidOperation:  # infinite, or too large for the context
        return None
    return int(nano) if 0 < nano <= MAX_SAFE_INTEGER else None


def micros(when: Any) -> int | None:
    """Unix microseconds of LiteLLM's times: naive datetimes of the local clock, or seconds."""
    try:
        if isinstance(when, datetime):
            return round(when.timestamp() * _US_PER_S)
        return round(when * _US_PER_S) if type(when) in (int, float) else None
    except (OverflowError, ValueError, OSError):
        return None
