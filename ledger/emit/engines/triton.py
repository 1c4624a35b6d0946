"""Owns the hook for Triton Inference Server, at its client: each sequence becomes one record. Two lines to
adopt::

    recorder = Recorder(deployment=...)
    client = triton.attach(client, recorder)

Triton runs engines as backends and shows no Python of its own to the outside, so its requests are recorded
where they are made: by the ``InferenceServerClient`` of ``tritonclient.http`` or ``tritonclient.grpc``.
``infer``, ``async_infer`` and, over gRPC, ``start_stream`` with ``async_stream_infer`` are replaced on this
client. Other ways in:

- Triton's OpenAI frontend is a FastAPI application: ``tallystick proxy`` or the ASGI middleware records it.
- The ``llmapi`` model of TensorRT-LLM and the vLLM backend run in Python: there the hooks of those engines
  see more.

What is visible depends on the model: ``text_input`` and ``text_output`` give a commitment to the texts;
``input_ids`` and ``output_ids`` with ``sequence_length`` (the ``tensorrt_llm`` model itself) one to the
tokens. Token counts and the finish reason are outputs that a request asks for by the inputs
``return_num_input_tokens``, ``return_num_output_tokens`` and ``return_finish_reason``: the hook asks where
the model's metadata lists them. Where a model shows no counts, pass ``count_tokens``; without that, its
requests are not recorded, and the log says so.

Semantics from ``vllm_backend`` (``src/model.py``, ``docs/additional_outputs.md``, 2026-01), and the models
``inflight_batcher_llm`` and ``llmapi`` in TensorRT-LLM's ``triton_backend/all_models``. In a vLLM stream
``num_output_tokens`` is that of each response, and ``finish_reason`` reads ``None`` until there is one.
"""

from __future__ import annotations

import functools
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ledger.core.records import Deployment, Usage
from ledger.emit._complaints import Complaints
from ledger.emit.engines._request import Request
from ledger.emit.engines._triton_tensors import flat, rows_in, text_of, texts_in, true_like
from ledger.emit.recorder import Recorder

__all__ = ["Request", "attach", "detach"]

_T = TypeVar("_T")
_ASKED = ("return_num_input_tokens", "return_num_output_tokens", "return_finish_reason")
_REPLACED = ("infer", "async_infer", "start_stream", "stop_stream", "async_stream_infer")
_INSTEAD_OF = "_tallystick_instead_of"
_FINAL = "triton_final_response"
_UNFINISHED = ("", "None")
"""What a sequence that goes on has as its finish reason."""
_TRY_AGAIN_S = 30.0
"""How long a model whose metadata could not be had is not asked for it again."""


def attach(
    client: _T,
    recorder: Recorder,
    *,
    deployment: Deployment | Callable[[], Deployment] | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> _T:
    """Have what ``client`` asks for recorded; return ``client``.

    Say who asked by one more argument of ``infer``, ``async_infer`` and ``async_stream_infer``:
    ``tallystick=Request(...)``.
    Requests whose inputs are not those of a language model are not touched.

    Args:
        client: a ``tritonclient.http`` or ``tritonclient.grpc`` ``InferenceServerClient``.
        recorder: takes the records.
        deployment: what generates, or a function that tells; the recorder's own if absent.
        count_tokens: counts the tokens of a text, for models that do not say.
    """
    detach(client)
    target: Any = client
    tell = deployment if callable(deployment) else lambda: deployment
    hook = _Hook(target, recorder, tell, count_tokens)
    for name in _REPLACED:
        if hasattr(target, name):
            original = getattr(target, name)
            replacement = functools.wraps(original)(functools.partial(getattr(hook, name), original))
            setattr(replacement, _INSTEAD_OF, original)
            setattr(target, name, replacement)
    return client


def detach(client: Any) -> None:
    """Undo ``attach``."""
    for name in _REPLACED:
        if hasattr(vars(client).get(name), _INSTEAD_OF):
            delattr(client, name)


@dataclass
class _Sequence:
    """One sequence of a request."""

    record_id: str
    text: str | None
    ids: list[int] | None
    parts: list[str] = field(default_factory=list)
    tokens: list[int] | None = None
    input_tokens: int | None = None
    output_tokens: int = 0
    counted: bool = False
    reason: str | None = None


@dataclass
class _Exchange:
    """One request and what has come for it. Owned by the thread that gets its responses."""

    request: Request
    sequences: list[_Sequence]
    started_us: int = field(default_factory=lambda: time.time_ns() // 1000)
    started_ns: int = field(default_factory=time.monotonic_ns)
    first_us: int | None = None
    unread: bool = False
    ended: bool = False

    def now_us(self) -> int:
        """Unix microseconds, by the steady clock since the start."""
        return self.started_us + (time.monotonic_ns() - self.started_ns) // 1000


class _Hook:
    """What is the same for all requests of one client."""

    def __init__(
        self,
        client: Any,
        recorder: Recorder,
        deployment: Callable[[], Deployment | None],
        count_tokens: Callable[[str], int] | None,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._deployment = deployment
        self._count_tokens = count_tokens
        self._complaints = Complaints("the Triton hook")
        self._lock = threading.Lock()  # guards what follows
        self._known: dict[tuple[str, str], frozenset[str]] = {}
        self._ask_at: dict[tuple[str, str], float] = {}  # of what is not known: when to ask again
        self._streams: dict[str, _Exchange] = {}

    # --- one request, one response -----------------------------------------------------------------------

    def infer(
        self, original: Callable[..., Any], model_name: str, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As ``InferenceServerClient.infer``."""
        request = kwargs.pop("tallystick", None) or Request()
        version = kwargs.get("model_version", args[0] if args else "") or ""
        inputs, exchange = self._begin(model_name, version, inputs, kwargs, request)
        try:
            result = original(model_name, inputs, *args, **kwargs)
        except BaseException:
            self._end(exchange, None)
            raise
        self._take(exchange, result, streamed=False)
        self._end(exchange, None)
        return result

    # --- one request, a response later -------------------------------------------------------------------

    def async_infer(
        self, original: Callable[..., Any], model_name: str, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As ``InferenceServerClient.async_infer``: gRPC answers a callback, HTTP a handle."""
        request = kwargs.pop("tallystick", None) or Request()
        named = "callback" in kwargs
        by_callback = named or bool(args and callable(args[0]))
        versions = args[1:] if by_callback and not named else args
        version = kwargs.get("model_version", versions[0] if versions else "") or ""
        inputs, exchange = self._begin(model_name, version, inputs, kwargs, request)
        if exchange is not None and named:
            kwargs["callback"] = self._called_back(exchange, kwargs["callback"])
        elif exchange is not None and by_callback:
            args = (self._called_back(exchange, args[0]), *args[1:])
        try:
            handle = original(model_name, inputs, *args, **kwargs)
        except BaseException:
            self._end(exchange, None)
            raise
        if exchange is not None and not by_callback:
            try:
                self._watch(exchange, handle)
            except Exception as error:
                self._unseen(exchange)
                self._complaints.say("a request is not recorded", error)
        return handle

    def _called_back(self, exchange: _Exchange, callback: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(callback)
        def seen(result: Any, error: Any) -> Any:
            if result is not None:
                self._take(exchange, result, streamed=False)
            self._end(exchange, None)
            return callback(result=result, error=error)

        return seen

    def _watch(self, exchange: _Exchange, handle: Any) -> None:
        """Take in the response when it is fetched; one that nobody fetches counts as lost."""
        original, greenlet = handle.get_result, handle._greenlet

        @functools.wraps(original)
        def get_result(*args: Any, **kwargs: Any) -> Any:
            try:
                result = original(*args, **kwargs)
            except BaseException:
                if greenlet.ready():  # else it was only not waited for long enough
                    self._end(exchange, None)
                raise
            self._take(exchange, result, streamed=False)
            self._end(exchange, None)
            return result

        handle.get_result = get_result
        weakref.finalize(handle, self._unseen, exchange)

    def _unseen(self, exchange: _Exchange) -> None:
        exchange.unread = True
        self._end(exchange, None)

    # --- streams over gRPC -------------------------------------------------------------------------------

    def start_stream(
        self, original: Callable[..., Any], callback: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As ``InferenceServerClient.start_stream``."""

        @functools.wraps(callback)
        def seen(result: Any, error: Any) -> Any:
            try:
                self._streamed(result, error)
            except Exception as problem:
                self._complaints.say("a response was not read", problem)
            return callback(result=result, error=error)

        return original(seen, *args, **kwargs)

    def async_stream_infer(
        self, original: Callable[..., Any], model_name: str, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As ``InferenceServerClient.async_stream_infer``."""
        request = kwargs.pop("tallystick", None) or Request()
        inputs, exchange = self._begin(model_name, kwargs.get("model_version", ""), inputs, kwargs, request)
        if exchange is None:
            return original(model_name, inputs, *args, **kwargs)
        if not kwargs.get("request_id"):
            kwargs["request_id"] = f"tallystick-{uuid.uuid4().hex}"
        with self._lock:
            before = self._streams.get(kwargs["request_id"])
            self._streams[kwargs["request_id"]] = exchange
        self._end(before, None)  # its id is used anew: nothing says how it ended, nor will
        try:
            return original(model_name, inputs, *args, **kwargs)
        except BaseException:
            self._end(self._pop(kwargs["request_id"]), None)
            raise

    def stop_stream(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As ``InferenceServerClient.stop_stream``: what has not ended by then is an abort."""
        try:
            return original(*args, **kwargs)
        finally:
            with self._lock:
                left, self._streams = list(self._streams.values()), {}
            for exchange in left:
                self._end(exchange, "abort")

    def _streamed(self, result: Any, error: Any) -> None:
        if result is None:  # an error names no request; with one under way it is clear whose it is
            with self._lock:
                only = next(iter(self._streams)) if len(self._streams) == 1 else None
            if only is not None:
                cancelled = "CANCELLED" in str(error).upper()
                self._end(self._pop(only), "abort" if cancelled else "error")
            elif error is not None:
                self._complaints.say(f"an error of the server names no request: {error}")
            return
        response = result.get_response()
        with self._lock:
            exchange = self._streams.get(response.id)
        if exchange is None:
            return
        self._take(exchange, result, streamed=True)
        final = response.parameters[_FINAL].bool_param if _FINAL in response.parameters else False
        if final or all(sequence.reason for sequence in exchange.sequences):
            self._end(self._pop(response.id), None)

    def _pop(self, request_id: str) -> _Exchange | None:
        with self._lock:
            return self._streams.pop(request_id, None)

    # --- what is the same for both -----------------------------------------------------------------------

    def _begin(
        self, model: str, version: str, inputs: Sequence[Any], kwargs: dict[str, Any], request: Request
    ) -> tuple[Sequence[Any], _Exchange | None]:
        """Read a request; ask for what the model can tell. Not a language model: nothing is done."""
        try:
            by_name = {each.name(): each for each in inputs}
            texts, ids = texts_in(by_name.get("text_input")), rows_in(by_name.get("input_ids"))
            if texts is None and ids is None:
                return inputs, None
            has = self._inputs_of(model, version)
            wanted = [name for name in _ASKED if name in has and name not in by_name]
            lengths = rows_in(by_name.get("input_lengths"))
            if ids is not None and lengths is not None:
                ids = [row[: length[0]] for row, length in zip(ids, lengths, strict=True)]
            count = len(texts if texts is not None else ids or ())
            sequences = [
                _Sequence(
                    self._recorder.begin(input_tokens=None if ids is None else len(ids[at])),
                    None if texts is None else texts[at],
                    None if ids is None else ids[at],
                )
                for at in range(count)
            ]
            exchange = _Exchange(request, sequences)
            like = next(iter(by_name.values()))
            added = [true_like(like, name, count) for name in wanted]
            if added and kwargs.get("outputs") is not None:
                names = {each.name() for each in kwargs["outputs"]}
                output = type(kwargs["outputs"][0]) if kwargs["outputs"] else None
                missing = [
                    n.removeprefix("return_") for n in wanted if n.removeprefix("return_") not in names
                ]
                if output is not None:
                    kwargs["outputs"] = [*kwargs["outputs"], *(output(name) for name in missing)]
            return [*inputs, *added], exchange
        except Exception as error:
            self._complaints.say("a request is not recorded", error)
            return inputs, None

    def _inputs_of(self, model: str, version: str) -> frozenset[str]:
        """Names of the inputs that a model has; asked once, and again after a while where that failed."""
        nothing: frozenset[str] = frozenset()
        with self._lock:
            known = self._known.get((model, version))
            if known is not None:
                return known
            if time.monotonic() < self._ask_at.get((model, version), 0.0):
                return nothing
            self._ask_at[model, version] = time.monotonic() + _TRY_AGAIN_S
        try:
            found = self._client.get_model_metadata(model, version)
            listed = found["inputs"] if isinstance(found, dict) else found.inputs
            names = frozenset(each["name"] if isinstance(each, dict) else each.name for each in listed)
        except Exception as error:
            self._complaints.say(f"the inputs of {model} are not known, so nothing more is asked for", error)
            return nothing
        with self._lock:
            self._known[model, version] = names
            self._ask_at.pop((model, version), None)
        return names

    def _take(self, exchange: _Exchange | None, result: Any, *, streamed: bool) -> None:
        """Take in a response."""
        if exchange is None:
            return
        try:
            texts = flat(result.as_numpy("text_output"))
            reasons = flat(result.as_numpy("finish_reason"))
            counts_in, counts_out = (
                flat(result.as_numpy(f"num_{way}_tokens")) for way in ("input", "output")
            )
            ids, lengths = result.as_numpy("output_ids"), flat(result.as_numpy("sequence_length"))
            rows = None if ids is None else ids.reshape(-1, ids.shape[-1]).tolist()
            self._spread(exchange, texts, rows)
            for at, sequence in enumerate(exchange.sequences):
                if texts is not None and at < len(texts):
                    sequence.parts.append(text_of(texts[at]))
                if rows is not None and at < len(rows):
                    row = rows[at][: int(lengths[at])] if lengths else rows[at]
                    sequence.tokens = [*(sequence.tokens or ()), *row]
                if reasons and at < len(reasons) and text_of(reasons[at]) not in _UNFINISHED:
                    sequence.reason = text_of(reasons[at])
                if counts_in:
                    sequence.input_tokens = int(counts_in[min(at, len(counts_in) - 1)])
                if counts_out:
                    sequence.output_tokens += int(counts_out[min(at, len(counts_out) - 1)])
                    sequence.counted = True
            if streamed and exchange.first_us is None:
                exchange.first_us = exchange.now_us()
        except Exception as error:
            exchange.unread = True
            self._complaints.say("a response was not read", error)

    def _spread(self, exchange: _Exchange, texts: list[Any] | None, rows: list[Any] | None) -> None:
        """Several sequences for one prompt (``n``, beams): one of ours for each."""
        count = max(len(texts or ()), len(rows or ()))
        if len(exchange.sequences) == 1 and count > 1:
            first = exchange.sequences[0]
            exchange.sequences += [
                _Sequence(self._recorder.begin(), first.text, first.ids) for _ in range(count - 1)
            ]

    def _end(self, exchange: _Exchange | None, reason: str | None) -> None:
        if exchange is None or exchange.ended:
            return
        exchange.ended = True
        ended_us = exchange.now_us()
        for sequence in exchange.sequences:
            try:
                self._record(exchange, sequence, reason, ended_us)
            except Exception as error:
                self._complaints.say("a request is not recorded", error)
                self._recorder.lose(sequence.record_id)

    def _record(self, exchange: _Exchange, sequence: _Sequence, reason: str | None, ended_us: int) -> None:
        prompt, tokens = sequence.ids, sequence.tokens
        if tokens is not None and prompt is not None and tokens[: len(prompt)] == prompt:
            tokens = tokens[len(prompt) :]  # unless it was asked to leave them out
        text = "".join(sequence.parts) if sequence.parts else None
        if text is not None and sequence.text and text.startswith(sequence.text):
            text = text[len(sequence.text) :]
        inputs = sequence.input_tokens if prompt is None else len(prompt)
        outputs = len(tokens) if tokens is not None else sequence.output_tokens if sequence.counted else None
        if self._count_tokens is not None:
            if inputs is None and sequence.text is not None:
                inputs = self._count_tokens(sequence.text)
            if outputs is None and text is not None:
                outputs = self._count_tokens(text)
        if text is None and tokens is None and not exchange.unread:  # refused
            self._recorder.abandon(sequence.record_id)
            return
        if inputs is None or outputs is None:
            if not exchange.unread:
                self._complaints.say("the model shows no token counts: pass count_tokens to attach")
            self._recorder.lose(sequence.record_id)
            return
        request = exchange.request
        request.record_ids.append(
            self._recorder.record(
                id=sequence.record_id,
                usage=Usage(input_tokens=inputs, output_tokens=outputs),
                started_us=exchange.started_us,
                first_token_us=exchange.first_us,
                ended_us=ended_us,
                input_ids=prompt,
                output_ids=tokens,
                input_text=None if prompt is not None else sequence.text,
                output_text=None if tokens is not None else text,
                finish_reason=sequence.reason or reason,
                request_id=request.request_id,
                tenant=request.tenant,
                parent=request.parent,
                deployment=self._deployment(),
            )
        )
