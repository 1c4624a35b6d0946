"""Arrow schemas of an export's files, made from the layout that ``ledger.core.export_layout`` fixes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ledger.core.export_layout import RECORD_COLUMNS, STATEMENT_COLUMNS, Column

__all__ = ["RECORD_SCHEMA", "STATEMENT_SCHEMA", "arrow_schema"]

_METRIC = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.int64(), nullable=False),
        pa.field("scale", pa.int64(), nullable=False),
    ]
)
_TYPES = {
    str(each): each
    for each in (
        pa.int32(),
        pa.int64(),
        pa.string(),
        pa.binary(),
        pa.timestamp("us", tz="UTC"),
        pa.list_(pa.field("element", _METRIC, nullable=False)),
    )
}


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of ``columns``; each field carries its description as metadata."""
    return pa.schema(
        [
            pa.field(
                column.name,
                _TYPES[column.type],
                column.nullable,
                metadata={"description": column.description},
            )
            for column in columns
        ]
    )


RECORD_SCHEMA = arrow_schema(RECORD_COLUMNS)
STATEMENT_SCHEMA = arrow_schema(STATEMENT_COLUMNS)
