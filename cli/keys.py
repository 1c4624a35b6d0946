"""``tallystick keys``: make and show key files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.options import Json, command

if TYPE_CHECKING:
    from ledger.core.keys import PublicKey

__all__ = ["app", "load_public"]

app = typer.Typer(help="Make and show key files.", no_args_is_help=True)

Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Name to write in the verifier key (a log's origin). Ed25519 only: other kinds have no vkey.",
    ),
]


@command(
    app,
    "tallystick keys generate issuer.pem",
    "tallystick keys generate issuer.pem --algorithm ml-dsa-44 --json",
    "tallystick keys generate log.pem --name log.example.com/tallystick",
)
def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it. Never overwritten.")],
    algorithm: Annotated[
        Literal["ed25519", "es256", "ml-dsa-44"], typer.Option(help="Kind of key; ml-dsa-44 is post-quantum.")
    ] = "ed25519",
    name: Name = None,
    json: Json = False,
) -> None:
    """Make a private key: PKCS #8 PEM, mode 0600.

    With --json: file, algorithm, kid (COSE Key Thumbprint, hex), public_key_pem, vkey (with --name).
    """
    from ledger.core.keys import generate_key
    from ledger.keyfiles import save_private_key

    key = generate_key(algorithm)
    described = _describe(key.public, name)
    save_private_key(file, key)
    _show({"file": str(file)} | described, json)


@command(
    app,
    "tallystick keys show issuer.pem",
    "tallystick keys show demo-data/keys/log.pem --name log.example.com/tallystick --json",
)
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="PEM of a private or public key.")],
    name: Name = None,
    json: Json = False,
) -> None:
    """Show the public half of a key file; private parts are never shown.

    With --json: file, algorithm, kid (COSE Key Thumbprint, hex), public_key_pem, vkey (with --name).
    """
    _show({"file": str(file)} | _describe(load_public(file), name), json)


def load_public(file: Path) -> PublicKey:
    """The public key in a PEM file of either half."""
    from ledger.keyfiles import load_private_key, load_public_key

    with file.open("rb") as opened:
        private = b"PRIVATE KEY" in opened.read(64)
    return load_private_key(file).public if private else load_public_key(file)


def _describe(public: PublicKey, name: str | None) -> dict[str, Any]:
    from ledger.core.errors import InvalidError

    described = {
        "algorithm": public.name,
        "kid": public.kid.hex(),
        "public_key_pem": public.to_pem().decode("ascii"),
    }
    if name is None:
        return described
    if public.name != "ed25519":
        raise InvalidError(
            f"a verifier key cannot hold {public.name}",
            where="--name",
            remedy="leave --name out, or use ed25519",
            code="bad-key",
        )
    from ledger.core.note import ED25519, VerifierKey, format_vkey

    return described | {"vkey": format_vkey(VerifierKey.of(name, ED25519, public.raw_bytes()))}


def _show(described: dict[str, Any], json: bool) -> None:
    from cli.output import fields, print_json

    if json:
        print_json(described)
        return
    pem = described.pop("public_key_pem")
    fields(described.items())
    print(pem, end="")
