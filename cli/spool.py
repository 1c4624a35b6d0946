"""``tallystick spool``: look at a recorder's spool, send it, restore it, change its key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.options import ApiKeyFile, Json, Target, command

if TYPE_CHECKING:
    from ledger.emit.client import Client
    from ledger.emit.sender import LogIdentity

__all__ = ["LedgerUrl", "LogKey", "SpoolDirectory", "Timeout", "app", "chosen_spool", "open_client"]

app = typer.Typer(
    help="Look at a recorder's spool, send it, restore it, change its key.", no_args_is_help=True
)

SpoolDirectory = Annotated[
    Path | None,
    typer.Argument(
        metavar="DIR",
        help="The spool. Else TALLYSTICK_SPOOL, else the one that a recorder takes by itself.",
        show_default=False,
    ),
]
LedgerUrl = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The ledger. Else TALLYSTICK_URL is read.")
]
LogKey = Annotated[
    str | None,
    typer.Option(
        "--log-key", metavar="KEY", help="The log's verifier key, or a file with it. Else TALLYSTICK_LOG_KEY."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="The issuer's signing key, if the recorders have it outside of the spool.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="S", min=0, help="Give up after so many seconds.")
]
AssumeLost = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Count N records as dropped for a damaged statement of which nothing tells how many it held.",
    ),
]


@command(app, "tallystick spool status", "tallystick spool status /var/lib/tallystick/spool --json")
def status(directory: SpoolDirectory = None, json: Json = False) -> None:
    """Say what waits in a spool, since when, and what is wrong with it. Changes nothing.

    With --json: directory, issuer, next_seq, statements, records and bytes that wait, oldest_us, kept and
    kept_bytes (sent, but the receipt could not be checked), dropped (lost records that no statement told),
    sessions (processes that record) and unsealed (records in their memory), ended and ended_records (of
    processes that ended early), damaged and torn (files), problem, blocked, problem_us.
    """
    import time
    from dataclasses import asdict

    from cli import figures
    from cli.output import fields, print_json
    from cli.progress import progress
    from ledger.emit.survey import survey

    where = chosen_spool(directory)
    with progress("reading statements") as report:
        found = survey(where, report)
    if json:
        print_json({"directory": str(where)} | asdict(found))
        return
    rows = [
        ("spool", str(where)),
        ("issuer", found.issuer),
        ("waiting", f"{found.statements} statements, {found.records} records, {found.bytes} bytes"),
    ]
    if found.oldest_us is not None:
        age_s = max(0, int(time.time()) - found.oldest_us // 1_000_000)
        rows.append(("oldest", f"{figures.time(found.oldest_us)}, {age_s} s ago"))
    if found.kept:
        rows.append(("kept", f"{found.kept} statements, {found.kept_bytes} bytes, receipts not checked"))
    rows.append(("recording", f"{found.sessions} processes, {found.unsealed} records in their memory"))
    if found.ended:
        rows.append(("ended early", f"{found.ended} processes, {found.ended_records} records lost"))
    rows.append(("dropped", f"{found.dropped} records that no statement told yet"))
    rows += [("damaged", name) for name in found.damaged] + [("set aside", name) for name in found.torn]
    rows.append(("problem", found.problem or "none"))
    fields(rows)


@command(
    app,
    "tallystick spool inspect",
    "tallystick spool inspect /var/lib/tallystick/spool --seq 41 --json",
)
def inspect(
    directory: SpoolDirectory = None,
    seq: Annotated[int | None, typer.Option(min=0, help="Show this statement alone, decoded.")] = None,
    key: KeyFile = None,
    json: Json = False,
) -> None:
    """List the statements in a spool and check them: checksums, links, and signatures of the issuer's key.

    Records are not shown, and neither are keys and secrets. Exit code 1 if something is damaged.

    With --json: directory, issuer, statements (each with seq, kept, size and, if whole, kind, kid, leaf_hash,
    issued_us, records, dropped), findings. With --seq: one of these, and its payload.
    """
    from cli.errors import REFUTED
    from cli.keys import load_public
    from cli.output import print_json
    from cli.progress import progress
    from ledger.core.errors import InvalidError
    from ledger.emit.survey import Item, list_items, read_head_of, verify_items

    where = chosen_spool(directory)
    issuer = read_head_of(where).issuer
    file = key or next((f for f in (where / "issuer.pub", where / "issuer.pem") if f.exists()), None)
    rows: list[dict[str, Any]] = []

    def watched(items: Any) -> Any:
        for item in items:
            rows.append(_described(item, full=seq is not None))
            yield item

    with progress("reading statements") as report:
        wanted: list[Item] = []
        items = list_items(where, report)
        if seq is not None:
            wanted = [item for item in items if item.seq == seq]
            if not wanted:
                raise InvalidError(f"statement {seq} does not wait here", where=str(where), code="not-found")
        findings = verify_items(
            watched(wanted if seq is not None else items), None if file is None else load_public(file)
        )
    if json:
        told = rows[0] if seq is not None else {"statements": rows}
        print_json({"directory": str(where), "issuer": issuer} | told | {"findings": findings})
    else:
        _show(rows, findings, single=seq is not None)
    if findings:
        raise typer.Exit(REFUTED)


def _described(item: Any, *, full: bool) -> dict[str, Any]:
    import msgspec

    row: dict[str, Any] = {"seq": item.seq, "kept": item.kept, "size": item.size}
    if item.spooled is None:
        return row
    statement = item.spooled.statement
    row |= {
        "kind": statement.kind,
        "kid": statement.kid.hex(),
        "leaf_hash": statement.leaf_hash.hex(),
        "issued_us": statement.payload.issued_us,
        "records": item.spooled.count,
        "dropped": item.spooled.told,
    }
    return row | ({"payload": msgspec.to_builtins(statement.payload)} if full else {})


def _show(rows: list[dict[str, Any]], findings: list[str], *, single: bool) -> None:
    import msgspec

    from cli import figures
    from cli.output import fields, note, table

    if single:
        payload = rows[0].pop("payload", {})
        fields((name.replace("_", " "), str(value)) for name, value in rows[0].items())
        fields((n, v if isinstance(v, str) else msgspec.json.encode(v).decode()) for n, v in payload.items())
    else:
        table(
            ("seq", "kind", "issued", "records", "dropped", "bytes", "state"),
            [
                (
                    str(row["seq"]),
                    row.get("kind", "?"),
                    figures.time(row["issued_us"]) if "issued_us" in row else "?",
                    str(row.get("records", "?")),
                    str(row.get("dropped", "?")),
                    str(row["size"]),
                    "damaged" if "kind" not in row else "kept" if row["kept"] else "waits",
                )
                for row in rows
            ],
            right=("seq", "records", "dropped", "bytes"),
        )
    for finding in findings:
        note(finding)


@command(
    app,
    "tallystick spool flush --url https://log.example.com --log-key log.vkey --api-key-file emit.key",
    "tallystick spool flush /var/lib/tallystick/spool --timeout 600 --json",
)
def flush(
    directory: SpoolDirectory = None,
    url: LedgerUrl = None,
    log_key: LogKey = None,
    api_key_file: ApiKeyFile = None,
    key: KeyFile = None,
    timeout: Timeout = 60.0,
    assume_lost: AssumeLost = None,
    json: Json = False,
) -> None:
    """Send what waits in a spool now, and mend its chain where statements were damaged.

    Recorders may run meanwhile. Exit code 0: nothing waits any more; 1: the ledger refuses, and somebody has
    to act; 2: not now, such as when the ledger does not answer.

    With --json: directory, sent, waiting, problem, blocked.
    """
    from dataclasses import asdict

    from cli.errors import CANNOT_TELL, REFUTED
    from cli.output import fields, note, print_json
    from cli.progress import progress
    from ledger.emit.operate import flush_spool, open_existing, signing_key_of

    where = chosen_spool(directory)
    spool = open_existing(where)
    client, log = open_client(url, log_key, api_key_file)
    with progress("sending statements") as report:
        done = flush_spool(
            spool,
            client,
            log,
            signing_key_of(where, key),
            timeout_s=timeout,
            assumed_lost=assume_lost,
            progress=report,
        )
    if json:
        print_json({"directory": str(where)} | asdict(done))
    else:
        fields([("sent", f"{done.sent} statements"), ("waiting", f"{done.waiting} statements")])
        if done.problem is not None and done.waiting:
            note(done.problem)
    if done.waiting:
        raise typer.Exit(REFUTED if done.blocked else CANNOT_TELL)


@command(
    app,
    "tallystick spool restore new-spool --issuer gpu-7.example.com/vllm --key issuer.pem "
    "--url https://log.example.com --log-key log.vkey --api-key-file emit.key",
    "tallystick spool restore /var/lib/tallystick/spool --json",
)
def restore(
    directory: SpoolDirectory = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose chain it was, if the spool does not say.")
    ] = None,
    url: LedgerUrl = None,
    log_key: LogKey = None,
    api_key_file: ApiKeyFile = None,
    key: KeyFile = None,
    assume_lost: AssumeLost = None,
    json: Json = False,
) -> None:
    """Go on with a chain whose spool or head was lost, or came from an old back-up: the ledger knows where.

    Stop the recorders first, and use no other spool with this issuer: two would fork the chain. What waits in
    the spool is moved to the chain's end. Records in statements that are gone cannot be counted.

    With --json: directory, issuer, next_seq, signed_anew, delivered, lost.
    """
    from dataclasses import asdict

    from cli.output import fields, print_json
    from ledger.core.errors import InvalidError
    from ledger.emit.operate import restore_spool
    from ledger.keyfiles import load_private_key

    where = chosen_spool(directory)
    client, log = open_client(url, log_key, api_key_file)
    if log is None:
        raise InvalidError(
            "the log's key is needed", where="--log-key", remedy="pass the log's vkey file", code="bad-key"
        )
    done = restore_spool(
        where,
        issuer,
        client,
        log,
        load_private_key(key or where / "issuer.pem"),
        assumed_lost=assume_lost,
    )
    told = {"directory": str(where)} | asdict(done)
    if json:
        print_json(told)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in told.items())


@command(
    app,
    "tallystick spool rotate-key /var/lib/tallystick/spool ledger-data --revoke-old",
    "tallystick spool rotate-key spool https://log.example.com --api-key-file admin.key --json",
)
def rotate_key(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The spool.")],
    target: Target,
    api_key_file: ApiKeyFile = None,
    key: KeyFile = None,
    new_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The new private key. Else one is made.")
    ] = None,
    algorithm: Annotated[
        Literal["ed25519", "es256", "ml-dsa-44"], typer.Option(help="Kind of key to make.")
    ] = "ed25519",
    revoke_old: Annotated[
        bool, typer.Option("--revoke-old", help="Revoke the old key once nothing that it signed waits.")
    ] = False,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why the old key goes; it is logged.")
    ] = "rotated",
    timeout: Timeout = 600.0,
    json: Json = False,
) -> None:
    """Change an issuer's signing key while recorders run: their next statement is signed with the new one.

    Needs an API key of scope admin. The ledger learns the new key first, and the old one stays in force until
    it is revoked. Run it again if it failed half-way.

    With --json: directory, issuer, old_kid, new_kid, revoked.
    """
    from cli.output import fields, print_json
    from cli.progress import progress
    from cli.target import open_ledger
    from ledger.core.keys import PublicKey
    from ledger.emit import operate
    from ledger.keyfiles import load_private_key

    spool = operate.open_existing(directory)
    ledger = open_ledger(target, api_key_file)

    def register(public: PublicKey) -> None:
        kid = public.kid.hex()
        for each in ledger.issuers():
            if each["issuer"] == spool.issuer and any(
                k["kid"] == kid and k.get("revoked_leaf") is None for k in each["keys"]
            ):
                return  # by an earlier run
        ledger.add_issuer(spool.issuer, public)

    old, new = operate.rotate_key(
        spool,
        key or directory / "issuer.pem",
        register,
        algorithm=algorithm,
        new=None if new_key is None else load_private_key(new_key),
    )
    if revoke_old:
        with progress("waiting for statements of the old key") as report:
            operate.wait_for_old_key(spool, old.kid, timeout_s=timeout, progress=report)
        ledger.revoke_key(spool.issuer, old.kid.hex(), reason)
    told: dict[str, Any] = {
        "directory": str(directory),
        "issuer": spool.issuer,
        "old_kid": old.kid.hex(),
        "new_kid": new.kid.hex(),
        "revoked": revoke_old,
    }
    if json:
        print_json(told)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in told.items())


def chosen_spool(directory: Path | None) -> Path:
    """The spool that a recorder of this user would take, unless one is named."""
    import os

    from ledger.emit.identity import default_spool

    return directory or Path(os.environ.get("TALLYSTICK_SPOOL") or default_spool())


def open_client(
    url: str | None, log_key: str | None, api_key_file: Path | None
) -> tuple[Client, LogIdentity | None]:
    """The ledger to send to, and the log that it must be, as options or the environment name them."""
    import os

    from cli.client import read_api_key
    from ledger.core.errors import InvalidError
    from ledger.emit.client import Client
    from ledger.emit.sender import read_log_key

    url = url or os.environ.get("TALLYSTICK_URL")
    if not url:
        raise InvalidError(
            "no ledger is named", where="--url", remedy="pass --url, or set TALLYSTICK_URL", code="bad-url"
        )
    log = read_log_key(log_key or os.environ.get("TALLYSTICK_LOG_KEY"))
    return Client(url, read_api_key(api_key_file)), log
