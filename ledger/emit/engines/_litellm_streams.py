"""Owns the mark that a call of LiteLLM carries, and what its stream tells it.

LiteLLM (1.81) has no event for a stream that is left before its end. So its ``CustomStreamWrapper`` is
watched: the chunks that it keeps anyway go into a list that notes their times, and when the wrapper is gone
the mark's owner is told.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from litellm.litellm_core_utils.streaming_handler import (  # type: ignore[import-not-found, unused-ignore]
    CustomStreamWrapper,
)

from ledger.emit.engines._exchange import now_us
from ledger.emit.engines._openai import mapping
from ledger.emit.engines._providers import field

__all__ = ["KEY", "USAGE", "Chunks", "Mark", "watch_streams"]

KEY = "tallystick_record"
"""Under which a call's ``kwargs`` hold its mark."""
USAGE = {"include_usage": True}

_LASTING = (
    "call_type",
    "custom_llm_provider",
    "litellm_call_id",
    "litellm_params",
    "messages",
    "model",
    "optional_params",
    "stream",
    "user",
)
"""What a record needs of ``kwargs``. The rest is not kept: it holds the stream, which would never be gone."""

Leave: TypeAlias = Callable[["Mark", Mapping[str, Any], bool], None]


class Chunks(list[Any]):
    """The chunks of one stream, with the times of the first and the last, Unix microseconds."""

    first_us: int | None = None
    last_us: int | None = None

    def append(self, chunk: Any) -> None:
        """Take in one more."""
        self.last_us = now_us()
        if self.first_us is None:
            self.first_us = self.last_us
        super().append(chunk)


class Mark(str):
    """The id of a call's record, kept in the call's ``kwargs``: a string, for others that write them out.

    Attributes:
        started_us: when the call began.
        said: what a prompt that is not of messages consists of, by the names of the request.
        chunks: of its stream; None until there is one.
        asked: whether its usage was asked for on behalf of the record.
    """

    started_us: int
    said: Mapping[str, Any]
    chunks: Chunks | None
    asked: bool
    _call: Callable[[], Any] | None
    _leave: list[Leave]

    @classmethod
    def of(cls, id: str, leave: Leave) -> Mark:
        """Mark a call that begins now.

        Args:
            id: of its record.
            leave: is called when its stream is gone, with what lasts of ``kwargs``, and whether no event
                of LiteLLM can follow any more.
        """
        mark = cls(id)
        mark.started_us, mark.said, mark.chunks, mark.asked = now_us(), {}, None, False
        mark._call, mark._leave = None, [leave]
        return mark

    def take(self) -> bool:
        """Whether the caller is the one to tell the end. At most one is, of all threads."""
        try:
            self._leave.pop()
        except IndexError:
            return False
        return True

    def watch(self, stream: Any, details: Mapping[str, Any]) -> None:
        """Follow the call's stream, unless it was taken or follows one already."""
        leave = next(iter(self._leave), None)
        if leave is None or self.chunks is not None or not isinstance(field(stream, "chunks"), list):
            return
        self.chunks = stream.chunks = Chunks(stream.chunks)
        if self.asked and field(stream, "stream_options") is None:
            stream.stream_options = USAGE  # else 1.81 skips the chunk that has the usage
        self._call = weakref.ref(stream.logging_obj)
        lasting = {name: details[name] for name in _LASTING if name in details}
        # The stream goes first. LiteLLM's events keep the call's logging object until they have been told.
        weakref.finalize(stream, leave, self, lasting, False).atexit = False
        weakref.finalize(stream.logging_obj, leave, self, lasting, True)

    def price(self, answer: Any) -> Any:
        """What LiteLLM itself reckons for the stream's whole answer; None if it does not know."""
        try:
            call = None if self._call is None else self._call()
            return None if call is None else call._response_cost_calculator(result=answer)
        except Exception:  # a method of 1.81 alone, which has no public one of the same sum
            return None

    def __deepcopy__(self, memo: object) -> Mark:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def watch_streams() -> None:
    """Have each stream of LiteLLM tell the mark of its call. Once is enough."""
    begin = CustomStreamWrapper.__init__
    if hasattr(begin, "_tallystick"):
        return

    @functools.wraps(begin)
    def begin_watched(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        details = mapping(field(field(self, "logging_obj"), "model_call_details"))
        mark = details.get(KEY)
        if isinstance(mark, Mark):
            mark.watch(self, details)

    begin_watched._tallystick = True  # type: ignore[attr-defined]
    CustomStreamWrapper.__init__ = begin_watched
