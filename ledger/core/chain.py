"""Issuer chains: per issuer, ``seq`` counts from 0 without gaps and ``prev`` links leaf hashes.

Dropping, reordering or forking an issuer's statements needs a missing or double ``seq`` or a wrong ``prev``.
The ledger refuses those and the auditor reports them, both by this one rule.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UNSET

from ledger.core.errors import RefusedError
from ledger.core.statements import SignedStatement

__all__ = ["ChainHead", "next_head"]


@dataclass(frozen=True)
class ChainHead:
    """Where an issuer's chain stands: the ``seq`` that must come next, and the leaf hash it must link to."""

    next_seq: int = 0
    last_leaf: bytes | None = None


def next_head(head: ChainHead, statement: SignedStatement, *, where: str = "statement") -> ChainHead:
    """The head after ``statement``.

    Raises:
        RefusedError: ``seq-gap``, ``seq-reused`` or ``wrong-prev``.
    """
    payload = statement.payload
    if payload.seq > head.next_seq:
        raise RefusedError(
            f"{statement.issuer} sent seq {payload.seq}, but {head.next_seq} comes next",
            where=where,
            remedy="send the missing statements first, in order",
            code="seq-gap",
        )
    if payload.seq < head.next_seq:
        raise RefusedError(
            f"{statement.issuer} sent seq {payload.seq} again with other content; {head.next_seq} comes next",
            where=where,
            remedy="a chain may not fork: let only one spool write with this issuer's key",
            code="seq-reused",
        )
    prev = None if payload.prev is UNSET else bytes.fromhex(payload.prev)
    if prev != head.last_leaf:
        raise RefusedError(
            f"prev of {statement.issuer}'s seq {payload.seq} is not the leaf hash of its previous statement",
            where=where,
            remedy="a chain may not fork: let only one spool write with this issuer's key",
            code="wrong-prev",
        )
    return ChainHead(payload.seq + 1, statement.leaf_hash)
