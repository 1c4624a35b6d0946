"""Renders a report as PDF, typeset by Typst from ``report.typ``. The same report gives the same bytes."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import msgspec
from msgspec import UNSET

from ledger.core.errors import UnavailableError
from ledger.export.reports.document import Column, Figure, Report, Section, Table
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
_WIDEST_AMOUNT = 22
"""Characters of an amount that a figure's column holds in one line."""
_HEAD = frozenset({"Period", "Scope", "Records", "Energy known as", "Log"})
"""What stands on the first page too."""
_LINE = 104
"""Characters that one line of a table holds in its usual size; a table that needs more is set smaller."""


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
        "head": [(name, _breakable(value)) for name, value in basis_rows(report) if name in _HEAD],
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


_is_repeated = re.compile(r"inputs: [a-z0-9_]+").fullmatch


def _basis(figure: Figure) -> str:
    """Where an amount that is not of the log alone comes from."""
    if figure.basis == "inputs":
        repeated = _is_repeated(figure.derivation)
        return "as stated in the inputs file" if repeated else "computed from the inputs file alone"
    return "uses a stated input" if figure.basis != "log" else ""


def _figure(figure: Figure, section: Section) -> dict[str, Any]:
    span = ""
    if figure.low is not UNSET and figure.high is not UNSET and figure.low != figure.high:
        span = f"{_marked(figure.low)} to {_marked(figure.high)}"
    return {
        "label": figure.label,
        "value": "" if figure.value is UNSET else _fitting(_marked(figure.value)),
        "unit": figure.unit,
        "range": span,
        "coverage": _given(figure.coverage),
        "reference": "" if figure.reference == section.reference else _given(figure.reference),
        "derivation": figure.derivation,
        "stated": _basis(figure),
        "gap": _given(figure.gap),
    }


def _table(table: Table) -> dict[str, Any]:
    names = [column.name for column in table.columns]
    numbers = [column.unit is not UNSET for column in table.columns]
    shown = table.rows[:_MAX_ROWS]
    places = [
        max((len(_marked(row[at] or "").partition(".")[2]) for row in shown), default=0) if number else 0
        for at, number in enumerate(numbers)
    ]
    rows = [
        [
            ("–" if cell is None else _marked(cell, digits) if number else _breakable(cell))
            for cell, number, digits in zip(row, numbers, places, strict=True)
        ]
        for row in shown
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
    least = [_least(column, at, rows) for at, column in enumerate(table.columns)]
    widths = _widths(table, rows, least)
    return {
        "title": table.title,
        "small": sum(least) > _LINE,
        "unknown": any(None in row for row in shown),
        "columns": [
            {
                "width": width,
                "heading": _heading(column),
                "number": column.unit is not UNSET,
            }
            for column, width in zip(table.columns, widths, strict=True)
        ],
        "rows": rows,
        "left_out": max(0, len(table.rows) - _MAX_ROWS),
        "bars": bars,
        "undrawn": undrawn,
        "chart": "" if table.chart is UNSET else _heading(table.columns[names.index(table.chart)]),
        "derivation": table.derivation,
        "reference": _given(table.reference),
    }


def _widths(table: Table, rows: list[list[str]], least: list[int]) -> list[float]:
    """Characters of each column: what it would like, or its least and a share of what is left of the line.

    Numbers stay whole, text up to a limit, headings by word.
    """
    wanted = []
    for at, column in enumerate(table.columns):
        longest = max((len(row[at].replace(_BREAK, "")) for row in rows), default=0)
        text = longest if column.unit is not UNSET else min(longest, _WIDEST)
        wanted.append(max(text + 2, _NARROWEST, least[at]))
    if sum(wanted) <= _LINE or sum(wanted) == sum(least):
        return [float(width) for width in wanted]
    share = max(0.0, (_LINE - sum(least)) / (sum(wanted) - sum(least)))
    return [low + share * (width - low) for low, width in zip(least, wanted, strict=True)]


def _heading(column: Column) -> str:
    """Label and unit; not twice the same word."""
    if column.unit is UNSET or not column.unit or column.unit in column.label.lower().split():
        return column.label
    return f"{column.label} ({column.unit})"


def _least(column: Column, at: int, rows: list[list[str]]) -> int:
    """How many characters wide a column must be: a number is never broken, text is, at spaces or pieces."""
    heading = max((len(word) for word in _heading(column).split()), default=0)
    if column.unit is not UNSET:
        return max([heading, *(len(row[at]) for row in rows)]) + 2
    pieces = (len(piece) for row in rows for word in row[at].split() for piece in word.split(_BREAK))
    return max([heading, *pieces]) + 2


def _breakable(text: str) -> str:
    """The text, with places to break in words that are too long for a column."""
    return _is_long_word.sub(
        lambda found: _BREAK.join(found[0][at : at + _PIECE] for at in range(0, len(found[0]), _PIECE)), text
    )


def _fitting(amount: str) -> str:
    """An amount, which may break between thousands where it is wider than its column."""
    return amount.replace(",", f",{_BREAK}") if len(amount) > _WIDEST_AMOUNT else amount


def _given(text: Any) -> str:
    return "" if text is UNSET else str(text)


def _marked(text: str, places: int = 0) -> str:
    """An amount with thousands marked and no trailing zeros past ``places``; anything else as it is."""
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, rest = digits.partition(".")
    if not whole.isdigit():
        return text
    rest = rest.rstrip("0").ljust(places, "0")
    return f"{sign}{int(whole):,}{'.' + rest if rest else ''}"
