"""``tallystick verify``: check one piece of evidence offline, with the log's verifier key alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, LogKey, PolicyFile

if TYPE_CHECKING:
    from ledger.audit import VerifyReport

__all__ = ["EXAMPLES", "described_evidence", "print_evidence", "run_verify", "verify"]

EXAMPLES = (
    "tallystick verify export-2026-01 --log-key log.vkey",
    "tallystick verify receipt.json --log-key log.vkey --issuer-key issuer.pub",
    "tallystick verify entry.tlog-proof --statement statement.cose --policy trust.policy",
    "tallystick verify receipt.cose --statement statement.cose --log-key log.vkey --json",
)


def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The evidence: a file, or the folder of an export.")
    ],
    log_key: LogKey = None,
    policy: PolicyFile = None,
    statement: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The statement, for a receipt that comes without it.")
    ] = None,
    issuer_key: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="PEM of an issuer's key, to check its signature too."),
    ] = None,
    witness_key: Annotated[
        list[str] | None, typer.Option(metavar="VKEY", help="A witness's verifier key, or its file.")
    ] = None,
    quorum: Annotated[
        int, typer.Option(min=0, help="How many of the witnesses must have cosigned; not beside a policy.")
    ] = 0,
    json: Json = False,
) -> None:
    """Check evidence offline: a receipt, statement, record proof, tlog-proof, checkpoint or export.

    Also a trace and a settlement bundle. What a file is, is told by its content; a quorum or a policy counts
    for all kinds, and bare receipts, which carry no cosignatures, cannot meet it. Exit code 0: it holds, and
    what it proves is said. 1: refuted. 2: it could not be told, because something needed is missing.

    With --json: verdict (sound, refuted or unknown), kind, source, proves, findings (code, where, what,
    remedy), gaps (where, why), notes, elapsed_s, and for an export audit (as of `tallystick audit`).
    """
    from cli.audit import exit_code
    from cli.output import print_json

    report = run_verify(
        file,
        log_key,
        policy=policy,
        statement=statement,
        issuer_keys=issuer_key or (),
        witness_keys=witness_key or (),
        quorum=quorum,
    )
    if json:
        print_json(described_evidence(report))
    else:
        print_evidence(report)
    raise typer.Exit(exit_code(report.verdict))


def run_verify(
    file: Path,
    log_key: str | None,
    *,
    policy: Path | None = None,
    statement: Path | None = None,
    issuer_keys: Sequence[Path] = (),
    witness_keys: Sequence[str] = (),
    quorum: int = 0,
) -> VerifyReport:
    """Verify ``file``; see the command for the arguments."""
    from cli.audit import read_trust, read_vkey
    from cli.keys import load_public
    from ledger.audit import verify_file

    keys, judged_by = read_trust(log_key, policy)
    return verify_file(
        file,
        keys,
        policy=judged_by,
        statement=statement,
        issuer_keys=[load_public(each) for each in issuer_keys],
        witness_vkeys=[read_vkey(each) for each in witness_keys],
        quorum=quorum,
    )


def described_evidence(report: VerifyReport) -> dict[str, Any]:
    """The report as documented for programs."""
    from cli.audit import described

    told = {
        "verdict": report.verdict,
        "kind": report.kind,
        "source": report.source,
        "proves": list(report.proves),
        "findings": [asdict(each) for each in report.findings],
        "gaps": [asdict(each) for each in report.gaps],
        "notes": list(report.notes),
        "elapsed_s": report.elapsed_s,
    }
    return told if report.audit is None else told | {"audit": described(report.audit)}


def print_evidence(report: VerifyReport) -> None:
    """Print the report for people."""
    from cli.audit import print_findings
    from cli.output import fields, verdict

    fields([("source", report.source), ("kind", report.kind or "unknown")])
    fields(("proves", text) for text in report.proves)
    print_findings(report.findings, 0)
    fields(("unread", str(gap)) for gap in report.gaps)
    fields(("note", text) for text in report.notes)
    words = {
        "sound": "it holds",
        "refuted": "it does not hold; see above why",
        "unknown": "something that belongs to it could not be checked",
    }
    verdict(report.verdict, words[report.verdict])
