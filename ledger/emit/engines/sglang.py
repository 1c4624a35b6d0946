"""Owns what is particular to SGLang, behind the proxy or the middleware.

Written after the source of SGLang 0.5.23 (srt/entrypoints/http_server.py, openai/*, managers/io_struct.py
and tokenizer_manager.py). Its OpenAI routes are read as any server's, with the ids that it shows in
``sglext`` and ``token_ids``. Its own route is read here, ``/generate``: each answer has ``output_ids`` and
``meta_info`` with ``prompt_tokens``, ``completion_tokens``, ``cached_tokens`` and ``reasoning_tokens``.
Chunks of a stream repeat all that came before, unless the server streams increments; ``completion_tokens``
tells which. The prompt's ids are shown if ``return_prompt_token_ids`` asks for them. Several prompts or
samples are answered by a list, and in a stream by chunks with an ``index``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from ledger.core.records import Deployment, Speculative, Usage
from ledger.emit.engines._openai import (
    MAX_CHOICES,
    Body,
    Request,
    are_ids,
    is_count,
    mapping,
    model_name,
    read_request,
    text_or_none,
)
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._wire import Added, Asking, Wire

__all__ = ["deployment_of", "wire_of"]


def deployment_of(info: Mapping[str, Any]) -> Deployment | None:
    """The deployment that ``GET /server_info`` tells of; None if it is not SGLang's."""
    model = model_name(info.get("served_model_name")) or model_name(info.get("model_path"))
    if model is None or "tp_size" not in info:
        return None
    algorithm = text_or_none(info.get("speculative_algorithm"))
    tokens = info.get("speculative_num_draft_tokens")
    tensor, pipeline = info.get("tp_size"), info.get("pp_size")
    return Deployment(
        model=model,
        version=text_or_none(info.get("revision")) or UNSET,
        engine="sglang",
        engine_version=text_or_none(info.get("version")) or UNSET,
        quantization=text_or_none(info.get("quantization")) or UNSET,
        attention=text_or_none(info.get("attention_backend")) or UNSET,
        speculative=UNSET
        if algorithm is None
        else Speculative(
            method=algorithm.lower(),
            model=model_name(info.get("speculative_draft_model_path")) or UNSET,
            tokens=tokens if is_count(tokens) else UNSET,
        ),
        tensor_parallel=tensor if is_count(tensor) else UNSET,
        pipeline_parallel=pipeline if is_count(pipeline) else UNSET,
    )


def wire_of(path: str) -> Wire | None:
    """How a request to SGLang's own route is read."""
    return _GENERATE if path.rstrip("/").endswith("/generate") else None


def _read(body: Mapping[str, Any]) -> Request:
    parameters = body.get("sampling_params")
    first = parameters[0] if isinstance(parameters, list) and parameters else parameters
    prompt = body.get("input_ids") if body.get("text") is None else body.get("text")
    return read_request("completions", {**body, "prompt": prompt, "n": mapping(first).get("n")})


def _ask(body: Body, asking: Asking) -> tuple[Body, Added]:
    if not asking.ids or body.get("return_prompt_token_ids") is True or body.get("input_ids") is not None:
        return {}, Added()
    return {"return_prompt_token_ids": True}, Added(fields=frozenset({"prompt_token_ids"}))


def _feed(answer: Answer, body: Mapping[str, Any], *, streamed: bool = False) -> None:  # noqa: ARG001
    items = body.get("items")
    rows = items[:MAX_CHOICES] if isinstance(items, list) else [body]
    for place, each in enumerate(rows):
        _take(answer, mapping(each), place)


def _take(answer: Answer, body: Mapping[str, Any], place: int) -> None:
    if body.get("error"):
        answer.failed = True
        return
    index, about = body.get("index"), mapping(body.get("meta_info"))
    index = index if type(index) is int else place
    choice = answer.choice(index)
    ids, count = body.get("output_ids"), about.get("completion_tokens")
    if are_ids(ids) and len(ids) == count:  # all so far
        answer.forget(choice)
    if (text := text_or_none(body.get("text"))) is not None:
        answer.add_text(choice, text)
    answer.add_ids(choice, ids)
    if are_ids(prompt := body.get("prompt_token_ids")):
        choice.prompt_ids = prompt
    answer.request_id = answer.request_id or text_or_none(about.get("id"))
    inputs, cached, reasoning = (about.get(f"{name}_tokens") for name in ("prompt", "cached", "reasoning"))
    if is_count(inputs) and is_count(count):
        usage = Usage(
            input_tokens=inputs,
            output_tokens=count,
            cached_input_tokens=cached if is_count(cached) and cached <= inputs else UNSET,
            reasoning_tokens=reasoning if is_count(reasoning) else UNSET,
        )
        answer.count(index, usage)
    reason = about.get("finish_reason")
    choice.finish_reason = (
        text_or_none(mapping(reason).get("type")) or text_or_none(reason) or choice.finish_reason
    )


_GENERATE = Wire(_read, _feed, _ask)
