"""Reports for regulators, auditors and customers: one module for each kind, all made from an export."""

from ledger.export.reports.document import Report, Scope, open_report, sign_report
from ledger.export.reports.make import KINDS, Difference, compare, make_report

__all__ = ["KINDS", "Difference", "Report", "Scope", "compare", "make_report", "open_report", "sign_report"]
