"""The documents: links lead somewhere, Python and shell blocks are at least well formed."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

from tests.cli.test_help import parse_command_line

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    if "demo-data" not in page.parts
)
_FENCE = re.compile(r"^( *)(```+)([a-z]*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"`[^`\n]+`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))


def blocks(page: Path, *languages: str) -> list[str]:
    """Code blocks of a page in one of ``languages``."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(code) for _, _, language, code in found if language in languages]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
class TestEveryPage:
    def test_links_lead_somewhere(self, page: Path) -> None:
        broken = []
        for link in _LINK.findall(prose(page)):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(link)
        assert broken == []

    def test_python_blocks_parse(self, page: Path) -> None:
        for code in blocks(page, "python", "py"):
            if ">>>" not in code:
                ast.parse(code)

    def test_commands_exist(self, page: Path) -> None:
        for code in blocks(page, "sh", "bash", "console", "shell"):
            for line in code.replace("\\\n", " ").splitlines():
                words = line.strip().removeprefix("$ ")
                if re.match(r"(\w+=\S+ )*tallystick ", words):
                    parse_command_line(words)

    def test_make_targets_exist(self, page: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for code in blocks(page, "sh", "bash", "console", "shell"):
            for target in re.findall(r"^(?:\$ )?make ([a-z-]+)", code, re.MULTILINE):
                assert target in targets


def test_there_are_pages() -> None:
    assert PAGES


ENGINES = (
    "deepspeed", "llama-cpp", "llama-server", "onnxruntime-genai", "ray-serve", "sglang", "tensorrt-llm",
    "tgi", "transformers", "triton", "vllm",
)  # fmt: skip


@pytest.mark.parametrize("name", ENGINES)
def test_a_page_of_an_engine_says_what_the_ledger_needs(name: str) -> None:
    """In the same words, since two lines alone bring no record into a ledger."""
    page = (ROOT / "docs" / "how-to" / f"{name}.md").read_text("utf-8")
    assert "[let an emitter in](run-a-ledger.md#let-an-emitter-in),\nonce. Until then they wait" in page
