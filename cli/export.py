"""``tallystick export``: write the ledger in forms that others read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cli.options import Directory, From, Json, To, command

if TYPE_CHECKING:
    from ledger.export.csv import TableSummary
    from ledger.export.query import Question

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
    from ledger.signers import load_signer

    folder = open_folder(directory)
    store = folder.open()
    try:
        with progress("exporting leaves") as report:
            summary = export_parquet(
                store,
                out,
                log_key=load_signer(folder.log_key),
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


_Export: TypeAlias = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")]
_File: TypeAlias = Annotated[
    Path, typer.Argument(metavar="FILE", help="File to write; replaced if it is there.")
]
_Where: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="NAME=VALUE",
        help="Only records with this value, as in `tallystick query`; repeat a name for more values.",
    ),
]
_AsLogged: TypeAlias = Annotated[
    bool, typer.Option("--as-logged", help="Figures as first logged, without later corrections.")
]


@command(
    app,
    "tallystick export csv export-2026-01 records.csv --where tenant=t-7",
    "tallystick export csv export-all records.csv --from 2026-01-01 --to 2026-02-01 --json",
    name="csv",
)
def csv_(
    export: _Export,
    out: _File,
    where: _Where = None,
    from_: From = None,
    to: To = None,
    as_logged: _AsLogged = False,
    json: Json = False,
) -> None:
    """Write records as CSV: one line each, integers with their units, no cell a spreadsheet would compute.

    With --json: file, records, corrected_records, sheets (0).
    """
    from ledger.export.csv import write_csv

    _table(write_csv, export, out, where, from_, to, as_logged, json)


@command(
    app,
    "tallystick export xlsx export-2026-01 records.xlsx --where tenant=t-7",
    "tallystick export xlsx export-all records.xlsx --from 2026-01-01 --to 2026-02-01 --json",
)
def xlsx(
    export: _Export,
    out: _File,
    where: _Where = None,
    from_: From = None,
    to: To = None,
    as_logged: _AsLogged = False,
    json: Json = False,
) -> None:
    """Write records as a workbook, on as many sheets as Excel's limit of rows asks for.

    With --json: file, records, corrected_records, sheets.
    """
    from ledger.export.xlsx_records import write_xlsx

    _table(write_xlsx, export, out, where, from_, to, as_logged, json)


@command(
    app,
    "tallystick export iceberg export-all warehouse",
    "tallystick export iceberg export-all warehouse --json",
)
def iceberg(
    export: _Export,
    warehouse: Annotated[
        Path,
        typer.Argument(metavar="WAREHOUSE", help="Folder of the catalogue and its tables; made if need be."),
    ],
    json: Json = False,
) -> None:
    """Append what is new in an export to Apache Iceberg tables: records, by day, and statements.

    The catalogue is a SQLite file, catalog.db. Run it after each `export parquet --resume`.

    With --json: warehouse, records, added_records, added_files, added_statements, tree_size, metadata (the
    file that engines open).
    """
    import logging

    from ledger.export.iceberg import write_iceberg

    logging.getLogger("pyiceberg").setLevel(logging.ERROR)  # it warns that lists have no statistics
    _show(write_iceberg(export, warehouse), warehouse, json)


@command(
    app,
    "tallystick export otlp export-2026-01 --endpoint http://localhost:4318 --where tenant=t-7",
    "tallystick export otlp export-2026-01 --file spans.jsonl --json",
)
def otlp(
    export: _Export,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Collector to send to (OTLP over HTTP). Headers that it wants, such as "
            "a token, are read from OTEL_EXPORTER_OTLP_HEADERS.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or a file to write: OTLP JSON, one request a line.")
    ] = None,
    where: _Where = None,
    from_: From = None,
    to: To = None,
    as_logged: _AsLogged = False,
    json: Json = False,
) -> None:
    """Give records as OpenTelemetry spans, by the GenAI conventions, with energy, carbon and cost.

    Exits with 1 if the collector rejected spans. With --json: spans, requests, rejected.
    """
    from cli.progress import progress
    from ledger.core.errors import InvalidError
    from ledger.export.otlp import send_otlp, write_otlp

    question = _question(where, from_, to, as_logged)
    if (endpoint is None) is (file is None):
        raise InvalidError("give either --endpoint or --file", remedy="see --help", code="bad-parameter")
    with progress("giving spans") as report:
        if file is not None:
            summary = write_otlp(export, file, question, progress=report)
        else:
            summary = send_otlp(export, str(endpoint), question, progress=report)
    _show(summary, file or export, json)
    if summary.rejected:
        raise typer.Exit(1)


@command(
    app,
    "tallystick export openlineage export-all lineage.ndjson",
    "tallystick export openlineage export-all lineage.ndjson --from 2026-01-01 --json",
)
def openlineage(
    export: _Export,
    out: _File,
    where: _Where = None,
    from_: From = None,
    to: To = None,
    as_logged: _AsLogged = False,
    json: Json = False,
) -> None:
    """Write OpenLineage events, one a line: each deployment's days, from model to log, and the export itself.

    With --json: file, events.
    """
    from ledger.export.openlineage import write_openlineage

    _show(write_openlineage(export, out, _question(where, from_, to, as_logged)), out, json)


def _question(where: list[str] | None, from_: str | None, to: str | None, as_logged: bool) -> Question:
    from cli.figures import parse_time
    from cli.query import parse_conditions
    from ledger.export.query import Question

    return Question(
        where=parse_conditions(where or ()),
        from_us=parse_time(from_, "--from"),
        to_us=parse_time(to, "--to"),
        corrected=not as_logged,
    )


def _table(
    write: Callable[..., TableSummary],
    export: Path,
    out: Path,
    where: list[str] | None,
    from_: str | None,
    to: str | None,
    as_logged: bool,
    json: bool,
) -> None:
    from cli.progress import progress

    question = _question(where, from_, to, as_logged)
    with progress("writing records") as report:
        summary = write(export, out, question, progress=report)
    _show(summary, out, json)


def _show(summary: Any, out: Path, json: bool) -> None:
    """Show a summary: the fields of a dataclass."""
    from dataclasses import asdict

    from cli.output import fields, print_json

    made = {name: str(out) if isinstance(each, Path) else each for name, each in asdict(summary).items()}
    if json:
        print_json(made)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in made.items())


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
    """Write costs as a FOCUS 1.2 dataset, for FinOps tools: by day, tenant, deployment and currency.

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
