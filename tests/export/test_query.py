"""Questions over an export: every figure against a plain fold over the records."""

from __future__ import annotations

import os
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.records import Energy, Record, encode_record, record_hash
from ledger.core.statements import Correction
from ledger.export.parquet import ExportSummary, export_parquet
from ledger.export.query import DIMENSIONS, FIGURES, Question, ask
from ledger.export.reading import VIEWS, open_export
from tests.build import START_US
from tests.export.conftest import DAY_US, Ledger


@pytest.fixture(scope="module")
def folder(export: ExportSummary) -> Path:
    return Path(export.directory)


def figure(record: Record, name: str) -> int | None:
    where: Any = record
    if name in ("cached_input_tokens", "reasoning_tokens", "drafted_tokens", "accepted_tokens"):
        where = record.usage
    if name == "energy_uj":
        where = record.energy
    value = UNSET if where is UNSET else getattr(where, name)
    return None if value is UNSET else value


def fold(records: list[Record]) -> dict[str, int]:
    made = {
        "records": len(records),
        "input_tokens": sum(r.usage.input_tokens for r in records),
        "output_tokens": sum(r.usage.output_tokens for r in records),
    }
    for name in FIGURES:
        having = [(value, r) for r in records if (value := figure(r, name)) is not None]
        if not having:
            continue
        made[name] = sum(value for value, _ in having)
        made[f"{name}_records"] = len(having)
        if name in ("energy_uj", "carbon_ng", "carbon_market_ng", "embodied_ng", "water_nl", "cost_nano"):
            tokens = sum(r.usage.input_tokens + r.usage.output_tokens for _, r in having)
            made[f"{name}_per_1k_tokens"] = (2000 * made[name] + tokens) // (2 * tokens)
            made[f"{name}_per_request"] = (2 * made[name] + len(having)) // (2 * len(having))
    return made


def plain(row: dict[str, Any], expected: dict[str, int]) -> dict[str, Any]:
    return {name: row.get(name) for name in expected}


@pytest.mark.parametrize("by", [(), ("tenant",), ("issuer", "day"), ("month", "finish_reason", "method")])
def test_totals_equal_a_fold_over_the_records(folder: Path, ledger: Ledger, by: tuple[str, ...]) -> None:
    def key(issuer: str, record: Record) -> tuple[Any, ...]:
        when = datetime.fromtimestamp(record.started_us // 1_000_000, UTC)
        of = {
            "tenant": None if record.tenant is UNSET else record.tenant,
            "issuer": issuer,
            "day": f"{when:%Y-%m-%d}",
            "month": f"{when:%Y-%m}",
            "finish_reason": None if record.finish_reason is UNSET else record.finish_reason,
            "method": None if record.energy is UNSET else record.energy.method,
        }
        return tuple(of[name] for name in by)

    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for _, _, issuer, record in ledger.records:
        groups[key(issuer, record)].append(record)
    rows = ask(folder, Question(by=by))
    assert {tuple(row[name] for name in by) for row in rows} == set(groups)
    assert len(rows) == len(groups)
    for row in rows:
        expected = fold(groups[tuple(row[name] for name in by)])
        assert plain(row, expected) == expected
        assert not {name for name in FIGURES if name in row} - set(expected)


def test_totals_are_exact_beyond_what_floats_hold(folder: Path, ledger: Ledger) -> None:
    (row,) = ask(folder, Question())
    assert row["input_tokens"] == sum(r.usage.input_tokens for *_, r in ledger.records) > 2**53


def test_a_range_holds_its_figure(folder: Path) -> None:
    for row in ask(folder, Question(by=("deployment",))):
        for low, value, high in (
            ("energy_low_uj", "energy_uj", "energy_high_uj"),
            ("carbon_low_ng", "carbon_ng", "carbon_high_ng"),
        ):
            if value in row:
                assert row[low] <= row[value] <= row[high]
                assert (
                    row[f"{low}_per_1k_tokens"]
                    <= row[f"{value}_per_1k_tokens"]
                    <= row[f"{high}_per_1k_tokens"]
                )


def test_filters_and_periods(folder: Path, ledger: Ledger) -> None:
    edge = START_US + DAY_US
    issuer = ledger.records[0][2]
    expected = [r for _, _, i, r in ledger.records if i == issuer and START_US <= r.started_us < edge]
    where = {"issuer": [issuer]}
    (row,) = ask(folder, Question(where=where, from_us=START_US, to_us=edge))
    assert row["records"] == len(expected)
    without = [r for *_, r in ledger.records if r.tenant is UNSET]
    (row,) = ask(folder, Question(where={"tenant": [""]}))
    assert row["records"] == len(without) > 0
    (row,) = ask(folder, Question(where={"tenant": ["", ledger.records[0][3].tenant]}))
    both = [r for *_, r in ledger.records if r.tenant in (UNSET, ledger.records[0][3].tenant)]
    assert row["records"] == len(both) > len(without)
    (row,) = ask(folder, Question(where={"model": ["x' OR '1'='1"]}))
    assert row["records"] == 0
    assert "energy_uj" not in row


def test_every_dimension_answers(folder: Path, ledger: Ledger) -> None:
    for name in DIMENSIONS:
        assert sum(row["records"] for row in ask(folder, Question(by=(name,)))) == len(ledger.records)


def test_times_are_filtered_as_they_are_shown(folder: Path, ledger: Ledger) -> None:
    for name in ("hour", "day", "week", "month"):
        for row in ask(folder, Question(by=(name,))):
            (again,) = ask(folder, Question(where={name: [row[name]]}))
            assert again["records"] == row["records"], name
    mondays = [row["week"] for row in ask(folder, Question(by=("week",)))]
    assert all(datetime.fromisoformat(monday).weekday() == 0 for monday in mondays)
    with pytest.raises(InvalidError, match="is no month"):
        ask(folder, Question(where={"month": ["January"]}))


def test_percentiles_are_values_that_are_there(folder: Path, ledger: Ledger) -> None:
    (row,) = ask(folder, Question(percentiles=True))
    durations = sorted(r.ended_us - r.started_us for *_, r in ledger.records)
    for level in (50, 90, 95, 99):
        assert row[f"duration_us_p{level}"] in durations
        below = sum(d <= row[f"duration_us_p{level}"] for d in durations)
        assert below >= level / 100 * len(durations)


def test_an_unknown_dimension_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidError, match="cannot group by"):
        ask(folder, Question(by=("record; DROP VIEW records",)))


def test_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="is not an export"):
        open_export(tmp_path)


@pytest.mark.parametrize(
    "reach",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO '/tmp/tallystick-should-not-be'",
        "ATTACH '/tmp/tallystick-should-not-be.db' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "RESET lock_configuration",
        "SELECT * FROM read_parquet('{export}/../../*')",
    ],
)
def test_a_reader_reaches_nothing_else(folder: Path, reach: str) -> None:
    with open_export(folder) as connection:
        with pytest.raises(duckdb.Error):
            connection.execute(reach.replace("{export}", str(folder))).fetchall()
        assert connection.execute("SELECT count(*) FROM records").fetchone() is not None
    assert not os.path.exists("/tmp/tallystick-should-not-be")


def test_views_are_those_that_are_told(folder: Path) -> None:
    with open_export(folder) as connection:
        found = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    assert {name for (name,) in found} == set(VIEWS)


def test_an_export_without_records_answers(ledger: Ledger, tmp_path: Path) -> None:
    made = export_parquet(ledger.store, tmp_path / "none", log_key=ledger.key, from_us=1, to_us=2)
    (row,) = ask(Path(made.directory), Question())
    assert row == {"records": 0, "input_tokens": 0, "output_tokens": 0}
    assert ask(Path(made.directory), Question(by=("model",))) == []


def test_corrections_count_for_their_own_issuers_records_only(ledger: Ledger, tmp_path: Path) -> None:
    """Of a foreign issuer, or of other bytes, they change nothing; later ones win, figure by figure."""
    (_, _, name, record), (_, _, _, other) = [r for r in ledger.records if r[3].carbon_ng is not UNSET][:2]
    issuer, foreign = (
        ledger.issuers[name],
        next(i for n, i in ledger.issuers.items() if n != name),
    )
    right = record_hash(encode_record(record)).hex()

    def correct(who: Any, **fields: Any) -> None:
        ledger.log(who.sign(Correction(reason="test", **fields, **who.chain())))

    before = ask(
        Path(export_parquet(ledger.store, tmp_path / "before", log_key=ledger.key).directory), Question()
    )
    correct(foreign, record=record.id, record_hash=right, carbon_ng=1)
    correct(issuer, record=other.id, record_hash="00" * 32, carbon_ng=1)
    unchanged = ask(
        Path(export_parquet(ledger.store, tmp_path / "same", log_key=ledger.key).directory), Question()
    )
    assert unchanged == before

    energy = Energy(energy_uj=7, method="estimated", source="again")
    correct(issuer, record=record.id, record_hash=right, carbon_ng=10, water_nl=1)
    correct(issuer, record=record.id, record_hash=right, carbon_ng=20, energy=energy)
    after = Path(export_parquet(ledger.store, tmp_path / "after", log_key=ledger.key).directory)
    (row,) = ask(after, Question())
    assert row["corrected_records"] == 1
    assert row["carbon_ng"] == before[0]["carbon_ng"] - record.carbon_ng + 20
    assert row["water_nl"] == before[0]["water_nl"] - record.water_nl + 1
    assert row["energy_uj"] == before[0]["energy_uj"] - record.energy.energy_uj + 7
    (logged,) = ask(after, Question(corrected=False))
    assert {**before[0], "corrected_records": None} == {**logged, "corrected_records": None}
    with open_export(after) as connection:
        found = connection.execute(
            "SELECT carbon_low_ng, energy_low_uj, energy_method FROM records_corrected WHERE corrected"
        ).fetchall()
    assert found == [(None, None, "estimated")]
