"""Owns the ASGI middleware that records what an OpenAI-compatible app generates. Two lines to adopt::

    recorder = Recorder(deployment=Deployment(model="my-model", engine="vllm"))
    app.add_middleware(RecordingMiddleware, recorder=recorder)

For vLLM: ``vllm serve ... --middleware ledger.emit.engines.asgi.RecordingMiddleware``; the recorder and the
deployment then come from the environment. Any ASGI 3 app will do: FastAPI, Starlette, Ray Serve's ingress.

What passes is not changed, but for this: a request is made to tell usage and token ids (``_wire``), and what
the client did not ask for is taken out of the answer again; the answer has the header
``x-tallystick-record``; a recorded request is passed on with ``accept-encoding: identity``, since an answer
that is compressed cannot be read. Chunks of a stream pass at once; of a whole answer a copy is kept, up to a
limit. Whatever goes wrong in recording is logged, and serving goes on. The app does not hear of a client that
leaves before its request is there in full, where that was to be read first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias

from ledger.core.records import Deployment
from ledger.emit._complaints import Complaints
from ledger.emit.budgets import NOT_ASKED, VARIABLE, Budgets
from ledger.emit.engines._asgi_answer import Passage
from ledger.emit.engines._budgeting import ask_for_room, send_refusal
from ledger.emit.engines._exchange import Call, Exchange, Recording
from ledger.emit.engines._openai import read_json, read_leniently
from ledger.emit.engines._routes import wire_of
from ledger.emit.engines._unrecorded import Unrecorded
from ledger.emit.engines._wire import Added, Asking, Wire, with_additions

__all__ = ["RecordingMiddleware"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

_TRY_AGAIN_S = 30.0
MAX_BODY_BYTES = 64 << 20
"""Of a request or a whole answer that is read; larger ones pass unread. A million tokens of prompt have 4 MB;
images in a request are larger."""


class RecordingMiddleware:
    """Records each generation that passes through an ASGI app.

    Args:
        app: the app.
        recorder: a ``Recorder``. Without one, a recorder is made of TALLYSTICK_... at the first generation,
            and closed when the app's lifespan ends.
        engine: what generates, so that token ids are asked for: ``vllm``, ``sglang``, ``llama.cpp``. Default:
            that of the deployment which TALLYSTICK_DEPLOYMENT names, where the recorder comes from there.
        deployments: by the name that answers give the model, where one app serves several.
        tenant_header: request header that names the tenant. Environment: TALLYSTICK_TENANT_HEADER. Off by
            default: a client could name another tenant. Set it where a gateway in front of this app sets the
            header and removes a client's own.
        parent_header: request header with the id of the record that caused this request. Environment:
            TALLYSTICK_PARENT_HEADER. Off by default, likewise.
        ask_usage: ask for the usage of streams. Switch it off for a server that refuses ``stream_options``.
        ask_ids: ask for token ids, of engines that are known to show them.
        max_body_bytes: larger requests and whole answers pass unread.
        budgets: is asked for room before each generation; a refused one is answered 429. Environment, where
            the recorder comes from there: TALLYSTICK_BUDGETS.
        model: that budgets know a request by, where ``deployments`` does not have the model that it names.
    """

    def __init__(
        self,
        app: App,
        recorder: Recording | None = None,
        *,
        engine: str | None = None,
        deployments: Mapping[str, Deployment] | None = None,
        tenant_header: str | None = None,
        parent_header: str | None = None,
        ask_usage: bool = True,
        ask_ids: bool = True,
        max_body_bytes: int = MAX_BODY_BYTES,
        budgets: Budgets | None = None,
        model: str | None = None,
    ) -> None:
        self.app = app
        self._given = self._recorder = recorder
        self._deployments = deployments or {}
        environment = os.environ
        self._tenant = _header_name(tenant_header or environment.get("TALLYSTICK_TENANT_HEADER"))
        self._parent = _header_name(parent_header or environment.get("TALLYSTICK_PARENT_HEADER"))
        self._asking = Asking(engine, ask_usage, ask_ids)
        self._max = max_body_bytes
        self._budgets = budgets
        self._model = model
        self._try_at_s = 0.0  # steady; there is no use in making a recorder before
        self._complaints = Complaints("recording")
        self._unrecorded = Unrecorded("recording")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        wire = None
        if scope["type"] == "http" and scope["method"] == "POST":
            wire = wire_of(scope["path"], self._asking.engine)
            if wire is None:
                send = self._unrecorded.watching(scope["path"], send)
        elif scope["type"] == "lifespan" and self._given is None:
            await self._live(scope, receive, send)
            return
        if wire is None:
            await self.app(scope, receive, send)
            return
        recorder = self._recorder or self._make()
        if recorder is None:
            if os.environ.get(VARIABLE) == "closed":  # what cannot be asked for may not be had
                await send_refusal(send, NOT_ASKED)
                return
            await self.app(scope, receive, send)
            return
        await self._record(wire, recorder, scope, receive, send)

    # --- one generation ------------------------------------------------------------------------------

    async def _record(
        self, wire: Wire, recorder: Recording, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = dict(reversed([(name.lower(), value) for name, value in scope["headers"]]))
        messages, data = await _read(receive, self._max, headers)
        if messages and messages[-1]["type"] == "http.disconnect":
            return
        exact = None if data is None else read_json(data)
        body = read_leniently(data) if exact is None and data is not None else exact
        if wire.generates is not None and (body is None or not wire.generates(body)):
            send = self._unrecorded.watching(scope["path"], send)
            await self.app(scope, _replay(messages, receive), send)
            return
        added = Added()
        try:
            request = None if body is None else wire.read(body)
            asked = data
            if exact is not None and data is not None:  # else it is passed on as it is
                more, added = wire.ask(exact, self._asking)
                asked = with_additions(data, exact, more)
            call = self._call_of(headers)
            exchange = Exchange(recorder, wire, request, call, self._deployments)
        except Exception as error:
            self._complaints.say("a request could not be read", error)
            await self.app(scope, _replay(messages, receive), send)
            return
        if asked is not None:
            data = asked
            messages = [{"type": "http.request", "body": data, "more_body": False}]
        if self._budgets is not None:
            name = "" if request is None else request.model or ""
            known = self._deployments.get(name)
            try:
                refusal = await ask_for_room(
                    self._budgets,
                    exchange.record_id,
                    request,
                    body,
                    tenant=call.tenant,
                    model=self._model or name if known is None else known.model,
                    asked_bytes=_size(headers, messages),
                )
            except BaseException:  # the client went away meanwhile
                exchange.refuse()
                self._budgets.release(exchange.record_id)
                raise
            if refusal is not None:
                exchange.refuse()
                await send_refusal(send, refusal)
                return
        dropped = {b"accept-encoding"} | (_FRAMING if data is not None else set())
        kept = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
        kept.append((b"accept-encoding", b"identity"))  # without the header, any coding will do (RFC 9110)
        if data is not None:
            kept.append((b"content-length", str(len(data)).encode()))
        passage = Passage(exchange, added, send, self._complaints, self._max)
        inner = _replay(messages, receive)
        asking = True

        async def listen() -> Message:
            nonlocal asking
            message = await inner()
            if message["type"] == "http.disconnect":
                passage.client_is_gone(asking=asking)
            elif message["type"] == "http.request":
                asking = bool(message.get("more_body"))
                if request is None:
                    exchange.asked_bytes += len(message.get("body", b""))
            return message

        try:
            await self.app({**scope, "headers": kept}, listen, passage.send)
        except asyncio.CancelledError:
            passage.client_is_gone(asking=asking)
            raise
        finally:
            passage.close()
            if request is None and exchange.recorded:
                self._complaints.say("a request could not be read: without usage, its tokens are estimated")
            if self._budgets is not None and not exchange.recorded:
                self._budgets.release(exchange.record_id)

    def _call_of(self, headers: Mapping[bytes, bytes]) -> Call:
        def value(name: bytes | None) -> str | None:
            found = None if name is None else headers.get(name)
            return found.decode("latin-1") if found else None

        return Call(tenant=value(self._tenant), parent=value(self._parent), request_id=value(b"x-request-id"))

    # --- a recorder from the environment ---------------------------------------------------------------

    def _make(self) -> Recording | None:
        if self._recorder is None:
            if time.monotonic() < self._try_at_s:
                return None
            from ledger.emit.budgets import budgets_from_environment
            from ledger.emit.deployment_file import deployments_from_environment, recorder_of

            try:
                known = deployments_from_environment()
                made = recorder_of(known)
                try:
                    self._budgets = budgets_from_environment(pseudonym=made.pseudonym)
                except BaseException:
                    made.close(0.0)
                    raise
                self._model = known.default.model
                self._recorder = made
            except Exception as error:
                self._try_at_s = time.monotonic() + _TRY_AGAIN_S  # a full disk, say, is not full for ever
                self._complaints.say("there is no recorder, so nothing is recorded", error)
                return None
            self._asking = dataclasses.replace(
                self._asking, engine=self._asking.engine or known.default.engine
            )
            self._deployments = self._deployments or known.models
        return self._recorder

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the recorder when the app starts, and close it when it ends."""
        await asyncio.to_thread(self._make)

        async def close_first(message: Message) -> None:
            # Once the server has heard that the app ended, it waits for nothing more.
            made: Any = self._recorder
            if made is not None and message["type"] in _LAST:
                if self._budgets is not None:
                    await asyncio.to_thread(self._budgets.close)
                await made.aclose()
            await send(message)

        await self.app(scope, receive, close_first)


_LAST = ("lifespan.shutdown.complete", "lifespan.shutdown.failed")
_MAX_DIGITS = 12
_FRAMING = {b"content-length", b"transfer-encoding"}


def _header_name(name: str | None) -> bytes | None:
    return name.lower().encode("latin-1") if name else None


async def _read(
    receive: Receive, limit: int, headers: Mapping[bytes, bytes]
) -> tuple[list[Message], bytes | None]:
    """The messages of a request's body, and the body; None instead if it cannot or shall not be read."""
    encoded = headers.get(b"content-encoding", b"identity") != b"identity"
    length = headers.get(b"content-length", b"")
    if encoded or (length.isdigit() and int(length) > limit):
        return [], None
    messages: list[Message] = []
    size = 0
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, None
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            return messages, b"".join(each.get("body", b"") for each in messages)
        if size > limit:
            return messages, None


def _size(headers: Mapping[bytes, bytes], messages: list[Message]) -> int:
    """Bytes of a request's body, as far as they are known."""
    length = headers.get(b"content-length", b"")
    if length.isdigit() and len(length) <= _MAX_DIGITS:
        return int(length)
    return sum(len(each.get("body", b"")) for each in messages)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Gives what was received already, then what comes."""
    waiting = list(reversed(messages))

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
