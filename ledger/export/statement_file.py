"""Writes the statements of an export: first as they are read, then, once all are there, with their proofs.

All proofs lead to one checkpoint, the newest. So an export that grows writes this file anew, from the one
before and from what was added, while the records, which are most of it, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ledger.core.export_layout import STATEMENTS_FILE
from ledger.core.merkle import inclusion_ranges
from ledger.core.statements import Batch
from ledger.core.tiles import TileReader
from ledger.export.layout import STATEMENT_SCHEMA
from ledger.export.partitions import parquet_writer
from ledger.export.source import Leaf

__all__ = ["StatementRows", "read_exported", "read_rows", "write_statements"]

_GROUP_BYTES = 16 << 20
"""Of a row group, and of what waits as Python objects."""
_ROW_BYTES = 1024
"""What a row takes besides its entry and hashes, roughly."""
_READ_ROWS = 4_096
_DICTIONARY = ["kind", "issuer", "registered_at", "tree_size", "record_count", "exported_records"]
_PATH = "inclusion_path"
_UNPROVEN = pa.schema([field for field in STATEMENT_SCHEMA if field.name != _PATH])


class StatementRows:
    """Writes statements without their proofs into a file for later. Not safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._writer = pa.ipc.new_file(path, _UNPROVEN)
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0

    def add(self, leaf: Leaf) -> None:
        """Add one statement; leaves must come in order."""
        statement = leaf.statement
        payload = statement.message.payload
        assert payload is not None  # noqa: S101 - decode_statement refuses detached ones
        batch = statement.payload if isinstance(statement.payload, Batch) else None
        self._waiting.append(
            {
                "leaf_index": leaf.index,
                "leaf_hash": statement.leaf_hash.hex(),
                "kind": statement.kind,
                "issuer": statement.issuer,
                "seq": statement.payload.seq,
                "registered_at": leaf.registered_s * 1_000_000,
                "tree_size": leaf.tree_size,
                "receipt_signature": leaf.receipt_signature,
                "record_count": batch and batch.count,
                "exported_records": None if batch is None else leaf.count,
                "payload": payload.decode(),
                "entry": statement.entry,
                "record_hashes": leaf.record_hashes,
            }
        )
        self.count += 1
        self._waiting_bytes += 2 * len(statement.entry) + len(leaf.record_hashes or b"") + _ROW_BYTES
        if self._waiting_bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is buffered and finish the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=_UNPROVEN))
            self._waiting, self._waiting_bytes = [], 0


def read_rows(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows that ``StatementRows`` wrote."""
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for n in range(reader.num_record_batches):
            yield reader.get_batch(n)


def read_exported(directory: Path) -> Iterator[pa.RecordBatch]:
    """The statements of an export, without their proofs."""
    with pq.ParquetFile(directory / STATEMENTS_FILE) as file:
        yield from file.iter_batches(_READ_ROWS, columns=_UNPROVEN.names)


def write_statements(directory: Path, rows: Iterable[pa.RecordBatch], tiles: TileReader) -> int:
    """Write the statements with their proofs to the tree of ``tiles``; return how many they are."""
    path = directory / STATEMENTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with parquet_writer(path, STATEMENT_SCHEMA, _DICTIONARY, ("leaf_index",)) as writer:
        for group in _groups(rows):
            at = STATEMENT_SCHEMA.get_field_index(_PATH)
            proven = group.add_column(at, STATEMENT_SCHEMA.field(at), _paths(group, tiles))
            writer.write_table(proven, row_group_size=group.num_rows)
            count += group.num_rows
    return count


def _paths(group: pa.Table, tiles: TileReader) -> pa.Array:
    """The proof of each row. Neighbours share most of their paths, so what was hashed once is remembered."""
    known: dict[tuple[int, int], bytes] = {}
    paths = []
    for index in group.column("leaf_index").to_pylist():
        path = []
        for ends in inclusion_ranges(index, tiles.size):
            found = known.get(ends)
            if found is None:
                found = known[ends] = tiles.subtree_hash(*ends)
            path.append(found)
        paths.append(b"".join(path))
    return pa.array(paths, pa.binary())


def _groups(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """``rows`` cut into row groups: where each ends depends on the rows alone, not on how they came."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in rows:
        begin = 0
        for at, each in enumerate(_sizes(batch)):
            size += each
            if size >= _GROUP_BYTES:
                waiting.append(batch.slice(begin, at + 1 - begin))
                yield pa.Table.from_batches(waiting).combine_chunks()
                waiting, size, begin = [], 0, at + 1
        if begin < batch.num_rows:
            waiting.append(batch.slice(begin))
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _sizes(batch: pa.RecordBatch) -> list[int]:
    entries = pc.multiply(pc.binary_length(batch.column("entry")), 2)
    hashes = pc.fill_null(pc.binary_length(batch.column("record_hashes")), 0)
    sizes: list[int] = pc.add(pc.add(entries, hashes), _ROW_BYTES).to_pylist()
    return sizes
