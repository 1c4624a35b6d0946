"""Five hundred conversations at once through llama.cpp: one record each, with the engine's counts and ids."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ledger.emit import Recorder
from ledger.emit.engines import llamacpp as hook
from tests.engines.conversations import lengths
from tests.engines.logged import Logged
from tests.engines.tiny_gguf import tiny_gguf

xllamacpp = pytest.importorskip("xllamacpp")

COUNT, AT_ONCE, SLOTS = 500, 16, 8
LONGEST_PROMPT, LONGEST_ANSWER = 200, 40
KINDS = ("text", "text-stream", "chat", "chat-stream", "leaves")
"""``leaves``: the client of a stream goes away in the middle."""


@dataclass
class Sent:
    """A request and what its caller saw."""

    kind: str
    prompt: list[int]
    answer: int
    name: str
    usage: dict[str, Any] = field(default_factory=dict)
    output: list[int] = field(default_factory=list)
    record_id: str | None = None
    finish_reason: str | None = None

    def see(self, body: dict[str, Any]) -> None:
        self.usage = body.get("usage") or self.usage
        tokens = (body.get("__verbose") or {}).get("tokens") or ()
        if not body.get("prompt_progress"):
            self.output += tokens
        for name in body.get("tallystick") or ():
            self.record_id = name if isinstance(name, str) else self.record_id
        if isinstance(body.get("tallystick"), str):
            self.record_id = body["tallystick"]
        for choice in body.get("choices") or ():
            self.finish_reason = choice.get("finish_reason") or self.finish_reason


def send(server: Any, one: Sent) -> None:
    """One request through the server's handlers."""
    body: dict[str, Any] = {"max_tokens": one.answer, "temperature": 0, "cache_prompt": False}
    body |= {"ignore_eos": True, "return_tokens": True, "verbose": True}
    who = {"request_id": one.name, "tenant": f"tenant-{len(one.name)}"}
    chat = one.kind.startswith("chat")
    handle = server.handle_chat_completions if chat else server.handle_completions
    if chat:
        body["messages"] = [{"role": "user", "content": " ".join("tally" for _ in one.prompt)}]
    else:
        body["prompt"] = one.prompt
    if one.kind in ("text", "chat"):
        one.see(handle(body, **who))
        return
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}

    def on_chunk(chunk: dict[str, Any]) -> bool:
        one.see(chunk)
        return one.kind == "leaves" and len(one.output) >= max(1, one.answer // 2)

    handle(body, on_chunk, **who)


def test_five_hundred_conversations(tmp_path: Path) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = str(tiny_gguf())
    params.n_ctx, params.n_parallel = SLOTS * 512, SLOTS
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    rng = random.Random(6)
    sent = [
        Sent(
            KINDS[at % len(KINDS)],
            [rng.randrange(20, 40_000) for _ in range(min(prompt, LONGEST_PROMPT))],
            min(answer, LONGEST_ANSWER),
            f"r-{at}",
        )
        for at, (prompt, answer) in enumerate(lengths(COUNT, seed=6))
    ]
    recorder = Recorder(
        spool=tmp_path / "spool",
        issuer="tests.example/llamacpp",
        deployment=hook.deployment_of(params),
        heartbeat_s=None,
    )
    server = hook.attach(xllamacpp.Server(params), recorder, params=params)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda one: send(server, one), sent))
    assert recorder.close(60)
    assert recorder.status().dropped == 0

    log = Logged(tmp_path / "spool")
    assert len(log.by_id()) == COUNT
    found = {}
    for one in sent:
        tenant = f"tenant-{len(one.name)}"
        found[one.name] = [each for each in log.records if log.is_request(each, one.name, tenant)]
    assert Counter(len(each) for each in found.values()) == {1: COUNT}
    reasons: Counter[str] = Counter()
    for one in sent:
        (record,) = found[one.name]
        tenant = f"tenant-{len(one.name)}"
        reasons[record.finish_reason] += 1
        assert record.started_us <= (record.first_token_us or record.started_us) <= record.ended_us
        if one.kind == "leaves" and record.finish_reason == "abort":
            # The engine may have made a token more than the caller saw before it knew.
            assert record.usage.output_tokens >= len(one.output) > 0
        else:
            assert record.usage.input_tokens == one.usage["prompt_tokens"]
            assert record.usage.output_tokens == one.usage["completion_tokens"]
        if not one.kind.startswith("chat"):
            assert record.usage.input_tokens == len(one.prompt)
            if record.output.of == "tokens":
                assert log.opens(record, one.prompt, one.output, tenant)
    tokens = Counter(record.output.of for record in log.records)
    assert tokens["tokens"] >= COUNT * 3 // 5
    assert reasons["abort"] >= COUNT // 10
    assert reasons["length"] >= COUNT // 2
