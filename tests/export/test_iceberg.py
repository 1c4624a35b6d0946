"""Iceberg tables hold what the export holds, whoever reads them, and gain what it gains, once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from ledger.core.errors import InvalidError, RefusedError
from ledger.core.export_layout import RECORD_COLUMNS, STATEMENT_COLUMNS
from ledger.export.iceberg import write_iceberg
from ledger.export.parquet import ExportSummary, export_parquet
from tests.export.conftest import Ledger
from tests.export.growing import grow, growing_ledger, resume
from tests.export.test_parquet import SUMMED, expected_totals, rows_of

DUCKDB = os.environ.get("TALLYSTICK_ICEBERG_PYTHON")
"""A Python that has DuckDB and its Iceberg extension: `make iceberg` makes one."""


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger that may grow."""
    with growing_ledger(tmp_path) as made:
        yield made


def table_of(warehouse: Path, name: str = "records") -> Any:
    catalog = SqlCatalog(
        "tallystick", uri=f"sqlite:///{warehouse}/catalog.db", warehouse=f"file://{warehouse}"
    )
    return catalog.load_table(f"tallystick.{name}")


@pytest.fixture(scope="module")
def warehouse(export: ExportSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("iceberg") / "warehouse"
    summary = write_iceberg(export.directory, made)
    assert (summary.records, summary.added_records) == (export.records, export.records)
    assert summary.added_statements == export.statements
    return made


def test_schema_has_ids_units_and_needed_fields(warehouse: Path) -> None:
    for name, columns in (("records", RECORD_COLUMNS), ("statements", STATEMENT_COLUMNS)):
        fields = table_of(warehouse, name).schema().fields
        wanted = [column for column in columns if name == "records" or column.name != "inclusion_path"]
        assert [(f.field_id, f.name, f.required, f.doc) for f in fields] == [
            (at, c.name, not c.nullable, c.description) for at, c in enumerate(wanted, 1)
        ]
    assert table_of(warehouse).schema().find_field("energy_uj").doc == "energy in microjoules"


@pytest.mark.filterwarnings("ignore::polars.exceptions.PerformanceWarning")
def test_totals_agree_in_polars(warehouse: Path, ledger: Ledger) -> None:
    lazy = pl.scan_iceberg(table_of(warehouse))
    sums = lazy.select([pl.col(name).cast(pl.Decimal(38, 0)).sum() for name in SUMMED]).collect()
    assert {name: int(sums[name][0]) for name in SUMMED} == expected_totals(ledger)
    nulls = lazy.select(pl.col("quality").is_null().sum(), pl.col("carbon_ng").is_null().sum()).collect()
    assert nulls["quality"][0] == nulls["carbon_ng"][0] > 0


def test_rows_are_those_of_the_export(warehouse: Path, export: ExportSummary) -> None:
    found = table_of(warehouse).scan(selected_fields=("leaf_index", "position", "record")).to_arrow()
    rows = sorted(found.to_pylist(), key=lambda row: (row["leaf_index"], row["position"]))
    assert rows == [
        {name: row[name] for name in ("leaf_index", "position", "record")}
        for row in rows_of(export.directory)
    ]
    statements = table_of(warehouse, "statements").scan().to_arrow()
    assert sorted(statements.column("leaf_index").to_pylist()) == list(range(export.tree_size))


def test_days_are_partitions_that_queries_skip(warehouse: Path, export: ExportSummary) -> None:
    table = table_of(warehouse)
    days = {path.name for path in export.directory.glob("records/day=*")}
    assert len({task.file.partition[0] for task in table.scan().plan_files()}) == len(days) > 3
    chosen = table.scan(row_filter="started_at >= '2025-10-12T00:00:00+00:00'")
    assert 0 < len(list(chosen.plan_files())) < len(days)


def test_the_snapshot_names_its_checkpoint(warehouse: Path, export: ExportSummary) -> None:
    table = table_of(warehouse)
    assert table.current_snapshot().summary["tallystick.tree-size"] == str(export.tree_size)
    manifest = json.loads((export.directory / "manifest.json").read_bytes())
    assert table.properties["tallystick.checkpoint"] == manifest["checkpoint"]


def test_the_same_export_adds_nothing(warehouse: Path, export: ExportSummary) -> None:
    before = table_of(warehouse).metadata_location
    summary = write_iceberg(export.directory, warehouse)
    assert (summary.added_records, summary.added_files, summary.added_statements) == (0, 0, 0)
    assert table_of(warehouse).metadata_location == before


def test_what_an_export_gains_is_appended(growing: Ledger, tmp_path: Path) -> None:
    for added in (240, 60, 20):
        if added < 240:
            grow(growing, added // 20, day=-1)
        resume(growing, tmp_path / "x")
        summary = write_iceberg(tmp_path / "x", tmp_path / "warehouse")
        assert summary.added_records == added
        assert summary.added_statements in (summary.tree_size, added // 20)
    found = table_of(tmp_path / "warehouse").scan(selected_fields=("id",)).to_arrow()
    assert sorted(found.column("id").to_pylist()) == sorted(record.id for *_, record in growing.records)
    assert len(table_of(tmp_path / "warehouse").snapshots()) == 3


def test_an_interrupted_append_is_done_again(
    growing: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between the two tables, and after files were copied."""
    from ledger.export import iceberg

    resume(growing, tmp_path / "x")
    real, copied = iceberg._copy, []

    def stop(*args: Any) -> str:
        if copied:
            raise KeyboardInterrupt
        copied.append(real(*args))
        return str(copied[0])

    with monkeypatch.context() as patched:
        patched.setattr(iceberg, "_copy", stop)
        with pytest.raises(KeyboardInterrupt):
            write_iceberg(tmp_path / "x", tmp_path / "w")
    assert table_of(tmp_path / "w").current_snapshot() is None
    assert write_iceberg(tmp_path / "x", tmp_path / "w").added_records == 240
    assert table_of(tmp_path / "w").scan().to_arrow().num_rows == 240
    assert table_of(tmp_path / "w", "statements").scan().to_arrow().num_rows == growing.records[-1][0] + 1


def test_another_export_of_the_same_records_is_refused(growing: Ledger, tmp_path: Path) -> None:
    resume(growing, tmp_path / "x")
    write_iceberg(tmp_path / "x", tmp_path / "w")
    grow(growing, 1)
    resume(growing, tmp_path / "fresh")
    with pytest.raises(RefusedError, match="cover already"):
        write_iceberg(tmp_path / "fresh", tmp_path / "w")
    resume(growing, tmp_path / "scope", from_us=0)
    with pytest.raises(RefusedError, match="another log or scope"):
        write_iceberg(tmp_path / "scope", tmp_path / "w")
    assert table_of(tmp_path / "w").scan().to_arrow().num_rows == 240


def test_an_older_export_is_refused(growing: Ledger, tmp_path: Path) -> None:
    resume(growing, tmp_path / "old")
    resume(growing, tmp_path / "x")
    grow(growing, 1)
    resume(growing, tmp_path / "x")
    write_iceberg(tmp_path / "x", tmp_path / "w")
    with pytest.raises(RefusedError, match="newer export"):
        write_iceberg(tmp_path / "old", tmp_path / "w")


def test_a_changed_file_is_not_taken(growing: Ledger, tmp_path: Path) -> None:
    resume(growing, tmp_path / "x")
    part = next((tmp_path / "x").glob("records/**/*.parquet"))
    data = part.read_bytes()
    part.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(InvalidError, match="not the file"):
        write_iceberg(tmp_path / "x", tmp_path / "w")
    with pytest.raises(InvalidError, match="not an export"):
        write_iceberg(tmp_path, tmp_path / "w")


def test_an_export_without_records_is_a_table_too(ledger: Ledger, tmp_path: Path) -> None:
    export_parquet(ledger.store, tmp_path / "x", log_key=ledger.key, to_us=1)
    assert write_iceberg(tmp_path / "x", tmp_path / "w").records == 0
    assert write_iceberg(tmp_path / "x", tmp_path / "w").added_files == 0


_QUERY = """
import json, sys, duckdb, duckdb_ext
from pathlib import Path
connection = duckdb.connect()
folder = next(Path(list(duckdb_ext.__path__)[0]).glob("extensions/v*/*"))
for name in ("avro", "iceberg"):
    connection.execute(f"LOAD '{folder}/{name}.duckdb_extension'")
source = f"iceberg_scan('{sys.argv[1]}')"
sums = ", ".join(f"sum({name})::VARCHAR" for name in sys.argv[3].split(","))
print(json.dumps({
    "sums": connection.execute(f"SELECT {sums} FROM {source}").fetchone(),
    "metrics": connection.execute(  # its filter on a list would fail, or find nothing
        f"SELECT count(*) FILTER (quality IS NOT NULL) FROM {source}").fetchone()[0],
    "kinds": dict(connection.execute(
        f"SELECT kind, count(*) FROM iceberg_scan('{sys.argv[2]}') GROUP BY ALL").fetchall()),
}))
"""


@pytest.mark.skipif(DUCKDB is None, reason="needs DuckDB's Iceberg extension: `make iceberg`")
def test_duckdb_reads_the_same(warehouse: Path, ledger: Ledger, export: ExportSummary) -> None:
    tables = [table_of(warehouse, name).metadata_location for name in ("records", "statements")]
    told = subprocess.run(
        [str(DUCKDB), "-c", _QUERY, *tables, ",".join(SUMMED)], check=True, capture_output=True, text=True
    )
    found = json.loads(told.stdout)
    assert dict(zip(SUMMED, map(int, found["sums"]), strict=True)) == expected_totals(ledger)
    assert found["metrics"] == 40
    assert sum(found["kinds"].values()) == export.statements
    assert found["kinds"]["correction"] == 1
