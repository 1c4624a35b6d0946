"""A database whose tables are not the plain ones that the auditor knows is never called sound."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ledger.audit import AuditReport

REBUILT = (
    "CREATE TABLE copy AS SELECT * FROM {table}",
    "DROP TABLE {table}",
    "ALTER TABLE copy RENAME TO {table}",
)


def without_key(table: str, *more: str) -> tuple[str, ...]:
    return (*(each.format(table=table) for each in REBUILT), *more)


CHANGES = {
    "trigger": ("CREATE TRIGGER later AFTER INSERT ON statement BEGIN UPDATE rollup SET sums = '[]'; END",),
    "view beside the tables": ("CREATE VIEW more AS SELECT * FROM statement",),
    "view that changes with time": (
        "ALTER TABLE rollup RENAME TO sqlx",
        "CREATE VIEW rollup AS SELECT hour, tenant, deployment, "
        "CASE WHEN date('now') < '2999' THEN sums ELSE '[]' END AS sums FROM sqlx",
    ),
    "no version": ("DROP TABLE alembic_version",),
    "column more": ("ALTER TABLE statement ADD COLUMN more TEXT DEFAULT 'x'",),
    "tile twice": without_key("tile", "INSERT INTO tile SELECT level, idx, x'00' FROM tile"),
    "record id twice": without_key(
        # Twice the same wrong place: what is only held against the log in pairs would cancel out.
        "record_index",
        *["INSERT INTO record_index SELECT max(id), 0 FROM record_index"] * 2,
    ),
    "checkpoint twice": without_key("checkpoint", "INSERT INTO checkpoint SELECT * FROM checkpoint LIMIT 1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_odd_schema_is_not_sound(name: str, tampered: Callable[..., AuditReport]) -> None:
    report = tampered(*CHANGES[name])
    assert report.verdict != "sound"
    assert any(each.where.startswith(("trigger ", "view ", "table ")) for each in report.gaps), report.gaps


def test_note_stored_as_bytes_is_found(tampered: Callable[..., AuditReport]) -> None:
    report = tampered("UPDATE checkpoint SET note = CAST(note AS BLOB) WHERE size = 3")
    assert report.verdict == "refuted"
    assert {each.where for each in report.findings} == {"checkpoint[size=3].note"}
