"""``tallystick log-key``: the log's own keys - show, rotate, retire - and the end of a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.options import Directory, Json, command

if TYPE_CHECKING:
    from cli.folder import Folder
    from ledger.core.keys import Signer
    from ledger.store import Store

__all__ = ["app"]

app = typer.Typer(help="Show, rotate and retire the log's own keys; freeze a log.", no_args_is_help=True)

_OLD = "log-old.pem"


@command(app, "tallystick log-key show ledger-data", "tallystick log-key show ledger-data --json")
def show(directory: Directory, json: Json = False) -> None:
    """Show the keys that the log has had, the newest first, and whether it was frozen.

    With --json: origin, keys (vkey, kid, algorithm, added_leaf, revoked_leaf), frozen (leaf_index, successor,
    kid) or null.
    """
    from dataclasses import asdict

    from cli.folder import open_folder
    from cli.output import fields, print_json
    from ledger.core.log_keys import log_verifier_key
    from ledger.core.note import format_vkey
    from ledger.store import queries
    from ledger.store.log_keys import frozen, log_keys

    store = open_folder(directory).open()
    try:
        with store.read() as connection:
            origin, end = queries.log_head(connection).origin, frozen(connection)
            keys: list[dict[str, Any]] = [
                {
                    "vkey": format_vkey(log_verifier_key(origin, each.public)),
                    "kid": each.kid.hex(),
                    "algorithm": each.public.name,
                    "added_leaf": each.added_leaf,
                    "revoked_leaf": each.revoked_leaf,
                }
                for each in reversed(log_keys(connection))
            ]
    finally:
        store.close()
    if json:
        print_json({"origin": origin, "keys": keys, "frozen": None if end is None else asdict(end)})
        return
    fields([("origin", origin), *(("key", each["vkey"]) for each in keys)])
    if end is not None:
        fields([("frozen", f"at leaf {end.leaf_index}, continued by {end.successor or 'none'}")])


@command(
    app,
    "tallystick log-key rotate ledger-data",
    "tallystick log-key rotate ledger-data --algorithm ml-dsa-44 --reason 'yearly rotation' --json",
)
def rotate(
    directory: Directory,
    algorithm: Annotated[
        Literal["ed25519", "ml-dsa-44"], typer.Option(help="Kind of the new key; ml-dsa-44 is post-quantum.")
    ] = "ed25519",
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use this key (PEM, or a PKCS #11 URI) instead of making one."),
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, to be logged.")] = None,
    json: Json = False,
) -> None:
    """Let a new key take over from the log's key, which signs that. Stop the service first.

    From then on, keys/log.pem signs receipts and checkpoints, and keys/log-old.pem checkpoints beside it,
    until `log-key retire`. log.vkey then holds the verifier keys of both: give it to auditors, emitters and
    witnesses.

    With --json: origin, kid, leaf_index, vkeys.
    """
    from cli.folder import open_folder
    from ledger.core.errors import RefusedError
    from ledger.core.keys import generate_key
    from ledger.keyfiles import save_private_key, write_private
    from ledger.signers import load_signer
    from ledger.store.log_keys import rotate_log_key

    folder = open_folder(directory)
    old_file, new_file = folder.log_key.with_name(_OLD), folder.log_key.with_name("log-new.pem")
    store = folder.open()
    try:
        if not _finish(folder, store, new_file, old_file):
            if old_file.exists():
                raise RefusedError(
                    "the key before this one still signs beside it",
                    where=str(old_file),
                    remedy="retire it first: tallystick log-key retire",
                    code="exists",
                )
            if not new_file.exists():
                if key_file is not None:
                    write_private(new_file, key_file.read_bytes())
                else:
                    save_private_key(new_file, generate_key(algorithm))
            folder.check_seen(store)
            leaf_index = rotate_log_key(
                store, load_signer(folder.log_key), load_signer(new_file), reason=reason
            ).leaf_index
            _finish(folder, store, new_file, old_file)
        else:
            leaf_index = _added_leaf(store)
        _report(folder, store, load_signer(folder.log_key), leaf_index, json)
    finally:
        store.close()


@command(app, "tallystick log-key retire ledger-data", "tallystick log-key retire ledger-data --json")
def retire(
    directory: Directory,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, to be logged.")] = None,
    json: Json = False,
) -> None:
    """End the time in which the old key signs beside the new one. Stop the service first.

    The log revokes the old key from this leaf on; keys/log-old.pem is kept under another name. What it signed
    stays valid: keep its verifier key.

    With --json: origin, kid, leaf_index, vkeys.
    """
    from cli.folder import open_folder
    from ledger.core.errors import InvalidError
    from ledger.signers import load_signer
    from ledger.store.log_keys import retire_log_key

    folder = open_folder(directory)
    old_file = folder.log_key.with_name(_OLD)
    if not old_file.exists():
        raise InvalidError("there is no old key to retire", where=str(old_file), code="unknown-key")
    store = folder.open()
    try:
        old, key = load_signer(old_file), load_signer(folder.log_key)
        folder.check_seen(store)
        leaf_index = retire_log_key(store, key, old.public, reason=reason).leaf_index
        old_file.rename(old_file.with_name(f"log-retired-{old.public.kid.hex()[:16]}.pem"))
        _report(folder, store, key, leaf_index, json)
    finally:
        store.close()


@command(
    app,
    "tallystick log-key freeze ledger-2026 --successor log.example.com/2027 --yes --json",
    "tallystick log-key freeze ledger-2026 --successor log.example.com/27 --successor-key 27.pub --yes",
)
def freeze(
    directory: Directory,
    successor: Annotated[
        str | None, typer.Option(metavar="NAME", help="Origin of the log that goes on.")
    ] = None,
    successor_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM of that log's key, to be named too.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="It is meant: there is no undoing.")] = False,
    json: Json = False,
) -> None:
    """End a log, for instance at the end of a year: it takes nothing any more, and serves what it has.

    The last statement revokes the log's key and names the successor. Nothing can be erased afterwards, since
    an erasure is a statement: wait until the records' time is over. Stop the service first; start it again
    to serve reads.

    With --json: origin, kid, leaf_index, vkeys.
    """
    from cli.folder import open_folder
    from cli.keys import load_public
    from ledger.core.errors import RefusedError
    from ledger.signers import load_signer
    from ledger.store.log_keys import freeze_log

    if not yes:
        raise RefusedError(
            "a frozen log never takes anything again, and so erases nothing",
            where=str(directory),
            remedy="say --yes if it is meant",
            code="not-confirmed",
        )
    folder = open_folder(directory)
    old_file = folder.log_key.with_name(_OLD)
    store = folder.open()
    try:
        key = load_signer(folder.log_key)
        folder.check_seen(store)
        done = freeze_log(
            store,
            key,
            beside=[load_signer(old_file)] if old_file.exists() else [],
            successor=successor,
            successor_key=None if successor_key is None else load_public(successor_key),
        )
        _report(folder, store, key, done.leaf_index, json)
    finally:
        store.close()


def _finish(folder: Folder, store: Store, new_file: Path, old_file: Path) -> bool:
    """Move the files of a rotation that the log has already; whether there was one."""
    from ledger.signers import load_signer
    from ledger.store.log_keys import log_keys

    if not new_file.exists():
        return False
    with store.read() as connection:
        in_force = log_keys(connection)[-1].kid
    if load_signer(new_file).public.kid != in_force:
        return False
    if not old_file.exists():
        folder.log_key.rename(old_file)
    new_file.rename(folder.log_key)
    return True


def _added_leaf(store: Store) -> int:
    from ledger.store.log_keys import log_keys

    with store.read() as connection:
        return log_keys(connection)[-1].added_leaf


def _report(folder: Folder, store: Store, key: Signer, leaf_index: int, json: bool) -> None:
    """Write the verifier keys anew, and say what was done."""
    from cli.output import fields, print_json
    from ledger.core.note import format_vkey
    from ledger.store import queries
    from ledger.store.log_keys import log_verifier_keys

    with store.read() as connection:
        origin = queries.log_head(connection).origin
        vkeys = [format_vkey(each) for each in log_verifier_keys(connection)]
    folder.vkey.write_text("".join(f"{vkey}\n" for vkey in vkeys), encoding="utf-8")
    if json:
        kid = key.public.kid.hex()
        print_json({"origin": origin, "kid": kid, "leaf_index": leaf_index, "vkeys": vkeys})
        return
    fields(
        [
            ("origin", origin),
            ("kid", key.public.kid.hex()),
            ("leaf", str(leaf_index)),
            *(("vkey", vkey) for vkey in vkeys),
        ]
    )
