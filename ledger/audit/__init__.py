"""Audits logs, exports and single pieces of evidence. Separate from the code that makes them: it shares only
``ledger.core``, and trusts keys alone.
"""

from ledger.audit.report import AuditReport, Counts, Finding, Gap
from ledger.audit.run import audit
from ledger.audit.targets import open_source
from ledger.audit.verify import VerifyReport, verify_data, verify_file

__all__ = [
    "AuditReport",
    "Counts",
    "Finding",
    "Gap",
    "VerifyReport",
    "audit",
    "open_source",
    "verify_data",
    "verify_file",
]
