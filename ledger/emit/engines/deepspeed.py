"""Owns the hooks for DeepSpeed: Inference, and MII. Two lines to adopt::

    recorder = Recorder(deployment=...)
    engine = deepspeed.attach(engine, recorder)      # of deepspeed.init_inference
    pipe = deepspeed.attach(pipe, recorder)          # of mii.pipeline, or mii.client of a mii.serve

- ``InferenceEngine.generate`` hands on to the model's ``generate``, so it is recorded as transformers is,
  with token ids, by ``ledger.emit.engines.transformers``.
- ``mii.pipeline(...)(prompts)`` and ``MIIClient.generate(prompts)`` return a ``Response`` for each prompt,
  with ``prompt_length`` and ``generated_length`` (tokens, as MII counts them) and ``finish_reason``, but no
  token ids: the commitments are to the texts. A stream of the client (``streaming_fn``) gives a list of one
  for each token, with the length so far, and a last one without text that has the reason.

Semantics from DeepSpeed-MII 0.3.3 (``mii/batching/data_classes.py``, ``ragged_batching.py``,
``backend/client.py``) and DeepSpeed 0.19 (``deepspeed/inference/engine.py``).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ledger.core.records import Deployment, Usage
from ledger.emit._complaints import Complaints
from ledger.emit.engines import transformers
from ledger.emit.engines._request import Request
from ledger.emit.recorder import Recorder

__all__ = ["RecordedPipeline", "Request", "attach"]

_T = TypeVar("_T")
_ERROR = "error"


def attach(
    engine: _T, recorder: Recorder, *, deployment: Deployment | Callable[[], Deployment] | None = None
) -> _T | RecordedPipeline:
    """Have what ``engine`` generates recorded.

    Args:
        engine: what ``deepspeed.init_inference``, ``mii.pipeline`` or ``mii.client`` returned.
        recorder: takes the records.
        deployment: what generates, or a function that tells. If absent: for an ``InferenceEngine``, read from
            its model; for MII, the recorder's own.

    Returns:
        The ``InferenceEngine`` itself; or what is called instead of the pipeline or client.
    """
    inner = getattr(engine, "module", None)
    if inner is not None and hasattr(engine, "generate"):
        if deployment is None:
            deployment = transformers.deployment_of(inner, engine="deepspeed", engine_version=_version())
        return transformers.attach(engine, recorder, deployment=deployment)
    tell = deployment if callable(deployment) else lambda: deployment
    return RecordedPipeline(engine, recorder, tell)


def _version() -> str | None:
    from importlib import metadata

    with suppress(metadata.PackageNotFoundError):
        return metadata.version("deepspeed")
    return None


@dataclass
class _Prompt:
    """One prompt of a call."""

    text: str
    record_id: str
    pieces: list[Any] = field(default_factory=list)


class RecordedPipeline:
    """An ``MIIPipeline`` or ``MIIClient`` whose generations are recorded. As safe to call as that."""

    def __init__(self, pipe: Any, recorder: Recorder, deployment: Callable[[], Deployment | None]) -> None:
        self._pipe = pipe
        self._recorder = recorder
        self._deployment = deployment
        self._complaints = Complaints("the DeepSpeed-MII hook")

    def __getattr__(self, name: str) -> Any:
        """Everything else is the pipeline's."""
        return getattr(self._pipe, name)

    def __call__(self, prompts: str | Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """As ``MIIPipeline`` and ``MIIClient``; ``tallystick=Request(...)`` says who asked."""
        return self._run(self._pipe, prompts, args, kwargs)

    def generate(self, prompts: str | Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """As ``MIIClient.generate``; ``tallystick=Request(...)`` says who asked."""
        return self._run(self._pipe.generate, prompts, args, kwargs)

    def _run(
        self, run: Callable[..., Any], prompts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        request = kwargs.pop("tallystick", None) or Request()
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        begun = [_Prompt(text, self._recorder.begin()) for text in texts]
        started_us, started_ns, first_ns = time.time_ns() // 1000, time.monotonic_ns(), 0
        positional = list(args)
        stream = positional[0] if positional else kwargs.get("streaming_fn")
        if callable(stream):

            @functools.wraps(stream)
            def piece(responses: Any) -> Any:
                nonlocal first_ns
                first_ns = first_ns or time.monotonic_ns()
                begun[0].pieces += responses if isinstance(responses, list) else [responses]
                return stream(responses)

            if positional:
                positional[0] = piece
            else:
                kwargs["streaming_fn"] = piece
        failure = None
        try:
            result = run(prompts, *positional, **kwargs)
            for prompt, response in zip(begun, result or (), strict=False):
                prompt.pieces.append(response)
            return result
        except BaseException as error:
            from ledger.emit.engines._transformers_generation import reason_of_error

            failure = reason_of_error(error)
            raise
        finally:
            ended_us = started_us + (time.monotonic_ns() - started_ns) // 1000
            first_us = started_us + (first_ns - started_ns) // 1000 if first_ns else None
            full = bool(kwargs.get("return_full_text"))
            for prompt in begun:
                self._record(prompt, request, started_us, first_us, ended_us, failure, full=full)

    def _record(
        self,
        prompt: _Prompt,
        request: Request,
        started_us: int,
        first_us: int | None,
        ended_us: int,
        failure: str | None,
        *,
        full: bool,
    ) -> None:
        try:
            pieces = [each for each in prompt.pieces if each.generated_length is not None]
            if not pieces:  # refused; or on another rank, which sees no responses
                self._recorder.abandon(prompt.record_id)
                return
            last = pieces[-1]
            text = "".join(each.generated_text for each in pieces)
            if full and text.startswith(prompt.text):
                text = text[len(prompt.text) :]
            reason = getattr(last.finish_reason, "value", last.finish_reason)
            request.record_ids.append(
                self._recorder.record(
                    id=prompt.record_id,
                    usage=Usage(
                        input_tokens=int(last.prompt_length),
                        output_tokens=max(int(each.generated_length) for each in pieces),
                    ),
                    started_us=started_us,
                    first_token_us=first_us,
                    ended_us=ended_us,
                    input_text=prompt.text,
                    output_text=text,
                    finish_reason=failure if reason in (None, "none") else reason,
                    request_id=request.request_id,
                    tenant=request.tenant,
                    parent=request.parent,
                    deployment=self._deployment(),
                )
            )
        except Exception as error:
            self._complaints.say("a generation is not recorded", error)
            self._recorder.lose(prompt.record_id)
