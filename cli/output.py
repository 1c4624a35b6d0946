"""What commands write: one JSON document or tables on stdout; errors, progress and notes on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ledger.core.errors import TallystickError

__all__ = ["fields", "note", "print_error", "print_json", "stderr", "stdout", "table", "write_bytes"]

_PIPED_WIDTH = 10_000
"""Columns where stdout is no terminal: no table is folded."""


def stdout() -> Console:
    """The console for results. Made anew, so that a test's or a pipe's stream is honoured."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout, width=None if terminal else _PIPED_WIDTH, highlight=False, soft_wrap=False
    )


def stderr() -> Console:
    """The console for everything that is not a result."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Write ``value`` as one JSON document: for programs, integers exact, keys as documented."""
    import msgspec

    write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def write_bytes(data: bytes) -> None:
    """Write to stdout as it is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table; ``right`` names the columns of figures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))  # Text: what others wrote is never markup
    stdout().print(made)


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one a line, so that a long value can be copied whole."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        stdout().print(f"[bold]{name.ljust(width)}[/bold]  ", end="")
        print(printable(value))


def note(text: str) -> None:
    """Say something to the person at the terminal."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """``text`` without control characters: what a log holds must not steer the reader's terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def print_error(error: TallystickError, *, as_json: bool) -> None:
    """Write what went wrong, where, and the remedy."""
    if as_json:
        told = {"code": error.code, "what": error.what, "where": error.where, "remedy": error.remedy}
        print_json({"error": {name: value for name, value in told.items() if value}})
        return
    from rich.text import Text

    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), printable(error.what)))
    if error.where:
        console.print(Text.assemble(("  where: ", "bold"), printable(error.where)))
    if error.remedy:
        console.print(Text.assemble(("  remedy: ", "bold"), printable(error.remedy)))


def verdict(name: str, text: str) -> None:
    """Print what an audit came to."""
    from rich.text import Text

    style = {"sound": "bold green", "refuted": "bold red"}.get(name, "bold yellow")
    stdout().print(Text.assemble((name.upper(), style), f": {text}"))
