"""What one running service holds: the store, the sequencer, thread pools, caches, metrics."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from ledger.core.keys import PrivateKey, PublicKey
from ledger.core.note import format_vkey
from ledger.service.auth import ApiKeys
from ledger.service.limits import Budget
from ledger.service.metrics import Metrics
from ledger.service.settings import Settings
from ledger.store import Limits, Sequencer, Store, queries

__all__ = ["Service", "service_of"]

_MAX_CACHED_KEYS = 4096


@dataclass
class Service:
    """Owned by one app, from its start to its stop.

    ``issuer_keys`` is filled by the preparing threads; a dict's single operations need no lock, and what is
    lost to a race is only looked up again.
    """

    store: Store
    settings: Settings
    sequencer: Sequencer
    metrics: Metrics
    api_keys: ApiKeys
    budget: Budget
    prepare_pool: ThreadPoolExecutor
    limits: Limits
    issuer_keys: dict[bytes, tuple[str, PublicKey]] = field(default_factory=dict)
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

    def issuer_key(self, issuer: str, kid: bytes) -> PublicKey:
        """The key that verifies ``issuer``'s statements signed with ``kid``.

        Keys never change, so they are remembered. Whether one was revoked is decided in the appending
        transaction, after known statements are recognised: a resend gives the same receipt for ever.

        Raises:
            RefusedError: unknown issuer, or another issuer's key.
        """
        cached = self.issuer_keys.get(kid)
        if cached is not None and cached[0] == issuer:
            return cached[1]
        with self.store.read() as connection:
            info = queries.issuer_key(connection, kid)
            if info is None or info.issuer != issuer:
                return queries.usable_key(connection, issuer, kid)  # raises: it words the refusal
        if len(self.issuer_keys) >= _MAX_CACHED_KEYS:
            self.issuer_keys.clear()
        self.issuer_keys[kid] = (issuer, info.public)
        return info.public


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
        prepare_pool=ThreadPoolExecutor(settings.prepare_threads, thread_name_prefix="tallystick-prepare"),
        limits=Limits(max_future_us=settings.max_clock_skew_s * 1_000_000),
    )


def service_of(request: Request) -> Service:
    """The service that answers ``request``."""
    service = request.app.state.service
    assert isinstance(service, Service)  # noqa: S101 - set where the app is made
    return service
