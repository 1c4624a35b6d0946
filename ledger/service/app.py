"""Makes the FastAPI app of one log: routers, problems, the edge, and the sequencer's life."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI

from ledger import __version__
from ledger.core.errors import TallystickError
from ledger.core.keys import Signer
from ledger.service import (
    batches,
    budgets,
    documents,
    enrolment,
    entries,
    issuers,
    log,
    openapi,
    operations,
    problems,
    proofs,
    query,
    records,
    rollups,
)
from ledger.service.edge import Edge
from ledger.service.runtime import Service, make_service
from ledger.service.settings import Settings
from ledger.store import Store, queries

__all__ = ["create_app"]

_log = logging.getLogger(__name__)
_ROUTERS = (
    *(
        entries,
        batches,
        log,
        proofs,
        records,
        rollups,
        query,
        issuers,
        enrolment,
        documents,
        budgets,
        problems,
        operations,
    ),
)


def create_app(
    store: Store,
    log_key: Signer,
    settings: Settings | None = None,
    *,
    published: Path | None = None,
    beside: Sequence[Signer] = (),
) -> FastAPI:
    """The app that serves the log in ``store``.

    Starting it compares database, tiles and checkpoints and starts the sequencer; stopping it lets what waits
    be logged first.

    Args:
        store: open, migrated, with a log in it. Stays the caller's to close.
        log_key: the log's private key.
        settings: what the operator chose.
        published: file for the checkpoint last published (see ``Sequencer``).
        beside: keys that the log's key took over from and that still sign checkpoints.

    Raises:
        InvalidError: there is no log in the store, or the key is not one for a log.
    """
    service = make_service(store, log_key, settings or Settings(), published=published, beside=beside)
    app = FastAPI(
        title="Tallystick",
        version=__version__,
        lifespan=_lifespan,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.failure = None
    for module in _ROUTERS:
        app.include_router(module.router)
    problems.install_handlers(app)
    app.add_middleware(Edge, service=service)
    described: dict[str, Any] = {}

    def describe() -> dict[str, Any]:
        if not described:
            described.update(openapi.describe(app))
        return described

    app.openapi = describe  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    anyio.to_thread.current_default_thread_limiter().total_tokens = service.settings.read_threads
    try:
        if service.witnessing is not None:
            await anyio.to_thread.run_sync(service.witnessing.check_before_start)
        await anyio.to_thread.run_sync(service.sequencer.start)
    except TallystickError as error:
        app.state.failure = error  # for whoever runs the server
        _log.error("does not start: %s [%s]", error, error.code)
        raise
    await anyio.to_thread.run_sync(service.preparer.start)
    service.budget_keeper.start()
    if service.budget_webhook is not None:
        service.budget_webhook.start()
    with service.store.read() as connection:
        service.metrics.tree_size.set(queries.log_head(connection).size)
    if service.witnessing is not None:
        service.witnessing.start()
    service.serving = True
    _log.info("serving %s", service.origin)
    try:
        yield
    finally:
        service.serving = False
        if service.witnessing is not None:
            await anyio.to_thread.run_sync(service.witnessing.stop)
        await anyio.to_thread.run_sync(service.sequencer.stop)
        await anyio.to_thread.run_sync(service.budget_keeper.stop)
        if service.budget_webhook is not None:
            await anyio.to_thread.run_sync(service.budget_webhook.stop)
        await anyio.to_thread.run_sync(service.preparer.stop)
        if service.tracing is not None:
            await anyio.to_thread.run_sync(service.tracing.close)
