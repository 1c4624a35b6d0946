"""Runs the service: uvicorn with uvloop and bounded connections, stopping gracefully."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.keys import Signer
from ledger.service.app import create_app
from ledger.service.logs import LogFormat, log_config
from ledger.service.protocol import BoundedProtocol
from ledger.service.settings import ENVIRONMENT_PREFIX, Settings, settings_from_environment
from ledger.signers import load_signer
from ledger.store import open_store
from ledger.store.upgrade import check_revision

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "serve"]

DEFAULT_HOST = "127.0.0.1"
"""Other machines reach the service through a proxy that ends TLS, or with --host by choice."""
DEFAULT_PORT = 8090
OLD_KEY_FILE = "log-old.pem"
"""Beside the log's key: the one that it took over from, if that still signs checkpoints."""
POLICY_FILE = "witnesses.policy"
"""In a ledger's folder: the witnesses to be asked."""
_MOST_PROCESSES = 4
"""One process keeps up with the sequencer's own core; a few more are there for bodies that are compressed."""
_SWITCH_INTERVAL_S = 0.001
"""How long a thread that checks a batch may keep the event loop from the interpreter: a fifth of the default.
Measured: a tenth more records per second with sixteen issuers."""


def serve(
    directory: Path | None = None,
    *,
    database: str | Path | None = None,
    log_key: Signer | Path | None = None,
    published: Path | None = None,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    settings: Settings | None = None,
    log_level: str = "info",
    log_format: LogFormat = "text",
    policy: Path | None = None,
) -> None:
    """Serve a log until SIGTERM or SIGINT. Statements that wait are logged before it returns.

    Args:
        directory: the folder that ``tallystick init`` made; it gives what the next three leave out.
        database: path or URL of the database.
        log_key: the log's private key or its file.
        published: file for the checkpoint last published.
        host: address to listen on.
        port: port to listen on.
        settings: what the operator chose; by default from the environment.
        log_level: uvicorn's log level.
        log_format: ``text`` for people, ``json`` for collectors: an object a line.
        policy: witnesses to be asked (C2SP tlog-policy), where the settings name none; used if it is there.

    Raises:
        InvalidError: something needed is missing or not usable.
        CorruptError: the log contradicts itself; nothing was served.
        UnavailableError: the address is in use.
    """
    if directory is not None:
        database = database or directory / "ledger.db"
        log_key = log_key or directory / "keys" / "log.pem"
        published = published or directory / "published.checkpoint"
        policy = directory / POLICY_FILE
    if database is None or log_key is None:
        raise InvalidError(
            "no database and log key were named", remedy="name the folder that `tallystick init` made"
        )
    beside: tuple[Signer, ...] = ()
    if isinstance(log_key, Path):
        old = log_key.with_name(OLD_KEY_FILE)
        beside = (load_signer(old),) if old.is_file() else ()
        key = load_signer(log_key)
    else:
        key = log_key
    settings = settings or settings_from_environment(prepare_processes=_prepare_processes())
    if policy is not None and policy.is_file() and not settings.witness_policy:
        settings = replace(settings, witness_policy=str(policy))
    store = open_store(database)
    try:
        check_revision(store)
        app = create_app(store, key, settings, published=published, beside=beside)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=BoundedProtocol,
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_level=log_level,
                access_log=False,
                log_config=log_config(log_level, log_format),
                server_header=False,
                proxy_headers=False,
                limit_concurrency=settings.limit_concurrency,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=settings.shutdown_s,
            )
        )
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()  # what was imported stays for ever: collections need not look at it
        with _without_traceback(app):
            _run(server)
        if app.state.failure is not None:
            raise app.state.failure
        if not server.started:
            raise UnavailableError(
                "the server did not start",
                where=f"{host}:{port}",
                remedy="see its log; perhaps the port is in use",
                code="not-started",
            )
    finally:
        store.close()


def _prepare_processes() -> int | None:
    """How many processes check statements, where the operator does not say."""
    if os.environ.get(f"{ENVIRONMENT_PREFIX}PREPARE_PROCESSES"):
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_PROCESSES, cores - 1)


@contextlib.contextmanager
def _without_traceback(app: FastAPI) -> Iterator[None]:
    """Keep the traceback of an error that we raise to refuse a start out of the log: its words are enough."""

    def passes(record: logging.LogRecord) -> bool:
        return app.state.failure is None or not record.getMessage().startswith("Traceback")

    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def _run(server: uvicorn.Server) -> None:
    """Run the server and come back, also after a signal.

    uvicorn raises the signal that stopped it again once it is done; without a handler of ours, that would end
    the process before the store is closed.
    """
    if threading.current_thread() is not threading.main_thread():
        server.run()
        return

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
