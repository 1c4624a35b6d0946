"""Audits logs, exports and single pieces of evidence. Separate from the code that makes them: it shares only
``ledger.core``, and trusts keys alone.
"""

from ledger.audit.audit import audit
from ledger.audit.report import AuditReport, Counts, Finding, Gap

__all__ = ["AuditReport", "Counts", "Finding", "Gap", "audit"]
