"""Owns the hook for llama.cpp through ``xllamacpp``: each generation becomes one record. Two lines to adopt::

    recorder = Recorder(..., deployment=llamacpp.deployment_of(params))
    server = llamacpp.attach(server, recorder, params=params)

The object returned has the same handlers as the ``xllamacpp.Server``. Its answers are the engine's own, plus
a field ``tallystick`` that names the record: on the response, or on the chunk that ends a choice. Streams,
several choices, several prompts, aborted and failed generations are all recorded; what the engine refuses
(too long, malformed) generates nothing and is not.

What the hook changes in order to see token ids:

- Text prompts are tokenized by the engine's ``/tokenize`` and passed on as ids, so the ids recorded are those
  used. Chat messages go through its ``/apply-template`` first. Both are answered on loopback.
- A chat stream is run on the completion endpoint, which streams ids, where that is the same thing: text only,
  no tools, formats or log-probabilities asked for, a template without reasoning. Else the chat endpoint is
  used and the output commitment is of the text.
- Several choices or prompts not streamed run as requests of their own, side by side: the engine reports the
  usage and ids of the first only. A seed counts up from choice to choice.

Energy is the recorder's meter's, if it has one. Else it is modelled (``ledger.energy.metering``): overlapping
requests share the machine's time and power equally for as long as they overlap, waiting for a slot included.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import urllib3

from ledger.emit.engines._llamacpp_deployment import deployment_of
from ledger.emit.engines._llamacpp_generation import Call, Generation, Recording
from ledger.emit.engines._llamacpp_stream import SEEN, ChatShape, Stream, as_is, choice_count, names, usage_of
from ledger.energy.estimation import FULL_UTILISATION_MILLI
from ledger.energy.host_power import host_power
from ledger.energy.metering import HostMeter

__all__ = ["RecordedServer", "attach", "deployment_of"]

Body: TypeAlias = dict[str, Any]
Callback: TypeAlias = Callable[[Any], Any]

_LOOPBACK_TIMEOUT_S = 10.0
"""For the engine's own tokenizer. It answers within a millisecond unless the machine is swamped."""
_MAX_PARALLEL = 64
"""Threads for the choices of one request; they wait in the engine's queue for a slot anyway."""
_PARSED = ("tools", "functions", "response_format", "json_schema", "logprobs", "top_logprobs", "n_probs")
"""Chat parameters whose answers only the chat endpoint shapes."""
_PARSED_TEMPLATE = ("think", "reason", "channel")
"""Words in a chat template whose model's output the chat endpoint takes apart."""


def attach(
    server: Any,
    recorder: Recording,
    *,
    params: Any = None,
    meter: HostMeter | None = None,
    api_key: str | None = None,
) -> RecordedServer:
    """Wrap an ``xllamacpp.Server`` so that each generation gives one record.

    Args:
        server: the running engine.
        recorder: a ``Recorder``.
        params: the ``CommonParams`` that the server was made with. They tell how many of the host's CPUs it
            loads; without them, or where the engine chooses the number itself, all are counted as loaded.
        meter: models this machine's energy where the recorder has no meter; make one and pass it to all hooks
            if several engines share the machine, or to state the power of an accelerator. This host's CPUs if
            absent.
        api_key: one of the server's own ``api_keys``, if it has any.
    """
    if recorder.is_metered:
        meter = None
    elif meter is None:
        host = host_power()
        threads = 0 if params is None else max(params.cpuparams.n_threads, params.cpuparams_batch.n_threads)
        loaded = min(threads, host.threads) if threads > 0 else host.threads
        meter = HostMeter(utilisation_milli=FULL_UTILISATION_MILLI * loaded // host.threads)
    return RecordedServer(server, recorder, meter=meter, api_key=api_key)


class RecordedServer:
    """An ``xllamacpp.Server`` whose generations are recorded. As safe to call from many threads."""

    def __init__(
        self, server: Any, recorder: Recording, *, meter: HostMeter | None, api_key: str | None
    ) -> None:
        self._server = server
        self._recorder = recorder
        self._meter = meter
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = urllib3.PoolManager(
            headers=headers, timeout=_LOOPBACK_TIMEOUT_S, retries=False, maxsize=_MAX_PARALLEL
        )
        template = (self._ask("/props") or {}).get("chat_template")
        self._template_is_plain = isinstance(template, str) and not any(
            word in template.lower() for word in _PARSED_TEMPLATE
        )

    def __getattr__(self, name: str) -> Any:
        """Everything else is the server's."""
        return getattr(self._server, name)

    def handle_completions(
        self,
        prompt: Body | str | bytes,
        callback: Callback | None = None,
        *,
        request_id: str | None = None,
        tenant: str | None = None,
        parent: str | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Any:
        """As ``xllamacpp.Server.handle_completions``, recorded.

        Args:
            prompt: the request of ``/v1/completions``, as dict or JSON.
            callback: gets the response, or each chunk of a stream; a true value stops the generation.
            request_id: the caller's; the engine's own (``chatcmpl-...``) if absent.
            tenant: who the generation is for; a name that is no pseudonym is hidden by the recorder.
            parent: the record that caused this request (agent chains).
            should_stop: asked at each chunk of a stream, and while a long prompt is computed.
        """
        call = Call(request_id, tenant, parent)
        body, answer = _open(prompt, callback)
        jobs = [{**body, "prompt": one} for one in _prompts(body.get("prompt"))]
        run = self._server.handle_completions
        if not body.get("stream"):
            return self._respond(run, jobs, call, answer)
        for at, job in enumerate(jobs):
            ids = self._ids(job["prompt"])
            if ids is not None:
                job["prompt"] = ids
            begin = self._beginning(call, ids)
            stream = Stream(begin, body, answer, should_stop, first=at * choice_count(body))
            if not stream.run(run, job, as_is):
                break
        return None

    def handle_chat_completions(
        self,
        prompt: Body | str | bytes,
        callback: Callback | None = None,
        *,
        request_id: str | None = None,
        tenant: str | None = None,
        parent: str | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Any:
        """As ``xllamacpp.Server.handle_chat_completions``, recorded. Arguments as ``handle_completions``."""
        call = Call(request_id, tenant, parent)
        body, answer = _open(prompt, callback)
        if not body.get("stream"):
            return self._respond(self._server.handle_chat_completions, [body], call, answer)
        ids = self._chat_ids(body)
        stream = Stream(self._beginning(call, ids), body, answer, should_stop)
        if ids is not None and self._template_is_plain and _is_plain(body):
            rest = {key: value for key, value in body.items() if key != "messages"}
            stream.run(self._server.handle_completions, {**rest, "prompt": ids}, ChatShape(body))
        else:
            stream.run(self._server.handle_chat_completions, body, as_is)
        return None

    def _beginning(self, call: Call, ids: list[int] | None) -> Callable[[], Generation]:
        return lambda: Generation(self._recorder, self._meter, call, ids, streamed=True)

    # --- not streamed ------------------------------------------------------------------------------------

    def _respond(
        self, run: Callable[[Body], Any], jobs: list[Body], call: Call, answer: Callback | None
    ) -> Any:
        singles = [_single_choice(job, i) for job in jobs for i in range(choice_count(job))]
        if len(singles) == 1:
            results = [self._single(run, singles[0], call)]
        else:
            with ThreadPoolExecutor(min(len(singles), _MAX_PARALLEL)) as pool:
                results = list(pool.map(lambda job: self._single(run, job, call), singles))
        failed = [body for body, _ in results if "choices" not in body]
        response = failed[0] if failed else _merged(results, per_prompt=choice_count(jobs[0]))
        if answer is None:
            return response
        answer(response)
        return None

    def _single(self, run: Callable[[Body], Any], job: Body, call: Call) -> tuple[Body, Generation]:
        """Run one choice of one prompt."""
        ids = self._chat_ids(job) if "messages" in job else self._ids(job.get("prompt"))
        if ids is not None and "messages" not in job:
            job = {**job, "prompt": ids}
        generation = Generation(self._recorder, self._meter, call, ids, streamed=False)
        try:
            response: Body = run({**job, **SEEN})
        except BaseException:
            generation.discard()
            raise
        if "choices" not in response:
            generation.discard()
            return response, generation
        generation.take(response, response["choices"][0], last="stop")
        if not job.get("verbose"):
            response.pop("__verbose", None)
        return response, generation

    # --- token ids ---------------------------------------------------------------------------------------

    def _chat_ids(self, body: Body) -> list[int] | None:
        rendered = self._ask("/apply-template", body)
        return None if rendered is None else self._ids(rendered.get("prompt"))

    def _ids(self, prompt: Any) -> list[int] | None:
        """The ids of one prompt, or None where only the engine knows (images, text mixed with ids)."""
        if isinstance(prompt, list) and prompt and all(type(each) is int for each in prompt):
            return prompt
        if not isinstance(prompt, str):
            return None
        found = self._ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
        tokens = None if found is None else found.get("tokens")
        return tokens or None  # an empty prompt stays as it is: the engine may add a token, or refuse

    def _ask(self, path: str, body: Body | None = None) -> Body | None:
        """Ask the engine's own HTTP interface. A failure costs token ids, never the request."""
        url = f"{self._server.listening_address}{path}"
        try:
            if body is None:
                response = self._http.request("GET", url)
            else:
                response = self._http.request("POST", url, json=body)
            answer = response.json() if response.status == 200 else None
        except (urllib3.exceptions.HTTPError, TypeError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None


# --- requests and responses ------------------------------------------------------------------------------


def _open(prompt: Body | str | bytes, callback: Callback | None) -> tuple[Body, Callback | None]:
    """The request as a dict, and the callback for dicts: who sends JSON gets JSON, as from xllamacpp."""
    if isinstance(prompt, dict):
        return dict(prompt), callback
    if callback is None:
        raise ValueError("a request that is not a dict needs a callback")
    as_text = isinstance(prompt, str)

    def encoded(value: Body) -> Any:
        text = json.dumps(value)
        return callback(text if as_text else text.encode())

    return json.loads(prompt), encoded


def _is_plain(body: Body) -> bool:
    """Whether a chat request is a completion of its rendered prompt and nothing else."""
    contents = [message.get("content") for message in body["messages"] if isinstance(message, dict)]
    return all(isinstance(content, str) for content in contents) and not any(body.get(k) for k in _PARSED)


def _single_choice(body: Body, index: int) -> Body:
    """The request of one choice alone."""
    job = {key: value for key, value in body.items() if key not in ("n", "n_cmpl")}
    if isinstance(seed := body.get("seed"), int) and seed >= 0:
        job["seed"] = seed + index
    return job


def _prompts(prompt: Any) -> list[Any]:
    """The prompts of a completion request: a text, ids, ids mixed with text, or a list of those."""
    if isinstance(prompt, list) and prompt and not any(isinstance(each, int) for each in prompt):
        return prompt
    return [prompt]


def _merged(results: list[tuple[Body, Generation]], *, per_prompt: int) -> Body:
    """One response of many: choices in order, usage summed, records named."""
    response, generations = results[0][0], [generation for _, generation in results]
    if len(results) > 1:
        choices = [{**body["choices"][0], "index": i} for i, (body, _) in enumerate(results)]
        response = {**response, "choices": choices, "usage": usage_of(generations, per_prompt=per_prompt)}
    return {**response, "tallystick": names(generations)}
