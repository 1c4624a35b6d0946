"""One append: a group of prepared statements goes into the log inside one transaction, or nothing does.

The caller holds the write lock. What a statement's acceptance depends on - chain heads, revocations, known
documents, record ids - is read inside the transaction, so that several replicas agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from sqlalchemy import Connection, select

from ledger.core.errors import TallystickError
from ledger.core.keys import Signer
from ledger.core.statements import Payload, sign_statement
from ledger.store import queries
from ledger.store._accept import Accepted, accept, chain_head, claim_ids
from ledger.store._sql import run
from ledger.store._tip import Known, Tip
from ledger.store._write import Log, Registration, write_group
from ledger.store.prepare import Prepared, prepare_own
from ledger.store.tables import StatementRow, table

__all__ = ["Item", "Outcome", "OwnStatement", "append_group"]


@dataclass(frozen=True)
class OwnStatement:
    """A statement that the log itself makes: built inside the transaction, from its own chain's head."""

    build: Callable[[int, str | None], Payload]
    """(seq, prev) -> payload."""
    key: Signer | None = None
    """What signs it, where that is not the log's key in force: one that hands over."""
    deed: Callable[[Connection, int], None] | None = None
    """Does what the statement says, in the same transaction; gets its leaf index. If it raises a
    TallystickError, neither happens. It may be called more than once, each time after being undone."""


Item: TypeAlias = Prepared | OwnStatement
Outcome: TypeAlias = Registration | TallystickError


def append_group(
    connection: Connection, log: Log, tip: Tip, items: Sequence[Item], *, now_s: int
) -> tuple[Tip, list[Outcome], bytes | None]:
    """Append what may be appended of ``items``, in their order.

    Returns:
        The new tip, an outcome for each item, and the new checkpoint, or None if nothing was added.
    """
    run(connection, "SAVEPOINT whole_group")
    accepted, outcomes, repeats = _sort_out(connection, log, tip, items, claim=False)
    if not claim_ids(connection, tip, accepted):
        # Rare: a record's id is in the log already, or twice in the group. Find out whose.
        run(connection, "ROLLBACK TO SAVEPOINT whole_group")
        tip = replace(tip, known=Known())  # some of it may have been read of what is undone now
        accepted, outcomes, repeats = _sort_out(connection, log, tip, items, claim=True)
    checkpoint = None
    if accepted.prepared:
        tip, registrations, checkpoint = write_group(connection, log, tip, accepted, now_s)
        outcomes |= zip(accepted.slots, registrations, strict=True)
    for i, (leaf_index, leaf) in repeats.items():
        stored = queries.receipt_row(connection, leaf_index)
        receipt = queries.receipt_bytes(connection, log.origin, stored)
        outcomes[i] = Registration(leaf_index, leaf, stored.tree_size, receipt, fresh=False)
    return tip, [outcomes[i] for i in range(len(items))], checkpoint


def _sort_out(
    connection: Connection, log: Log, tip: Tip, items: Sequence[Item], *, claim: bool
) -> tuple[Accepted, dict[int, Outcome], dict[int, tuple[int, bytes]]]:
    """What is accepted, the errors of what is not, and what is known already: (leaf index, leaf hash)."""
    accepted = Accepted()
    outcomes: dict[int, Outcome] = {}
    repeats: dict[int, tuple[int, bytes]] = {}
    for i, item in enumerate(items):
        try:
            prepared = _own(connection, log, tip, accepted, item) if isinstance(item, OwnStatement) else item
            known = _known_leaf(connection, tip, accepted, prepared)
            if known is None:
                if isinstance(item, OwnStatement) and item.deed is not None:
                    _do(connection, tip, accepted, prepared, item.deed)
                else:
                    accept(connection, tip, accepted, prepared, claim=claim)
                accepted.slots.append(i)
            else:
                repeats[i] = (known, prepared.leaf_hash)
        except TallystickError as error:
            outcomes[i] = error
    return accepted, outcomes, repeats


def _do(
    connection: Connection,
    tip: Tip,
    accepted: Accepted,
    prepared: Prepared,
    deed: Callable[[Connection, int], None],
) -> None:
    """Do what a statement of the log's own says, and accept it; or neither."""
    run(connection, "SAVEPOINT deed")
    try:
        deed(connection, tip.size + len(accepted.prepared))
        accept(connection, tip, accepted, prepared, claim=False)
    except BaseException:
        run(connection, "ROLLBACK TO SAVEPOINT deed")
        raise
    finally:
        run(connection, "RELEASE SAVEPOINT deed")
        tip.known.rollups.clear()  # a deed may change sums


def _own(connection: Connection, log: Log, tip: Tip, accepted: Accepted, item: OwnStatement) -> Prepared:
    head = chain_head(connection, tip, accepted, log.origin)
    prev = None if head.last_leaf is None else head.last_leaf.hex()
    key = item.key or log.key
    return prepare_own(sign_statement(item.build(head.next_seq, prev), issuer=log.origin, key=key))


def _known_leaf(connection: Connection, tip: Tip, accepted: Accepted, prepared: Prepared) -> int | None:
    """The leaf index of a statement that is logged already: its ``seq`` lies behind its chain's head."""
    head = chain_head(connection, tip, accepted, prepared.statement.issuer)
    if prepared.statement.payload.seq >= head.next_seq:
        return None
    if prepared.leaf_hash in accepted.by_hash:
        return accepted.by_hash[prepared.leaf_hash]
    rows = table(StatementRow)
    query = select(rows.c.leaf_index).where(rows.c.leaf_hash == prepared.leaf_hash)
    return connection.execute(query).scalar_one_or_none()
