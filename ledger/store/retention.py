"""How long things are kept: a policy for each tenant and kind, and what is due to go.

Kinds: ``records`` are the bytes of records, ``credentials`` the rows of API keys that were revoked and of
invitations that were used or ran out, with their labels. Statements are leaves of the log: they stay.

The EU AI Act (Regulation (EU) 2024/1689) has providers and deployers of high-risk systems keep logs for at
least six months (Art. 19(1), 26(6)), unless other law, such as that on the protection of personal data, says
otherwise. So no policy keeps records for less; a single erasure under such a law is another command.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, or_, select

from ledger.core.errors import InvalidError
from ledger.store._transaction import OwnStatement
from ledger.store.acts import administer
from ledger.store.append import Sequencer
from ledger.store.engine import Store
from ledger.store.erasure import Erased, Wanted, erase
from ledger.store.queries import not_found
from ledger.store.tables import ApiKey, table
from ledger.store.tenancy import check_tenant
from ledger.store.trust_tables import Invite, RetentionPolicy

__all__ = [
    "EVERYBODY",
    "KINDS",
    "LEAST_DAYS",
    "Policy",
    "Ran",
    "policies",
    "remove_policy",
    "run",
    "set_policy",
]

EVERYBODY = ""
"""Stands for every tenant without a policy of its own, and for what has no tenant."""
LEAST_DAYS = {"records": 184, "credentials": 1}
"""Six months have at most 184 days."""
KINDS = tuple(LEAST_DAYS)
_MOST_DAYS = 36_500
_DAY_S = 86_400


@dataclass(frozen=True)
class Policy:
    """How many days something of a kind is kept for a tenant; ``EVERYBODY`` for those without their own."""

    tenant: str
    kind: str
    keep_days: int


@dataclass(frozen=True)
class Ran:
    """What a run did for one policy: records erased, those left under a hold, credentials deleted."""

    policy: Policy
    records: int
    held: int
    credentials: int


def policies(connection: Connection) -> list[Policy]:
    """The policies in force."""
    rows = table(RetentionPolicy)
    found = connection.execute(select(rows).order_by(rows.c.tenant, rows.c.kind))
    return [Policy(row.tenant, row.kind, row.keep_days) for row in found]


def set_policy(policy: Policy) -> OwnStatement:
    """The statement that sets a policy, in the place of an earlier one.

    Raises:
        InvalidError: ``bad-retention``: an unknown kind, or fewer days than the law allows.
    """
    if policy.tenant != EVERYBODY:
        check_tenant(policy.tenant)
    least = LEAST_DAYS.get(policy.kind)
    if least is None:
        raise InvalidError(
            f"{policy.kind[:40]!r} is no kind that can be erased",
            where="kind",
            remedy=f"use {' or '.join(KINDS)}; statements are leaves of the log and stay",
            code="bad-retention",
        )
    if not least <= policy.keep_days <= _MOST_DAYS:
        raise InvalidError(
            f"{policy.keep_days} days is not from {least} to {_MOST_DAYS}",
            where="days",
            remedy="the EU AI Act has logs of high-risk systems kept for six months at least (Art. 19, "
            "26(6)); erase single records under another rule with `tallystick erase`",
            code="bad-retention",
        )

    def put(connection: Connection) -> None:
        _delete(connection, policy.tenant, policy.kind)
        connection.execute(insert(table(RetentionPolicy)).values(**policy.__dict__))

    said: dict[str, str | int | None] = {
        "tenant": policy.tenant,
        "kind": policy.kind,
        "keep_days": policy.keep_days,
    }
    return administer("retention.set", said, put)


def remove_policy(tenant: str, kind: str) -> OwnStatement:
    """The statement that removes a policy: what it was about is then kept for ever, or as everybody's is."""

    def remove(connection: Connection) -> None:
        if not _delete(connection, tenant, kind):
            raise not_found("there is no such policy", f"{tenant or 'everybody'}: {kind}"[:100])

    return administer("retention.remove", {"tenant": tenant[:64], "kind": kind[:40]}, remove)


def _delete(connection: Connection, tenant: str, kind: str) -> bool:
    rows = table(RetentionPolicy)
    query = delete(rows).where(rows.c.tenant == tenant, rows.c.kind == kind)
    return bool(connection.execute(query).rowcount)


def run(
    store: Store,
    sequencer: Sequencer,
    *,
    now_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Ran]:
    """Erase what no policy keeps any longer. Records under a legal hold stay, and are due again next time.

    A record's age counts from when it started. Running it twice erases nothing more.

    Raises:
        TallystickError: as ``erase`` does; what was done by then is logged.
    """
    now = int(time.time()) if now_s is None else now_s
    with store.read() as connection:
        found = policies(connection)
    ran = []
    for policy in found:
        before_s = now - policy.keep_days * _DAY_S
        named = frozenset(p.tenant for p in found if p.kind == policy.kind and p.tenant != EVERYBODY)
        if policy.kind == "credentials":
            deleted = _delete_credentials(store, sequencer, policy, before_s, named)
            ran.append(Ran(policy, 0, 0, deleted))
            continue
        whose = policy.tenant or None
        wanted = Wanted(tenant=whose, to_us=before_s * 1_000_000, others_than=frozenset() if whose else named)
        rule = f"retention: {policy.keep_days} days"
        done: Erased = erase(store, sequencer, wanted, rule, leave_held=True, progress=progress)
        ran.append(Ran(policy, done.records, done.held, 0))
    return ran


def _delete_credentials(
    store: Store, sequencer: Sequencer, policy: Policy, before_s: int, named: frozenset[str]
) -> int:
    keys, invites = table(ApiKey), table(Invite)
    old_keys = keys.c.revoked_s < before_s
    old_invites = or_(invites.c.used_s < before_s, invites.c.expires_s < before_s)

    def of_policy(column: Any) -> Any:
        if policy.tenant != EVERYBODY:
            return column == policy.tenant
        return or_(column.is_(None), column.not_in(named))

    wanted = [
        (keys, and_(old_keys, of_policy(keys.c.tenant))),
        (invites, and_(old_invites, of_policy(invites.c.tenant))),
    ]
    with store.read() as connection:
        count = sum(len(connection.execute(select(rows.c.id).where(which)).all()) for rows, which in wanted)
    if not count:
        return 0

    def remove(connection: Connection) -> None:
        for rows, which in wanted:
            connection.execute(delete(rows).where(which))

    said: dict[str, str | int | None] = {
        "tenant": policy.tenant,
        "rows": count,
        "keep_days": policy.keep_days,
    }
    sequencer.log_own(administer("credentials.delete", said, remove)).result()
    return count
