"""Owns how the native APIs of Anthropic and Gemini are read: request, whole answer, events of a stream. Pure.

By the SDKs' own types: ``anthropic`` 2.12 (``Message``, ``RawMessageStreamEvent``) and ``google-genai`` 3.4
(``GenerateContentResponse``). What stands for the prompt is JSON with sorted keys and without spaces:
``system``, ``messages`` and ``tools`` of the one, ``systemInstruction``, ``contents`` and ``tools`` of the
other. The text of an answer is thoughts, text, and name and arguments of calls, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from ledger.emit.engines._openai import Request, is_count, mapping, text_or_none
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._providers import anthropic_usage, gemini_usage, merged_anthropic
from ledger.emit.engines._wire import Added, Asking, Wire

__all__ = ["anthropic_wire", "gemini_model", "gemini_wire"]

_REASONS = {
    "end_turn": "stop",
    "max_tokens": "length",
    "stop": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
}
"""Reasons that have a name of their own in records; others keep theirs, in lower case."""
_encoder = msgspec.json.Encoder(order="sorted")
_GEMINI = re.compile(r"/models/([^/:]+):(stream)?[gG]enerateContent$").search


def _reason(value: Any) -> str | None:
    said = text_or_none(value)
    return None if said is None else _REASONS.get(said.lower(), said.lower())


def _said(body: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    said = {name: body[name] for name in names if body.get(name) is not None}
    try:
        return _encoder.encode(said).decode() if said else None
    except (TypeError, ValueError, RecursionError):
        return None


def _json(value: Any) -> str:
    return "" if value is None else _encoder.encode(value).decode()


def _no_more(_body: dict[str, Any], _asking: Asking) -> tuple[dict[str, Any], Added]:
    return {}, Added()  # both tell usage unasked


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [mapping(each) for each in value] if isinstance(value, list) else []


# --- Anthropic -------------------------------------------------------------------------------------------


def anthropic_wire(path: str) -> Wire | None:
    """How one request to ``/v1/messages``, and its answer, are read; None for other paths."""
    if not path.rstrip("/").endswith("/v1/messages"):
        return None
    told: dict[str, Any] = {}

    def feed(answer: Answer, body: Mapping[str, Any], *, streamed: bool = False) -> None:
        if not streamed:
            _take_message(answer, body)
            return
        told.update(merged_anthropic(told, body))
        _take_event(answer, body)
        if body.get("type") == "message_delta":  # before, the output is not counted yet
            answer.usage = anthropic_usage(told) or answer.usage

    return Wire(_read_messages, feed, _no_more)


def _read_messages(body: Mapping[str, Any]) -> Request:
    return Request(
        kind="chat",
        model=text_or_none(body.get("model")),
        stream=body.get("stream") is True,
        wants_usage=True,
        choices=1,
        input_ids=None,
        input_text=_said(body, ("system", "messages", "tools")),
    )


def _name(answer: Answer, message: Mapping[str, Any]) -> None:
    answer.request_id = text_or_none(message.get("id")) or answer.request_id
    answer.model = text_or_none(message.get("model")) or answer.model


def _take_message(answer: Answer, body: Mapping[str, Any]) -> None:
    if body.get("type") == "error":
        answer.failed = True
        return
    _name(answer, body)
    choice = answer.choice(0)
    for block in _rows(body.get("content")):
        answer.add_text(choice, _block_text(block))
        if block.get("input") is not None:
            answer.add_text(choice, _json(block["input"]))
    choice.finish_reason = _reason(body.get("stop_reason"))
    answer.usage = anthropic_usage(body.get("usage"))


def _block_text(block: Mapping[str, Any]) -> str:
    names = ("thinking", "text") if block.get("type") in ("thinking", "text") else ("name",)
    return "".join(text for name in names if isinstance(text := block.get(name), str))


def _take_event(answer: Answer, event: Mapping[str, Any]) -> None:
    kind, choice = event.get("type"), answer.choice(0)
    if kind == "message_start":
        _name(answer, mapping(event.get("message")))
    elif kind == "content_block_start":
        answer.add_text(choice, _block_text(mapping(event.get("content_block"))))
    elif kind == "content_block_delta":
        delta = mapping(event.get("delta"))
        for name in ("thinking", "text", "partial_json"):
            answer.add_text(choice, text_or_none(delta.get(name)) or "")
    elif kind == "message_delta":
        reason = _reason(mapping(event.get("delta")).get("stop_reason"))
        choice.finish_reason = reason or choice.finish_reason
    elif kind == "error":
        answer.failed = True


# --- Gemini ----------------------------------------------------------------------------------------------


def gemini_model(path: str) -> str | None:
    """The model that a request to ``generateContent`` or ``streamGenerateContent`` names in its path."""
    found = _GEMINI(path)
    return None if found is None else found[1]


def gemini_wire(path: str) -> Wire | None:
    """How one request that generates content, and its answer, are read; None for other paths."""
    found = _GEMINI(path)
    if found is None:
        return None
    model, streams = found[1], found[2] is not None

    def read(body: Mapping[str, Any]) -> Request:
        config = mapping(body.get("generationConfig"))
        count = config.get("candidateCount")
        return Request(
            kind="chat",
            model=model,
            stream=streams,
            wants_usage=True,
            choices=count if is_count(count) and count else 1,
            input_ids=None,
            input_text=_said(body, ("systemInstruction", "contents", "tools")),
        )

    return Wire(read, _feed_content, _no_more)


def _feed_content(answer: Answer, body: Mapping[str, Any], *, streamed: bool = False) -> None:  # noqa: ARG001
    items = body.get("items")
    for each in _rows(items) if items is not None else [body]:
        _take_content(answer, each)


def _take_content(answer: Answer, body: Mapping[str, Any]) -> None:
    if body.get("error"):
        answer.failed = True
        return
    answer.request_id = text_or_none(body.get("responseId")) or answer.request_id
    answer.model = text_or_none(body.get("modelVersion")) or answer.model
    for place, candidate in enumerate(_rows(body.get("candidates"))):
        index = candidate.get("index")
        choice = answer.choice(index if type(index) is int else place)
        for part in _rows(mapping(candidate.get("content")).get("parts")):
            call = mapping(part.get("functionCall"))
            answer.add_text(choice, text_or_none(part.get("text")) or "")
            answer.add_text(choice, text_or_none(call.get("name")) or "")
            answer.add_text(choice, _json(call.get("args")))
        choice.finish_reason = _reason(candidate.get("finishReason")) or choice.finish_reason
    answer.usage = gemini_usage(body.get("usageMetadata")) or answer.usage
