"""Owns one transaction over the budgets: counting records, reserving for requests, setting limits.

Records count in the log's order, each once, so an alert names the record that reached its threshold. Every
function that changes anything holds the lock of ``store.budgets``, which all replicas share.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET
from sqlalchemy import Connection

from ledger.core.errors import InvalidError
from ledger.cost import budgets as rules
from ledger.cost.budgets import Budget, Refusal, Room
from ledger.store import Store
from ledger.store import budgets as rows
from ledger.store.budgets import Alert, Share, Uses
from ledger.store.queries import Found, log_head

__all__ = [
    "Answer",
    "Check",
    "Count",
    "Standing",
    "catch_up",
    "count_now",
    "list_budgets",
    "no_budget",
    "remove_budget",
    "set_budget",
    "standings",
]

_REFUSED = 0
"""Percent of the alert that says that a request was refused."""


@dataclass(frozen=True)
class Check:
    """What a request asks to use.

    Attributes:
        record: id of the record that it will have.
        tenant: as records name it; '' for none.
        model: as the record's deployment names it.
        wanted: estimates by measure; ``currency`` of ``cost_nano``.
        ttl_s: how long to wait for the record.
    """

    record: str
    tenant: str
    model: str
    wanted: Mapping[str, int | str]
    ttl_s: int


@dataclass(frozen=True)
class Answer:
    """Whether a request may go on; ``rooms`` are those of the budgets that it counts for."""

    rooms: tuple[Room, ...]
    refusal: Refusal | None
    expires_s: int


@dataclass(frozen=True)
class Standing:
    """Where a budget stands for one tenant, in the window of now."""

    budget: Budget
    tenant: str
    window_start_s: int
    window_end_s: int
    used: int
    reserved: int
    records: int
    unknown_records: int


class Count:
    """One transaction over the budgets: what it has of them in memory, and how records change it."""

    def __init__(self, connection: Connection, now_s: int) -> None:
        self.connection = connection
        self.now_s = now_s
        self.budgets = [_budget(row) for row in rows.budget_rows(connection)]
        self.uses = Uses(connection)
        self.noted: list[Alert] = []
        self._by_tenant: dict[str, list[Budget]] = {}
        self._known: set[tuple[str, str, int, int]] = set()
        self._models: dict[str, str] = {}

    def budgets_of(self, tenant: str, model: str) -> list[Budget]:
        """The budgets that use by ``tenant`` of ``model`` counts for."""
        found = self._by_tenant.get(tenant)
        if found is None:
            found = [
                b for b in self.budgets if rules.applies(b, tenant, b.model if b.model is not None else "")
            ]
            self._by_tenant[tenant] = found
        return [b for b in found if b.model is None or b.model == model]

    def count(self, found: Sequence[Found], *, only: Budget | None = None) -> None:
        """Count records, in their order, and end their reservations; for one budget alone, leave those."""
        if only is None:
            self.release([each.record.id for each in found])
        missing = {each.record.deployment for each in found} - self._models.keys()
        self._models |= rows.models(self.connection, missing)
        for each in found:
            record = each.record
            tenant = "" if record.tenant is UNSET else record.tenant
            for budget in self.budgets_of(tenant, self._models.get(record.deployment, "")):
                if only is None or budget.name == only.name:
                    self._charge(budget, tenant, each)

    def _charge(self, budget: Budget, tenant: str, found: Found) -> None:
        record = found.record
        time_s = record.started_us // 1_000_000
        key = key_of(budget, tenant)
        use = self.uses.change(budget.name, key, rules.bucket_of(budget.window, time_s))
        amount = rules.charge(budget, record)
        if amount is None:
            use.unknown += 1
            return
        use.used += amount
        use.tokens += rules.tokens_of(record)
        use.known += 1
        first_s, end_s = rules.window_of(budget.window, time_s)
        after = sum(u.used for b, u in self.uses.window(budget.name, key, first_s).items() if b < end_s)
        for percent in rules.thresholds_passed(budget, after - amount, after):
            self._note(budget, key, percent, record.id, after, time_s)

    def _note(self, budget: Budget, key: str, percent: int, record: str, used: int, time_s: int) -> None:
        period_s = rules.period_of(budget.window, time_s)
        if (budget.name, key, period_s, percent) in self._known:
            return
        self._known.add((budget.name, key, period_s, percent))
        alert = Alert(budget.name, key, period_s, percent, record, used, budget.limit, self.now_s)
        if rows.add_alert(self.connection, alert):
            self.noted.append(alert)

    def release(self, records: Sequence[str], *, tenant: str | None = None) -> None:
        """Give back what was reserved for these records; for a ``tenant``, not what is another's."""
        names = {budget.name for budget in self.budgets}
        for share in rows.take_reservations(self.connection, records, tenant=tenant):
            if share.budget in names:
                use = self.uses.change(share.budget, share.tenant, share.bucket_s)
                use.reserved = max(0, use.reserved - share.amount)

    def reserve(self, check: Check) -> Answer:
        """Reserve what a request wants, of all budgets that it counts for or of none."""
        expires_s = self.now_s + check.ttl_s
        rooms = tuple(self._room(budget, check) for budget in self.budgets_of(check.tenant, check.model))
        if not rooms or rows.is_reserved(self.connection, check.record):  # asked again: the answer was lost
            return Answer(rooms, None, expires_s)
        refused = rules.refusal(rooms)
        if refused is not None:
            room = refused.room
            key = key_of(room.budget, check.tenant)
            self._note(room.budget, key, _REFUSED, check.record, room.used, self.now_s)
            return Answer(rooms, refused, expires_s)
        shares = []
        for room in rooms:
            bucket_s = rules.bucket_of(room.budget.window, self.now_s)
            key = key_of(room.budget, check.tenant)
            self.uses.change(room.budget.name, key, bucket_s).reserved += room.wanted
            shares.append(Share(room.budget.name, key, bucket_s, room.wanted))
        rows.reserve(self.connection, check.record, expires_s, shares)
        return Answer(rooms, None, expires_s)

    def _room(self, budget: Budget, check: Check) -> Room:
        first_s, _ = rules.window_of(budget.window, self.now_s)
        window = self.uses.window(budget.name, key_of(budget, check.tenant), first_s)
        used = sum(use.used for use in window.values())
        tokens = sum(use.tokens for use in window.values())
        return Room(
            budget=budget,
            used=used,
            reserved=sum(use.reserved for use in window.values()),
            wanted=rules.estimate(budget, check.wanted, used, tokens),
            now_s=self.now_s,
            buckets=[(bucket_s, use.used) for bucket_s, use in window.items()],
        )


def key_of(budget: Budget, tenant: str) -> str:
    """Under which name a budget counts what ``tenant`` used."""
    return tenant if budget.tenant == rules.EACH else budget.tenant or ""


def catch_up(count: Count, first: int, early: tuple[int, Sequence[Found], int] | None = None) -> None:
    """Count what was logged and not counted.

    Args:
        count: of a transaction that holds the lock.
        first: what ``rows.lock`` returned.
        early: records that were read before the lock was held: from a leaf on, those, up to a leaf.
    """
    if not count.budgets:
        rows.move_head(count.connection, log_head(count.connection).size)
        return
    start = first
    if early is not None and early[0] == first:
        count.count(early[1])
        start = early[2]
    found, size = rows.records_between(count.connection, start)
    count.count(found)
    if size != first:
        rows.move_head(count.connection, size)


# --- administration ----------------------------------------------------------------------------------------


def set_budget(store: Store, budget: Budget, *, now_s: int | None = None) -> Budget:
    """Set a budget, or change the one of its name. What was used in the present window counts at once.

    Raises:
        InvalidError: ``bad-budget``.
    """
    budget = rules.checked_budget(budget)
    now_s = int(time.time()) if now_s is None else now_s
    first_s, _ = rules.window_of(budget.window, now_s)
    tenant = budget.tenant if budget.tenant not in (None, rules.EACH) else None
    from_us = first_s * 1_000_000
    with store.read() as connection:
        before, size = rows.records_between(connection, 0, from_us=from_us, tenant=tenant or None)
    with store.write() as connection:
        first = rows.lock(connection)
        others = Count(connection, now_s)
        catch_up(others, first)  # so that all budgets are at the same leaf
        others.uses.save()
        rows.remove_budget(connection, budget.name)
        rows.put_budget(connection, _values(budget, now_s))
        count = Count(connection, now_s)
        late, _ = rows.records_between(connection, size, from_us=from_us, tenant=tenant or None)
        count.count([*before, *late], only=budget)
        for share in rows.reservations(connection):
            if share.budget == budget.name:
                count.uses.change(budget.name, share.tenant, share.bucket_s).reserved += share.amount
        count.uses.save()
    return budget


def count_now(store: Store) -> None:
    """Count what was logged: for who reads a ledger that no service keeps up to date."""
    with store.write() as connection:
        first = rows.lock(connection)
        count = Count(connection, int(time.time()))
        catch_up(count, first)
        count.uses.save()


def remove_budget(store: Store, name: str) -> None:
    """Remove a budget with its use and alerts.

    Raises:
        InvalidError: there is none of this name.
    """
    with store.write() as connection:
        rows.lock(connection)
        if not rows.remove_budget(connection, name):
            raise no_budget(name)


def no_budget(name: str) -> InvalidError:
    """The error for a name that no budget has."""
    return InvalidError("there is no such budget", where=name[:80], code="not-found")


def list_budgets(connection: Connection) -> list[Budget]:
    """All budgets, by name."""
    return [_budget(row) for row in rows.budget_rows(connection)]


def standings(connection: Connection, now_s: int) -> list[Standing]:
    """Where each budget stands in the window of now, one for each tenant that it counts apart."""
    held: dict[str, dict[str, list[Any]]] = {}
    for name, tenant, bucket_s, use in rows.use_rows(connection):
        held.setdefault(name, {}).setdefault(tenant, []).append((bucket_s, use))
    made = []
    for budget in list_budgets(connection):
        first_s, end_s = rules.window_of(budget.window, now_s)
        tenants = held.get(budget.name, {})
        if budget.tenant != rules.EACH:
            tenants = {key_of(budget, ""): tenants.get(key_of(budget, ""), [])}
        for tenant, buckets in sorted(tenants.items()):
            uses = [use for bucket_s, use in buckets if first_s <= bucket_s < end_s]
            if budget.tenant == rules.EACH and not any(u.known or u.unknown or u.reserved for u in uses):
                continue
            made.append(
                Standing(
                    budget, tenant, first_s, end_s,
                    sum(u.used for u in uses), sum(u.reserved for u in uses),
                    sum(u.known for u in uses), sum(u.unknown for u in uses),
                )
            )  # fmt: skip
    return made


def _budget(row: Any) -> Budget:
    return Budget(
        name=row.name,
        measure=row.measure,
        limit=int(row.amount),
        window=row.period,
        tenant=row.tenant,
        model=row.model,
        currency=row.currency,
        alerts=tuple(int(each) for each in row.alerts.split()),
        refuse=bool(row.refuse),
    )


def _values(budget: Budget, now_s: int) -> dict[str, Any]:
    return {
        "name": budget.name,
        "measure": budget.measure,
        "currency": budget.currency,
        "amount": str(budget.limit),
        "period": budget.window,
        "tenant": budget.tenant,
        "model": budget.model,
        "alerts": " ".join(str(each) for each in budget.alerts),
        "refuse": int(budget.refuse),
        "created_s": now_s,
    }
