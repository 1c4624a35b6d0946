"""Owns how a report tells people what it stands on: the same words in every rendering."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import UNSET

from ledger.export.reports.document import Report, Scope

__all__ = ["basis_rows", "period", "time_of"]


def basis_rows(report: Report) -> list[tuple[str, str]]:
    """Name and value of everything that a reader needs to judge and to check the report."""
    size = report.checkpoint.split("\n")[1:2]
    root = report.checkpoint.split("\n")[2:3]
    methods = ", ".join(f"{name} {count:,}" for name, count in sorted(report.methods.items())) or "no records"
    rows = [
        ("Report", report.title),
        ("Standard", report.standard),
        ("Subject", report.subject),
        ("Period", period(report.scope)),
        ("Scope", _where(report.scope)),
        ("Records", f"{report.records:,}"),
        ("Energy known as", methods),
        ("Log", report.origin),
        ("Checkpoint", f"size {''.join(size)}, root {''.join(root)}"),
        ("Export", f"manifest SHA-256 {report.export_manifest}"),
        ("Software", report.software),
    ]
    for each in report.factors:
        cited = "; ".join(each.sources)
        rows.append(
            ("Factor set", f"{each.name} {each.version}, {each.records:,} records, {each.digest}: {cited}")
        )
    rows += [("Issuer", text) for text in report.completeness]
    rows += [("Gap", text) for text in report.gaps] or [("Gap", "none known")]
    rows += [("Stated input", f"{name} = {value}") for name, value in sorted(report.inputs.items())]
    if report.inputs_digest is not None:
        signed = (
            "its signature was not checked"
            if report.inputs_signed_by is UNSET
            else f"signed with the key {report.inputs_signed_by}"
        )
        told = f"stated by {report.inputs_stated_by}, SHA-256 {report.inputs_digest}, {signed}"
        rows.append(("Inputs file", told))
    rows.append(
        (
            "How to check",
            "tallystick report verify FOLDER --key REPORTER.pub --export EXPORT --log-key LOG.vkey",
        )
    )
    return rows


def period(scope: Scope) -> str:
    """The period in words."""
    begin = "the beginning" if scope.from_us is UNSET else time_of(scope.from_us)
    end = "the end of the export" if scope.to_us is UNSET else f"before {time_of(scope.to_us)}"
    return f"from {begin} to {end}"


def time_of(us: int) -> str:
    """A time in words, UTC, to the second."""
    when = datetime.fromtimestamp(us // 1_000_000, UTC)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _where(scope: Scope) -> str:
    if not scope.where:
        return "all records of the period"
    return "; ".join(
        f"{name}: {', '.join(value or '(none)' for value in values)}"
        for name, values in sorted(scope.where.items())
    )
