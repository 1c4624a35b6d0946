"""Arrow schemas of an export's files, made from the layout that ``ledger.core.export_layout`` fixes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ledger.core.export_layout import RECORD_COLUMNS, STATEMENT_COLUMNS, Column

__all__ = ["RECORD_SCHEMA", "STATEMENT_SCHEMA", "arrow_schema"]

_ELEMENT = len(RECORD_COLUMNS) + 1
"""First of the field ids inside ``quality``, the only column of records with parts."""


def _id(number: int) -> dict[str, str]:
    """Parquet's field id, by which Iceberg and others know a column whatever its name."""
    return {"PARQUET:field_id": str(number)}


_METRIC = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False, metadata=_id(_ELEMENT + 1)),
        pa.field("value", pa.int64(), nullable=False, metadata=_id(_ELEMENT + 2)),
        pa.field("scale", pa.int64(), nullable=False, metadata=_id(_ELEMENT + 3)),
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
        pa.list_(pa.field("element", _METRIC, nullable=False, metadata=_id(_ELEMENT))),
    )
}


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of ``columns``; each carries its description, and its place from 1 as field id."""
    return pa.schema(
        [
            pa.field(
                column.name,
                _TYPES[column.type],
                column.nullable,
                metadata={"description": column.description, **_id(at)},
            )
            for at, column in enumerate(columns, 1)
        ]
    )


RECORD_SCHEMA = arrow_schema(RECORD_COLUMNS)
STATEMENT_SCHEMA = arrow_schema(STATEMENT_COLUMNS)
