"""Makes Arrow columns of records: of many leaves at once, without a Python object for each value.

The native part, where it is there, parses the canonical bytes straight into Arrow's buffers. Else, and for
what it is not certain of, ``ledger.core.export_layout.record_columns`` says what the columns hold: that is
the reference, and both give equal columns.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ledger.core.export_layout import DEPLOYMENT_COLUMNS, deployment_columns, record_columns
from ledger.core.records import Deployment, Record, decode_record_lines
from ledger.core.statements import MAX_BATCH_RECORDS
from ledger.export.layout import RECORD_SCHEMA
from ledger.export.source import Leaf
from ledger.native import parsing as _native

__all__ = ["RecordColumns"]

_PLACED = ("leaf_index", "position", "issuer")
_FROM_DEPLOYMENT = [column.name for column in DEPLOYMENT_COLUMNS]
_PARSED = [
    field for field in RECORD_SCHEMA if field.name not in _PLACED and field.name not in _FROM_DEPLOYMENT
]
"""What follows from a record's bytes alone, in the order of ``record_columns``; ``record`` is the last."""
_POSITIONS = array("i", range(MAX_BATCH_RECORDS))


class RecordColumns:
    """Makes batches of rows with ``RECORD_SCHEMA``. Not safe to share between threads.

    Args:
        deployment: returns the deployment of a digest.
    """

    def __init__(self, deployment: Callable[[str], Deployment]) -> None:
        self._deployment = deployment
        self._known: dict[str, dict[str, str | None]] = {}

    def batch(self, leaves: Sequence[Leaf]) -> pa.RecordBatch:
        """The rows of the records of ``leaves``, at least one, in order.

        Raises:
            InvalidError: a record is malformed. CorruptError: its deployment is unknown.
        """
        columns = _parsed(leaves)
        columns |= self._of_deployments(columns["deployment"])
        columns["leaf_index"] = _integers(
            array("q", [leaf.index]) * leaf.count if leaf.count != 1 else array("q", [leaf.index])
            for leaf in leaves
        )
        columns["position"] = _integers(_positions(leaf) for leaf in leaves)
        columns["issuer"] = _issuers(leaves)
        return pa.RecordBatch.from_arrays(
            [columns[field.name] for field in RECORD_SCHEMA], schema=RECORD_SCHEMA
        )

    def _of_deployments(self, digests: pa.Array) -> dict[str, pa.Array]:
        encoded = digests.dictionary_encode()
        found = []
        for digest in encoded.dictionary.to_pylist():
            if digest not in self._known:
                self._known[digest] = deployment_columns(self._deployment(digest))
            found.append(self._known[digest])
        columns = {}
        for name in _FROM_DEPLOYMENT:
            kind = RECORD_SCHEMA.field(name).type
            values = [each[name] for each in found]
            if values.count(values[0]) == len(values):
                columns[name] = _same(values[0], len(digests), kind)
            else:
                columns[name] = pa.array(values, kind).take(encoded.indices)
        return columns


def _parsed(leaves: Sequence[Leaf]) -> dict[str, pa.Array]:
    if _native is not None and (found := _native.record_columns(b"".join(leaf.lines for leaf in leaves))):
        rows = sum(leaf.count for leaf in leaves)
        return {
            field.name: _from_buffers(field.type, rows, *column)
            for field, column in zip(_PARSED, found, strict=True)
        }
    records: list[Record] = []
    lines: list[bytes] = []
    for leaf in leaves:
        read = decode_record_lines(leaf.lines, where=f"leaf {leaf.index} records")
        records += read[0]
        lines += read[1]
    columns: dict[str, list[Any]] = {**record_columns(records), "record": lines}
    return {field.name: _from_values(columns[field.name], field.type) for field in _PARSED}


def _from_buffers(kind: pa.DataType, rows: int, nulls: int, valid: bytes | None, *buffers: bytes) -> pa.Array:
    held = [None if valid is None else pa.py_buffer(valid), *map(pa.py_buffer, buffers)]
    if nulls == rows:
        return pa.nulls(rows, kind)
    if not pa.types.is_list(kind):
        return pa.Array.from_buffers(kind, rows, held, nulls)
    # quality: lists' offsets, names' offsets and bytes, values, scales
    items = len(buffers[3]) // 8
    children = [
        pa.Array.from_buffers(pa.string(), items, [None, held[2], held[3]], 0),
        pa.Array.from_buffers(pa.int64(), items, [None, held[4]], 0),
        pa.Array.from_buffers(pa.int64(), items, [None, held[5]], 0),
    ]
    metrics = pa.StructArray.from_arrays(children, fields=list(kind.value_type))
    return pa.Array.from_buffers(kind, rows, held[:2], nulls, children=[metrics])


def _from_values(values: list[Any], kind: pa.DataType) -> pa.Array:
    """An array of ``values``; what is the same all along, often null, is not converted one by one."""
    if values.count(values[0]) == len(values):
        return _same(values[0], len(values), kind)
    return pa.array(values, kind)


def _same(value: Any, rows: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(rows, kind) if value is None else pa.repeat(pa.scalar(value, kind), rows)


def _integers(parts: Any) -> pa.Array:
    joined: array[int] | None = None
    for part in parts:
        if joined is None:
            joined = array(part.typecode)
        joined += part
    assert joined is not None  # noqa: S101 - for the type checker: there is at least one leaf
    kind = pa.int64() if joined.typecode == "q" else pa.int32()
    return pa.Array.from_buffers(kind, len(joined), [None, pa.py_buffer(joined)], 0)


def _positions(leaf: Leaf) -> array[int]:
    return _POSITIONS[: leaf.count] if leaf.positions is None else array("i", leaf.positions)


def _issuers(leaves: Sequence[Leaf]) -> pa.Array:
    rows = sum(leaf.count for leaf in leaves)
    first = leaves[0].statement.issuer
    if all(leaf.statement.issuer == first for leaf in leaves):
        return _same(first, rows, pa.string())
    numbers = {name: n for n, name in enumerate(dict.fromkeys(leaf.statement.issuer for leaf in leaves))}
    indices = _integers(array("q", [numbers[leaf.statement.issuer]]) * leaf.count for leaf in leaves)
    return pc.take(pa.array(list(numbers), pa.string()), indices)
