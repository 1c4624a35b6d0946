"""Checks what witnesses cosigned: that it is this log's history, and that it is enough for a policy."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.audit.report import Findings, Signed
from ledger.audit.sources import Source
from ledger.core.checkpoint import LogKeys, open_checkpoint
from ledger.core.errors import TallystickError, UnavailableError
from ledger.core.note import parse_note
from ledger.core.policy import Policy, cosigned_by

__all__ = ["check_quorum", "read_witnessed"]


def read_witnessed(source: Source, log_keys: LogKeys, findings: Findings) -> list[Signed]:
    """The cosigned checkpoints that a database keeps, newest first, their log's signature verified."""
    found: list[Signed] = []
    try:
        for note in source.witnessed():
            try:
                found.append(Signed(open_checkpoint(note, log_keys), note))
            except TallystickError as error:
                findings.add_error(error, "witnessed", code="bad-checkpoint")
    except UnavailableError as error:
        findings.gap("witnessed", error.what)
    return found


def check_quorum(
    policy: Policy | None, newest: Signed | None, cosigned: Sequence[Signed], findings: Findings
) -> None:
    """Find out whether a quorum of ``policy`` cosigned the newest checkpoint, or one that is kept with it."""
    if policy is None or newest is None:
        return
    most = 0
    for each in (newest, *cosigned):
        try:
            names = cosigned_by(parse_note(each.note), policy)
        except TallystickError as error:
            findings.add_error(error, f"checkpoint {each.checkpoint.size}", code="bad-checkpoint")
            continue
        findings.counts.signatures += len(names)
        if policy.satisfied_by(names):
            if each.checkpoint.size < newest.checkpoint.size:
                findings.note(
                    f"a quorum of witnesses cosigned the tree of {each.checkpoint.size} leaves; the "
                    f"{newest.checkpoint.size - each.checkpoint.size} after it were not witnessed yet"
                )
            return
        most = max(most, len(names))
    findings.add(
        "quorum-missed",
        f"checkpoint {newest.checkpoint.size}",
        f"{most} of the witnesses cosigned, which is not the quorum that is asked for",
        "ask the log's operator why; until then, other people may be shown another history",
    )
