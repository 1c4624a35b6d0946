"""What one running service holds: the store, the sequencer, thread pools, caches, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET
from sqlalchemy import Connection
from starlette.requests import Request

from ledger.core.checkpoint import parse_checkpoint_text
from ledger.core.keys import PublicKey, Signer
from ledger.core.note import format_vkey, parse_note
from ledger.outgoing import reach_from_environment
from ledger.service.auth import ApiKeys
from ledger.service.auth_rates import Rates
from ledger.service.auth_tenants import IssuerTenants
from ledger.service.auth_tokens import Tokens, load_providers
from ledger.service.budget_keeper import BudgetKeeper
from ledger.service.budget_webhook import AlertWebhook
from ledger.service.limits import Budget
from ledger.service.metrics import Metrics
from ledger.service.preparing import Preparer
from ledger.service.settings import Settings
from ledger.service.tracing import Tracing, tracing_from_environment
from ledger.service.witnessing import Witnessing, load_policy
from ledger.store import Limits, Sequencer, Store, queries
from ledger.store.append import Commit
from ledger.store.budgets import Alert

__all__ = ["Service", "newest_note", "service_of"]


@dataclass
class Service:
    """Owned by one app, from its start to its stop."""

    store: Store
    settings: Settings
    sequencer: Sequencer
    metrics: Metrics
    api_keys: ApiKeys
    tokens: Tokens
    rates: Rates
    tenants: IssuerTenants
    budget: Budget
    preparer: Preparer
    budget_keeper: BudgetKeeper
    budget_webhook: AlertWebhook | None
    witnessing: Witnessing | None = None
    tracing: Tracing | None = None
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
    store: Store,
    log_key: Signer,
    settings: Settings,
    *,
    published: Path | None = None,
    beside: Sequence[Signer] = (),
) -> Service:
    """Put a service together. Nothing runs yet."""
    metrics = Metrics()
    webhook = None
    if settings.budget_webhook:
        webhook = AlertWebhook(store, settings.budget_webhook, reach=reach_from_environment())

    def noted(alerts: Sequence[Alert]) -> None:
        metrics.observe_alerts(alerts)
        if webhook is not None:
            webhook.wake()

    keeper = BudgetKeeper(store, noted=noted)

    def observe(commit: Commit) -> None:
        metrics.observe_commit(commit)
        if service.witnessing is not None:
            service.witnessing.notify()
        if commit.records:
            keeper.log_grew()

    service = Service(
        store=store,
        settings=settings,
        sequencer=Sequencer(store, log_key, beside=beside, published=published, observe=observe),
        metrics=metrics,
        api_keys=ApiKeys(store, ttl_s=settings.api_key_cache_s),
        tokens=_tokens(settings),
        rates=Rates(settings.requests_per_s, settings.body_bytes_per_s),
        tenants=IssuerTenants(store, ttl_s=settings.api_key_cache_s),
        budget=Budget(settings.max_buffered_bytes),
        preparer=Preparer(
            store,
            Limits(max_future_us=settings.max_clock_skew_s * 1_000_000),
            threads=settings.prepare_threads,
            processes=settings.prepare_processes,
        ),
        budget_keeper=keeper,
        budget_webhook=webhook,
        tracing=tracing_from_environment(),
    )
    service.witnessing = _witnessing(service)
    return service


def _witnessing(service: Service) -> Witnessing | None:
    """Who asks the witnesses of the policy, if there is one.

    Raises:
        InvalidError, RefusedError: the policy, or an address in it, cannot be used.
    """
    from ledger.outgoing import reach_from_environment

    settings = service.settings
    if not settings.witness_policy:
        return None
    return Witnessing(
        service.store,
        load_policy(Path(settings.witness_policy)),
        service.sequencer.verifier_keys,
        reach=reach_from_environment(),
        interval_s=settings.witness_interval_ms / 1000,
        timeout_s=settings.witness_timeout_s,
        publish_unwitnessed=settings.publish_unwitnessed,
        observe=service.metrics.observe_witness,
    )


def _tokens(settings: Settings) -> Tokens:
    """Who checks workloads' tokens.

    Raises:
        InvalidError, RefusedError: the file of providers, or an address in it, cannot be used.
    """
    from ledger.outgoing import check_url, reach_from_environment

    reach, providers, path = reach_from_environment(), None, Path(settings.identity_file)
    if settings.identity_file:
        providers = load_providers(path)
        for each in providers.providers:
            if each.jwks_url is not UNSET:
                check_url(each.jwks_url, reach)
    return Tokens(providers, ttl_s=settings.api_key_cache_s, reach=reach, folder=path.parent)


def newest_note(connection: Connection, service: Service, leaf_index: int) -> tuple[int, str]:
    """Size and note of the checkpoint to prove a leaf with: the published one, if it covers the leaf."""
    head = queries.log_head(connection)
    if service.witnessing is not None:
        note = service.witnessing.published(connection, head)
        size = parse_checkpoint_text(parse_note(note.encode()).text).size
        if leaf_index < size:
            return size, note
    return head.size, head.checkpoint


def service_of(request: Request) -> Service:
    """The service that answers ``request``."""
    service = request.app.state.service
    assert isinstance(service, Service)  # noqa: S101 - set where the app is made
    return service
