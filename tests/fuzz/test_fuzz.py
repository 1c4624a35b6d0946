"""The short form, for every change: each target a while, and proof that the fuzzer finds faults."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest

from tests.fuzz import run
from tests.fuzz.mutate import MAX_INPUT_BYTES, mutate

TARGETS, SEEDS = run.load_targets()
ALIKE = {"native_tokens"}
"""Targets that take every input: they compare two implementations."""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_input_breaks_a_parser(name):
    result = run.run_target(
        TARGETS[name], SEEDS[name], inputs=2000, seconds=0.5, randomness=random.Random("short")
    )
    assert not result.failures, "\n".join(text for _, text in result.failures.values())
    assert result.inputs > len(SEEDS[name])
    # Told apart, or the search learns nothing from what it finds.
    assert len(result.outcomes) > 1 or name in ALIKE


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_kept_inputs_stay_harmless(name):
    folder = run.CORPUS / name
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        TARGETS[name](path.read_bytes())


def test_kept_inputs_belong_to_a_target():
    assert {path.name for path in run.CORPUS.iterdir()} <= set(TARGETS)


@pytest.fixture
def find(monkeypatch):
    monkeypatch.setattr(run, "MAX_FAILURES", 1)

    def run_until_found(target, seeds):
        result = run.run_target(target, seeds, inputs=10**6, seconds=30, randomness=random.Random(1))
        return " ".join(result.failures)

    return run_until_found


def test_a_wrong_exception_is_found(find):
    def parse(data):
        if b"\xff" in data[4:]:
            raise IndexError
        return "fine"

    assert "IndexError" in find(parse, [b"0123456789"])


def test_a_fault_behind_two_outcomes_is_found(find):
    # Without keeping input that led to something new, both at once are too rare.
    def parse(data):
        if data[:1] != b"{":
            return "refused"
        if b"-0" not in data:
            return "half way"
        raise KeyError

    assert "KeyError" in find(parse, [b"0123456789" * 20])


def test_a_parser_that_does_not_end_is_found(find, monkeypatch):
    monkeypatch.setattr(run, "CPU_LIMIT_S", 0.1)

    def parse(data):
        while b"[[" in data:
            pass

    assert "_TooSlowError" in find(parse, [b"[a[b"])


def test_a_parser_that_allocates_what_the_input_claims_is_found():
    script = (
        "import random; from tests.fuzz import run; run._limit_memory()\n"
        "target = lambda data: str(len(bytes(int.from_bytes(data[:5], 'big'))))[:0]\n"
        "result = run.run_target(target, [b'\\0\\0\\0\\0\\1'], inputs=2000, seconds=20, "
        "randomness=random.Random(1))\n"
        "assert any('MemoryError' in place for place in result.failures), result\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=run.HERE.parent.parent, timeout=60)


def test_the_same_seed_gives_the_same_inputs_within_the_limit():
    seeds = [b"abc", b'{"a":1}', b"x" * 1000]
    one, other = random.Random(5), random.Random(5)
    made = [mutate(one, seeds) for _ in range(2000)]
    assert made == [mutate(other, seeds) for _ in range(2000)]
    assert len(set(made)) > 1500
    assert max(map(len, made)) <= MAX_INPUT_BYTES


def test_the_command_reports_and_exits_well(capsys):
    assert run.main(["--seconds", "5", "--inputs", "400", "--target", "cbor", "--target", "vkey"]) == 0
    assert "400 inputs" in capsys.readouterr().out


def test_a_parser_that_kills_the_process_is_found(tmp_path, monkeypatch, capsys):
    def parse(data):
        if data == b"boom":
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(run, "CRASHES", tmp_path / "crashes")
    monkeypatch.setattr(
        run, "load_targets", lambda: ({"a": parse, "b": parse}, {"a": [b"boom", b"x"], "b": [b"y"]})
    )
    assert run.main(["--inputs", "20", "--workers", "1"]) == 1
    output = capsys.readouterr().out
    assert "worker died with -9" in output
    assert "10 inputs" in output  # the other target still had its turn
    assert [path.read_bytes() for path in (tmp_path / "crashes").iterdir()] == [b"boom"]


def test_the_command_writes_what_failed(tmp_path, monkeypatch, capsys):
    def parse(data):
        raise ZeroDivisionError

    monkeypatch.setattr(run, "CRASHES", tmp_path / "crashes")
    monkeypatch.setattr(run, "load_targets", lambda: ({"bad": parse}, {"bad": [b"seed"]}))
    assert run.main(["--inputs", "10", "--workers", "1"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert [path.read_bytes() for path in (tmp_path / "crashes").iterdir()]
