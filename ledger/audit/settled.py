"""What the verification of a settlement bundle comes to, and what a bundle that holds proves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec import UNSET

from ledger.audit.report import Findings
from ledger.core import settlement as form
from ledger.core.checkpoint import Checkpoint
from ledger.core.records import Record
from ledger.core.statements import SignedStatement

__all__ = ["Settled", "SettledBatch", "SettledRecord", "proven_by_settlement"]


@dataclass(frozen=True)
class SettledRecord:
    """A record of a bundle that was shown to be in the log, with its corrections in place."""

    record: Record
    view: Record
    issuer: str
    leaf_index: int
    position: int
    request_salt: bytes | None


@dataclass(frozen=True)
class SettledBatch:
    """A batch statement and its receipt: what an acknowledgement names."""

    statement: SignedStatement
    leaf_index: int
    receipt: bytes


@dataclass(frozen=True)
class Settled:
    """What a verification came to; believe it only if ``findings`` are none.

    Attributes:
        header: what the bundle says it is about, if that could be read.
        checkpoint: the verified tree head.
        batches: the statements that hold the records.
        totals: the lines of totals, as they are in the file.
        records: number of records verified.
        corrected_records: of these, with restated figures.
        opened: records whose request id can be matched.
    """

    header: form.SettlementHeader | None
    checkpoint: Checkpoint | None
    batches: tuple[SettledBatch, ...]
    totals: tuple[form.SettlementTotal, ...]
    records: int
    corrected_records: int
    opened: int
    findings: Findings


def proven_by_settlement(settled: Settled) -> tuple[str, ...]:
    """What a bundle without findings shows, sentence by sentence."""
    header, checkpoint = settled.header, settled.checkpoint
    if header is None or checkpoint is None:
        return ()
    begin = "the beginning" if header.from_us is UNSET else _day(header.from_us)
    end = "the end" if header.to_us is UNSET else _day(header.to_us)
    issuers = sorted({each.issuer for each in header.issuers})
    restated = f", {settled.corrected_records} of them restated" if settled.corrected_records else ""
    return (
        f"the log {checkpoint.origin} sealed this bundle of {settled.records} records of tenant "
        f"{header.tenant}, started from {begin} to before {end}{restated}",
        f"each record is, to the byte, in one of {len(settled.batches)} statements that {', '.join(issuers)} "
        f"signed and the log's tree of {checkpoint.size} leaves has, with a receipt for each",
        f"{len(settled.totals)} totals by day and model follow from the records",
    )


def _day(time_us: int) -> str:
    try:
        return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return f"microsecond {time_us}"
