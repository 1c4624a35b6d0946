"""``tallystick admin``: what administrators did."""

from __future__ import annotations

from typing import Any

import typer

from cli.options import ApiKeyFile, Json, Target, command

__all__ = ["app"]

app = typer.Typer(help="See what administrators did.", no_args_is_help=True)


@command(
    app,
    "tallystick admin log ledger-data",
    "tallystick admin log https://log.example.com --api-key-file admin.key --json",
)
def log(target: Target, api_key_file: ApiKeyFile = None, json: Json = False) -> None:
    """List administrative acts: keys, invitations, policies, holds, erasures. Each is a statement in the log.

    Exits with 1 if particulars of an act are gone or are not those that the log's key signed.

    With --json: acts, each with leaf_index, time_us, action, intact and, unless they are gone, particulars.
    """
    from cli import figures
    from cli.output import note, print_json, table
    from cli.target import open_ledger

    acts = open_ledger(target, api_key_file).acts()
    if json:
        print_json({"acts": acts})
    else:
        rows = (
            (str(act["leaf_index"]), figures.time(act["time_us"]), act["action"], _said(act)) for act in acts
        )
        table(("leaf", "time", "act", "particulars"), rows, right=("leaf",))
    if not all(act["intact"] for act in acts):
        note("the particulars of an act are not those that the log's key signed: audit the database")
        raise typer.Exit(1)


def _said(act: dict[str, Any]) -> str:
    said = act.get("particulars")
    if said is None:
        return "gone, or changed"
    text = ", ".join(f"{name} {value}" for name, value in said.items() if value != "")
    return text if act["intact"] else f"{text} (who did it: gone, or changed)"
