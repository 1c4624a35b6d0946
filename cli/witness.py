"""``tallystick witness``: be a witness of others' logs (C2SP tlog-witness)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.options import Json, command

if TYPE_CHECKING:
    from ledger.witness.cosigning import Cosigner

__all__ = ["app"]

app = typer.Typer(
    help="Be a witness: cosign the checkpoints of logs, as long as they only grow.", no_args_is_help=True
)

WitnessFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A witness's folder, made by `tallystick witness init`.")
]
LogKey = Annotated[
    str,
    typer.Option(metavar="VKEY", help="The log's verifier key, or a file that holds one or several."),
]
_KEYS = {"ed25519": ("ed25519",), "ml-dsa-44": ("ml-dsa-44",), "both": ("ed25519", "ml-dsa-44")}


@command(
    app,
    "tallystick witness init our-witness --name witness.example.com/w1",
    "tallystick witness init our-witness --name witness.example.com/w1 --algorithm ml-dsa-44 --json",
)
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; empty if it exists.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The witness's name for ever: a scheme-less URL that you own.")
    ],
    algorithm: Annotated[
        Literal["both", "ed25519", "ml-dsa-44"],
        typer.Option(help="Kinds of keys. Each makes a cosignature; ml-dsa-44 is post-quantum."),
    ] = "both",
    json: Json = False,
) -> None:
    """Make a witness: its keys, and an empty memory of what it cosigned.

    DIR then holds keys/*.pem (mode 0600), witness.db and witness.vkeys, the verifier keys to publish. Never
    restore an older copy of witness.db: the witness could cosign a fork.

    With --json: directory, name, vkeys.
    """
    from cli.output import fields, note, print_json
    from ledger.core.errors import RefusedError
    from ledger.core.keys import generate_key
    from ledger.core.note import format_vkey
    from ledger.keyfiles import save_private_key
    from ledger.witness.cosigning import witness_verifier_key
    from ledger.witness.state import create_state

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RefusedError(
            "exists already", where=str(directory), remedy="name another folder, or empty it", code="exists"
        )
    keys = {each: generate_key(each) for each in _KEYS[algorithm]}
    vkeys = [format_vkey(witness_verifier_key(name, key.public)) for key in keys.values()]
    (directory / "keys").mkdir(parents=True, exist_ok=True)
    for kind, key in keys.items():
        save_private_key(directory / "keys" / f"{kind}.pem", key)
    (directory / "witness.vkeys").write_text("".join(f"{vkey}\n" for vkey in vkeys), encoding="utf-8")
    create_state(directory / "witness.db")
    if json:
        print_json({"directory": str(directory), "name": name, "vkeys": vkeys})
        return
    fields([("directory", str(directory)), ("name", name), *(("vkey", vkey) for vkey in vkeys)])
    note(f"\nNext: tallystick witness add-log {directory} --log-key log.vkey")


@command(
    app,
    "tallystick witness add-log our-witness --log-key log.vkey",
    "tallystick witness add-log our-witness --log-key log.vkey --remove --json",
)
def add_log(
    directory: WitnessFolder,
    log_key: LogKey,
    remove: Annotated[
        bool,
        typer.Option("--remove", help="Trust these keys no longer. What was cosigned stays remembered."),
    ] = False,
    json: Json = False,
) -> None:
    """Know a log by its verifier keys: get them from its operator by a way that you trust.

    Works while the witness serves. While a log rotates its key, give both.

    With --json: origin, new, keys.
    """
    from cli.audit import read_vkey
    from cli.output import fields, print_json
    from ledger.core.log_keys import parse_log_keys
    from ledger.core.note import format_vkey
    from ledger.witness.state import WitnessState

    keys = parse_log_keys(read_vkey(log_key))
    state = WitnessState(directory / "witness.db")
    try:
        new = False
        if remove:
            for key in keys:
                state.remove_key(keys[0].name, key)
        else:
            new = state.add_log(keys[0].name, keys)
        known = state.log(keys[0].name)
    finally:
        state.close()
    vkeys = [] if known is None else [format_vkey(key) for key in known.keys]
    if json:
        print_json({"origin": keys[0].name, "new": new, "keys": vkeys})
    else:
        fields([("log", keys[0].name), *(("key", vkey) for vkey in vkeys)])


@command(app, "tallystick witness logs our-witness", "tallystick witness logs our-witness --json")
def logs(directory: WitnessFolder, json: Json = False) -> None:
    """Show the logs that the witness knows, and the last tree of each that it cosigned.

    With --json: a list of origin, keys, size, root, cosigned_s, and of misbehaviour: requests that the log's
    key signed and that contradict what was cosigned (seen_s, why, request in base64).
    """
    import base64

    from cli.output import print_json, table
    from ledger.core.note import format_vkey
    from ledger.witness.state import WitnessState

    state = WitnessState(directory / "witness.db")
    try:
        known = state.logs()
        evidence = {each.origin: state.evidence(each.origin) for each in known}
    finally:
        state.close()
    if json:
        print_json(
            [
                {
                    "origin": each.origin,
                    "keys": [format_vkey(key) for key in each.keys],
                    "size": each.last.size,
                    "root": each.last.root.hex(),
                    "cosigned_s": each.last.cosigned_s,
                    "misbehaviour": [
                        {"seen_s": seen_s, "why": why, "request": base64.b64encode(request).decode()}
                        for _, seen_s, why, request in evidence[each.origin]
                    ],
                }
                for each in known
            ]
        )
        return
    table(
        ("log", "size", "keys", "misbehaviour"),
        [
            (each.origin, f"{each.last.size:,}", str(len(each.keys)), str(len(evidence[each.origin])))
            for each in known
        ],
        right=("size", "keys", "misbehaviour"),
    )


@command(
    app,
    "tallystick witness serve our-witness",
    "tallystick witness serve our-witness --host 0.0.0.0 --port 8092 --json",
)
def serve(
    directory: WitnessFolder,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Address to listen on. Others than this need a TLS proxy."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8092,
    log_level: Annotated[
        Literal["error", "warning", "info", "debug"], typer.Option(help="How much to log, to stderr.")
    ] = "info",
    json: Json = False,
) -> None:
    """Cosign for the logs that the witness knows, until it is told to stop (Ctrl-C, SIGTERM).

    Submission and monitoring prefix are the address itself: POST /add-checkpoint and
    GET /<origin hash>/checkpoint. GET /healthz and /metrics are there for supervisors.

    With --json: directory, url, pid; written before it listens.
    """
    import uvicorn

    from cli.output import note, print_json
    from ledger.service.protocol import BoundedProtocol
    from ledger.witness.server import WitnessApp

    cosigner = open_witness(directory)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    told: dict[str, Any] = {"directory": str(directory), "url": url, "pid": os.getpid()}
    if json:
        print_json(told)
    else:
        note(f"witness {cosigner.name} serves at {url}; stop with Ctrl-C")
    try:
        uvicorn.run(
            WitnessApp(cosigner),
            host=host,
            port=port,
            http=BoundedProtocol,
            ws="none",
            lifespan="on",
            log_level=log_level,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=256,
            timeout_graceful_shutdown=10,
        )
    finally:
        cosigner.state.close()


def open_witness(directory: Path) -> Cosigner:
    """The witness of a folder.

    Raises:
        InvalidError: there is none, or its keys are not those of its verifier keys.
    """
    from ledger.core.errors import InvalidError
    from ledger.core.note import parse_vkey
    from ledger.signers import load_signer
    from ledger.witness.cosigning import Cosigner
    from ledger.witness.state import WitnessState

    state = WitnessState(directory / "witness.db")
    published = [parse_vkey(each) for each in (directory / "witness.vkeys").read_text("utf-8").split()]
    signers = [load_signer(each) for each in sorted((directory / "keys").glob("*.pem"))]
    cosigner = Cosigner(published[0].name if published else "", signers, state)
    if not published or set(cosigner.keys) != set(published):
        raise InvalidError(
            "the keys are not those of witness.vkeys",
            where=str(directory),
            remedy="put back the keys that the witness was made with: others know it by these",
            code="bad-key",
        )
    return cosigner
