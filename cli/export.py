"""``tallystick export``: write the ledger in forms that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Directory, From, Json, To, command

__all__ = ["app"]

app = typer.Typer(help="Export records with their proofs.", no_args_is_help=True)


@app.callback()
def export() -> None:
    """Export records with their proofs."""


@command(
    app,
    "tallystick export parquet ledger-data export-2026-01 --from 2026-01-01 --to 2026-02-01",
    "tallystick export parquet ledger-data export-all --json",
    "tallystick export parquet ledger-data export-all --resume",
)
def parquet(
    directory: Directory,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder to write; must not exist, or be empty, unless --resume."),
    ],
    from_: From = None,
    to: To = None,
    every_statement: Annotated[
        bool | None,
        typer.Option(
            "--every-statement/--needed-statements",
            help="Whether to include all statements, which proves that no record was left out. "
            "Default: only without a period.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with an export that was interrupted, and add what is new to one that is there. "
            "Its files stay; the manifest and the proofs are made anew, to the newest checkpoint.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write records as Parquet, by day, with the proofs and a signed manifest. DuckDB and others read it.

    With --json: directory, records, added_records, statements, every_statement, files, size_bytes, tree_size.
    """
    from dataclasses import asdict

    from cli import figures
    from cli.folder import open_folder
    from cli.output import fields, note, print_json
    from cli.progress import progress
    from ledger.export.parquet import export_parquet
    from ledger.keyfiles import load_private_key

    folder = open_folder(directory)
    store = folder.open()
    try:
        with progress("exporting leaves") as report:
            summary = export_parquet(
                store,
                out,
                log_key=load_private_key(folder.log_key),
                from_us=figures.parse_time(from_, "--from"),
                to_us=figures.parse_time(to, "--to"),
                every_statement=every_statement,
                resume=resume,
                progress=report,
            )
    finally:
        store.close()
    made = asdict(summary) | {"directory": str(out)}
    if json:
        print_json(made)
        return
    fields((name.replace("_", " "), str(value)) for name, value in made.items())
    note(f"\nNext: tallystick verify {out} --log-key {folder.vkey}")


@command(
    app,
    "tallystick export focus export-2026-01 focus.csv --account 4711 --provider 'Example Cloud'",
    "tallystick export focus export-all focus.csv --account 4711 --provider X --from 2026-01-01 --json",
)
def focus(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="CSV file to write; replaced if it is there.")],
    account: Annotated[str, typer.Option(metavar="ID", help="Id of the billing account.")],
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Who provides, where a deployment names no provider.")
    ],
    from_: From = None,
    to: To = None,
    json: Json = False,
) -> None:
    """Write costs as a FOCUS 1.1 dataset, for FinOps tools: by day, tenant, deployment and currency.

    With --json: file, rows, records, without_cost (records that state no cost: they are in no row).
    """
    from dataclasses import asdict

    from cli import figures
    from cli.output import fields, print_json
    from ledger.export.focus import write_focus

    summary = write_focus(
        export,
        out,
        account=account,
        provider=provider,
        from_us=figures.parse_time(from_, "--from"),
        to_us=figures.parse_time(to, "--to"),
    )
    made = asdict(summary) | {"file": str(out)}
    if json:
        print_json(made)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in made.items())
