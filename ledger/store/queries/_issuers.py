"""Issuers, their keys, and the documents that statements published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from ledger.core import cose
from ledger.core.errors import RefusedError
from ledger.core.keys import PublicKey, parse_cose_key
from ledger.store.queries._common import not_found
from ledger.store.tables import Document, Issuer, IssuerKeyRow, table

__all__ = [
    "IssuerInfo",
    "KeyInfo",
    "documents",
    "issuer_key",
    "issuers",
    "revoked_key",
    "usable_key",
]


@dataclass(frozen=True)
class KeyInfo:
    """An issuer's key."""

    kid: bytes
    issuer: str
    public: PublicKey
    added_leaf: int
    revoked_leaf: int | None


@dataclass(frozen=True)
class IssuerInfo:
    """An issuer, how far its chain goes, and its keys."""

    issuer: str
    next_seq: int
    last_leaf: bytes | None
    keys: tuple[KeyInfo, ...]


def issuers(connection: Connection) -> list[IssuerInfo]:
    """All issuers, the log itself included, by name."""
    keys: dict[str, list[KeyInfo]] = {}
    rows = table(IssuerKeyRow)
    for row in connection.execute(select(rows).order_by(rows.c.added_leaf)):
        keys.setdefault(row.issuer, []).append(_key_info(row))
    names = table(Issuer)
    return [
        IssuerInfo(row.issuer, row.next_seq, row.last_leaf, tuple(keys.get(row.issuer, ())))
        for row in connection.execute(select(names).order_by(names.c.issuer))
    ]


def issuer_key(connection: Connection, kid: bytes) -> KeyInfo | None:
    """The key with this thumbprint."""
    rows = table(IssuerKeyRow)
    row = connection.execute(select(rows).where(rows.c.kid == kid)).one_or_none()
    return None if row is None else _key_info(row)


def usable_key(connection: Connection, issuer: str, kid: bytes) -> PublicKey:
    """The key that verifies ``issuer``'s statements signed with ``kid``.

    Raises:
        RefusedError: unknown issuer, another issuer's key, or revoked.
    """
    info = issuer_key(connection, kid)
    if info is None or info.issuer != issuer:
        raise RefusedError(
            f"issuer {issuer} has no key {kid.hex()}",
            where="statement",
            remedy="register the issuer's public key with `tallystick issuers add`",
            code="unknown-issuer",
        )
    if info.revoked_leaf is not None:
        raise revoked_key(issuer, kid)
    return info.public


def revoked_key(issuer: str, kid: bytes) -> RefusedError:
    """The error for a key that was revoked."""
    return RefusedError(
        f"key {kid.hex()} of issuer {issuer} is revoked",
        where="statement",
        remedy="sign with a key that is in force",
        code="revoked-key",
    )


def _key_info(row: Any) -> KeyInfo:
    public = parse_cose_key(cose.decode_cbor(bytes(row.cose_key), where=f"issuer_key {row.kid.hex()}"))
    return KeyInfo(row.kid, row.issuer, public, row.added_leaf, row.revoked_leaf)


def documents(connection: Connection, kind: str, *, digest: str | None = None) -> list[Any]:
    """Deployments (``deployment``), factor sets (``factors``) or price books (``prices``), in log order.

    With ``digest``, the one that has it.
    """
    rows = table(Document)
    query = select(rows).where(rows.c.kind == kind).order_by(rows.c.leaf_index)
    if digest is not None:
        query = query.where(rows.c.digest == digest)
    found = list(connection.execute(query))
    if digest is not None and not found:
        raise not_found(f"there is no such {kind} document", f"{kind} {digest[:64]}")
    return found
