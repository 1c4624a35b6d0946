"""Owns batches in the making: which records go into one statement, their root, their totals.

A block takes records until the statement could not carry more: its count, its bytes, its documents, or a sum
that would pass 2^53 - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from ledger import zstd
from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.merkle import root
from ledger.core.price_books import PriceBook
from ledger.core.records import Deployment, FactorSet, Record, record_hash
from ledger.core.statements import MAX_BATCH_DOCUMENTS, MAX_BATCH_PRICES, Batch, SignedStatement, Totals
from ledger.emit.compose import Composed
from ledger.emit.head import Head

__all__ = ["Block", "batch_body", "batch_payload", "wrap_records"]

MAX_BLOCK_BYTES = 8 << 20
"""Bytes of records in one batch: a quarter of what the ledger takes, and quickly sent again."""
_ZSTD_LEVEL = 1
"""On records, which are half hashes, level 3 takes three times as long and saves nothing."""
_SUMS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "reasoning_tokens",
    "energy_uj",
    "carbon_ng",
    "carbon_market_ng",
    "embodied_ng",
    "water_nl",
)
"""The fields of ``Totals``, in the order of ``_figures``."""


class Block:
    """Records that will share one statement. Owned by the sealer.

    Args:
        max_records: how many at most.
    """

    def __init__(self, max_records: int) -> None:
        self._max_records = max_records
        self._size = 0
        self._sums = [0] * len(_SUMS)
        self._unknown = list(range(len(_SUMS)))  # sums that no record has added to
        self.lines: list[bytes] = []  # each with its newline
        self.hashes: list[bytes] = []
        self.ids: list[str] = []
        self.deployments: dict[str, Deployment] = {}
        self.factors: dict[str, FactorSet] = {}
        self.prices: dict[str, PriceBook] = {}
        self.first_us = MAX_SAFE_INTEGER
        self.last_us = 0

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, composed: Composed) -> bool:
        """Add a record; False, and nothing changed, if it does not fit."""
        record, line = composed.record, composed.line
        if len(self.lines) >= self._max_records or self._size + len(line) + 1 > MAX_BLOCK_BYTES:
            return False
        if record.deployment not in self.deployments and len(self.deployments) >= MAX_BATCH_DOCUMENTS:
            return False
        if (
            record.factors is not UNSET
            and record.factors not in self.factors
            and len(self.factors) >= MAX_BATCH_DOCUMENTS
        ):
            return False
        by = composed.by
        if by is not None and by.digest not in self.prices and len(self.prices) >= MAX_BATCH_PRICES:
            return False
        figures = _figures(record)
        sums = [
            sum_ if figure is UNSET else sum_ + figure
            for sum_, figure in zip(self._sums, figures, strict=True)
        ]
        if max(sums) > MAX_SAFE_INTEGER:
            return False
        self._sums = sums
        if self._unknown:
            self._unknown = [at for at in self._unknown if figures[at] is UNSET]
        self._size += len(line) + 1
        self.deployments.setdefault(record.deployment, composed.deployment)
        if record.factors is not UNSET and composed.factors is not None:
            self.factors.setdefault(record.factors, composed.factors)
        if by is not None:
            self.prices.setdefault(by.digest, by.book)
        self.first_us = min(self.first_us, record.started_us)
        self.last_us = max(self.last_us, record.ended_us)
        self.hashes.append(record_hash(line))
        self.lines.append(line + b"\n")
        self.ids.append(record.id)
        return True

    @property
    def root(self) -> bytes:
        """RFC 6962 root over the record hashes."""
        return root(self.hashes)

    @property
    def totals(self) -> Totals:
        """Sums over the records; equal to ``statements.sum_records``."""
        known: Any = [UNSET if at in self._unknown else sum_ for at, sum_ in enumerate(self._sums)]
        return Totals(**dict(zip(_SUMS, known, strict=True)))


def _figures(record: Record) -> tuple[int | UnsetType, ...]:
    """What the record adds to each of ``_SUMS``."""
    usage, energy = record.usage, record.energy
    return (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_input_tokens,
        usage.reasoning_tokens,
        UNSET if energy is UNSET else energy.energy_uj,
        record.carbon_ng,
        record.carbon_market_ng,
        record.embodied_ng,
        record.water_nl,
    )


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
