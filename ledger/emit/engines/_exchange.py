"""Owns one request and its answer on their way: what becomes of them is one record, whatever the end.

Token counts are the server's. Where it told none (an aborted stream of a server that counts at the end, a
server without usage, an answer or a request that cannot be read) they are estimated: a token for each chunk
of text, four bytes for a token elsewhere. Such a record says so: ``quality`` has ``usage_estimated``, which
is 1. Where not even that is known, since the answer never came, there is no record: it counts as dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ledger.core.records import Deployment, Quality, Usage
from ledger.emit.engines._openai import ABORT, ERROR, Request
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._wire import Wire
from ledger.emit.token_estimates import tokens_in, tokens_in_bytes

__all__ = ["NEVER_SENT", "USAGE_ESTIMATED", "Call", "Exchange", "Recording", "now_us"]

USAGE_ESTIMATED = {"usage_estimated": Quality(scale=0, value=1)}
"""Marks a record whose token counts are estimates."""
NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
"""Errors of ``httpx`` before there is a connection to who generates."""
_SUCCESSES = range(200, 300)
_GAVE_UP = frozenset({504, 524})
"""Gateway Timeout (RFC 9110, section 15.6.5) and Cloudflare's own: a gateway gave up waiting for a server,
which may have generated."""

_logger = logging.getLogger("tallystick.emit")


class Recording(Protocol):
    """What recording on the wire needs of a ``Recorder``."""

    def begin(self, *, input_tokens: int | None = None) -> str:
        """A generation begins; return the id that its record will have."""

    def record(
        self,
        *,
        usage: Usage,
        started_us: int,
        ended_us: int,
        first_token_us: int | None = None,
        input_ids: Sequence[int] | None = None,
        output_ids: Sequence[int] | None = None,
        input_text: str | None = None,
        output_text: str | None = None,
        finish_reason: str | None = None,
        request_id: str | None = None,
        tenant: str | None = None,
        deployment: Deployment | None = None,
        parent: str | None = None,
        quality: dict[str, Quality] | None = None,
        id: str | None = None,
    ) -> str:
        """Take one generation."""

    def abandon(self, id: str) -> None:
        """What began generated nothing."""

    def lose(self, id: str) -> None:
        """What began generated something that cannot be recorded."""


@dataclass(frozen=True)
class Call:
    """What is known of a request besides its body."""

    tenant: str | None = None
    parent: str | None = None
    request_id: str | None = None


def now_us() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


class Exchange:
    """One request and its answer. Owned by the task that serves the request.

    Args:
        recorder: takes the record.
        wire: how request and answer are read.
        request: what was asked; None where the body could not be read.
        call: what else is known.
        deployments: what generates, by the name that the server gives the model; the recorder's own where
            the name is not among them.

    Attributes:
        record_id: of the record that comes of it.
        recorded: a record came of it.
        unread_bytes: of an answer that was passed on, but could not be read: see ``pass_unread``.
        asked_bytes: of a request that could not be read.
        open: neither recorded nor abandoned nor lost yet.
        lost: counts as dropped.
        fed: something of the answer could be read.
    """

    def __init__(
        self,
        recorder: Recording,
        wire: Wire,
        request: Request | None,
        call: Call,
        deployments: Mapping[str, Deployment],
    ) -> None:
        self.open = True
        self.recorded = self.lost = self.fed = False
        self.unread_bytes = 0
        self.asked_bytes = 0
        self.answer = Answer(1 if request is None else request.choices)
        self._recorder = recorder
        self._wire = wire
        self._request = request
        self._call = call
        self._deployments = deployments
        self._streamed = False
        self._first_us: int | None = None
        self._started_us = now_us()
        ids = None if request is None else request.input_ids
        self.record_id = recorder.begin(input_tokens=None if ids is None else len(ids))

    def see_headers(self, headers: Mapping[bytes, bytes]) -> None:
        """Take in the headers of the answer, by names in lower case."""
        if self._wire.headers is not None:
            self._wire.headers(self.answer, headers)

    def see_status(self, status: int) -> None:
        """Take in the status of the answer: only a success generates, but for what a gateway gave up on."""
        if status in _GAVE_UP:
            self.lose()
        elif status not in _SUCCESSES:
            self.refuse()

    @property
    def asks_for_stream(self) -> bool:
        """Whether the request wants its answer as a stream of events."""
        return self._request is not None and self._request.stream

    def pass_unread(self, count: int) -> None:
        """Take in that this many bytes of the answer were passed on and could not be read."""
        if count:
            self.answer.whole = False
            self.unread_bytes += count

    def feed(self, body: Mapping[str, Any], *, streamed: bool) -> None:
        """Take in the whole answer, or a chunk of it."""
        self.fed = True
        self._wire.feed(self.answer, body, streamed=streamed)
        if streamed:
            self._streamed = True
            if self._first_us is None and self.answer.has_output:
                self._first_us = now_us()

    def end(self) -> None:
        """The answer came to its end."""
        broken = self._streamed and self.answer.finish_reason is None and not self.unread_bytes
        failed = self.answer.failed or broken
        self._close(ERROR if failed else None)

    def abort(self) -> None:
        """The client went away before the end."""
        wanted = 1 if self._request is None else self._request.choices
        finished = self.answer.finish_reason is not None and len(self.answer.choices) >= wanted
        self._close(None if finished else ABORT)

    def fail(self) -> None:
        """The server broke off."""
        self._close(ERROR)

    def refuse(self) -> None:
        """The server generated nothing."""
        if self.open:
            self.open = False
            self._recorder.abandon(self.record_id)

    def lose(self) -> None:
        """Something may have been generated, and it cannot be recorded."""
        if self.open:
            self.open, self.lost = False, True
            self._recorder.lose(self.record_id)

    def _close(self, reason: str | None) -> None:
        if not self.open:
            return
        try:
            self._record(reason)
        except Exception:
            self.lose()
            raise

    def _record(self, reason: str | None) -> None:
        answer, request = self.answer, self._request
        counts = answer.counts()
        if counts is None and not answer.has_output and not self.unread_bytes and reason != ABORT:
            self.refuse()  # failed before the first token, or runs in the background
            return
        usage = counts or self._estimate()
        input_ids: Sequence[int] | None = None if request is None else request.input_ids
        if input_ids is None:
            input_ids = answer.prompt_ids()
        if input_ids is not None and len(input_ids) != usage.input_tokens:
            input_ids = None
        output_ids = answer.output_ids(usage.output_tokens)
        self._recorder.record(
            id=self.record_id,
            usage=usage,
            started_us=self._started_us,
            ended_us=max(now_us(), self._started_us, self._first_us or 0),
            first_token_us=self._first_us,
            input_ids=input_ids,
            input_text=None if input_ids is not None or request is None else request.input_text,
            output_ids=output_ids,
            output_text=None if output_ids is not None else answer.output_text(),
            finish_reason=reason or answer.finish_reason,
            request_id=answer.request_id or self._call.request_id,
            tenant=self._call.tenant,
            parent=self._call.parent,
            deployment=self._deployments.get(answer.model or ""),
            quality=None if counts is not None else USAGE_ESTIMATED,
        )
        self.open = False
        self.recorded = True

    def _estimate(self) -> Usage:
        request, answer = self._request, self.answer
        ids = answer.prompt_ids() if request is None or request.input_ids is None else request.input_ids
        said = None if request is None else request.input_text
        outputs = answer.shown_ids
        if outputs is None:
            outputs = answer.parts if self._streamed else tokens_in(answer.output_text() or "")
        return Usage(
            input_tokens=len(ids)
            if ids is not None
            else tokens_in(said or "") + tokens_in_bytes(self.asked_bytes),
            output_tokens=outputs + tokens_in_bytes(self.unread_bytes),
        )
