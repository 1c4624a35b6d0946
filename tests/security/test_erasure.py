"""A record erased: its bytes are gone from every file, all else is proven, the audit says which and why."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ledger import zstd
from ledger.audit import audit
from ledger.audit.database import PostgresSource, SqliteSource
from ledger.audit.export import ExportSource
from ledger.core.erased import ERASED_MARK, erased_hash, erased_line, line_hash
from ledger.core.errors import InvalidError, RefusedError, UnavailableError
from ledger.core.merkle import leaf_hash, root_from_inclusion
from ledger.core.receipts import decode_receipt, verify_receipt
from ledger.core.records import encode_record
from ledger.core.statements import Batch, Erasure, decode_statement
from ledger.export.parquet import export_parquet
from ledger.store import erasure, queries
from ledger.store.acts import acts
from ledger.store.erasure import Wanted, erase, purge
from ledger.store.holds import holds, lift_hold, place_hold
from tests.security.conftest import World

RULE = "GDPR Art. 17, request 2026-114"


def check(world: World, **options: Any) -> Any:
    source: Any = (
        SqliteSource(world.url.removeprefix("sqlite:///"))
        if world.url.startswith("sqlite")
        else PostgresSource(world.url)
    )
    return audit(source, world.vkey, **options)


def traces(record: Any, block: bytes) -> list[bytes]:
    """What would show that a record's bytes are still there: plain, in its compressed block, its id."""
    line = encode_record(record)
    return [
        line,
        line[: len(line) // 2],
        block[16:80],
        block[-64:],
        bytes.fromhex(record.id.replace("-", "")),
    ]


def files_with(folder: Path, needles: list[bytes], *, below: str = "") -> dict[str, int]:
    found = {}
    for path in sorted((folder / below).rglob("*")):
        if path.is_file() and "pg_wal" not in path.parts:
            data = path.read_bytes()
            for number, needle in enumerate(needles):
                if needle in data:
                    found[str(path.relative_to(folder))] = number
    return found


def traces_left(world: World, needles: list[bytes]) -> dict[str, int]:
    """Which files of the world's own database have a needle; those of other tests have the same records."""
    if world.url.startswith("sqlite"):
        return files_with(world.files, needles)
    own = world.scalar("SELECT oid FROM pg_database WHERE datname = current_database()")
    return files_with(world.files, needles, below=f"base/{own}")


def test_erased_record_is_gone_and_all_else_is_proven(world: World, tmp_path: Path) -> None:
    world.log_batch(["a", "b", "a", "b"])
    world.log_batch(["b", "b"])
    world.log_batch(["a"])
    record, leaf, _ = world.logged[2]
    block = bytes(world.scalar(f"SELECT records FROM statement WHERE leaf_index = {leaf}"))
    needles = traces(record, block)
    if not world.url.startswith("sqlite"):
        with world.store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")  # as autovacuum does: the planner keeps values of its own
            connection.exec_driver_sql("CHECKPOINT")
    assert traces_left(world, needles), "the test must see what it looks for"
    with world.store.read() as connection:
        before = {
            r.id: queries.record_proof(connection, r.id) for r, _, _ in world.logged if r.id != record.id
        }

    done = erase(world.store, world.sequencer, Wanted(ids=(record.id,)), RULE)
    assert (done.records, done.statements, done.held) == (1, 1, 0)
    purge(world.store)

    assert traces_left(world, needles) == {}
    with world.store.read() as connection:
        with pytest.raises(InvalidError) as caught:
            queries.record_by_id(connection, record.id)
        assert caught.value.code == "not-found"
        lines = queries.record_lines(connection, leaf)
        assert erased_hash(lines[2]) == leaf_hash(encode_record(record))
        statement = queries.statement(connection, done.first_leaf or 0).payload
        for record_id, old in before.items():
            proof = queries.record_proof(connection, record_id)
            assert proof == old
            payload = decode_statement(proof.entry).payload
            assert isinstance(payload, Batch)
            root = root_from_inclusion(
                leaf_hash(proof.found.line), proof.found.position, payload.count, list(proof.path)
            )
            assert root.hex() == payload.root
            verify_receipt(decode_receipt(proof.receipt), leaf_hash(proof.entry), world.log_key.public)
        page, _ = queries.records(connection, queries.RecordFilter(), limit=100)
        rows = queries.rollups(connection, ["tenant"])
    assert isinstance(statement, Erasure)
    assert (statement.positions, statement.rule) == ((2,), RULE)
    assert [each.record.id for each in page] == [r.id for r, _, _ in world.logged if r.id != record.id]
    left = [r for r in world.records_of("a") if r.id != record.id]
    assert rows[0]["records"] == len(left)
    assert rows[0]["energy_uj"] == sum(r.energy.energy_uj for r in left)  # type: ignore[union-attr]

    report = check(world)
    assert report.verdict == "sound", report.findings
    assert report.counts.records == len(world.logged) - 1
    assert [note for note in report.notes if f"1 under the rule {RULE!r}" in note]
    assert check(world, evidence_only=True).findings == ()

    export = tmp_path / "export"
    export_parquet(world.store, export, log_key=world.log_key)
    report = audit(ExportSource(export), world.vkey)
    assert report.verdict == "sound", report.findings
    assert report.counts.records == len(world.logged) - 1
    assert files_with(export, needles[:2]) == {}


def test_nothing_is_called_purged_that_an_older_transaction_still_sees(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.url.startswith("sqlite"):
        pytest.skip("there, the database waits for its readers")
    monkeypatch.setattr(erasure, "_PURGE_TRIES", 1)
    world.log_batch(["a", "b"])
    record, leaf, _ = world.logged[0]
    needles = traces(record, bytes(world.scalar(f"SELECT records FROM statement WHERE leaf_index = {leaf}")))
    with world.store.read() as reader:
        reader.execute(text("SELECT 1"))  # its snapshot is enough, it need not read a table
        erase(world.store, world.sequencer, Wanted(ids=(record.id,)), RULE)
        with pytest.raises(UnavailableError, match="older than what was erased"):
            purge(world.store)
    purge(world.store)
    assert traces_left(world, needles) == {}


def test_whole_batches_of_a_tenant(world: World, tmp_path: Path) -> None:
    for tenants in (["a", "b"], ["a", "a", "a"], ["b"], ["a"]):
        world.log_batch(tenants)
    done = erase(world.store, world.sequencer, Wanted(tenant="a"), RULE)
    assert (done.records, done.statements) == (5, 3)
    purge(world.store)
    assert world.scalar("SELECT count(*) FROM batch_slice WHERE tenant = 'a'") == 0
    assert world.scalar("SELECT count(*) FROM rollup WHERE tenant = 'a'") == 0
    assert world.scalar("SELECT count(*) FROM record_index") == 2
    report = check(world)
    assert report.verdict == "sound", report.findings
    export = tmp_path / "export"
    export_parquet(world.store, export, log_key=world.log_key)
    report = audit(ExportSource(export), world.vkey)
    assert report.verdict == "sound", report.findings
    assert report.counts.records == 2
    # The log goes on, and sums are right afterwards.
    world.log_batch(["a", "b"])
    assert check(world).verdict == "sound"
    # Doing it again erases what came since, and no more.
    assert erase(world.store, world.sequencer, Wanted(tenant="a"), RULE).records == 1
    assert erase(world.store, world.sequencer, Wanted(tenant="a"), RULE).records == 0
    assert check(world).verdict == "sound"


def test_period_and_others(world: World) -> None:
    world.log_batch(["a", "b", "c", "a"])
    times = [record.started_us for record, _, _ in world.logged]
    wanted = Wanted(from_us=times[1], to_us=times[3], others_than=frozenset({"c"}))
    assert erase(world.store, world.sequencer, wanted, RULE).records == 1
    with world.store.read() as connection:
        left = [each.record.id for each in queries.iterate_records(connection, queries.RecordFilter())]
    assert left == [world.logged[at][0].id for at in (0, 2, 3)]


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(ids=("nope",)),
        Wanted(ids=("019ab0c2-7d1e-7a55-9a3b-0f1e2d3c4b5a",)),
        Wanted(from_us=5, to_us=5),
        Wanted(ids=("x",) * 100_001),
    ],
)
def test_what_cannot_be_meant_is_refused(sqlite_world: World, wanted: Wanted) -> None:
    sqlite_world.log_batch(["a"])
    with pytest.raises(InvalidError):
        erase(sqlite_world.store, sqlite_world.sequencer, wanted, RULE)
    with pytest.raises(InvalidError):
        erase(sqlite_world.store, sqlite_world.sequencer, Wanted(tenant="a"), "two\nlines")
    assert check(sqlite_world).counts.records == 1


def test_record_of_another_tenant_is_not_erased_by_its_id(sqlite_world: World) -> None:
    sqlite_world.log_batch(["a", "b"])
    other = sqlite_world.records_of("b")[0]
    with pytest.raises(InvalidError) as caught:
        erase(sqlite_world.store, sqlite_world.sequencer, Wanted(ids=(other.id,), tenant="a"), RULE)
    assert caught.value.code == "not-found"
    assert check(sqlite_world).counts.records == 2


# --- legal holds -----------------------------------------------------------------------------------------


def test_legal_hold(world: World) -> None:
    world.log_batch(["a", "b", "a"])
    hold, statement = place_hold("litigation 7", tenant="a", from_us=world.logged[2][0].started_us)
    world.sequencer.log_own(statement).result(30)
    held, free = world.logged[2][0], world.logged[0][0]
    with pytest.raises(RefusedError) as caught:
        erase(world.store, world.sequencer, Wanted(tenant="a"), RULE)
    assert caught.value.code == "legal-hold"
    assert check(world).counts.records == 3
    done = erase(world.store, world.sequencer, Wanted(tenant="a"), RULE, leave_held=True)
    assert (done.records, done.held) == (1, 1)
    with world.store.read() as connection:
        assert queries.record_by_id(connection, held.id).record == held
        with pytest.raises(InvalidError):
            queries.record_by_id(connection, free.id)
    world.sequencer.log_own(lift_hold(hold.id)).result(30)
    with pytest.raises(InvalidError):
        world.sequencer.log_own(lift_hold(hold.id)).result(30)
    assert erase(world.store, world.sequencer, Wanted(tenant="a"), RULE).records == 1
    with world.store.read() as connection:
        assert [each.lifted_s is None for each in holds(connection)] == [False]
        did = [act.action for act in acts(connection)]
    assert did[-4:] == ["hold.place", "records.erase", "hold.lift", "records.erase"]
    assert check(world).verdict == "sound"


def test_hold_that_comes_between_finding_and_erasing_still_holds(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite_world
    world.log_batch(["a"])
    real = world.sequencer.log_own

    def slow(statement: Any) -> Any:
        monkeypatch.setattr(world.sequencer, "log_own", real)
        real(place_hold("just now", tenant="a")[1]).result(30)
        return real(statement)

    monkeypatch.setattr(world.sequencer, "log_own", slow)
    with pytest.raises(RefusedError) as caught:
        erase(world.store, world.sequencer, Wanted(tenant="a"), RULE)
    assert caught.value.code == "legal-hold"
    report = check(world)
    assert (report.verdict, report.counts.records) == ("sound", 1)


# --- the audit refutes what the log does not say ---------------------------------------------------------


def rewrite(path: Path, leaf: int, change: Any) -> None:
    """Change a batch's lines behind the ledger's back, as carefully as somebody can who has the file."""
    with sqlite3.connect(path) as database:
        (block,) = database.execute("SELECT records FROM statement WHERE leaf_index = ?", (leaf,)).fetchone()
        lines = (zstd.decompress_bounded(block, 1 << 20) or b"")[:-1].split(b"\n")
        change(lines)
        new = zstd.compress(b"".join(line + b"\n" for line in lines), level=1)
        database.execute(
            "UPDATE statement SET records = ?, records_sha256 = ? WHERE leaf_index = ?",
            (new, hashlib.sha256(new).digest(), leaf),
        )
    database.close()


def test_silent_removal_is_refuted(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    leaf = world.log_batch(["a", "b", "a"])
    record = world.logged[1][0]
    world.sequencer.stop()
    path = tmp_path / "ledger.db"

    def remove(lines: list[bytes]) -> None:
        lines[1] = erased_line(line_hash(lines[1]))

    rewrite(path, leaf, remove)
    with sqlite3.connect(path) as database:
        database.execute(
            "DELETE FROM record_index WHERE id = ?", (bytes.fromhex(record.id.replace("-", "")),)
        )
        database.execute("DELETE FROM batch_slice WHERE tenant = 'b'")
        database.execute("DELETE FROM rollup WHERE tenant = 'b'")
    database.close()
    for options in ({}, {"evidence_only": True}):
        report = check(world, **options)
        assert report.verdict == "refuted"
        (finding,) = report.findings
        assert finding.code == "erased-silently"
        assert finding.where == f"statement[leaf_index={leaf}].records[1]"


def test_another_record_than_said_is_refuted(sqlite_world: World, tmp_path: Path) -> None:
    """An erasure statement is no free pass: it names positions."""
    world = sqlite_world
    leaf = world.log_batch(["a", "b", "c"])
    erase(world.store, world.sequencer, Wanted(tenant="a"), RULE)
    world.sequencer.stop()

    def remove(lines: list[bytes]) -> None:
        lines[1] = erased_line(line_hash(lines[1]))

    rewrite(tmp_path / "ledger.db", leaf, remove)
    codes = {each.code for each in check(world).findings}
    assert "erased-silently" in codes


def test_wrong_hash_in_place_of_a_record_is_refuted(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    leaf = world.log_batch(["a", "b"])
    erase(world.store, world.sequencer, Wanted(tenant="a"), RULE)
    world.sequencer.stop()

    def forge(lines: list[bytes]) -> None:
        lines[0] = erased_line(bytes(32))

    rewrite(tmp_path / "ledger.db", leaf, forge)
    assert [each.code for each in check(world).findings] == ["records-changed"]
    with pytest.raises(Exception, match="root"):
        export_parquet(world.store, tmp_path / "export", log_key=world.log_key)


def test_issuers_word_excuses_nothing(sqlite_world: World, tmp_path: Path) -> None:
    world = sqlite_world
    leaf = world.log_batch(["a", "b"])
    batch = world.logged[0][2]
    said = Erasure(
        statement=batch.statement.leaf_hash.hex(), positions=(0,), rule=RULE, **world.issuer.chain()
    )
    world.log(world.issuer.sign(said))
    assert check(world).verdict == "sound"  # it is about the issuer's own copies
    world.sequencer.stop()

    def remove(lines: list[bytes]) -> None:
        lines[0] = erased_line(line_hash(lines[0]))

    rewrite(tmp_path / "ledger.db", leaf, remove)
    assert "erased-silently" in {each.code for each in check(world).findings}


def test_bytes_that_stay_are_refuted(sqlite_world: World, tmp_path: Path) -> None:
    """A block put back from an older copy: the log says that it was erased."""
    world = sqlite_world
    leaf = world.log_batch(["a", "b"])
    world.log_batch(["a"])
    with world.store.read() as connection:
        rows = text("SELECT records, records_sha256 FROM statement WHERE leaf_index = :leaf")
        old = tuple(connection.execute(rows, {"leaf": leaf}).one())
    erase(world.store, world.sequencer, Wanted(tenant="a"), RULE)
    world.sequencer.stop()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute(
            "UPDATE statement SET records = ?, records_sha256 = ? WHERE leaf_index = ?", (*old, leaf)
        )
    database.close()
    assert "not-erased" in {each.code for each in check(world).findings}


@pytest.mark.parametrize("line", [b'{"erased":"xy"}', ERASED_MARK + b"00" * 31 + b'"}', ERASED_MARK + b'"'])
def test_half_a_line_is_a_damaged_record(sqlite_world: World, tmp_path: Path, line: bytes) -> None:
    world = sqlite_world
    leaf = world.log_batch(["a", "b"])
    world.sequencer.stop()

    def damage(lines: list[bytes]) -> None:
        lines[0] = line

    rewrite(tmp_path / "ledger.db", leaf, damage)
    assert erased_hash(line) is None
    assert "bad-record" in {each.code for each in check(world).findings}


def test_export_that_leaves_a_record_out_is_refuted(sqlite_world: World, tmp_path: Path) -> None:
    """What an export lacks must be what the log says was erased."""
    world = sqlite_world
    world.log_batch(["a", "b", "c"])
    erase(world.store, world.sequencer, Wanted(tenant="a"), RULE)
    honest = tmp_path / "honest"
    export_parquet(world.store, honest, log_key=world.log_key)
    assert audit(ExportSource(honest), world.vkey).verdict == "sound"
    # The log's key signs an export from a database in which another record was removed without a word.
    copy = tmp_path / "copy.db"
    world.sequencer.stop()
    purge(world.store)
    shutil.copyfile(tmp_path / "ledger.db", copy)
    from ledger.store import open_store

    def remove(lines: list[bytes]) -> None:
        lines[2] = erased_line(line_hash(lines[2]))

    rewrite(copy, world.logged[0][1], remove)
    store = open_store(copy)
    try:
        export_parquet(store, tmp_path / "short", log_key=world.log_key)
    finally:
        store.close()
    report = audit(ExportSource(tmp_path / "short"), world.vkey)
    assert report.verdict == "refuted"
    assert {each.code for each in report.findings} == {"records-missing"}


def test_acts_name_what_was_erased_and_why(sqlite_world: World) -> None:
    sqlite_world.log_batch(["a", "b", "a"])
    erase(sqlite_world.store, sqlite_world.sequencer, Wanted(tenant="a"), RULE)
    with sqlite_world.store.read() as connection:
        last = acts(connection)[-1]
    assert last.action == "records.erase"
    assert last.particulars is not None
    assert (last.particulars["records"], last.particulars["rule"]) == (2, RULE)
