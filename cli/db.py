"""``tallystick db``: where a ledger's database stands, what is wrong with it, and bringing it up to date."""

from __future__ import annotations

import typer

from cli.options import Directory, Json, command

__all__ = ["app"]

app = typer.Typer(help="Check a ledger's database and bring it up to date.", no_args_is_help=True)


@command(app, "tallystick db upgrade ledger-data", "tallystick db upgrade ledger-data --json")
def upgrade(directory: Directory, json: Json = False) -> None:
    """Bring the tables to those of this version, while replicas go on serving.

    Statements, tiles and checkpoints are evidence and stay as they are. Upgrade the database first, then the
    replicas, one by one. Done already, it changes nothing. On SQLite, writers wait until it is done.

    With --json: directory, before, current, done.
    """
    from cli.folder import open_folder
    from cli.output import note, print_json
    from ledger.store import migrate
    from ledger.store.upgrade import revisions

    store = open_folder(directory).open()
    try:
        before = revisions(store)
        migrate(store)
        current = revisions(store).current
    finally:
        store.close()
    if json:
        done = list(before.pending)
        print_json({"directory": str(directory), "before": before.current, "current": current, "done": done})
        return
    for each in before.pending:
        note(f"done: {each}")
    note(f"the tables of {directory} are those of this version, revision {current}")


@command(app, "tallystick db current ledger-data", "tallystick db current ledger-data --json")
def current(directory: Directory, json: Json = False) -> None:
    """Show the revision of the tables, and what `db upgrade` would do.

    With --json: directory, current, newest, pending, known (false if a newer version made the tables).
    """
    from cli.folder import open_folder
    from cli.output import fields, print_json
    from ledger.store.upgrade import revisions

    store = open_folder(directory).open()
    try:
        found = revisions(store)
    finally:
        store.close()
    if json:
        print_json(
            {
                "directory": str(directory),
                "current": found.current,
                "newest": found.newest,
                "pending": list(found.pending),
                "known": found.known,
            }
        )
        return
    fields(
        [
            ("current", found.current or "none"),
            ("newest", found.newest),
            ("pending", ", ".join(found.pending) or "none"),
            *([] if found.known else [("known", "no: a newer version made the tables")]),
        ]
    )


@command(app, "tallystick db check ledger-data", "tallystick db check ledger-data --json")
def check(directory: Directory, json: Json = False) -> None:
    """Check that this version can serve the database: tables, tree and checkpoints, durability.

    It looks at what a start looks at, changes nothing, and may run beside replicas. `tallystick audit` checks
    the evidence itself. Exit code 1 if something was found.

    With --json: directory, size, findings. A finding has what, where, remedy and code.
    """
    from cli.folder import open_folder
    from cli.output import fields, note, print_json
    from ledger.core.log_keys import parse_log_keys
    from ledger.store.startup import check_database

    folder = open_folder(directory)
    keys = parse_log_keys(folder.vkey.read_text(encoding="utf-8"))
    store = folder.open()
    try:
        size, findings = check_database(store, keys, folder.published)
    finally:
        store.close()
    if json:
        rows = [{"what": e.what, "where": e.where, "remedy": e.remedy, "code": e.code} for e in findings]
        print_json({"directory": str(directory), "size": size, "findings": rows})
    elif not findings:
        note(f"{directory}: nothing is wrong; {size} leaves")
    for each in () if json else findings:
        fields([("what", each.what), ("where", each.where or ""), ("remedy", each.remedy or "")])
    raise typer.Exit(1 if findings else 0)


@command(
    app,
    "TALLYSTICK_DATABASE=postgresql+psycopg:///tally tallystick db move ledger-data",
    "TALLYSTICK_DATABASE=postgresql+psycopg:///tally tallystick db move ledger-data --json",
)
def move(directory: Directory, json: Json = False) -> None:
    """Move the log out of DIR/ledger.db into the empty database that TALLYSTICK_DATABASE names.

    Every proof, receipt and checkpoint stays valid. Stop the service before; what it would try to append
    meanwhile waits and then fails. Afterwards nothing can append to the old file, which is renamed to
    ledger.db.moved. Broken off, run it again.

    With --json: directory, origin, tree_size, old.
    """
    import os

    from cli.folder import DATABASE_VARIABLE, Folder
    from cli.output import note, print_json
    from cli.progress import progress
    from ledger.core.errors import InvalidError
    from ledger.core.log_keys import parse_log_keys
    from ledger.export.restore import move_log
    from ledger.store import open_store

    folder = Folder(directory)
    old = directory / "ledger.db"
    if "://" not in folder.database or not old.is_file() or not folder.vkey.is_file():
        raise InvalidError(
            "there is no log in DIR/ledger.db, or no database to move it to",
            where=str(directory),
            remedy=f"name a ledger's folder, and the new database's URL in {DATABASE_VARIABLE}",
            code="no-ledger",
        )
    keys = parse_log_keys(folder.vkey.read_text(encoding="utf-8"))
    source, target = open_store(old), folder.open()
    try:
        with progress("rows") as report:
            moved = move_log(source, target, keys, report)
    finally:
        source.close()
        target.close()
    kept = directory / "ledger.db.moved"
    os.rename(old, kept)
    if json:
        told = {"origin": moved.origin, "tree_size": moved.size, "old": str(kept)}
        print_json({"directory": str(directory), **told})
        return
    note(f"{moved.origin}: {moved.size} leaves moved; the old file is {kept}")
    note(f"\nNext: tallystick serve {directory}, with the same {DATABASE_VARIABLE}")
