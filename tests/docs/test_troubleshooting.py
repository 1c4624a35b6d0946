"""The troubleshooting page: it names problems that exist, and knows all that a recorder may say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ledger.service.problem_types import PROBLEM_TYPES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text("utf-8")
EMIT = ROOT / "ledger" / "emit"
STATUSES = {each.code: each.status for each in PROBLEM_TYPES.values()}
NAMED = re.findall(r"`(\d{3}): ([a-z0-9-]+)`", PAGE)
BACKGROUND = ("chain", "client", "rechain", "room", "sealer", "sender", "spool", "spooled", "head")
"""Modules whose errors become ``status().problem``."""
NOT_THERE = {
    "bad-url", "bad-api-key", "bad-issuer-name", "other-issuer", "bad-key",  # raised when a recorder is made
    "no-chain", "no-deployment", "unknown-issuer",
}  # fmt: skip


def test_problems_exist_with_their_status() -> None:
    assert NAMED
    assert [(status, code) for status, code in NAMED if STATUSES.get(code) != int(status)] == []


@pytest.mark.parametrize(
    "code", ["unknown-issuer", "revoked-key", "missing-key", "missing-scope", "seq-gap", "seq-reused",
             "wrong-prev", "time-in-future"],
)  # fmt: skip
def test_what_a_ledger_refuses_an_emitter_for_is_there(code: str) -> None:
    assert code in {named for _, named in NAMED}


def raised(module: str) -> list[tuple[str, list[str]]]:
    """(code, the constant parts of the message) of each error that a module raises."""
    found = []
    for node in ast.walk(ast.parse((EMIT / f"{module}.py").read_text("utf-8"))):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error") and node.args):
            continue
        codes = [
            k.value.value for k in node.keywords if k.arg == "code" and isinstance(k.value, ast.Constant)
        ]
        parts = [
            p for p in ast.walk(node.args[0]) if isinstance(p, ast.Constant) and isinstance(p.value, str)
        ]
        found.append((codes[0] if codes else "", [p.value for p in parts]))
    return found


@pytest.mark.parametrize("module", BACKGROUND)
def test_every_error_of_the_background_threads_is_explained(module: str) -> None:
    shown = re.sub(r"\s+", " ", PAGE)
    unexplained = []
    for code, words in raised(module):
        phrases = [each.strip(" ,.:;") for part in words for each in re.split(r";|: |, ", part)]
        if code in NOT_THERE or not any(len(each) > 8 for each in phrases):
            continue
        if not any(len(each) > 8 and each in shown for each in phrases):
            unexplained.append((code, words))
    assert unexplained == []
