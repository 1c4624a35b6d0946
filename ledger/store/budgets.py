"""Owns what the database holds of budgets: limits, use by window, reservations and alerts.

Each function takes a connection; those that change anything take one of ``Store.write`` that called ``lock``
first, so that all replicas count and reserve one after the other. What a budget means is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from ledger.store.queries import Found, RecordFilter, iterate_records, log_head
from ledger.store.tables import (
    PLACES_PER_LEAF,
    BudgetAlertRow,
    BudgetHead,
    BudgetReservation,
    BudgetRow,
    BudgetUse,
    Document,
    table,
)

__all__ = [
    "Alert",
    "Share",
    "Use",
    "Uses",
    "add_alert",
    "alerts",
    "budget_rows",
    "expired",
    "lock",
    "models",
    "move_head",
    "put_budget",
    "records_between",
    "remove_budget",
    "reservations",
    "reserve",
    "take_reservations",
    "tell_alert",
]

_MANY = 500
"""Ids in one query: SQLite takes at least 999 values."""


@dataclass
class Use:
    """What was used within one bucket of time. ``stored`` tells whether it has a row."""

    used: int = 0
    reserved: int = 0
    tokens: int = 0
    known: int = 0
    unknown: int = 0
    stored: bool = False


@dataclass(frozen=True)
class Share:
    """What one reservation holds of one budget."""

    budget: str
    tenant: str
    bucket_s: int
    amount: int


@dataclass(frozen=True)
class Alert:
    """That ``record`` brought the use of a budget to ``percent`` of its limit; 0: it was refused."""

    budget: str
    tenant: str
    period_s: int
    percent: int
    record: str
    used: int
    limit: int
    at_s: int


class Uses:
    """Use as one transaction sees and changes it. Owned by that transaction; ``save`` writes it.

    ``_held`` has buckets by budget and tenant, ``_from`` since when all of them are held.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._held: dict[tuple[str, str], dict[int, Use]] = {}
        self._from: dict[tuple[str, str], int] = {}
        self._changed: set[tuple[str, str, int]] = set()

    def window(self, budget: str, tenant: str, first_s: int) -> dict[int, Use]:
        """The buckets that begin at ``first_s`` or later, oldest first."""
        held = self._load(budget, tenant, first_s)
        return {bucket_s: held[bucket_s] for bucket_s in sorted(held) if bucket_s >= first_s}

    def change(self, budget: str, tenant: str, bucket_s: int) -> Use:
        """A bucket, to be changed."""
        held = self._load(budget, tenant, bucket_s)
        self._changed.add((budget, tenant, bucket_s))
        return held.setdefault(bucket_s, Use())

    def forget(self, budget: str) -> None:
        """Drop all use of a budget, from the database too."""
        rows = table(BudgetUse)
        self._connection.execute(delete(rows).where(rows.c.budget == budget))
        for key in [key for key in self._held if key[0] == budget]:
            del self._held[key], self._from[key]
        self._changed = {each for each in self._changed if each[0] != budget}

    def save(self) -> None:
        """Write what was changed."""
        rows = table(BudgetUse)
        for budget, tenant, bucket_s in sorted(self._changed):
            use = self._held[budget, tenant][bucket_s]
            values: dict[str, Any] = {
                "used": str(use.used),
                "reserved": str(use.reserved),
                "tokens": str(use.tokens),
                "known": use.known,
                "unknown": use.unknown,
            }
            if use.stored:
                self._connection.execute(
                    update(rows)
                    .where(rows.c.budget == budget, rows.c.tenant == tenant, rows.c.bucket_s == bucket_s)
                    .values(**values)
                )
            else:
                values |= {"budget": budget, "tenant": tenant, "bucket_s": bucket_s}
                self._connection.execute(insert(rows).values(**values))
                use.stored = True
        self._changed.clear()

    def _load(self, budget: str, tenant: str, first_s: int) -> dict[int, Use]:
        key = budget, tenant
        held = self._held.setdefault(key, {})
        known_from = self._from.get(key)
        if known_from is not None and known_from <= first_s:
            return held
        rows = table(BudgetUse)
        query = select(rows).where(
            rows.c.budget == budget, rows.c.tenant == tenant, rows.c.bucket_s >= first_s
        )
        if known_from is not None:
            query = query.where(rows.c.bucket_s < known_from)
        for row in self._connection.execute(query):
            held[row.bucket_s] = _use(row)
        self._from[key] = first_s
        return held


def _use(row: Any) -> Use:
    return Use(int(row.used), int(row.reserved), int(row.tokens), row.known, row.unknown, True)


# --- the log ---------------------------------------------------------------------------------------------


def lock(connection: Connection) -> int:
    """Hold all budgets until the transaction ends; return the first leaf that is not counted yet."""
    rows = table(BudgetHead)
    return int(connection.execute(select(rows.c.next_leaf).with_for_update()).scalar_one())


def next_leaf(connection: Connection) -> int:
    """The first leaf that is not counted yet."""
    return int(connection.execute(select(table(BudgetHead).c.next_leaf)).scalar_one())


def move_head(connection: Connection, leaf: int) -> None:
    """All leaves before ``leaf`` are counted."""
    connection.execute(update(table(BudgetHead)).values(next_leaf=leaf))


def records_between(
    connection: Connection, first: int, *, from_us: int | None = None, tenant: str | None = None
) -> tuple[list[Found], int]:
    """The records of the leaves from ``first`` on, in log order, and the log's size.

    Args:
        connection: a snapshot or transaction.
        first: the first leaf.
        from_us: leave out records that started before.
        tenant: this one's alone.
    """
    size = log_head(connection).size
    if first >= size:
        return [], size
    wanted = RecordFilter(from_us=from_us, tenant=tenant)
    found: list[Found] = []
    for each in iterate_records(connection, wanted, after=first * PLACES_PER_LEAF - 1):
        if each.leaf_index >= size:  # logged since its size was read
            break
        found.append(each)
    return found, size


def models(connection: Connection, digests: Iterable[str]) -> dict[str, str]:
    """The model of each deployment."""
    rows = table(Document)
    made: dict[str, str] = {}
    for part in _parts(sorted(set(digests))):
        query = select(rows.c.digest, rows.c.model).where(rows.c.digest.in_(part))
        made |= {row.digest: row.model or "" for row in connection.execute(query)}
    return made


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _MANY):
        yield values[start : start + _MANY]


# --- limits ----------------------------------------------------------------------------------------------


def budget_rows(connection: Connection) -> list[Any]:
    """All budgets, by name."""
    rows = table(BudgetRow)
    return list(connection.execute(select(rows).order_by(rows.c.name)))


def put_budget(connection: Connection, values: dict[str, Any]) -> None:
    """Write a budget; one of the same name is replaced."""
    rows = table(BudgetRow)
    connection.execute(delete(rows).where(rows.c.name == values["name"]))
    connection.execute(insert(rows).values(**values))


def remove_budget(connection: Connection, name: str) -> bool:
    """Remove a budget, its use and its alerts; whether there was one."""
    rows, use, told = table(BudgetRow), table(BudgetUse), table(BudgetAlertRow)
    connection.execute(delete(use).where(use.c.budget == name))
    connection.execute(delete(told).where(told.c.budget == name))
    return bool(connection.execute(delete(rows).where(rows.c.name == name)).rowcount)


def use_rows(connection: Connection) -> list[tuple[str, str, int, Use]]:
    """All use: budget, tenant, bucket, figures."""
    rows = table(BudgetUse)
    query = select(rows).order_by(rows.c.budget, rows.c.tenant, rows.c.bucket_s)
    return [(row.budget, row.tenant, row.bucket_s, _use(row)) for row in connection.execute(query)]


# --- reservations ----------------------------------------------------------------------------------------


def reserve(connection: Connection, record: str, expires_s: int, shares: Sequence[Share]) -> None:
    """Keep what one request may use."""
    encoded = msgspec.json.encode([(s.budget, s.tenant, s.bucket_s, s.amount) for s in shares]).decode()
    connection.execute(
        insert(table(BudgetReservation)).values(id=_key(record), expires_s=expires_s, shares=encoded)
    )


def is_reserved(connection: Connection, record: str) -> bool:
    """Whether a request has its reservation."""
    rows = table(BudgetReservation)
    return connection.execute(select(rows.c.id).where(rows.c.id == _key(record))).first() is not None


def reservations(connection: Connection) -> list[Share]:
    """All shares that are reserved."""
    rows = connection.execute(select(table(BudgetReservation).c.shares)).scalars()
    return [share for text in rows for share in _shares(text)]


def take_reservations(
    connection: Connection, records: Sequence[str], *, tenant: str | None = None
) -> list[Share]:
    """End the reservations of these records; return what they held.

    For a ``tenant``, those stay that hold something of another's budget. One that holds nothing but shares of
    budgets for all together tells nobody's: who names its record is taken to have asked for it.
    """
    rows = table(BudgetReservation)
    shares: list[Share] = []
    for part in _parts([_key(each) for each in records]):
        found = [
            row
            for row in connection.execute(select(rows).where(rows.c.id.in_(part)))
            if tenant is None or all(share.tenant in ("", tenant) for share in _shares(row.shares))
        ]
        if found:
            connection.execute(delete(rows).where(rows.c.id.in_([row.id for row in found])))
        shares += [share for row in found for share in _shares(row.shares)]
    return shares


def expired(connection: Connection, now_s: int) -> list[str]:
    """Records whose reservation's time is over."""
    rows = table(BudgetReservation)
    found = connection.execute(select(rows.c.id).where(rows.c.expires_s <= now_s)).scalars()
    return [_record_id(each) for each in found]


def _shares(text: str) -> list[Share]:
    return [Share(*each) for each in msgspec.json.decode(text, type=list[tuple[str, str, int, int]])]


def _key(record: str) -> bytes:
    return bytes.fromhex(record.replace("-", ""))


def _record_id(key: bytes) -> str:
    text = key.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


# --- alerts ----------------------------------------------------------------------------------------------


def add_alert(connection: Connection, alert: Alert) -> bool:
    """Note an alert, unless it was for this period; whether it is new."""
    rows = table(BudgetAlertRow)
    same = select(rows.c.percent).where(
        rows.c.budget == alert.budget,
        rows.c.tenant == alert.tenant,
        rows.c.period_s == alert.period_s,
        rows.c.percent == alert.percent,
    )
    if connection.execute(same).first() is not None:
        return False
    connection.execute(
        insert(rows).values(
            budget=alert.budget,
            tenant=alert.tenant,
            period_s=alert.period_s,
            percent=alert.percent,
            record=_key(alert.record),
            used=str(alert.used),
            amount=str(alert.limit),
            at_s=alert.at_s,
            told_s=None,
        )
    )
    return True


def alerts(
    connection: Connection,
    *,
    since_s: int = 0,
    untold: bool = False,
    tenant: str | None = None,
    limit: int = 1_000,
) -> list[Alert]:
    """Alerts, newest first; with ``untold`` those that no webhook took yet, oldest first."""
    rows = table(BudgetAlertRow)
    order = (rows.c.at_s, rows.c.budget, rows.c.tenant, rows.c.percent)
    query = select(rows).where(rows.c.at_s >= since_s).limit(limit)
    if tenant is not None:
        query = query.where(rows.c.tenant == tenant)
    if untold:
        query = query.where(rows.c.told_s.is_(None)).order_by(*order)
    else:
        query = query.order_by(*(each.desc() for each in order))
    return [
        Alert(
            row.budget, row.tenant, row.period_s, row.percent,
            _record_id(bytes(row.record)), int(row.used), int(row.amount), row.at_s,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def tell_alert(connection: Connection, alert: Alert, now_s: int) -> None:
    """Note that the webhook took an alert."""
    rows = table(BudgetAlertRow)
    connection.execute(
        update(rows)
        .where(
            rows.c.budget == alert.budget,
            rows.c.tenant == alert.tenant,
            rows.c.period_s == alert.period_s,
            rows.c.percent == alert.percent,
        )
        .values(told_s=now_s)
    )
