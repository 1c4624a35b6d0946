"""Owns batches in the making: which records go into one statement, their root, their totals.

A block takes records until the statement could not carry more: its count, its bytes, its documents. Should a
sum pass 2^53 - 1, it falls into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from msgspec import UNSET

from ledger import zstd
from ledger.core.errors import InvalidError
from ledger.core.merkle import HASH_SIZE, hash_lines
from ledger.core.price_books import PriceBook
from ledger.core.records import Deployment, FactorSet
from ledger.core.statements import (
    MAX_BATCH_DOCUMENTS,
    MAX_BATCH_PRICES,
    Batch,
    SignedStatement,
    Totals,
    sum_records,
)
from ledger.emit.compose import Composed
from ledger.emit.head import Head

__all__ = ["Block", "batch_body", "batch_payload", "wrap_records"]

MAX_BLOCK_BYTES = 8 << 20
"""Bytes of records in one batch: a quarter of what the ledger takes, and quickly sent again."""
_ZSTD_LEVEL = 1
"""On records, which are half hashes, level 3 takes three times as long and saves nothing."""


class Block:
    """Records that will share one statement. Owned by the sealer.

    Args:
        max_records: how many at most.
    """

    def __init__(self, max_records: int) -> None:
        self._max_records = max_records
        self._size = 0
        self._summed = False  # sums and root are kept from here on, so no record may join any more
        self._parts: list[Composed] = []
        self.lines: list[bytes] = []  # each with its newline
        self.ids: list[str] = []
        self.deployments: dict[str, Deployment] = {}
        self.factors: dict[str, FactorSet] = {}
        self.prices: dict[str, PriceBook] = {}

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, composed: Composed) -> bool:
        """Add a record; False, and nothing changed, if it does not fit."""
        record, line, by = composed.record, composed.line, composed.by
        size = self._size + len(line) + 1
        if self._summed or len(self.lines) >= self._max_records or size > MAX_BLOCK_BYTES:
            return False
        new_deployment = record.deployment not in self.deployments
        if new_deployment and len(self.deployments) >= MAX_BATCH_DOCUMENTS:
            return False
        new_factors = record.factors is not UNSET and record.factors not in self.factors
        if new_factors and len(self.factors) >= MAX_BATCH_DOCUMENTS:
            return False
        if by is not None and by.digest not in self.prices:
            if len(self.prices) >= MAX_BATCH_PRICES:
                return False
            self.prices[by.digest] = by.book
        if new_deployment:
            self.deployments[record.deployment] = composed.deployment
        if new_factors and record.factors is not UNSET and composed.factors is not None:
            self.factors[record.factors] = composed.factors
        self._size = size
        self._parts.append(composed)
        self.lines.append(line + b"\n")
        self.ids.append(record.id)
        return True

    def pieces(self) -> list[Block]:
        """Smaller blocks in place of this one if it has a sum that no statement can carry; else none.

        Looked for once for each block, since it hardly ever is so: adding a record is then quick. From here
        on the block takes no more: should its sealing fail, what comes meanwhile goes into the next one.
        """
        self._summed = True
        try:
            self.totals  # noqa: B018
        except InvalidError:
            middle = len(self) // 2
            return [self._piece(self._parts[:middle]), self._piece(self._parts[middle:])]
        return []

    def _piece(self, parts: list[Composed]) -> Block:
        piece = Block(self._max_records)
        for part in parts:
            piece.add(part)
        return piece

    @cached_property
    def totals(self) -> Totals:
        """Sums over the records.

        Raises:
            InvalidError: one passes 2^53 - 1; see ``pieces``.
        """
        return sum_records([part.record for part in self._parts])

    @property
    def first_us(self) -> int:
        """When the first generation began."""
        return min([part.record.started_us for part in self._parts])

    @property
    def last_us(self) -> int:
        """When the last generation ended."""
        return max([part.record.ended_us for part in self._parts])

    @cached_property
    def hashes(self) -> list[bytes]:
        """The record hashes."""
        joined, _ = self._hashed
        return [joined[at : at + HASH_SIZE] for at in range(0, len(joined), HASH_SIZE)]

    @property
    def root(self) -> bytes:
        """RFC 6962 root over the record hashes."""
        return self._hashed[1]

    @cached_property
    def _hashed(self) -> tuple[bytes, bytes]:
        return hash_lines(b"".join(self.lines))


def batch_payload(block: Block, head: Head, issued_us: int, unattributed_uj: int = 0) -> Batch:
    """The statement over ``block`` that follows ``head``."""
    return Batch(
        seq=head.next_seq,
        prev=UNSET if head.last_leaf is None else head.last_leaf,
        issued_us=issued_us,
        count=len(block),
        root=block.root.hex(),
        first_us=block.first_us,
        last_us=block.last_us,
        deployments=tuple(sorted(block.deployments)),
        factors=tuple(sorted(block.factors)),
        totals=block.totals,
        dropped=head.dropped,
        unattributed_uj=unattributed_uj or UNSET,
        prices=tuple(sorted(block.prices)) or UNSET,
    )


def batch_body(statement: SignedStatement, block: Block) -> bytes:
    """The compressed body of ``POST /batches``: the CBOR array of the statement and its records.

    Put together in one step: megabytes copied by several calls would keep other threads waiting.
    """
    return wrap_records(statement, block.lines)


def wrap_records(statement: SignedStatement, lines: Sequence[bytes]) -> bytes:
    """``batch_body`` of the pieces in ``lines``, which together are the records' lines."""
    entry = statement.entry
    size = sum(map(len, lines))
    body = b"".join([b"\x82", _byte_string_head(len(entry)), entry, _byte_string_head(size), *lines])
    return zstd.compress(body, level=_ZSTD_LEVEL)


def _byte_string_head(size: int) -> bytes:
    """The head of a CBOR byte string (RFC 8949 section 3), in its shortest form."""
    if size < 24:
        return bytes([0x40 | size])
    width = 1 if size < 1 << 8 else 2 if size < 1 << 16 else 4
    return bytes([0x58 + width.bit_length() - 1]) + size.to_bytes(width, "big")
