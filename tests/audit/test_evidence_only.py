"""An audit of evidence alone finds every change of what signatures vouch for, and says what it left out."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from ledger import zstd
from ledger.audit import AuditReport, audit, open_source
from tests.audit.conftest import Log


def evidence(log: Log, path: Path) -> AuditReport:
    return audit(open_source(str(path)), log.vkey, evidence_only=True)


def changed(log: Log, tmp_path: Path, sql: str, *values: object) -> Path:
    path = tmp_path / "copy.db"
    shutil.copy(log.path, path)
    connection = sqlite3.connect(path)
    assert connection.execute(sql, values).rowcount > 0
    connection.commit()
    connection.close()
    return path


def test_sound_log_is_sound_and_the_report_says_what_was_left_out(log: Log) -> None:
    report = evidence(log, log.path)
    whole = log.audit(log.path)
    assert report.verdict == whole.verdict == "sound"
    assert report.counts.records == whole.counts.records > 0
    assert report.counts.signatures == whole.counts.signatures
    assert any("evidence alone" in note for note in report.notes)
    assert not any("evidence alone" in note for note in whole.notes)


BATCH = "(SELECT min(leaf_index) FROM statement WHERE kind = 'batch')"


@pytest.mark.parametrize(
    ("sql", "where"),
    [
        (f"UPDATE statement SET entry = entry || x'00' WHERE leaf_index = {BATCH}", "statement"),
        (f"UPDATE statement SET receipt_signature = zeroblob(64) WHERE leaf_index = {BATCH}", "statement"),
        ("UPDATE tile SET hashes = zeroblob(length(hashes)) WHERE level = 0", "tile"),
        (
            "UPDATE checkpoint SET note = replace(note, char(10, 51, 10), char(10, 50, 10)) WHERE size = 3",
            "checkpoint",
        ),
        (f"DELETE FROM statement WHERE leaf_index = {BATCH}", "statement"),
    ],
)
def test_changes_of_evidence_are_found(sql: str, where: str, log: Log, tmp_path: Path) -> None:
    report = evidence(log, changed(log, tmp_path, sql))
    assert report.verdict == "refuted"
    assert any(where in finding.where for finding in report.findings)


def test_changed_records_are_found(log: Log, tmp_path: Path) -> None:
    connection = sqlite3.connect(log.path)
    (block,) = connection.execute(f"SELECT records FROM statement WHERE leaf_index = {BATCH}").fetchone()
    connection.close()
    lines = zstd.decompress_bounded(block, 1 << 24)
    assert lines is not None
    for forged in (lines.replace(b'"stop"', b'"halt"', 1), lines.split(b"\n", 1)[1], lines[:-1]):
        assert forged != lines
        compressed = zstd.compress(forged)
        path = changed(
            log, tmp_path, f"UPDATE statement SET records = ? WHERE leaf_index = {BATCH}", compressed
        )
        report = evidence(log, path)
        assert report.verdict == "refuted"
        assert any("records" in finding.where for finding in report.findings)


def test_derived_tables_are_left_to_the_whole_audit(log: Log, tmp_path: Path) -> None:
    path = changed(log, tmp_path, "UPDATE rollup SET sums = replace(sums, '[', '[9')")
    assert evidence(log, path).verdict == "sound"
    assert log.audit(path).verdict == "refuted"
