"""What an audit found: findings with their places, what was not checked, and the verdict that follows.

The verdict follows from these alone: any finding refutes; without one, anything left unchecked makes it
``unknown``; only a log of which everything was read and checked is ``sound``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ledger.core.checkpoint import Checkpoint
from ledger.core.errors import TallystickError

__all__ = ["AuditReport", "Counts", "Finding", "Gap", "Verdict"]

Verdict: TypeAlias = Literal["sound", "refuted", "unknown"]

DEFAULT_LIMIT = 1_000
"""Findings that are kept word for word. Later ones are counted: a broken log can have one for each row."""
_MAX_GAPS = 1_000


@dataclass(frozen=True)
class Finding:
    """A contradiction: ``code`` is a stable slug, ``where`` names a row, leaf, record, tile or file."""

    code: str
    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what} [{self.code}]"
        return f"{text}; {self.remedy}" if self.remedy else text


@dataclass(frozen=True)
class Gap:
    """Something that was not checked, and why."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: not checked: {self.why}"


@dataclass
class Counts:
    """How much was checked. ``rows`` counts the rows of derived tables and of files."""

    statements: int = 0
    records: int = 0
    signatures: int = 0
    tiles: int = 0
    checkpoints: int = 0
    issuers: int = 0
    rows: int = 0


@dataclass(frozen=True)
class AuditReport:
    """The outcome of an audit.

    Args:
        verdict: ``sound``, ``refuted`` or ``unknown``.
        source: what was audited.
        checkpoint: the newest one that the log's key signed, None if there was none.
        note: the same as the signed note: what an auditor keeps, to hold the log to it next time.
        counts: how much was checked.
        findings: the contradictions, in the order in which they were found, up to the limit.
        more_findings: how many came after the limit.
        gaps: what was not checked.
        notes: what the reader should know, without influence on the verdict.
        elapsed_s: how long it took.
    """

    verdict: Verdict
    source: str
    checkpoint: Checkpoint | None
    note: bytes | None
    counts: Counts
    findings: tuple[Finding, ...]
    more_findings: int
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]
    elapsed_s: float


@dataclass(frozen=True)
class Signed:
    """A checkpoint that verified, and its note."""

    checkpoint: Checkpoint
    note: bytes


@dataclass
class Findings:
    """Gathers findings, gaps and counts while an audit runs. Owned by the one thread that audits."""

    limit: int = DEFAULT_LIMIT
    kept: list[Finding] = field(default_factory=list)
    more: int = 0
    gaps: dict[Gap, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def add(self, code: str, where: str, what: str, remedy: str = "") -> None:
        """Note a contradiction."""
        if len(self.kept) < self.limit:
            self.kept.append(Finding(code, where, what, remedy))
        else:
            self.more += 1

    def add_error(self, error: TallystickError, where: str, *, code: str = "") -> None:
        """Note the contradiction that ``error`` describes, at ``where``."""
        what = error.what
        if error.where and error.where not in where:
            what += f" ({error.where})"
        self.add(code or error.code, where, what, error.remedy)

    def gap(self, where: str, why: str) -> None:
        """Note that something was not checked; once for each place and reason."""
        if len(self.gaps) < _MAX_GAPS:
            self.gaps.setdefault(Gap(where, why))
        else:
            self.gaps.setdefault(Gap("further places", "there are too many to name"))

    def note(self, text: str) -> None:
        """Note something that does not bear on the verdict; once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def verdict(self) -> Verdict:
        """What follows from the findings and gaps so far."""
        if self.kept or self.more:
            return "refuted"
        return "unknown" if self.gaps else "sound"

    def report(self, source: str, newest: Signed | None, elapsed_s: float) -> AuditReport:
        """The report, once the audit is done."""
        return AuditReport(
            verdict=self.verdict,
            source=source,
            checkpoint=newest.checkpoint if newest is not None else None,
            note=newest.note if newest is not None else None,
            counts=self.counts,
            findings=tuple(self.kept),
            more_findings=self.more,
            gaps=tuple(self.gaps),
            notes=tuple(self.notes),
            elapsed_s=elapsed_s,
        )
