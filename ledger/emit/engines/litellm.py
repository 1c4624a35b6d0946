"""Owns the hook for LiteLLM (1.81), in the SDK and in its proxy. Two lines to adopt in the SDK::

    recorder = Recorder()
    litellm.callbacks = [tallystick.callback(recorder)]  # ledger.emit.engines.litellm as tallystick

and in the proxy, a file ``tallystick_callback.py`` beside ``config.yaml`` with the line
``from ledger.emit.engines.litellm import proxy_handler``, and in ``config.yaml``
``litellm_settings: {callbacks: tallystick_callback.proxy_handler}``; the recorder's settings come from the
TALLYSTICK_ variables.

The extension point is LiteLLM's ``CustomLogger``: each call to a provider begins in ``log_pre_api_call`` and
ends in one of the success or failure events. A retry or a fallback is a call of its own, so each one that
generated is one record; several choices are one record with the usage of all. The id of the record is kept
in the call's own ``kwargs`` (``tallystick_record``), which all events of a call share: so the synchronous and
the asynchronous event of one call give one record. Answers from LiteLLM's cache generated nothing and have
none.

What the hook changes:

- OpenAI-compatible streams are asked for their usage, which LiteLLM itself asks of api.openai.com only. The
  caller's stream stays as it is: LiteLLM strips the usage from chunks. ``ask_usage=False`` switches it off;
  then LiteLLM counts with a tokenizer of its own and the record says ``usage_estimated``.
- ``CustomStreamWrapper.__init__`` is wrapped (``_litellm_streams``), since no event tells that a stream was
  left before its end. Such a stream is recorded with ``finish_reason`` ``abort`` and what its chunks showed:
  in the proxy at once, in the SDK when Python's garbage collector finds it.

A call that the provider had and did not answer is counted as dropped, since it may have generated; so is one
that cannot be recorded, because ``tenant`` or ``estimate`` fails. A call whose end LiteLLM tells nobody
(``no-log`` requests, a task cancelled before the answer) is counted as dropped by the recorder, once it has
been open for too long or the recorder is closed; ``litellm.global_disable_no_log_param`` has the former
recorded.

With budgets (``TALLYSTICK_BUDGETS``), the proxy asks the ledger for room before it routes a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

from litellm.integrations.custom_logger import (  # type: ignore[import-not-found, unused-ignore]
    CustomLogger,
)

from ledger.core.records import Energy, Usage
from ledger.emit import Recorder
from ledger.emit._complaints import Complaints
from ledger.emit.budgets import Budgets, budgets_from_environment
from ledger.emit.engines import _litellm_reading as reading
from ledger.emit.engines._exchange import USAGE_ESTIMATED, now_us
from ledger.emit.engines._litellm_budgets import Reservations
from ledger.emit.engines._litellm_streams import KEY, USAGE, Mark, watch_streams
from ledger.emit.engines._openai import ABORT, ERROR, Kind, mapping, text_or_none
from ledger.emit.engines._providers import field
from ledger.emit.token_estimates import tokens_in

__all__ = ["Callback", "Estimated", "Estimator", "callback", "proxy_handler"]

proxy_handler: Callback
"""The callback for the proxy, made when first asked for, with a recorder of the TALLYSTICK_ variables."""

_HEADER = "x-tallystick-record"
_CURRENCY = "USD"
_SAID = ("prompt", "instructions", "input")
_ASKABLE = {"custom_openai", "hosted_vllm", "openai", "openai_like", "text-completion-openai", "together_ai"}
"""Providers that LiteLLM calls through OpenAI's client, which passes ``extra_body`` on."""


class Estimated(Protocol):
    """What an estimator answers: ``ledger.energy.ecologits_estimates.Estimate`` has it."""

    @property
    def energy(self) -> Energy:
        """Of the request."""

    @property
    def busy_us(self) -> int:
        """Machine time of the request alone."""


class Estimator(Protocol):
    """Estimates a request; None where it does not know the model. ``estimate_request`` is one."""

    def __call__(
        self, provider: str, model: str, *, output_tokens: int, latency_us: int | None = None
    ) -> Estimated | None:
        """Estimate one request, from what the caller of an API sees."""


Tenant = Callable[[Mapping[str, Any]], str | None]


def callback(
    recorder: Recorder,
    *,
    tenant: Tenant = reading.tenant_of,
    estimate: Estimator | None = None,
    ask_usage: bool = True,
    budgets: Budgets | None = None,
) -> Callback:
    """Make the callback for ``litellm.callbacks``.

    Args:
        recorder: takes the records. It needs no deployment: each record names the provider's.
        tenant: tells who asked, from LiteLLM's ``kwargs``; by default the proxy's team, user or key, and
            ``user`` in the SDK.
        estimate: energy of a request from what the caller of an API sees;
            ``ledger.energy.ecologits_estimates.estimate_request``. Without it, energy is unknown and absent.
        ask_usage: whether streams of OpenAI-compatible servers are asked for their usage.
        budgets: are asked for room before each request of the proxy; one without room is answered 429.
    """
    watch_streams()
    return Callback(recorder, tenant=tenant, estimate=estimate, ask_usage=ask_usage, budgets=budgets)


def _safely(hook: Callable[..., None]) -> Callable[..., None]:
    """Log what goes wrong in a hook, once in a while, instead of raising it into LiteLLM."""

    @functools.wraps(hook)
    def guarded(self: Callback, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:
            self._complaints.say(f"{hook.__name__} failed: {error}", error)

    return guarded


class Callback(CustomLogger):  # type: ignore[misc]  # LiteLLM's extension point; it has no types here
    """Records what LiteLLM's calls generate. Make it with ``callback``. Safe to use from any thread.

    Attributes:
        recorder: takes the records; close it at the end.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        tenant: Tenant,
        estimate: Estimator | None,
        ask_usage: bool,
        budgets: Budgets | None = None,
    ) -> None:
        super().__init__()
        self.recorder = recorder
        self._tenant = tenant
        self._estimate = estimate
        self._ask_usage = ask_usage
        self._reserved = Reservations(recorder, budgets, tenant)
        self._complaints = Complaints("LiteLLM")

    # --- LiteLLM's events ----------------------------------------------------------------------------

    async def async_pre_call_hook(
        self,
        user_api_key_dict: Any,  # noqa: ARG002
        cache: Any,  # noqa: ARG002
        data: dict[str, Any],
        call_type: str,
    ) -> None:
        """A request came to the proxy: ask the budgets.

        Raises:
            BudgetExceeded: there is no room.
        """
        await self._reserved.reserve(data, call_type)

    async def async_post_call_failure_hook(
        self, request_data: dict[str, Any], *_: Any, **_event: Any
    ) -> None:
        """A request of the proxy failed, perhaps before any attempt."""
        self._reserved.drop_request(request_data)

    @_safely
    def log_pre_api_call(self, *, kwargs: dict[str, Any], **_event: Any) -> None:
        """A call to a provider begins."""
        if reading.generates(kwargs) is None:
            return
        self._end_unreported(kwargs)
        kwargs[KEY] = mark = self._begin(kwargs)
        sent = mapping(kwargs.get("additional_args")).get("complete_input_dict")
        if not isinstance(sent, dict):
            return
        mark.said = {name: sent[name] for name in _SAID if name in sent}
        if (
            self._ask_usage
            and kwargs.get("stream") is True
            and not sent.get("stream_options")
            and kwargs.get("custom_llm_provider") in _ASKABLE
        ):
            sent["extra_body"] = {**mapping(sent.get("extra_body")), "stream_options": USAGE}
            mark.asked = True

    @_safely
    def log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """A call came to its end; the answer of a stream is assembled."""
        self._succeed(kwargs, response_obj, start_time, end_time)

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Likewise, of an asynchronous call."""
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    @_safely
    def log_failure_event(self, *, kwargs: dict[str, Any], **_event: Any) -> None:
        """A call failed: at once, or in the middle of its stream.

        One that the provider did not answer, though it had it, may have generated: it is lost.
        """
        self._end_unreported(kwargs, unanswered=reading.was_unanswered(kwargs.get("exception")))

    async def async_log_failure_event(self, *, kwargs: dict[str, Any], **_event: Any) -> None:
        """Likewise, of an asynchronous call."""
        self.log_failure_event(kwargs=kwargs)

    async def async_post_call_response_headers_hook(
        self, *, data: dict[str, Any], **_event: Any
    ) -> dict[str, str] | None:
        """The proxy's answer names the record."""
        details = field(data.get("litellm_logging_obj"), "model_call_details")
        mark = mapping(details).get(KEY)
        return {_HEADER: str(mark)} if isinstance(mark, Mark) else None

    async def async_post_call_streaming_iterator_hook(
        self,
        user_api_key_dict: Any,  # noqa: ARG002
        response: Any,
        request_data: dict[str, Any],
    ) -> AsyncIterator[Any]:
        """Pass a stream of the proxy on; note when its client goes away."""
        try:
            async for chunk in response:
                yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            details = mapping(field(request_data.get("litellm_logging_obj"), "model_call_details"))
            mark = details.get(KEY)
            if isinstance(mark, Mark) and mark.chunks is not None:
                self._leave(mark, details, True)
            raise

    # --- what becomes of a call ----------------------------------------------------------------------

    def _begin(self, kwargs: Mapping[str, Any]) -> Mark:
        return Mark.of(self._reserved.take(kwargs) or self.recorder.begin(), self._leave)

    def _succeed(self, kwargs: dict[str, Any], response: Any, start_time: Any, end_time: Any) -> None:
        kind = reading.generates(kwargs)
        if kind is None:
            return
        mark = kwargs.get(KEY)
        if not isinstance(mark, Mark):
            if kwargs.get("cache_hit"):
                self._reserved.drop(kwargs)
                return
            mark = self._begin(kwargs)  # a provider that LiteLLM calls without telling of it before
            mark.started_us = reading.micros(start_time) or mark.started_us
            kwargs[KEY] = mark
        if not mark.take():
            return
        with self._losing(mark):
            self._end(mark, kwargs, kind, response, end_time)

    def _end(self, mark: Mark, kwargs: dict[str, Any], kind: Kind, response: Any, end_time: Any) -> None:
        if kwargs.get("cache_hit"):
            self._reserved.abandon(str(mark))
            return
        usage = reading.answer_usage(response)
        if usage is None:
            self._reserved.lose(str(mark))
            self._complaints.say(f"no usage in the answer to a {kwargs.get('call_type')} call: not recorded")
            return
        told = mark.chunks is None or reading.usage_was_told(mark.chunks)
        text = reading.answer_text(response)
        if mark.chunks and (mapping(kwargs.get("optional_params")).get("n") or 1) != 1:
            # LiteLLM mixes the texts, and stops at the second end, before the usage of them all.
            shown = reading.partial_answer(mark.chunks)
            told, text = False, shown.output_text()
            made = max(usage.output_tokens, shown.parts)
            usage = Usage(input_tokens=usage.input_tokens, output_tokens=made)
        if mark.chunks is None:
            reason = reading.finish_reason_of(response)
        else:  # of a stream, LiteLLM often says ``stop`` where the provider said something else, or nothing
            reason = reading.finish_reason_of_stream(mark.chunks)
            if reason is None and reading.metadata_of(kwargs).get("client_disconnected"):
                reason = ABORT
        cost = None
        if reason not in (ABORT, ERROR):
            cost = reading.cost_nano(kwargs.get("response_cost"))
            if cost is None and mark.chunks and not kwargs.get("response_cost_failure_debug_information"):
                # Threads that handle the stream's earlier chunks set the field to None, at times after it was
                # set to what the whole answer costs.
                cost = reading.cost_nano(mark.price(response))
        self._record(
            mark,
            kwargs,
            kind,
            usage,
            cost=cost,
            estimated=not told,
            text=text,
            reason=reason,
            answered_as=text_or_none(field(response, "model")),
            request_id=text_or_none(field(response, "id")),
            ended_us=reading.micros(end_time),
        )

    @contextlib.contextmanager
    def _losing(self, mark: Mark) -> Iterator[None]:
        """Count the call as dropped if what ends it fails: its id is taken, so nobody else will."""
        try:
            yield
        except Exception:
            self._reserved.lose(str(mark))
            raise

    def _end_unreported(self, kwargs: dict[str, Any], *, unanswered: bool = False) -> None:
        """End the call that ``kwargs`` is of, if nobody did: it failed, or gave way to another attempt."""
        mark = kwargs.pop(KEY, None)
        if isinstance(mark, Mark) and mark.take():
            with self._losing(mark):
                self._break_off(mark, kwargs, ERROR, unanswered=unanswered)

    def _leave(self, mark: Mark, kwargs: Mapping[str, Any], told: bool) -> None:
        """A stream is gone. Was it read to its end, an event follows, until there can be none any more."""
        try:
            ended = reading.finish_reason_of_stream(mark.chunks or ()) is not None
            if (told or not ended) and mark.take():
                with self._losing(mark):
                    self._break_off(mark, kwargs, ABORT)
        except Exception as error:
            self._complaints.say(f"recording a stream that was left failed: {error}", error)

    def _break_off(
        self, mark: Mark, kwargs: Mapping[str, Any], reason: str, *, unanswered: bool = False
    ) -> None:
        kind = reading.generates(kwargs)
        answer = reading.partial_answer(mark.chunks or ())
        if kind is None or not (answer.has_output or (reason == ABORT and mark.chunks is not None)):
            if unanswered:
                self._reserved.lose(str(mark))
                self._complaints.say("a call is counted as dropped, for it was never answered")
            else:
                self._reserved.abandon(str(mark))
            return
        counts = answer.counts()
        asked = reading.input_text_of(kind, kwargs, mark.said) or ""
        self._record(
            mark,
            kwargs,
            kind,
            counts or Usage(input_tokens=tokens_in(asked), output_tokens=answer.parts),
            estimated=counts is None,
            text=answer.output_text(),
            reason=answer.finish_reason or reason,
            answered_as=answer.model,
            request_id=answer.request_id,
            ended_us=None if mark.chunks is None else mark.chunks.last_us,
        )

    def _record(
        self,
        mark: Mark,
        kwargs: Mapping[str, Any],
        kind: Kind,
        usage: Usage,
        *,
        estimated: bool,
        text: str | None,
        reason: str | None,
        answered_as: str | None,
        request_id: str | None,
        ended_us: int | None,
        cost: int | None = None,
    ) -> None:
        deployment = reading.deployment_of(kwargs, answered_as)
        first_us = None if mark.chunks is None else mark.chunks.first_us
        if first_us is not None:
            first_us = max(first_us, mark.started_us)
        ended_us = max(ended_us or now_us(), mark.started_us, first_us or 0)
        energy = busy_us = None
        if self._estimate is not None:
            provider = text_or_none(kwargs.get("custom_llm_provider")) or ""
            found = self._estimate(
                provider,
                deployment.model,
                output_tokens=usage.output_tokens,
                latency_us=ended_us - mark.started_us,
            )
            if found is not None:
                energy, busy_us = found.energy, found.busy_us
        self.recorder.record(
            id=str(mark),
            usage=usage,
            started_us=mark.started_us,
            first_token_us=first_us,
            ended_us=ended_us,
            busy_us=busy_us,
            input_text=reading.input_text_of(kind, kwargs, mark.said),
            output_text=text,
            finish_reason=reason,
            request_id=request_id or text_or_none(kwargs.get("litellm_call_id")),
            tenant=self._tenant(kwargs),
            parent=reading.parent_of(kwargs),
            deployment=deployment,
            energy=energy,
            quality=USAGE_ESTIMATED if estimated else None,
            cost_nano=cost,
            currency=None if cost is None else _CURRENCY,
        )


def __getattr__(name: str) -> Any:
    if name != "proxy_handler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    recorder = Recorder()
    budgets = budgets_from_environment(pseudonym=recorder.pseudonym)
    made = globals()[name] = callback(recorder, budgets=budgets)
    return made
