"""Owns the Parquet files of an export while they are written: one open a day, buffers of bounded size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ledger.core.export_layout import (
    STATEMENTS_FILE,
    day_of,
    deployment_columns,
    part_path,
    record_columns,
)
from ledger.core.records import Deployment, Record
from ledger.core.statements import Batch
from ledger.export.layout import RECORD_SCHEMA, STATEMENT_SCHEMA
from ledger.export.source import Leaf

__all__ = ["ROW_GROUP_ROWS", "RecordFiles", "StatementFile"]

ROW_GROUP_ROWS = 65_536
"""Some 40 MB with the record bytes: enough to scan fast, little enough to hold in memory."""
MAX_PART_ROWS = 16 * ROW_GROUP_ROWS
_CONVERT_ROWS = 4_096
"""Rows that wait as Python objects; more than that become Arrow columns, which take a third of the space."""
_MAX_BUFFERED_ROWS = 2 * ROW_GROUP_ROWS
_MAX_OPEN_FILES = 32
_STATEMENT_GROUP_BYTES = 16 << 20
_ZSTD_LEVEL = 3

_DAY_US = 86_400_000_000
# Few distinct values: a dictionary makes them nearly free. Hashes, ids and bytes have none.
_RECORD_DICTIONARY = [
    field.name
    for field in RECORD_SCHEMA
    if field.name
    not in {"id", "request", "input_digest", "output_digest", "parent", "record", "position"}
    | {"started_at", "first_token_at", "ended_at", "energy_uj", "energy_low_uj", "energy_high_uj"}
    | {"carbon_ng", "carbon_low_ng", "carbon_high_ng", "carbon_market_ng", "embodied_ng", "water_nl"}
]
_STATEMENT_DICTIONARY = ["kind", "issuer", "registered_at", "tree_size", "record_count", "exported_records"]
_UNSEARCHED = {"record", "entry", "payload", "inclusion_path", "record_hashes", "receipt_signature"}


@dataclass
class _Partition:
    """One day. Owned by the thread that exports."""

    leaf_index: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    issuer: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    converted: list[pa.RecordBatch] = field(default_factory=list)
    converted_rows: int = 0
    writer: pq.ParquetWriter | None = None
    path: str = ""
    parts: int = 0
    part_rows: int = 0

    @property
    def buffered(self) -> int:
        """Rows not yet written."""
        return self.converted_rows + len(self.records)


class RecordFiles:
    """Writes records into one file a day. Not safe to share between threads.

    A thread of its own compresses and writes one row group while the caller makes the next; it is waited for
    before anything else touches a writer, so files come out the same each time.

    Args:
        directory: the export's directory.
        deployment: returns the deployment of a digest.

    Attributes:
        rows: number of rows by path, complete once closed.
    """

    def __init__(self, directory: Path, deployment: Callable[[str], Deployment]) -> None:
        self.rows: dict[str, int] = {}
        self._directory = directory
        self._deployment = deployment
        self._deployments: dict[str, dict[str, str | None]] = {}
        self._days: dict[int, _Partition] = {}
        self._open: OrderedDict[int, None] = OrderedDict()  # least recently written first
        self._buffered = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tallystick-export")
        self._writing: Future[None] | None = None

    def add(self, leaf: Leaf) -> None:
        """Add the records of ``leaf``; leaves must come in order."""
        if not leaf.records:
            return
        days = [record.started_us // _DAY_US for record in leaf.records]
        first = days[0]
        if days.count(first) == len(days):
            self._extend(first, leaf, leaf.positions, leaf.records, leaf.lines)
            return
        for day in sorted(set(days)):
            chosen = [i for i, each in enumerate(days) if each == day]
            self._extend(
                day,
                leaf,
                [leaf.positions[i] for i in chosen],
                [leaf.records[i] for i in chosen],
                [leaf.lines[i] for i in chosen],
            )

    def close(self) -> None:
        """Write what is buffered and finish all files."""
        for day in sorted(self._days):
            self._flush(day)
            self._finish(day)
        self._thread.shutdown()

    def abandon(self) -> None:
        """Let go of open files after a failure."""
        self._thread.shutdown()
        for partition in self._days.values():
            if partition.writer is not None:
                with suppress(Exception):  # the failure that led here is the one to report
                    partition.writer.close()

    def _extend(
        self, day: int, leaf: Leaf, positions: list[int], records: list[Record], lines: list[bytes]
    ) -> None:
        partition = self._days.get(day)
        if partition is None:
            partition = self._days[day] = _Partition()
        partition.leaf_index += [leaf.index] * len(records)
        partition.position += positions
        partition.issuer += [leaf.statement.issuer] * len(records)
        partition.records += records
        partition.lines += lines
        self._buffered += len(records)
        if len(partition.records) >= _CONVERT_ROWS:
            self._convert(partition)
        if partition.converted_rows >= ROW_GROUP_ROWS:
            self._flush(day)
        while self._buffered > _MAX_BUFFERED_ROWS:
            self._flush(max(self._days, key=lambda each: self._days[each].buffered))

    def _convert(self, partition: _Partition) -> None:
        """Turn the waiting Python objects into one Arrow batch."""
        records = partition.records
        columns: dict[str, list[Any]] = {
            "leaf_index": partition.leaf_index,
            "position": partition.position,
            "issuer": partition.issuer,
            "record": partition.lines,
            **record_columns(records),
        }
        digests = columns["deployment"]
        for digest in set(digests) - self._deployments.keys():
            self._deployments[digest] = deployment_columns(self._deployment(digest))
        found = [self._deployments[digest] for digest in digests]
        for name in found[0]:
            columns[name] = [each[name] for each in found]
        arrays = [_array(columns[each.name], each.type) for each in RECORD_SCHEMA]
        partition.converted.append(pa.RecordBatch.from_arrays(arrays, schema=RECORD_SCHEMA))
        partition.converted_rows += len(records)
        for waiting in (partition.leaf_index, partition.position, partition.issuer, partition.lines, records):
            waiting.clear()

    def _flush(self, day: int) -> None:
        """Write what is buffered for ``day`` as row groups."""
        partition = self._days[day]
        if partition.records:
            self._convert(partition)
        if not partition.converted:
            return
        table = pa.Table.from_batches(partition.converted)
        self._buffered -= table.num_rows
        partition.converted, partition.converted_rows = [], 0
        self._settle()
        if partition.writer is None:
            self._start(day)
        assert partition.writer is not None  # noqa: S101 - for the type checker
        self._writing = self._thread.submit(
            partition.writer.write_table, table, row_group_size=ROW_GROUP_ROWS
        )
        partition.part_rows += table.num_rows
        self._open.move_to_end(day)
        if partition.part_rows >= MAX_PART_ROWS:
            self._finish(day)

    def _settle(self) -> None:
        """Wait for the write under way; raise what it raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _start(self, day: int) -> None:
        if len(self._open) >= _MAX_OPEN_FILES:
            self._finish(next(iter(self._open)))
        partition = self._days[day]
        partition.path = part_path(day_of(day * _DAY_US), partition.parts)
        path = self._directory / partition.path
        path.parent.mkdir(parents=True, exist_ok=True)
        partition.writer = _writer(path, RECORD_SCHEMA, _RECORD_DICTIONARY, ("leaf_index", "position"))
        self._open[day] = None

    def _finish(self, day: int) -> None:
        partition = self._days[day]
        if partition.writer is None:
            return
        self._settle()
        partition.writer.close()
        self.rows[partition.path] = partition.part_rows
        partition.writer, partition.part_rows = None, 0
        partition.parts += 1
        del self._open[day]


class StatementFile:
    """Writes statements with their proofs. Not safe to share between threads.

    Args:
        directory: the export's directory.

    Attributes:
        rows: number of rows by path, complete once closed.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / STATEMENTS_FILE
        path.parent.mkdir(parents=True)
        self.rows = {STATEMENTS_FILE: 0}
        self._writer = _writer(path, STATEMENT_SCHEMA, _STATEMENT_DICTIONARY, ("leaf_index",))
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0

    def add(self, leaf: Leaf, inclusion_path: list[bytes]) -> None:
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
                "exported_records": None if batch is None else len(leaf.records),
                "payload": payload.decode(),
                "entry": statement.entry,
                "inclusion_path": b"".join(inclusion_path),
                "record_hashes": leaf.record_hashes,
            }
        )
        self._waiting_bytes += 2 * len(statement.entry) + len(leaf.record_hashes or b"") + 1024
        if self._waiting_bytes >= _STATEMENT_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is buffered and finish the file."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Let go of the open file after a failure."""
        with suppress(Exception):
            self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_pylist(self._waiting, schema=STATEMENT_SCHEMA)
            self._writer.write_table(table, row_group_size=len(self._waiting))
            self.rows[STATEMENTS_FILE] += len(self._waiting)
            self._waiting, self._waiting_bytes = [], 0


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow array of ``values``; what is the same all along, often null, is not converted one by one."""
    first = values[0]
    if values.count(first) != len(values):
        return pa.array(values, kind)
    return pa.nulls(len(values), kind) if first is None else pa.repeat(pa.scalar(first, kind), len(values))


def _writer(
    path: Path, schema: pa.Schema, dictionary: list[str], sorted_by: tuple[str, ...]
) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        version="2.6",
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=dictionary,
        write_statistics=[each.name for each in schema if each.name not in _UNSEARCHED],
        sorting_columns=[pq.SortingColumn(schema.get_field_index(name)) for name in sorted_by],
    )
