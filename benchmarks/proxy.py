"""What the proxy adds to a request: latency, CPU for each chunk, and throughput beside going straight.

The server behind streams chunks as vLLM's do, at a pace that one accelerator reaches; it runs in a process of
its own, as the proxy does. Both share two cores with the client here.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
import uvicorn

from ledger.core.records import Deployment
from ledger.emit import Recorder
from ledger.emit.engines.asgi import RecordingMiddleware
from ledger.emit.proxy.forward import Forwarder

_REQUESTS = 200
_STREAMS = 32
_CHUNKS = 128
_PACE_S = 0.02
"""Between two tokens of a stream: 50 tokens a second for each client."""
_ROUNDS = 3

_USAGE = {"prompt_tokens": 512, "completion_tokens": _CHUNKS, "total_tokens": 512 + _CHUNKS}
_CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
_WHOLE = json.dumps(
    {
        **_CHUNK,
        "choices": [{"index": 0, "message": {"content": "word " * _CHUNKS}, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
).encode()


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(_CHUNK | value).encode() + b"\n\n"


_TOKEN = _event({"choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]})
_STOP = _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
_TELL = _event({"choices": [], "usage": _USAGE})


async def _server(scope: Any, receive: Any, send: Any) -> None:
    """A model server without a model."""
    if scope["type"] != "http":
        return
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    stream = b'"stream"' in body + message["body"]
    kind = b"text/event-stream" if stream else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if stream:
        for _ in range(_CHUNKS):
            await send({"type": "http.response.body", "body": _TOKEN, "more_body": True})
            await asyncio.sleep(_PACE_S)
        await send(
            {"type": "http.response.body", "body": _STOP + _TELL + b"data: [DONE]\n\n", "more_body": False}
        )
    else:
        await send({"type": "http.response.body", "body": _WHOLE, "more_body": False})


def _run(upstream: str | None, spool: str, listener: socket.socket, pipe: Connection) -> None:
    app: Any = _server
    if upstream is not None:
        recorder = Recorder(spool=spool, deployment=Deployment(model="m", engine="stub"))
        app = RecordingMiddleware(Forwarder(upstream), recorder)
    config = uvicorn.Config(app, log_level="error", server_header=False, date_header=False)
    server = uvicorn.Server(config)

    def tell() -> None:
        """Answer each question with the CPU time used so far; the end of questions ends the server."""
        while pipe.poll(None) and pipe.recv():
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(used.ru_utime + used.ru_stime)
        server.should_exit = True

    import threading

    threading.Thread(target=tell, daemon=True).start()
    server.run(sockets=[listener])


class _Process:
    """A server in a process of its own."""

    def __init__(self, upstream: str | None, spool: str) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_run, args=(upstream, spool, listener, theirs))
        self._process.start()
        listener.close()

    def cpu_s(self) -> float:
        """CPU time so far."""
        self._pipe.send(True)
        return float(self._pipe.recv())

    def stop(self) -> None:
        """End it."""
        self._pipe.send(False)
        self._process.join(20)


_BODY = {"model": "m", "messages": [{"role": "user", "content": "word " * 512}]}


async def _latency_ms(session: aiohttp.ClientSession, url: str) -> list[float]:
    times = []
    for _ in range(_REQUESTS):
        begun = time.perf_counter()
        async with session.post(f"{url}/v1/chat/completions", json=_BODY) as answer:
            await answer.read()
        times.append((time.perf_counter() - begun) * 1000)
    return times


async def _streams_s(session: aiohttp.ClientSession, url: str) -> tuple[float, float]:
    """Time for all streams at once, and the median time to a first chunk in milliseconds."""
    firsts = []

    async def one() -> None:
        begun = time.perf_counter()
        async with session.post(f"{url}/v1/chat/completions", json=_BODY | {"stream": True}) as answer:
            seen = 0
            async for data in answer.content.iter_any():
                if not seen:
                    firsts.append((time.perf_counter() - begun) * 1000)
                seen += data.count(b'"content"')
            assert seen == _CHUNKS, seen

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(_STREAMS)))
    return time.perf_counter() - begun, statistics.median(firsts)


async def _measure(server: _Process, proxy: _Process) -> dict[str, Any]:
    figures: dict[str, list[float]] = {}

    def keep(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for url in (server.url, proxy.url):
            await _latency_ms(session, url)
        for _ in range(_ROUNDS):
            for name, url in (("direct", server.url), ("proxied", proxy.url)):
                before = proxy.cpu_s()
                keep(f"{name}_ms", statistics.median(await _latency_ms(session, url)))
                if name == "proxied":
                    keep("request_cpu_us", (proxy.cpu_s() - before) / _REQUESTS * 1e6)
                before = proxy.cpu_s()
                seconds, first_ms = await _streams_s(session, url)
                keep(f"{name}_tokens_per_s", _STREAMS * _CHUNKS / seconds)
                keep(f"{name}_first_chunk_ms", first_ms)
                if name == "proxied":
                    keep("chunk_cpu_us", (proxy.cpu_s() - before) / (_STREAMS * _CHUNKS) * 1e6)
    middle = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "added_ms": middle["proxied_ms"] - middle["direct_ms"],
        "throughput_ratio": middle["proxied_tokens_per_s"] / middle["direct_tokens_per_s"],
        **middle,
    }


def run() -> dict[str, Any]:
    """Medians of three rounds, straight and through the proxy in turn."""
    os.environ.pop("TALLYSTICK_URL", None)
    with tempfile.TemporaryDirectory() as spool:
        server = _Process(None, spool)
        proxy = _Process(server.url, spool)
        try:
            return asyncio.run(_measure(server, proxy))
        finally:
            proxy.stop()
            server.stop()


if __name__ == "__main__":
    for figure, value in run().items():
        print(f"{figure:28} {value:12.2f}")
