"""Statements by leaf index or hash, and their receipts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

from ledger.core import cose, receipts
from ledger.core.errors import InvalidError
from ledger.core.keys import parse_cose_key
from ledger.core.statements import SignedStatement, decode_statement
from ledger.store.queries._common import not_found
from ledger.store.queries._tree import log_head, tile_reader
from ledger.store.tables import IssuerKeyRow, StatementRow, table

__all__ = [
    "receipt",
    "receipt_bytes",
    "receipt_row",
    "resolve_entry",
    "statement",
    "statement_count",
]


def resolve_entry(connection: Connection, entry_id: str) -> int:
    """The leaf index that ``entry_id`` names: a decimal leaf index, or a leaf hash in hex.

    Raises:
        InvalidError: malformed (``bad-entry-id``) or not in the log (``not-found``).
    """
    rows = table(StatementRow)
    if len(entry_id) == 64:
        try:
            leaf = bytes.fromhex(entry_id)
        except ValueError:
            leaf = b""
        query = select(rows.c.leaf_index).where(rows.c.leaf_hash == leaf)
    elif entry_id.isascii() and entry_id.isdecimal() and len(entry_id) <= 18:
        query = select(rows.c.leaf_index).where(rows.c.leaf_index == int(entry_id))
    else:
        raise InvalidError(
            f"{entry_id[:80]!r} is neither a leaf index nor a leaf hash",
            where="entry id",
            code="bad-entry-id",
        )
    index = connection.execute(query).scalar_one_or_none()
    if index is None:
        raise not_found("there is no such entry", f"entry {entry_id}")
    return int(index)


def statement(connection: Connection, leaf_index: int) -> SignedStatement:
    """The statement at a leaf."""
    rows = table(StatementRow)
    query = select(rows.c.entry).where(rows.c.leaf_index == leaf_index)
    entry = connection.execute(query).scalar_one_or_none()
    if entry is None:
        raise not_found("there is no such entry", f"entry {leaf_index}")
    return decode_statement(bytes(entry), where=f"statement at leaf {leaf_index}")


def receipt_row(connection: Connection, leaf_index: int) -> Any:
    """What of a receipt is stored."""
    rows = table(StatementRow)
    query = select(
        rows.c.leaf_index, rows.c.entry, rows.c.tree_size, rows.c.registered_s, rows.c.receipt_signature
    ).where(rows.c.leaf_index == leaf_index)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise not_found("there is no such entry", f"entry {leaf_index}")
    return row


def receipt_bytes(connection: Connection, origin: str, row: Any) -> bytes:
    """Give a receipt again, byte for byte as it was issued."""
    reader = tile_reader(connection, row.tree_size)
    keys = table(IssuerKeyRow)
    encoded = connection.execute(
        select(keys.c.cose_key)
        .where(keys.c.issuer == origin, keys.c.added_leaf <= row.leaf_index)
        .order_by(keys.c.added_leaf.desc())
        .limit(1)
    ).scalar_one()
    return receipts.assemble_receipt(
        origin=origin,
        subject=decode_statement(bytes(row.entry)).subject,
        registered_s=row.registered_s,
        tree_size=row.tree_size,
        leaf_index=row.leaf_index,
        path=reader.inclusion_path(row.leaf_index),
        signature=row.receipt_signature,
        key=parse_cose_key(cose.decode_cbor(bytes(encoded), where="log key")),
    )


def receipt(connection: Connection, leaf_index: int) -> bytes:
    """The receipt of a leaf, as it was issued when the statement was logged."""
    return receipt_bytes(connection, log_head(connection).origin, receipt_row(connection, leaf_index))


def statement_count(connection: Connection) -> int:
    """How many statements there are, if they are numbered without a gap; else -1."""
    rows = table(StatementRow)
    last = connection.execute(select(func.max(rows.c.leaf_index))).scalar_one()
    count = connection.execute(select(func.count()).select_from(rows)).scalar_one()
    return int(count) if count == (0 if last is None else last + 1) else -1
