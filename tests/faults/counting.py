"""What a real ledger has of one issuer: each record, and how many records its statements call dropped."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ledger import zstd
from ledger.core.chain import ChainHead, next_head
from ledger.core.records import decode_record_lines
from ledger.core.statements import Batch, Heartbeat, SignedStatement, decode_statement

MAX_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Account:
    """``logged`` says how often each record id is in the log; ``dropped`` what statements add up to."""

    logged: Counter[str]
    dropped: int
    statements: list[SignedStatement]


def account(folder: Path, issuer: str) -> Account:
    """Read the ledger's database; the chain of ``issuer`` must have no gap and no fork."""
    with sqlite3.connect(f"file:{folder / 'ledger.db'}?mode=ro", uri=True) as database:
        rows = database.execute(
            "SELECT entry, records FROM statement WHERE issuer = ? ORDER BY leaf_index", (issuer,)
        ).fetchall()
    head = ChainHead()
    logged: Counter[str] = Counter()
    dropped = 0
    statements = []
    for entry, block in rows:
        statement = decode_statement(entry)
        head = next_head(head, statement)
        if isinstance(statement.payload, Batch | Heartbeat):
            dropped += statement.payload.dropped
        if isinstance(statement.payload, Batch):
            lines = zstd.decompress_bounded(block, MAX_BLOCK_BYTES)
            assert lines is not None
            logged.update(record.id for record in decode_record_lines(lines)[0])
        statements.append(statement)
    return Account(logged, dropped, statements)
