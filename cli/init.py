"""``tallystick init``: a folder with an empty log, its key and an administrator's API key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json

__all__ = ["EXAMPLES", "init", "init_folder"]

EXAMPLES = (
    "tallystick init ledger-data --origin log.example.com/tallystick",
    "tallystick init ledger-data --origin log.example.com/tallystick --json",
    "TALLYSTICK_DATABASE=postgresql+psycopg:///tally tallystick init ledger-data --origin log.example.com",
)


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; empty if it exists.")],
    origin: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The log's name for ever: a scheme-less URL that you own, without spaces."
        ),
    ],
    json: Json = False,
) -> None:
    """Make a ledger: database, log key, and an API key of scope admin.

    DIR then holds ledger.db, keys/log.pem and admin.key (both mode 0600) and log.vkey, the verifier key to
    publish: it is all that an auditor needs. With TALLYSTICK_DATABASE the log is made in that database.

    With --json: directory, origin, vkey, kid, admin_key_file, size.
    """
    from cli.output import fields, note, print_json

    made = init_folder(directory, origin)
    if json:
        print_json(made)
        return
    fields((name.replace("_", " "), str(value)) for name, value in made.items())
    note(f"\nNext: tallystick serve {directory}")


def init_folder(directory: Path, origin: str) -> dict[str, str | int]:
    """Make a ledger in ``directory``, or leave nothing behind."""
    import os
    import shutil
    import tempfile

    from ledger.core.errors import RefusedError
    from ledger.core.statements import check_issuer_id

    check_issuer_id(origin, what="origin")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RefusedError(
            "exists already", where=str(directory), remedy="name another folder, or empty it", code="exists"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        made = _fill(building, origin)
        os.chmod(building, 0o755)  # noqa: S103 - the secrets in it have modes of their own
        os.rename(building, directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return {"directory": str(directory), **made, "admin_key_file": str(directory / "admin.key")}


def _fill(building: Path, origin: str) -> dict[str, str | int]:
    from cli.folder import Folder
    from ledger.core.keys import generate_key
    from ledger.core.note import format_vkey
    from ledger.keyfiles import save_private_key, write_private
    from ledger.service.admin import grant_api_key
    from ledger.store import migrate, queries
    from ledger.store.append import create_log, log_verifier_key

    folder = Folder(building)
    key = generate_key("ed25519")
    save_private_key(folder.log_key, key)
    vkey = format_vkey(log_verifier_key(origin, key.public))
    folder.vkey.write_text(f"{vkey}\n", encoding="utf-8")
    store = folder.open()
    try:
        migrate(store)
        create_log(store, key, origin)
        with folder.sequencer(store) as sequencer:
            token = grant_api_key(sequencer, "init", ["admin"])
        write_private(folder.admin_key, token.encode() + b"\n")
        with store.read() as connection:
            size = queries.log_head(connection).size
    finally:
        store.close()
    return {"origin": origin, "vkey": vkey, "kid": key.public.kid.hex(), "size": size}
