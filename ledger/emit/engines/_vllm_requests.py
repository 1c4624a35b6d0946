"""Owns what happens to each request in one vLLM frontend: one record, from its arrival to its last token.

The seam is the frontend's output processor (``vllm/v1/engine/output_processor.py``), which ``LLM`` and
``AsyncLLM`` share. It holds each request's ids and counts and frees them in exactly these places:

- ``add_request``: the request is registered. A second call with its id brings more input of a streamed
  prompt, or says that there is no more.
- ``process_outputs``: each step's new tokens; ``is_prefilling`` ends with the first.
- ``_finish_request``: a request is freed that was not aborted. ``_update_stats_from_finished`` follows, with
  the reason, whether or not vLLM keeps statistics; but not where a streamed prompt's session ends, nor
  (since 0.33) where the engine rejects a request on arrival.
- ``abort_requests``: returns the requests that it removed (a client that left, ``LLMEngine.abort_request``).
- ``propagate_error``: the engine is dead; all requests fail.

They are wrapped on the one instance. All run on the frontend's one thread, which owns all state here.

A request with ``n`` samples is ``n`` requests to the engine, each with its own use of the prompt, its own
cache hits and its own end; it gives ``n`` records. vLLM's own metrics count likewise.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from ledger.core.records import UUID7, Deployment, Usage
from ledger.emit import Recorder
from ledger.emit._complaints import Complaints

__all__ = ["SEAMS", "Fields", "Requests"]

SEAMS = (
    "add_request",
    "process_outputs",
    "_finish_request",
    "_update_stats_from_finished",
    "abort_requests",
    "propagate_error",
)
"""What an output processor must have."""

_ABORT, _ERROR, _STOP = "abort", "error", "stop"
_FIRST_WEIGHTS = "default"
"""The version that vLLM gives the weights that it starts with."""
_MAX_WAIT_US = 3_600_000_000
"""An arrival more than an hour ago is a clock that was set since, or another machine's."""


_MAX_TENANT = 256
_is_id = re.compile(UUID7).fullmatch


@dataclass(frozen=True)
class Fields:
    """Which of a request's ``extra_args`` (over HTTP: ``vllm_xargs``, or its ``user``) are believed.

    None are by default: whoever sends requests could name another tenant, or any number of them.
    """

    tenant: str | None = None
    parent: str | None = None

    def tenant_in(self, extra: Mapping[str, Any]) -> str | None:
        """The tenant, if it is a name that a record can have: else the record would be refused."""
        value = extra.get(self.tenant) if self.tenant else None
        named = isinstance(value, str) and 0 < len(value) <= _MAX_TENANT and value.isprintable()
        return value if named else None

    def parent_in(self, extra: Mapping[str, Any]) -> str | None:
        """The id of the record that caused the request, if it is one."""
        value = extra.get(self.parent) if self.parent else None
        return value if isinstance(value, str) and _is_id(value) else None


@dataclass(slots=True)
class _Flight:
    """A request that the engine works on. ``state`` is vLLM's ``RequestState``."""

    id: str
    state: Any
    arrived_us: int
    began_us: int
    began_ns: int
    tenant: str | None
    parent: str | None
    first_ns: int | None = None


class Requests:
    """Records the requests of one output processor.

    Args:
        processor: a ``vllm.v1.engine.output_processor.OutputProcessor``; the methods in SEAMS are replaced.
        recorder: a ``Recorder``.
        deployment_for: gives the deployment that serves a ``LoRARequest`` (None: the model itself).
        fields: where a request names its tenant and parent.
        weights_changed: called when the engine says that its weights have another version.
    """

    def __init__(
        self,
        processor: Any,
        recorder: Recorder,
        deployment_for: Callable[[Any], Deployment],
        fields: Fields,
        weights_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._fields = fields
        self._weights_changed = weights_changed
        self._weight_version = _FIRST_WEIGHTS
        self._recorder = recorder
        self._deployment_for = deployment_for
        self._states = processor.request_states
        self._flights: dict[str, _Flight] = {}
        self._silent: dict[str, _Flight] = {}  # those without a token yet
        self._freed: list[str] = []
        self._now_ns = time.monotonic_ns()
        self._complaints = Complaints("vLLM hook")
        for name in SEAMS:
            setattr(processor, name, getattr(self, name)(getattr(processor, name)))

    # --- what replaces vLLM's methods ----------------------------------------------------------------------
    # Each calls the original first, or last, and in no case changes what it is given, returns or raises.

    def add_request(self, original: Callable[..., None]) -> Callable[..., None]:
        """The request is registered."""

        def add_request(request: Any, *args: Any, **kwargs: Any) -> None:
            original(request, *args, **kwargs)
            self._end_freed(_STOP)  # a streamed prompt is complete, and was answered already
            try:
                self._begin(request)
            except Exception as error:
                self._complaints.say("a request will not be recorded", error)

        return add_request

    def process_outputs(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A step's tokens arrive."""

        def process_outputs(outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
            self._now_ns = time.monotonic_ns()
            version = kwargs.get("weight_version")  # not in all versions
            if version is not None and version != self._weight_version:
                self._weight_version = version
                self._weights_changed()
            if self._silent:
                self._note_first(outputs)
            processed = original(outputs, *args, **kwargs)
            self._end_freed(_ERROR)
            return processed

        return process_outputs

    def _finish_request(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def finish_request(state: Any) -> None:
            original(state)
            self._freed.append(state.request_id)

        return finish_request

    def _update_stats_from_finished(self, original: Callable[..., None]) -> Callable[..., None]:
        def update_stats_from_finished(state: Any, reason: Any, *args: Any, **kwargs: Any) -> None:
            original(state, reason, *args, **kwargs)
            self._end(state.request_id, str(reason), self._now_ns)

        return update_stats_from_finished

    def abort_requests(self, original: Callable[..., list[str]]) -> Callable[..., list[str]]:
        """Clients left."""

        def abort_requests(request_ids: Iterable[str], internal: bool) -> list[str]:
            aborted = original(request_ids, internal)
            for request_id in aborted:
                self._end(request_id, _ABORT)
            return aborted

        return abort_requests

    def propagate_error(self, original: Callable[[Exception], None]) -> Callable[[Exception], None]:
        """The engine died."""

        def propagate_error(error: Exception) -> None:
            original(error)
            self.end_all(_ERROR)

        return propagate_error

    def end_all(self, reason: str = _ABORT) -> None:
        """Record all that is in flight, with the tokens made so far."""
        for request_id in list(self._flights):
            self._end(request_id, reason)

    # --- records -------------------------------------------------------------------------------------------

    def _begin(self, request: Any) -> None:
        request_id = request.request_id
        state = self._states.get(request_id)
        if state is None or request_id in self._flights:  # a streamed prompt is complete, or goes on
            return
        if state.lora_request is not None:
            self._deployment_for(state.lora_request)  # so that a new adapter is identified when it is needed
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        now_us = time.time_ns() // 1000
        arrived_us = int(request.arrival_time * 1_000_000)
        flight = _Flight(
            id=self._recorder.begin(input_tokens=state.prompt_len),
            state=state,
            arrived_us=arrived_us if 0 <= now_us - arrived_us <= _MAX_WAIT_US else now_us,
            began_us=now_us,
            began_ns=time.monotonic_ns(),
            tenant=self._fields.tenant_in(extra),
            parent=self._fields.parent_in(extra),
        )
        self._flights[request_id] = self._silent[request_id] = flight

    def _end_freed(self, reason: str) -> None:
        """End those that were freed without a reason; of the others, nothing is left by now."""
        while self._freed:
            self._end(self._freed.pop(), reason)

    def _note_first(self, outputs: list[Any]) -> None:
        silent = self._silent
        try:
            for output in outputs:
                if output.request_id in silent and output.new_token_ids:
                    silent.pop(output.request_id).first_ns = self._now_ns
        except Exception as error:
            self._complaints.say("the times of first tokens are not recorded", error)

    def _end(self, request_id: str, reason: str, ended_ns: int | None = None) -> None:
        flight = self._flights.pop(request_id, None)
        if flight is None:
            return
        self._silent.pop(request_id, None)
        try:
            self._record(flight, reason, time.monotonic_ns() if ended_ns is None else ended_ns)
        except Exception as error:
            self._recorder.lose(flight.id)
            self._complaints.say("a request was not recorded", error)

    def _record(self, flight: _Flight, reason: str, ended_ns: int) -> None:
        state = flight.state
        # Copies: the lists are vLLM's, which hands them to the caller.
        output = None if state.detokenizer is None else state.detokenizer.output_token_ids[:]
        if reason == _ERROR and not output:
            self._recorder.abandon(flight.id)
            return
        # Where the prompt is given as embeddings, in part or whole, ids do not say what it was.
        prompt = state.prompt_token_ids if state.prompt_embeds is None else None
        self._recorder.record(
            id=flight.id,
            usage=_usage(state, 0 if output is None else len(output)),
            started_us=flight.arrived_us,
            first_token_us=None if flight.first_ns is None else _at_us(flight, flight.first_ns),
            ended_us=_at_us(flight, ended_ns),
            input_ids=None if prompt is None else prompt[:],
            output_ids=output,
            finish_reason=reason,
            request_id=state.external_req_id
            if state.parent_req is None
            else state.parent_req.external_req_id,
            tenant=flight.tenant,
            parent=flight.parent,
            deployment=self._deployment_for(state.lora_request),
        )


def _at_us(flight: _Flight, steady_ns: int) -> int:
    """Unix microseconds of a steady time: a clock that is set during the request moves nothing."""
    return flight.began_us + max(0, steady_ns - flight.began_ns) // 1000


def _usage(state: Any, output_tokens: int) -> Usage:
    drafted = getattr(state, "spec_decode_metrics", None)  # not before 0.28
    # Until the first token, vLLM's 0 cached tokens mean that it has not told yet.
    known = not state.is_prefilling
    return Usage(
        input_tokens=state.prompt_len,
        output_tokens=output_tokens,
        cached_input_tokens=min(state.num_cached_tokens, state.prompt_len) if known else UNSET,
        drafted_tokens=UNSET if drafted is None else drafted.num_draft_tokens,
        accepted_tokens=UNSET
        if drafted is None
        else sum(accepted * count for accepted, count in enumerate(drafted.histogram)),
    )
