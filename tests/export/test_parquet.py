"""An export holds what the ledger holds, proves it, and says so in every reader."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from msgspec import UNSET
from sqlalchemy import text

from ledger import zstd
from ledger.core import merkle
from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import CorruptError, InvalidError, RefusedError, UnavailableError
from ledger.core.export_layout import (
    MANIFEST_FILE,
    MANIFEST_SIGNATURE_FILE,
    RECORD_COLUMNS,
    STATEMENT_COLUMNS,
    STATEMENTS_FILE,
    day_of,
    deployment_columns,
    is_export_path,
    open_manifest,
    record_columns,
)
from ledger.core.keys import generate_key
from ledger.core.records import decode_deployment, decode_record, encode_record, record_hash
from ledger.core.statements import Batch, decode_statement
from ledger.export import parquet, partitions, source, statement_file
from ledger.export.layout import RECORD_SCHEMA, STATEMENT_SCHEMA
from ledger.export.manifest import check_files
from ledger.export.parquet import ExportSummary, export_parquet
from ledger.store import Store
from ledger.store.append import log_verifier_key
from tests.build import ORIGIN, START_US
from tests.databases import copy_database
from tests.export.conftest import CREATED_US, DAY_US, MIDNIGHT_US, Ledger

SUMMED = ("input_tokens", "output_tokens", "cached_input_tokens", "energy_uj", "carbon_ng", "water_nl")


def glob_of(summary: ExportSummary) -> str:
    return str(summary.directory / "records/**/*.parquet")


def query(sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """All record rows in log order, read with pyarrow alone, times as integers."""
    rows = []
    for path in sorted(directory.glob("records/**/*.parquet")):
        table = pq.ParquetFile(path).read()
        for name in ("started_at", "first_token_at", "ended_at"):
            at = table.schema.get_field_index(name)
            table = table.set_column(at, name, table.column(name).cast("int64"))
        rows += [row | {"day": path.parent.name.removeprefix("day=")} for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["leaf_index"], row["position"]))


def statements_of(directory: Path) -> list[dict[str, Any]]:
    return pq.ParquetFile(directory / STATEMENTS_FILE).read().to_pylist()


def expected_totals(ledger: Ledger) -> dict[str, int]:
    """A plain fold over what went in."""
    totals: dict[str, int] = defaultdict(int)
    for *_, record in ledger.records:
        for column, values in record_columns([record]).items():
            if column in SUMMED:
                totals[column] += values[0] or 0
    return dict(totals)


def check_proofs(directory: Path, ledger: Ledger) -> tuple[int, int]:
    """Check every row with core alone; return (records, statements)."""
    log_key = ledger.key.public
    manifest = open_manifest(
        (directory / MANIFEST_FILE).read_bytes(), (directory / MANIFEST_SIGNATURE_FILE).read_bytes(), log_key
    )
    check_files(directory, manifest)
    checkpoint = open_checkpoint(manifest.checkpoint.encode(), log_verifier_key(ORIGIN, log_key))
    rows: dict[int, dict[int, bytes]] = defaultdict(dict)
    for row in rows_of(directory):
        assert row["position"] not in rows[row["leaf_index"]]
        rows[row["leaf_index"]][row["position"]] = row["record"]
    statements = statements_of(directory)
    assert [s["leaf_index"] for s in statements] == sorted({s["leaf_index"] for s in statements})
    for row in statements:
        path = [row["inclusion_path"][i : i + 32] for i in range(0, len(row["inclusion_path"]), 32)]
        statement = decode_statement(row["entry"])
        assert row["leaf_hash"] == statement.leaf_hash.hex()
        merkle.verify_inclusion(
            statement.leaf_hash, row["leaf_index"], checkpoint.size, path, checkpoint.root
        )
        assert (row["issuer"], row["kind"], row["seq"]) == (
            statement.issuer,
            statement.kind,
            statement.payload.seq,
        )
        assert row["payload"].encode() == statement.message.payload
        here = rows.pop(row["leaf_index"], {})
        if not isinstance(statement.payload, Batch):
            assert row["record_count"] is row["exported_records"] is row["record_hashes"] is None
            assert not here
            continue
        count = statement.payload.count
        assert (row["record_count"], row["exported_records"]) == (count, len(here))
        hashes = [record_hash(here[p]) for p in sorted(here)]
        if row["record_hashes"] is not None:
            assert 0 < len(here) < count
            every = [row["record_hashes"][i : i + 32] for i in range(0, 32 * count, 32)]
            assert [every[p] for p in sorted(here)] == hashes
            hashes = every
        if hashes:
            assert merkle.root(hashes).hex() == statement.payload.root
        else:
            assert not here
    assert not rows
    assert manifest.statements == len(statements)
    return manifest.records, manifest.statements


def test_every_row_repeats_its_record(ledger: Ledger, export: ExportSummary) -> None:
    rows = rows_of(export.directory)
    assert len(rows) == len(ledger.records) == export.records
    with ledger.store.read() as connection:
        bodies = connection.exec_driver_sql("SELECT digest, body FROM document").all()
    bodies = {digest: body for digest, body in bodies if b'"engine"' in body}
    for row, (leaf, position, issuer, record) in zip(rows, ledger.records, strict=True):
        assert (row["leaf_index"], row["position"], row["issuer"]) == (leaf, position, issuer)
        assert row["record"] == encode_record(record)
        assert decode_record(row["record"]) == record
        assert row["day"] == day_of(record.started_us)
        expected = {name: values[0] for name, values in record_columns([record]).items()}
        expected |= deployment_columns(decode_deployment(bodies[record.deployment]))
        assert {name: row[name] for name in expected} == expected
        assert row.keys() == {column.name for column in RECORD_COLUMNS} | {"day"}


def test_columns_repeat_the_fields_of_the_record(ledger: Ledger) -> None:
    """``record_columns``, which exporter and verifier share, against the record's JSON."""
    renamed = {"energy_low_uj": "low_uj", "energy_high_uj": "high_uj", "energy_method": "method"}
    for *_, record in ledger.records:
        plain = json.loads(encode_record(record))
        energy, usage = plain.get("energy", {}), plain["usage"]
        for name, (value,) in record_columns([record]).items():
            if name.endswith("_at"):
                expected = plain.get(name.removesuffix("_at") + "_us")
            elif name == "energy_source":
                expected = energy.get("source")
            elif name.startswith("energy"):
                expected = energy.get(renamed.get(name, name))
            elif name.endswith("_tokens"):
                expected = usage.get(name)
            elif name.startswith(("input_", "output_")):
                side, _, part = name.partition("_")
                expected = plain.get(side, {}).get(part)
            elif name == "quality":
                expected = plain.get("quality")
                value = value and {q["name"]: {"value": q["value"], "scale": q["scale"]} for q in value}
            else:
                expected = plain.get(name)
            assert value == expected, name


def test_every_field_of_a_record_has_a_column() -> None:
    from ledger.core.records import Commitment, Energy, Record, Usage

    names = {column.name for column in RECORD_COLUMNS}
    nested = {"usage": Usage, "energy": Energy, "input": Commitment, "output": Commitment}
    wanted = set()
    for name in Record.__struct_fields__:
        wanted |= set(nested[name].__struct_fields__) if name in nested else {name}
    wanted -= {"digest", "of", "low_uj", "high_uj", "method", "source"}
    assert {name.removesuffix("_us") + "_at" if name.endswith("_us") else name for name in wanted} <= names


def test_totals_agree_in_every_reader(ledger: Ledger, export: ExportSummary) -> None:
    expected = expected_totals(ledger)
    sums = ", ".join(f"sum({name})" for name in SUMMED)
    row = query(f"SELECT {sums} FROM read_parquet('{glob_of(export)}')")[0]
    assert dict(zip(SUMMED, map(int, row), strict=True)) == expected
    frame = pd.read_parquet(export.directory / "records")
    assert {name: sum(int(v) for v in frame[name].dropna()) for name in SUMMED} == expected
    lazy = pl.scan_parquet(glob_of(export), hive_partitioning=True)
    sums_of = lazy.select([pl.col(name).cast(pl.Decimal(38, 0)).sum() for name in SUMMED]).collect()
    assert {name: int(sums_of[name][0]) for name in SUMMED} == expected


def test_absent_is_null_and_never_zero(ledger: Ledger, export: ExportSummary) -> None:
    nulls, zeros = query(
        "SELECT count(*) FILTER (energy_uj IS NULL), count(*) FILTER (carbon_market_ng = 0) "
        f"FROM read_parquet('{glob_of(export)}')"
    )[0]
    assert nulls == sum(r.energy is UNSET for *_, r in ledger.records) > 0
    assert zeros == sum(r.carbon_market_ng == 0 for *_, r in ledger.records) > 0


def test_every_row_is_proven_by_the_log_key(ledger: Ledger, export: ExportSummary) -> None:
    assert check_proofs(export.directory, ledger) == (export.records, export.tree_size)
    assert export.statements == export.tree_size
    assert export.every_statement


def test_rows_ascend_within_each_file(export: ExportSummary) -> None:
    for path in export.directory.glob("records/**/*.parquet"):
        table = pq.ParquetFile(path).read(["leaf_index", "position"])
        places = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        assert places == sorted(set(places))


def test_files_have_the_published_schema(export: ExportSummary) -> None:
    for path in export.directory.glob("records/**/*.parquet"):
        assert pq.ParquetFile(path).schema_arrow.equals(RECORD_SCHEMA)
        assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    statements = pq.ParquetFile(export.directory / STATEMENTS_FILE).schema_arrow
    assert statements.equals(STATEMENT_SCHEMA)
    for schema, columns in ((RECORD_SCHEMA, RECORD_COLUMNS), (STATEMENT_SCHEMA, STATEMENT_COLUMNS)):
        found = [(f.name, str(f.type), f.nullable) for f in schema]
        assert found == [(c.name, c.type, c.nullable) for c in columns]


@pytest.mark.parametrize("every_statement", [False, True])
def test_a_period_is_proven_too(ledger: Ledger, tmp_path: Path, every_statement: bool) -> None:
    """One day, whose end cuts a batch in two."""
    summary = export_parquet(
        ledger.store,
        tmp_path / "day",
        log_key=ledger.key,
        from_us=MIDNIGHT_US,
        to_us=MIDNIGHT_US + DAY_US,
        every_statement=every_statement,
    )
    assert check_proofs(summary.directory, ledger)[0] == summary.records
    wanted = [r for r in ledger.records if MIDNIGHT_US <= r[3].started_us < MIDNIGHT_US + DAY_US]
    assert [row["id"] for row in rows_of(summary.directory)] == [r[3].id for r in wanted]
    statements = statements_of(summary.directory)
    if every_statement:
        assert [s["leaf_index"] for s in statements] == list(range(summary.tree_size))
    else:
        assert {s["leaf_index"] for s in statements if s["kind"] == "batch"} == {r[0] for r in wanted}
        assert {"key", "deployment", "factors", "correction", "evaluation"} < {s["kind"] for s in statements}
    cut = [s for s in statements if s["record_hashes"] is not None]
    assert any(0 < s["exported_records"] < s["record_count"] for s in cut)


def test_a_period_without_records_is_an_export_too(ledger: Ledger, tmp_path: Path) -> None:
    summary = export_parquet(ledger.store, tmp_path / "none", log_key=ledger.key, to_us=1)
    assert (summary.records, check_proofs(summary.directory, ledger)[0]) == (0, 0)


def test_periods_partition_the_log(ledger: Ledger, tmp_path: Path) -> None:
    first = export_parquet(ledger.store, tmp_path / "a", log_key=ledger.key, to_us=START_US + 100_000)
    second = export_parquet(ledger.store, tmp_path / "b", log_key=ledger.key, from_us=START_US + 100_000)
    ids = [row["id"] for part in (first, second) for row in rows_of(part.directory)]
    assert sorted(ids) == sorted(record.id for *_, record in ledger.records)


def test_the_same_ledger_gives_the_same_bytes(ledger: Ledger, export: ExportSummary, tmp_path: Path) -> None:
    again = export_parquet(ledger.store, tmp_path / "again", log_key=ledger.key, created_us=CREATED_US)
    for path in sorted(export.directory.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again.directory / path.relative_to(export.directory)).read_bytes()


def test_small_buffers_give_the_same_rows(
    ledger: Ledger, export: ExportSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part files, closed and reopened days, row groups and pages, all forced to be tiny."""
    for name, value in {
        "ROW_GROUP_ROWS": 7,
        "MAX_PART_ROWS": 50,
        "_CONVERT_ROWS": 3,
        "_MAX_BUFFERED_ROWS": 10,
        "_MAX_OPEN_FILES": 1,
    }.items():
        monkeypatch.setattr(partitions, name, value)
    monkeypatch.setattr(statement_file, "_GROUP_BYTES", 1)
    monkeypatch.setattr(parquet, "_SEGMENT_ROWS", 130)
    monkeypatch.setattr(source, "_PAGE_BYTES", 1)
    monkeypatch.setattr(source, "_FIRST_PAGE", 2)
    seen: list[tuple[int, int]] = []
    tiny = export_parquet(
        ledger.store, tmp_path / "tiny", log_key=ledger.key, progress=lambda *at: seen.append(at)
    )
    assert tiny.files > export.files
    assert rows_of(tiny.directory) == rows_of(export.directory)
    check_proofs(tiny.directory, ledger)
    assert seen[-1] == (tiny.tree_size, tiny.tree_size)


def test_any_changed_byte_is_noticed(ledger: Ledger, own_copy: Path) -> None:
    """In each file: first, last and some bytes between."""
    files = [path for path in own_copy.rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        for at in {0, len(data) - 1, *range(0, len(data), max(1, len(data) // 5))}:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises((CorruptError, InvalidError)):
                check_proofs(own_copy, ledger)
        path.write_bytes(data[:-1])
        with pytest.raises((CorruptError, InvalidError)):
            check_proofs(own_copy, ledger)
        path.write_bytes(data)
    check_proofs(own_copy, ledger)


def test_missing_and_foreign_files_are_noticed(ledger: Ledger, own_copy: Path) -> None:
    part = next(own_copy.glob("records/**/*.parquet"))
    data = part.read_bytes()
    part.unlink()
    with pytest.raises(CorruptError, match="is missing"):
        check_proofs(own_copy, ledger)
    part.write_bytes(data)
    part.with_name("part-000009.parquet").write_bytes(data)
    with pytest.raises(CorruptError, match="is not in the manifest"):
        check_proofs(own_copy, ledger)


def test_the_manifest_is_bound_to_log_and_scope(ledger: Ledger, export: ExportSummary) -> None:
    data = (export.directory / MANIFEST_FILE).read_bytes()
    signature = (export.directory / MANIFEST_SIGNATURE_FILE).read_bytes()
    manifest = open_manifest(data, signature, ledger.key.public)
    assert manifest.origin == ORIGIN
    assert manifest.scope.statements == "all"
    assert manifest.created_us == CREATED_US
    for each in manifest.files:
        content = (export.directory / each.path).read_bytes()
        assert (each.bytes, each.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with pytest.raises(InvalidError, match="not signed by key"):
        open_manifest(data, signature, generate_key().public)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "records/day=2025-10-09/../part-000000.parquet", "records/x.parquet", ""]
)
def test_a_manifest_names_no_other_path(path: str) -> None:
    assert not is_export_path(path)


def test_a_directory_in_use_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match="not an empty directory"):
        export_parquet(ledger.store, tmp_path, log_key=ledger.key)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_directory_is_used(ledger: Ledger, tmp_path: Path) -> None:
    target = tmp_path / "empty"
    target.mkdir()
    assert export_parquet(ledger.store, target, log_key=ledger.key).directory == target
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_another_key_exports_nothing(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(CorruptError):
        export_parquet(ledger.store, tmp_path / "x", log_key=generate_key())
    assert not list(tmp_path.iterdir())


def test_an_empty_period_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="period is empty"):
        export_parquet(ledger.store, tmp_path / "x", log_key=ledger.key, from_us=5, to_us=5)


def test_a_failure_leaves_nothing_behind(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_done: int, _size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_parquet(ledger.store, tmp_path / "x", log_key=ledger.key, progress=fail)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(UnavailableError, match="No space left"):
        export_parquet(ledger.store, tmp_path / "x", log_key=ledger.key)
    assert not list(tmp_path.iterdir())


def test_days_are_those_of_the_calendar() -> None:
    from datetime import UTC, datetime

    for time_us in (0, START_US, MIDNIGHT_US - 1, MIDNIGHT_US, 2**53 - 1):
        assert day_of(time_us) == f"{datetime.fromtimestamp(time_us // 10**6, UTC):%Y-%m-%d}"


# --- a ledger that was changed behind its back is not signed for again ---


@pytest.fixture
def spoilt(ledger: Ledger, tmp_path: Path) -> Iterator[Store]:
    """A copy of the database that a test may change."""
    store = copy_database(ledger.store, tmp_path / "copy.db")
    yield store
    store.close()


def spoil(store: Store, change: str) -> None:
    with store.write() as connection:
        connection.execute(text(change))


BATCH_LEAF = "(SELECT min(leaf_index) FROM statement WHERE kind = 'batch')"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"DELETE FROM statement WHERE leaf_index = {BATCH_LEAF}", "is not in the store"),
        (
            "DELETE FROM statement WHERE leaf_index = (SELECT max(leaf_index) FROM statement)",
            "not in the store",
        ),
        (
            f"UPDATE statement SET records = zeroblob(1) WHERE leaf_index = {BATCH_LEAF}",
            "cannot be decompressed",
        ),
        (
            "UPDATE statement SET records = (SELECT records FROM statement "
            "WHERE records IS NOT NULL ORDER BY last_us DESC LIMIT 1) "
            f"WHERE leaf_index = {BATCH_LEAF}",
            "not as many as the statement counts",
        ),
        (
            "UPDATE statement SET entry = (SELECT entry FROM statement WHERE leaf_index = 0) "
            f"WHERE leaf_index = {BATCH_LEAF}",
            "another hash",
        ),
        ("UPDATE tile SET hashes = zeroblob(length(hashes))", "do not lead to the checkpoint's root"),
        (
            "UPDATE document SET body = (SELECT body FROM document WHERE kind = 'deployment' "
            "ORDER BY digest LIMIT 1) WHERE kind = 'deployment'",
            "has another digest",
        ),
        ("DELETE FROM document", "is not in the store"),
        (
            "UPDATE log_head SET checkpoint = replace(checkpoint, size || '\n', '7\n')",
            "signature does not verify",
        ),
    ],
)
def test_a_changed_ledger_is_not_exported(
    ledger: Ledger, spoilt: Store, tmp_path: Path, change: str, message: str
) -> None:
    spoil(spoilt, change)
    with pytest.raises((CorruptError, InvalidError), match=message):
        export_parquet(spoilt, tmp_path / "x", log_key=ledger.key)
    assert not (tmp_path / "x").exists()


def test_exchanged_records_are_not_exported(ledger: Ledger, spoilt: Store, tmp_path: Path) -> None:
    with spoilt.write() as connection:
        block = connection.execute(
            text(f"SELECT records FROM statement WHERE leaf_index = {BATCH_LEAF}")
        ).scalar_one()
        first, second, *rest = (zstd.decompress_bounded(block, 1 << 24) or b"").splitlines(keepends=True)
        connection.execute(
            text(f"UPDATE statement SET records = :records WHERE leaf_index = {BATCH_LEAF}"),
            {"records": zstd.compress(b"".join([second, first, *rest]))},
        )
    with pytest.raises(CorruptError, match="do not hash to the statement's root"):
        export_parquet(spoilt, tmp_path / "x", log_key=ledger.key)


def test_erased_records_leave_their_statement(ledger: Ledger, spoilt: Store, tmp_path: Path) -> None:
    spoil(spoilt, f"UPDATE statement SET records = NULL WHERE leaf_index = {BATCH_LEAF}")
    summary = export_parquet(spoilt, tmp_path / "x", log_key=ledger.key)
    assert check_proofs(summary.directory, ledger) == (len(ledger.records) - 300, summary.tree_size)
