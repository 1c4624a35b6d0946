"""`tallystick receipt` and `verify`: what a folder or a service gives holds offline, unless it is changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledger.core.receipts import decode_receipt
from ledger.core.statements import decode_statement
from tests.cli.conftest import LedgerFolder, Run, RunningService, json_of


@pytest.fixture
def key(ledger: LedgerFolder) -> tuple[str, Path]:
    return "--log-key", ledger.path / "log.vkey"


@pytest.fixture
def issuer_key(ledger: LedgerFolder, tmp_path: Path) -> Path:
    file = tmp_path / "issuer.pub"
    file.write_bytes(ledger.issuer.key.public.to_pem())
    return file


def test_a_records_proof(
    ledger: LedgerFolder, key: tuple[str, Path], issuer_key: Path, tmp_path: Path, run: Run
) -> None:
    file = tmp_path / "receipt.json"
    record = ledger.records[6]
    told = json_of(run("receipt", "get", ledger.path, record.id, "--out", file, "--json"))
    assert told == {"kind": "record-proof", "bytes": file.stat().st_size, "file": str(file)}
    result = run("receipt", "verify", file, *key, "--issuer-key", issuer_key, "--json")
    assert result.exit_code == 0, result.output
    report = json_of(result)
    assert report["verdict"] == "sound"
    assert report["kind"] == "record-proof"
    assert any(record.id in sentence for sentence in report["proves"])
    assert any("signed it with the key" in sentence for sentence in report["proves"])
    assert report["findings"] == report["gaps"] == []


def test_a_changed_proof_is_refuted(
    ledger: LedgerFolder, key: tuple[str, Path], tmp_path: Path, run: Run
) -> None:
    file = tmp_path / "receipt.json"
    run("receipt", "get", ledger.path, ledger.records[6].id, "--out", file)
    proof = json.loads(file.read_text())
    proof["position"] += 1
    file.write_text(json.dumps(proof, indent=2))
    for command in (("receipt", "verify"), ("verify",)):
        result = run(*command, file, *key)
        assert result.exit_code == 1
        assert "REFUTED" in result.stdout


def test_a_transparent_statement(
    ledger: LedgerFolder, key: tuple[str, Path], tmp_path: Path, run: Run
) -> None:
    file = tmp_path / "statement.cose"
    assert run("receipt", "get", ledger.path, 4, "--out", file).exit_code == 0
    statement = decode_statement(file.read_bytes())
    assert len(statement.receipts) == 1
    assert json_of(run("verify", file, *key, "--json"))["kind"] == "transparent-statement"
    by_hash = run("receipt", "get", ledger.path, statement.leaf_hash.hex())
    assert by_hash.stdout_bytes == file.read_bytes()


def test_a_bare_receipt_needs_its_statement(
    ledger: LedgerFolder, key: tuple[str, Path], tmp_path: Path, run: Run
) -> None:
    receipt, statement = tmp_path / "receipt.cose", tmp_path / "statement.cose"
    run("receipt", "get", ledger.path, 4, "--bare", "--out", receipt)
    run("receipt", "get", ledger.path, 4, "--out", statement)
    assert decode_receipt(receipt.read_bytes()).leaf_index == 4
    alone = run("receipt", "verify", receipt, *key, "--json")
    assert alone.exit_code == 2
    assert json_of(alone)["verdict"] == "unknown"
    assert run("receipt", "verify", receipt, "--statement", statement, *key).exit_code == 0


def test_another_logs_key(ledger: LedgerFolder, own_ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "receipt.json"
    run("receipt", "get", ledger.path, ledger.records[0].id, "--out", file)
    result = run("receipt", "verify", file, "--log-key", own_ledger.path / "log.vkey")
    assert result.exit_code == 1


def test_a_checkpoint(ledger: LedgerFolder, key: tuple[str, Path], run: Run) -> None:
    result = run("verify", ledger.path / "published.checkpoint", *key, "--json")
    assert json_of(result)["kind"] == "checkpoint"
    quorum = run("verify", ledger.path / "published.checkpoint", *key, "--quorum", 1)
    assert quorum.exit_code != 0


def test_nonsense_cannot_be_told(key: tuple[str, Path], tmp_path: Path, run: Run) -> None:
    file = tmp_path / "thesis.tex"
    file.write_text("\\begin{document}")
    assert run("verify", file, *key).exit_code == 2


def test_a_service_gives_the_same_bytes(service: RunningService, run: Run) -> None:
    api_key = ("--api-key-file", service.admin_key)
    for entry, options in (("4", ()), ("4", ("--bare",))):
        local = run("receipt", "get", service.ledger.path, entry, *options)
        remote = run("receipt", "get", service.url, entry, *options, *api_key)
        assert remote.exit_code == 0, remote.output
        assert remote.stdout_bytes == local.stdout_bytes
    record = service.ledger.records[0].id
    local_proof = json_of(run("receipt", "get", service.ledger.path, record))
    remote_proof = json_of(run("receipt", "get", service.url, record, *api_key))
    assert remote_proof == local_proof


def test_unknown_entries(ledger: LedgerFolder, run: Run) -> None:
    for entry in ("99999", "ff" * 32, "what", "0198c0de-0000-7000-8000-000000000000"):
        result = run("receipt", "get", ledger.path, entry, "--json")
        assert result.exit_code == 2
        assert json_of(result)["error"]["code"] in ("not-found", "bad-entry-id")
