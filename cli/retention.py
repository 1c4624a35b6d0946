"""``tallystick retention`` and ``tallystick hold``: how long records are kept, and what may not be erased."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.options import Directory, From, Json, To, command

__all__ = ["app", "hold_app"]

app = typer.Typer(help="Say how long things are kept, and erase what is due.", no_args_is_help=True)
hold_app = typer.Typer(
    help="Keep records from being erased while a legal hold is on them.", no_args_is_help=True
)


class Kind(StrEnum):
    """What a policy is about."""

    RECORDS = "records"
    CREDENTIALS = "credentials"


Whose = Annotated[
    str, typer.Option("--tenant", metavar="TENANT", help="Whose; without it, everybody's without a policy.")
]
KindOption = Annotated[
    Kind, typer.Option(help="records: record bytes; credentials: revoked API keys, used invitations.")
]


@command(app, "tallystick retention show ledger-data", "tallystick retention show ledger-data --json")
def show(directory: Directory, json: Json = False) -> None:
    """Show the policies. What has none is kept for ever.

    With --json: policies, each with tenant (empty: everybody without one), kind, keep_days.
    """
    from cli.folder import open_folder
    from cli.output import print_json, table
    from ledger.store.retention import policies

    with open_folder(directory).open().read() as connection:
        found = policies(connection)
    if json:
        print_json({"policies": [vars(each) for each in found]})
        return
    rows = ((each.tenant or "(everybody)", each.kind, str(each.keep_days)) for each in found)
    table(("tenant", "kind", "days"), rows, right=("days",))


@command(
    app,
    "tallystick retention set ledger-data --kind records --days 400",
    "tallystick retention set ledger-data --kind records --days 184 --tenant t-7f3a --json",
    name="set",
)
def set_policy(
    directory: Directory,
    kind: KindOption,
    days: Annotated[int, typer.Option(min=1, help="Days to keep; records at least 184 (six months).")],
    tenant: Whose = "",
    json: Json = False,
) -> None:
    """Set a policy. Nothing is erased before `tallystick retention run`.

    With --json: tenant, kind, keep_days, leaf_index (of the log's statement that says so).
    """
    from ledger.store import retention

    policy = retention.Policy(tenant, kind.value, days)
    _log(directory, retention.set_policy(policy), vars(policy), json=json)


@command(app, "tallystick retention remove ledger-data --kind records --tenant t-7f3a")
def remove(directory: Directory, kind: KindOption, tenant: Whose = "", json: Json = False) -> None:
    """Remove a policy: what it was about is kept for ever, or as everybody's is.

    With --json: tenant, kind, leaf_index (of the log's statement that says so).
    """
    from ledger.store import retention

    statement = retention.remove_policy(tenant, kind.value)
    _log(directory, statement, {"tenant": tenant, "kind": kind.value}, json=json)


@command(
    app, "tallystick retention run ledger-data", "tallystick retention run ledger-data --no-purge --json"
)
def run(
    directory: Directory,
    purge: Annotated[
        bool, typer.Option(help="Write the database anew afterwards, so that no old page holds the bytes.")
    ] = True,
    json: Json = False,
) -> None:
    """Erase what no policy keeps any longer, and log it. To be run daily; records under a legal hold stay.

    With --json: ran, each with tenant, kind, keep_days, records, held, credentials; purged.
    """
    from cli.folder import open_folder
    from cli.output import print_json, table
    from cli.progress import progress
    from ledger.store import erasure, retention

    folder = open_folder(directory)
    store = folder.open()
    with folder.sequencer(store) as sequencer, progress("erasing") as report:
        ran = retention.run(
            store, sequencer, progress=None if report is None else lambda count: report(count, 0)
        )
    purged = purge and any(each.records or each.credentials for each in ran)
    if purged:
        erasure.purge(store)
    found = [vars(each.policy) | {k: v for k, v in vars(each).items() if k != "policy"} for each in ran]
    if json:
        print_json({"ran": found, "purged": purged})
        return
    names = ("tenant", "kind", "keep_days", "records", "held", "credentials")
    rows = (tuple(str(each[name]) for name in names) for each in found)
    table(names, rows, right=names[2:])


# --- holds -----------------------------------------------------------------------------------------------


@command(
    hold_app,
    "tallystick hold place ledger-data --tenant t-7f3a --reason 'litigation 7'",
    "tallystick hold place ledger-data --from 2026-01-01 --to 2026-02-01 --reason 'inspection 3' --json",
)
def place(
    directory: Directory,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept beside the log, not public.")],
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="On this tenant's records.")] = None,
    from_time: From = None,
    to_time: To = None,
    json: Json = False,
) -> None:
    """Place a legal hold: neither policy nor command erases these records before it is lifted.

    With --json: id, reason, placed_s, leaf_index, and tenant, from_us, to_us where they were given.
    """
    from cli import figures
    from ledger.store.holds import place_hold

    hold, statement = place_hold(
        reason,
        tenant=tenant,
        from_us=figures.parse_time(from_time, "--from"),
        to_us=figures.parse_time(to_time, "--to"),
    )
    said = {name: value for name, value in vars(hold).items() if value is not None}
    _log(directory, statement, said, json=json)


@command(hold_app, "tallystick hold list ledger-data", "tallystick hold list ledger-data --json", name="list")
def list_holds(directory: Directory, json: Json = False) -> None:
    """List legal holds.

    With --json: holds, each with id, reason, placed_s, and tenant, from_us, to_us, lifted_s where there are.
    """
    from cli import figures
    from cli.folder import open_folder
    from cli.output import print_json, table
    from ledger.store.holds import holds

    with open_folder(directory).open().read() as connection:
        found = holds(connection)
    if json:
        described = [
            {name: value for name, value in vars(each).items() if value is not None} for each in found
        ]
        print_json({"holds": described})
        return
    table(
        ("id", "tenant", "from", "to", "placed", "lifted", "reason"),
        (
            (
                each.id,
                each.tenant or "(all)",
                "" if each.from_us is None else figures.time(each.from_us),
                "" if each.to_us is None else figures.time(each.to_us),
                figures.time(each.placed_s * 1_000_000),
                "" if each.lifted_s is None else figures.time(each.lifted_s * 1_000_000),
                each.reason,
            )
            for each in found
        ),
    )


@command(hold_app, "tallystick hold lift ledger-data 0123456789ab")
def lift(
    directory: Directory,
    hold: Annotated[str, typer.Argument(metavar="ID", help="Its id, from `tallystick hold list`.")],
    json: Json = False,
) -> None:
    """Lift a legal hold.

    With --json: id, leaf_index (of the log's statement that says so).
    """
    from ledger.store.holds import lift_hold

    _log(directory, lift_hold(hold), {"id": hold}, json=json)


def _log(directory: Any, statement: Any, said: dict[str, Any], *, json: bool) -> None:
    from cli.folder import open_folder
    from cli.output import fields, print_json

    folder = open_folder(directory)
    with folder.sequencer(folder.open()) as sequencer:
        done = said | {"leaf_index": sequencer.log_own(statement).result().leaf_index}
    if json:
        print_json(done)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in done.items() if value != "")
