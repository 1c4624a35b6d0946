"""Failures: what, where and remedy on stderr, or one JSON document on stdout; exit code 2; no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import LedgerFolder, Run, json_of

ROOT = Path(__file__).parents[2]
RECORD = "0198c0de-0000-7000-8000-000000000000"
FAILING = [
    ("keys", "show", "/nowhere/key.pem"),
    ("records", "list", "/nowhere"),
    ("records", "show", "/nowhere", RECORD),
    ("records", "list", "http://127.0.0.1:1"),
    ("records", "list", "ftp://example.com"),
    ("records", "list", "http://[::1"),
    ("records", "list", "http://127.0.0.1:1/?page=2"),
    (
        "audit",
        "http://[::1",
        "--log-key",
        "log.example.com+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    ),
    ("rollups", "/nowhere"),
    ("issuers", "list", "/nowhere"),
    ("issuers", "add", "/nowhere", "gpu-7.example.com", "--key", "/nowhere/key.pem"),
    ("issuers", "revoke", "/nowhere", "gpu-7.example.com", "--kid", "xyz"),
    ("api-keys", "list", "/nowhere"),
    ("api-keys", "revoke", "/nowhere", "0123"),
    ("receipt", "get", "/nowhere", "3"),
    ("receipt", "verify", "/nowhere/r.cose", "--log-key", "/nowhere/log.vkey"),
    ("audit", "/nowhere", "--log-key", "/nowhere/log.vkey"),
    ("verify", "/nowhere", "--log-key", "/nowhere/log.vkey"),
    ("export", "parquet", "/nowhere", "/nowhere/out"),
    ("serve", "/nowhere"),
    ("db", "upgrade", "/nowhere"),
    ("db", "current", "/nowhere"),
    ("db", "check", "/nowhere"),
    ("init", "/dev/null/x", "--origin", "log.example.com"),
]


@pytest.mark.parametrize("arguments", FAILING, ids=lambda arguments: " ".join(arguments)[:50])
def test_an_error_says_what_where_and_remedy(arguments: tuple[str, ...], run: Run) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "error: " in result.stderr
    assert "remedy: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", FAILING, ids=lambda arguments: " ".join(arguments)[:50])
def test_with_json_the_error_is_the_document(arguments: tuple[str, ...], run: Run) -> None:
    result = run(*arguments, "--json")
    assert result.exit_code == 2
    error = json_of(result)["error"]
    assert error["what"]
    assert error["remedy"]
    assert error["code"] == error["code"].lower()
    assert error["code"] not in ("internal", "error")


def test_bad_time(ledger: LedgerFolder, run: Run) -> None:
    result = run("records", "list", ledger.path, "--from", "yesterday")
    assert result.exit_code == 2
    assert "2026-01-31" in result.stderr


def test_usage_errors_exit_with_2(run: Run) -> None:
    assert run("records", "list").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("keys", "generate", "x.pem", "--algorithm", "rsa").exit_code == 2


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "cli", "--debug", "records", "list", "/nowhere"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert shown.returncode == 2
    assert "Traceback" in shown.stderr


def test_no_color_in_pipes(ledger: LedgerFolder) -> None:
    command = [sys.executable, "-m", "cli", "records", "list", str(ledger.path)]
    shown = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    assert b"\x1b[" not in shown.stdout + shown.stderr


def test_an_api_key_does_not_travel_in_the_clear(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "api.key"
    file.write_text("tsk_x")
    file.chmod(0o600)
    result = run("records", "list", "http://log.example.com", "--api-key-file", file)
    assert result.exit_code == 2
    assert "https" in result.stderr


def test_a_broken_pipe_is_no_crash(ledger: LedgerFolder) -> None:
    script = f"{sys.executable} -m cli records list {ledger.path} --all --json | head -c 1"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "Traceback" not in shown.stderr
    assert "error" not in shown.stderr
