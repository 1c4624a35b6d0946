"""Owns the hook for ONNX Runtime GenAI: each generated sequence becomes one record. Two lines to adopt::

    model = onnxruntime_genai.attach(og.Model(folder), recorder, folder)
    generator = model.generator(params)

The loop is the caller's own, so what ``model.generator`` gives stands in for ``og.Generator``: the same
methods, and a generation is recorded when ``is_done()`` has become true after a token. A caller that leaves
the loop earlier says so by ``generator.finish("stop")``; else the tokens made by then are recorded as
``abort`` when it appends the next turn, when a ``with`` block ends, or when the generator goes away.

Semantics, as 0.18 behaves: ``get_sequence`` has prompt and answer without the last end-of-sequence token,
which ``get_next_tokens`` shows and which is counted; of a beam search it must not be asked before the end;
in a batch, prompts and answers are filled up with the pad token; a second turn goes on from the tokens of
the first, which then are in the cache. Tokens of beams are those returned.

Supported: onnxruntime-genai from 0.9 on (run with 0.18). Its ``Engine`` with requests and turns is not
covered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ledger.core.records import Adapter, Deployment, Usage
from ledger.emit._complaints import Complaints
from ledger.emit.engines._request import Request
from ledger.emit.model_identity import identified
from ledger.emit.recorder import Recorder
from ledger.energy.attribution import Share, SharedMeter
from ledger.energy.host_power import HostPower, host_power

__all__ = ["RecordedGenerator", "RecordedModel", "Request", "attach", "deployment_of"]

_NS_PER_US = 1000
_ABORT = "abort"
_MAX_GRAPH_BYTES = 64 << 20
"""Of a graph that is looked at for its quantization. Those of the model builder keep their weights apart."""


def deployment_of(
    folder: str | Path,
    *,
    model: str | None = None,
    version: str | None = None,
    quantization: str | None = None,
    adapters: Sequence[Adapter] = (),
    accelerator: str | None = None,
    host: HostPower | None = None,
    provider: str | None = None,
    region: str | None = None,
    site: str | None = None,
    wait_s: float | None = 5.0,
    digest_cache: Path | None = None,
) -> Callable[[], Deployment]:
    """Describe a model; return a function that gives it, with the weights' digest once that is known.

    Args:
        folder: with ``genai_config.json``.
        model: the model's name; the folder's if absent.
        version: the model's version.
        quantization: the scheme; ``int4`` or ``int8`` if absent and the graph has such matrix products.
        adapters: adapters that are active.
        accelerator: what it runs on, where that is not the CPU.
        host: the hardware if it is the CPU; this host's if absent.
        provider: who serves it.
        region: where, as a grid or cloud region.
        site: where, as a place.
        wait_s: how long to wait for the digest; see ``ledger.emit.model_identity.identified``.
        digest_cache: the file that remembers digests.
    """
    folder = Path(folder)
    power = None if accelerator else host or host_power()
    deployment = Deployment(
        model=model or folder.resolve().name,
        version=version or UNSET,
        engine="onnxruntime-genai",
        engine_version=_version() or UNSET,
        adapters=tuple(adapters) or UNSET,
        quantization=quantization or _quantization(folder) or UNSET,
        accelerator=accelerator or (UNSET if power is None else power.cpu),
        power_mw=UNSET if power is None else power.rated_mw,
        provider=provider or UNSET,
        region=region or UNSET,
        site=site or UNSET,
    )
    return identified(deployment, folder, wait_s=wait_s, cache=digest_cache)


def attach(
    model: Any,
    recorder: Recorder,
    folder: str | Path | None = None,
    *,
    deployment: Deployment | Callable[[], Deployment] | None = None,
) -> RecordedModel:
    """Have recorded what generators of ``model`` generate.

    Args:
        model: an ``og.Model``.
        recorder: takes the records.
        folder: what the model was made from; describes it, and tells which tokens end a sequence.
        deployment: what generates, or a function that tells; ``deployment_of(folder)`` if absent.
    """
    if deployment is None and folder is not None:
        deployment = deployment_of(folder)
    tell = deployment if callable(deployment) else lambda: deployment
    return RecordedModel(model, recorder, tell, None if folder is None else Path(folder))


class RecordedModel:
    """Makes generators that are recorded. Safe to use from many threads.

    Attributes:
        model: the ``og.Model``, for what needs that itself: ``og.Tokenizer(model.model)``.
    """

    def __init__(
        self, model: Any, recorder: Recorder, deployment: Callable[[], Deployment | None], folder: Path | None
    ) -> None:
        self.model = model
        self.recorder = recorder
        self.deployment = deployment
        self.busy = SharedMeter(time.monotonic_ns)
        self.complaints = Complaints("the ONNX Runtime GenAI hook")
        self.eos, self.pad = _special_tokens(model, folder)

    def generator(self, params: Any, request: Request | None = None) -> RecordedGenerator:
        """As ``og.Generator(model, params)``.

        Args:
            params: an ``og.GeneratorParams``.
            request: who asked; the sequences of a batch share it.
        """
        import onnxruntime_genai

        return RecordedGenerator(onnxruntime_genai.Generator(self.model, params), self, params, request)


@dataclass
class _Turn:
    """One stretch of generating: from the first token after a prompt to the last."""

    started_ns: int
    started_us: int
    cached: int
    begins: int
    prompts: list[list[int]]
    record_ids: list[str]
    shares: list[Share]
    steps: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def us(self, steady_ns: int) -> int:
        """Unix microseconds of a steady time."""
        return self.started_us + (steady_ns - self.started_ns) // _NS_PER_US


@dataclass
class _Prompt:
    """When the prompt of a turn was appended, and how much was there before."""

    appended_ns: int = field(default_factory=time.monotonic_ns)
    appended_us: int = field(default_factory=lambda: time.time_ns() // _NS_PER_US)
    cached: int = 0


class RecordedGenerator:
    """An ``og.Generator`` whose generations are recorded. Used by one thread, as that is."""

    def __init__(self, generator: Any, model: RecordedModel, params: Any, request: Request | None) -> None:
        self._generator = generator
        self._model = model
        self._request = request or Request()
        options = params.get_search_options() if hasattr(params, "get_search_options") else {}
        self._batch = int(options.get("batch_size") or 1)
        self._rows = self._batch * int(options.get("num_return_sequences") or 1)
        # Asking for a sequence ends a beam search, so until it is done its prompts are those appended.
        self._beams = int(options.get("num_beams") or 1) > 1
        self._appended: list[list[int]] = [[] for _ in range(self._batch)]
        self._limit = int(options.get("max_length") or 0)
        self._prompt: _Prompt | None = None
        self._turn: _Turn | None = None
        self._ended: str | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the generator's."""
        return getattr(self._generator, name)

    def __enter__(self) -> RecordedGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def __del__(self) -> None:
        with suppress(Exception):
            self.finish()

    def append_tokens(self, tokens: Any) -> None:
        """As ``og.Generator.append_tokens``; ends the turn before, if that is not ended."""
        self.finish()
        prompt = _Prompt()
        if not self._beams:
            with suppress(Exception):  # a generator without tokens yet
                prompt.cached = len(self._generator.get_sequence(0))
        if self._prompt is not None:  # appended in several pieces
            prompt = self._prompt
        self._generator.append_tokens(tokens)
        self._prompt = prompt
        if self._beams:
            try:
                self._keep(tokens)
            except Exception as error:
                self._model.complaints.say("a prompt was not read", error)

    def _keep(self, tokens: Any) -> None:
        values = tokens.as_numpy() if hasattr(tokens, "as_numpy") else tokens
        rows = values.tolist() if hasattr(values, "tolist") else list(values)
        if not isinstance(rows[0], list):
            width = len(rows) // self._batch
            rows = [rows[at * width : (at + 1) * width] for at in range(self._batch)]
        self._appended = [kept + row for kept, row in zip(self._appended, rows, strict=True)]

    def rewind_to(self, length: int) -> None:
        """As ``og.Generator.rewind_to``; ends the turn."""
        self.finish()
        self._generator.rewind_to(length)

    def generate_next_token(self) -> None:
        """As ``og.Generator.generate_next_token``; records the turn when it was the last."""
        if self._turn is None:
            self._begin()
        try:
            self._generator.generate_next_token()
        except BaseException:
            self.finish("error")
            raise
        turn = self._turn
        if turn is None:
            return
        turn.steps += 1
        turn.last_ns = time.monotonic_ns()
        if turn.steps == 1:
            turn.first_ns = turn.last_ns
        if self._generator.is_done():
            self._end(None)
        elif self._request.should_stop is not None and self._request.should_stop():
            self._end(_ABORT)

    def is_done(self) -> bool:
        """As ``og.Generator.is_done``; also true once ``Request.should_stop`` has said so."""
        stopped = self._turn is None and self._prompt is None and self._ended == _ABORT
        return bool(stopped or self._generator.is_done())

    def finish(self, reason: str = _ABORT) -> None:
        """Say that no more tokens of this turn will be generated, and why. Without a turn, does nothing."""
        if self._turn is not None:
            self._end(reason)

    def _begin(self) -> None:
        try:
            prompt, self._prompt = self._prompt or _Prompt(), None
            self._ended = None
            if self._beams:
                rows = [self._appended[at * self._batch // self._rows] for at in range(self._rows)]
            else:
                rows = [self._generator.get_sequence(at).tolist() for at in range(self._rows)]
            prompts = [self._stripped(row) for row in rows]
            self._turn = _Turn(
                started_ns=prompt.appended_ns,
                started_us=prompt.appended_us,
                cached=prompt.cached,
                begins=len(rows[0]),
                prompts=prompts,
                record_ids=[self._model.recorder.begin(input_tokens=len(each)) for each in prompts],
                shares=[self._model.busy.join() for _ in prompts],
            )
        except Exception as error:
            self._model.complaints.say("a generation is not recorded", error)

    def _stripped(self, row: list[int]) -> list[int]:
        """A prompt of a batch without what fills it up, on either side."""
        if self._batch == 1 or self._model.pad is None:
            return row
        start, end = 0, len(row)
        while start < end and row[start] == self._model.pad:
            start += 1
        while end > start and row[end - 1] == self._model.pad:
            end -= 1
        return row[start:end]

    def _end(self, reason: str | None) -> None:
        turn, self._turn = self._turn, None
        self._ended = reason
        if turn is None:
            return
        left = list(turn.record_ids)
        busy = [self._model.busy.leave(share) // _NS_PER_US for share in turn.shares]
        try:
            if turn.steps:
                last = [] if self._beams else self._generator.get_next_tokens().tolist()
                for at in range(len(turn.prompts)):
                    row = self._generator.get_sequence(at).tolist()
                    if at < len(last) and len(row) - turn.begins < turn.steps and last[at] in self._model.eos:
                        row.append(last[at])  # made, shown, and not kept
                    self._record(turn, at, row[turn.begins :], len(row), reason, left[0], busy[at])
                    del left[0]
        except Exception as error:
            self._model.complaints.say("a generation is not recorded", error)
            while left:
                self._model.recorder.lose(left.pop())
        for record_id in left:
            self._model.recorder.abandon(record_id)

    def _record(
        self,
        turn: _Turn,
        at: int,
        tokens: list[int],
        total: int,
        reason: str | None,
        record_id: str,
        busy_us: int,
    ) -> None:
        end = next((n + 1 for n, token in enumerate(tokens) if token in self._model.eos), None)
        if end is not None:
            tokens, reason = tokens[:end], "stop"
        elif reason is None:
            reason = "length" if self._limit and total >= self._limit else "stop"
        request = self._request
        request.record_ids.append(
            self._model.recorder.record(
                id=record_id,
                usage=Usage(
                    input_tokens=len(turn.prompts[at]),
                    output_tokens=len(tokens),
                    cached_input_tokens=min(turn.cached, len(turn.prompts[at]))
                    if self._batch == 1
                    else UNSET,
                ),
                started_us=turn.started_us,
                first_token_us=turn.us(turn.first_ns),
                ended_us=turn.us(turn.last_ns),
                busy_us=busy_us,
                input_ids=turn.prompts[at],
                output_ids=tokens,
                finish_reason=reason,
                request_id=request.request_id,
                tenant=request.tenant,
                parent=request.parent,
                deployment=self._model.deployment(),
            )
        )


def _special_tokens(model: Any, folder: Path | None) -> tuple[frozenset[int], int | None]:
    """The tokens that end a sequence, and the one that fills up: from the config, else the tokenizer."""
    if folder is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads((folder / "genai_config.json").read_bytes())["model"]
            eos = said.get("eos_token_id", [])
            return frozenset(eos if isinstance(eos, list) else [eos]), said.get("pad_token_id")
    import onnxruntime_genai

    tokenizer = onnxruntime_genai.Tokenizer(model)
    return frozenset(int(each) for each in tokenizer.eos_token_ids), int(tokenizer.pad_token_id)


def _version() -> str | None:
    from importlib import metadata

    for package in ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


def _quantization(folder: Path) -> str | None:
    """From the names of the model builder: ``MatMulNBits`` nodes with weights ``..._Q4`` or ``..._Q8``."""
    try:
        config = json.loads((folder / "genai_config.json").read_bytes())
        graph = folder / config["model"]["decoder"]["filename"]
        if graph.stat().st_size > _MAX_GRAPH_BYTES:
            return None
        data = graph.read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if b"MatMulNBits" not in data:
        return None
    four, eight = data.count(b".weight_Q4"), data.count(b".weight_Q8")
    return None if four == eight else "int4" if four > eight else "int8"
