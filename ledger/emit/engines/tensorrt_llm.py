"""Owns the hook for TensorRT-LLM's LLM API: each output of a request becomes one record. Two lines to adopt::

    recorder = Recorder(deployment=...)
    llm = tensorrt_llm.attach(llm, recorder)

``generate_async`` of this ``LLM`` is replaced, which ``generate`` calls too. What it returns is
TensorRT-LLM's own ``RequestOutput``; each response that reaches it, however it is waited for (``result()``,
``await``, ``for``, ``async for``), passes ``_handle_response``, which is watched on that object. A request
is recorded when it has finished; when it is aborted, or its output goes away unfinished, with the tokens
that had come by then, as ``abort``. ``trtllm-serve`` is OpenAI-compatible: ``tallystick proxy`` records it.

Semantics from ``tensorrt_llm/executor/result.py`` of the versions 0.18 to 1.2: ``prompt_token_ids``; for
each output ``token_ids`` (without a stop word that was asked for, unless it is to be included),
``finish_reason`` of stop, length, timeout and cancelled; ``cached_tokens`` of the request, from 1.0 on;
``metrics_dict`` with the time to the first token if the engine was asked for metrics. Drafted and accepted
tokens are not shown.
"""

from __future__ import annotations

import functools
import re
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from ledger.core.records import Adapter, Deployment, Speculative, Usage
from ledger.emit._complaints import Complaints
from ledger.emit.engines._request import Request
from ledger.emit.model_identity import find_model, identified
from ledger.emit.recorder import Recorder

__all__ = ["Request", "attach", "deployment_of", "detach"]

_T = TypeVar("_T")
_REASONS = {"cancelled": "abort", "stop": "stop", "length": "length", "timeout": "timeout"}
_US_PER_S = 1_000_000
_INSTEAD_OF = "_tallystick_instead_of"


def deployment_of(
    llm: Any,
    *,
    model: str | None = None,
    version: str | None = None,
    accelerator: str | None = None,
    power_mw: int | None = None,
    provider: str | None = None,
    region: str | None = None,
    site: str | None = None,
    wait_s: float | None = 5.0,
    digest_cache: Path | None = None,
) -> Callable[[], Deployment]:
    """Describe an ``LLM`` by its ``args``; return a function that gives it, with the digest once known.

    Args:
        llm: the ``LLM``.
        model: the model's name; what the ``LLM`` was made with if absent.
        version: its version; the revision that the ``LLM`` was made with if absent.
        accelerator: what it runs on, such as ``NVIDIA H100``.
        power_mw: rated power of one of them.
        provider: who serves it.
        region: where, as a grid or cloud region.
        site: where, as a place.
        wait_s: how long to wait for the digest; see ``ledger.emit.model_identity.identified``.
        digest_cache: the file that remembers digests.
    """
    args = llm.args
    source = str(args.model)
    revision = version or getattr(args, "revision", None)
    where = find_model(source, getattr(args, "revision", None))
    tensor = int(getattr(args, "tensor_parallel_size", None) or 1)
    pipeline = int(getattr(args, "pipeline_parallel_size", None) or 1)
    deployment = Deployment(
        model=model or (Path(source).name if where is not None and Path(source).exists() else source),
        version=str(revision) if revision else UNSET,
        engine="tensorrt-llm",
        engine_version=_version() or UNSET,
        quantization=_slug(_quantization(args)) or UNSET,
        attention=_slug(getattr(args, "attn_backend", None)) or UNSET,
        speculative=_speculative(getattr(args, "speculative_config", None)) or UNSET,
        tensor_parallel=tensor if tensor > 1 else UNSET,
        pipeline_parallel=pipeline if pipeline > 1 else UNSET,
        accelerator=accelerator or UNSET,
        accelerators=tensor * pipeline,
        power_mw=UNSET if power_mw is None else power_mw,
        provider=provider or UNSET,
        region=region or UNSET,
        site=site or UNSET,
    )
    return identified(deployment, where, wait_s=wait_s, cache=digest_cache)


def attach(
    llm: _T, recorder: Recorder, *, deployment: Deployment | Callable[[], Deployment] | None = None
) -> _T:
    """Have what ``llm`` generates recorded; return ``llm``.

    Say who asked by ``llm.generate_async(..., tallystick=Request(...))``.

    Args:
        llm: a ``tensorrt_llm.LLM``.
        recorder: takes the records.
        deployment: what generates, or a function that tells; ``deployment_of(llm)`` if absent.
    """
    detach(llm)
    target: Any = llm
    if deployment is None:
        deployment = deployment_of(target)
    tell = deployment if callable(deployment) else lambda: deployment
    complaints = Complaints("the TensorRT-LLM hook")
    original = target.generate_async

    @functools.wraps(original)
    def generate_async(*args: Any, tallystick: Request | None = None, **kwargs: Any) -> Any:
        started_us, started_ns = time.time_ns() // 1000, time.monotonic_ns()
        output = original(*args, **kwargs)
        try:
            lora: Any = kwargs.get("lora_request") or (args[2] if len(args) > 2 else None)
            lora_name = getattr(lora, "lora_name", None)
            names = (str(lora_name),) if lora_name else ()
            watch = _Watch(recorder, tell, complaints, tallystick or Request(), started_us, started_ns, names)
            watch.follow(output)
        except Exception as error:
            complaints.say("a request is not recorded", error)
        return output

    setattr(generate_async, _INSTEAD_OF, original)
    target.generate_async = generate_async
    return llm


def detach(llm: Any) -> None:
    """Undo ``attach``."""
    if hasattr(vars(llm).get("generate_async"), _INSTEAD_OF):
        del llm.generate_async


@dataclass
class _Watch:
    """One request. Owned by whoever waits for it; it outlives the output, to record one that went away."""

    recorder: Recorder
    deployment: Callable[[], Deployment | None]
    complaints: Complaints
    request: Request
    started_us: int
    started_ns: int
    adapters: tuple[str, ...]
    prompt: list[int] = field(default_factory=list)
    record_ids: list[str] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    cached: int | None = None
    ttft_s: float | None = None
    first_ns: int = 0
    last_ns: int = 0
    streaming: bool = False
    handling: bool = False
    unread: bool = False
    ended: bool = False

    def follow(self, output: Any) -> None:
        """Watch a ``RequestOutput``. It must not be held on to, so that it can go away."""
        self.prompt = list(output.prompt_token_ids or ())
        self.streaming = bool(getattr(output, "_streaming", False))
        count = len(output.outputs)
        self.record_ids = [self.recorder.begin(input_tokens=len(self.prompt)) for _ in range(count)]
        kind, reference = type(output), weakref.ref(output)
        handle, abort = kind._handle_response, kind.abort

        def _handle_response(*args: Any, **kwargs: Any) -> Any:
            alive = reference()
            self.handling = True
            try:
                result = handle(alive, *args, **kwargs)
            except BaseException:
                self.look(alive)
                self.end("error")
                raise
            finally:
                self.handling = False
            self.look(alive)
            if alive is not None and alive.finished:
                self.end(None)
            return result

        def abort_request() -> Any:
            alive = reference()
            result = abort(alive)
            if not self.handling:  # else a stop string was found, and the end of the request comes next
                self.look(alive)
                self.end("abort")
            return result

        output._handle_response = _handle_response
        output.abort = abort_request
        weakref.finalize(output, self.end, "abort")

    def look(self, output: Any) -> None:
        """See what has come."""
        if output is None or self.ended:
            return
        try:
            self.outputs = list(output.outputs)
            cached = getattr(output, "cached_tokens", None)
            self.cached = cached if isinstance(cached, int) else None
            self.last_ns = time.monotonic_ns()
            if not self.first_ns and any(each.token_ids for each in self.outputs):
                self.first_ns = self.last_ns
            for key, value in (getattr(output, "metrics_dict", None) or {}).items():
                if str(getattr(key, "value", key)).lower() == "ttft" or getattr(key, "name", "") == "TTFT":
                    self.ttft_s = float(value)
        except Exception as error:
            self.unread = True
            self.complaints.say("a response was not read", error)

    def end(self, reason: str | None) -> None:
        """Record the outputs. Once."""
        if self.ended:
            return
        self.ended = True
        left = list(self.record_ids)
        try:
            for output in self.outputs:
                tokens = list(output.token_ids or ())
                if tokens or reason is None:
                    said = _REASONS.get(output.finish_reason or "", output.finish_reason)
                    self._record(tokens, said or reason or "error", left[0] if left else None)
                    del left[:1]
        except Exception as error:
            self.complaints.say("a request is not recorded", error)
            while left:
                self.recorder.lose(left.pop())
        for record_id in left:
            (self.recorder.lose if self.unread else self.recorder.abandon)(record_id)

    def _record(self, tokens: list[int], reason: str, record_id: str | None) -> None:
        ended_us = self._us(self.last_ns or time.monotonic_ns())
        first_us = None
        if self.ttft_s is not None:
            first_us = min(ended_us, self.started_us + int(self.ttft_s * _US_PER_S))
        elif self.streaming and self.first_ns:
            first_us = self._us(self.first_ns)
        self.request.record_ids.append(
            self.recorder.record(
                id=record_id,
                usage=Usage(
                    input_tokens=len(self.prompt),
                    output_tokens=len(tokens),
                    cached_input_tokens=(
                        UNSET if self.cached is None else min(self.cached, len(self.prompt))
                    ),
                ),
                started_us=self.started_us,
                first_token_us=first_us,
                ended_us=ended_us,
                input_ids=self.prompt,
                output_ids=tokens,
                finish_reason=reason,
                request_id=self.request.request_id,
                tenant=self.request.tenant,
                parent=self.request.parent,
                deployment=self._with_adapters(),
            )
        )

    def _with_adapters(self) -> Deployment | None:
        base = self.deployment()
        if base is None or not self.adapters:
            return base
        return msgspec.structs.replace(base, adapters=tuple(Adapter(name=name) for name in self.adapters))

    def _us(self, steady_ns: int) -> int:
        return self.started_us + (steady_ns - self.started_ns) // 1000


def _version() -> str | None:
    from importlib import metadata

    for package in ("tensorrt-llm", "tensorrt_llm"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _slug(value: object) -> str | None:
    return re.sub(r"[^A-Za-z0-9._:~-]+", "-", str(value)).strip("-._:~")[:64] or None if value else None


def _quantization(args: Any) -> object:
    """The algorithm (``FP8``, ``W4A16_AWQ``), or else the type of the weights where it was said."""
    config = getattr(args, "quant_config", None)
    algorithm = getattr(config, "quant_algo", None)
    if algorithm:
        return getattr(algorithm, "value", algorithm)
    dtype = getattr(args, "dtype", None)
    return None if dtype in (None, "auto") else dtype


def _speculative(config: Any) -> Speculative | None:
    if config is None:
        return None
    depth = getattr(config, "max_draft_len", None)
    drafter = getattr(config, "speculative_model_dir", None) or getattr(config, "speculative_model", None)
    method = getattr(config, "decoding_type", None) or type(config).__name__.removesuffix("DecodingConfig")
    return Speculative(
        method=_slug(method) or "unknown",
        model=Path(str(drafter)).name if drafter else UNSET,
        tokens=depth if isinstance(depth, int) else UNSET,
    )
