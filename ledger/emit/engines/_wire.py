"""Owns what is done to a request so that its answer tells more, and undone to the answer.

Without being asked, a server streams no usage and shows no token ids. So what asks for them is added to the
request where the client did not ask itself, and what the client did not ask for is taken out of the answer:

- every stream of chat or completions: ``stream_options.include_usage`` (OpenAI's API reference), unless that
  is switched off for a server that refuses it, or the engine tells the counts otherwise;
- vLLM (0.32; its pull request 22587 of August 2025 brought it): ``return_token_ids``;
- SGLang (0.5): ``return_input_ids_in_sglext`` and ``return_output_ids_in_sglext`` of chats, which are shown
  at the end, and ``return_token_ids`` of completions; ``stream_options.continuous_usage_stats``;
- llama.cpp's server: ``return_tokens`` with ``verbose``, and ``timings_per_token`` of streams, which count
  what an aborted stream has shown.

Pure. The client's own bytes stay as they are: additions are put in front of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import msgspec

from ledger.emit.engines._openai import Body, Kind, Request, mapping, read_request
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._openai_responses import feed_response

__all__ = ["ENGINES", "INVOCATIONS", "OPENAI", "Added", "Asking", "Feed", "Wire", "hide", "with_additions"]


class Feed(Protocol):
    """Takes a whole answer, or a chunk of a stream, into an ``Answer``."""

    def __call__(self, answer: Answer, body: Mapping[str, Any], /, *, streamed: bool = False) -> None: ...


class Ask(Protocol):
    """Tells what to add to a request, and what comes of that."""

    def __call__(self, body: Body, asking: Asking, /) -> tuple[Body, Added]: ...


class ReadRequest(Protocol):
    """Reads the body of a request."""

    def __call__(self, body: Mapping[str, Any], /) -> Request: ...


@dataclass(frozen=True)
class Extra:
    """One thing that a server shows when it is asked to.

    Attributes:
        asks: what is added to the request.
        kind: to which requests.
        streamed: to streams only.
        hides: fields of the answer that come of it,
        hides_of_choices: and of each of its choices.
    """

    asks: tuple[str, bool]
    kind: Kind
    streamed: bool = False
    hides: tuple[str, ...] = ()
    hides_of_choices: tuple[str, ...] = ()


_SHOWN_IDS = ("token_ids", "prompt_token_ids")
_CONTINUOUS = "continuous_usage_stats"
_GOING = "timings"

_EXTRAS: dict[str, tuple[Extra, ...]] = {
    "vllm": (
        Extra(("return_token_ids", True), "chat", False, ("prompt_token_ids",), _SHOWN_IDS),
        Extra(("return_token_ids", True), "completions", False, ("prompt_token_ids",), _SHOWN_IDS),
    ),
    "sglang": (
        Extra(("return_input_ids_in_sglext", True), "chat", False, ("sglext.input_ids",)),
        Extra(("return_output_ids_in_sglext", True), "chat", False, ("sglext.output_ids",)),
        Extra(("return_token_ids", True), "completions", False, (), _SHOWN_IDS),
    ),
    "llama.cpp": tuple(
        extra
        for kind in ("chat", "completions")
        for extra in (
            Extra(("return_tokens", True), kind),
            Extra(("verbose", True), kind, False, ("__verbose",)),
            Extra(("timings_per_token", True), kind, True, (_GOING,)),
        )
    ),
}
_CONTINUOUS_USAGE = {"sglang"}
_COUNTED = {"llama.cpp"}
"""Engines whose streams tell the counts of each token, so that their usage need not be asked for."""
ENGINES = tuple(sorted(_EXTRAS))
"""Engines that are asked for more than others, by the name that a deployment has."""


@dataclass(frozen=True)
class Asking:
    """How a server is asked for more.

    Attributes:
        engine: what answers; None if that is not known.
        usage: ask for the usage of streams.
        ids: ask for token ids and counts, where the engine can show them.
    """

    engine: str | None = None
    usage: bool = True
    ids: bool = True


@dataclass(frozen=True)
class Added:
    """What was added to a request, to be taken out of its answer again.

    Attributes:
        usage: the chunk that has the usage and no choice.
        fields: of the answer or chunk; ``a.b`` is the field b within a.
        of_choices: of each choice.
        continuous: the usage of chunks that have choices.
        nulls: fields that a chunk has either way, without a value.
    """

    usage: bool = False
    fields: frozenset[str] = frozenset()
    of_choices: frozenset[str] = frozenset()
    continuous: bool = False
    nulls: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.usage or self.continuous or bool(self.fields) or bool(self.of_choices)


@dataclass(frozen=True)
class Wire:
    """How one kind of request, and its answer, are read.

    Attributes:
        read: the request's body.
        feed: takes the answer. An answer that is a list has its items in the field ``items``.
        ask: what makes the answer tell more.
        headers: takes the headers of the answer, where they tell something.
        generates: whether a request with this body generates, where its path does not say.
    """

    read: ReadRequest
    feed: Feed
    ask: Ask
    headers: Callable[[Answer, Mapping[bytes, bytes]], None] | None = None
    generates: Callable[[Mapping[str, Any]], bool] | None = None


# --- asking ----------------------------------------------------------------------------------------------


def _ask(kind: Kind, body: Body, asking: Asking) -> tuple[Body, Added]:
    streamed = body.get("stream") is True
    more: Body = {}
    fields: set[str] = set()
    of_choices: set[str] = set()
    options, wanted = body.get("stream_options"), {}
    counted = asking.ids and asking.engine in _COUNTED
    sound = options is None or isinstance(options, dict)
    if streamed and asking.usage and not counted and kind != "responses" and sound:
        wanted["include_usage"] = True
        if asking.ids and asking.engine in _CONTINUOUS_USAGE:
            wanted[_CONTINUOUS] = True
        wanted = {name: value for name, value in wanted.items() if mapping(options).get(name) is not value}
        if wanted:
            more["stream_options"] = {**(options or {}), **wanted}
    for extra in _EXTRAS.get(asking.engine or "", ()) if asking.ids else ():
        name, value = extra.asks
        if extra.kind == kind and (streamed or not extra.streamed) and body.get(name) is not value:
            more[name] = value
            fields.update(extra.hides)
            of_choices.update(extra.hides_of_choices)
    return more, Added(
        usage="include_usage" in wanted,
        fields=frozenset(fields),
        of_choices=frozenset(of_choices),
        continuous=_CONTINUOUS in wanted,
    )


def _wire(kind: Kind, feed: Feed) -> Wire:
    return Wire(partial(read_request, kind), feed, partial(_ask, kind))


OPENAI: dict[Kind, Wire] = {
    "chat": _wire("chat", Answer.feed),
    "completions": _wire("completions", Answer.feed),
    "responses": _wire("responses", feed_response),
}


def _invoked(body: Mapping[str, Any]) -> Kind:
    return "chat" if "messages" in body else "completions"


def _feed_invoked(answer: Answer, body: Mapping[str, Any], *, streamed: bool = False) -> None:
    if streamed or "choices" in body:  # else messages were embedded
        answer.feed(body, streamed=streamed)


INVOCATIONS = Wire(
    lambda body: read_request(_invoked(body), body),
    _feed_invoked,
    lambda body, asking: _ask(_invoked(body), body, asking),
    generates=lambda body: "messages" in body or "prompt" in body,
)
"""SageMaker's one path: chat or completions by the body, or something else, as embeddings."""


def with_additions(data: bytes, body: Body, more: Body) -> bytes:
    """The bytes of a request with additions; ``body`` is what they hold."""
    if not more:
        return data
    if any(name in body for name in more):
        return msgspec.json.encode({**body, **more})
    front, rest = msgspec.json.encode(more)[:-1], data.lstrip()[1:]
    return front + b"," + rest if body else front + b"}"


# --- hiding ----------------------------------------------------------------------------------------------


def hide(body: Body, added: Added, *, streamed: bool) -> Body | None:
    """The answer, or chunk of a stream, without what the client did not ask for; None if nothing is left.

    The same object if there is nothing to take out.
    """
    choices = body.get("choices")
    if streamed and choices == []:
        if added.usage and body.get("usage") is not None:
            return None
        if "sglext.output_ids" in added.fields and "sglext" in body and "usage" not in body:
            left = _without(body, added.fields)
            return left if left.get("sglext") else None
    shown = _without(body, _fields_of(body, added, streamed))
    if streamed and added.nulls and shown is not body:
        shown = {**shown, **dict.fromkeys(added.nulls & body.keys())}
    if added.of_choices and isinstance(choices, list):
        kept = [_without(each, added.of_choices) if isinstance(each, dict) else each for each in choices]
        if any(one is not other for one, other in zip(kept, choices, strict=True)):
            shown = {**shown, "choices": kept}
    return shown


def _fields_of(body: Body, added: Added, streamed: bool) -> frozenset[str]:
    fields = added.fields
    if _GOING in fields and (
        not body.get("choices") or any(mapping(each).get("finish_reason") for each in body["choices"])
    ):
        fields -= {_GOING}  # the last chunk of a choice, and that of usage, have them either way
    # Azure's first chunk, with what its filters say of the prompt, has no choice and no usage yet.
    empty = added.usage and body.get("usage", 0) is None
    if streamed and (empty or (added.continuous and body.get("choices"))):
        fields |= {"usage"}
    return fields


def _without(body: Body, names: frozenset[str]) -> Body:
    left = body
    for name in names:
        outer, _, inner = name.partition(".")
        if inner:
            within = left.get(outer)
            if isinstance(within, dict) and inner in within:
                rest = {key: value for key, value in within.items() if key != inner}
                left = {key: value for key, value in left.items() if key != outer} | (
                    {outer: rest} if rest else {}
                )
        elif outer in left:
            left = {key: value for key, value in left.items() if key != outer}
    return left
