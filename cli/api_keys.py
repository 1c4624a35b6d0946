"""``tallystick api-keys``: who may call a service. Done where the database is; never over the network."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Directory, Json, command

__all__ = ["app"]

app = typer.Typer(help="Make, list and revoke API keys of a service.", no_args_is_help=True)


class Scope(StrEnum):
    """What a key allows."""

    EMIT = "emit"
    READ = "read"
    ADMIN = "admin"


@command(
    app,
    "tallystick api-keys create ledger-data --scope emit --label gpu-7 --out gpu-7.key",
    "tallystick api-keys create ledger-data --scope read --label auditor",
    "tallystick api-keys create ledger-data --scope read --label 'acme, reading' --tenant t-7f3a --json",
)
def create(
    directory: Directory,
    scope: Annotated[
        list[Scope],
        typer.Option(help="emit: log statements; read: see records; admin: issuers, and both others."),
    ],
    label: Annotated[str, typer.Option(metavar="TEXT", help="Whose key it is.")],
    tenant: Annotated[
        str | None,
        typer.Option(metavar="TENANT", help="Let it see and log records of this tenant alone."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there (mode 0600) instead of to stdout.")
    ] = None,
    json: Json = False,
) -> None:
    """Make an API key, and log that. It is shown or written once; the database holds only its hash.

    With --json: id, scopes, label, tenant if it has one, and token or file.
    """
    from cli.folder import open_folder
    from cli.output import note, print_json
    from ledger.core.errors import RefusedError
    from ledger.keyfiles import write_private
    from ledger.service.admin import grant_api_key

    if out is not None and out.exists():
        raise RefusedError("file exists", where=str(out), remedy="name another file", code="exists")
    folder = open_folder(directory)
    scopes = [each.value for each in scope]
    with folder.sequencer(folder.open()) as sequencer:
        token = grant_api_key(sequencer, label, scopes, tenant=tenant)
    made: dict[str, Any] = {"id": token.split("_")[1], "scopes": scopes, "label": label}
    made |= {} if tenant is None else {"tenant": tenant}
    if out is not None:
        write_private(out, token.encode() + b"\n")
        made["file"] = str(out)
    else:
        made["token"] = token
    if json:
        print_json(made)
    elif out is not None:
        note(f"wrote {out}")
    else:
        print(token)
        note("keep it: it is not shown again")


@command(
    app,
    "tallystick api-keys list ledger-data",
    "tallystick api-keys list ledger-data --json",
    name="list",
)
def list_keys(directory: Directory, json: Json = False) -> None:
    """List API keys, without their secrets.

    With --json: api_keys, each with id, scopes, label, created_s and, where there are, tenant and revoked_s.
    """
    from cli import figures
    from cli.output import print_json, table
    from ledger.service.auth import list_api_keys

    keys = list_api_keys(_open(directory))
    if json:
        print_json({"api_keys": [_described(key) for key in keys]})
        return
    table(
        ("id", "scopes", "tenant", "label", "created", "revoked"),
        (
            (
                key.id,
                " ".join(key.scopes),
                key.tenant or "",
                key.label,
                figures.time(key.created_s * 1_000_000),
                "" if key.revoked_s is None else figures.time(key.revoked_s * 1_000_000),
            )
            for key in keys
        ),
    )


@command(
    app,
    "tallystick api-keys revoke ledger-data 0123456789ab",
)
def revoke(
    directory: Directory,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, from `tallystick api-keys list`.")],
    json: Json = False,
) -> None:
    """Revoke an API key. A running service notices within seconds.

    With --json: id.
    """
    from cli.folder import open_folder
    from cli.output import note, print_json
    from ledger.service.admin import withdraw_api_key

    folder = open_folder(directory)
    with folder.sequencer(folder.open()) as sequencer:
        withdraw_api_key(sequencer, key_id)
    if json:
        print_json({"id": key_id})
    else:
        note(f"revoked {key_id}")


def _described(key: Any) -> dict[str, Any]:
    described = {"id": key.id, "scopes": key.scopes, "label": key.label, "created_s": key.created_s}
    described |= {} if key.tenant is None else {"tenant": key.tenant}
    return described if key.revoked_s is None else described | {"revoked_s": key.revoked_s}


def _open(directory: Path) -> Any:
    from cli.folder import open_folder

    return open_folder(directory).open()
