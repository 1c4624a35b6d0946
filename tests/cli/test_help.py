"""Help: every command explains itself, with an example that parses; the reference page is current."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli.main import app
from cli.reference import render
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
HEAVY = ("sqlalchemy", "fastapi", "pyarrow", "duckdb", "cryptography", "msgspec", "urllib3", "alembic")


def commands(path: tuple[str, ...] = (), command: Any = None) -> Iterator[tuple[tuple[str, ...], Any]]:
    command = command or typer.main.get_command(app)
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
        return
    for name, child in children.items():
        yield from commands((*path, name), child)


ALL = list(commands())


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
class TestEveryCommand:
    def test_help_has_text_and_an_example(self, path: tuple[str, ...], command: Any, run: Run) -> None:
        result = run(*path, "--help")
        assert result.exit_code == 0
        assert "Examples:" in result.stdout
        assert f"tallystick {' '.join(path)}" in result.stdout
        assert command.help

    def test_takes_json_and_documents_its_keys(self, path: tuple[str, ...], command: Any, run: Run) -> None:
        assert any("--json" in parameter.opts for parameter in command.params)
        assert "--json" in command.help

    def test_every_parameter_is_explained(self, path: tuple[str, ...], command: Any, run: Run) -> None:
        assert [p.name for p in command.params if not p.help] == []

    def test_examples_parse(self, path: tuple[str, ...], command: Any, run: Run) -> None:
        lines = [line.removeprefix("$ ") for line in command.epilog.splitlines()[1:]]
        assert lines
        for line in lines:
            parse_command_line(line)

    def test_no_secret_is_an_argument(self, path: tuple[str, ...], command: Any, run: Run) -> None:
        names = {option for p in command.params for option in p.opts}
        assert not names & {"--api-key", "--token", "--password", "--secret"}


def parse_command_line(line: str) -> None:
    """Parse one shell line that runs tallystick; raises if a command or option is unknown."""
    words = shlex.split(line.replace(r"\[", "["), comments=True)
    while "=" in words[0]:
        words.pop(0)
    assert words.pop(0) == "tallystick", line
    for stop in (">", "|", "||", "&&", "&"):
        if stop in words:
            words = words[: words.index(stop)]
    command: Any = typer.main.get_command(app)
    context = typer.Context(command)
    while getattr(command, "commands", None):
        if words and words[0] == "--debug":
            words.pop(0)
            continue
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, words, parent=context)
    assert context is not None


def test_reference_page_is_current() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    assert page == render(), "run `make docs` and commit the result"


def test_help_imports_nothing_heavy() -> None:
    script = (
        f"import sys; from cli.main import app\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    )
    # What opens another database for children imports some of it.
    environment = {name: value for name, value in os.environ.items() if name != "TEST_POSTGRES_URI"}
    shown = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, cwd=ROOT, text=True, env=environment
    )
    assert shown.stdout.strip() == "[]"


def test_completion_can_be_installed(run: Run) -> None:
    assert "--install-completion" in run("--help").stdout
