"""What commands that sign one statement at a time share: the spool they sign into, and what they tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ledger.emit.client import Client
    from ledger.emit.sender import LogIdentity
    from ledger.emit.spool import Spool
    from ledger.emit.submission import Content, Submitted

__all__ = ["IssuerName", "SigningKeyFile", "SubmissionSpool", "open_submission", "send", "told"]

_LIMIT_BYTES = 4 << 30

SubmissionSpool = Annotated[
    Path | None,
    typer.Option(
        "--spool",
        metavar="DIR",
        help="Folder that holds the issuer's chain. Else TALLYSTICK_SPOOL, else this user's own.",
        show_default=False,
    ),
]
IssuerName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Whose chain a new spool begins: a name that no other spool has."),
]
SigningKeyFile = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="The issuer's signing key, if it is not in the spool."),
]


def open_submission(directory: Path | None, issuer: str | None, *, new: bool) -> Spool:
    """The spool to sign into; ``new`` makes one where there is none."""
    from cli.spool import chosen_spool
    from ledger.emit.identity import open_spool
    from ledger.emit.operate import open_existing

    where = chosen_spool(directory)
    return open_spool(where, issuer, _LIMIT_BYTES) if new else open_existing(where)


def send(
    spool: Spool,
    key: Path | None,
    contents: Sequence[Content],
    client: Client,
    log: LogIdentity | None,
    timeout_s: float,
) -> list[Submitted]:
    """Sign and send ``contents``, with a progress bar."""
    from cli.progress import progress
    from ledger.core.errors import InvalidError
    from ledger.emit.signing import SigningKey
    from ledger.emit.submission import submit

    if log is None:
        raise InvalidError(
            "the log's key is needed, to check its receipts",
            where="--log-key",
            remedy="pass the log's vkey file, or set TALLYSTICK_LOG_KEY",
            code="bad-key",
        )
    with spool.locked():
        signing = SigningKey(key, spool.directory)
    with progress("sending statements") as report:
        return submit(spool, signing, contents, client, log, timeout_s=timeout_s, progress=report)


def told(spool: Spool, found: Sequence[Submitted]) -> dict[str, Any]:
    """What was sent, for programs."""
    return {
        "issuer": spool.issuer,
        "statements": [
            {"leaf_hash": each.leaf_hash, "leaf_index": each.leaf_index, "new": each.is_new}
            | {name: _about(each.content)[name] for name in _about(each.content)}
            for each in found
        ],
        "new": sum(each.is_new for each in found),
    }


def _about(content: Content) -> dict[str, str]:
    from msgspec import UNSET

    given = ((name, getattr(content, name, UNSET)) for name in ("record", "statement", "deployment"))
    return {name: value for name, value in given if value is not UNSET}
