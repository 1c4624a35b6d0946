"""Five hundred conversations at once through transformers: one record each, with its counts and ids."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ledger.emit.engines import transformers as hook
from tests.engines.conversations import lengths
from tests.engines.logged import Logged, new_recorder
from tests.engines.smollm2 import tiny_llama

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

COUNT, AT_ONCE = 500, 16
KINDS = ("plain", "stream", "leaves", "breaks", "batch")
"""``leaves``: the client goes and ``should_stop`` says so. ``breaks``: its stream raises."""


class Watching(hf.generation.BaseStreamer):
    """Keeps what is streamed; a client that breaks off raises after so many tokens."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.shown: list[int] = []
        self.breaks_after = breaks_after
        self.begun = False

    def put(self, value: Any) -> None:
        if not self.begun:
            self.begun = True  # the prompt
            return
        if self.breaks_after is not None and len(self.shown) >= self.breaks_after:
            raise BrokenPipeError
        self.shown += value.tolist()

    def end(self) -> None:
        pass


@dataclass
class Sent:
    """A request and what its caller saw."""

    kind: str
    prompt: list[int]
    answer: int
    request: hook.Request = field(default_factory=hook.Request)
    output: list[int] = field(default_factory=list)
    at_least: bool = False
    """The caller left before it saw everything."""


def send(model: Any, group: list[Sent]) -> None:
    """One call of ``generate``; several requests in it are a batch."""
    width = max(len(one.prompt) for one in group)
    ids = torch.tensor([[0] * (width - len(one.prompt)) + one.prompt for one in group])
    mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in group])
    one = group[0]
    kwargs: dict[str, Any] = {
        "max_new_tokens": max(each.answer for each in group),
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tallystick": [each.request for each in group],
    }
    if one.kind == "plain" or one.kind == "batch":
        out = model.generate(ids, attention_mask=mask, **kwargs)[:, width:].tolist()
        for each, row in zip(group, out, strict=True):
            each.output = row
        return
    streamer = Watching(one.answer // 2 + 1 if one.kind == "breaks" else None)
    if one.kind == "leaves":
        one.request.should_stop = lambda: len(streamer.shown) >= one.answer // 2
    try:
        model.generate(ids, attention_mask=mask, streamer=streamer, **kwargs)
    except BrokenPipeError:
        one.at_least = True
    one.output = streamer.shown


def test_five_hundred_conversations(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = hf.AutoModelForCausalLM.from_pretrained(tiny_llama())
    rng = random.Random(5)
    sent = [
        Sent(KINDS[at % len(KINDS)], [rng.randrange(20, 40_000) for _ in range(prompt)], answer)
        for at, (prompt, answer) in enumerate(lengths(COUNT, seed=5))
    ]
    for at, one in enumerate(sent):
        one.request.request_id, one.request.tenant = f"r-{at}", f"tenant-{at % 7}"
    batched = [one for one in sent if one.kind == "batch"]
    groups = [batched[at : at + 4] for at in range(0, len(batched), 4)]
    groups += [[one] for one in sent if one.kind != "batch"]
    rng.shuffle(groups)
    recorder = new_recorder(tmp_path / "spool")
    hook.attach(model, recorder)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda group: send(model, group), groups))
    assert recorder.close(60)
    assert recorder.status().dropped == 0
    assert threading.active_count() < 100

    log = Logged(tmp_path / "spool")
    by_id = log.by_id()
    assert len(by_id) == len(sent) == COUNT
    reasons: Counter[str] = Counter()
    for one in sent:
        (record_id,) = one.request.record_ids
        record = by_id[record_id]
        tenant = one.request.tenant or ""
        reasons[record.finish_reason] += 1
        assert log.is_request(record, one.request.request_id or "", tenant)
        assert record.usage.input_tokens == len(one.prompt)
        assert record.started_us <= record.first_token_us <= record.ended_us
        if one.at_least:  # the engine made one more, which the caller refused
            assert record.finish_reason == "abort"
            assert record.usage.output_tokens == len(one.output) + 1
            model_says = continued(model, one.prompt, len(one.output) + 1)
            assert log.opens(record, one.prompt, model_says, tenant)
            continue
        assert record.usage.output_tokens == len(one.output)
        assert log.opens(record, one.prompt, one.output, tenant)
    assert reasons["length"] >= 300
    assert reasons["abort"] >= 150


def continued(model: Any, prompt: list[int], count: int) -> list[int]:
    """What the model makes of a prompt, without the hook."""
    hook.detach(model)
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None)
    return out[0, len(prompt) :].tolist()
