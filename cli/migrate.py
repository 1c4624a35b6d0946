"""``tallystick migrate``: bring a ledger's tables to those of this version."""

from __future__ import annotations

from cli.options import Directory, Json

__all__ = ["EXAMPLES", "migrate"]

EXAMPLES = ("tallystick migrate ledger-data", "tallystick migrate ledger-data --json")


def migrate(directory: Directory, json: Json = False) -> None:
    """Bring a ledger's tables to those of this version, in one transaction. Stop the service first.

    Statements, tiles and checkpoints are evidence and stay as they are. Done already, it changes nothing.

    With --json: directory.
    """
    from cli.folder import open_folder
    from cli.output import note, print_json
    from ledger.store import migrate as migrate_store

    store = open_folder(directory).open()
    try:
        migrate_store(store)
    finally:
        store.close()
    if json:
        print_json({"directory": str(directory)})
    else:
        note(f"the tables of {directory} are those of this version")
