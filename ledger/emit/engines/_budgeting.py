"""Owns the asking for room on the wire: what a request may use at most, and the answer where it may not."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.emit.budgets import BudgetRefusal, Budgets, refusal_body
from ledger.emit.engines._openai import Body, Request, is_count, mapping
from ledger.emit.token_estimates import tokens_in, tokens_in_bytes

__all__ = ["ask_for_room", "output_limit", "send_refusal"]

Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict", "max_new_tokens")
"""OpenAI's chats, completions and responses; llama.cpp; TGI and SGLang, which nest theirs."""
_NESTED = ("parameters", "sampling_params", "generationConfig")


def output_limit(body: Mapping[str, Any]) -> int | None:
    """The most tokens that one answer may have; None if the request does not say."""
    for place in (body, *(mapping(body.get(name)) for name in _NESTED)):
        for name in _LIMITS:
            if is_count(value := place.get(name)):
                return min(value, MAX_SAFE_INTEGER >> 20)
    return None


async def ask_for_room(
    budgets: Budgets,
    record: str,
    request: Request | None,
    body: Body | None,
    *,
    tenant: str | None,
    model: str | None,
    asked_bytes: int = 0,
) -> BudgetRefusal | None:
    """Ask for one request. Of one that cannot be read, the prompt is estimated by its ``asked_bytes``."""
    said = tokens_in_bytes(asked_bytes)
    if request is not None:
        said = (
            len(request.input_ids) if request.input_ids is not None else tokens_in(request.input_text or "")
        )
    return await budgets.areserve(
        record,
        tenant=tenant,
        model=model,
        input_tokens=said,
        output_tokens=None if body is None else output_limit(body),
        choices=1 if request is None else request.choices,
    )


async def send_refusal(send: Send, refusal: BudgetRefusal) -> None:
    """Answer with the refusal, in the form that OpenAI's clients expect."""
    data = json.dumps(refusal_body(refusal)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(data)), **refusal.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": data, "more_body": False})
