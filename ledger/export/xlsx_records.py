"""Writes an export's records as a workbook, for people who work in spreadsheets.

The first sheet says what the records are taken from and what each column means, with its unit; then as many
sheets of records as Excel's limit of rows asks for. All text is text cells, never a formula, and guarded as
in CSV besides, since workbooks are saved as CSV. A spreadsheet's numbers are floats of 15 digits: an integer
with more is written as text, so that it stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ledger.core.errors import UnavailableError
from ledger.core.export_layout import MANIFEST_FILE, Manifest
from ledger.export.csv import COLUMNS, RecordRows, TableSummary, replaced_file
from ledger.export.query import Question
from ledger.export.reading import open_export

if TYPE_CHECKING:
    from xlsxwriter.workbook import Workbook
    from xlsxwriter.worksheet import Worksheet

__all__ = ["write_xlsx"]

_SHEET_ROWS = 1_048_576
"""Excel's limit, the heading included (Microsoft, "Excel specifications and limits")."""
_EXACT = 10**15
_WIDE = 22
_REPORT_ROWS = 5_000


def write_xlsx(
    export: Path,
    out: Path,
    question: Question,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TableSummary:
    """Write the records that ``question`` selects as XLSX; as ``csv.write_csv`` does.

    Raises:
        InvalidError: no export. UnavailableError: it cannot be written, or XlsxWriter is not installed.
    """
    try:
        import xlsxwriter.exceptions
    except ImportError:
        raise UnavailableError(
            "XlsxWriter is not installed", remedy="pip install 'tallystick[reports]'", code="missing-package"
        ) from None
    with open_export(export) as connection, replaced_file(out) as path:
        book = xlsxwriter.Workbook(
            str(path),
            {
                "constant_memory": True,  # a row is written when the next begins
                "strings_to_formulas": False,
                "strings_to_urls": False,
                "strings_to_numbers": False,
            },
        )
        book.use_zip64()
        try:
            _about(book, export, question)
            summary = _records(book, RecordRows(connection, question), out, progress)
        finally:
            try:
                book.close()
            except xlsxwriter.exceptions.FileCreateError as error:  # what the system said, wrapped
                raise OSError(*error.args) from None
    return summary


def _about(book: Workbook, export: Path, question: Question) -> None:
    manifest = msgspec.json.decode((export / MANIFEST_FILE).read_bytes(), type=Manifest)
    bold = book.add_format({"bold": True})
    sheet = book.add_worksheet("About")
    sheet.set_column(0, 0, 26)
    sheet.set_column(1, 1, 110)
    scope = [
        f"{name} {value}"
        for name, value in (("from_us", question.from_us), ("to_us", question.to_us))
        if value is not None
    ]
    scope += [f"{name}={' or '.join(values) or 'none'}" for name, values in question.where.items()]
    lines = [
        ("Records of a log", manifest.origin),
        ("Taken from", f"the export signed with checkpoint size {manifest.checkpoint.splitlines()[1]}"),
        ("Checkpoint root, base64", manifest.checkpoint.splitlines()[2]),
        ("Made by", manifest.software),
        ("Selected", "; ".join(scope) or "all records of the export"),
        ("Figures", "as corrected by later statements" if question.corrected else "as first logged"),
        ("Proof", "Verify the export, not this file: tallystick verify EXPORT --log-key log.vkey"),
        ("Exact figures", "Integers of more than 15 digits are text: a spreadsheet's numbers hold no more."),
        ("", ""),
        *((column.name, column.description) for column in COLUMNS),
    ]
    for at, (name, text) in enumerate(lines):
        sheet.write_string(at, 0, name, bold)
        sheet.write_string(at, 1, text)


def _records(
    book: Workbook, rows: RecordRows, out: Path, progress: Callable[[int, int], None] | None
) -> TableSummary:
    bold = book.add_format({"bold": True, "bottom": 1})
    records = corrected = sheets = line = 0
    total = rows.count() if progress is not None else 0
    sheet: Worksheet | None = None
    for row in rows:
        if sheet is None or line + 1 == _SHEET_ROWS:
            sheets += 1
            sheet, line = _sheet(book, f"Records {sheets}", bold), 0
        line += 1
        _write(sheet, line, row)
        records += 1
        corrected += row[-1]
        if progress is not None and not records % _REPORT_ROWS:
            progress(records, total)
    if sheet is None:
        sheets, _ = 1, _sheet(book, "Records 1", bold)
    return TableSummary(out, records, corrected, sheets)


def _sheet(book: Workbook, name: str, bold: Any) -> Worksheet:
    sheet = book.add_worksheet(name)
    sheet.freeze_panes(1, 0)
    sheet.set_column(0, len(COLUMNS) - 1, _WIDE)
    for at, column in enumerate(COLUMNS):
        sheet.write_string(0, at, column.name, bold)
    return sheet


def _write(sheet: Worksheet, line: int, row: list[Any]) -> None:
    for at, value in enumerate(row):
        if value is None:
            continue
        if value is True or value is False:
            sheet.write_boolean(line, at, value)
        elif isinstance(value, int) and -_EXACT < value < _EXACT:
            sheet.write_number(line, at, value)
        else:
            sheet.write_string(line, at, str(value))
