"""``tallystick publish``: the tree in an object store, where reads need no service."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Directory, Json

__all__ = ["EXAMPLES", "publish"]

EXAMPLES = (
    "tallystick publish ledger-data /srv/www/log",
    "AWS_ENDPOINT_URL=https://s3.example.com tallystick publish ledger-data s3://evidence/log --every 5",
    "tallystick publish ledger-data s3://evidence/log --json",
)


def publish(
    directory: Directory,
    destination: Annotated[
        str,
        typer.Argument(metavar="DEST", help="A folder, or s3://bucket/prefix, gs://..., az://..."),
    ],
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            metavar="SECONDS",
            min=0.1,
            help="Go on at this interval, until Ctrl-C.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Write all tiles again, also those that should be there.")
    ] = False,
    json: Json = False,
) -> None:
    """Publish tiles, entry bundles and the checkpoint to an object store or a folder (C2SP tlog-tiles).

    Any web server or CDN before it answers all reads of the tree. Only what is new is written, the checkpoint
    last; partial tiles are removed once they are full. Credentials and endpoint come from the environment
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...). It refuses where a larger tree, or
    another one, is published already. One publisher at a time for each destination. A log with witnesses
    (`witnesses.policy` in DIR) publishes the newest checkpoint that their quorum cosigned, as it serves it.

    With --json, a line for each time: destination, origin, before, size, written, removed.
    """
    import sys
    import time
    from dataclasses import asdict

    from cli.folder import open_folder
    from cli.output import note, print_json
    from cli.progress import progress
    from ledger.core.errors import UnavailableError
    from ledger.core.log_keys import parse_log_keys
    from ledger.export.publish import open_destination, publish_tree

    folder = open_folder(directory)
    keys = parse_log_keys(folder.vkey.read_text(encoding="utf-8"))
    to, quorum = open_destination(destination), folder.waits_for_quorum()
    store = folder.open()
    try:
        while True:
            try:
                with progress("objects") as report:
                    made = publish_tree(store, to, keys, report, everything=everything, quorum=quorum)
            except UnavailableError as error:
                if every is None:
                    raise
                print(f"{error}; trying again", file=sys.stderr)
            else:
                everything = False
                if json:
                    print_json({"destination": destination, **asdict(made)})
                elif made.size != made.before or every is None:
                    note(f"{destination}: {made.size} leaves, {made.written} objects, {made.removed} removed")
            if every is None:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        return
    finally:
        store.close()
