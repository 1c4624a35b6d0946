"""Renders a report for people, in one of ``FORMATS``; the signed JSON is what counts."""

from __future__ import annotations

from ledger.core.errors import InvalidError
from ledger.export.reports.document import Report

__all__ = ["FORMATS", "render"]

FORMATS = ("xlsx", "pdf")


def render(report: Report, form: str) -> bytes:
    """The file's bytes; the same report gives the same bytes.

    Raises:
        InvalidError: an unknown format. UnavailableError: what renders it is not installed.
    """
    if form == "xlsx":
        from ledger.export.reports.xlsx import render_xlsx

        return render_xlsx(report)
    if form == "pdf":
        from ledger.export.reports.pdf import render_pdf

        return render_pdf(report)
    raise InvalidError(
        f"cannot render as {form!r}", remedy=f"use one of {', '.join(FORMATS)}", code="bad-parameter"
    )
