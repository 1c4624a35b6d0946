"""Legal holds: records that may not be erased while one is in force, whatever policy or request says so."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from msgspec import UNSET
from sqlalchemy import Connection, insert, select, update

from ledger.core.errors import InvalidError, RefusedError
from ledger.core.records import Record
from ledger.store._transaction import OwnStatement
from ledger.store.acts import administer
from ledger.store.queries import not_found
from ledger.store.tables import table
from ledger.store.tenancy import check_tenant
from ledger.store.trust_tables import LegalHold

__all__ = ["Hold", "check_not_held", "holds", "lift_hold", "place_hold"]

_MAX_REASON = 1024


@dataclass(frozen=True)
class Hold:
    """A hold on the records of a tenant (None: of all) that started within a time (None: open)."""

    id: str
    tenant: str | None
    from_us: int | None
    to_us: int | None
    reason: str
    placed_s: int
    lifted_s: int | None = None

    def covers(self, record: Record) -> bool:
        """Whether the hold, if it is in force, is on this record."""
        tenant = None if record.tenant is UNSET else record.tenant
        return (
            (self.tenant is None or self.tenant == tenant)
            and (self.from_us is None or record.started_us >= self.from_us)
            and (self.to_us is None or record.started_us < self.to_us)
        )


def place_hold(
    reason: str, *, tenant: str | None = None, from_us: int | None = None, to_us: int | None = None
) -> tuple[Hold, OwnStatement]:
    """A hold and the statement that places it.

    Raises:
        InvalidError: an unusable tenant, reason or period.
    """
    if tenant is not None:
        check_tenant(tenant)
    if not 0 < len(reason) <= _MAX_REASON or not reason.isprintable():
        raise InvalidError(
            "the reason is empty, too long or not printable", where="reason", code="bad-parameter"
        )
    if from_us is not None and to_us is not None and from_us >= to_us:
        raise InvalidError("the period is empty", where="from, to", code="bad-parameter")
    hold = Hold(secrets.token_hex(6), tenant, from_us, to_us, reason, int(time.time()))

    def place(connection: Connection) -> None:
        connection.execute(insert(table(LegalHold)).values(**hold.__dict__))

    said = {"hold": hold.id, "tenant": tenant, "from_us": from_us, "to_us": to_us, "reason": reason}
    return hold, administer("hold.place", said, place)


def lift_hold(hold_id: str) -> OwnStatement:
    """The statement that lifts a hold; it is refused (``not-found``) where no such hold is in force."""

    def lift(connection: Connection) -> None:
        rows = table(LegalHold)
        query = update(rows).where(rows.c.id == hold_id, rows.c.lifted_s.is_(None))
        if connection.execute(query.values(lifted_s=int(time.time()))).rowcount != 1:
            raise not_found("there is no such hold in force", f"hold {hold_id[:40]}")

    return administer("hold.lift", {"hold": hold_id[:40]}, lift)


def holds(connection: Connection, *, in_force: bool = False) -> list[Hold]:
    """The holds, oldest first."""
    rows = table(LegalHold)
    query = select(rows).order_by(rows.c.placed_s, rows.c.id)
    if in_force:
        query = query.where(rows.c.lifted_s.is_(None))
    return [
        Hold(row.id, row.tenant, row.from_us, row.to_us, row.reason, row.placed_s, row.lifted_s)
        for row in connection.execute(query)
    ]


def check_not_held(record: Record, in_force: list[Hold]) -> None:
    """Check that a record may be erased.

    Raises:
        RefusedError: ``legal-hold``.
    """
    for hold in in_force:
        if hold.covers(record):
            raise RefusedError(
                f"record {record.id} is under the legal hold {hold.id}",
                where="records",
                remedy="lift the hold first, if it no longer applies: `tallystick hold lift`",
                code="legal-hold",
            )
