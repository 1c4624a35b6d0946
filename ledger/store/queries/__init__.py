"""Reading the log: heads, tiles, statements, receipts, proofs, records and roll-ups.

Each function takes a connection; one connection sees one snapshot, so that a proof and its checkpoint agree.
"""

from ledger.store.queries._common import not_found
from ledger.store.queries._entries import (
    receipt,
    receipt_bytes,
    receipt_row,
    resolve_entry,
    statement,
    statement_count,
)
from ledger.store.queries._issuers import (
    IssuerInfo,
    KeyInfo,
    documents,
    issuer_key,
    issuers,
    revoked_key,
    usable_key,
)
from ledger.store.queries._records import (
    MAX_BLOCK_BYTES,
    MAX_PAGE,
    Found,
    RecordFilter,
    RecordProof,
    iterate_records,
    place_of,
    record_by_id,
    record_lines,
    record_proof,
    records,
    split_block,
)
from ledger.store.queries._rollups import ROLLUP_DIMENSIONS, present_sums, rollups
from ledger.store.queries._tree import (
    Head,
    checkpoint,
    consistency,
    inclusion,
    log_head,
    read_bundle,
    read_tile,
    tile_fetcher,
    tile_reader,
)

__all__ = [
    "MAX_BLOCK_BYTES",
    "MAX_PAGE",
    "ROLLUP_DIMENSIONS",
    "Found",
    "Head",
    "IssuerInfo",
    "KeyInfo",
    "RecordFilter",
    "RecordProof",
    "checkpoint",
    "consistency",
    "documents",
    "inclusion",
    "issuer_key",
    "issuers",
    "iterate_records",
    "log_head",
    "not_found",
    "place_of",
    "present_sums",
    "read_bundle",
    "read_tile",
    "receipt",
    "receipt_bytes",
    "receipt_row",
    "record_by_id",
    "record_lines",
    "record_proof",
    "records",
    "resolve_entry",
    "revoked_key",
    "rollups",
    "split_block",
    "statement",
    "statement_count",
    "tile_fetcher",
    "tile_reader",
    "usable_key",
]
