"""Owns what is particular to Hugging Face Text Generation Inference (TGI), behind the proxy.

Written after the source of TGI 3.3.7 (router/src/lib.rs and server.rs). Its server is a program of its own,
so it is recorded by ``tallystick proxy``; its OpenAI routes are read as any server's. Its own are read here,
``/generate``, ``/generate_stream`` and ``/``:

- streamed, each event has one token with its id; the last has ``details`` with ``input_length`` and
  ``generated_tokens``, if ``parameters.details`` asks for them;
- not streamed, ``details.tokens`` has the ids; the headers ``x-prompt-tokens`` and ``x-generated-tokens``
  have the counts. ``prefill`` has the prompt's ids if ``decoder_input_details`` asks; that is not asked for
  here, since the server then computes log-probabilities of the whole prompt;
- ``best_of`` generates several and shows one: its tokens are what the server counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from ledger.core.records import Deployment, Usage, Weights
from ledger.emit.engines._openai import Body, Request, is_count, mapping, model_name, text_or_none
from ledger.emit.engines._openai_answer import Answer, Choice
from ledger.emit.engines._wire import Added, Asking, Wire

__all__ = ["deployment_of", "wire_of"]

_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}
_COMMIT_CHARS = 40


def deployment_of(info: Mapping[str, Any]) -> Deployment | None:
    """The deployment that ``GET /info`` tells of; None if it is not TGI's."""
    model, router = model_name(info.get("model_id")), text_or_none(info.get("router"))
    if model is None or not (router or "").startswith("text-generation-router"):
        return None
    sha = text_or_none(info.get("model_sha"))
    known = sha is not None and len(sha) == _COMMIT_CHARS
    return Deployment(
        model=model,
        engine="tgi",
        engine_version=text_or_none(info.get("version")) or UNSET,
        weights=Weights(method="hub-revision", digest=sha) if known and sha is not None else UNSET,
    )


def wire_of(path: str) -> Wire | None:
    """How a request to TGI's own routes is read."""
    path = path.rstrip("/")
    if path.endswith("/generate_stream"):
        return _STREAM
    return _EITHER if path in ("", "/generate") or path.endswith("/generate") else None


def _read(body: Mapping[str, Any]) -> Request:
    return Request(
        kind="completions",
        model=None,
        stream=body.get("stream") is True,
        wants_usage=False,
        choices=1,
        input_ids=None,
        input_text=text_or_none(body.get("inputs")),
    )


def _ask(body: Body, asking: Asking) -> tuple[Body, Added]:
    given = body.get("parameters")
    if not asking.ids or not isinstance(given, (dict, type(None))) or mapping(given).get("details") is True:
        return {}, Added()
    more = {"parameters": {**(given or {}), "details": True}}
    # Events of a stream have the field either way.
    return more, Added(fields=frozenset({"details"}), nulls=frozenset({"details"}))


def _headers(answer: Answer, headers: Mapping[bytes, bytes]) -> None:
    prompt, generated = headers.get(b"x-prompt-tokens", b""), headers.get(b"x-generated-tokens", b"")
    if prompt.isdigit() and generated.isdigit() and is_count(int(prompt)) and is_count(int(generated)):
        answer.usage = Usage(input_tokens=int(prompt), output_tokens=int(generated))


def _feed(answer: Answer, body: Mapping[str, Any], *, streamed: bool = False) -> None:
    items = body.get("items")  # ``/`` answers with a list of one
    for each in items if isinstance(items, list) else [body]:
        _take(answer, mapping(each), streamed)


def _take(answer: Answer, body: Mapping[str, Any], streamed: bool) -> None:
    if body.get("error"):
        answer.failed = True
        return
    choice, details = answer.choice(0), mapping(body.get("details"))
    if streamed:
        token = mapping(body.get("token"))
        answer.add_ids(choice, [token.get("id")])
        if token.get("special") is not True:
            answer.add_text(choice, text_or_none(token.get("text")) or "")
    else:
        answer.add_ids(choice, _ids(details.get("tokens")))
        choice.prompt_ids = _ids(details.get("prefill")) or None
    text = body.get("generated_text")
    if isinstance(text, str):
        answer.forget_text()
        answer.add_text(choice, text)
        # The last event of a stream that tells no details has no reason either.
        _finish(answer, choice, details)


def _finish(answer: Answer, choice: Choice, details: Mapping[str, Any]) -> None:
    reason = text_or_none(details.get("finish_reason"))
    choice.finish_reason = _REASONS.get(reason or "", reason) or "stop"
    inputs, outputs = details.get("input_length"), details.get("generated_tokens")
    if is_count(inputs) and is_count(outputs):
        answer.usage = Usage(input_tokens=inputs, output_tokens=outputs)


def _ids(tokens: Any) -> list[Any]:
    return [mapping(token).get("id") for token in tokens] if isinstance(tokens, list) else []


_EITHER = Wire(_read, _feed, _ask, _headers)
_STREAM = Wire(lambda body: _read({**body, "stream": True}), _feed, _ask)
