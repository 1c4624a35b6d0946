"""The witness's HTTP interface: add-checkpoint, the retrieval of checkpoints (C2SP tlog-witness), health.

A plain ASGI application. Bodies are bounded in size and time; signing and waiting for the disk happen on a
few threads, so that a slow disk does not keep readers waiting.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ledger.core.errors import TallystickError
from ledger.core.note import format_vkey
from ledger.witness.cosigning import TEXT, Cosigner, Reply
from ledger.witness.wire import MAX_REQUEST_BYTES

__all__ = ["WitnessApp"]

_log = logging.getLogger(__name__)
_THREADS = 4
BODY_TIMEOUT_S = 20.0
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_T = TypeVar("_T")
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class WitnessApp:
    """The application of one witness.

    Args:
        cosigner: decides and signs.
        body_timeout_s: how long a caller may take to send a body.
    """

    def __init__(self, cosigner: Cosigner, *, body_timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._cosigner = cosigner
        self._body_timeout_s = body_timeout_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tallystick-witness")
        self._outcomes: Counter[str] = Counter()  # touched on the event loop alone

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request, or follow the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            reply = await self._answer(scope, receive)
        except TallystickError as error:
            _log.error("%s", error)
            reply = _text(503, error.code, error.what)
        except Exception:
            _log.exception("a request failed")
            reply = _text(500, "failed", "the witness failed; nothing was cosigned")
        await send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": [
                    (b"content-type", reply.media_type.encode()),
                    (b"content-length", str(len(reply.body)).encode()),
                    (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff"),
                ],
            }
        )
        body = b"" if scope["method"] == "HEAD" else reply.body
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: _Receive, send: _Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self._threads.shutdown()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: _Message, receive: _Receive) -> Reply:
        method, path = scope["method"], scope["path"]
        if path == "/add-checkpoint":
            if method != "POST":
                return _text(405, "method", "use POST")
            return await self._add_checkpoint(scope, receive)
        if method not in ("GET", "HEAD"):
            return _text(405, "method", "use GET")
        if path == "/":
            described = {
                "name": self._cosigner.name,
                "vkeys": [format_vkey(key) for key in self._cosigner.keys],
            }
            return Reply(200, "described", json.dumps(described).encode() + b"\n", "application/json")
        if path == "/healthz":
            await self._run(self._cosigner.state.logs)
            return _text(200, "healthy", "ok")
        if path == "/metrics":
            return Reply(200, "metrics", await self._run(self._metrics), _METRICS)
        parts = path.split("/")
        if len(parts) == 3 and parts[2] == "checkpoint":
            note = await self._run(lambda: self._cosigner.latest(parts[1]))
            if note is not None:
                return Reply(200, "latest", note, TEXT)
        return _text(404, "not-found", "there is nothing here")

    async def _add_checkpoint(self, scope: _Message, receive: _Receive) -> Reply:
        try:
            async with asyncio.timeout(self._body_timeout_s):
                body = await _read(scope, receive)
        except TimeoutError:
            return _text(408, "slow", "the body did not come in time")
        if body is None:
            return _text(413, "malformed", f"a request has at most {MAX_REQUEST_BYTES} bytes")
        reply = await self._run(lambda: self._cosigner.add_checkpoint(body))
        self._outcomes[reply.outcome] += 1
        if reply.status == 422:
            _log.error("refused to cosign: %s", reply.body.decode(errors="replace").strip())
        return reply

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _metrics(self) -> bytes:
        lines = ["# TYPE tallystick_witness_requests counter"]
        lines += [
            f'tallystick_witness_requests_total{{outcome="{outcome}"}} {count}'
            for outcome, count in sorted(self._outcomes.items())
        ]
        lines.append("# TYPE tallystick_witness_tree_size gauge")
        logs = self._cosigner.state.logs()
        lines += [
            f"tallystick_witness_tree_size{{log={_label(each.origin)}}} {each.last.size}" for each in logs
        ]
        lines.append("# TYPE tallystick_witness_misbehaviour gauge")
        lines.append(f"tallystick_witness_misbehaviour {len(self._cosigner.state.evidence())}")
        return ("\n".join(lines) + "\n").encode()


async def _read(scope: _Message, receive: _Receive) -> bytes | None:
    """The body; None if it is too long."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value[:19]) > MAX_REQUEST_BYTES):
            return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MAX_REQUEST_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _label(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _text(status: int, outcome: str, text: str) -> Reply:
    return Reply(status, outcome, f"{text}\n".encode())
