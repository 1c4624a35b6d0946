"""What an export covers, told from its signed statements."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from msgspec import UNSET

from ledger.export.completeness import completeness
from ledger.export.parquet import ExportSummary, export_parquet
from tests.build import START_US
from tests.export.conftest import DAY_US, Ledger


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
