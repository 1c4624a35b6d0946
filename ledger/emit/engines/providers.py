"""Owns the hook for the clients of providers: each answer to ``openai``, ``anthropic`` or ``google-genai``
becomes one record. Two lines to adopt::

    recorder = Recorder()
    client = providers.record(OpenAI(), recorder)

The client is the same object, synchronous or asynchronous: OpenAI and AzureOpenAI with any ``base_url``
(Together, Anyscale, Gemini's compatible API, a server of one's own), Anthropic, ``google.genai.Client``. It
is hooked where these SDKs send: the ``event_hooks`` of their HTTP client (``httpx`` 0.28 or ``httpx2`` 2.16),
so every method that generates is seen, with ``openai`` 2 and 3, ``anthropic`` 2, ``google-genai`` 3. A retry
is a request of its own. What generates nothing (embeddings, lists, files) is not touched.

What the hook changes: requests that generate ask for an answer that is not compressed, and streams of
OpenAI's API ask for their usage, which is taken out of the answer again where the caller did not ask for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol, TypeVar

import msgspec

from ledger.core.records import Deployment
from ledger.emit._complaints import Complaints
from ledger.emit.engines._exchange import Call, Exchange, Recording
from ledger.emit.engines._hosted import hosted_deployment, provider_of_host
from ledger.emit.engines._openai import kind_of, mapping, read_answer, read_json, text_or_none
from ledger.emit.engines._provider_wires import anthropic_wire, gemini_wire
from ledger.emit.engines._sse import Events
from ledger.emit.engines._wire import OPENAI, Added, Asking, Wire, hide, with_additions

__all__ = ["record"]

_ClientT = TypeVar("_ClientT")
Tenant = Callable[[Mapping[str, Any]], str | None]

_HELD = "tallystick"
"""Under which a request's ``extensions`` hold what follows it."""
_DONE = b"[DONE]"
_FIRST_ERROR = 400
_MAX_BODY_BYTES = 64 << 20
"""A whole answer that is kept to be read; of a longer one the tokens are not known."""
_SDKS = {"openai": "openai", "anthropic": "anthropic", "google": "gemini"}
"""By the package of the client: the provider, where the host does not tell it."""


class Observing(Protocol):
    """Takes the bytes of an answer; gives those to pass on."""

    def feed(self, data: bytes) -> bytes:
        """The next bytes."""

    def rest(self) -> bytes:
        """What was held back, at the end."""

    def break_off(self) -> None:
        """The server ended in the middle."""

    def close(self) -> None:
        """Nobody reads on."""


def tenant_of(body: Mapping[str, Any]) -> str | None:
    """Who asked, as far as the request says: ``user`` of OpenAI, ``metadata.user_id`` of Anthropic."""
    return text_or_none(body.get("user")) or text_or_none(mapping(body.get("metadata")).get("user_id"))


def record(
    client: _ClientT,
    recorder: Recording,
    *,
    tenant: str | Tenant = tenant_of,
    parent: str | None = None,
    deployment: Deployment | None = None,
    ask_usage: bool = True,
) -> _ClientT:
    """Record what ``client`` has generated from here on; return it. A second call replaces the first.

    Args:
        client: of ``openai``, ``anthropic`` or ``google.genai``.
        recorder: a ``Recorder``. It needs no deployment: each record names the provider's.
        tenant: who the generations are for, or how to tell from a request's body.
        parent: the record that causes these requests (agent chains).
        deployment: what answers, if more is known of it than a client can see.
        ask_usage: ask streams of OpenAI's API for their usage. Without it, their tokens are estimated.

    Raises:
        TypeError: the client has no HTTP client that can be hooked.
    """
    found = [each for each in _http_clients(client) if hasattr(each, "event_hooks")]
    if not found:
        raise TypeError(f"{type(client).__name__} has no HTTP client with event_hooks")
    hooks = _Hooks(client, recorder, tenant, parent, deployment, ask_usage)
    for http in found:
        asynchronous = hasattr(http, "aclose")
        before, after = (hooks.abefore, hooks.aafter) if asynchronous else (hooks.before, hooks.after)
        events = {
            kind: [each for each in given if not _is_ours(each)] for kind, given in http.event_hooks.items()
        }
        http.event_hooks = {
            "request": [*events["request"], before],
            "response": [*events["response"], after],
        }
    return client


def _is_ours(hook: object) -> bool:
    return isinstance(getattr(hook, "__self__", None), _Hooks)


def _http_clients(client: Any) -> list[Any]:
    api = getattr(client, "_api_client", None)  # google-genai keeps one of each kind
    places = ((client, "_client"), (api, "_httpx_client"), (api, "_async_httpx_client"))
    return [http for owner, name in places if (http := getattr(owner, name, None)) is not None]


class _Hooks:
    """What is called before each request and after the headers of each answer."""

    def __init__(
        self,
        client: object,
        recorder: Recording,
        tenant: str | Tenant,
        parent: str | None,
        deployment: Deployment | None,
        ask_usage: bool,
    ) -> None:
        self._sdk = "azure" if "Azure" in type(client).__name__ else _sdk_of(client)
        self._recorder = recorder
        self._tenant = tenant
        self._parent = parent
        self._deployment = deployment
        self._asking = Asking(usage=ask_usage, ids=False)
        self._complaints = Complaints("a provider's client")

    def before(self, request: Any) -> None:
        """A request is about to be sent."""
        try:
            self._open(request)
        except Exception as error:
            self._complaints.say("a request could not be read", error)

    def after(self, response: Any) -> None:
        """The headers of an answer are here."""
        held = response.request.extensions.pop(_HELD, None)
        if held is None:
            return
        try:
            observing = held.answered(response)
            if observing is not None:
                kind = _stream_class(type(response).__module__.partition(".")[0], False)
                response.stream = kind(response.stream, observing)
        except Exception as error:
            self._complaints.say("an answer could not be followed", error)

    async def abefore(self, request: Any) -> None:
        """``before`` of an asynchronous client."""
        self.before(request)

    async def aafter(self, response: Any) -> None:
        """``after`` of an asynchronous client."""
        held = response.request.extensions.pop(_HELD, None)
        if held is None:
            return
        try:
            observing = held.answered(response)
            if observing is not None:
                kind = _stream_class(type(response).__module__.partition(".")[0], True)
                response.stream = kind(response.stream, observing)
        except Exception as error:
            self._complaints.say("an answer could not be followed", error)

    def _open(self, request: Any) -> None:
        earlier = request.extensions.pop(_HELD, None)
        if earlier is not None:
            earlier.exchange.refuse()  # sent again by the HTTP client: a redirect
        path = request.url.path
        wire = _wire_of(path)
        if request.method != "POST" or wire is None:
            return
        body = read_json(request.content)
        if body is None:
            return
        host = request.url.netloc.decode("ascii", "replace")
        provider = provider_of_host(request.url.host) or self._sdk
        more, added = wire.ask(body, self._asking)
        if more:
            _rewrite(request, with_additions(request.content, body, more))
        request.headers["accept-encoding"] = "identity"
        asked = wire.read(body)
        tenant = self._tenant if isinstance(self._tenant, str) else self._tenant(body)
        deployments: dict[str, Deployment] = {}
        exchange = Exchange(self._recorder, wire, asked, Call(tenant, self._parent), deployments)

        def known() -> None:
            name = exchange.answer.model
            deployments[name or ""] = self._deployment or hosted_deployment(
                provider, asked.model or name or "unknown", answered_as=name, api_base=host
            )

        # As a dict of the request's own: the SDKs pass theirs on to others.
        request.extensions = {**request.extensions, _HELD: _Held(exchange, added, known, self._complaints)}


def _sdk_of(client: object) -> str:
    package = type(client).__module__.partition(".")[0]
    return _SDKS.get(package, package)


def _wire_of(path: str) -> Wire | None:
    kind = kind_of(path)
    return OPENAI[kind] if kind is not None else anthropic_wire(path) or gemini_wire(path)


def _rewrite(request: Any, data: bytes) -> None:
    request.stream = type(request.stream)(data)
    request._content = data
    request.headers["content-length"] = str(len(data))


class _Held:
    """What follows one request, until its answer is there."""

    def __init__(
        self, exchange: Exchange, added: Added, known: Callable[[], None], complaints: Complaints
    ) -> None:
        self.exchange = exchange
        self._added = added
        self._known = known
        self._complaints = complaints
        self._answered = False

    def answered(self, response: Any) -> Observing | None:
        """What takes the answer's bytes; None where it generated nothing."""
        self._answered = True
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        packed = response.headers.get("content-encoding", "identity").lower() != "identity"
        if response.status_code >= _FIRST_ERROR:
            self.exchange.refuse()
            return None
        if packed:
            self._complaints.say("an answer is compressed: its tokens are estimated")
        streamed = kind == "text/event-stream" and not packed
        return _Observed(
            self.exchange,
            self._added if streamed else Added(),
            self._known,
            self._complaints,
            streamed=streamed,
            unread=packed,
        )

    def __del__(self) -> None:
        if not self._answered:  # the connection failed
            self.exchange.refuse()


class _Observed:
    """Reads one answer in passing."""

    def __init__(
        self,
        exchange: Exchange,
        added: Added,
        known: Callable[[], None],
        complaints: Complaints,
        *,
        streamed: bool,
        unread: bool,
    ) -> None:
        self._exchange = exchange
        self._unread = unread
        self._added = added
        self._known = known
        self._complaints = complaints
        self._events = Events() if streamed else None
        self._kept = bytearray()
        self._whole = self._broken = False

    def feed(self, data: bytes) -> bytes:
        """The next bytes, and those of them to pass on."""
        if self._events is None:
            self._unread = self._unread or len(self._kept) + len(data) > _MAX_BODY_BYTES
            if self._unread:
                self._exchange.answer.whole = False
                self._exchange.unread_bytes += len(self._kept) + len(data)
                self._kept.clear()
            else:
                self._kept += data
            return data
        shown = b"".join(self._event(event.raw, event.data) for event in self._events.feed(data))
        return shown if self._added else data

    def rest(self) -> bytes:
        """The end came; what was held back is passed on."""
        self._whole = True
        if self._events is not None:
            return self._events.rest() if self._added else b""
        if self._unread:
            return b""
        try:
            body = read_answer(self._kept)
            if body is not None:
                self._exchange.feed(body, streamed=False)
        except Exception as error:
            self._complaints.say("an answer could not be read", error)
        return b""

    def break_off(self) -> None:
        """The connection failed in the middle of the answer."""
        self._broken = True

    def close(self) -> None:
        """The SDK is done with the answer, at its end or before."""
        try:
            if self._exchange.open:
                self._known()
                if self._broken:
                    self._exchange.fail()
                elif self._whole or self._exchange.answer.finish_reason is not None:
                    self._exchange.end()
                else:
                    self._exchange.abort()
        except Exception as error:
            self._complaints.say("a generation could not be recorded", error)

    def _event(self, raw: bytes, data: bytes) -> bytes:
        try:
            body = read_json(data) if data and data != _DONE else None
            if body is None:
                return raw
            self._exchange.feed(body, streamed=True)
            shown = hide(body, self._added, streamed=True) if self._added else body
        except Exception as error:
            self._complaints.say("a chunk could not be read", error)
            return raw
        if shown is body:
            return raw
        return b"" if shown is None else b"data: " + msgspec.json.encode(shown) + b"\n\n"


@lru_cache(maxsize=8)
def _stream_class(package: str, asynchronous: bool) -> Callable[[Any, Observing], Any]:
    """A byte stream for the HTTP library ``package``, which checks of what class streams are."""
    library = import_module(package)
    base: Any = library.AsyncByteStream if asynchronous else library.SyncByteStream

    class Passing(base):  # type: ignore[misc]
        """The stream of one answer."""

        def __init__(self, stream: Any, observing: Observing) -> None:
            self._stream = stream
            self._observing = observing

        def __iter__(self) -> Iterator[bytes]:
            try:
                for data in self._stream:
                    if shown := self._observing.feed(data):
                        yield shown
            except Exception:
                self._observing.break_off()
                raise
            if rest := self._observing.rest():
                yield rest

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for data in self._stream:
                    if shown := self._observing.feed(data):
                        yield shown
            except Exception:
                self._observing.break_off()
                raise
            if rest := self._observing.rest():
                yield rest

        def close(self) -> None:
            self._observing.close()
            self._stream.close()

        async def aclose(self) -> None:
            self._observing.close()
            await self._stream.aclose()

    return Passing
