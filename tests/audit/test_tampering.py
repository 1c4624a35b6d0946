"""Whatever is changed in a ledger's database is found, and its place is named."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ledger.audit import AuditReport
from ledger.audit.tables import COLUMNS, KEYS, place
from tests.audit.conftest import Log

CASES_PER_CELL = {"statement": 3, "tile": 40, "checkpoint": 6, "log_head": 20, "record_index": 3}


def test_untouched_log_is_sound(log: Log) -> None:
    report = log.audit()
    assert report.findings == ()
    assert report.gaps == ()
    assert report.verdict == "sound"
    assert report.counts.statements == report.checkpoint.size == len(log.registrations) + 16
    assert report.counts.records == 20
    assert report.counts.issuers == 4
    assert report.counts.checkpoints == len(log.checkpoints)


def mutated(value: Any, rng: random.Random) -> Any:
    """``value`` changed as little as can be: one byte, one character, one bit, or NULL."""
    if value is None:
        return rng.choice([0, 1, b"x", "x"])
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, value ^ 1 << rng.randrange(40), -value - 1])
    if isinstance(value, str):
        if not value:
            return "x"
        at = rng.randrange(len(value))
        other = rng.choice([chr(ord(value[at]) ^ 1 << rng.randrange(5)), "", "é"])
        return value[:at] + other + value[at + 1 :]
    if rng.random() < 0.1:
        return rng.choice([value[:-1], value + b"\0", b""])
    at = rng.randrange(len(value))
    return value[:at] + bytes([value[at] ^ rng.randrange(1, 256)]) + value[at + 1 :]


@pytest.mark.parametrize("table", COLUMNS)
def test_any_change_of_any_cell_is_found_and_named(table: str, log: Log, tmp_path: Path) -> None:
    rng = random.Random(table)
    original = log.path.read_bytes()
    path = tmp_path / "copy.db"
    columns, width = COLUMNS[table], KEYS[table]
    connection = sqlite3.connect(log.path)
    rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
    connection.close()
    condition = " AND ".join(f"{name} IS ?" for name in columns[:width])
    done = 0
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            for _ in range(CASES_PER_CELL.get(table, 4)):
                changed = mutated(value, rng)
                if changed == value:
                    continue
                path.write_bytes(original)
                connection = sqlite3.connect(path)
                try:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {condition}", (changed, *row[:width])
                    )
                    connection.commit()
                except sqlite3.IntegrityError:
                    continue
                finally:
                    connection.close()
                report = log.audit(path)
                what = f"{place(table, *row[:width], column=column)}: {value!r} -> {changed!r}"
                assert report.verdict == "refuted", f"{what}: not found"
                assert names(report, table, row[:width], column), f"{what}: not named in {report.findings}"
                done += 1
    assert done >= len(rows) * len(columns)


# Which of these is wrong cannot be told: together they make one thing that does not verify.
TOGETHER = {
    "tree_size": {"tree_size", "registered_s", "receipt_signature"},
    "registered_s": {"registered_s", "receipt_signature"},
    "records": {"records", "records_sha256"},
}


def names(report: AuditReport, table: str, key: tuple, column: str) -> bool:
    """Whether a finding names the cell; where the key itself was changed, the row that is gone."""
    where = [each.where for each in report.findings]
    row = place(table, *key)
    if table == "api_key":  # follows from nothing else: a changed key is another row that does not verify
        return any(each.startswith(row if column != "id" else "api_key[") for each in where)
    if column in COLUMNS[table][: KEYS[table]]:
        return any(each.startswith(row) for each in where)
    if table == "tile":
        return any(each.startswith(row) for each in where)
    return any(place(table, *key, column=each) in where for each in TOGETHER.get(column, {column}))
