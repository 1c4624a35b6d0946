"""Owns what one answer of an OpenAI-compatible server has shown so far: text, token ids, usage, reasons.

Fed with whole answers or with the chunks of a stream, of chat completions and completions. Bounded, and as
careful with foreign values as ``_openai``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from ledger.core.records import Usage
from ledger.emit.engines._openai import (
    MAX_CHOICES,
    MIXED,
    are_ids,
    delta_text,
    is_count,
    mapping,
    text_or_none,
    usage_of,
)

__all__ = ["Answer", "Choice", "timed_usage"]

_T = TypeVar("_T")

MAX_TEXT_CHARS = 32 << 20
"""Text of one answer that is kept to be committed to; of a longer one there is no commitment."""
MAX_IDS = 8 << 20
"""Token ids of one answer, likewise."""


@dataclass
class Choice:
    """One choice of an answer, as far as it was shown."""

    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    prompt_ids: list[int] | None = None
    finish_reason: str | None = None
    parts: int = 0
    """Chunks that had text: about as many as tokens, where nothing better is known."""


class Answer:
    """What the answer to one request has shown so far. Owned by whoever reads that answer.

    Args:
        choices_each: how many choices each prompt of the request has.

    Attributes:
        choices: by index.
        usage: as the server reported it last, for all choices together.
        request_id: the server's id of the request.
        model: as the server names it.
        failed: the server reported an error.
        whole: nothing was left out for being too long.
    """

    def __init__(self, choices_each: int = 1) -> None:
        self.choices: dict[int, Choice] = {}
        self.usage: Usage | None = None
        self.request_id: str | None = None
        self.model: str | None = None
        self.failed = False
        self.whole = True
        self._prompt_ids: list[int] | None = None
        self._chars = self._count = 0
        self._each = max(1, choices_each)
        self._so_far: dict[int, Usage] = {}

    # --- taking in -----------------------------------------------------------------------------------

    def feed(self, body: Mapping[str, Any], *, streamed: bool = False) -> None:
        """Take in a whole answer, or a chunk of a stream."""
        if body.get("error"):
            self.failed = True
        self.request_id = text_or_none(body.get("id")) or self.request_id
        self.model = text_or_none(body.get("model")) or self.model
        if self._prompt_ids is None and are_ids(ids := body.get("prompt_token_ids")):
            self._prompt_ids = ids
        choices = body.get("choices")
        choices = [mapping(each) for each in choices] if isinstance(choices, list) else []
        # llama.cpp: a chunk that tells of progress within the prompt holds a placeholder for a token.
        for place, each in enumerate(choices):
            self._feed_choice(
                each, place, {} if body.get("prompt_progress") else mapping(body.get("__verbose"))
            )
        if "sglext" in body:
            self._feed_sglang(mapping(body["sglext"]))
        self._feed_usage(body, choices, streamed)

    def _feed_sglang(self, extension: Mapping[str, Any]) -> None:
        """SGLang's chat: ids of the prompt and of all choices, whole or at the end of a stream."""
        if self._prompt_ids is None and are_ids(ids := extension.get("input_ids")):
            self._prompt_ids = ids
        rows = extension.get("output_ids")
        for index, row in enumerate(rows if isinstance(rows, list) else []):
            choice = self.choice(index)
            if not choice.ids:
                self.add_ids(choice, row)

    def _feed_choice(self, body: Mapping[str, Any], place: int, verbose: Mapping[str, Any]) -> None:
        choice = self.choice(_index_of(body, place))
        text = body.get("text")
        if isinstance(text, str):
            self.add_text(choice, text)
        for part in (body.get("message"), body.get("delta")):
            if isinstance(part, dict):
                self.add_text(choice, delta_text(part))
        self.add_ids(choice, body.get("token_ids"))
        # llama.cpp: those of the first choice only, where an answer has several.
        if place == 0:
            self.add_ids(choice, verbose.get("tokens"))
        if choice.prompt_ids is None and are_ids(ids := body.get("prompt_token_ids")):
            choice.prompt_ids = ids
        choice.finish_reason = text_or_none(body.get("finish_reason")) or choice.finish_reason

    def choice(self, index: int) -> Choice:
        """The choice of this index."""
        found = self.choices.get(index)
        if found is None:
            found = Choice()
            if len(self.choices) < MAX_CHOICES:
                self.choices[index] = found
            else:
                self.whole = False
        return found

    def add_text(self, choice: Choice, text: str) -> None:
        """Append to a choice's text."""
        if not text:
            return
        choice.parts += 1
        self._chars += len(text)
        if self._chars > MAX_TEXT_CHARS:
            self.whole = False
        else:
            choice.text.append(text)

    def forget_text(self) -> None:
        """Drop the text so far: what comes next repeats it."""
        self._chars = 0
        for choice in self.choices.values():
            choice.text.clear()

    def forget(self, choice: Choice) -> None:
        """Drop text and ids of one choice: what comes next repeats them."""
        self._chars -= sum(len(part) for part in choice.text)
        self._count -= len(choice.ids)
        choice.text.clear()
        choice.ids.clear()

    def add_ids(self, choice: Choice, ids: Any) -> None:
        """Append to a choice's token ids."""
        if not are_ids(ids):
            return
        self._count += len(ids)
        if self._count > MAX_IDS:
            self.whole = False
        else:
            choice.ids += ids

    def _feed_usage(self, body: Mapping[str, Any], choices: list[Mapping[str, Any]], streamed: bool) -> None:
        if "usage" not in body and "timings" not in body:
            return  # as most chunks
        timings = mapping(body.get("timings"))
        usage = usage_of(body.get("usage"))
        if usage is not None:
            usage = _with_drafts(usage, timings)
        if streamed and len(choices) == 1:
            # So far, of this choice: vLLM's ``continuous_usage_stats``, llama.cpp's ``timings_per_token``.
            self.count(_index_of(choices[0], 0), usage or timed_usage(timings))
        elif usage is not None and streamed and timings and self.usage is not None:
            # With several choices, llama.cpp ends a stream with the usage of each: together they are the
            # usage of all, the prompt counted once. Others send one such chunk, with the usage of all.
            self.usage = _sum_of(dict(enumerate((self.usage, usage))), 2)
        elif usage is not None:
            self.usage = usage

    def count(self, index: int, usage: Usage | None) -> None:
        """Take what the server told of one choice alone, its prompt included."""
        if usage is not None and len(self._so_far) < MAX_CHOICES:
            self._so_far[index] = usage

    # --- telling -------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether anything was generated that could be seen."""
        return any(choice.parts or choice.ids for choice in self.choices.values())

    @property
    def finish_reason(self) -> str | None:
        """Of all choices; ``mixed`` where they differ; None while one has none."""
        reasons = {choice.finish_reason for choice in self.choices.values()}
        return None if None in reasons or not reasons else reasons.pop() if len(reasons) == 1 else MIXED

    def counts(self) -> Usage | None:
        """Token counts that the server told; None where it told none.

        Its usage; else what it told of each choice so far; else the number of ids that it showed.
        """
        if self.usage is not None:
            return self.usage
        if self._so_far:
            return _sum_of(self._so_far, self._each)
        prompt, outputs = self.prompt_ids(), self.shown_ids
        if prompt is None or outputs is None:
            return None
        return Usage(input_tokens=len(prompt), output_tokens=outputs)

    @property
    def shown_ids(self) -> int | None:
        """How many token ids were shown; None if those of some text were not."""
        chosen = self.choices.values()
        if not self.whole or not all(choice.ids or not choice.parts for choice in chosen):
            return None
        return sum(len(choice.ids) for choice in chosen)

    @property
    def parts(self) -> int:
        """Chunks with text, of all choices."""
        return sum(choice.parts for choice in self.choices.values())

    def prompt_ids(self) -> list[int] | None:
        """Ids of the prompt, or of several one after another; None where they were not shown."""
        if self._prompt_ids is not None:
            return self._prompt_ids
        rows = [choice.prompt_ids for choice in _first_of_each(self.choices, self._each)]
        return None if not rows or None in rows else [each for row in rows for each in row or ()]

    def output_ids(self, output_tokens: int) -> list[int] | None:
        """Ids of all choices, if they are as many as were counted and none was hidden."""
        chosen = [self.choices[index] for index in sorted(self.choices)]
        if not self.whole or (len(chosen) > 1 and not all(choice.ids for choice in chosen)):
            return None
        ids = [each for choice in chosen for each in choice.ids]
        return ids if len(ids) == output_tokens else None

    def output_text(self) -> str | None:
        """Text of all choices; None if a part of it is missing."""
        if not self.whole:
            return None
        return "".join(part for index in sorted(self.choices) for part in self.choices[index].text)


def _index_of(choice: Mapping[str, Any], place: int) -> int:
    index = choice.get("index")
    return index if type(index) is int else place


def timed_usage(timings: Mapping[str, Any]) -> Usage | None:
    """llama.cpp: ``prompt_n`` tokens were computed, ``cache_n`` more came from the cache."""
    computed, cached, outputs = (timings.get(name) for name in ("prompt_n", "cache_n", "predicted_n"))
    if not is_count(computed) or not is_count(outputs) or not (computed or outputs):
        return None
    known = cached if is_count(cached) else UNSET
    usage = Usage(input_tokens=computed + (known or 0), output_tokens=outputs, cached_input_tokens=known)
    return _with_drafts(usage, timings)


def _with_drafts(usage: Usage, timings: Mapping[str, Any]) -> Usage:
    drafted, accepted = timings.get("draft_n"), timings.get("draft_n_accepted")
    if not is_count(drafted) or not is_count(accepted):
        return usage
    return msgspec.structs.replace(usage, drafted_tokens=drafted, accepted_tokens=accepted)


def _first_of_each(rows: Mapping[int, _T], each: int) -> list[_T]:
    """Of every ``each`` choices, which share a prompt, the first that is known."""
    firsts: dict[int, _T] = {}
    for index in sorted(rows):
        firsts.setdefault(index // each, rows[index])
    return list(firsts.values())


def _sum_of(usages: Mapping[int, Usage], each: int) -> Usage:
    """Usage of choices by index, of which every ``each`` share a prompt: its tokens count once."""
    prompts = _first_of_each(usages, each)
    outputs = list(usages.values())

    def total(name: str, of: list[Usage]) -> int | UnsetType:
        values = [getattr(usage, name) for usage in of]
        return UNSET if any(value is UNSET for value in values) else sum(values)

    return Usage(
        input_tokens=sum(usage.input_tokens for usage in prompts),
        output_tokens=sum(usage.output_tokens for usage in outputs),
        cached_input_tokens=total("cached_input_tokens", prompts),
        reasoning_tokens=total("reasoning_tokens", outputs),
        drafted_tokens=total("drafted_tokens", outputs),
        accepted_tokens=total("accepted_tokens", outputs),
    )
