"""Exports made to deceive an auditor, or to exhaust it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from ledger.audit import AuditReport, audit
from ledger.audit.export import ExportSource
from ledger.audit.export_records import Summary
from ledger.core.export_layout import MANIFEST_FILE, STATEMENTS_FILE, Manifest
from ledger.core.records import Energy
from ledger.core.statements import sum_records
from ledger.store import open_store
from tests.audit.conftest import Log, Writer
from tests.audit.test_export import resign
from tests.build import HOUR_US, START_US, make_deployment, make_records

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.compute")
pq = pytest.importorskip("pyarrow.parquet")

DEPLOYMENT = make_deployment()
TWO_DAYS = make_records(2, DEPLOYMENT) + make_records(
    2, DEPLOYMENT, first=10, start_us=START_US + 24 * HOUR_US
)


def export(log: Log, directory: Path, **options: Any) -> ExportSource:
    from ledger.export.parquet import export_parquet

    store = open_store(log.copy(directory / "copy.db"))
    export_parquet(store, directory / "export", log_key=log.log_key, **options)
    store.close()
    return ExportSource(directory / "export")


def audit_of(directory: Path, monkeypatch: pytest.MonkeyPatch, records: Any, **changes: Any) -> AuditReport:
    """Audits the export of a log whose ledger did not look at what a batch says of its records."""
    monkeypatch.setattr("ledger.store.prepare._check_batch", lambda batch, records: None)
    writer = Writer(directory / "ledger.db")
    issuer = writer.issuer("gpu-7.example.com")
    writer.log(issuer.deployment(DEPLOYMENT))
    writer.log(issuer.batch(records, **changes))
    log = writer.close()
    return audit(export(log, directory), log.vkey)


def test_batch_over_two_days_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit_of(tmp_path, monkeypatch, TWO_DAYS).verdict == "sound"


@pytest.mark.parametrize(
    "changes",
    [
        {"totals": structs.replace(sum_records(TWO_DAYS), input_tokens=1)},
        {"totals": structs.replace(sum_records(TWO_DAYS), water_nl=0)},
        {"totals": sum_records(TWO_DAYS[2:])},
        {"first_us": START_US - 1},
        {"last_us": START_US + 48 * HOUR_US},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_wrong_summary_of_a_batch_over_two_days(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = audit_of(tmp_path, monkeypatch, TWO_DAYS, **changes)
    assert "wrong-summary" in {each.code for each in report.findings}


def test_total_beyond_what_a_statement_can_say_is_never_right() -> None:
    much = make_records(2, DEPLOYMENT, energy=Energy(energy_uj=2**53 - 1, method="modelled", source="tests"))
    beyond, rest = Summary.of(much), Summary.of(TWO_DAYS[2:])
    assert rest.stated()["totals"] == sum_records(TWO_DAYS[2:])
    assert rest.plus(beyond).stated()["totals"] is None
    assert beyond.plus(rest).stated()["totals"] is None


@pytest.mark.parametrize("name", [STATEMENTS_FILE, "records"])
def test_file_that_was_not_signed_is_not_parsed(
    name: str, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = export(log, tmp_path)
    path = source.directory / name
    path = next(path.rglob("*.parquet")) if path.is_dir() else path
    path.write_bytes(path.read_bytes() + b"x")
    parsed: list[Path] = []
    real = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda path: parsed.append(path) or real(path))
    report = audit(source, log.vkey)
    assert path not in parsed
    assert report.verdict == "refuted"
    assert [(each.code, each.where) for each in report.findings] == [
        ("file-changed", path.relative_to(source.directory).as_posix())
    ]
    assert report.gaps


def replace_cells(path: Path, column: str, change: Callable[[list[Any]], None]) -> None:
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    cells = table.column(at).to_pylist()
    change(cells)
    field = table.schema.field(at)
    pq.write_table(table.set_column(at, field, pa.array(cells, field.type)), path)


def test_two_records_in_one_cell(log: Log, tmp_path: Path) -> None:
    source = export(log, tmp_path)
    path = next(source.directory.glob("records/*/*.parquet"))

    def join(cells: list[Any]) -> None:
        cells[1] = cells[1] + b"\n" + cells[2]

    replace_cells(path, "record", join)
    resign(log, source.directory)
    report = audit(source, log.vkey)
    named = f"{path.relative_to(source.directory).as_posix()}, row 1, record"
    assert ("bad-record", named) in {(each.code, each.where) for each in report.findings}


@pytest.mark.parametrize("scope", [{}, {"from_us": START_US, "to_us": START_US + HOUR_US}])
def test_receipt_of_a_tree_before_its_leaf(scope: dict[str, int], log: Log, tmp_path: Path) -> None:
    source = export(log, tmp_path, **scope)
    path = source.directory / STATEMENTS_FILE
    leaves = pq.read_table(path).column("leaf_index").to_pylist()

    def cut(cells: list[Any]) -> None:
        cells[-1] = leaves[-1]

    replace_cells(path, "tree_size", cut)
    resign(log, source.directory)
    report = audit(source, log.vkey)
    assert ("bad-receipt", f"{STATEMENTS_FILE}, row {len(leaves) - 1}, tree_size") in {
        (each.code, each.where) for each in report.findings
    }


def test_pipe_in_the_place_of_the_manifest_is_not_waited_for(log: Log, tmp_path: Path) -> None:
    source = export(log, tmp_path)
    (source.directory / MANIFEST_FILE).unlink()
    os.mkfifo(source.directory / MANIFEST_FILE)
    verdicts: list[str] = []
    thread = threading.Thread(target=lambda: verdicts.append(audit(source, log.vkey).verdict), daemon=True)
    thread.start()
    thread.join(10)
    assert verdicts == ["refuted"]


def test_partial_export_says_that_statements_can_be_missing(log: Log, tmp_path: Path) -> None:
    """Whoever has the log's key can leave a whole batch out of a partial export: no auditor can tell."""
    source = export(log, tmp_path, from_us=START_US, to_us=START_US + HOUR_US)
    path = source.directory / STATEMENTS_FILE
    table = pq.read_table(path)
    rows = table.to_pylist()
    gone = next(row for row in rows if row["exported_records"])
    rows.remove(gone)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    (part,) = source.directory.glob("records/*/*.parquet")
    records = pq.read_table(part)
    pq.write_table(records.filter(pa.compute.field("leaf_index") != gone["leaf_index"]), part)

    def recount(manifest: Manifest) -> Manifest:
        left = pq.read_metadata(part).num_rows
        counts = {STATEMENTS_FILE: len(rows), part.relative_to(source.directory).as_posix(): left}
        files = tuple(structs.replace(each, rows=counts.get(each.path, each.rows)) for each in manifest.files)
        return structs.replace(manifest, files=files, statements=len(rows), records=left)

    resign(log, source.directory, recount)
    report = audit(source, log.vkey)
    assert report.findings == ()
    assert any("left out" in each for each in report.notes)
