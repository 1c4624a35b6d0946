"""Owns the records of transformers' continuous batching: one for each request.

Its ``ContinuousBatchingManager`` takes requests by ``add_request``, as ``generate_batch`` and
``transformers serve`` do, puts the state of each into ``input_queue``, and gives outputs to
``output_router``, from the thread that generates. Semantics from transformers 5.19,
``generation/continuous_batching``: ``generated_tokens`` has the end-of-sequence token; a request that is
cancelled is dropped without an output; the children of a request (``num_return_sequences``) are named
``ID__child#0`` and so on. When memory is short a request may start anew (``offloading_manager``): under its
id with another state, whose prompt ends in the tokens made so far, and which has no times of those.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ledger.core.records import Deployment, Usage
from ledger.emit._complaints import Complaints
from ledger.emit.engines._transformers_generation import ABORT, ERROR
from ledger.emit.recorder import Recorder

__all__ = ["watch_batching"]

_US_PER_S = 1_000_000


def watch_batching(
    init: Callable[..., Any], recorder: Recorder, deployment: Callable[[], Deployment]
) -> Callable[..., Any]:
    """Wrap ``init_continuous_batching`` so that what its managers generate is recorded."""
    complaints = Complaints("the transformers hook")

    @functools.wraps(init)
    def init_continuous_batching(*args: Any, **kwargs: Any) -> Any:
        manager = init(*args, **kwargs)
        if not hasattr(manager, "_tallystick"):  # a manager may be kept for the next batch
            try:
                manager._tallystick = _Manager(manager, recorder, deployment, complaints)
            except Exception as error:
                complaints.say("continuous batching is not recorded", error)
        return manager

    return init_continuous_batching


@dataclass
class _Flight:
    """One request in flight."""

    record_id: str
    state: Any  # as it was queued; a child's is its parent's
    started_us: int
    started_s: float
    wants_times: bool
    is_child: bool

    def us(self, at_s: float) -> int:
        """Unix microseconds of a reading of ``perf_counter``."""
        return self.started_us + max(0, int((at_s - self.started_s) * _US_PER_S))


class _Manager:
    """Watches one manager. Its requests come on any thread, its outputs on the thread that generates."""

    def __init__(
        self, manager: Any, recorder: Recorder, deployment: Callable[[], Deployment], complaints: Complaints
    ) -> None:
        self._recorder = recorder
        self._deployment = deployment
        self._complaints = complaints
        self._manager = manager
        self._children = int(getattr(manager, "num_return_sequences", 1) or 1) - 1
        self._lock = threading.Lock()  # guards the flights
        self._flights: dict[str, _Flight] = {}
        router, queue = manager.output_router, manager.input_queue
        put, deliver, deliver_batch = queue.put, router.deliver, router.deliver_batch
        cancel, stop = manager.cancel_request, manager.stop

        def take(state: Any, *args: Any, **kwargs: Any) -> Any:
            self._guard(self._begin, state)
            try:
                return put(state, *args, **kwargs)
            except BaseException:  # the queue is full: refused
                self._guard(self._end_all, state.request_id, None)
                raise

        def give(output: Any) -> Any:
            self._guard(self._output, output)
            return deliver(output)

        def give_batch(outputs: list[Any]) -> Any:
            for each in outputs:
                self._guard(self._output, each)
            return deliver_batch(outputs)

        def cancel_request(request_id: str) -> Any:
            self._guard(self._end, request_id, ABORT)
            return cancel(request_id)

        def stop_all(*args: Any, **kwargs: Any) -> Any:
            try:
                return stop(*args, **kwargs)
            finally:
                self._guard(self._end_all, None, ABORT)

        queue.put, router.deliver, router.deliver_batch = take, give, give_batch
        manager.cancel_request, manager.stop = cancel_request, stop_all

    def _guard(self, do: Callable[..., None], *args: Any) -> None:
        try:
            do(*args)
        except Exception as error:
            self._complaints.say("a request is not recorded", error)

    def _begin(self, state: Any) -> None:
        wants_times, state.record_timestamps = state.record_timestamps, True
        names = [state.request_id, *(f"{state.request_id}__child#{at}" for at in range(self._children))]
        for name in names:
            flight = _Flight(
                self._recorder.begin(input_tokens=len(state.initial_tokens)),
                state,
                time.time_ns() // 1000,
                time.perf_counter(),
                wants_times,
                name != state.request_id,
            )
            with self._lock:
                self._flights[name] = flight

    def _output(self, output: Any) -> None:
        with self._lock:
            flight = self._flights.pop(output.request_id, None) if output.is_finished() else None
            known = flight or self._flights.get(output.request_id)
        times = list(output.timestamps or [])
        if known is not None and not known.wants_times:
            output.timestamps = None
        if flight is None:
            return
        tokens = list(output.generated_tokens)
        if output.error is not None:
            self._record(flight, list(output.prompt_ids), tokens, times, ERROR)
            return
        eos = flight.state.eos_token_id
        eos = eos if isinstance(eos, (list, tuple, set)) else (eos,)
        reason = "stop" if tokens and tokens[-1] in eos else "length"
        self._record(flight, list(output.prompt_ids), tokens, times, reason)

    def _end(self, request_id: str, reason: str | None) -> None:
        """End a request that gives no output: cancelled, or refused."""
        with self._lock:
            flight = self._flights.pop(request_id, None)
        if flight is None:
            return
        state = None if reason is None else self._state(request_id)
        if state is None and request_id == flight.state.request_id:
            state = flight.state
        if state is None:  # a child that is not there yet, or not any more
            self._record(flight, list(flight.state.initial_tokens), [], [], reason or ABORT)
            return
        tokens, times = [*state.initial_tokens, *state.generated_tokens], list(state._timestamps)
        prompt = len(flight.state.initial_tokens)
        self._record(flight, tokens[:prompt], tokens[prompt:], times, reason or ABORT)

    def _state(self, request_id: str) -> Any:
        """The state that a request has now; None if the scheduler does not have it at this moment."""
        scheduler = getattr(getattr(self._manager, "batch_processor", None), "scheduler", None)
        if scheduler is None:
            return None
        return scheduler.active_requests.get(request_id) or scheduler.waiting_requests.get(request_id)

    def _end_all(self, request_id: str | None, reason: str | None) -> None:
        with self._lock:
            names = [
                name
                for name, flight in self._flights.items()
                if request_id in (None, flight.state.request_id)
            ]
        for name in names:
            self._end(name, reason)

    def _record(
        self, flight: _Flight, prompt: list[int], tokens: list[int], times: list[float], reason: str
    ) -> None:
        if not tokens and reason in (ABORT, ERROR):
            self._recorder.abandon(flight.record_id)
            return
        ended_us = flight.us(times[-1] if times else time.perf_counter())
        first_s = _first(flight, times, len(tokens))
        self._recorder.record(
            id=flight.record_id,
            usage=Usage(input_tokens=len(prompt), output_tokens=len(tokens)),
            started_us=flight.started_us,
            first_token_us=None if first_s is None else flight.us(first_s),
            ended_us=ended_us,
            input_ids=prompt,
            output_ids=tokens,
            finish_reason=reason,
            request_id=flight.state.request_id,
            deployment=self._deployment(),
        )


def _first(flight: _Flight, times: list[float], tokens: int) -> float | None:
    """When the first token was there, by ``perf_counter``; None if its time is lost with an earlier state."""
    if len(times) >= tokens:
        return times[0] if times else None
    earlier = flight.state._timestamps
    return earlier[0] if earlier and not flight.is_child else None
