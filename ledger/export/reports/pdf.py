"""Renders a report as PDF, typeset by Typst from ``report.typ``. The same report gives the same bytes."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import msgspec
from msgspec import UNSET

from ledger.core.errors import UnavailableError
from ledger.export.reports.document import Figure, Report, Table
from ledger.export.reports.words import basis_rows

__all__ = ["render_pdf"]

_MAX_ROWS = 200
"""Rows of a table that the PDF shows; the workbook and the JSON have all."""
_MAX_BARS = 24


def render_pdf(report: Report) -> bytes:
    """The document's bytes.

    Raises:
        UnavailableError: Typst is not installed.
    """
    try:
        import typst
    except ImportError:
        raise UnavailableError(
            "Typst is not installed", remedy="pip install 'tallystick[reports]'", code="missing-package"
        ) from None
    template = files("ledger.export.reports").joinpath("report.typ").read_bytes()
    made: bytes = typst.compile(
        template,
        format="pdf",
        sys_inputs={"report": msgspec.json.encode(_shown(report)).decode()},
        ignore_system_fonts=True,  # the fonts that Typst brings: the same pages everywhere
    )
    return made


def _shown(report: Report) -> dict[str, Any]:
    """What the template prints: plain text only, amounts with thousands marked."""
    return {
        "title": report.title,
        "standard": report.standard,
        "subject": report.subject,
        "basis": basis_rows(report),
        "sections": [
            {
                "title": section.title,
                "reference": _given(section.reference),
                "text": list(section.text),
                "figures": [_figure(figure) for figure in section.figures],
                "tables": [_table(table) for table in section.tables],
            }
            for section in report.sections
        ],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    span = ""
    if figure.low is not UNSET and figure.high is not UNSET:
        span = f"{_marked(figure.low)} to {_marked(figure.high)}"
    return {
        "label": figure.label,
        "value": "" if figure.value is UNSET else _marked(figure.value),
        "unit": figure.unit,
        "range": span,
        "coverage": _given(figure.coverage),
        "reference": _given(figure.reference),
        "derivation": figure.derivation,
        "stated": figure.basis != "log",
        "gap": _given(figure.gap),
    }


def _table(table: Table) -> dict[str, Any]:
    names = [column.name for column in table.columns]
    numbers = [column.unit is not UNSET for column in table.columns]
    rows = [
        [
            ("–" if cell is None else _marked(cell) if number else cell)
            for cell, number in zip(row, numbers, strict=True)
        ]
        for row in table.rows[:_MAX_ROWS]
    ]
    bars: list[dict[str, Any]] = []
    if table.chart is not UNSET:
        at = names.index(table.chart)
        drawn = [(row[0] or "–", row[at]) for row in table.rows if row[at] is not None][:_MAX_BARS]
        most = max((float(value) for _, value in drawn if value is not None), default=0.0)
        bars = [
            {"label": label, "value": _marked(value), "share": float(value) / most if most > 0 else 0.0}
            for label, value in drawn
            if value is not None
        ]
    return {
        "title": table.title,
        "columns": [
            {
                "label": column.label,
                "unit": "" if column.unit is UNSET else column.unit,
                "number": column.unit is not UNSET,
            }
            for column in table.columns
        ],
        "rows": rows,
        "left_out": max(0, len(table.rows) - _MAX_ROWS),
        "bars": bars,
        "chart": "" if table.chart is UNSET else table.columns[names.index(table.chart)].label,
        "derivation": table.derivation,
        "reference": _given(table.reference),
    }


def _given(text: Any) -> str:
    return "" if text is UNSET else str(text)


def _marked(text: str) -> str:
    """An amount with thousands marked and trailing zeros gone; anything else as it is."""
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, rest = digits.partition(".")
    if not whole.isdigit():
        return text
    rest = rest.rstrip("0")
    return f"{sign}{int(whole):,}{'.' + rest if rest else ''}"
