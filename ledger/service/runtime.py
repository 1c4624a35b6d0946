"""What one running service holds: the store, the sequencer, thread pools, caches, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from ledger.core.keys import PrivateKey, PublicKey
from ledger.core.note import format_vkey
from ledger.service.auth import ApiKeys
from ledger.service.limits import Budget
from ledger.service.metrics import Metrics
from ledger.service.preparing import Preparer
from ledger.service.settings import Settings
from ledger.store import Limits, Sequencer, Store

__all__ = ["Service", "service_of"]


@dataclass
class Service:
    """Owned by one app, from its start to its stop."""

    store: Store
    settings: Settings
    sequencer: Sequencer
    metrics: Metrics
    api_keys: ApiKeys
    budget: Budget
    preparer: Preparer
    serving: bool = False

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.sequencer.log.origin

    @property
    def log_key(self) -> PublicKey:
        """The log's public key."""
        return self.sequencer.log.key.public

    @property
    def vkey(self) -> str:
        """The log's verifier key as text."""
        return format_vkey(self.sequencer.verifier_key)


def make_service(
    store: Store, log_key: PrivateKey, settings: Settings, *, published: Path | None = None
) -> Service:
    """Put a service together. Nothing runs yet."""
    metrics = Metrics()
    return Service(
        store=store,
        settings=settings,
        sequencer=Sequencer(store, log_key, published=published, observe=metrics.observe_commit),
        metrics=metrics,
        api_keys=ApiKeys(store, ttl_s=settings.api_key_cache_s),
        budget=Budget(settings.max_buffered_bytes),
        preparer=Preparer(
            store,
            Limits(max_future_us=settings.max_clock_skew_s * 1_000_000),
            threads=settings.prepare_threads,
            processes=settings.prepare_processes,
        ),
    )


def service_of(request: Request) -> Service:
    """The service that answers ``request``."""
    service = request.app.state.service
    assert isinstance(service, Service)  # noqa: S101 - set where the app is made
    return service
