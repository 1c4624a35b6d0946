"""``tallystick receipt``: fetch what proves a record or a statement, and check it offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import ApiKeyFile, Json, Target, command
from cli.verify import verify

__all__ = ["app"]

app = typer.Typer(help="Fetch and check the proof of a record or statement.", no_args_is_help=True)

_RECORD_ID_LENGTH = 36


@command(
    app,
    "tallystick receipt get demo-data 0198c0de-0000-7000-8000-000000000000 --out receipt.json",
    "tallystick receipt get https://log.example.com 17 --out statement.cose",
    "tallystick receipt get demo-data 17 --bare --out receipt.cose",
)
def get(
    target: Target,
    entry: Annotated[
        str, typer.Argument(metavar="ID", help="A record's id, or a statement's leaf index or leaf hash.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it. Default: stdout.")
    ] = None,
    bare: Annotated[
        bool, typer.Option("--bare", help="Of a statement, the receipt alone, without the statement.")
    ] = False,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Fetch a proof that `tallystick receipt verify` checks offline.

    Of a record: JSON with the record, its path in the batch, the statement, its receipt and the newest
    checkpoint. Of a statement: the statement with its receipt attached (COSE, RFC 9943).

    With --json: kind (record-proof, transparent-statement or receipt), bytes, and file or data_base64.
    """
    import base64

    from cli.output import note, print_json, write_bytes
    from cli.target import open_ledger
    from ledger.core.errors import InvalidError

    ledger = open_ledger(target, api_key_file)
    kind, data = _fetch(ledger, entry, bare=bare)
    if out is not None:
        out.write_bytes(data)
    if json:
        place = {"data_base64": base64.b64encode(data).decode()} if out is None else {"file": str(out)}
        print_json({"kind": kind, "bytes": len(data), **place})
    elif out is not None:
        note(f"wrote {out} ({kind}, {len(data):,} bytes)")
    elif kind != "record-proof" and sys.stdout.isatty():
        raise InvalidError(
            "is binary, and stdout is a terminal",
            where=kind,
            remedy="write it with --out FILE",
            code="binary",
        )
    else:
        write_bytes(data)


command(
    app,
    "tallystick receipt verify receipt.json --log-key log.vkey",
    "tallystick receipt verify statement.cose --log-key log.vkey --issuer-key issuer.pub --json",
)(verify)


def _fetch(ledger: Any, entry: str, *, bare: bool) -> tuple[str, bytes]:
    import msgspec

    from ledger.core.statements import decode_statement, transparent_statement

    if len(entry) == _RECORD_ID_LENGTH and "-" in entry:
        proof = msgspec.json.encode(ledger.record_proof(entry))
        return "record-proof", msgspec.json.format(proof, indent=2) + b"\n"
    receipt: bytes = ledger.receipt(entry)
    if bare:
        return "receipt", receipt
    statement = decode_statement(ledger.statement(entry), where=f"statement {entry}")
    return "transparent-statement", transparent_statement(statement, [receipt])
