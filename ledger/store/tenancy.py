"""Tenants: whose issuer is whose, and what of the log one tenant may see.

What one tenant may see is what its own records lead to, and no more: a question about anything else gets the
answer that it would get if that thing were not there. Each function takes a connection, as queries do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import UNSET
from sqlalchemy import Connection, exists, insert, or_, select

from ledger.core.errors import InvalidError, RefusedError
from ledger.core.statements import (
    Acknowledgement,
    Batch,
    Correction,
    DeploymentStatement,
    Erasure,
    Evaluation,
    IssuerKey,
    check_issuer_id,
)
from ledger.store import queries
from ledger.store.tables import BatchSlice, Document, Issuer, StatementRow, table
from ledger.store.trust_tables import IssuerTenant

if TYPE_CHECKING:
    from ledger.core.statements import SignedStatement

__all__ = [
    "bind_issuer",
    "check_entry",
    "check_tenant",
    "other_tenant",
    "own_deployments",
    "own_issuers",
    "own_record",
    "own_subject",
    "tenant_of_issuer",
]

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~-]{0,63}").fullmatch


def check_tenant(tenant: str) -> str:
    """Return ``tenant`` if it can be one: what the records of a tenant carry, a pseudonym of 64 characters.

    Raises:
        InvalidError: ``bad-tenant``.
    """
    if _TENANT(tenant) is None:
        raise InvalidError(
            f"{tenant[:80]!r} cannot be a tenant",
            where="tenant",
            remedy="use the pseudonym that its records carry: letters, digits and . _ : ~ -, at most 64",
            code="bad-tenant",
        )
    return tenant


def other_tenant(where: str) -> RefusedError:
    """The error for what concerns more than the caller's own tenant. It tells nothing about any other."""
    return RefusedError(
        "this is not about the records of your tenant alone",
        where=where,
        remedy="ask about your own records, or use a key that is not bound to a tenant",
        code="other-tenant",
    )


# --- issuers ---------------------------------------------------------------------------------------------


def tenant_of_issuer(connection: Connection, issuer: str) -> str | None:
    """The tenant whose records alone ``issuer`` may log; None where it may log those of any."""
    rows = table(IssuerTenant)
    found: str | None = connection.execute(
        select(rows.c.tenant).where(rows.c.issuer == issuer)
    ).scalar_one_or_none()
    return found


def bind_issuer(connection: Connection, issuer: str, tenant: str | None) -> None:
    """Bind a new issuer to ``tenant``, or see that a known one is bound to it; None changes nothing.

    Raises:
        RefusedError: ``other-tenant``: the issuer is known, and is not this tenant's.
    """
    check_issuer_id(issuer)
    if tenant is None:
        return
    bound = tenant_of_issuer(connection, issuer)
    if check_tenant(tenant) == bound:
        return
    names = table(Issuer)
    known = connection.execute(select(names.c.issuer).where(names.c.issuer == issuer)).one_or_none()
    if known is not None or bound is not None:
        raise RefusedError(
            "the issuer is in the log already, and not as this tenant's",
            where=issuer,
            remedy="give each tenant issuers of its own: what one has logged cannot change hands",
            code="other-tenant",
        )
    rows = table(IssuerTenant)
    connection.execute(insert(rows).values(issuer=issuer, tenant=tenant))


def own_issuers(connection: Connection, tenant: str) -> set[str]:
    """The issuers that log records of ``tenant`` alone."""
    rows = table(IssuerTenant)
    return set(connection.execute(select(rows.c.issuer).where(rows.c.tenant == tenant)).scalars())


# --- what a tenant may see -------------------------------------------------------------------------------


def own_deployments(connection: Connection, tenant: str) -> set[str]:
    """Digests of the deployments that records of ``tenant`` name or its issuers published."""
    slices, documents, rows = table(BatchSlice), table(Document), table(StatementRow)
    used = select(slices.c.deployment).where(slices.c.tenant == tenant).distinct()
    published = (
        select(documents.c.digest)
        .join(rows, rows.c.leaf_index == documents.c.leaf_index)
        .where(rows.c.issuer.in_(own_issuers(connection, tenant)))
    )
    return set(connection.execute(used).scalars()) | set(connection.execute(published).scalars())


def own_record(connection: Connection, tenant: str, record_id: str) -> bool:
    """Whether there is such a record, and it is one of ``tenant``."""
    try:
        queries.record_by_id(connection, record_id, tenant=tenant)
    except InvalidError:
        return False
    return True


def own_subject(
    connection: Connection, tenant: str, payload: Correction | Evaluation | Acknowledgement | Erasure
) -> bool:
    """Whether the record, statement or deployment that ``payload`` is about is there for ``tenant``."""
    if isinstance(payload, Correction | Evaluation) and payload.record is not UNSET:
        return own_record(connection, tenant, payload.record)
    if isinstance(payload, Evaluation) and payload.deployment is not UNSET:
        return payload.deployment in own_deployments(connection, tenant)
    if isinstance(payload, Correction) or payload.statement is UNSET:
        return False
    rows, slices = table(StatementRow), table(BatchSlice)
    named = rows.c.leaf_hash == bytes.fromhex(payload.statement)
    own_slice = exists().where(slices.c.leaf_index == rows.c.leaf_index, slices.c.tenant == tenant)
    by_own = rows.c.issuer.in_(own_issuers(connection, tenant))
    return bool(connection.execute(select(exists().where(named, or_(own_slice, by_own)))).scalar_one())


def check_entry(connection: Connection, tenant: str | None, leaf_index: int, *, where: str) -> None:
    """Check that ``tenant`` may see the statement at a leaf; everybody may who acts for no tenant.

    Raises:
        InvalidError: ``not-found``, as for a leaf that is not there.
    """
    if tenant is not None and not _sees(
        connection, tenant, queries.statement(connection, leaf_index), leaf_index
    ):
        raise queries.not_found("there is no such entry", where)


def _sees(connection: Connection, tenant: str, statement: SignedStatement, leaf_index: int) -> bool:
    bound = tenant_of_issuer(connection, statement.issuer)
    if bound == tenant:
        return True
    payload = statement.payload
    slices = table(BatchSlice)
    match payload:
        case Batch():
            own = exists().where(slices.c.leaf_index == leaf_index, slices.c.tenant == tenant)
            return bool(connection.execute(select(own)).scalar_one())
        case DeploymentStatement():
            documents = table(Document)
            query = select(documents.c.digest).where(
                or_(documents.c.leaf_index == leaf_index, documents.c.digest == statement.subject[-64:]),
                documents.c.kind == "deployment",
            )
            return bool(set(connection.execute(query).scalars()) & own_deployments(connection, tenant))
        case IssuerKey():
            return payload.issuer in own_issuers(connection, tenant) or leaf_index == 0
        case Correction() | Evaluation() | Acknowledgement() | Erasure():
            # What another tenant says of what both use is its own affair.
            return bound is None and own_subject(connection, tenant, payload)
        case _:
            return False
