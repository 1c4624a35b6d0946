"""``tallystick issuers``: who may sign statements."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cli.options import ApiKeyFile, Json, Target, command

__all__ = ["app"]

app = typer.Typer(
    help="List, add and revoke issuers' keys. The log signs every change.", no_args_is_help=True
)

Issuer = Annotated[str, typer.Argument(metavar="ISSUER", help="Its name, such as gpu-7.example.com/vllm.")]

Tenant = Annotated[
    str | None,
    typer.Option(metavar="TENANT", help="Let a new issuer log records of this tenant alone."),
]


@command(
    app,
    "tallystick issuers list demo-data",
    "tallystick issuers list http://127.0.0.1:8090 --api-key-file demo-data/admin.key --json",
    name="list",
)
def list_issuers(target: Target, api_key_file: ApiKeyFile = None, json: Json = False) -> None:
    """List issuers and their keys; the log itself is the first one it has.

    With --json: issuers, each with issuer, next_seq, last_leaf (of its last statement) and keys (kid,
    algorithm, cose_key, added_leaf and, once it is revoked, revoked_leaf).
    """
    from cli.output import print_json, table
    from cli.target import open_ledger

    issuers = open_ledger(target, api_key_file).issuers()
    if json:
        print_json({"issuers": issuers})
        return
    rows = [
        (
            each["issuer"],
            str(each["next_seq"]),
            key["kid"],
            key["algorithm"],
            f"leaf {key['added_leaf']}",
            "" if key.get("revoked_leaf") is None else f"leaf {key['revoked_leaf']}",
        )
        for each in issuers
        for key in each["keys"]
    ]
    table(("issuer", "statements", "kid", "algorithm", "added", "revoked"), rows, right=("statements",))


@command(
    app,
    "tallystick issuers add demo-data gpu-7.example.com/vllm --key issuer.pem",
    "tallystick issuers add https://log.example.com gpu-7.example.com/vllm --key issuer.pub --json",
    "tallystick issuers add demo-data acme.example.com/vllm --key issuer.pem --tenant t-7f3a",
)
def add(
    target: Target,
    issuer: Issuer,
    key: Annotated[
        Path,
        typer.Option(
            "--key", metavar="FILE", help="PEM of its public key; of a private one, the public half."
        ),
    ],
    tenant: Tenant = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Register an issuer's key, or a further key of an issuer.

    With --json: issuer, kid, leaf_index (of the log's statement that says so).
    """
    from cli.keys import load_public
    from cli.output import fields, print_json
    from cli.target import open_ledger

    added = open_ledger(target, api_key_file).add_issuer(issuer, load_public(key), tenant)
    if json:
        print_json(added)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in added.items())


@command(
    app,
    "tallystick issuers revoke demo-data gpu-7.example.com/vllm --kid KID --reason 'host was sold'",
)
def revoke(
    target: Target,
    issuer: Issuer,
    kid: Annotated[str, typer.Option(metavar="KID", help="The key's thumbprint, 64 hex digits.")],
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; it is logged.")] = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Revoke a key: its statements are refused from now on. What it signed before stays valid.

    With --json: issuer, kid, leaf_index (of the log's statement that says so).
    """
    from cli.output import fields, print_json
    from cli.target import open_ledger
    from ledger.core.errors import InvalidError

    if re.fullmatch("[0-9a-f]{64}", kid) is None:
        raise InvalidError(
            f"{kid[:80]!r} is not a key's thumbprint",
            where="--kid",
            remedy="copy the 64 hex digits from `tallystick issuers list`",
            code="bad-key",
        )
    revoked = open_ledger(target, api_key_file).revoke_key(issuer, kid, reason)
    if json:
        print_json(revoked)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in revoked.items())


@command(
    app,
    "tallystick issuers invite demo-data gpu-8.example.com/vllm --hours 2",
    "tallystick issuers invite https://log.example.com acme.example.com/vllm --tenant t-7f3a --json",
)
def invite(
    target: Target,
    issuer: Issuer,
    tenant: Tenant = None,
    hours: Annotated[int, typer.Option(min=1, max=720, help="How long the token is good for.")] = 24,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Make a one-time token: whoever holds it enrols one key of this issuer with `tallystick issuers enrol`.

    With --json: id, token, issuer, expires_s and, if it is bound to one, tenant.
    """
    from cli.output import note, print_json
    from cli.target import open_ledger

    invited = open_ledger(target, api_key_file).invite(issuer, tenant, hours * 3600)
    if json:
        print_json(invited)
    else:
        print(invited["token"])
        note(f"good for one key of {issuer} for {hours} h; it is not shown again")


@command(
    app,
    "tallystick issuers enrol https://log.example.com --token-file invitation --key issuer.pem --issuer "
    "gpu-8.example.com/vllm",
    "tallystick issuers enrol https://log.example.com --token-file /var/run/secrets/token --key issuer.pem "
    "--issuer acme.example.com/vllm --json",
)
def enrol(
    url: Annotated[str, typer.Argument(metavar="URL", help="The service.")],
    token_file: Annotated[
        Path, typer.Option(metavar="FILE", help="Holds the invitation, or the workload's token (JWT).")
    ],
    key: Annotated[Path, typer.Option(metavar="FILE", help="PEM of the private key; it stays here.")],
    issuer: Annotated[str, typer.Option(metavar="ISSUER", help="The name that the token is for.")],
    json: Json = False,
) -> None:
    """Enrol a key of one's own with a one-time token, and prove that one holds it.

    With --json: issuer, kid, leaf_index (of the log's statement that says so) and, if it is bound to one,
    tenant.
    """
    import base64

    from cli.client import Client
    from cli.output import fields, print_json
    from ledger.core.cose import encode_cbor
    from ledger.keyfiles import load_private_key
    from ledger.store.enrolment import prove

    client, private = Client(url, None), load_private_key(key)
    token = token_file.read_text(encoding="utf-8").strip()
    origin = client.get_json("/log")["origin"]
    body = {
        "token": token,
        "cose_key": encode_cbor(private.public.to_cose_key()).hex(),
        "proof": base64.b64encode(prove(origin, token, issuer, private)).decode(),
    }
    enrolled = client.post_json("/enrolments", body)
    if json:
        print_json(enrolled)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in enrolled.items())
