"""``tallystick doctor``: is everything in place that recording needs, and if not, what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import ApiKeyFile, Json
from cli.spool import KeyFile, LedgerUrl, LogKey, SpoolDirectory, chosen_spool

__all__ = ["EXAMPLES", "doctor"]

EXAMPLES = (
    "tallystick doctor",
    "tallystick doctor /var/lib/tallystick/spool --url https://log.example.com --log-key log.vkey --json",
)

Limit = Annotated[
    int, typer.Option("--spool-limit-bytes", metavar="N", min=1, help="The recorder's spool_limit_bytes.")
]


def doctor(
    directory: SpoolDirectory = None,
    url: LedgerUrl = None,
    log_key: LogKey = None,
    api_key_file: ApiKeyFile = None,
    key: KeyFile = None,
    spool_limit_bytes: Limit = 4 << 30,
    json: Json = False,
) -> None:
    """Check spool, keys, ledger, clock, settings, meters as a recorder would find them, and say what to do.

    Run it as the user that records, with the same TALLYSTICK_* variables. Exit code 0: all is well, or
    worth a warning only; 1: something is wrong; 2: it could not be checked.

    With --json: outcome (ok, warning or failed: the worst of them), findings (each with check, outcome, found
    and, where it is not ok, remedy).
    """
    import os
    from dataclasses import asdict
    from pathlib import Path

    from cli.client import read_api_key
    from cli.errors import REFUTED
    from cli.output import print_json
    from ledger.emit.doctor import Finding, Setup, examine

    given_key = key or os.environ.get("TALLYSTICK_KEY")
    setup = Setup(
        spool=chosen_spool(directory),
        url=url or os.environ.get("TALLYSTICK_URL") or None,
        log_key=log_key or os.environ.get("TALLYSTICK_LOG_KEY") or None,
        api_key=read_api_key(api_key_file),
        key=Path(given_key) if given_key else None,
        limit_bytes=spool_limit_bytes,
    )
    findings: list[Finding] = []
    for finding in examine(setup):
        findings.append(finding)
        if not json:
            _show(finding)
    outcomes = {finding.outcome for finding in findings}
    worst = next((each for each in ("failed", "warning") if each in outcomes), "ok")
    if json:
        told = [{name: value for name, value in asdict(each).items() if value} for each in findings]
        print_json({"outcome": worst, "findings": told})
    if worst == "failed":
        raise typer.Exit(REFUTED)


def _show(finding: object) -> None:
    from rich.text import Text

    from cli.output import printable, stdout
    from ledger.emit.doctor import Finding

    assert isinstance(finding, Finding)  # noqa: S101 - for the types alone
    style = {"ok": "green", "warning": "yellow", "failed": "bold red"}[finding.outcome]
    console = stdout()
    console.print(
        Text.assemble((f"{finding.outcome:<8}", style), f"{finding.check}: ", printable(finding.found)),
        soft_wrap=True,
    )
    if finding.remedy and finding.outcome != "ok":
        console.print(Text(" " * 8 + "-> " + printable(finding.remedy)), soft_wrap=True)
