"""What an export covers, told from its signed statements."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.export.completeness import _silences, completeness
from ledger.export.parquet import ExportSummary, export_parquet
from tests.build import START_US
from tests.export.conftest import CREATED_US, DAY_US, Ledger


def test_the_whole_ledger(export: ExportSummary, ledger: Ledger) -> None:
    told = completeness(Path(export.directory))
    counted = Counter(issuer for _, _, issuer, _ in ledger.records)
    assert {each.issuer: each.records for each in told.issuers} == counted
    assert told.every_statement
    assert told.tree_size == export.tree_size
    by_name = {each.issuer: each for each in told.issuers}
    one = by_name["gpu-7.example.com/llama"]
    assert (one.first_seq, one.dropped, one.heartbeats, one.missing_seqs) == (0, 2, 1, ())
    assert one.statements == one.last_seq + 1
    assert one.unattributed_uj is None
    assert any("2 records were lost" in gap for gap in told.gaps)


def test_a_period(export: ExportSummary, ledger: Ledger) -> None:
    from_us, to_us = START_US + DAY_US, START_US + 2 * DAY_US
    told = completeness(Path(export.directory), from_us=from_us, to_us=to_us)
    expected = Counter(i for *_, i, r in ledger.records if from_us <= r.started_us < to_us)
    assert Counter({each.issuer: each.records for each in told.issuers if each.records}) == expected
    assert all(each.first_seq > 0 for each in told.issuers if each.batches)


def test_a_scope(export: ExportSummary, ledger: Ledger) -> None:
    """Records of the scope are counted; chains are told whole, of the issuers that logged such records."""
    whole = {each.issuer: each for each in completeness(Path(export.directory)).issuers}
    tenants = {r.tenant for *_, r in ledger.records if r.tenant is not UNSET}
    tenant = min(tenants)
    told = completeness(Path(export.directory), where={"tenant": [tenant]})
    counted = Counter(issuer for _, _, issuer, r in ledger.records if r.tenant == tenant)
    assert {each.issuer: each.records for each in told.issuers} == counted
    for each in told.issuers:
        assert each.records < whole[each.issuer].records
        assert (each.first_seq, each.last_seq, each.dropped) == (
            whole[each.issuer].first_seq,
            whole[each.issuer].last_seq,
            whole[each.issuer].dropped,
        )
    nobody = completeness(Path(export.directory), where={"tenant": ["nobody"]})
    assert nobody.issuers == ()
    lossy = {each.issuer for each in whole.values() if each.dropped}
    assert lossy
    assert {gap.split(":")[0] for gap in nobody.gaps if "no record of the scope" in gap} >= lossy
    with pytest.raises(InvalidError, match="cannot group by or filter on 'colour'"):
        completeness(Path(export.directory), where={"colour": ["red"]})


@pytest.mark.parametrize(
    ("changes", "from_us", "end_us", "silences"),
    [
        ({}, None, None, [10, 5]),
        ({}, None, 90, [10, 5, 55]),  # it stopped, and the period goes on
        ({"after_us": 80}, None, 90, [10, 5, 45]),
        ({"after_us": 99}, None, 90, [10, 5, 55]),
        ({"until_us": 60}, None, 90, [10, 5, 30]),  # records of later than the last statement was made
        ({"records_anything": False}, None, 90, [10, 5]),  # who evaluates gives no signs of life
        ({"before_us": 3}, 8, None, [10, 5, 12]),
        ({"before_us": 11}, 8, None, [10, 5, 9]),
        ({"before_us": 3}, None, None, [10, 5]),
    ],
)
def test_silences_reach_to_the_ends_of_the_period(
    changes: dict[str, object], from_us: int | None, end_us: int | None, silences: list[int]
) -> None:
    row = {
        "times": [20, 30, 35],
        "before_us": None,
        "after_us": None,
        "until_us": 35,
        "records_anything": True,
    }
    assert list(_silences(row | changes, from_us, end_us)) == silences


def test_an_issuer_that_stopped_is_told(export: ExportSummary) -> None:
    """Chains end long before the export was made: within a period that goes on, that is a silence."""
    told = completeness(Path(export.directory), from_us=START_US, to_us=CREATED_US + DAY_US)
    silent = [gap for gap in told.gaps if "without a sign of life" in gap]
    assert len(silent) == sum(1 for each in told.issuers if each.batches) > 0
    for each in told.issuers:
        if each.batches:
            assert each.longest_silence_us is not None
            assert 0 < each.longest_silence_us < CREATED_US - START_US


def test_late_records_are_counted(export: ExportSummary, ledger: Ledger) -> None:
    """The test's records are of a time long before the log registered them."""
    told = completeness(Path(export.directory))
    assert sum(each.late_records for each in told.issuers) == len(ledger.records)


def test_an_export_of_a_part_says_so(ledger: Ledger, tmp_path: Path) -> None:
    made = export_parquet(
        ledger.store,
        tmp_path / "part",
        log_key=ledger.key,
        from_us=START_US + DAY_US,
        to_us=START_US + 3 * DAY_US,
    )
    told = completeness(Path(made.directory))
    text = "\n".join(told.gaps)
    assert not told.every_statement
    assert "only the statements it needs" in text
    assert "begins at" in text
    assert "ends at" in text
    inside = completeness(Path(made.directory), from_us=START_US + DAY_US, to_us=START_US + 3 * DAY_US)
    assert not [gap for gap in inside.gaps if "begins at" in gap or "ends at" in gap]
    assert sum(each.records for each in inside.issuers) == made.records


def test_a_chain_with_missing_statements(ledger: Ledger, tmp_path: Path) -> None:
    """Statements that the scope leaves out are named by their numbers."""
    made = export_parquet(
        ledger.store,
        tmp_path / "part",
        log_key=ledger.key,
        to_us=START_US + 10 * DAY_US,
        every_statement=False,
    )
    told = completeness(Path(made.directory))
    one = next(each for each in told.issuers if each.issuer == "gpu-7.example.com/llama")
    assert one.missing_seqs
    assert one.statements + sum(b - a + 1 for a, b in one.missing_seqs) == one.last_seq - one.first_seq + 1
    assert any("are not in the export" in gap for gap in told.gaps)
    assert UNSET not in told.as_dict().values()
