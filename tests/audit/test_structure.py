"""Rows put in, taken out or exchanged; histories cut back or forked; statements that no ledger takes."""

from __future__ import annotations

import hashlib
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from ledger import zstd
from ledger.audit import AuditReport, audit
from ledger.audit.database import SqliteSource
from ledger.audit.tables import COLUMNS, KEYS, place
from ledger.core import statements as st
from ledger.core.checkpoint import Checkpoint, sign_checkpoint
from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.keys import generate_key
from ledger.core.records import document_digest
from ledger.service.auth import check_sum
from tests.audit.conftest import Log, Writer
from tests.build import Issuer, make_deployment, make_price_book, make_records

Tampered = Callable[..., AuditReport]


def codes(report: AuditReport) -> set[str]:
    return {each.code for each in report.findings}


@pytest.mark.parametrize("table", COLUMNS)
def test_a_deleted_row_is_missed(table: str, log: Log, tampered: Tampered) -> None:
    columns = ", ".join(COLUMNS[table][: KEYS[table]])
    connection = sqlite3.connect(log.path)
    # Of API keys, those can be missed that the log says are in force.
    which = "WHERE label = 'granted'" if table == "api_key" else ""
    keys = connection.execute(f"SELECT {columns} FROM {table} {which}").fetchall()
    connection.close()
    assert keys
    condition = " AND ".join(f"{name} IS ?" for name in COLUMNS[table][: KEYS[table]])
    for key in keys:
        report = tampered((f"DELETE FROM {table} WHERE {condition}", key))
        assert report.verdict == "refuted", key
        named = place(table, *key)
        if (table, key) == ("checkpoint", (max(log.checkpoints),)):
            assert any(each.where.startswith("checkpoint") for each in report.findings)
        else:
            assert any(each.where.startswith(named) for each in report.findings), (key, report.findings)


@pytest.mark.parametrize("table", COLUMNS)
def test_an_emptied_table_is_noticed(table: str, tampered: Tampered) -> None:
    report = tampered(f"DELETE FROM {table}")
    assert report.verdict == "refuted"


@pytest.mark.parametrize(
    ("sql", "where"),
    [
        (
            "INSERT INTO record_index VALUES (x'0123456789abcdef0123456789abcdef', 4097)",
            "record_index[id=0123",
        ),
        ("INSERT INTO batch_slice VALUES (7, 'nobody', 'x', 1)", "batch_slice[leaf_index=7, tenant=nobody"),
        ("INSERT INTO batch_slice VALUES (900, 't', 'x', 1)", "batch_slice[leaf_index=900"),
        ("INSERT INTO rollup VALUES (1, 't', 'x', '[0]')", "rollup[hour=1"),
        ("INSERT INTO issuer VALUES ('x.example.com', 0, NULL)", "issuer[issuer=x.example.com]"),
        ("INSERT INTO issuer_key VALUES (x'00', 'x', -8, x'00', 1, NULL)", "issuer_key[kid=00]"),
        ("INSERT INTO document VALUES ('aa', 'deployment', 3, x'7b7d', 'm', NULL)", "document[digest=aa]"),
        ("INSERT INTO tile VALUES (0, 1, zeroblob(32))", "tile[level=0, idx=1]"),
        ("INSERT INTO tile VALUES (1, 0, zeroblob(32))", "tile[level=1, idx=0]"),
        ("INSERT INTO tile VALUES (-1, 0, zeroblob(32))", "tile[level=-1, idx=0]"),
        (
            "INSERT INTO checkpoint SELECT 1001, note FROM checkpoint WHERE size = 1",
            "checkpoint[size=1001]",
        ),
        ("INSERT INTO checkpoint SELECT -5, note FROM checkpoint WHERE size = 1", "checkpoint[size=-5]"),
        ("INSERT INTO log_head SELECT 2, origin, size, root, checkpoint FROM log_head", "log_head[id=2]"),
        (
            "INSERT INTO api_key VALUES ('x', x'00', 'admin', 'mine', 1, NULL, zeroblob(32), NULL)",
            "api_key[id=x]",
        ),
        (
            "INSERT INTO statement SELECT 1000, x'00', kind, 'z', 1, entry, tree_size, registered_s, "
            "receipt_signature, record_count, first_us, last_us, records_sha256, records "
            "FROM statement WHERE leaf_index = 3",
            "statement[leaf_index=1000]",
        ),
    ],
)
def test_an_inserted_row_is_found(sql: str, where: str, tampered: Tampered) -> None:
    sql = sql.replace("INTO statement SELECT 1000, x'00', kind, 'z', 1, entry", _STATEMENT)
    report = tampered(sql)
    assert report.verdict == "refuted"
    assert any(each.where.startswith(where) for each in report.findings), report.findings


_STATEMENT = (
    "INTO statement (leaf_index, leaf_hash, kind, issuer, seq, entry, tree_size, registered_s, "
    "receipt_signature, record_count, first_us, last_us, records_sha256, records) "
    "SELECT 1000, x'00', kind, 'z', 1, entry"
)


@pytest.mark.parametrize(
    ("sql", "where"),
    [
        ("DELETE FROM legal_hold WHERE reason = 'case 1'", "legal_hold[id="),
        ("UPDATE legal_hold SET lifted_s = 1 WHERE reason = 'case 1'", "].lifted_s"),
        ("UPDATE legal_hold SET lifted_s = NULL WHERE reason = 'case 2'", "].lifted_s"),
        ("UPDATE legal_hold SET to_us = 1 WHERE reason = 'case 1'", "].to_us"),
        ("UPDATE legal_hold SET reason = 'case 3' WHERE reason = 'case 1'", "].reason"),
        ("INSERT INTO legal_hold VALUES ('x', NULL, NULL, NULL, 'mine', 1, NULL)", "legal_hold[id=x]"),
        ("UPDATE retention_policy SET keep_days = 184 WHERE tenant = ''", "].keep_days"),
        ("DELETE FROM retention_policy WHERE tenant = 't-1'", "retention_policy[tenant=t-1, kind=records]"),
        ("INSERT INTO retention_policy VALUES ('t-2', 'records', 900)", "retention_policy[tenant=t-2"),
    ],
)
def test_holds_and_policies_are_those_of_the_acts(sql: str, where: str, tampered: Tampered) -> None:
    report = tampered(sql)
    assert report.verdict == "refuted"
    assert [where in each.where for each in report.findings] == [True], report.findings


def test_a_revoked_key_does_not_come_back(log: Log, tampered: Tampered) -> None:
    connection = sqlite3.connect(log.path)
    row = dict(
        zip(
            COLUMNS["api_key"],
            connection.execute(
                f"SELECT {', '.join(COLUMNS['api_key'])} FROM api_key WHERE label = 'withdrawn'"
            ).fetchone(),
            strict=True,
        )
    )
    connection.close()
    assert row.pop("revoked_s") is not None
    del row["check_sha256"]
    check = check_sum(**row, revoked_s=None)  # who can write the table can write its digests
    report = tampered(
        (
            "UPDATE api_key SET revoked_s = NULL, check_sha256 = ? WHERE label = 'withdrawn'",
            (check,),
        )
    )
    assert [each.where for each in report.findings] == [f"api_key[id={row['id']}].revoked_s"]


def test_a_far_leaf_is_not_counted_up_to(tampered: Tampered) -> None:
    report = tampered("UPDATE statement SET leaf_index = 4611686018427387904 WHERE leaf_index = 6")
    assert {"leaf-missing", "leaf-extra"} <= codes(report)


@pytest.mark.parametrize("evidence_only", [False, True])
@pytest.mark.parametrize("first", [b"", b'{"erased":"', b"x"])
def test_a_block_of_empty_lines_takes_no_memory(
    first: bytes, evidence_only: bool, log: Log, tampered: Tampered
) -> None:
    block = zstd.compress(first + b"\n" * (60 << 20))
    assert len(block) < 10_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = tampered(
        (
            "UPDATE statement SET records = ?, records_sha256 = ? WHERE leaf_index = 5",
            (block, hashlib.sha256(block).digest()),
        ),
        evidence_only=evidence_only,
    )
    assert any(each.where.startswith("statement[leaf_index=5].records") for each in report.findings)
    # 60 MiB unpacked, twice at most; a list of the lines alone takes 480.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_exchanged_statements_are_found(log: Log, tampered: Tampered) -> None:
    report = tampered(
        "UPDATE statement SET leaf_index = -1 WHERE leaf_index = 7",
        "UPDATE statement SET leaf_index = 7 WHERE leaf_index = 10",
        "UPDATE statement SET leaf_index = 10 WHERE leaf_index = -1",
    )
    assert report.verdict == "refuted"
    named = " ".join(each.where for each in report.findings)
    assert "statement[leaf_index=7].entry" in named
    assert "statement[leaf_index=10].entry" in named


def test_one_damaged_row_is_one_finding(tampered: Tampered) -> None:
    """A changed entry does not drag the chain, the tree and the checkpoints behind it along."""
    report = tampered(
        "UPDATE tile SET hashes = CAST(zeroblob(32) || substr(hashes, 33) AS BLOB) WHERE level = 0"
    )
    assert [each.where for each in report.findings] == ["tile[level=0, idx=0], hash 0"]
    report = tampered("UPDATE statement SET leaf_hash = zeroblob(32) WHERE leaf_index = 9")
    assert [each.where for each in report.findings] == ["statement[leaf_index=9].leaf_hash"]
    report = tampered("UPDATE statement SET records_sha256 = zeroblob(32) WHERE leaf_index = 7")
    assert [each.where for each in report.findings] == ["statement[leaf_index=7].records_sha256"]


def test_findings_are_limited_and_counted(tampered: Tampered) -> None:
    report = tampered("UPDATE record_index SET place = place + 1000000", limit=5)
    assert len(report.findings) == 5
    assert report.more_findings == 15


def test_a_duplicate_record_id_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger refuses it, so it is made to forget an id."""
    writer = Writer(tmp_path / "ledger.db")
    issuer = writer.issuer("gpu-7.example.com/llama")
    deployment = make_deployment()
    writer.log(issuer.deployment(deployment))
    records = make_records(3, deployment)
    writer.log(issuer.batch(records))
    connection = sqlite3.connect(writer.path)
    connection.execute("DELETE FROM record_index WHERE place % 4096 = 1")
    connection.commit()
    connection.close()
    writer.log(issuer.batch([records[1]]))
    log = writer.close()
    report = log.audit()
    assert codes(report) == {"duplicate-record"}
    assert "records[1]" in report.findings[0].where


# --- history ---------------------------------------------------------------------------------------------


def test_an_older_copy_is_a_rollback(log: Log, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "ledger.db")
    issuer = writer.issuer("gpu-7.example.com/llama")
    writer.log(issuer.heartbeat())
    writer.sequencer.stop()
    connection = sqlite3.connect(writer.path)
    connection.execute("VACUUM INTO ?", (str(tmp_path / "older.db"),))
    connection.close()
    writer.sequencer = type(writer.sequencer)(writer.store, writer.log_key)
    writer.sequencer.start()
    writer.log(issuer.heartbeat())
    whole = writer.close()
    newest = whole.checkpoints[max(whole.checkpoints)]
    assert whole.audit(tmp_path / "older.db").verdict == "sound"
    report = whole.audit(tmp_path / "older.db", known_checkpoints=[newest])
    assert codes(report) == {"rolled-back"}
    assert whole.audit(known_checkpoints=list(whole.checkpoints.values())).verdict == "sound"


def test_a_fork_is_proven(log: Log) -> None:
    size = min(each for each in log.checkpoints if each > 3)
    forked = sign_checkpoint(Checkpoint("log.example.com/tallystick", size, b"\1" * 32), log.log_key.raw)
    report = log.audit(known_checkpoints=[forked])
    assert codes(report) == {"forked"}
    assert str(size) in report.findings[0].where


def test_known_checkpoints_must_be_the_logs(log: Log) -> None:
    other = sign_checkpoint(Checkpoint("log.example.com/tallystick", 1, b"\1" * 32), generate_key().raw)
    for note in (other, b"nonsense"):
        with pytest.raises(InvalidError, match="known checkpoint"):
            log.audit(known_checkpoints=[note])


def test_another_key_vouches_for_nothing(log: Log, tmp_path: Path) -> None:
    other = Writer(tmp_path / "other.db").close()
    report = audit(SqliteSource(log.path), other.vkey)
    assert report.verdict == "refuted"
    assert codes(report) == {"no-checkpoint"}
    assert report.checkpoint is None
    with pytest.raises(InvalidError):
        audit(SqliteSource(log.path), "nonsense")


# --- issuers ---------------------------------------------------------------------------------------------


def test_keys_that_the_auditor_has_are_compared(log: Log) -> None:
    name = log.issuers[1].name
    good = {name: [log.issuers[1].key.public]}
    assert log.audit(issuer_keys=good).verdict == "sound"
    report = log.audit(issuer_keys={name: [generate_key().public]})
    assert codes(report) == {"unexpected-key"}
    assert name in report.findings[0].what


class Lenient:
    """Makes the store take what it would refuse, to see that the auditor does not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.monkeypatch = monkeypatch
        self.writer = Writer(path)
        self.issuer = self.writer.issuer("gpu-7.example.com/llama")

    def off(self, name: str) -> None:
        self.monkeypatch.setattr(name, lambda *_, **__: None)

    def report(self) -> AuditReport:
        return self.writer.close().audit()


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lenient:
    return Lenient(monkeypatch, tmp_path / "ledger.db")


def test_a_statement_by_an_unknown_key(lenient: Lenient) -> None:
    stranger = Issuer("gpu-9.example.com", generate_key())
    lenient.writer.keys[stranger.key.public.kid] = stranger.key.public
    lenient.writer.sequencer.add_key(stranger.name, generate_key().public).result(timeout=30)
    lenient.off("ledger.store._accept._check_in_force")
    lenient.writer.log(stranger.heartbeat())
    assert codes(lenient.report()) == {"unknown-key"}


def test_a_statement_by_another_issuers_key(lenient: Lenient) -> None:
    thief = Issuer("gpu-9.example.com", lenient.issuer.key)
    lenient.writer.sequencer.add_key(thief.name, generate_key().public).result(timeout=30)
    lenient.writer.log(thief.heartbeat())
    assert codes(lenient.report()) == {"unknown-key"}


def test_a_statement_by_a_revoked_key(lenient: Lenient) -> None:
    lenient.writer.log(lenient.issuer.heartbeat())
    lenient.writer.sequencer.revoke_key(lenient.issuer.name, lenient.issuer.key.public).result(timeout=30)
    lenient.off("ledger.store._accept._check_in_force")
    lenient.writer.log(lenient.issuer.heartbeat())
    assert codes(lenient.report()) == {"revoked-key"}


def test_a_signature_that_does_not_verify(lenient: Lenient) -> None:
    forger = Issuer(lenient.issuer.name, generate_key())
    statement = forger.heartbeat()
    entry = statement.entry.replace(forger.key.public.kid, lenient.issuer.key.public.kid)
    lenient.off("ledger.store.prepare.verify_statement")
    lenient.writer.log(st.decode_statement(entry))
    assert codes(lenient.report()) == {"bad-signature"}


def test_a_batch_without_its_deployment(lenient: Lenient) -> None:
    lenient.off("ledger.store._accept._check_documents")
    lenient.writer.log(lenient.issuer.batch(make_records(2, make_deployment())))
    assert codes(lenient.report()) == {"unknown-document"}


@pytest.mark.parametrize(("version", "wrong"), [("1", set()), ("2", {"unknown-document"})])
def test_a_batch_and_its_price_book(lenient: Lenient, version: str, wrong: set[str]) -> None:
    deployment = make_deployment()
    lenient.writer.log(
        lenient.issuer.deployment(deployment), lenient.issuer.prices(make_price_book(version="1"))
    )
    lenient.off("ledger.store._accept._check_documents")
    named = document_digest(make_price_book(version=version))
    lenient.writer.log(lenient.issuer.batch(make_records(1, deployment), prices=(named,)))
    assert codes(lenient.report()) == wrong


def test_a_batch_whose_statement_says_other_than_its_records(lenient: Lenient) -> None:
    deployment = make_deployment()
    records = make_records(3, deployment)
    lenient.writer.log(lenient.issuer.deployment(deployment))
    lenient.off("ledger.store.prepare._check_batch")
    totals = structs.replace(st.sum_records(records), output_tokens=1)
    lenient.writer.log(lenient.issuer.batch(records, totals=totals))
    report = lenient.report()
    assert codes(report) == {"wrong-summary"}
    assert "totals" in report.findings[0].what


def test_a_broken_chain(lenient: Lenient) -> None:
    first = lenient.issuer.heartbeat()
    lenient.writer.log(first)
    lenient.issuer.seq = 5
    real = __import__("ledger.store._accept", fromlist=["next_head"])
    lenient.monkeypatch.setattr(
        real,
        "next_head",
        lambda head, statement, **_: type(head)(statement.payload.seq + 1, statement.leaf_hash),
    )
    lenient.writer.log(lenient.issuer.heartbeat(), lenient.issuer.heartbeat())
    assert [each.code for each in lenient.report().findings] == ["seq-gap"]


# --- what cannot be read ---------------------------------------------------------------------------------


def test_unknown_tables_and_revisions_are_not_called_sound(tampered: Tampered) -> None:
    report = tampered("CREATE TABLE later (x)")
    assert (report.verdict, report.gaps[0].where) == ("unknown", "table later")
    report = tampered("UPDATE alembic_version SET version_num = '9999'")
    assert (report.verdict, "9999" in report.gaps[0].where) == ("unknown", True)


@pytest.mark.parametrize("table", [name for name in COLUMNS if name != "log_head"])
def test_a_missing_table_is_not_called_sound(table: str, tampered: Tampered) -> None:
    report = tampered("PRAGMA foreign_keys=OFF", f"DROP TABLE {table}")
    assert report.verdict in ("unknown", "refuted")
    assert report.gaps


def test_text_that_is_no_text(tampered: Tampered) -> None:
    report = tampered("UPDATE document SET model = CAST(x'ff00fe' AS TEXT) WHERE kind = 'deployment'")
    assert report.verdict == "refuted"
    assert report.findings[0].where.endswith(".model")


def test_what_is_no_ledger(tmp_path: Path, log: Log) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UnavailableError):
        log.audit(tmp_path / "text")
    with pytest.raises(InvalidError):
        log.audit(tmp_path / "missing")


def test_a_damaged_file_is_never_sound(log: Log, tmp_path: Path) -> None:
    """Whole pages of the file overwritten: found, or not readable, never overlooked."""
    data = log.path.read_bytes()
    page = int.from_bytes(data[16:18], "big")
    path = tmp_path / "copy.db"
    indexes_only = 0
    for at in range(0, len(data), page):
        path.write_bytes(data[:at] + bytes(page) + data[at + page :])
        try:
            report = log.audit(path)
        except UnavailableError:
            continue
        indexes_only += report.verdict == "sound"
    # Pages that hold no row - of secondary indexes, or free ones - bear no evidence.
    assert indexes_only < len(data) // page // 2


def test_auditing_changes_nothing(log: Log, tmp_path: Path) -> None:
    path = log.copy(tmp_path / "copy.db")
    before = path.read_bytes()
    path.chmod(0o444)
    assert log.audit(path).verdict == "sound"
    assert path.read_bytes() == before


def test_a_read_only_medium(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In WAL mode, where the files that SQLite wants beside the database cannot be made."""
    path = log.copy(tmp_path / "copy.db")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    real = sqlite3.connect

    def connect(target: str, **options: object) -> sqlite3.Connection:
        if "immutable" not in target:
            raise sqlite3.OperationalError("unable to open database file")
        return real(target, **options)

    monkeypatch.setattr(sqlite3, "connect", connect)
    assert log.audit(path).verdict == "sound"
    Path(f"{path}-wal").write_bytes(b"x")
    with pytest.raises(UnavailableError):
        log.audit(path)
