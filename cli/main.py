"""The command line: one module for each noun. Commands import what they need when run: help is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import (
    admin,
    api_keys,
    audit,
    backup,
    budgets,
    compare,
    completeness,
    correction,
    cost,
    db,
    demo,
    doctor,
    erase,
    evaluation,
    export,
    factors,
    forecast,
    init,
    issuers,
    keys,
    log_key,
    monitor,
    prices,
    proxy,
    publish,
    query,
    receipts,
    reconcile,
    records,
    reports,
    retention,
    serve,
    settlement,
    spool,
    trace,
    verify,
    witness,
)
from cli.errors import Commands
from cli.options import Json, command, examples

__all__ = ["app", "main"]

app = typer.Typer(
    name="tallystick",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "tallystick demo",
        "tallystick init ledger-data --origin log.example.com/tallystick",
        "tallystick serve ledger-data",
        "tallystick audit http://127.0.0.1:8090 --log-key ledger-data/log.vkey",
    ),
)


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="TALLYSTICK_DEBUG")
    ] = False,
) -> None:
    """Verifiable records of which model made which tokens, at what energy and carbon.

    Exit codes: 0 done (for audit and verify: sound), 1 refuted, 2 could not be done or told.
    """


@command(app, "tallystick version", "tallystick version --json")
def version(json: Json = False) -> None:
    """Show the version.

    With --json: version, python.
    """
    import platform

    from cli.output import print_json
    from ledger import __version__

    if json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        print(f"tallystick {__version__}")


command(app, *init.EXAMPLES)(init.init)
command(app, *serve.EXAMPLES)(serve.serve)
app.add_typer(db.app, name="db")
command(app, *publish.EXAMPLES)(publish.publish)
command(app, *backup.BACKUP_EXAMPLES)(backup.backup)
command(app, *backup.RESTORE_EXAMPLES)(backup.restore)
command(app, *proxy.EXAMPLES)(proxy.proxy)
app.add_typer(keys.app, name="keys")
app.add_typer(api_keys.app, name="api-keys")
app.add_typer(budgets.app, name="budgets")
app.add_typer(issuers.app, name="issuers")
app.add_typer(admin.app, name="admin")
app.add_typer(retention.app, name="retention")
app.add_typer(retention.hold_app, name="hold")
command(app, *erase.EXAMPLES)(erase.erase)
app.add_typer(records.app, name="records")
app.add_typer(receipts.app, name="receipt")
app.add_typer(spool.app, name="spool")
app.add_typer(factors.app, name="factors")
app.add_typer(prices.app, name="prices")
app.add_typer(cost.app, name="cost")
app.add_typer(evaluation.app, name="evaluation")
app.add_typer(correction.app, name="correction")
app.add_typer(export.app, name="export")
app.add_typer(reports.app, name="report")
app.add_typer(witness.app, name="witness")
app.add_typer(log_key.app, name="log-key")
app.add_typer(settlement.app, name="settlement")
command(app, *audit.EXAMPLES)(audit.audit)
command(app, *verify.EXAMPLES)(verify.verify)
command(app, *trace.EXAMPLES)(trace.trace)
command(app, *monitor.EXAMPLES)(monitor.monitor)
command(app, *doctor.EXAMPLES)(doctor.doctor)
command(app, *completeness.EXAMPLES)(completeness.completeness)
command(app, *forecast.EXAMPLES)(forecast.forecast)
command(app, *query.QUERY_EXAMPLES)(query.query)
command(app, *compare.EXAMPLES)(compare.compare)
command(app, *query.SQL_EXAMPLES)(query.sql)
command(app, *reconcile.EXAMPLES)(reconcile.reconcile)
command(app, *demo.EXAMPLES)(demo.demo)
command(
    app,
    "tallystick rollups demo-data",
    "tallystick rollups demo-data --by hour --by tenant --from 2026-01-01 --json",
)(records.rollups)


def main() -> None:
    """Entry point of the installed command."""
    app(prog_name="tallystick")
