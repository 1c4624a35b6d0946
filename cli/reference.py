"""Writes ``docs/reference/cli.md`` from the commands themselves: ``python -m cli.reference FILE``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

__all__ = ["render"]

_HEAD = """\
# Command line

<!-- Written by `make docs` from the commands themselves. Do not edit. -->

`tallystick` exits with 0 when it did what was asked (for `audit` and `verify`: the evidence is sound), 1 when
evidence is refuted, and 2 when it could not do it or could not tell. With `--json`, stdout holds exactly one
JSON document, errors included: `{"error": {"code", "what", "where", "remedy"}}`; `where` and `remedy` may be
absent. Everything else goes to stderr. Integers in JSON are exact; tables round them. `~` before a figure
marks a modelled one, `~~` an estimated one. `NO_COLOR` is honoured.

Secrets are read from files or the environment, never from arguments: the API key for a service from
`--api-key-file` or `TALLYSTICK_API_KEY`. `tallystick --install-completion` sets up completion for your shell.
"""


def render() -> str:
    """The whole page."""
    from cli.main import app

    root = typer.main.get_command(app)
    sections = [_HEAD]
    for path, command in _walk("tallystick", root):
        if not getattr(command, "commands", None):
            sections.append(_section(path, command))
    return "\n".join(sections)


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk(f"{path} {name}", child)


def _section(path: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    usage = " ".join([path, *(_argument(p) for p in arguments), "[OPTIONS]"])
    text = inspect.cleandoc(command.help or "")
    lines = [f"## {path}", "", text, "", "```text", usage, "```", ""]
    rows = [(f"`{_argument(p)}`", p.help or "") for p in arguments]
    context = typer.Context(command)
    rows += [(_option(p, context), _explained(p)) for p in options]
    if rows:
        lines += ["| | |", "| --- | --- |"]
        lines += [f"| {name} | {_cell(help_text)} |" for name, help_text in rows] + [""]
    epilogue = (command.epilog or "").replace("\\[", "[").splitlines()[1:]
    lines += ["```sh", *(line.removeprefix("$ ") for line in epilogue), "```", ""]
    return "\n".join(lines)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return str(name) if parameter.required else f"[{name}]"


def _option(parameter: Any, context: typer.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if getattr(parameter, "is_flag", False):
        return names
    kind = parameter.display_type(context).strip("<>").replace("|", " or ")
    return f"{names} `{parameter.metavar or kind}`"


def _explained(parameter: Any) -> str:
    text = str(parameter.help or "")
    default = parameter.default
    flag = getattr(parameter, "is_flag", False)
    if parameter.required:
        text += " Required."
    elif not flag and default not in (None, (), []) and not callable(default):
        text += f" Default: `{default}`."
    if parameter.envvar:
        text += f" Environment: `{parameter.envvar}`."
    if parameter.multiple:
        text += " May be repeated."
    return text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
