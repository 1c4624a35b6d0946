"""Owns the reading of OpenAI-compatible traffic: what a request asks for and what an answer has shown.

Pure: JSON values in, facts out. By OpenAI's API reference (chat completions, completions, responses) and the
extensions of vLLM 0.32 (``token_ids``, ``prompt_token_ids``, usage on each chunk), SGLang 0.5
(likewise) and llama.cpp (``__verbose``, ``timings``). Everything read here comes from another program: a
value of another type than expected counts as absent, nothing raises, and what is kept is bounded.

The text of an answer, where ids are not visible: for each choice the reasoning, the content, and the name and
arguments of tool calls, concatenated in the order of arrival; the choices of one answer follow each other
in the order of their index. Token ids likewise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard

import msgspec
from msgspec import UNSET

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.records import Usage

__all__ = [
    "ABORT",
    "ERROR",
    "MIXED",
    "Body",
    "Kind",
    "Request",
    "are_ids",
    "delta_text",
    "is_count",
    "kind_of",
    "mapping",
    "model_name",
    "prompt_text",
    "read_answer",
    "read_json",
    "read_leniently",
    "read_request",
    "text_or_none",
    "usage_of",
]

Kind: TypeAlias = Literal["chat", "completions", "responses"]
Body: TypeAlias = dict[str, Any]

ABORT = "abort"
"""The client went away. The tokens are those that the server had sent by then."""
ERROR = "error"
"""The server failed after it had sent tokens."""
MIXED = "mixed"
"""The choices of one answer ended for different reasons."""

MAX_CHOICES = 4096
"""Choices of one answer that are told apart."""
_MAX_TOKEN = 2**32 - 1

_SUFFIXES: tuple[tuple[str, Kind], ...] = (
    ("/chat/completions", "chat"),
    ("/completions", "completions"),
    ("/responses", "responses"),
)
_MAX_LENIENT_BYTES = 8 << 20
"""Longest text that is read again leniently: that takes ten times as long, in a loop that serves others."""
_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder(order="sorted")


def kind_of(path: str) -> Kind | None:
    """The kind of generation that a POST to ``path`` asks for; None for all others, embeddings too.

    The end of the path decides: ``/v1/chat/completions``, a mounted ``/api/chat/completions``, and Azure's
    ``/openai/deployments/NAME/chat/completions``.
    """
    path = path.rstrip("/")
    return next((kind for suffix, kind in _SUFFIXES if path.endswith(suffix)), None)


def read_json(data: bytes | bytearray | memoryview) -> Body | None:
    """The JSON object that ``data`` holds, or None."""
    try:
        value = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_leniently(data: bytes | bytearray) -> Body | None:
    """The JSON object that ``data`` holds by Python's own rules, which many servers read by.

    They know NaN and infinity, halves of surrogate pairs and UTF-16; here those values are null, and the
    halves question marks, so that what is read is plain JSON.
    """
    value = _leniently(data)
    return value if isinstance(value, dict) else None


def _leniently(data: bytes | bytearray) -> Any:
    if len(data) > _MAX_LENIENT_BYTES:
        return None
    try:
        value = json.loads(data, parse_constant=_nothing, parse_float=_finite)
        return _decoder.decode(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None


def _nothing(_name: str) -> None:
    return None


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def read_answer(data: bytes | bytearray) -> Body | None:
    """The JSON object that ``data`` holds, or a list of some as the field ``items`` of one; else None."""
    try:
        value = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = _leniently(data)
    return {"items": value} if isinstance(value, list) else value if isinstance(value, dict) else None


# --- requests --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a request asks for.

    Attributes:
        kind: of generation.
        model: as the client names it.
        stream: whether the answer shall be a stream of events.
        wants_usage: whether the stream shall end with a chunk that has the usage.
        choices: how many for each prompt.
        input_ids: the prompt where it is given as token ids.
        input_text: else, what stands for the prompt: see ``prompt_text``.
    """

    kind: Kind
    model: str | None
    stream: bool
    wants_usage: bool
    choices: int
    input_ids: tuple[int, ...] | None
    input_text: str | None


def read_request(kind: Kind, body: Mapping[str, Any]) -> Request:
    """Read a request's body."""
    options = mapping(body.get("stream_options"))
    count = body.get("n")
    ids = _prompt_ids(body.get("prompt")) if kind == "completions" else None
    return Request(
        kind=kind,
        model=text_or_none(body.get("model")),
        stream=body.get("stream") is True,
        wants_usage=options.get("include_usage") is True,
        choices=count if type(count) is int and 0 < count <= MAX_CHOICES else 1,
        input_ids=ids,
        input_text=None if ids is not None else prompt_text(kind, body),
    )


def prompt_text(kind: Kind, body: Mapping[str, Any]) -> str | None:
    """What stands for the prompt where its token ids are not visible, so that whoever sent it can show it.

    A completion's prompt as it is, several one after another. Else JSON with sorted keys and without spaces:
    ``messages`` and ``tools`` of a chat, ``instructions``, ``input`` and ``tools`` of a response.
    """
    if kind == "completions":
        prompt = body.get("prompt")
        if isinstance(prompt, list) and prompt and all(isinstance(each, str) for each in prompt):
            return "".join(prompt)
        return text_or_none(prompt)
    names = ("messages", "tools") if kind == "chat" else ("instructions", "input", "tools")
    said = {name: body[name] for name in names if body.get(name) is not None}
    if not said:
        return None
    try:
        return _encoder.encode(said).decode()
    except (TypeError, ValueError, RecursionError):
        return None


def _prompt_ids(prompt: Any) -> tuple[int, ...] | None:
    """The ids of a prompt, or of several one after another; None where there is text."""
    if not isinstance(prompt, list) or not prompt:
        return None
    rows = prompt if all(isinstance(each, list) for each in prompt) else [prompt]
    ids = [each for row in rows for each in row]
    return tuple(ids) if ids and are_ids(ids) else None


# --- usage -----------------------------------------------------------------------------------------------


def usage_of(value: Any) -> Usage | None:
    """OpenAI's ``usage``, of chat completions, completions or responses; None if it has no counts.

    ``accepted_prediction_tokens`` and ``rejected_prediction_tokens`` (predicted outputs) are drafted tokens.
    Reasoning is among the output tokens. Some servers (xAI) count it beside them, which shows in
    ``total_tokens``, or in more reasoning than output: then it is added.
    """
    usage = mapping(value)
    if "prompt_tokens" in usage:
        inputs, outputs = usage.get("prompt_tokens"), usage.get("completion_tokens")
        inputs_of = mapping(usage.get("prompt_tokens_details"))
        outputs_of = mapping(usage.get("completion_tokens_details"))
    else:
        inputs, outputs = usage.get("input_tokens"), usage.get("output_tokens")
        inputs_of = mapping(usage.get("input_tokens_details"))
        outputs_of = mapping(usage.get("output_tokens_details"))
    if not is_count(inputs) or not (is_count(outputs) or outputs is None):
        return None
    cached = inputs_of.get("cached_tokens")
    reasoning = outputs_of.get("reasoning_tokens", usage.get("reasoning_tokens"))
    made = outputs or 0
    if is_count(reasoning) and (
        reasoning > made or (reasoning and usage.get("total_tokens") == inputs + made + reasoning)
    ):
        made += reasoning
    if made > MAX_SAFE_INTEGER:
        return None
    accepted = outputs_of.get("accepted_prediction_tokens")
    rejected = outputs_of.get("rejected_prediction_tokens")
    drafted = accepted + rejected if is_count(accepted) and is_count(rejected) else 0
    return Usage(
        input_tokens=inputs,
        output_tokens=made,
        cached_input_tokens=cached if is_count(cached) and cached <= inputs else UNSET,
        reasoning_tokens=reasoning if is_count(reasoning) else UNSET,
        drafted_tokens=drafted or UNSET,
        accepted_tokens=accepted if drafted and is_count(accepted) else UNSET,
    )


# --- messages -----------------------------------------------------------------------------------------------


def delta_text(delta: Any) -> str:
    """The text of a chat message or of a part of one: reasoning, content, tool calls, in this order."""
    if isinstance(delta, dict) and len(delta) == 1 and isinstance(content := delta.get("content"), str):
        return content  # as most chunks of a stream
    return "".join(_delta_parts(mapping(delta)))


def _delta_parts(delta: Mapping[str, Any]) -> Iterator[str]:
    # vLLM renamed ``reasoning_content`` to ``reasoning``; servers that send both repeat themselves.
    for value in (delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")):
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (part["text"] for part in value if isinstance(mapping(part).get("text"), str))
    if isinstance(refusal := delta.get("refusal"), str):
        yield refusal
    calls = delta.get("tool_calls")
    functions = [mapping(call).get("function") for call in calls] if isinstance(calls, list) else []
    for function in (*functions, delta.get("function_call")):
        for name in ("name", "arguments"):
            if isinstance(value := mapping(function).get(name), str):
                yield value


# --- values of foreign types -----------------------------------------------------------------------------


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def model_name(value: Any) -> str | None:
    """The name of a model; of a path only the last part, since where it lies is nobody's business."""
    name = text_or_none(value)
    if name is not None and name.startswith(("/", ".", "~")):
        name = name.rstrip("/").rpartition("/")[2]
    return name or None


def is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_SAFE_INTEGER


def are_ids(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int and 0 <= each <= _MAX_TOKEN for each in value)
