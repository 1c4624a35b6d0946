"""Owns the Parquet files of records while they are written: one open a day, buffers of bounded size."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ledger.core.export_layout import ManifestFile, day_of, part_path
from ledger.core.records import Deployment
from ledger.export.columns import RecordColumns
from ledger.export.layout import RECORD_SCHEMA
from ledger.export.manifest import describe
from ledger.export.source import Leaf

__all__ = ["ROW_GROUP_ROWS", "RecordFiles", "parquet_writer"]

ROW_GROUP_ROWS = 65_536
"""Some 40 MB with the record bytes: enough to scan fast, little enough to hold in memory."""
MAX_PART_ROWS = 16 * ROW_GROUP_ROWS
_CONVERT_ROWS = 4_096
"""Rows that wait as bytes, to become columns together: a call for each leaf would cost more than few rows."""
_MAX_BUFFERED_ROWS = 2 * ROW_GROUP_ROWS
_MAX_OPEN_FILES = 32
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
_UNSEARCHED = {"record", "entry", "payload", "inclusion_path", "record_hashes", "receipt_signature"}


@dataclass
class _Partition:
    """One day. Owned by the thread that exports."""

    parts: int
    waiting: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    writer: pq.ParquetWriter | None = None
    path: str = ""
    part_rows: int = 0


class RecordFiles:
    """Writes records into files of one day each. Not safe to share between threads.

    A thread of its own compresses and writes one row group while the caller makes the next; it is waited for
    before anything else touches a writer, so files come out the same each time.

    Args:
        directory: the export's directory.
        deployment: returns the deployment of a digest.
        parts: how many files of each day (UTC, ``YYYY-MM-DD``) there are already.
    """

    def __init__(
        self, directory: Path, deployment: Callable[[str], Deployment], parts: Mapping[str, int]
    ) -> None:
        self._directory = directory
        self._columns = RecordColumns(deployment)
        self._parts = parts
        self._leaves: list[Leaf] = []
        self._leaves_rows = 0
        self._days: dict[int, _Partition] = {}
        self._open: OrderedDict[int, None] = OrderedDict()  # least recently written first
        self._buffered = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tallystick-export")
        self._writing: Future[None] | None = None
        self._describing = ThreadPoolExecutor(1, thread_name_prefix="tallystick-digest")
        self._described: list[Future[ManifestFile]] = []

    def add(self, leaf: Leaf) -> None:
        """Add the records of ``leaf``; leaves must come in order."""
        if not leaf.count:
            return
        self._leaves.append(leaf)
        self._leaves_rows += leaf.count
        if self._leaves_rows >= _CONVERT_ROWS:
            self._convert()

    def finish(self) -> list[ManifestFile]:
        """Write what is buffered; return all files since the last time, durable. More may be added."""
        self._convert()
        for day in sorted(self._days):
            self._flush(day, self._days[day].rows)
            self._finish(day)
        described, self._described = self._described, []
        return sorted((each.result() for each in described), key=lambda file: file.path)

    def close(self) -> None:
        """End the threads; all files are finished."""
        self._thread.shutdown()
        self._describing.shutdown()

    def abandon(self) -> None:
        """Let go of open files after a failure."""
        self._thread.shutdown()
        self._describing.shutdown(cancel_futures=True)
        for partition in self._days.values():
            if partition.writer is not None:
                with suppress(Exception):  # the failure that led here is the one to report
                    partition.writer.close()

    def _convert(self) -> None:
        """Turn the waiting leaves into rows of their days."""
        if not self._leaves:
            return
        leaves, self._leaves, self._leaves_rows = self._leaves, [], 0
        batch = self._columns.batch(leaves)
        days = pc.divide(batch.column("started_at").cast(pa.int64()), _DAY_US)
        ends = pc.min_max(days).as_py()
        if ends["min"] == ends["max"]:
            self._extend(ends["min"], batch)
            return
        order, at = pc.sort_indices(days), 0  # a stable order
        for each in sorted(pc.value_counts(days).to_pylist(), key=lambda count: count["values"]):
            # A copy, not a slice: that would hold the memory of the whole batch.
            self._extend(each["values"], batch.take(order.slice(at, each["counts"])))
            at += each["counts"]

    def _extend(self, day: int, batch: pa.RecordBatch) -> None:
        partition = self._days.get(day)
        if partition is None:
            partition = self._days[day] = _Partition(self._parts.get(day_of(day * _DAY_US), 0))
        partition.waiting.append(batch)
        partition.rows += batch.num_rows
        self._buffered += batch.num_rows
        while partition.rows >= ROW_GROUP_ROWS:
            self._flush(day, ROW_GROUP_ROWS)
        while self._buffered > _MAX_BUFFERED_ROWS:
            fullest = max(self._days, key=lambda each: self._days[each].rows)
            self._flush(fullest, self._days[fullest].rows)

    def _flush(self, day: int, rows: int) -> None:
        """Write the first ``rows`` that wait for ``day`` as a row group."""
        if not rows:
            return
        partition = self._days[day]
        table = pa.Table.from_batches(partition.waiting)
        rest = table.slice(rows)
        partition.waiting, partition.rows = rest.to_batches(), rest.num_rows
        self._buffered -= rows
        self._settle()
        if partition.writer is None:
            self._start(day)
        assert partition.writer is not None  # noqa: S101 - for the type checker
        self._writing = self._thread.submit(
            partition.writer.write_table, table.slice(0, rows), row_group_size=rows
        )
        partition.part_rows += rows
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
        partition.writer = parquet_writer(path, RECORD_SCHEMA, _RECORD_DICTIONARY, ("leaf_index", "position"))
        self._open[day] = None

    def _finish(self, day: int) -> None:
        partition = self._days[day]
        if partition.writer is None:
            return
        self._settle()
        partition.writer.close()
        described = self._describing.submit(_settled, self._directory, partition.path, partition.part_rows)
        self._described.append(described)
        partition.writer, partition.part_rows = None, 0
        partition.parts += 1
        del self._open[day]


def _settled(directory: Path, path: str, rows: int) -> ManifestFile:
    """What the manifest says of a file that is now durable."""
    with (directory / path).open("rb") as file:
        os.fsync(file.fileno())
    return describe(directory, path, rows)


def parquet_writer(
    path: Path, schema: pa.Schema, dictionary: list[str], sorted_by: tuple[str, ...]
) -> pq.ParquetWriter:
    """A writer of one file, as all files of an export are written."""
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
