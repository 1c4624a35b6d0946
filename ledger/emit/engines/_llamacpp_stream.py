"""Owns streamed llama.cpp requests: feeds their generations, shapes the chunks, closes what stays open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from msgspec import UNSET

from ledger.emit.engines._llamacpp_generation import ABORT, ERROR, Generation

__all__ = ["SEEN", "ChatShape", "Stream", "as_is", "choice_count", "names", "usage_of"]

Body: TypeAlias = dict[str, Any]
Callback: TypeAlias = Callable[[Any], Any]
Shape: TypeAlias = Callable[[Body, Mapping[int, Generation]], list[Body]]

SEEN = {"return_tokens": True, "verbose": True}
"""What makes the engine show token ids."""

_STREAM_SEEN = {**SEEN, "timings_per_token": True, "return_progress": True}
"""And, chunk by chunk, the counts that an aborted generation needs, and a chance to abort a long prompt."""


class Stream:
    """One streamed request. Owned by the thread that runs it; the engine calls back on that thread.

    Args:
        begin: starts a generation; called once for each choice.
        body: the request, as the caller made it.
        answer: the caller's callback; a true result stops the engine.
        should_stop: asked at each chunk, also those that the caller does not see.
        first: what the caller calls the first choice, where one request has several prompts.
    """

    def __init__(
        self,
        begin: Callable[[], Generation],
        body: Body,
        answer: Callback | None,
        should_stop: Callable[[], bool] | None,
        *,
        first: int = 0,
    ) -> None:
        if answer is None:
            raise ValueError("a stream needs a callback")
        self._body = body
        self._answer = answer
        self._should_stop = should_stop
        self._first = first
        self._raised: BaseException | None = None
        self._failed = self._stopped = False
        self._generations = {index: begin() for index in range(choice_count(body))}

    def run(self, run: Callable[[Body, Callback], Any], job: Body, shape: Shape) -> bool:
        """Run it to its end; return whether there may be more."""

        def on_chunk(chunk: Body) -> bool:
            try:
                self._stopped = self._stopped or self._take(chunk, shape)
            except BaseException as error:  # xllamacpp would print and swallow it
                self._raised = error
                self._stopped = True
            return self._stopped

        try:
            run({**job, **_STREAM_SEEN}, on_chunk)
        except BaseException:
            self._failed = True
            raise
        finally:
            self._close()
        if self._raised is not None:
            raise self._raised
        return not self._stopped and not self._failed

    def _close(self) -> None:
        for generation in self._generations.values():
            if not generation.has_ended:
                if self._stopped:
                    generation.finish(ABORT)
                elif generation.has_tokens:
                    generation.finish(ERROR)
                else:
                    generation.discard()

    def _take(self, chunk: Body, shape: Shape) -> bool:
        """Feed the generations, pass the chunk on; return whether to stop."""
        if "choices" not in chunk:
            self._failed = True
            return bool(self._answer(chunk))
        ended = []
        for choice in chunk["choices"]:
            generation = self._generations[choice["index"]]
            if generation.take(chunk, choice):
                ended.append(generation)
        if self._should_stop is not None and self._should_stop():
            return True
        if chunk.get("prompt_progress") and not self._body.get("return_progress"):
            return False
        chunk = _without_extras(chunk, self._body)
        if ended or not chunk["choices"]:
            chunk["tallystick"] = names(ended or self._generations.values())
        shaped = shape(chunk, self._generations)
        for part in shaped:
            for choice in part["choices"]:
                choice["index"] += self._first
        return any(self._answer(part) for part in shaped)


def as_is(chunk: Body, _generations: Mapping[int, Generation]) -> list[Body]:
    """The engine's own chunk."""
    return [chunk]


class ChatShape:
    """Turns completion chunks into chat chunks, as the engine's chat endpoint writes them."""

    _EXTRAS = ("timings", "prompt_progress", "__verbose", "tallystick")

    def __init__(self, body: Body) -> None:
        self._with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._greeted: set[int] = set()
        self._ended = 0

    def __call__(self, chunk: Body, generations: Mapping[int, Generation]) -> list[Body]:
        """The chat chunks of one completion chunk, which is of one choice."""
        (choice,) = chunk["choices"]
        index, text, reason = choice["index"], choice["text"], choice.get("finish_reason")
        plain = {key: value for key, value in chunk.items() if key not in (*self._EXTRAS, "usage")}
        plain["object"] = "chat.completion.chunk"
        carried = {key: chunk[key] for key in self._EXTRAS if key in chunk}

        def part(delta: Body, **more: Any) -> Body:
            return {**plain, "choices": [{"index": index, "delta": delta, "finish_reason": None}], **more}

        parts = []
        if index not in self._greeted:
            self._greeted.add(index)
            parts.append(part({"role": "assistant", "content": None}))
        if text:
            parts.append(part({"content": text}, **({} if reason else carried)))
        if reason:
            parts.append(part({}, **carried))
            parts[-1]["choices"][0]["finish_reason"] = reason
            self._ended += 1
            if self._with_usage and self._ended == len(generations):
                every = list(generations.values())
                usage = usage_of(every, per_prompt=len(every))
                parts.append({**plain, "choices": [], "usage": usage, "tallystick": names(every)})
        return parts


def choice_count(body: Body) -> int:
    """How many choices a request wants for each prompt."""
    count = body.get("n_cmpl") or body.get("n") or 1
    return count if isinstance(count, int) and count > 0 else 1


def _without_extras(chunk: Body, asked: Body) -> Body:
    """A copy without what only the hook asked for. The last chunk of a choice has timings either way."""
    drop = {"prompt_progress"} if not asked.get("return_progress") else set()
    if not asked.get("verbose"):
        drop.add("__verbose")
    going = any(choice.get("finish_reason") is None for choice in chunk["choices"])
    if going and not asked.get("timings_per_token"):
        drop.add("timings")
    return {key: value for key, value in chunk.items() if key not in drop}


def names(generations: Iterable[Generation]) -> Body:
    """The field ``tallystick``: the record of an answer, and all of them where it has several."""
    ids = [generation.record_id for generation in generations if generation.record_id is not None]
    if len(ids) > 1:
        return {"record": ids[0], "records": ids}
    return {"record": ids[0]} if ids else {}


def usage_of(generations: Iterable[Generation], *, per_prompt: int) -> Body:
    """OpenAI's usage of one answer: each prompt once, all outputs."""
    usages = [generation.usage for generation in generations]
    prompts = usages[::per_prompt]
    inputs = sum(usage.input_tokens for usage in prompts)
    outputs = sum(usage.output_tokens for usage in usages)
    cached = sum(u.cached_input_tokens for u in prompts if u.cached_input_tokens is not UNSET)
    return {
        "completion_tokens": outputs,
        "prompt_tokens": inputs,
        "total_tokens": inputs + outputs,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
