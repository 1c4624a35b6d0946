"""Owns the hook for Hugging Face transformers: each sequence becomes one record. Two lines to adopt::

    recorder = Recorder()
    model = transformers.attach(model, recorder)

``model.generate`` is replaced on this object alone, so pipelines, threads that feed a streamer, and what
wraps the model (``DeepSpeed``'s ``InferenceEngine`` calls the model's ``generate``) are recorded too; the
answer is transformers' own. What happens inside is seen through a stopping criterion, which is passed along
with the caller's own and stops nothing. ``model.init_continuous_batching`` is replaced likewise, which is
what ``generate_batch`` and ``transformers serve`` generate with.

Say who asked, or stop when the client is gone, by one more argument, which also learns the records' ids::

    request = transformers.Request(tenant="customer-1", request_id="r-1", should_stop=gone.is_set)
    model.generate(**inputs, tallystick=request)

With several prompts in a batch, pass a list of them. A generation that an exception left before its first
token is not recorded; one that was left later is, with the tokens that were there, as ``abort`` or
``error``.

Supported: transformers 5 (written against 5.19).
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import UNSET

from ledger.core.records import Deployment, Speculative, Usage
from ledger.emit._complaints import Complaints
from ledger.emit.engines._request import Request
from ledger.emit.engines._transformers_batching import watch_batching
from ledger.emit.engines._transformers_deployment import active_adapters, deployment_of, variant
from ledger.emit.engines._transformers_generation import (
    Answer,
    Prompts,
    Steps,
    Stops,
    answers,
    is_assisted,
    reason_of_error,
    setting,
)
from ledger.emit.recorder import Recorder
from ledger.energy.attribution import Share, SharedMeter

__all__ = ["Request", "attach", "deployment_of", "detach"]

_T = TypeVar("_T")

_POSITIONAL = (
    "inputs",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
)
"""Of ``GenerationMixin.generate``, for what passes its arguments on to it."""
_NS_PER_US = 1000
_REPLACED = ("generate", "init_continuous_batching")
_INSTEAD_OF = "_tallystick_instead_of"


def attach(
    model: _T, recorder: Recorder, *, deployment: Deployment | Callable[[], Deployment] | None = None
) -> _T:
    """Have each sequence that ``model`` generates recorded; return ``model``.

    Args:
        model: a ``PreTrainedModel``, a ``PeftModel``, a pipeline, or DeepSpeed's ``InferenceEngine``.
        recorder: takes the records.
        deployment: what generates, or a function that tells; ``deployment_of(model)`` if absent.
    """
    target: Any = model
    target = target.model if hasattr(target, "preprocess") and hasattr(target, "model") else target
    detach(target)
    if deployment is None:
        deployment = deployment_of(target)
    tell = deployment if callable(deployment) else lambda: deployment
    hook = _Hook(target, recorder, tell)
    original = target.generate
    names = _names_of(original)

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        return hook.run(original, dict(zip(names, args, strict=False)) | kwargs, args[len(names) :])

    _replace(target, "generate", generate)
    if hasattr(target, "init_continuous_batching"):
        watched = watch_batching(target.init_continuous_batching, recorder, hook.deployment)
        _replace(target, "init_continuous_batching", watched)
    return model


def detach(model: Any) -> None:
    """Undo ``attach``."""
    model = model.model if hasattr(model, "preprocess") and hasattr(model, "model") else model
    for name in _REPLACED:
        replacement = vars(model).get(name)
        if hasattr(replacement, _INSTEAD_OF):
            delattr(model, name)
            if getattr(replacement, _INSTEAD_OF) is not None:
                setattr(model, name, getattr(replacement, _INSTEAD_OF))


def _replace(model: Any, name: str, replacement: Any) -> None:
    """Give the object an attribute of its own, which remembers the one that it had, if it had one."""
    setattr(replacement, _INSTEAD_OF, vars(model).get(name))
    setattr(model, name, replacement)


def _names_of(generate: Any) -> tuple[str, ...]:
    """Names of the positional arguments."""
    kinds = inspect.signature(generate).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in kinds):
        return _POSITIONAL
    return tuple(each.name for each in kinds if each.kind is each.POSITIONAL_OR_KEYWORD)


class _Hook:
    """What is the same for all calls of one model. Safe to use from many threads."""

    def __init__(self, model: Any, recorder: Recorder, deployment: Callable[[], Deployment]) -> None:
        self.model = model
        self.recorder = recorder
        self.busy = SharedMeter(time.monotonic_ns)
        self.complaints = Complaints("the transformers hook")
        self._deployment = deployment
        self._variants: dict[Any, Deployment] = {}
        self._inside = threading.local()

    def run(self, original: Callable[..., Any], arguments: dict[str, Any], more: tuple[Any, ...]) -> Any:
        """Call ``generate`` and record what it made. Errors of the hook cost records, never the answer."""
        requests = arguments.pop("tallystick", None)
        # A model that calls its own ``generate`` within (early exit) is one generation; the paged cache is
        # generated by ``init_continuous_batching``; the ranks of a tensor-parallel model all see the same.
        if (
            getattr(self._inside, "yes", False)
            or arguments.get("cache_implementation") == "paged"
            or self._is_another_rank()
        ):
            return original(*more, **arguments)
        call = None
        try:
            call = _Call(self, arguments, requests)
            arguments = call.arguments
        except Exception as error:
            self.complaints.say("a generation is not recorded", error)
        self._inside.yes = True
        try:
            result = original(*more, **arguments)
        except BaseException as error:
            if call is not None:
                call.end(None, reason_of_error(error))
            raise
        finally:
            self._inside.yes = False
        if call is not None:
            call.end(result, None)
        return result

    def deployment(self, arguments: Mapping[str, Any] | None = None) -> Deployment:
        """What generates now: adapters may be switched, and an assistant is chosen with each call."""
        base = self._deployment()
        adapters = active_adapters(self.model)
        speculative = None if arguments is None else _speculative(arguments, self.model)
        if speculative is None and adapters == tuple(each.name for each in (base.adapters or ())):
            return base
        key = (base, adapters, speculative)
        found = self._variants.get(key)
        if found is None:
            found = self._variants[key] = variant(base, adapters, speculative)
        return found

    def _is_another_rank(self) -> bool:
        if (getattr(self.model, "tp_size", None) or 1) == 1:
            return False
        import torch

        return bool(torch.distributed.is_initialized() and torch.distributed.get_rank() != 0)


class _Call:
    """One call of ``generate``. Owned by the thread that generates."""

    def __init__(self, hook: _Hook, arguments: dict[str, Any], requests: Any) -> None:
        from transformers.generation import StoppingCriteriaList

        self._hook = hook
        model = hook.model
        self._requests = _requests(requests)
        self._steps = Steps([each.should_stop for each in self._requests if each.should_stop is not None])
        self._given = arguments
        self._prompts = Prompts.of(arguments, model)
        rows = self._prompts.count * (setting("num_return_sequences", arguments, model) or 1)
        criteria = list(arguments.get("stopping_criteria") or ())
        # transformers' own kinds are looked for by their type, so they stay as they are.
        own = [each for each in criteria if not type(each).__module__.startswith("transformers.")]
        self._stops = Stops(own) if own and rows > 1 else None
        if self._stops is not None:
            criteria = [*(each for each in criteria if each not in own), self._stops]
        self.arguments = {**arguments, "stopping_criteria": StoppingCriteriaList([*criteria, self._steps])}
        self._deployment = hook.deployment(arguments)
        self._ids: list[str] = []
        self._shares: list[Share] = []
        self._started_us = time.time_ns() // _NS_PER_US
        self._started_ns = time.monotonic_ns()
        for at in range(rows):
            length = self._prompts.lengths[at * self._prompts.count // rows]
            self._ids.append(hook.recorder.begin(input_tokens=int(length)))
            self._shares.append(hook.busy.join())

    def end(self, result: Any, failure: str | None) -> None:
        """Record the sequences, if there are any."""
        ended_ns = time.monotonic_ns()
        busy = [self._hook.busy.leave(share) // _NS_PER_US for share in self._shares]
        left = list(self._ids)
        try:
            if self._steps.steps_ns or failure is None:
                found = answers(
                    result,
                    self._steps,
                    self._stops,
                    self._prompts,
                    self._given,
                    self._hook.model,
                    ended_ns,
                    failure,
                )
                for at, answer in enumerate(found):
                    self._record(answer, left[0] if left else None, busy[at] if at < len(busy) else None)
                    del left[:1]
        except Exception as error:
            self._hook.complaints.say("a generation is not recorded", error)
            while left:
                self._hook.recorder.lose(left.pop())
        for record_id in left:
            self._hook.recorder.abandon(record_id)

    def _record(self, answer: Answer, record_id: str | None, busy_us: int | None) -> None:
        prompts, steps = self._prompts, self._steps.steps_ns
        at = min(answer.prompt, prompts.count - 1)
        request = self._requests[at if len(self._requests) > 1 else 0]
        first_us = self._us(steps[0]) if steps else None
        ended_us = self._us(answer.ended_ns)
        done = self._hook.recorder.record(
            id=record_id,
            usage=Usage(
                input_tokens=int(prompts.lengths[at]),
                output_tokens=answer.count,
                cached_input_tokens=UNSET if prompts.cached is None else prompts.cached,
                accepted_tokens=UNSET if answer.accepted is None else max(0, answer.accepted),
            ),
            started_us=self._started_us,
            first_token_us=first_us if answer.count else None,
            ended_us=ended_us if first_us is None else max(ended_us, first_us),
            busy_us=busy_us,
            input_ids=None if prompts.tokens is None else prompts.tokens[at],
            output_ids=answer.tokens,
            finish_reason=answer.reason,
            request_id=request.request_id,
            tenant=request.tenant,
            parent=request.parent,
            deployment=self._deployment,
        )
        request.record_ids.append(done)

    def _us(self, steady_ns: int) -> int:
        """Unix microseconds of a steady time: the clock may be set during a generation."""
        return self._started_us + (steady_ns - self._started_ns) // _NS_PER_US


def _requests(given: Any) -> Sequence[Request]:
    if given is None:
        return (Request(),)
    return (given,) if isinstance(given, Request) else tuple(given)


def _speculative(arguments: Mapping[str, Any], model: Any) -> Speculative | None:
    if not is_assisted(arguments, model):
        return None
    lookup = setting("prompt_lookup_num_tokens", arguments, model)
    if lookup is not None:
        return Speculative(method="prompt_lookup", tokens=int(lookup))
    assistant = arguments.get("assistant_model")
    if assistant is None:
        return Speculative(method="mtp" if setting("use_mtp", arguments, model) else "early_exit")
    name = str(getattr(assistant.config, "_name_or_path", "") or type(assistant).__name__)
    depth = getattr(assistant.generation_config, "num_assistant_tokens", None)
    return Speculative(
        method="draft_model",
        model=name.rstrip("/").rsplit("/", 1)[-1][:256],
        tokens=depth if isinstance(depth, int) else UNSET,
    )
