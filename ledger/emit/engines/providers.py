"""Owns the hook for the clients of providers: each answer to ``openai``, ``anthropic`` or ``google-genai``
becomes one record. Two lines to adopt::

    recorder = Recorder()
    client = providers.record(OpenAI(), recorder)

The client is the same object, synchronous or asynchronous: OpenAI and AzureOpenAI with any ``base_url``
(Together, Anyscale, Gemini's compatible API, a server of one's own), Anthropic, ``google.genai.Client``. It
is hooked where these SDKs send: the ``event_hooks`` of their HTTP client (``httpx`` 0.28 or ``httpx2`` 2.16),
so every method that generates is seen, with ``openai`` 2 and 3, ``anthropic`` 2, ``google-genai`` 3. A retry
is a request of its own. What generates nothing (embeddings, lists, files) is not touched. ``send`` of the
HTTP client is wrapped as well, since no hook tells of a request that failed: one that never reached the
provider generated nothing, any other one may have, and counts as dropped.

What the hook changes: requests that generate ask for an answer that is not compressed, and streams of
OpenAI's API ask for their usage, which is taken out of the answer again where the caller did not ask for it.
Requests that are signed for AWS stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from ledger.core.records import Deployment
from ledger.emit._complaints import Complaints
from ledger.emit.engines._exchange import NEVER_SENT, Call, Exchange, Recording
from ledger.emit.engines._hosted import hosted_deployment, provider_of_host
from ledger.emit.engines._openai import kind_of, mapping, read_json, read_leniently, text_or_none
from ledger.emit.engines._provider_answer import Observed, Observing, stream_class
from ledger.emit.engines._provider_wires import anthropic_wire, gemini_wire
from ledger.emit.engines._wire import OPENAI, Added, Asking, Wire, with_additions

__all__ = ["record"]

_ClientT = TypeVar("_ClientT")
Tenant = Callable[[Mapping[str, Any]], str | None]

_HELD = "tallystick"
"""Under which a request's ``extensions`` hold what follows it."""
_UNREAD = frozenset({"AnthropicBedrock", "AnthropicVertex", "AsyncAnthropicBedrock", "AsyncAnthropicVertex"})
"""Clients whose paths and bodies are their cloud's, which nothing here reads."""
_SIGNED = "AWS4-"
"""How the authorization of a request begins whose headers and body are signed (AWS Signature Version 4)."""
_SDKS = {"openai": "openai", "anthropic": "anthropic", "google": "gemini"}
"""By the package of the client: the provider, where the host does not tell it."""


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
        tenant: who the generations are for, or how to tell from a request's body. A request of which that
            fails is recorded without a tenant.
        parent: the record that causes these requests (agent chains).
        deployment: what answers, if more is known of it than a client can see.
        ask_usage: ask streams of OpenAI's API for their usage. Without it, their tokens are estimated.

    Raises:
        TypeError: the client has no HTTP client that can be hooked, or speaks an API that is not read here
            (Anthropic's clients for Bedrock and Vertex AI).
    """
    unread = _UNREAD.intersection(each.__name__ for each in type(client).__mro__)
    if unread:
        raise TypeError(
            f"the requests of {min(unread)} cannot be read, so nothing would be recorded: call the model "
            "through LiteLLM with its hook (ledger.emit.engines.litellm), or give recorder.record the usage "
            "that the answers tell"
        )
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
        _watch_failures(http, asynchronous)
    return client


def _watch_failures(http: Any, asynchronous: bool) -> None:
    """Have ``http.send`` tell what it raises to whoever follows the request. Once is enough."""
    send = http.send
    if hasattr(send, "_tallystick"):
        return

    @wraps(send)
    def watched(request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return send(request, *args, **kwargs)
        except BaseException as error:
            _tell(request, error)
            raise

    @wraps(send)
    async def awatched(request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await send(request, *args, **kwargs)
        except BaseException as error:
            _tell(request, error)
            raise

    http.send = awatched if asynchronous else watched
    http.send._tallystick = True


def _tell(request: Any, error: BaseException) -> None:
    """A request was not answered. After a redirect, the one that failed is the error's own."""
    for each in (request, getattr(error, "_request", None)):
        held = None if each is None else each.extensions.pop(_HELD, None)
        if held is not None:
            held.failed(error)


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
        self._follow(response, False)

    async def abefore(self, request: Any) -> None:
        """``before`` of an asynchronous client."""
        self.before(request)

    async def aafter(self, response: Any) -> None:
        """``after`` of an asynchronous client."""
        self._follow(response, True)

    def _follow(self, response: Any, asynchronous: bool) -> None:
        held = response.request.extensions.pop(_HELD, None)
        if held is None:
            return
        try:
            observing = held.answered(response)
            if observing is not None:
                kind = stream_class(type(response).__module__.partition(".")[0], asynchronous)
                response.stream = kind(response.stream, observing)
        except Exception as error:
            held.exchange.lose()
            self._complaints.say("an answer could not be followed", error)

    def _open(self, request: Any) -> None:
        earlier = request.extensions.pop(_HELD, None)
        if earlier is not None:
            earlier.exchange.refuse()  # sent again by the HTTP client: a redirect
        path = request.url.path
        wire = _wire_of(path)
        if request.method != "POST" or wire is None:
            return
        data = request.content
        more: dict[str, Any] = {}
        added = Added()
        body = read_json(data)
        signed = request.headers.get("authorization", "").startswith(_SIGNED)
        if body is not None and not signed:
            more, added = wire.ask(body, self._asking)
            data = with_additions(data, body, more)
        elif body is None:
            body = read_leniently(data)  # and sent as it is
        asked = None if body is None else wire.read(body)
        host = request.url.netloc.decode("ascii", "replace")
        provider = provider_of_host(request.url.host) or self._sdk
        deployments: dict[str, Deployment] = {}
        call = Call(self._tenant_in(body or {}), self._parent)
        exchange = Exchange(self._recorder, wire, asked, call, deployments)
        if asked is None:
            exchange.asked_bytes = len(data)
            self._complaints.say("a request could not be read: without usage, its tokens are estimated")

        def known() -> None:
            name = exchange.answer.model
            deployments[name or ""] = self._deployment or hosted_deployment(
                provider,
                (None if asked is None else asked.model) or name or "unknown",
                answered_as=name,
                api_base=host,
            )

        held = _Held(exchange, known, self._complaints)
        # As a dict of the request's own: the SDKs pass theirs on to others.
        request.extensions = {**request.extensions, _HELD: held}
        if not signed:
            request.headers["accept-encoding"] = "identity"
        if more:  # last: from here on, somebody is there to take out of the answer what comes of it
            _rewrite(request, data)
            held.added = added

    def _tenant_in(self, body: Mapping[str, Any]) -> str | None:
        if isinstance(self._tenant, str):
            return self._tenant
        try:
            return self._tenant(body)
        except Exception as error:
            self._complaints.say("no tenant is recorded: the function that was to tell it failed", error)
            return None


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
    """What follows one request, until its answer is there.

    Attributes:
        exchange: is told what passes.
        added: to the request; to be taken out of its answer.
    """

    def __init__(self, exchange: Exchange, known: Callable[[], None], complaints: Complaints) -> None:
        self.exchange = exchange
        self.added = Added()
        self._known = known
        self._complaints = complaints
        self._answered = False

    def answered(self, response: Any) -> Observing | None:
        """What takes the answer's bytes; None where nothing is to be recorded of it."""
        self._answered = True
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        packed = response.headers.get("content-encoding", "identity").lower() != "identity"
        self._see_status(response.status_code)
        if not self.exchange.open:
            return None
        if packed:
            self._complaints.say("an answer is compressed: its tokens are estimated")
        unnamed = kind in ("", "text/plain") and self.exchange.asks_for_stream
        streamed = (kind == "text/event-stream" or unnamed) and not packed
        return Observed(
            self.exchange,
            self.added if streamed else Added(),
            self._known,
            self._complaints,
            streamed=streamed,
            unread=packed,
        )

    def failed(self, error: BaseException) -> None:
        """There is no answer. Unless the provider never had the request, it may have generated and billed."""
        self._answered = True
        status = getattr(getattr(error, "response", None), "status_code", None)
        if NEVER_SENT.intersection(each.__name__ for each in type(error).__mro__):
            self.exchange.refuse()
        elif type(status) is int:  # another hook made an error of the answer
            self._see_status(status)
        self._lose(type(error).__name__)

    def _see_status(self, status: int) -> None:
        self.exchange.see_status(status)
        if self.exchange.lost:
            self._complaints.say(f"a request is counted as dropped, for it was answered {status}")

    def _lose(self, why: str) -> None:
        if self.exchange.open:
            self.exchange.lose()
            self._complaints.say(f"a request is counted as dropped, for it was never answered ({why})")

    def __del__(self) -> None:
        if not self._answered:
            with contextlib.suppress(Exception):  # the interpreter may be about to end
                self._lose("it is gone")
