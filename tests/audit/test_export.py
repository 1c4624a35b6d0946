"""Exports: sound ones pass; a changed byte shows by the manifest, a re-signed change by the row it is in."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import json, structs

from ledger.audit import AuditReport, audit
from ledger.audit.export import ExportSource
from ledger.core.export_layout import (
    MANIFEST_FILE,
    MANIFEST_SIGNATURE_FILE,
    RECORD_COLUMNS,
    STATEMENT_COLUMNS,
    STATEMENTS_FILE,
    Manifest,
    sign_manifest,
)
from ledger.store import open_store
from tests.audit.conftest import Log
from tests.build import HOUR_US, START_US

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="session")
def exports(log: Log, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The log exported whole, and two hours of it; the first batch straddles the end of the period."""
    from ledger.export.parquet import export_parquet

    folder = tmp_path_factory.mktemp("exports")
    store = open_store(log.copy(folder / "ledger.db"))
    made = {"whole": folder / "whole", "period": folder / "period"}
    export_parquet(store, made["whole"], log_key=log.log_key)
    export_parquet(
        store, made["period"], log_key=log.log_key, from_us=START_US + 3_000, to_us=START_US + HOUR_US
    )
    store.close()
    return made


@pytest.fixture(params=["whole", "period"])
def export(request: pytest.FixtureRequest, exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of an export that a test may change."""
    return Path(shutil.copytree(exports[request.param], tmp_path / "export"))


def check(log: Log, directory: Path, **options: Any) -> AuditReport:
    return audit(ExportSource(directory), log.vkey, **options)


@pytest.mark.parametrize("kind", ["whole", "period"])
def test_export_is_sound(kind: str, exports: dict[str, Path], log: Log) -> None:
    report = check(log, exports[kind])
    assert report.findings == ()
    assert report.verdict == "sound"
    assert report.checkpoint is not None
    whole = kind == "whole"
    assert report.counts.records == (20 if whole else 14)
    assert bool(report.notes) != whole  # receipts of a partial export name trees that it does not show


def test_any_changed_byte_is_found_and_its_file_named(export: Path, log: Log) -> None:
    rng = random.Random(7)
    for path in sorted(each for each in export.rglob("*") if each.is_file()):
        name = path.relative_to(export).as_posix()
        data = path.read_bytes()
        for at in rng.sample(range(len(data)), min(len(data), 40)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
            report = check(log, export)
            assert report.verdict == "refuted", f"{name} byte {at}"
            if name == MANIFEST_FILE:  # its signature is what tells
                assert {each.code for each in report.findings} == {"bad-manifest"}
            else:
                assert any(each.where.startswith(name) for each in report.findings), f"{name} byte {at}"
        path.write_bytes(data)
    assert check(log, export).verdict == "sound"


def resign(log: Log, export: Path, change: Callable[[Manifest], Manifest] = lambda m: m) -> None:
    """Sign the directory as it is now: what somebody who has the log's key can do."""
    manifest = json.decode((export / MANIFEST_FILE).read_bytes(), type=Manifest)
    files = []
    for each in manifest.files:
        data = (export / each.path).read_bytes()
        files.append(structs.replace(each, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    manifest = change(structs.replace(manifest, files=tuple(files)))
    data, signature = sign_manifest(manifest, log.log_key)
    (export / MANIFEST_FILE).write_bytes(data)
    (export / MANIFEST_SIGNATURE_FILE).write_bytes(signature)


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, version="2.6")


def other(value: Any, kind: str) -> Any:
    """Another value of the same type, as near as can be."""
    from datetime import timedelta

    if kind.startswith("timestamp"):
        return None if value is None else value + timedelta(microseconds=1)
    if kind.startswith("int"):
        return (value or 0) + 1
    if kind == "string":
        return (value or "") + "x" if not value else ("0" if value[0] != "0" else "1") + value[1:]
    if kind == "binary":
        return bytes([value[0] ^ 1]) + value[1:] if value else b"\0" * 32
    return (
        [{"name": "x", "value": 1, "scale": 0}]
        if not value
        else [value[0] | {"value": value[0]["value"] + 1}]
    )


@pytest.mark.parametrize("column", STATEMENT_COLUMNS, ids=lambda column: column.name)
def test_resigned_statement_cell_is_found_and_named(column, export: Path, log: Log) -> None:
    path = export / STATEMENTS_FILE
    original = path.read_bytes()
    for row in range(0, pq.read_metadata(path).num_rows, 3):
        path.write_bytes(original)

        def change(rows: list[dict[str, Any]], row: int = row) -> None:
            rows[row][column.name] = other(rows[row][column.name], column.type)

        rewrite(path, change)
        resign(log, export)
        report = check(log, export)
        if column.name in ("tree_size", "registered_at", "receipt_signature") and export_is_partial(export):
            continue  # a partial export does not show the trees of receipts, and says so
        assert report.verdict == "refuted", row
        assert any(f"{STATEMENTS_FILE}, row {row}," in each.where for each in report.findings), (
            report.findings
        )


def export_is_partial(export: Path) -> bool:
    return json.decode((export / MANIFEST_FILE).read_bytes())["scope"]["statements"] == "needed"


@pytest.mark.parametrize("column", RECORD_COLUMNS, ids=lambda column: column.name)
def test_resigned_record_cell_is_found_and_named(column, export: Path, log: Log) -> None:
    path = next((export / "records").rglob("*.parquet"))
    name = path.relative_to(export).as_posix()
    original = path.read_bytes()
    for row in range(0, pq.read_metadata(path).num_rows, 4):
        path.write_bytes(original)

        def change(rows: list[dict[str, Any]], row: int = row) -> None:
            old = rows[row][column.name]
            rows[row][column.name] = other(old, column.type)
            if rows[row][column.name] is None:
                pytest.skip("nothing to change")

        rewrite(path, change)
        resign(log, export)
        report = check(log, export)
        assert report.verdict == "refuted", row
        assert any(name in each.where for each in report.findings), report.findings
        if column.name not in ("record", "position"):  # those show in the batch, and in the row after
            assert any(f"{name}, row {row}," in each.where for each in report.findings), report.findings


def test_rows_left_out_or_doubled(export: Path, log: Log) -> None:
    records = next((export / "records").rglob("*.parquet"))
    changes = (lambda rows: rows.pop(2), lambda rows: rows.insert(2, rows[2]), lambda rows: rows.reverse())
    for path in (records, export / STATEMENTS_FILE):
        for change in changes:
            original = path.read_bytes()
            rewrite(path, change)

            def recount(manifest: Manifest, path: Path = path) -> Manifest:
                rows = pq.read_metadata(path).num_rows
                name = path.relative_to(export).as_posix()
                files = tuple(structs.replace(f, rows=rows) if f.path == name else f for f in manifest.files)
                field = "statements" if name == STATEMENTS_FILE else "records"
                return structs.replace(manifest, files=files, **{field: rows})

            resign(log, export, recount)
            report = check(log, export)
            assert report.verdict == "refuted" or (export_is_partial(export) and path != records)
            path.write_bytes(original)
            resign(log, export, recount)
    assert check(log, export).verdict == "sound"


def test_files_added_or_removed(export: Path, log: Log) -> None:
    (export / "records" / "extra.txt").write_text("x")
    assert [each.code for each in check(log, export).findings] == ["file-extra"]
    (export / "records" / "extra.txt").unlink()
    (export / "README.md").unlink()
    assert [each.where for each in check(log, export).findings] == ["README.md"]
    (export / MANIFEST_SIGNATURE_FILE).unlink()
    report = check(log, export)
    assert (report.verdict, report.checkpoint) == ("refuted", None)


def test_known_checkpoints(exports: dict[str, Path], log: Log) -> None:
    notes = list(log.checkpoints.values())
    assert check(log, exports["whole"], known_checkpoints=notes).verdict == "sound"
    assert check(log, exports["period"], known_checkpoints=notes[-1:]).verdict == "sound"
    assert check(log, exports["period"], known_checkpoints=notes[:1]).verdict == "unknown"
