"""``tallystick audit``: read a whole log and say whether it is sound, trusting its key alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import CANNOT_TELL, REFUTED, SOUND
from cli.options import ApiKeyFile, Json, LogKey, PolicyFile

if TYPE_CHECKING:
    from ledger.audit import AuditReport, Finding
    from ledger.core.policy import Policy

__all__ = [
    "EXAMPLES",
    "audit",
    "described",
    "exit_code",
    "print_findings",
    "print_report",
    "read_trust",
    "read_vkey",
    "run_audit",
]

EXAMPLES = (
    "tallystick audit ledger-data --log-key ledger-data/log.vkey",
    "tallystick audit http://127.0.0.1:8090 --log-key log.vkey --remember seen.txt",
    "tallystick audit http://127.0.0.1:8090 --policy trust.policy",
    "tallystick audit export-2026-01 --log-key log.vkey --json",
)
_SHOWN = 20
"""Findings printed for people; --json has all that were kept."""


def audit(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A service's URL, a ledger's folder or database, or an export."
        ),
    ],
    log_key: LogKey = None,
    policy: PolicyFile = None,
    known_checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A checkpoint seen earlier: the log must extend it."),
    ] = None,
    remember: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Remember the newest checkpoint there; what is there already is a checkpoint seen earlier.",
        ),
    ] = None,
    witness_key: Annotated[
        list[str] | None,
        typer.Option(metavar="VKEY", help="A witness's verifier key, or its file, to check cosignatures."),
    ] = None,
    evidence_only: Annotated[
        bool,
        typer.Option(
            "--evidence-only",
            help="Check what signatures vouch for, not what records say nor the tables derived from them.",
        ),
    ] = False,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Read all of a log and prove or refute it: tree, signatures, receipts, chains, records, sums.

    Exit code 0: sound, everything was read and checked. 1: refuted, each contradiction is named with its
    place. 2: it could not be told, because something could not be read.

    With --json: verdict (sound, refuted or unknown), source, checkpoint (origin, size, root), counts,
    findings (code, where, what, remedy), more_findings, gaps (where, why), notes, elapsed_s.
    """
    from cli.output import print_json

    report = run_audit(
        target,
        log_key,
        policy=policy,
        known_checkpoints=known_checkpoint or (),
        remember=remember,
        witness_keys=witness_key or (),
        evidence_only=evidence_only,
        api_key_file=api_key_file,
    )
    if json:
        print_json(described(report))
    else:
        print_report(report)
    raise typer.Exit(exit_code(report.verdict))


def run_audit(
    target: str,
    log_key: str | None,
    *,
    policy: Path | None = None,
    known_checkpoints: Sequence[Path] = (),
    remember: Path | None = None,
    witness_keys: Sequence[str] = (),
    evidence_only: bool = False,
    api_key_file: Path | None = None,
) -> AuditReport:
    """Audit ``target`` with a progress bar; see the command for the arguments."""
    from cli.progress import progress
    from ledger.audit import audit as audit_log
    from ledger.audit import open_source

    keys, judged_by = read_trust(log_key, policy)
    known = [path.read_bytes() for path in known_checkpoints]
    if remember is not None and remember.exists():
        known.append(remember.read_bytes())
    with progress("auditing leaves") as report_progress:
        report = audit_log(
            open_source(_database_of(target), api_key=_api_key(target, api_key_file)),
            keys,
            known_checkpoints=known,
            policy=judged_by,
            witness_vkeys=[read_vkey(each) for each in witness_keys],
            evidence_only=evidence_only,
            progress=report_progress,
        )
    if remember is not None and report.verdict != "refuted" and report.note is not None:
        _replace(remember, report.note)
    return report


def read_vkey(text: str) -> str:
    """A verifier key given as such or as a file's name."""
    from ledger.core.errors import InvalidError

    if "+" in text and not Path(text).is_file():
        return text.strip()
    try:
        return Path(text).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise InvalidError(
            "is not a verifier key", where=text, remedy="name a file such as log.vkey", code="bad-key"
        ) from None


def read_trust(log_key: str | None, policy: Path | None) -> tuple[str, Policy | None]:
    """The log's verifier keys as text, from the option or from the policy's ``log`` lines; and the policy."""
    from ledger.core.errors import InvalidError
    from ledger.core.note import format_vkey
    from ledger.core.policy import parse_policy

    parsed = None if policy is None else parse_policy(policy.read_bytes())
    if log_key is not None:
        return read_vkey(log_key), parsed
    keys = [] if parsed is None else [log.key for log in parsed.logs]
    if len({key.name for key in keys}) != 1:
        raise InvalidError(
            "the log's verifier key is missing" if not keys else "the policy is about several logs",
            where="--log-key",
            remedy="pass it, or a policy with the `log` lines of one log",
            code="bad-key",
        )
    return "\n".join(format_vkey(key) for key in keys), parsed


def exit_code(verdict: str) -> int:
    """0 sound, 1 refuted, 2 cannot tell."""
    return {"sound": SOUND, "refuted": REFUTED}.get(verdict, CANNOT_TELL)


def described(report: AuditReport) -> dict[str, Any]:
    """The report as documented for programs."""
    checkpoint = report.checkpoint
    return {
        "verdict": report.verdict,
        "source": report.source,
        "checkpoint": None
        if checkpoint is None
        else {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()},
        "counts": asdict(report.counts),
        "findings": [asdict(each) for each in report.findings],
        "more_findings": report.more_findings,
        "gaps": [asdict(each) for each in report.gaps],
        "notes": list(report.notes),
        "elapsed_s": report.elapsed_s,
    }


def print_report(report: AuditReport, *, shown: int = _SHOWN) -> None:
    """Print the report for people, with the first findings; the verdict last, where the eye is."""
    from cli.output import fields, verdict

    checkpoint = report.checkpoint
    rows = [("source", report.source)]
    if checkpoint is not None:
        rows += [
            ("log", checkpoint.origin),
            ("size", f"{checkpoint.size:,}"),
            ("root", checkpoint.root.hex()),
        ]
    rows += [(name, f"{value:,}") for name, value in asdict(report.counts).items() if value]
    fields(rows)
    print_findings(report.findings, report.more_findings, shown=shown)
    fields(("unread", str(gap)) for gap in report.gaps)
    fields(("note", text) for text in report.notes)
    words = {
        "sound": "everything was read and checked",
        "refuted": "the evidence contradicts itself; see above where",
        "unknown": "not everything could be read; what was read holds",
    }
    verdict(report.verdict, f"{words[report.verdict]} ({report.elapsed_s:.1f} s)")


def print_findings(findings: Sequence[Finding], more: int, *, shown: int = _SHOWN) -> None:
    """Print the first findings, each with its place, and how many there are more."""
    from cli.output import fields

    fields(("refuted", str(finding)) for finding in findings[:shown])
    hidden = max(0, len(findings) - shown) + more
    if hidden:
        fields([("refuted", f"and {hidden:,} findings more; --json shows those that were kept")])


def _database_of(target: str) -> str:
    """The database of a ledger's folder, which can be elsewhere; ``target`` if it is something else."""
    from cli.folder import Folder

    folder = Folder(Path(target))
    return folder.database if folder.log_key.is_file() else target


def _api_key(target: str, file: Path | None) -> str | None:
    from cli.client import read_api_key
    from cli.target import is_url

    return read_api_key(file) if is_url(target) else None


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.replace(path)
