"""How failures end a command: the message, the exit code, and no traceback unless it is asked for.

Exit codes: 0 done (audit: sound), 1 the evidence is refuted, 2 it could not be done or told.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from ledger.core.errors import InvalidError, TallystickError, UnavailableError

__all__ = ["CANNOT_TELL", "REFUTED", "SOUND", "Commands"]

SOUND, REFUTED, CANNOT_TELL = 0, 1, 2
JSON_WANTED = "tallystick.json"
"""Key in the context's ``meta``: set by ``--json``, so that errors take the same form as results."""


class Commands(TyperGroup):
    """The root command: errors raised by any command below it end here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn an error into a message and exit code 2."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Who read our output has gone. Point stdout elsewhere, or Python complains again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(CANNOT_TELL) from None
        except Exception as error:
            # Typer's own exceptions (usage, exit) are its to show.
            if type(error).__module__.startswith("typer"):
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
                raise typer.Exit(CANNOT_TELL) from None
            from cli.output import print_error

            print_error(explained(error), as_json=bool(ctx.meta.get(JSON_WANTED)))
            raise typer.Exit(CANNOT_TELL) from None


def explained(error: Exception) -> TallystickError:
    """The error as one of ours, with a remedy."""
    if isinstance(error, TallystickError):
        return error
    if isinstance(error, ImportError) and error.name is not None:
        return UnavailableError(
            f"the package {error.name} is not installed",
            remedy="install Tallystick with what this command needs: pip install 'tallystick[all]'",
            code="missing-package",
        )
    if isinstance(error, FileNotFoundError):
        return InvalidError(
            "no such file or folder",
            where=str(error.filename or error),
            remedy="check the path",
            code="not-found",
        )
    if isinstance(error, OSError):
        return UnavailableError(
            (error.strerror or str(error)).lower(),
            where=str(error.filename or ""),
            remedy="check the path, its permissions and the space left",
            code="io",
        )
    if type(error).__module__.startswith("sqlalchemy"):
        return UnavailableError(
            f"the database refused: {str(error).splitlines()[0]}",
            remedy="check that this is a ledger's database and that it can be written",
            code="database",
        )
    return TallystickError(
        f"unexpected {type(error).__name__}: {error}",
        remedy="run it again as `tallystick --debug ...` and report what it shows",
        code="internal",
    )
