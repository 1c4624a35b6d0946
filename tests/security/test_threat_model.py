"""The threat model names, for each threat, tests that exist and that test something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explanation" / "threat-model.md").read_text(encoding="utf-8")


def rows() -> list[tuple[str, str, str]]:
    table = PAGE.partition("## Threats and defences")[2].partition("\n## ")[0]
    cells = [
        tuple(cell.strip() for cell in line.strip("|").split(" | "))
        for line in table.splitlines()
        if "|" in line
    ]
    return [each for each in cells[2:] if len(each) == 3]  # type: ignore[misc]


def test_the_table_is_read() -> None:
    assert len(rows()) >= 30


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_each_threat_is_tested(row: tuple[str, str, str]) -> None:
    named = re.findall(r"`(tests/[^`]+)`", row[2])
    assert named, row
    for name in named:
        path = ROOT / name
        files = [path] if path.is_file() else sorted(path.rglob("test_*.py"))
        assert files, name
        assert any(re.search(r"^\s*(async )?def test_", each.read_text(), re.MULTILINE) for each in files), (
            name
        )


def test_each_security_test_is_named() -> None:
    """A file of tests here that covers no threat covers one that the page forgot."""
    own = {f"tests/security/{each.name}" for each in Path(__file__).parent.glob("test_*.py")}
    named = set(re.findall(r"`(tests/security/[^`]+)`", PAGE))
    assert own - named == {"tests/security/test_threat_model.py"}
