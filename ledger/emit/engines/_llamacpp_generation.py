"""Owns what one llama.cpp generation has shown of itself so far, and the record made of it.

Field semantics, from llama.cpp's tools/server (server-task.cpp, server-context.cpp):

- ``tokens_evaluated``: tokens of the whole prompt, those taken from the cache included; ``timings.cache_n``
  of them came from the cache and ``timings.prompt_n`` were computed. ``usage.prompt_tokens`` is the first.
- ``tokens_predicted`` = ``timings.predicted_n``: sampled tokens, the end-of-generation token and those of a
  stop string included. ``usage.completion_tokens`` is this. ``tokens_cached`` is the slot's length: not used.
- ``__verbose.tokens``: all sampled ids when not streamed. Streamed, the id of each chunk; but while the text
  so far ends within a UTF-8 character, llama.cpp sends no chunk, and those ids are lost. The chat endpoint
  streams no ids at all. Where ids are missing, the text is committed to instead, and says so (``of: text``).
- a chunk with ``prompt_progress`` belongs to no token: its ``tokens`` hold a placeholder.
- ``timings.draft_n`` and ``draft_n_accepted`` are there under speculative decoding only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec import UNSET

from ledger.core.records import Energy, Usage
from ledger.emit._complaints import Complaints
from ledger.emit.engines._openai import delta_text
from ledger.energy.metering import HostMeter, Ticket

__all__ = ["ABORT", "ERROR", "Call", "Generation", "Recording", "now_us"]

ABORT = "abort"
"""The caller stopped the generation. Its tokens are those that the engine had shown by then."""

ERROR = "error"
"""The engine failed after tokens had been generated."""


class Recording(Protocol):
    """What the hook needs of a ``Recorder``."""

    @property
    def is_metered(self) -> bool:
        """Whether records get their energy from the recorder's meter."""

    def begin(self, *, input_tokens: int | None = None) -> str:
        """A generation begins; return the id of its record."""

    def abandon(self, id: str) -> None:
        """It generated nothing."""

    def lose(self, id: str) -> None:
        """It generated something that cannot be recorded."""

    def record(
        self,
        *,
        usage: Usage,
        started_us: int,
        ended_us: int,
        first_token_us: int | None = None,
        busy_us: int | None = None,
        input_ids: Sequence[int] | None = None,
        output_ids: Sequence[int] | None = None,
        input_text: str | None = None,
        output_text: str | None = None,
        finish_reason: str | None = None,
        request_id: str | None = None,
        tenant: str | None = None,
        parent: str | None = None,
        energy: Energy | None = None,
        id: str | None = None,
    ) -> str:
        """Take one generation and return the record's id."""


@dataclass(frozen=True)
class Call:
    """What the caller said about a request, for all of its generations."""

    request_id: str | None = None
    tenant: str | None = None
    parent: str | None = None


_complaints = Complaints("the llama.cpp hook")


def now_us() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


@dataclass
class Generation:
    """One choice of one request. Owned by the thread that runs the request."""

    recorder: Recording
    meter: HostMeter | None
    call: Call
    prompt_ids: Sequence[int] | None
    streamed: bool
    started_us: int = field(default_factory=now_us)
    record_id: str | None = None
    finish_reason: str | None = None
    is_lost: bool = False
    text: list[str] = field(default_factory=list)
    _reserved: str = ""
    _ticket: Ticket | None = None
    _ids: list[int] = field(default_factory=list)
    _first_us: int | None = None
    _input: int | None = None
    _output: int = 0
    _cached: int | None = None
    _drafted: int | None = None
    _accepted: int | None = None
    _prompt_text: str | None = None
    _request_id: str | None = None

    def __post_init__(self) -> None:
        tokens = None if self.prompt_ids is None else len(self.prompt_ids)
        self._reserved = self.recorder.begin(input_tokens=tokens)
        if self.meter is not None:
            self._ticket = self.meter.start()

    @property
    def has_ended(self) -> bool:
        """Whether its record was made, or cannot be."""
        return self.record_id is not None or self.is_lost

    @property
    def has_tokens(self) -> bool:
        """Whether the engine has shown output."""
        return self._output > 0

    @property
    def usage(self) -> Usage:
        """Token counts, as the engine reported them."""
        return Usage(
            input_tokens=len(self.prompt_ids or ()) if self._input is None else self._input,
            output_tokens=self._output,
            cached_input_tokens=UNSET if self._cached is None else self._cached,
            drafted_tokens=UNSET if self._drafted is None else self._drafted,
            accepted_tokens=UNSET if self._accepted is None else self._accepted,
        )

    def take(self, body: Mapping[str, Any], choice: Mapping[str, Any], *, last: str | None = None) -> bool:
        """Take in a chunk or a whole response, of which ``choice`` is this one's part.

        An engine that answers otherwise than expected costs the record, not the answer.

        Args:
            body: the chunk or response.
            choice: this one's part of it.
            last: the reason where it is the last and names none.

        Returns:
            Whether the generation came to its end.
        """
        if self.has_ended:
            return False
        try:
            text = (
                choice["text"] if "text" in choice else delta_text(choice.get("delta", choice.get("message")))
            )
            self._feed(body, text, choice.get("finish_reason"))
            if reason := self.finish_reason or last:
                self.finish(reason)
        except Exception as error:
            _complaints.say("a generation cannot be recorded", error)
            self._leave_lost()
        return self.record_id is not None

    def _feed(self, body: Mapping[str, Any], text: str, finish_reason: str | None) -> None:
        verbose = body.get("__verbose") or {}
        self._request_id = body.get("id", self._request_id)
        self._read_timings(body.get("timings") or verbose.get("timings") or {})
        progress = body.get("prompt_progress")
        if progress:
            self._input = progress["total"]
            return
        if "tokens_evaluated" in verbose:
            self._input = verbose["tokens_evaluated"]
        if "tokens_predicted" in verbose:
            self._output = max(self._output, verbose["tokens_predicted"])
        self._ids += verbose.get("tokens") or ()
        self._prompt_text = verbose.get("prompt", self._prompt_text)
        if text:
            self.text.append(text)
        if self.streamed and self._first_us is None and self._output:
            self._first_us = now_us()
        self.finish_reason = finish_reason or self.finish_reason

    def _read_timings(self, timings: Mapping[str, Any]) -> None:
        if timings.get("prompt_n") or timings.get("predicted_n"):
            self._cached = timings.get("cache_n", self._cached)
            self._input = (
                timings["prompt_n"] + timings.get("cache_n", 0) if self._input is None else self._input
            )
        self._output = max(self._output, timings.get("predicted_n", 0))
        self._drafted = timings.get("draft_n", self._drafted)
        self._accepted = timings.get("draft_n_accepted", self._accepted)

    def finish(self, reason: str) -> None:
        """Record it, once."""
        if not self.has_ended:
            ended_us = max(now_us(), self.started_us, self._first_us or 0)
            metered = self.meter.stop(self._ticket) if self.meter and self._ticket else None
            usage = self.usage
            ids = self.prompt_ids if self.prompt_ids is not None else ()
            input_known = self.prompt_ids is not None and len(ids) == usage.input_tokens
            output_known = len(self._ids) == usage.output_tokens
            self.record_id = self.recorder.record(
                usage=usage,
                started_us=self.started_us,
                ended_us=ended_us,
                first_token_us=self._first_us,
                busy_us=None if metered is None else metered.busy_us,
                input_ids=tuple(ids) if input_known else None,
                input_text=None if input_known else self._prompt_text,
                output_ids=tuple(self._ids) if output_known else None,
                output_text=None if output_known else "".join(self.text),
                finish_reason=reason,
                request_id=self.call.request_id or self._request_id,
                tenant=self.call.tenant,
                parent=self.call.parent,
                energy=None if metered is None else metered.energy,
                id=self._reserved,
            )

    def discard(self) -> None:
        """Nothing was generated (the engine refused): leave the meter, record nothing."""
        if not self.has_ended:
            self.recorder.abandon(self._reserved)
        self._leave_meter()

    def _leave_lost(self) -> None:
        self.is_lost = True
        self.recorder.lose(self._reserved)
        self._leave_meter()

    def _leave_meter(self) -> None:
        if self.meter is not None and self._ticket is not None:
            self.meter.stop(self._ticket)
