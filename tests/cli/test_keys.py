"""`tallystick keys`: files, modes, names of keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ledger.core.note import parse_vkey
from tests.cli.conftest import Run, json_of


@pytest.mark.parametrize("algorithm", ["ed25519", "es256", "ml-dsa-44"])
def test_generate_and_show(tmp_path: Path, run: Run, algorithm: str) -> None:
    file = tmp_path / "keys" / "issuer.pem"
    made = json_of(run("keys", "generate", file, "--algorithm", algorithm, "--json"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made["algorithm"] == algorithm
    assert len(made["kid"]) == 64
    assert json_of(run("keys", "show", file, "--json")) == made
    public = tmp_path / "issuer.pub"
    public.write_text(made["public_key_pem"])
    assert json_of(run("keys", "show", public, "--json"))["kid"] == made["kid"]


def test_vkey_has_the_name(tmp_path: Path, run: Run) -> None:
    made = json_of(run("keys", "generate", tmp_path / "k.pem", "--name", "log.example.com/x", "--json"))
    assert parse_vkey(made["vkey"]).name == "log.example.com/x"


def test_vkey_of_another_algorithm_is_refused_and_nothing_written(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "k.pem"
    result = run("keys", "generate", file, "--algorithm", "es256", "--name", "log.example.com/x")
    assert result.exit_code == 2
    assert "remedy" in result.stderr
    assert not file.exists()


def test_private_parts_are_never_shown(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "k.pem"
    outputs = [run("keys", "generate", file), run("keys", "show", file), run("keys", "show", file, "--json")]
    body = file.read_text().splitlines()[1]
    assert all(body not in each.output and "PRIVATE" not in each.output for each in outputs)


def test_a_key_file_is_never_overwritten(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "k.pem"
    run("keys", "generate", file)
    before = file.read_bytes()
    result = run("keys", "generate", file)
    assert result.exit_code == 2
    assert file.read_bytes() == before


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "k.pem"
    run("keys", "generate", file)
    file.chmod(0o644)
    result = run("keys", "show", file)
    assert result.exit_code == 2
    assert "chmod 600" in result.stderr
