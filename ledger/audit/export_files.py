"""Reads an export's Parquet files by batches of rows, and names places in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ledger.audit.report import Findings
from ledger.core.export_layout import Column

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CHANGED", "cell", "read_batches"]

CHANGED = "do not use these files; export again from the ledger, or get them again from whoever did"


def cell(file: str, row: int, column: str) -> str:
    """Name a place in a file; rows count from 0."""
    return f"{file}, row {row}, {column}"


def read_batches(
    path: Path, name: str, columns: tuple[Column, ...], rows: int, findings: Findings
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file with exactly these columns; nothing, and a finding, from any other.

    Times come as integers, Unix microseconds: what a file holds may be no date that Python knows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            found = [(field.name, str(field.type), field.nullable) for field in file.schema_arrow]
            if found != [(column.name, column.type, column.nullable) for column in columns]:
                findings.add("bad-file", name, "does not have the columns of the layout", CHANGED)
                return
            for batch in file.iter_batches(rows):
                batch.validate(full=True)
                yield _exact_times(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        findings.add("bad-file", name, f"cannot be read as Parquet: {str(error)[:200]}", CHANGED)


def _exact_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
