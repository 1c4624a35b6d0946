"""Which records a caller and an issuer may log: those of their own tenant."""

from __future__ import annotations

import threading
import time

from ledger.core.statements import Acknowledgement, Correction, Erasure, Evaluation
from ledger.service.auth_caller import ApiKeyInfo
from ledger.store import Prepared, Store
from ledger.store.tenancy import other_tenant, own_subject, tenant_of_issuer

__all__ = ["IssuerTenants"]

_MAX_CACHED = 10_000


class IssuerTenants:
    """Knows whose issuer is whose. ``_lock`` guards what is remembered for a short time.

    Args:
        store: where it is written.
        ttl_s: how long it is remembered.
    """

    def __init__(self, store: Store, *, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str | None, float]] = {}

    def cached(self, issuer: str) -> tuple[str | None] | None:
        """The tenant of ``issuer`` as a tuple of one; None if it is not remembered."""
        with self._lock:
            found = self._known.get(issuer)
        return (found[0],) if found is not None and found[1] > time.monotonic() else None

    def read(self, issuer: str) -> str | None:
        """The tenant of ``issuer``, from the store. Blocks."""
        with self._store.read() as connection:
            tenant = tenant_of_issuer(connection, issuer)
        with self._lock:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            self._known[issuer] = (tenant, time.monotonic() + self._ttl_s)
        return tenant

    def check(self, caller: ApiKeyInfo | None, prepared: Prepared, bound: str | None) -> None:
        """Check that ``caller`` may log ``prepared``, whose issuer is ``bound`` to a tenant or to none.

        Blocks for what is about something logged before: see ``looks_up``.

        Raises:
            RefusedError: ``other-tenant``.
        """
        own = None if caller is None else caller.tenant
        if own is not None and bound != own:
            raise other_tenant("statement")
        if bound is None:
            return
        if prepared.records is not None and any(tenant != bound for tenant, _ in prepared.records.slices):
            raise other_tenant("records")
        payload = prepared.statement.payload
        if isinstance(payload, Correction | Evaluation | Acknowledgement | Erasure):
            with self._store.read() as connection:
                if not own_subject(connection, bound, payload):
                    raise other_tenant("statement")


def looks_up(prepared: Prepared) -> bool:
    """Whether ``check`` asks the store about this statement."""
    return isinstance(prepared.statement.payload, Correction | Evaluation | Acknowledgement | Erasure)
