"""Accepting one statement: the checks that depend on the log's state, inside the appending transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET
from sqlalchemy import Connection, bindparam, insert, select, update

from ledger.core import cose
from ledger.core.chain import ChainHead, next_head
from ledger.core.errors import InvalidError, RefusedError
from ledger.core.keys import parse_cose_key
from ledger.core.records import decode_deployment
from ledger.core.statements import Batch, DeploymentStatement, IssuerKey
from ledger.store import queries
from ledger.store._sql import insert_rows, integrity_error, run
from ledger.store._tip import Tip
from ledger.store.prepare import Prepared
from ledger.store.tables import PLACES_PER_LEAF, Document, Issuer, IssuerKeyRow, RecordIndex, table

__all__ = ["Accepted", "accept", "chain_head", "claim_ids"]

_IDS_PER_QUERY = 900
"""SQLite takes 999 variables in every build."""


@dataclass
class Accepted:
    """What one group adds, gathered before the tree is written. ``heads`` are the chains that it moves."""

    prepared: list[Prepared] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    by_hash: dict[bytes, int] = field(default_factory=dict)
    heads: dict[str, ChainHead] = field(default_factory=dict)
    documents: set[tuple[str, str]] = field(default_factory=set)
    revoked: set[bytes] = field(default_factory=set)


def chain_head(connection: Connection, tip: Tip, accepted: Accepted, issuer: str) -> ChainHead:
    """Where ``issuer``'s chain stands, this group's statements included."""
    head = accepted.heads.get(issuer) or tip.known.heads.get(issuer)
    if head is None:
        issuers = table(Issuer)
        row = connection.execute(select(issuers).where(issuers.c.issuer == issuer)).one_or_none()
        head = ChainHead() if row is None else ChainHead(row.next_seq, row.last_leaf)
        tip.known.heads[issuer] = head
    return head


def accept(connection: Connection, tip: Tip, accepted: Accepted, prepared: Prepared, *, claim: bool) -> None:
    """Check ``prepared`` against the log's state, and write what only it concerns: ids, key, document.

    Args:
        connection: the appending transaction.
        tip: the log before this group.
        accepted: the group so far; grows.
        prepared: the statement.
        claim: whether to claim its record ids now; else the caller claims those of the whole group at once.

    Raises:
        TallystickError: it may not be appended. The transaction is as it was.
    """
    statement, payload = prepared.statement, prepared.statement.payload
    _check_in_force(connection, tip, accepted, prepared)
    head = next_head(chain_head(connection, tip, accepted, statement.issuer), statement)
    leaf_index = tip.size + len(accepted.prepared)
    if isinstance(payload, Batch):
        wanted = {("deployment", digest) for digest in payload.deployments}
        wanted |= {("factors", digest) for digest in payload.factors}
        wanted |= {("prices", digest) for digest in payload.prices or ()}
        _check_documents(connection, tip, accepted, wanted)
    if claim and prepared.records is not None:
        _claim_one_by_one(connection, prepared.records.ids, leaf_index)
    if isinstance(payload, IssuerKey):
        _apply_key(connection, accepted, payload, leaf_index)
    if prepared.document is not None:
        _publish(connection, prepared, leaf_index)
        accepted.documents.add((statement.kind, prepared.document[0]))
    accepted.heads[statement.issuer] = head
    accepted.by_hash[prepared.leaf_hash] = leaf_index
    accepted.prepared.append(prepared)


def _check_in_force(connection: Connection, tip: Tip, accepted: Accepted, prepared: Prepared) -> None:
    kid = prepared.statement.kid
    if kid in accepted.revoked:
        raise queries.revoked_key(prepared.statement.issuer, kid)
    if kid in tip.known.keys_in_force or prepared.own:
        return
    keys = table(IssuerKeyRow)
    row = connection.execute(select(keys.c.revoked_leaf).where(keys.c.kid == kid)).one_or_none()
    if row is None or row.revoked_leaf is not None:
        raise queries.revoked_key(prepared.statement.issuer, kid)
    tip.known.keys_in_force.add(kid)


def _check_documents(
    connection: Connection, tip: Tip, accepted: Accepted, wanted: set[tuple[str, str]]
) -> None:
    wanted = wanted - tip.known.documents - accepted.documents
    if not wanted:
        return
    documents = table(Document)
    query = select(documents.c.kind, documents.c.digest).where(
        documents.c.digest.in_(bindparam("digests", expanding=True))
    )
    digests = [digest for _, digest in wanted]
    found = {(row.kind, row.digest) for row in connection.execute(query, {"digests": digests})}
    tip.known.documents |= found
    missing = wanted - found
    if missing:
        kind, digest = min(missing)
        raise RefusedError(
            f"no {kind} document {digest} is in the log",
            where="statement",
            remedy=f"log its `{kind}` statement first",
            code="unknown-document",
        )


def claim_ids(connection: Connection, tip: Tip, accepted: Accepted) -> bool:
    """Claim the record ids of the whole group.

    Returns:
        False if one of them is taken. On PostgreSQL the transaction must then go back to a savepoint.
    """
    rows: list[tuple[bytes, int]] = []
    for leaf_index, prepared in enumerate(accepted.prepared, start=tip.size):
        if prepared.records is not None:
            rows += _places(prepared.records.ids, leaf_index)
    try:
        insert_rows(connection, RecordIndex, rows)
    except integrity_error(connection):
        return False
    return True


def _places(ids: list[bytes], leaf_index: int) -> list[tuple[bytes, int]]:
    first = leaf_index * PLACES_PER_LEAF
    return list(zip(ids, range(first, first + len(ids)), strict=True))


def _claim_one_by_one(connection: Connection, ids: list[bytes], leaf_index: int) -> None:
    """Claim the ids of one statement, which alone is refused if one of them is taken."""
    run(connection, "SAVEPOINT record_ids")
    try:
        insert_rows(connection, RecordIndex, _places(ids, leaf_index))
    except integrity_error(connection):
        run(connection, "ROLLBACK TO SAVEPOINT record_ids")
        raise _double_id(connection, ids) from None
    finally:
        run(connection, "RELEASE SAVEPOINT record_ids")


def _double_id(connection: Connection, ids: list[bytes]) -> Exception:
    index = table(RecordIndex)
    query = select(index.c.id, index.c.place).where(index.c.id.in_(bindparam("ids", expanding=True)))
    for start in range(0, len(ids), _IDS_PER_QUERY):  # the log waits for this: not one by one
        some = ids[start : start + _IDS_PER_QUERY]
        places = {bytes(row.id): row.place for row in connection.execute(query, {"ids": some})}
        for position, each in enumerate(some, start):
            if each in places:
                leaf_index = places[each] // PLACES_PER_LEAF
                return RefusedError(
                    f"record id {each.hex()} is in the log already, at leaf {leaf_index}",
                    where=f"records[{position}]",
                    remedy="give each record a new UUIDv7; a resend must repeat the statement unchanged",
                    code="duplicate-record",
                )
    return AssertionError("record ids conflict, but none is in the log")


def _apply_key(connection: Connection, accepted: Accepted, change: IssuerKey, leaf_index: int) -> None:
    keys, issuers = table(IssuerKeyRow), table(Issuer)
    kid = bytes.fromhex(change.kid)
    present = connection.execute(select(keys).where(keys.c.kid == kid)).one_or_none()
    if change.action == "revoke":
        if present is None or present.issuer != change.issuer or present.revoked_leaf is not None:
            raise RefusedError(
                f"{change.issuer} has no key {change.kid} to revoke", where="statement", code="unknown-key"
            )
        connection.execute(update(keys).where(keys.c.kid == kid).values(revoked_leaf=leaf_index))
        accepted.revoked.add(kid)
        return
    if present is not None:
        raise RefusedError(
            f"key {change.kid} is registered already, for {present.issuer}",
            where="statement",
            remedy="make a new key for each issuer; a revoked key never comes back",
            code="key-exists",
        )
    if change.key is UNSET:
        raise InvalidError("the key is missing", where="statement", code="malformed-statement")
    encoded = bytes.fromhex(change.key)
    public = parse_cose_key(cose.decode_cbor(encoded, where="key"))
    if public.kid != kid:
        raise InvalidError("kid is not the thumbprint of the key", where="statement", code="bad-key")
    if connection.execute(select(issuers).where(issuers.c.issuer == change.issuer)).one_or_none() is None:
        connection.execute(insert(issuers).values(issuer=change.issuer, next_seq=0, last_leaf=None))
    connection.execute(
        insert(keys).values(
            kid=kid, issuer=change.issuer, alg=public.alg, cose_key=encoded, added_leaf=leaf_index
        )
    )


def _publish(connection: Connection, prepared: Prepared, leaf_index: int) -> None:
    assert prepared.document is not None  # noqa: S101 - the caller looked
    digest, body = prepared.document
    documents = table(Document)
    if connection.execute(select(documents.c.digest).where(documents.c.digest == digest)).one_or_none():
        return  # published before, perhaps by another issuer: the first leaf stays the reference
    values: dict[str, Any] = {"digest": digest, "leaf_index": leaf_index, "body": body}
    if isinstance(prepared.statement.payload, DeploymentStatement):
        deployment = decode_deployment(body)
        version = None if deployment.version is UNSET else deployment.version
        values |= {"kind": "deployment", "model": deployment.model, "version": version}
    else:
        values |= {"kind": prepared.statement.kind, "model": None, "version": None}
    connection.execute(insert(documents).values(values))
