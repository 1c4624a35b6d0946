"""Parameters that several commands share, so that they are named and explained alike everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import typer

from cli.errors import JSON_WANTED

__all__ = [
    "ApiKeyFile",
    "Directory",
    "From",
    "Json",
    "LogKey",
    "PolicyFile",
    "Target",
    "To",
    "command",
    "examples",
]

_Function = TypeVar("_Function", bound=Callable[..., None])


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[JSON_WANTED] = value
    return value


Json: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Write one JSON document to stdout, for programs.",
        callback=_remember_json,
        is_eager=True,
    ),
]
Target: TypeAlias = Annotated[
    str, typer.Argument(metavar="TARGET", help="A ledger's folder, or the URL of its service.")
]
Directory: TypeAlias = Annotated[
    Path, typer.Argument(metavar="DIR", help="A ledger's folder, made by `tallystick init`.")
]
ApiKeyFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="File that holds the API key for a URL. Else TALLYSTICK_API_KEY is read.",
    ),
]
LogKey: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--log-key",
        metavar="VKEY",
        help="The log's verifier key, or a file that holds it (log.vkey), or all that it has had.",
    ),
]
PolicyFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="Trust policy (C2SP tlog-policy): which witnesses must have cosigned, and the log's keys.",
    ),
]
From: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="TIME", help="Started at this time or later: ISO 8601 (UTC) or Unix microseconds."
    ),
]
To: TypeAlias = Annotated[
    str | None, typer.Option("--to", metavar="TIME", help="Started before this time; in the same forms.")
]


def command(app: typer.Typer, *lines: str, name: str | None = None) -> Callable[[_Function], _Function]:
    """Add a function to ``app`` as a command; ``lines`` are its examples, its docstring is its help."""

    def add(function: _Function) -> _Function:
        app.command(name, help=_unwrapped(function.__doc__ or ""), epilog=examples(*lines))(function)
        return function

    return add


def _unwrapped(text: str) -> str:
    """``text`` with a line for each paragraph, so that help wraps it at the terminal's width."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def examples(*lines: str) -> str:
    """The epilogue of a command's help."""
    return "Examples:\n" + "\n".join(f"$ {line}" for line in lines).replace("[", r"\[")
