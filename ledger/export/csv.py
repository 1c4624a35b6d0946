"""Writes an export's records as CSV (RFC 4180) for people and programs that do not read Parquet.

One line a record, in the order of ``started_at`` and id. Numbers are the integers of the log; times are
ISO 8601 in UTC, to the microsecond; what a record does not have is an empty cell. In the place of the
record's bytes stands their hash, which the batch statement commits to. Text that a spreadsheet would take for
a formula gets an apostrophe before it (OWASP ASVS 1.2.10).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ledger.core.errors import UnavailableError
from ledger.core.export_layout import RECORD_COLUMNS, Column
from ledger.export.query import Question, conditions
from ledger.export.reading import open_export
from ledger.export.tables import safe_cell

if TYPE_CHECKING:
    import duckdb

__all__ = ["COLUMNS", "RecordRows", "TableSummary", "replaced_file", "write_csv"]

COLUMNS = (
    Column("day", "string", "UTC day of started_at", False),
    *(column for column in RECORD_COLUMNS if column.name != "record"),
    Column("record_hash", "string", "RFC 6962 leaf hash of the record's bytes, hex", False),
    Column("corrected", "bool", "whether a later statement of its issuer restated figures", False),
)
"""Columns of CSV and XLSX, in order."""

_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PAGE = 10_000
# What is an integer, a hash or an id cannot be a formula; all other text may come from anybody.
_OWN_TEXT = {
    "day", "id", "deployment", "factors", "started_at", "first_token_at", "ended_at", "energy_method",
    "request", "input_digest", "input_of", "output_digest", "output_of", "parent", "record_hash",
}  # fmt: skip


@dataclass(frozen=True)
class TableSummary:
    """What was written. ``sheets`` are those of records; a CSV file has none."""

    file: Path
    records: int
    corrected_records: int
    sheets: int = 0


@dataclass(frozen=True)
class RecordRows:
    """The records of an export that a question selects, with cells that no spreadsheet computes."""

    connection: duckdb.DuckDBPyConnection
    question: Question

    def __iter__(self) -> Iterator[list[Any]]:
        """Rows of integers, text, booleans and None, as ``COLUMNS`` says; holds a day in memory at most."""
        where, parameters = conditions(self.question)
        view = "records_corrected" if self.question.corrected else "records"
        days = self.connection.execute(
            f"SELECT DISTINCT epoch_us(started_at) // {_DAY_US} FROM {view}{where} ORDER BY 1",  # noqa: S608 - ours
            parameters,
        ).fetchall()
        safe: dict[str, str] = {}
        guarded = [
            at
            for at, column in enumerate(COLUMNS)
            if column.type == "string" and column.name not in _OWN_TEXT
        ]
        quality = next(at for at, column in enumerate(COLUMNS) if column.name == "quality")
        query = _query(view, where, corrected=self.question.corrected)
        for (day,) in days:
            cursor = self.connection.cursor()
            cursor.execute(query, [*parameters, day * _DAY_US, (day + 1) * _DAY_US])
            name = str((_EPOCH + timedelta(days=day)).date())
            while rows := cursor.fetchmany(_PAGE):
                for found in rows:
                    row = [name, *found]
                    for at in guarded:
                        text = row[at]
                        if text is not None:
                            if text not in safe:
                                safe[text] = safe_cell(text)
                            row[at] = safe[text]
                    if row[quality] is not None:
                        row[quality] = json.dumps(row[quality], separators=(",", ":"))
                    yield row

    def count(self) -> int:
        """How many rows there are."""
        where, parameters = conditions(self.question)
        view = "records_corrected" if self.question.corrected else "records"
        found = self.connection.execute(f"SELECT count(*) FROM {view}{where}", parameters).fetchone()  # noqa: S608
        return int(found[0]) if found else 0


def _query(view: str, where: str, *, corrected: bool) -> str:
    columns = []
    for column in COLUMNS[1:-2]:
        if column.type.startswith("timestamp"):
            columns.append(f"strftime({column.name} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')")
        else:
            columns.append(column.name)
    columns.append("sha256('\\x00'::BLOB || record)")
    columns.append("corrected" if corrected else "false")
    within = "started_at >= make_timestamptz(?::BIGINT) AND started_at < make_timestamptz(?::BIGINT)"
    return (
        f"SELECT {', '.join(columns)} FROM {view}{where or ' WHERE true'} AND {within} "  # noqa: S608 - ours
        "ORDER BY started_at, id"
    )


def write_csv(
    export: Path,
    out: Path,
    question: Question,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TableSummary:
    """Write the records that ``question`` selects; its groups and percentiles do not matter.

    Args:
        export: the export's folder.
        out: the file to write; replaced, once all is written, if it is there.
        question: which records, and whether restated figures replace those first logged.
        progress: called with (records done, all of them).

    Raises:
        InvalidError: no export. UnavailableError: it cannot be written.
    """
    with open_export(export) as connection, replaced_file(out) as path:
        rows = RecordRows(connection, question)
        with path.open("w", encoding="utf-8", newline="") as file:
            records, corrected = _write(file, rows, progress)
    return TableSummary(out, records, corrected)


def _write(file: IO[str], rows: RecordRows, progress: Callable[[int, int], None] | None) -> tuple[int, int]:
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow([column.name for column in COLUMNS])
    records = corrected = 0
    total = rows.count() if progress is not None else 0
    for row in rows:
        corrected += row[-1]
        row[-1] = "true" if row[-1] else "false"
        writer.writerow(row)
        records += 1
        if progress is not None and not records % _PAGE:
            progress(records, total)
    return records, corrected


@contextmanager
def replaced_file(out: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``out`` if the block ends well and is removed if not.

    Raises:
        UnavailableError: it cannot be written.
    """
    path = out.with_name(f".{out.name}.new")
    try:
        yield path
        path.replace(out)
    except OSError as error:
        raise UnavailableError(
            f"could not be written: {error.strerror or error}",
            where=str(out),
            remedy="make room, or write to another disk",
            code="export-failed",
        ) from error
    finally:
        path.unlink(missing_ok=True)
