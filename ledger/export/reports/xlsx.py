"""Renders a report as a workbook: what it stands on and contains, its figures, a sheet for each table.

Cells that hold text are written as text, never as formulas. Amounts are numbers where a spreadsheet holds
them exactly (15 significant digits), else text. The same report gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from ledger.core.errors import UnavailableError
from ledger.export.reports.document import Report, Table
from ledger.export.reports.words import basis_rows

if TYPE_CHECKING:
    from xlsxwriter.worksheet import Worksheet

__all__ = ["render_xlsx"]

_EXACT_DIGITS = 15
_MAX_SHEET_NAME = 31
_WIDEST = 66
"""Characters of a column beyond which its text wraps."""
_A4 = 9
_LINE_POINTS = 15
_MAX_POINTS = 405
"""Spreadsheets hold no row higher than 409 points."""
_EPOCH = datetime(2000, 1, 1)
"""Written as the workbook's time of creation: a clock would change its bytes."""


def render_xlsx(report: Report) -> bytes:
    """The workbook's bytes.

    Raises:
        UnavailableError: XlsxWriter is not installed.
    """
    try:
        import xlsxwriter
    except ImportError:
        raise UnavailableError(
            "XlsxWriter is not installed", remedy="pip install 'tallystick[reports]'", code="missing-package"
        ) from None
    out = io.BytesIO()
    options = {
        "in_memory": True,
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "strings_to_numbers": False,
    }
    book = xlsxwriter.Workbook(out, options)
    book.set_properties({"title": report.title, "subject": report.standard, "created": _EPOCH})
    top: dict[str, Any] = {"valign": "top"}
    styles = _Styles(
        bold=book.add_format({"bold": True, "text_wrap": True, "bottom": 1, **top}),
        wrap=book.add_format({"text_wrap": True, **top}),
        whole=book.add_format({"num_format": "#,##0", **top}),
        part=book.add_format({"num_format": "#,##0.0########", **top}),
    )
    _page(book.add_worksheet("Report"), basis_rows(report), (30, 110), styles)
    contents = book.add_worksheet("Contents")
    _figures(book.add_worksheet("Figures"), report, styles)
    taken, told = {"report", "contents", "figures"}, []
    for section in report.sections:
        told += [(section.title, section.reference or None, text) for text in section.text or ("",)]
        for table in section.tables:
            name = _sheet_name(table.title, taken)
            told.append((f"Sheet {name}", table.reference or None, table.derivation))
            _table(book.add_worksheet(name), table, styles)
    _page(contents, told, (30, 44, 110), styles)
    for each in book.worksheets():  # as wide as one page when printed
        each.set_paper(_A4)
        each.set_landscape()
        each.fit_to_pages(1, 0)
    book.close()
    return out.getvalue()


@dataclass(frozen=True)
class _Styles:
    """Formats of cells: headings, text, whole numbers and others."""

    bold: Any
    wrap: Any
    whole: Any
    part: Any


def _page(
    sheet: Worksheet, rows: Iterable[Sequence[str | None]], widths: Sequence[int], styles: _Styles
) -> None:
    """Columns of words, the first one bold."""
    for at, width in enumerate(widths):
        sheet.set_column(at, at, width)
    for line, cells in enumerate(rows):
        _fit(sheet, line, zip(cells, widths, strict=True))
        for at, cell in enumerate(cells):
            if cell:
                sheet.write_string(line, at, cell, styles.wrap if at else styles.bold)


def _fit(sheet: Worksheet, line: int, cells: Iterable[tuple[str | None, int]]) -> None:
    """Make a row as high as its wrapped text: not every program does so by itself."""
    lines = max((-(-len(cell) // max(width - 2, 1)) for cell, width in cells if cell), default=1)
    if lines > 1:
        sheet.set_row(line, min(lines * _LINE_POINTS, _MAX_POINTS))


_HEADINGS = (
    ("Section", 30), ("Figure", 44), ("Value", 20), ("Unit", 26), ("Low", 18), ("High", 18), ("From", 16),
    ("Coverage", 34), ("Reference", 40), ("Derivation", 70), ("Gap", 44), ("Name", 30),
)  # fmt: skip


def _figures(sheet: Worksheet, report: Report, styles: _Styles) -> None:
    for at, (heading, width) in enumerate(_HEADINGS):
        sheet.set_column(at, at, width)
        sheet.write_string(0, at, heading, styles.bold)
    line = 0
    for section in report.sections:
        for figure in section.figures:
            line += 1
            found = (
                section.title,
                figure.label,
                figure.value,
                figure.unit,
                figure.low,
                figure.high,
                figure.basis,
                figure.coverage,
                figure.reference if figure.reference is not UNSET else section.reference,
                figure.derivation,
                figure.gap,
                figure.name,
            )
            cells = [None if cell is UNSET else str(cell) for cell in found]
            _fit(sheet, line, zip(cells, (width for _, width in _HEADINGS), strict=True))
            for column, cell in enumerate(cells):
                if cell is None:
                    continue
                if column in (2, 4, 5):
                    _amount(sheet, line, column, cell, styles)
                else:
                    sheet.write_string(line, column, cell, styles.wrap)
    sheet.freeze_panes(1, 2)


def _table(sheet: Worksheet, table: Table, styles: _Styles) -> None:
    widths = []
    for at, column in enumerate(table.columns):
        unit = "" if column.unit is UNSET or not column.unit else f" ({column.unit})"
        cells = (len(row[at] or "") for row in table.rows)
        widths.append(min(max(len(column.label + unit), *cells, 0), _WIDEST) + 2)
        sheet.set_column(at, at, widths[at])
        sheet.write_string(0, at, column.label + unit, styles.bold)
    for line, row in enumerate(table.rows, 1):
        _fit(sheet, line, zip(row, widths, strict=True))
        for at, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
            if cell is None:
                continue
            if column.unit is UNSET:
                sheet.write_string(line, at, cell, styles.wrap)
            else:
                _amount(sheet, line, at, cell, styles)
    sheet.freeze_panes(1, 1)


def _amount(sheet: Worksheet, line: int, column: int, text: str, styles: _Styles) -> None:
    """Write an amount as a number if the spreadsheet's float holds every digit of it."""
    try:
        digits = len(Decimal(text).normalize().as_tuple().digits)
    except ArithmeticError:
        digits = _EXACT_DIGITS + 1
    if digits <= _EXACT_DIGITS:
        sheet.write_number(line, column, float(text), styles.part if "." in text else styles.whole)
    else:
        sheet.write_string(line, column, text, styles.wrap)


def _sheet_name(title: str, taken: set[str]) -> str:
    plain = re.sub(r"[\[\]:*?/\\']", " ", title)[:_MAX_SHEET_NAME].strip() or "Table"
    name, n = plain, 1
    while name.lower() in taken:
        n += 1
        name = f"{plain[: _MAX_SHEET_NAME - 4]} {n}"
    taken.add(name.lower())
    return name
