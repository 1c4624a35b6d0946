"""Renders a report for people, in one of ``FORMATS``; the signed JSON is what counts."""

from __future__ import annotations

from collections.abc import Mapping

from ledger.core.errors import InvalidError, UnavailableError
from ledger.export.reports.document import Report

__all__ = ["FORMATS", "render", "unfaithful"]

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


def unfaithful(report: Report, renderings: Mapping[str, bytes]) -> dict[str, str]:
    """Which of ``renderings`` (form to bytes) cannot be shown to say what ``report`` says, and why.

    No signature covers them, and people read them: so they are made again and compared. Other versions of
    what renders give other bytes, so a difference alone does not show that somebody changed the file.
    """
    found = {}
    for form, data in renderings.items():
        try:
            if render(report, form) == data:
                continue
        except UnavailableError as error:
            found[form] = f"cannot be made again to compare: {error}"
            continue
        found[form] = (
            "is not what report.json gives here: it was changed, or other versions of tallystick and its "
            "libraries made it; rely on report.json alone"
        )
    return found
