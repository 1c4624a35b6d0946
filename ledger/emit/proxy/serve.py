"""Owns the running of the proxy: what generates, a recorder, the server, and a stop that loses nothing."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from ledger.core.errors import UnavailableError
from ledger.core.records import Deployment
from ledger.emit.budgets import Budgets, budgets_from_environment
from ledger.emit.deployment_file import Deployments, recorder_of
from ledger.emit.engines.asgi import RecordingMiddleware
from ledger.emit.model_identity import identified
from ledger.emit.proxy.forward import Forwarder, Limits
from ledger.emit.recorder import Recorder

__all__ = ["Options", "serve"]

_logger = logging.getLogger("tallystick.proxy")

_LOOK_EVERY_S = 1.0
_FLUSH_S = 30.0
"""How long the last records may take to the ledger at the end. What cannot be sent stays in the spool."""


@dataclass(frozen=True)
class Options:
    """How the proxy serves.

    Attributes:
        upstream: URL of the server behind.
        host: address to listen on.
        port: port to listen on.
        limits: what bounds a request.
        ca_file: PEM file of the authorities that the upstream's certificate must come from.
        tenant_header: see ``RecordingMiddleware``.
        parent_header: see ``RecordingMiddleware``.
        ask_usage: see ``RecordingMiddleware``.
        ask_ids: see ``RecordingMiddleware``.
        shutdown_s: how long running requests may finish after a stop was asked for.
        certificate: PEM files of certificate and key to serve HTTPS with.
        log_level: of the log on stderr.
    """

    upstream: str
    host: str = "127.0.0.1"
    port: int = 8080
    limits: Limits = field(default_factory=Limits)
    ca_file: str | None = None
    tenant_header: str | None = None
    parent_header: str | None = None
    ask_usage: bool = True
    ask_ids: bool = True
    shutdown_s: int = 30
    certificate: tuple[Path, Path] | None = None
    log_level: str = "info"


def create_app(
    options: Options, deployments: Deployments, recorder: Recorder, budgets: Budgets | None = None
) -> Any:
    """The proxy as an ASGI app."""
    forwarder = Forwarder(
        options.upstream, limits=options.limits, ca_file=options.ca_file, health=_health(recorder)
    )
    return RecordingMiddleware(
        forwarder,
        recorder,
        engine=deployments.default.engine,
        deployments=deployments.models,
        tenant_header=options.tenant_header,
        parent_header=options.parent_header,
        ask_usage=options.ask_usage,
        ask_ids=options.ask_ids,
        budgets=budgets,
        model=deployments.default.model,
    )


def _health(recorder: Recorder) -> Callable[[], dict[str, Any]]:
    """Tells what anybody may know: no names, no paths. Looks at the spool, where a ledger that is down leaves
    many thousand files, once a second at most, however often it is asked.
    """
    told: dict[str, Any] = {}
    looked_at = -math.inf

    def health() -> dict[str, Any]:
        nonlocal told, looked_at
        if time.monotonic() - looked_at >= _LOOK_EVERY_S:
            looked_at = time.monotonic()
            status = recorder.status()
            told = {
                "status": "ok",
                "recording": not status.blocked,
                "queued": status.queued,
                "spooled": status.spooled,
                "sent": status.sent,
                "dropped": status.dropped,
            }
        return told

    return health


def serve(
    options: Options,
    deployments: Deployments,
    *,
    model_file: Path | None = None,
    ready: Callable[[Recorder], None] = lambda _: None,
) -> bool:
    """Serve until SIGTERM or SIGINT; requests that run then are finished and recorded.

    Args:
        options: how.
        deployments: what the upstream generates with.
        model_file: the weights, if they are on this machine: their digest becomes part of the deployment.
        ready: is told the recorder before the proxy listens.

    Returns:
        Whether all records reached the ledger (without a ledger: the disk); what did not is in the spool.

    Raises:
        TallystickError: the recorder's settings are not usable.
        UnavailableError: the address is in use.
    """
    if model_file is not None:
        deployments = Deployments(_with_weights(deployments.default, model_file), deployments.models)
    recorder = recorder_of(deployments)
    budgets: Budgets | None = None
    try:
        budgets = budgets_from_environment(pseudonym=recorder.pseudonym)
        ready(recorder)
        certificate, key = options.certificate or (None, None)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(options, deployments, recorder, budgets),
                host=options.host,
                port=options.port,
                log_level=options.log_level,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=options.shutdown_s,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )
        _run(server)
        if not server.started:
            raise UnavailableError(
                "the proxy did not start",
                where=f"{options.host}:{options.port}",
                remedy="see its log; perhaps the port is in use",
                code="not-started",
            )
    finally:
        if budgets is not None:
            budgets.close()
        delivered = recorder.close(_FLUSH_S)
        _logger.info("stopped; %d statements wait in the spool", recorder.status().spooled)
    return delivered


def _run(server: uvicorn.Server) -> None:
    """Run the server and come back, also after a signal.

    uvicorn raises the signal that stopped it again once it is done; without a handler of ours, that would end
    the process before the last records are sealed.
    """

    def quiet(*_: Any) -> None:
        """The server has stopped already."""

    before = {each: signal.signal(each, quiet) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    except SystemExit:
        if server.started:
            raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _with_weights(deployment: Deployment, path: Path) -> Deployment:
    return identified(deployment, path, wait_s=None)()
