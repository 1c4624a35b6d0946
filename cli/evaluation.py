"""``tallystick evaluation``: post quality metrics of what was logged, signed by whoever measured them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import ApiKeyFile, Json, command
from cli.spool import LedgerUrl, LogKey, Timeout
from cli.submission import IssuerName, SigningKeyFile, SubmissionSpool

__all__ = ["app"]

app = typer.Typer(help="Post quality metrics of what was logged.", no_args_is_help=True)


@app.callback()
def evaluation() -> None:
    """Post quality metrics of what was logged."""


@command(
    app,
    "tallystick evaluation submit metrics.csv --evaluator 'judge-7b 1.2' --spool evaluator "
    "--issuer eval.example.com/judge --url https://log.example.com --log-key log.vkey",
    "tallystick evaluation submit metrics.json --evaluator 'annotators, round 3' --spool evaluator --json",
)
def submit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="CSV or JSON: a record, statement or deployment, and metrics as decimal numbers.",
        ),
    ],
    evaluator: Annotated[
        str,
        typer.Option(metavar="WORDS", help="Who or what measured: model, benchmark, people; and version."),
    ],
    spool: SubmissionSpool = None,
    issuer: IssuerName = None,
    url: LedgerUrl = None,
    log_key: LogKey = None,
    api_key_file: ApiKeyFile = None,
    key: SigningKeyFile = None,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> None:
    """Sign evaluations of a file and log them: accuracy, toxicity, human_rating, perplexity, verifier_score.

    Any other metric can be named too. Values are kept to the digit. The issuer's key must be registered with
    the ledger (`tallystick issuers add`); a new spool makes one, `issuer.pub` in it. Sending the same file
    again changes nothing.

    With --json: issuer, new, statements (each leaf_hash, leaf_index, new, and record, statement or
    deployment).
    """
    from cli.output import fields, print_json
    from cli.spool import open_client
    from cli.submission import open_submission, send, told
    from ledger.emit.evaluations import read_evaluations

    contents = read_evaluations(file.read_bytes(), evaluator=evaluator, where=str(file))
    where = open_submission(spool, issuer, new=True)
    client, log = open_client(url, log_key, api_key_file)
    found = told(where, send(where, key, contents, client, log, timeout))
    if json:
        print_json(found)
        return
    count = len(found["statements"])
    fields(
        [
            ("issuer", found["issuer"]),
            ("evaluations", f"{count:,} in the log, {found['new']:,} of them new"),
            ("leaves", f"{found['statements'][0]['leaf_index']} to {found['statements'][-1]['leaf_index']}"),
        ]
    )
