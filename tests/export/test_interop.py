"""Queries that people will write against an export, in the readers they will use."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pytest
from msgspec import UNSET

from ledger.core.export_layout import README_FILE, STATEMENTS_FILE, day_of
from ledger.export.parquet import ExportSummary
from tests.export.conftest import Ledger


@pytest.fixture
def sql(export: ExportSummary, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a query with the export's directory as the present one, as its read-me has it."""
    monkeypatch.chdir(export.directory)
    with duckdb.connect() as connection:
        yield lambda query, *parameters: connection.execute(query, list(parameters)).fetchall()


RECORDS = "read_parquet('records/**/*.parquet', hive_partitioning = true)"


def test_the_query_of_the_read_me(ledger: Ledger, export: ExportSummary, sql: Any) -> None:
    text = (export.directory / README_FILE).read_text()
    query = re.search(r"^    SELECT.*?;$", text, re.M | re.S)
    assert query is not None
    rows = sql(query.group())
    assert sum(row[2] for row in rows) == sum(r.usage.output_tokens for *_, r in ledger.records)
    energy_uj = sum(0 if r.energy is UNSET else r.energy.energy_uj for *_, r in ledger.records)
    joules_per_kwh = 3_600_000
    assert sum(row[3] or 0 for row in rows) == pytest.approx(energy_uj / 10**6 / joules_per_kwh)
    assert {str(row[0]) for row in rows} == {day_of(r.started_us) for *_, r in ledger.records}


def test_a_day_is_a_partition(ledger: Ledger, sql: Any) -> None:
    counts = Counter(day_of(r.started_us) for *_, r in ledger.records)
    assert len(counts) >= 4
    for day, count in counts.items():
        where = datetime.date.fromisoformat(day)
        assert sql(f"SELECT count(*) FROM {RECORDS} WHERE day = ?", where) == [(count,)]
        same = f"SELECT count(*) FROM {RECORDS} WHERE CAST(started_at AT TIME ZONE 'UTC' AS DATE) = ?"
        assert sql(same, where) == [(count,)]


def test_only_the_files_of_the_day_are_read(export: ExportSummary) -> None:
    dataset = ds.dataset(export.directory / "records", partitioning="hive")
    days = sorted(path.name.removeprefix("day=") for path in (export.directory / "records").iterdir())
    fragments = list(dataset.get_fragments(ds.field("day") == days[0]))
    assert [Path(each.path).parent.name for each in fragments] == [f"day={days[0]}"]


def test_polars_prunes_by_day_too(ledger: Ledger, export: ExportSummary) -> None:
    frame = pl.scan_parquet(str(export.directory / "records/**/*.parquet"), hive_partitioning=True)
    by_day = frame.group_by("day").agg(pl.len()).collect()
    counts = Counter(day_of(r.started_us) for *_, r in ledger.records)
    assert {str(day): count for day, count in by_day.iter_rows()} == dict(counts)


def test_times_are_instants(ledger: Ledger, sql: Any) -> None:
    rows = sql(
        f"SELECT epoch_us(started_at), epoch_us(ended_at) - epoch_us(started_at) FROM {RECORDS} "
        "ORDER BY leaf_index, position"
    )
    assert rows == [(r.started_us, r.ended_us - r.started_us) for *_, r in ledger.records]


def test_quality_is_a_list_of_metrics(ledger: Ledger, sql: Any) -> None:
    rows = sql(
        "SELECT q.name, count(*), sum(q.value), min(q.scale) "
        f"FROM (SELECT unnest(quality) AS q FROM {RECORDS}) GROUP BY q.name ORDER BY q.name"
    )
    expected: dict[str, list[int]] = {}
    for *_, record in ledger.records:
        for name, metric in {} if record.quality is UNSET else record.quality.items():
            entry = expected.setdefault(name, [0, 0, metric.scale])
            entry[0] += 1
            entry[1] += metric.value
    assert rows == [(name, *entry) for name, entry in sorted(expected.items())]


def test_record_bytes_are_json_for_whoever_wants_it(ledger: Ledger, sql: Any) -> None:
    rows = sql(f"SELECT id, decode(record)::JSON ->> '$.id' FROM {RECORDS}")
    assert len(rows) == len(ledger.records)
    assert all(column == inside for column, inside in rows)


def test_corrections_join_their_records(ledger: Ledger, sql: Any) -> None:
    rows = sql(
        "SELECT r.id, s.payload ->> '$.reason', CAST(s.payload ->> '$.carbon_ng' AS BIGINT) "
        f"FROM read_parquet('{STATEMENTS_FILE}') AS s JOIN {RECORDS} AS r ON r.id = s.payload ->> '$.record' "
        "WHERE s.kind = 'correction'"
    )
    assert rows == [(ledger.records[0][3].id, "meter was miscalibrated", 5)]


def test_batches_join_their_statements(ledger: Ledger, sql: Any) -> None:
    rows = sql(
        "SELECT leaf_index, any_value(s.exported_records), count(*), "
        "any_value(CAST(s.payload ->> '$.totals.output_tokens' AS BIGINT)), sum(r.output_tokens) "
        f"FROM {RECORDS} AS r JOIN read_parquet('{STATEMENTS_FILE}') AS s USING (leaf_index) "
        "GROUP BY leaf_index"
    )
    assert len(rows) == len({leaf for leaf, *_ in ledger.records})
    for _, exported, count, stated, summed in rows:
        assert (exported, stated) == (count, summed)
