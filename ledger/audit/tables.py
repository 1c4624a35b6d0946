"""The tables of a ledger's database as the auditor knows them: columns, keys, and how a place is named.

Written from the published schema, not imported from the code that writes them. ``statement``, ``tile`` and
``checkpoint`` are evidence; the others are derived from it and are computed again by the audit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ledger.audit.report import Findings
from ledger.audit.sources import Row

__all__ = [
    "COLUMNS",
    "KEYS",
    "NO_EVIDENCE",
    "PLACES_PER_LEAF",
    "SCHEMA_REVISIONS",
    "SETTINGS",
    "SUMS",
    "compare_rows",
    "place",
    "same",
]

PLACES_PER_LEAF = 4_096
"""``record_index.place`` = leaf index * 4096 + position."""

SUMS = (
    "records",
    "input_tokens",
    "output_tokens",
    "cached_input_records",
    "cached_input_tokens",
    "reasoning_records",
    "reasoning_tokens",
    "measured_records",
    "modelled_records",
    "estimated_records",
    "energy_uj",
    "energy_low_uj",
    "energy_high_uj",
    "carbon_records",
    "carbon_ng",
    "carbon_market_records",
    "carbon_market_ng",
    "embodied_records",
    "embodied_ng",
    "water_records",
    "water_nl",
)
"""What ``rollup.sums``, a JSON array, adds up, in this order."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "log_head": ("id", "origin", "size", "root", "checkpoint"),
    "checkpoint": ("size", "note"),
    "tile": ("level", "idx", "hashes"),
    "statement": (
        "leaf_index",
        "entry",
        "records",
        "leaf_hash",
        "kind",
        "issuer",
        "seq",
        "tree_size",
        "registered_s",
        "receipt_signature",
        "record_count",
        "first_us",
        "last_us",
        "records_sha256",
    ),
    "record_index": ("id", "place"),
    "batch_slice": ("leaf_index", "tenant", "deployment", "records"),
    "rollup": ("hour", "tenant", "deployment", "sums"),
    "issuer": ("issuer", "next_seq", "last_leaf"),
    "issuer_key": ("kid", "issuer", "alg", "cose_key", "added_leaf", "revoked_leaf"),
    "document": ("digest", "kind", "leaf_index", "body", "model", "version"),
    "api_key": ("id", "token_sha256", "scopes", "label", "created_s", "revoked_s", "tenant", "check_sha256"),
    "admin_act": ("leaf_index", "detail"),
}

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "legal_hold": ("id", "tenant", "from_us", "to_us", "reason", "lifted_s"),
    "retention_policy": ("tenant", "kind", "keep_days"),
    "issuer_tenant": ("issuer", "tenant"),
}
"""What is compared of tables that acts in the log set: see ``settings``. Of ``lifted_s``: is there one?"""

KEYS: Mapping[str, int] = {
    "log_head": 1,
    "checkpoint": 1,
    "tile": 2,
    "statement": 1,
    "record_index": 1,
    "batch_slice": 3,
    "rollup": 3,
    "issuer": 1,
    "issuer_key": 1,
    "document": 1,
    "api_key": 1,
    "admin_act": 1,
    "legal_hold": 1,
    "retention_policy": 2,
    "issuer_tenant": 1,
}
"""How many of a table's first columns are its primary key."""

NO_EVIDENCE = frozenset(
    {
        "budget",
        "budget_alert",
        "budget_head",
        "budget_reservation",
        "budget_use",
        "invite",
        "witnessed",
    }
)
"""Tables that the service keeps for itself: nothing that the log proves follows from them."""

_REMEDY = "find out who changed the database; then restore a good copy, or rebuild the row from the log"

SCHEMA_REVISIONS = frozenset({"0005"})
"""Migrations that this auditor knows the tables of."""


def _columns(table: str) -> tuple[str, ...]:
    """The columns of a table that are compared."""
    return SETTINGS[table] if table in SETTINGS else COLUMNS[table]


def place(table: str, *key: Any, column: str = "") -> str:
    """Name a row, or one column of it: ``statement[leaf_index=5].entry``."""
    named = ", ".join(
        f"{name}={value.hex() if isinstance(value, bytes) else value}"
        for name, value in zip(_columns(table), key, strict=False)
    )
    return f"{table}[{named}]" + (f".{column}" if column else "")


def same(stored: Any, expected: Any) -> bool:
    """Whether both are equal and of one type: 5 and 5.0 are different bytes in a database."""
    return type(stored) is type(expected) and bool(stored == expected)


def shown(value: Any) -> str:
    """A value for a message, cut to a readable length."""
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 400 else f"{text[:397]}..."


def compare_rows(
    findings: Findings,
    table: str,
    rows: Iterable[Row],
    expected: dict[Row, Row],
    *,
    undecided: Collection[Any] = (),
) -> None:
    """Compare stored rows with what the log says they must be, column by column.

    Args:
        findings: where to note differences.
        table: the table.
        rows: the stored rows, in the order of ``COLUMNS`` or ``SETTINGS``.
        expected: primary key -> the whole row. It is emptied.
        undecided: keys (first column) that cannot be compared, because their evidence is damaged.
    """
    width, columns = KEYS[table], _columns(table)
    for row in rows:
        findings.counts.rows += 1
        key = row[:width]
        wanted = expected.pop(key, None)
        if key[0] in undecided:
            continue
        if wanted is None:
            findings.add("row-extra", place(table, *key), "nothing in the log leads to this row")
            continue
        if row == wanted and all(map(same, row, wanted)):
            continue
        for column, value, right in zip(columns, row, wanted, strict=True):
            if not same(value, right):
                findings.add(
                    "row-differs",
                    place(table, *key, column=column),
                    f"is {shown(value)}, but the log says {shown(right)}",
                    _REMEDY,
                )
    for key in expected:
        if key[0] not in undecided:
            findings.add("row-missing", place(table, *key), "is derived from the log, but gone", _REMEDY)
