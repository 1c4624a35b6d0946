"""Owns what is particular to llama.cpp's HTTP server, ``llama-server``, behind the proxy.

Written after the source of llama.cpp (tools/server) and its answers, build 11549. Its OpenAI routes are read
as any server's, with the ids and counts that ``verbose``, ``return_tokens`` and ``timings_per_token`` show.
Its own are read here: ``/completion``, ``/completions`` and ``/infill``, whose answers and chunks have
``tokens``, ``tokens_evaluated`` (of the whole prompt) and ``tokens_predicted``.

Of several choices that are not streamed, the server reports the usage of the first only. That is what is
recorded, beside a commitment to the text of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ledger.core.records import Deployment, Usage
from ledger.emit.engines._openai import Body, Request, is_count, mapping, read_request, text_or_none
from ledger.emit.engines._openai_answer import Answer, timed_usage
from ledger.emit.engines._wire import Added, Asking, Wire

__all__ = ["deployment_of", "model_file", "wire_of"]

_REASONS = {"eos": "stop", "word": "stop", "limit": "length"}
_NATIVE = ("/completion", "/infill")


def deployment_of(props: Mapping[str, Any]) -> Deployment | None:
    """The deployment that ``GET /props`` tells of; None if it is not llama-server's."""
    path = text_or_none(props.get("model_path"))
    if path is None or "default_generation_settings" not in props:
        return None
    alias = text_or_none(props.get("model_alias"))
    build = text_or_none(props.get("build_info"))
    return Deployment(
        model=alias if alias is not None and alias != path else Path(path).stem,
        engine="llama.cpp",
        engine_version=build or UNSET,
        quantization=text_or_none(props.get("model_ftype")) or UNSET,
    )


def model_file(props: Mapping[str, Any]) -> Path | None:
    """The model's file, if the server runs on this machine."""
    path = text_or_none(props.get("model_path"))
    return Path(path) if path is not None and Path(path).is_file() else None


def wire_of(path: str) -> Wire | None:
    """How a request to llama-server's own routes is read."""
    path = path.rstrip("/")
    return _OWN if path.endswith(_NATIVE) or path == "/completions" else None


def _read(body: Mapping[str, Any]) -> Request:
    return read_request("completions", {**body, "n": body.get("n_cmpl")})


def _ask(body: Body, asking: Asking) -> tuple[Body, Added]:
    if not asking.ids or body.get("return_tokens") is True:
        return {}, Added()
    return {"return_tokens": True}, Added()  # the field is there either way, empty


def _feed(answer: Answer, body: Mapping[str, Any], *, streamed: bool = False) -> None:  # noqa: ARG001
    items = body.get("items")
    for place, each in enumerate(items if isinstance(items, list) else [body]):
        _take(answer, mapping(each), place)


def _take(answer: Answer, body: Mapping[str, Any], place: int) -> None:
    if body.get("error"):
        answer.failed = True
        return
    answer.model = text_or_none(body.get("model")) or answer.model
    if body.get("prompt_progress"):
        return  # belongs to no token
    index = body.get("index")
    index = index if type(index) is int else place
    choice = answer.choice(index)
    answer.add_text(choice, text_or_none(body.get("content")) or "")
    answer.add_ids(choice, body.get("tokens"))
    inputs, outputs = body.get("tokens_evaluated"), body.get("tokens_predicted")
    timed = timed_usage(mapping(body.get("timings")))
    if timed is not None:
        answer.count(index, timed)
    elif is_count(inputs) and is_count(outputs):
        answer.count(index, Usage(input_tokens=inputs, output_tokens=outputs))
    if body.get("stop") is True:
        reason = text_or_none(body.get("stop_type"))
        choice.finish_reason = _REASONS.get(reason or "", "stop")


_OWN = Wire(_read, _feed, _ask)
