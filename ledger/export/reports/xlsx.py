"""Renders a report as a workbook: a sheet of what it stands on, one of all figures, one for each table.

Cells that hold text are written as text, never as formulas. Amounts are numbers where a spreadsheet holds
them exactly (15 significant digits), else text. The same report gives the same bytes.
"""

from __future__ import annotations

import io
import re
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
    bold = book.add_format({"bold": True, "text_wrap": True, "valign": "top", "bottom": 1})
    wrap = book.add_format({"text_wrap": True, "valign": "top"})
    sheet = book.add_worksheet("Report")
    sheet.set_column(0, 0, 28)
    sheet.set_column(1, 1, 110)
    for at, (name, value) in enumerate(basis_rows(report)):
        sheet.write_string(at, 0, name, bold)
        sheet.write_string(at, 1, value, wrap)
    _figures(book.add_worksheet("Figures"), report, bold, wrap)
    taken = {"report", "figures"}
    for section in report.sections:
        for table in section.tables:
            _table(book.add_worksheet(_sheet_name(table.title, taken)), table, bold, wrap)
    book.close()
    return out.getvalue()


_HEADINGS = (
    ("Section", 30), ("Figure", 44), ("Value", 20), ("Unit", 26), ("Low", 18), ("High", 18), ("From", 16),
    ("Coverage", 34), ("Reference", 40), ("Derivation", 70), ("Gap", 44), ("Name", 30),
)  # fmt: skip


def _figures(sheet: Worksheet, report: Report, bold: Any, wrap: Any) -> None:
    for at, (heading, width) in enumerate(_HEADINGS):
        sheet.set_column(at, at, width)
        sheet.write_string(0, at, heading, bold)
    line = 0
    for section in report.sections:
        for figure in section.figures:
            line += 1
            cells = (
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
            for column, cell in enumerate(cells):
                if cell is UNSET:
                    continue
                if column in (2, 4, 5):
                    _amount(sheet, line, column, cell, wrap)
                else:
                    sheet.write_string(line, column, cell, wrap)
    sheet.freeze_panes(1, 2)


def _table(sheet: Worksheet, table: Table, bold: Any, wrap: Any) -> None:
    for at, column in enumerate(table.columns):
        unit = "" if column.unit is UNSET or not column.unit else f" ({column.unit})"
        sheet.set_column(at, at, 24)
        sheet.write_string(0, at, column.label + unit, bold)
    for line, row in enumerate(table.rows, 1):
        for at, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
            if cell is None:
                continue
            if column.unit is UNSET:
                sheet.write_string(line, at, cell, wrap)
            else:
                _amount(sheet, line, at, cell, wrap)
    sheet.freeze_panes(1, 1)


def _amount(sheet: Worksheet, line: int, column: int, text: str, style: Any) -> None:
    """Write an amount as a number if the spreadsheet's float holds every digit of it."""
    try:
        digits = len(Decimal(text).normalize().as_tuple().digits)
    except ArithmeticError:
        digits = _EXACT_DIGITS + 1
    if digits <= _EXACT_DIGITS:
        sheet.write_number(line, column, float(text))
    else:
        sheet.write_string(line, column, text, style)


def _sheet_name(title: str, taken: set[str]) -> str:
    plain = re.sub(r"[\[\]:*?/\\']", " ", title)[:_MAX_SHEET_NAME].strip() or "Table"
    name, n = plain, 1
    while name.lower() in taken:
        n += 1
        name = f"{plain[: _MAX_SHEET_NAME - 4]} {n}"
    taken.add(name.lower())
    return name
