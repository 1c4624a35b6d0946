"""What administrators do, and the trail of it: each act is a statement in the log, by the log's own key.

Making and revoking keys of issuers are ``key`` statements and erasing records ``erasure`` statements; all
else is ``admin``. It and ``key`` sign the SHA-256 of the act's particulars, salted canonical JSON that the
table ``admin_act`` keeps. Statement and act are one transaction: neither is without the other.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET
from sqlalchemy import Connection, insert, select

from ledger.core.canonical import encode_canonical
from ledger.core.keys import PublicKey
from ledger.core.statements import Admin, Erasure, IssuerKey, decode_statement
from ledger.store import queries
from ledger.store._transaction import OwnStatement
from ledger.store.log_keys import key_change
from ledger.store.tables import StatementRow, table
from ledger.store.tenancy import bind_issuer
from ledger.store.trust_tables import AdminAct

__all__ = ["OPERATOR", "Act", "OwnStatement", "acts", "administer", "change_issuer_key"]

OPERATOR = "operator"
"""Who acts on the log's own machine."""

_SALT_BYTES = 16
_PAGE = 512


@dataclass(frozen=True)
class Act:
    """One act. ``particulars`` is None where they are gone or are not those that were signed."""

    leaf_index: int
    time_us: int
    action: str
    particulars: Mapping[str, Any] | None
    intact: bool
    """Whether the particulars are those that the log's key signed."""


def administer(
    action: str,
    particulars: Mapping[str, str | int | None],
    deed: Callable[[Connection], None] | None = None,
    *,
    by: str = OPERATOR,
) -> OwnStatement:
    """The statement of an administrator's act, for ``Sequencer.log_own``.

    Args:
        action: what is done, such as ``api-key.create``.
        particulars: to whom and how; kept beside the log. None is left out. No secret belongs here.
        deed: does it, in the transaction that logs it; if it raises, nothing is logged.
        by: who does it: ``operator`` on the log's own machine, else the id of an API key.
    """
    detail, digest = _salted(particulars, by)

    def build(seq: int, prev: str | None) -> Admin:
        return Admin(
            seq=seq,
            issued_us=time.time_ns() // 1000,
            prev=UNSET if prev is None else prev,
            action=action,
            detail=digest,
        )

    def do(connection: Connection, leaf_index: int) -> None:
        if deed is not None:
            deed(connection)
        _keep(connection, leaf_index, detail)

    return OwnStatement(build, deed=do)


def change_issuer_key(
    action: Literal["add", "rotate", "revoke"],
    issuer: str,
    key: PublicKey,
    *,
    reason: str | None = None,
    tenant: str | None = None,
    invite: str | None = None,
    deed: Callable[[Connection], None] | None = None,
    by: str = OPERATOR,
) -> OwnStatement:
    """The statement that an issuer's key is added, rotated in or revoked.

    Args:
        action: what happens to ``key``.
        issuer: whose key it is; not the log itself.
        key: its public half.
        reason: why.
        tenant: whose records alone the issuer logs, a new one's; None changes nothing.
        invite: the id of the invitation that was used.
        deed: is done in the same transaction.
        by: as ``administer``.
    """
    detail, digest = _salted({"issuer": issuer, "tenant": tenant, "invite": invite}, by)

    def do(connection: Connection, leaf_index: int) -> None:
        if deed is not None:
            deed(connection)
        bind_issuer(connection, issuer, tenant)
        _keep(connection, leaf_index, detail)

    return OwnStatement(key_change(action, issuer, key, reason, digest), deed=do)


def _salted(particulars: Mapping[str, str | int | None], by: str) -> tuple[bytes, str]:
    """What is kept of an act, and the SHA-256 of that, which is signed."""
    given = {name: value for name, value in particulars.items() if value is not None}
    detail = encode_canonical({**given, "by": by, "salt": secrets.token_hex(_SALT_BYTES)})
    return detail, hashlib.sha256(detail).hexdigest()


def _keep(connection: Connection, leaf_index: int, detail: bytes) -> None:
    connection.execute(insert(table(AdminAct)).values(leaf_index=leaf_index, detail=detail))


def acts(connection: Connection, *, after: int = -1, limit: int | None = None) -> list[Act]:
    """The acts after leaf ``after``, in the order of the log."""
    rows, kept = table(StatementRow), table(AdminAct)
    origin = queries.log_head(connection).origin
    query = (
        select(rows.c.leaf_index, rows.c.entry, kept.c.detail)
        .join(kept, kept.c.leaf_index == rows.c.leaf_index, isouter=True)
        .where(
            rows.c.leaf_index > after,
            rows.c.issuer == origin,
            rows.c.kind.in_(("admin", "key", "erasure")),
        )
        .order_by(rows.c.leaf_index)
        .limit(limit)
    )
    return [_act(*row) for row in connection.execute(query)]


def _act(leaf_index: int, entry: bytes, detail: Any) -> Act:
    payload = decode_statement(bytes(entry), where=f"statement at leaf {leaf_index}").payload
    match payload:
        case Admin():
            particulars = _particulars(detail, payload.detail)
            intact = particulars is not None
            return Act(leaf_index, payload.issued_us, payload.action, particulars, intact)
        case IssuerKey():
            said: dict[str, Any] = {"issuer": payload.issuer, "kid": payload.kid}
            said |= {} if payload.reason is UNSET else {"reason": payload.reason}
            kept = {} if payload.detail is UNSET else _particulars(detail, payload.detail)
            action = f"issuer-key.{payload.action}"
            return Act(leaf_index, payload.issued_us, action, (kept or {}) | said, intact=kept is not None)
        case Erasure():
            said = {"statement": payload.statement, "records": len(payload.positions), "rule": payload.rule}
            return Act(leaf_index, payload.issued_us, "records.erase", said, intact=True)
    raise AssertionError(payload)


def _particulars(detail: Any, digest: str) -> dict[str, Any] | None:
    """What is kept of an act, if it is what was signed."""
    # SQLite holds text where somebody wrote text: it is not what was signed.
    if not isinstance(detail, bytes) or hashlib.sha256(detail).hexdigest() != digest:
        return None
    found: dict[str, Any] = msgspec.json.decode(detail)
    found.pop("salt", None)
    return found
