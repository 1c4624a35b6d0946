"""``tallystick serve``: run the HTTP service over a ledger's folder."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from cli.options import Directory, Json

__all__ = ["EXAMPLES", "serve"]

EXAMPLES = (
    "tallystick serve ledger-data",
    "tallystick serve ledger-data --host 0.0.0.0 --port 8090 --log-level warning",
    "TALLYSTICK_DATABASE=postgresql+psycopg:///tally tallystick serve ledger-data",
)


def serve(
    directory: Directory,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Address to listen on. Others than this need a TLS proxy."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8090,
    log_level: Annotated[
        Literal["error", "warning", "info", "debug"], typer.Option(help="How much to log, to stderr.")
    ] = "info",
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(help="Log lines for people, or JSON objects for collectors."),
    ] = "text",
    json: Json = False,
) -> None:
    """Run the service until it is told to stop (Ctrl-C, SIGTERM).

    It checks the log against itself first, and does not start on a contradiction. Other settings come from
    the environment (TALLYSTICK_...): see the reference of the service.

    With --json: directory, url, pid; written before it listens. GET /healthz tells when it does.
    """
    from cli.folder import open_folder
    from cli.output import note, print_json
    from ledger.service.server import serve as serve_log

    folder = open_folder(directory)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if json:
        print_json({"directory": str(directory), "url": url, "pid": os.getpid()})
    else:
        note(f"serving {directory} at {url} (reference: {url}/docs); stop with Ctrl-C")
    serve_log(
        database=folder.database,
        log_key=folder.log_key,
        published=folder.published,
        host=host,
        port=port,
        log_level=log_level,
        log_format=log_format,
        policy=folder.policy,
    )
