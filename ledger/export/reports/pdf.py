"""Renders a report as PDF, typeset by Typst from ``report.typ``. The same report gives the same bytes."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import msgspec
from msgspec import UNSET

from ledger.core.errors import UnavailableError
from ledger.export.reports.document import Figure, Report, Section, Table
from ledger.export.reports.words import basis_rows

__all__ = ["render_pdf"]

_MAX_ROWS = 200
"""Rows of a table that the PDF shows; the workbook and the JSON have all."""
_MAX_BARS = 31
"""A month of days."""
_PIECE = 16
_is_long_word = re.compile(r"[^\s\u200b]{24,}")
_BREAK = "\u200b"
"""A space of no width: long digests and names may break there."""
_WIDEST = 44
"""Characters of a text column beyond which its share of the page grows no more."""
_NARROWEST = 4
_LINE = 104
"""Characters that one line of a table holds in its usual size; a wider table is set smaller."""


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
        "basis": [(name, _breakable(value)) for name, value in basis_rows(report)],
        "sections": [
            {
                "title": section.title,
                "reference": _given(section.reference),
                "text": list(section.text),
                "figures": [_figure(figure, section) for figure in section.figures],
                "tables": [_table(table) for table in section.tables],
            }
            for section in report.sections
        ],
    }


def _figure(figure: Figure, section: Section) -> dict[str, Any]:
    span = ""
    if figure.low is not UNSET and figure.high is not UNSET:
        span = f"{_marked(figure.low)} to {_marked(figure.high)}"
    return {
        "label": figure.label,
        "value": "" if figure.value is UNSET else _marked(figure.value),
        "unit": figure.unit,
        "range": span,
        "coverage": _given(figure.coverage),
        "reference": "" if figure.reference == section.reference else _given(figure.reference),
        "derivation": figure.derivation,
        "stated": figure.basis != "log",
        "gap": _given(figure.gap),
    }


def _table(table: Table) -> dict[str, Any]:
    names = [column.name for column in table.columns]
    numbers = [column.unit is not UNSET for column in table.columns]
    rows = [
        [
            ("–" if cell is None else _marked(cell) if number else _breakable(cell))
            for cell, number in zip(row, numbers, strict=True)
        ]
        for row in table.rows[:_MAX_ROWS]
    ]
    bars: list[dict[str, Any]] = []
    undrawn = 0
    if table.chart is not UNSET:
        at = names.index(table.chart)
        drawn = [(_breakable(row[0] or "–"), row[at]) for row in table.rows if row[at] is not None]
        undrawn, drawn = max(0, len(drawn) - _MAX_BARS), drawn[:_MAX_BARS]
        most = max((float(value) for _, value in drawn if value is not None), default=0.0)
        bars = [
            {"label": label, "value": _marked(value), "share": float(value) / most if most > 0 else 0.0}
            for label, value in drawn
            if value is not None
        ]
    widths = _widths(table, rows)
    return {
        "title": table.title,
        "small": sum(widths) > _LINE,
        "columns": [
            {
                "width": width,
                "label": column.label,
                "unit": "" if column.unit is UNSET else column.unit,
                "number": column.unit is not UNSET,
            }
            for column, width in zip(table.columns, widths, strict=True)
        ],
        "rows": rows,
        "left_out": max(0, len(table.rows) - _MAX_ROWS),
        "bars": bars,
        "undrawn": undrawn,
        "chart": "" if table.chart is UNSET else table.columns[names.index(table.chart)].label,
        "derivation": table.derivation,
        "reference": _given(table.reference),
    }


def _widths(table: Table, rows: list[list[str]]) -> list[int]:
    """How many characters wide each column should be: numbers whole, text up to a limit, headings by word."""
    widths = []
    for at, column in enumerate(table.columns):
        heading = column.label if column.unit is UNSET else f"{column.label} ({column.unit})"
        cells = [len(row[at].replace(_BREAK, "")) for row in rows]
        words = [len(word) for word in heading.split()]
        longest = max(cells, default=0)
        text = longest if column.unit is not UNSET else min(longest, _WIDEST)
        widths.append(max(text, _NARROWEST, *words) + 2)
    return widths


def _breakable(text: str) -> str:
    """The text, with places to break in words that are too long for a column."""
    return _is_long_word.sub(
        lambda found: _BREAK.join(found[0][at : at + _PIECE] for at in range(0, len(found[0]), _PIECE)), text
    )


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
