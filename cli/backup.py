"""``tallystick backup`` and ``tallystick restore``: a ledger's database, elsewhere and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Directory, Json

if TYPE_CHECKING:
    from cli.folder import Folder

__all__ = ["BACKUP_EXAMPLES", "RESTORE_EXAMPLES", "backup", "restore"]

BACKUP_EXAMPLES = (
    "tallystick backup ledger-data /backups/2026-11-24",
    "tallystick backup ledger-data /backups/2026-11-24 --json",
)
RESTORE_EXAMPLES = (
    "tallystick restore /backups/2026-11-24 ledger-data --log-key log.pem",
    "tallystick restore /backups/2026-11-24 ledger-data --log-key log.pem --checkpoint seen.checkpoint",
    "TALLYSTICK_DATABASE=postgresql+psycopg:///tally tallystick restore /backups/2026-11-24 ledger-data "
    "--log-key log.pem --json",
)


def backup(
    directory: Directory,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    json: Json = False,
) -> None:
    """Back up a ledger's database, beside a service that runs: all rows of one moment.

    OUT gets a Parquet file for each table, and a manifest with the checkpoint that the log's key signed. It
    restores into SQLite and into PostgreSQL. Keys are not in it: keep keys/log.pem and published.checkpoint
    somewhere else.

    With --json: backup, origin, tree_size, rows, bytes.
    """
    from cli.folder import open_folder
    from cli.output import note, print_json
    from cli.progress import progress
    from ledger.export.backup import make_backup
    from ledger.signers import load_signer

    folder = open_folder(directory)
    store = folder.open()
    try:
        with progress("rows") as report:
            made = make_backup(store, load_signer(folder.log_key), out, report)
    finally:
        store.close()
    rows, size = sum(each.rows for each in made.tables), sum(each.bytes for each in made.tables)
    if json:
        told = {"origin": made.origin, "tree_size": made.tree_size, "rows": rows, "bytes": size}
        print_json({"backup": str(out), **told})
        return
    note(f"{out}: {rows} rows of {made.origin} at {made.tree_size} leaves, {size} bytes")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="Folder that `tallystick backup` wrote.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; empty if it exists.")],
    log_key: Annotated[
        Path, typer.Option("--log-key", metavar="FILE", help="The log's private key (keys/log.pem).")
    ],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="A checkpoint of the log that was kept elsewhere, such as published.checkpoint, or a "
            "witness's; may be given several times. Restoring behind one of them is refused.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="Witnesses to be asked (C2SP tlog-policy): each must answer, and none may have seen more. "
            "Put into the folder as witnesses.policy, for the service.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Restore a ledger from a backup, into the new folder DIR or the database of TALLYSTICK_DATABASE.

    Every file is checked against the manifest, the manifest against the log's key, and the tree against the
    checkpoint. Give every newer checkpoint that you have, and the policy with the log's witnesses: a log that
    signs again from an older state forks, and its witnesses and customers see it.

    With --json: directory, origin, tree_size, compared (checkpoints).
    """
    from cli.output import note, print_json

    kept = list(checkpoint or ())
    origin, size = _restored(source, directory, log_key, kept, policy)
    if json:
        told = {"origin": origin, "tree_size": size, "compared": len(kept)}
        print_json({"directory": str(directory), **told})
        return
    note(f"{directory}: {origin} at {size} leaves; kept checkpoints that it extends: {len(kept)}")
    note(f"\nNext: tallystick audit {directory}; API keys are as they were in the backup")


def _restored(
    source: Path, directory: Path, log_key: Path, kept: list[Path], policy: Path | None
) -> tuple[str, int]:
    """Make the folder, or leave nothing behind."""
    import os
    import shutil
    import tempfile

    from cli.folder import Folder
    from ledger.core.errors import RefusedError

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RefusedError(
            "exists already", where=str(directory), remedy="name another folder, or empty it", code="exists"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        made = _fill(source, Folder(building), log_key, kept, policy)
        os.chmod(building, 0o755)  # noqa: S103 - the secrets in it have modes of their own
        os.rename(building, directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return made


def _fill(
    source: Path, folder: Folder, log_key: Path, kept: list[Path], policy: Path | None
) -> tuple[str, int]:
    import shutil

    from cli.folder import POLICY_FILE, ask_witnesses
    from cli.progress import progress
    from ledger.core.note import format_vkey
    from ledger.export.backup import open_backup
    from ledger.export.restore import restore_backup
    from ledger.keyfiles import read_private, write_private
    from ledger.signers import load_signer
    from ledger.store.log_keys import log_verifier_keys

    key = load_signer(log_key)
    backup = open_backup(source, key.public)
    notes = [(str(path), path.read_bytes()) for path in kept]
    store = folder.open()
    try:
        with progress("rows") as report:
            restore_backup(source, store, key=key.public, kept=notes, progress=report)
        with store.read() as connection:
            vkeys = [format_vkey(each) for each in log_verifier_keys(connection)]
        if policy is not None:
            ask_witnesses(store, policy, strict=True)
    finally:
        store.close()
    write_private(folder.log_key, read_private(log_key))
    folder.vkey.write_text("".join(f"{each}\n" for each in vkeys), encoding="utf-8")
    folder.published.write_text(backup.checkpoint, encoding="utf-8")
    if policy is not None:
        shutil.copy(policy, folder.path / POLICY_FILE)
    return backup.origin, backup.tree_size
