"""Single pieces of evidence: what they prove, that every byte counts, and what is told about the rest."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection

from ledger.audit import VerifyReport, verify_data, verify_file
from ledger.core.cosignature import cosign_ed25519
from ledger.core.errors import InvalidError
from ledger.core.keys import generate_key
from ledger.core.note import COSIGNATURE_ED25519, Note, VerifierKey, format_note, format_vkey, parse_note
from ledger.core.policy import parse_policy
from ledger.core.statements import transparent_statement
from ledger.core.tlog_proof import TlogProof, format_tlog_proof
from ledger.store import open_store, queries
from tests.audit.conftest import Log


@dataclass
class Evidence:
    """Every kind of evidence about one batch of the log."""

    receipt: bytes
    statement: bytes
    transparent: bytes
    checkpoint: bytes
    proof: bytes
    proof_with_entry: bytes
    record_proof: bytes
    index: int


def gather(log: Log, connection: Connection) -> Evidence:
    head = queries.log_head(connection)
    index = next(
        each.leaf_index
        for each in log.registrations
        if queries.statement(connection, each.leaf_index).kind == "batch"
    )
    statement = queries.statement(connection, index)
    receipt = queries.receipt(connection, index)
    path = tuple(queries.inclusion(connection, index, head.size))
    note = head.checkpoint.encode()
    line = queries.record_lines(connection, index)[2]
    found = queries.record_proof(connection, msgspec.json.decode(line)["id"])
    return Evidence(
        receipt=receipt,
        statement=statement.entry,
        transparent=transparent_statement(statement, [receipt]),
        checkpoint=note,
        proof=format_tlog_proof(TlogProof(index, path, note)),
        proof_with_entry=format_tlog_proof(TlogProof(index, path, note, statement.entry)),
        record_proof=msgspec.json.encode(
            {
                "record": base64.b64encode(found.found.line).decode(),
                "leaf_index": index,
                "position": found.found.position,
                "path": [each.hex() for each in found.path],
                "statement": base64.b64encode(found.entry).decode(),
                "receipt": base64.b64encode(found.receipt).decode(),
                "checkpoint": head.checkpoint,
            }
        ),
        index=index,
    )


@pytest.fixture(scope="session")
def evidence(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    store = open_store(log.copy(tmp_path_factory.mktemp("evidence") / "ledger.db"))
    with store.read() as connection:
        made = gather(log, connection)
    store.close()
    return made


KINDS = {
    "receipt": "receipt",
    "transparent": "transparent-statement",
    "checkpoint": "checkpoint",
    "proof": "tlog-proof",
    "proof_with_entry": "tlog-proof",
    "record_proof": "record-proof",
}


def check(log: Log, evidence: Evidence, name: str, data: bytes | None = None, **options) -> VerifyReport:
    if name in ("receipt", "proof"):
        options.setdefault("statement", evidence.statement)
    return verify_data(getattr(evidence, name) if data is None else data, log.vkey, **options)


@pytest.mark.parametrize("name", KINDS)
def test_evidence_is_sound_and_says_what_it_proves(name: str, log: Log, evidence: Evidence) -> None:
    report = check(log, evidence, name)
    assert report.findings == report.gaps == ()
    assert (report.verdict, report.kind) == ("sound", KINDS[name])
    told = " ".join(report.proves)
    assert "log.example.com/tallystick" in told
    if name != "checkpoint":
        assert "gpu-7.example.com/llama" in told
        assert f"leaf {evidence.index} of" in told
        assert "was not checked" in report.notes[0]  # the issuer's own signature


@pytest.mark.parametrize("name", [name for name in KINDS if name != "checkpoint"])
def test_issuers_key_is_used_where_it_is_given(name: str, log: Log, evidence: Evidence) -> None:
    store_key = log.old_key.public
    report = check(log, evidence, name, issuer_keys=[store_key])
    assert report.verdict == "sound"
    assert report.notes == ()
    assert any("signed it with the key" in each for each in report.proves)


@pytest.mark.parametrize("name", KINDS)
def test_every_byte_counts(name: str, log: Log, evidence: Evidence) -> None:
    data = getattr(evidence, name)
    rng = random.Random(name)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        report = check(log, evidence, name, changed)
        assert report.verdict != "sound", at
        assert report.proves == ()
        named = [each.where for each in (*report.findings, *report.gaps)]
        assert all(named), at
        assert named, at
    for changed in (data[:-1], data + b"\0", data + data, b""):
        assert check(log, evidence, name, changed).verdict != "sound"


def test_every_byte_of_the_statement_beside_a_receipt_counts(log: Log, evidence: Evidence) -> None:
    for at in range(len(evidence.statement)):
        changed = bytearray(evidence.statement)
        changed[at] ^= 1
        for name in ("receipt", "proof"):
            assert check(log, evidence, name, statement=bytes(changed)).verdict == "refuted", at


@pytest.mark.parametrize("name", ["receipt", "proof"])
def test_without_the_statement_it_cannot_be_told(name: str, log: Log, evidence: Evidence) -> None:
    report = check(log, evidence, name, statement=None)
    assert report.verdict == "unknown"
    assert "statement" in report.gaps[0].why


def test_a_bare_statement_proves_nothing(log: Log, evidence: Evidence) -> None:
    report = check(log, evidence, "statement")
    assert (report.verdict, report.kind) == ("unknown", "statement")


@pytest.mark.parametrize("name", KINDS)
def test_another_logs_key_does_not_vouch(name: str, log: Log, evidence: Evidence) -> None:
    key = generate_key().public.raw_bytes()
    other = format_vkey(VerifierKey.of("log.example.com/tallystick", 1, key))
    stranger = format_vkey(VerifierKey.of("other.example.com", 1, key))
    statement = evidence.statement if name in ("receipt", "proof") else None
    for vkey in (other, stranger):
        report = verify_data(getattr(evidence, name), vkey, statement=statement)
        assert report.verdict == ("unknown" if (name, vkey) == ("transparent", stranger) else "refuted")


def test_record_proof_that_was_written_again(log: Log, evidence: Evidence) -> None:
    indented = msgspec.json.format(evidence.record_proof, indent=2) + b"\n"
    assert check(log, evidence, "record_proof", indented).verdict == "sound"
    rewritten = msgspec.json.format(evidence.record_proof, indent=3)
    report = check(log, evidence, "record_proof", rewritten)
    assert report.verdict == "unknown"
    assert report.findings == ()


def test_witnesses(log: Log, evidence: Evidence) -> None:
    key = generate_key()
    note = parse_note(evidence.checkpoint)
    signature = cosign_ed25519(note.text, "witness.example.com", key.raw, 1_760_000_000)
    cosigned = format_note(Note(note.text, (*note.signatures, signature)))
    vkey = format_vkey(VerifierKey.of("witness.example.com", COSIGNATURE_ED25519, key.public.raw_bytes()))
    report = verify_data(cosigned, log.vkey, witness_vkeys=[vkey], quorum=1)
    assert report.verdict == "sound"
    assert any("witness.example.com" in each for each in report.proves)
    assert report.notes == ()
    assert "witness.example.com" in verify_data(cosigned, log.vkey).notes[0]
    missed = verify_data(evidence.checkpoint, log.vkey, witness_vkeys=[vkey], quorum=1)
    assert [each.code for each in missed.findings] == ["quorum-missed"]
    assert (
        verify_data(cosigned[:-8] + b"AAAA" + cosigned[-4:], log.vkey, witness_vkeys=[vkey]).verdict
        != "sound"
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_quorum_counts_for_every_kind(name: str, log: Log, evidence: Evidence) -> None:
    keys = [generate_key().public.raw_bytes() for _ in range(2)]
    vkeys = [
        format_vkey(VerifierKey.of(f"w{n}.example.com", COSIGNATURE_ED25519, key))
        for n, key in enumerate(keys)
    ]
    report = check(log, evidence, name, witness_vkeys=vkeys, quorum=2)
    assert report.proves == ()
    if name in ("receipt", "transparent"):  # they carry no cosignatures
        assert (report.verdict, [each.where for each in report.gaps]) == ("unknown", ["quorum"])
    else:
        assert [each.code for each in report.findings] == ["quorum-missed"]
    for asked in (vkeys, []):
        with pytest.raises(InvalidError, match="quorum of 3"):
            check(log, evidence, name, witness_vkeys=asked, quorum=3)


def test_a_quorum_counts_for_an_export(log: Log, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from tests.audit.test_export_hostile import export

    directory = export(log, tmp_path).directory
    key = generate_key().public.raw_bytes()
    vkey = format_vkey(VerifierKey.of("w.example.com", COSIGNATURE_ED25519, key))
    assert verify_file(directory, log.vkey).verdict == "sound"
    report = verify_file(directory, log.vkey, witness_vkeys=[vkey], quorum=1)
    assert [each.code for each in report.findings] == ["quorum-missed"]


def test_a_quorum_stands_alone(log: Log, evidence: Evidence) -> None:
    policy = parse_policy(b"quorum none\n")
    with pytest.raises(InvalidError, match="beside a policy"):
        check(log, evidence, "checkpoint", quorum=1, policy=policy)


def test_a_witness_with_two_keys_counts_once(log: Log, evidence: Evidence) -> None:
    first, second = generate_key(), generate_key()
    note = parse_note(evidence.checkpoint)
    both = [cosign_ed25519(note.text, "w.example.com", key.raw, 1_760_000_000) for key in (first, second)]
    cosigned = format_note(Note(note.text, (*note.signatures, *both)))
    names = ("w.example.com", "w.example.com", "other.example.com")
    vkeys = [
        format_vkey(VerifierKey.of(name, COSIGNATURE_ED25519, key.public.raw_bytes()))
        for name, key in zip(names, (first, second, generate_key()), strict=True)
    ]
    assert verify_data(cosigned, log.vkey, witness_vkeys=vkeys, quorum=1).verdict == "sound"
    assert verify_data(cosigned, log.vkey, witness_vkeys=vkeys, quorum=2).verdict == "refuted"


def test_what_is_no_evidence_refutes_nothing(log: Log, tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    database = log.copy(tmp_path / "ledger" / "ledger.db")
    for path in (database, database.parent):
        with pytest.raises(InvalidError, match=r"is a database|is not an export") as caught:
            verify_file(path, log.vkey)
        assert "tallystick audit" in caught.value.remedy


def test_files(log: Log, evidence: Evidence, tmp_path: Path) -> None:
    (tmp_path / "a.receipt").write_bytes(evidence.receipt)
    (tmp_path / "a.statement").write_bytes(evidence.statement)
    report = verify_file(tmp_path / "a.receipt", log.vkey, statement=tmp_path / "a.statement")
    assert (report.verdict, report.source) == ("sound", str(tmp_path / "a.receipt"))
    with pytest.raises(InvalidError):
        verify_file(tmp_path / "missing", log.vkey)
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    with pytest.raises(InvalidError):
        verify_file(tmp_path / "large", log.vkey)
    (tmp_path / "records").mkdir()
    assert verify_file(tmp_path, log.vkey).verdict == "refuted"  # an export without a manifest
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n")
    assert verify_file(tmp_path / "picture", log.vkey).verdict == "unknown"
