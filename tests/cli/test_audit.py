"""`tallystick audit`: verdicts, exit codes, remembered checkpoints, on a folder, a database and a service."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import text

from ledger.core.checkpoint import parse_checkpoint_text
from ledger.core.note import parse_note
from ledger.store import open_store
from tests.cli.conftest import LedgerFolder, Run, RunningService, json_of, log_size


def key_of(ledger: LedgerFolder) -> tuple[str, Path]:
    return "--log-key", ledger.path / "log.vkey"


def forge(ledger: LedgerFolder) -> None:
    """Change one byte of a logged statement."""
    store = open_store(ledger.path / "ledger.db")
    with store.write() as connection:
        entry = connection.execute(text("SELECT entry FROM statement WHERE leaf_index = 2")).scalar_one()
        changed = entry[:-1] + bytes([entry[-1] ^ 1])
        connection.execute(
            text("UPDATE statement SET entry = :entry WHERE leaf_index = 2"), {"entry": changed}
        )
    store.close()


@pytest.mark.parametrize("target", ["", pytest.param("ledger.db", marks=pytest.mark.sqlite)])
def test_a_sound_log(ledger: LedgerFolder, run: Run, target: str) -> None:
    result = run("audit", ledger.path / target, *key_of(ledger), "--json")
    assert result.exit_code == 0, result.output
    report = json_of(result)
    assert report["verdict"] == "sound"
    assert report["checkpoint"]["size"] == report["counts"]["statements"] == log_size(ledger.path)
    assert report["counts"]["records"] == len(ledger.records)
    assert report["findings"] == report["gaps"] == []


def test_the_key_can_be_given_as_text(ledger: LedgerFolder, run: Run) -> None:
    result = run("audit", ledger.path, "--log-key", ledger.vkey)
    assert result.exit_code == 0
    assert "SOUND" in result.stdout
    assert result.stderr == ""


def test_a_forged_log_is_refuted_and_the_place_named(own_ledger: LedgerFolder, run: Run) -> None:
    forge(own_ledger)
    result = run("audit", own_ledger.path, *key_of(own_ledger), "--json")
    assert result.exit_code == 1
    report = json_of(result)
    assert report["verdict"] == "refuted"
    assert any("leaf_index=2" in finding["where"] for finding in report["findings"])
    people = run("audit", own_ledger.path, *key_of(own_ledger))
    assert people.exit_code == 1
    assert "REFUTED" in people.stdout
    assert "leaf_index=2" in people.stdout


def test_another_logs_key_does_not_vouch(ledger: LedgerFolder, own_ledger: LedgerFolder, run: Run) -> None:
    assert run("audit", ledger.path, *key_of(own_ledger)).exit_code == 1


def test_a_service(service: RunningService, run: Run) -> None:
    key = ("--api-key-file", service.admin_key)
    result = run("audit", service.url, *key_of(service.ledger), *key, "--json")
    assert result.exit_code == 0, result.output
    assert json_of(result)["counts"]["records"] == len(service.ledger.records)


def test_without_a_key_for_records_it_cannot_tell(service: RunningService, run: Run) -> None:
    result = run("audit", service.url, *key_of(service.ledger), "--json")
    assert result.exit_code == 2
    report = json_of(result)
    assert report["verdict"] == "unknown"
    assert report["gaps"]


def test_a_service_that_is_not_there(ledger: LedgerFolder, run: Run) -> None:
    result = run("audit", "http://127.0.0.1:1", *key_of(ledger))
    assert result.exit_code == 2


@pytest.mark.sqlite
def test_remember_notices_a_log_that_was_cut_back(own_ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    older = tmp_path / "older"
    shutil.copytree(own_ledger.path, older)
    key = tmp_path / "k.pem"
    run("keys", "generate", key)
    assert run("issuers", "add", own_ledger.path, "late.example.com", "--key", key).exit_code == 0
    seen = tmp_path / "seen.checkpoint"
    first = run("audit", own_ledger.path, *key_of(own_ledger), "--remember", seen)
    assert first.exit_code == 0, first.output
    remembered = parse_checkpoint_text(parse_note(seen.read_bytes()).text)
    assert remembered.size == log_size(own_ledger.path)
    before = seen.read_bytes()
    result = run("audit", older, *key_of(own_ledger), "--remember", seen, "--json")
    assert result.exit_code == 1
    assert [each["code"] for each in json_of(result)["findings"]] == ["rolled-back"]
    assert seen.read_bytes() == before
    known = run("audit", older, *key_of(own_ledger), "--known-checkpoint", seen)
    assert known.exit_code == 1


def test_remember_moves_on(own_ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    seen = tmp_path / "seen.checkpoint"
    sizes = []
    for number in range(2):
        key = tmp_path / f"{number}.pem"
        run("keys", "generate", key)
        run("issuers", "add", own_ledger.path, f"n{number}.example.com", "--key", key)
        assert run("audit", own_ledger.path, *key_of(own_ledger), "--remember", seen).exit_code == 0
        sizes.append(parse_checkpoint_text(parse_note(seen.read_bytes()).text).size)
    assert sizes[1] == sizes[0] + 1


def test_a_checkpoint_of_another_log_is_an_error(
    ledger: LedgerFolder, own_ledger: LedgerFolder, run: Run
) -> None:
    other = own_ledger.path / "published.checkpoint"
    result = run("audit", ledger.path, *key_of(ledger), "--known-checkpoint", other, "--json")
    assert result.exit_code == 2
    assert json_of(result)["error"]["code"] == "bad-known-checkpoint"
