"""Requests shaped like production conversations, and a client that sends them at once and keeps what it sees.

Lengths are those of the conversation trace of Azure LLM services (2023), if TALLYSTICK_TRACE names the file,
else drawn from distributions with its medians and spread; both are scaled down to what a small machine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

SCALE = 8
"""Lengths are divided by this."""
LONGEST_PROMPT, LONGEST_ANSWER = 900, 125
ENDLESS = 1000
"""Answers of requests that the client leaves: longer than any client stays."""
# Medians and spreads (sigma of the logarithm) of the trace's 19,366 requests.
_CONTEXT, _GENERATED = (1020, 0.9), (129, 0.9)
_WORDS = [
    "tally",
    "stick",
    "split",
    "two",
    "neither",
    "party",
    "count",
    "alone",
    "wood",
    "notch",
    "debt",
    "king",
]

Kind = Literal["chat", "chat-stream", "text", "text-stream"]


@dataclass
class Conversation:
    """A request to send, and what the client saw of its answer."""

    id: str
    kind: Kind
    body: dict[str, Any]
    leaves_after: int | None = None
    """The client goes away after so many chunks; without a stream, when all others are done."""
    prompt_ids: list[int] | None = None
    output_ids: list[int] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    reason: str | None = None
    status: int = 0

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.kind.startswith("chat") else "/v1/completions"

    @property
    def engine_id(self) -> str:
        """The id that vLLM makes of the header ``X-Request-Id``."""
        return f"chatcmpl-{self.id}" if self.kind.startswith("chat") else f"cmpl-{self.id}-0"


def lengths(count: int, seed: int = 1) -> list[tuple[int, int]]:
    """Prompt and answer lengths of ``count`` conversations, scaled."""
    rng = random.Random(seed)
    trace = os.environ.get("TALLYSTICK_TRACE")
    if trace:
        with Path(trace).open(newline="") as file:
            rows = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
        start = rng.randrange(len(rows) - count)
        drawn = rows[start : start + count]
    else:
        drawn = [
            (
                int(_CONTEXT[0] * rng.lognormvariate(0, _CONTEXT[1])),
                int(_GENERATED[0] * rng.lognormvariate(0, _GENERATED[1])),
            )
            for _ in range(count)
        ]
    return [
        (min(LONGEST_PROMPT, max(1, context // SCALE)), min(LONGEST_ANSWER, max(1, generated // SCALE)))
        for context, generated in drawn
    ]


def conversations(count: int, model: str, seed: int = 1) -> list[Conversation]:
    """Chats and completions, streamed and not; of ten, three are left by the client before their end."""
    rng = random.Random(seed)
    kinds: list[Kind] = ["chat", "chat-stream", "text", "text-stream"]
    made = []
    for number, (prompt, answer) in enumerate(lengths(count, seed)):
        words = " ".join(rng.choice(_WORDS) for _ in range(prompt))
        one = Conversation(
            f"{seed}-{number:04}", kinds[number % 4], {"model": model, "return_token_ids": True}
        )
        one.body |= {"max_tokens": answer, "temperature": 0.0, "stream": one.kind.endswith("stream")}
        if one.kind.startswith("chat"):
            one.body["messages"] = [{"role": "user", "content": words}]
        else:
            one.body["prompt"] = words
        if one.body["stream"]:
            one.body["stream_options"] = {"include_usage": True}
        if number % 10 >= 7:
            # Every token is this one, so that what was made after the client left is known too.
            only = 100 + number
            one.body |= {"max_tokens": ENDLESS, "ignore_eos": True, "allowed_token_ids": [only]}
            one.leaves_after = rng.randint(1, 12)
        made.append(one)
    return made


async def _send(client: httpx.AsyncClient, one: Conversation) -> None:
    headers = {"X-Request-Id": one.id}
    if not one.body["stream"]:
        answer = await client.post(one.path, json=one.body, headers=headers)
        one.status = answer.status_code
        _see(one, answer.json())
        return
    async with client.stream("POST", one.path, json=one.body, headers=headers) as answer:
        one.status = answer.status_code
        chunks = 0
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            _see(one, json.loads(line[6:]))
            chunks += 1
            if chunks == one.leaves_after:
                return


def _see(one: Conversation, body: dict[str, Any]) -> None:
    one.usage = body.get("usage") or one.usage
    for choice in body.get("choices", ()):
        one.prompt_ids = body.get("prompt_token_ids") or choice.get("prompt_token_ids") or one.prompt_ids
        one.output_ids += choice.get("token_ids") or ()
        one.reason = choice.get("finish_reason") or one.reason


async def _send_all(url: str, all_of_them: list[Conversation]) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=280, limits=limits, trust_env=False) as client:
        tasks = [(one, asyncio.create_task(_send(client, one))) for one in all_of_them]
        # Who waits for a whole answer sees nothing of it; so they leave when the engine surely has begun.
        waiting = [task for one, task in tasks if one.leaves_after is not None and not one.body["stream"]]
        await asyncio.gather(*(task for _, task in tasks if task not in waiting))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def send_at_once(url: str, all_of_them: list[Conversation]) -> None:
    """Send all concurrently; return when each is answered, or left."""
    asyncio.run(_send_all(url, all_of_them))


class Client:
    """Sends all concurrently from a thread of its own, until they are answered, cut, or left."""

    def __init__(self, url: str, all_of_them: list[Conversation]) -> None:
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, args=(url, all_of_them), daemon=True)
        self._thread.start()

    def _run(self, url: str, all_of_them: list[Conversation]) -> None:
        self._task = self._loop.create_task(_send_all(url, all_of_them))
        # The server going away is what tests of this are about.
        with contextlib.suppress(httpx.HTTPError, asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    def leave(self) -> None:
        """Close all connections."""
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30)
