"""The quick start, line by line: its commands and its program, with a real service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.children import free_port, is_answering, running
from tests.docs.test_guides import fits, reader
from tests.docs.test_pages import ROOT, blocks

PAGE = ROOT / "docs" / "quick-start.md"
PORT = "8090"  # as the page has it
SERVE = "tallystick serve ledger-data"


@pytest.mark.slow
def test_quick_start_line_by_line(tmp_path: Path) -> None:
    port = str(free_port())
    install, make, register, look, audit, forge, export = blocks(PAGE, "sh")
    assert "pip install" in install
    (program,) = blocks(PAGE, "python")
    recorded, listed = blocks(PAGE, "text")
    (tmp_path / "record.py").write_text(program.replace(PORT, port), encoding="utf-8")

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e"],
            input=script,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=reader(),
            timeout=120,
            check=False,
        )

    def done(script: str) -> str:
        ran = run(script)
        assert ran.returncode == 0, f"{script}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    assert SERVE in make
    done(make.replace(SERVE, ""))
    command = [sys.executable, "-m", "cli", *SERVE.split()[1:], "--port", port]
    with running("the service", command, tmp_path / "log", environment={}, cwd=tmp_path) as service:
        service.wait_until(lambda: is_answering(f"http://127.0.0.1:{port}/healthz"), 60)
        done(register)
        told = done("python record.py")
        assert told.split()[1:] == recorded.split()[1:]  # "ID is in leaf N": the page knows N
        rollup = listed.strip().splitlines()[-1].split(maxsplit=1)[1]  # without the day
        assert any(fits((f"… {rollup}",), line) for line in done(look).splitlines())
        done(audit)
    refuted = run(forge)
    assert refuted.returncode == 1, refuted.stderr
    assert f"leaf_index={told.split()[-1]}]" in refuted.stdout + refuted.stderr
    done(export)
