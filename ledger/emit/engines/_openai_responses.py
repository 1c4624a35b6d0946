"""Owns the reading of OpenAI's Responses API: whole responses and the events of a stream, into an ``Answer``.

The text of a response is that of its output items in order: of a reasoning item its content, or else its
summary; of a message its text and refusals; of a function call its name and arguments; of a custom tool call
its name and input. At the end of a stream the response is there as a whole and is what counts; where a stream
breaks off, what its ``delta`` events showed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ledger.emit.engines._openai import ABORT, ERROR, mapping, text_or_none, usage_of
from ledger.emit.engines._openai_answer import Answer

__all__ = ["feed_response"]

_DELTAS = {
    "response.output_text.delta",
    "response.refusal.delta",
    "response.reasoning_text.delta",
    "response.reasoning_summary_text.delta",
    "response.function_call_arguments.delta",
    "response.custom_tool_call_input.delta",
}
_ENDS = {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
_REASONS = {"max_output_tokens": "length"}


def feed_response(answer: Answer, body: Mapping[str, Any], *, streamed: bool = False) -> None:
    """Take in a whole response, or an event of a stream. ``answer`` has one choice."""
    if not streamed:
        _take(answer, body)
        return
    kind = text_or_none(body.get("type"))
    if kind in _DELTAS:
        if isinstance(delta := body.get("delta"), str):
            answer.add_text(answer.choice(0), delta)
    elif kind == "response.output_item.added":
        item = mapping(body.get("item"))
        if item.get("type") in ("function_call", "custom_tool_call"):
            answer.add_text(answer.choice(0), text_or_none(item.get("name")) or "")
    elif kind in _ENDS:
        _take(answer, mapping(body.get("response")))
    elif kind == "error" or body.get("error"):
        answer.failed = True
    elif isinstance(response := body.get("response"), dict):
        _name(answer, response)


def _name(answer: Answer, body: Mapping[str, Any]) -> None:
    answer.request_id = text_or_none(body.get("id")) or answer.request_id
    answer.model = text_or_none(body.get("model")) or answer.model


def _take(answer: Answer, body: Mapping[str, Any]) -> None:
    _name(answer, body)
    if body.get("error"):
        answer.failed = True
    status = body.get("status")
    if status in ("queued", "in_progress"):
        return  # runs in the background: nothing was generated yet
    choice = answer.choice(0)
    if isinstance(output := body.get("output"), list):
        answer.forget_text()
        for part in _parts(output):
            answer.add_text(choice, part)
    answer.usage = usage_of(body.get("usage")) or answer.usage
    choice.finish_reason = _reason(body, status) or choice.finish_reason


def _reason(body: Mapping[str, Any], status: Any) -> str | None:
    if status == "incomplete":
        why = text_or_none(mapping(body.get("incomplete_details")).get("reason")) or "incomplete"
        return _REASONS.get(why, why)
    return {"completed": "stop", "failed": ERROR, "cancelled": ABORT}.get(str(status))


def _parts(output: list[Any]) -> Iterator[str]:
    for each in output:
        item = mapping(each)
        kind = item.get("type")
        if kind in ("function_call", "custom_tool_call"):
            found = [item.get("name"), item.get("arguments" if kind == "function_call" else "input")]
        else:
            rows = item.get("content") or (item.get("summary") if kind == "reasoning" else None)
            parts = [mapping(part) for part in rows] if isinstance(rows, list) else []
            found = [part.get("text", part.get("refusal")) for part in parts]
        yield from (text for text in found if isinstance(text, str))
