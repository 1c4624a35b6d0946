"""Audits logs, exports and single pieces of evidence. Separate from the code that makes them: it shares only
``ledger.core``, and trusts keys alone.
"""

from ledger.audit.report import AuditReport, Counts, Finding, Gap
from ledger.audit.run import audit
from ledger.audit.targets import open_source

__all__ = ["AuditReport", "Counts", "Finding", "Gap", "audit", "open_source"]
