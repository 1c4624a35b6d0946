"""Imports go one way: the layout is the architecture, and this keeps it so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "core": set(),
    "energy": {"core"},
    "cost": {"core"},
    "emit": {"core", "energy", "cost"},
    "store": {"core"},
    "service": {"core", "store", "cost", "witness"},
    "export": {"core", "store", "cost"},
    "audit": {"core"},
    "witness": {"core"},
    "monitor": {"core", "audit", "witness"},
    # Writes the published contract, so it looks at everything that is part of it.
    "schemas": {"core", "cost", "export", "service", "store", "energy"},
}
SHARED = {"", "keyfiles", "native", "zstd", "http_call", "outgoing", "signers"}
"""Modules beside the packages; they may import `core`."""
NO_INPUT_OUTPUT = {
    "os",
    "io",
    "pathlib",
    "socket",
    "sqlite3",
    "subprocess",
    "time",
    "random",
    "secrets",
    "urllib",
    "logging",
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_is_below_them(package: str) -> None:
    modules = list((ROOT / "ledger" / package).rglob("*.py"))
    assert modules
    for path in modules:
        for name in imports_of(path):
            parts = name.split(".")
            assert parts[0] != "cli", f"{path} imports {name}"
            if parts[0] == "ledger" and len(parts) > 1 and parts[1] != package:
                allowed = MAY_IMPORT[package] | SHARED | {"__version__", "errors"}
                assert parts[1] in allowed, f"{path} imports {name}"


def test_every_package_is_listed() -> None:
    assert {p.name for p in (ROOT / "ledger").iterdir() if (p / "__init__.py").is_file()} == set(MAY_IMPORT)


def test_core_is_pure() -> None:
    for path in (ROOT / "ledger" / "core").glob("*.py"):
        top = {name.split(".")[0] for name in imports_of(path)}
        assert not top & NO_INPUT_OUTPUT, f"{path} imports {top & NO_INPUT_OUTPUT}"
