"""Writes an export into Apache Iceberg tables, for engines beyond one machine (Spark, Trino and others).

Two tables in one namespace: ``records``, partitioned by the day of ``started_at``, as they were logged; and
``statements``, which holds the corrections and evaluations of records and what proves them. A snapshot says
in its properties which checkpoint it goes to. The record files are those of the export, byte for byte: they
are copied and added, not written again. What an export gained since (``--resume``) is appended.

Format: Iceberg table specification, version 2; the catalogue is pyiceberg's SQL catalogue in a SQLite file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ledger.core.errors import InvalidError, RefusedError, UnavailableError
from ledger.core.export_layout import (
    MANIFEST_FILE,
    RECORD_COLUMNS,
    RECORDS_DIR,
    STATEMENT_COLUMNS,
    STATEMENTS_FILE,
    Column,
    Manifest,
    ManifestFile,
)

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table

__all__ = ["CATALOG_FILE", "NAMESPACE", "IcebergSummary", "write_iceberg"]

CATALOG_FILE = "catalog.db"
NAMESPACE = "tallystick"
_CATALOG = "tallystick"
_TREE_SIZE = "tallystick.tree-size"
_PROPERTIES = "tallystick."
_COPY_BYTES = 8 << 20
_UNCHANGING = [column for column in STATEMENT_COLUMNS if column.name != "inclusion_path"]
"""The paths lead to one checkpoint and change with it; engines that need proofs use the export."""


@dataclass(frozen=True)
class IcebergSummary:
    """What was appended. ``metadata`` is the newest metadata file of ``records``, which engines open."""

    warehouse: Path
    records: int
    added_records: int
    added_files: int
    added_statements: int
    tree_size: int
    metadata: str


def write_iceberg(export: Path, warehouse: Path) -> IcebergSummary:
    """Append what is new in an export to the tables in ``warehouse``; make them if they are not there.

    An interrupted run leaves the tables as they were, at most with files beside them that no snapshot names;
    the next one writes these again.

    Args:
        export: the export's folder. Verify it first: its digests are compared, its proofs are not.
        warehouse: a folder for the catalogue and the tables.

    Raises:
        InvalidError: no export.
        RefusedError: the tables were made from another log or another export of it, or it is older than they.
        UnavailableError: pyiceberg is not installed, or the warehouse cannot be written.
    """
    try:
        from pyiceberg.catalog.sql import SqlCatalog
        from pyiceberg.exceptions import CommitFailedException
    except ImportError:
        raise UnavailableError(
            "pyiceberg is not installed", remedy="pip install 'tallystick[iceberg]'", code="missing-package"
        ) from None
    if not (export / MANIFEST_FILE).is_file():
        raise InvalidError(
            "is not an export",
            where=str(export),
            remedy="make one: tallystick export parquet LEDGER OUT",
            code="no-export",
        )
    data = (export / MANIFEST_FILE).read_bytes()
    manifest = msgspec.json.decode(data, type=Manifest)
    size = int(manifest.checkpoint.splitlines()[1])
    root = warehouse.absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        catalog = SqlCatalog(_CATALOG, uri=f"sqlite:///{root / CATALOG_FILE}", warehouse=f"file://{root}")
        catalog.create_namespace_if_not_exists(NAMESPACE)
        told = {
            f"{_PROPERTIES}origin": manifest.origin,
            _TREE_SIZE: str(size),
            f"{_PROPERTIES}checkpoint": manifest.checkpoint,
            f"{_PROPERTIES}manifest-sha256": hashlib.sha256(data).hexdigest(),
            f"{_PROPERTIES}scope": msgspec.json.encode(manifest.scope).decode(),
        }
        statements = _add_statements(catalog, export, told, size)
        table = _table(catalog, "records", RECORD_COLUMNS, "started_at")
        done = _checked(table, told, size)
        there = _named(table)
        new = [each for each in _record_files(manifest) if _location(table, each) not in there]
        rows = sum(each.rows for each in new if isinstance(each.rows, int))
        if new or done != size:
            for each in new:
                _check_is_new(export, each, done)
            paths = [_copy(export, each, table) for each in new]
            with table.transaction() as transaction:
                if paths:
                    transaction.add_files(paths, snapshot_properties=told)
                transaction.set_properties(told)
    except (OSError, CommitFailedException) as error:
        raise UnavailableError(
            f"could not be written: {error}",
            where=str(warehouse),
            remedy="make room, or let the other writer finish; then run it again",
            code="export-failed",
        ) from error
    return IcebergSummary(
        warehouse=warehouse,
        records=manifest.records,
        added_records=rows,
        added_files=len(new),
        added_statements=statements,
        tree_size=size,
        metadata=table.metadata_location,
    )


def _add_statements(catalog: Catalog, export: Path, told: dict[str, str], size: int) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = _table(catalog, "statements", _UNCHANGING, None)
    done = _checked(table, told, size)
    if done == size:
        return 0
    names = [column.name for column in _UNCHANGING]
    added = 0
    with table.transaction() as transaction, pq.ParquetFile(export / STATEMENTS_FILE) as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=names)
            rows = rows.filter(pc.greater_equal(rows.column("leaf_index"), done))
            if rows.num_rows:
                # Here the ids are those of the table, not of the export's file.
                metadata_free = pa.schema([field.remove_metadata() for field in rows.schema])
                transaction.append(rows.cast(metadata_free), snapshot_properties=told)
                added += rows.num_rows
        transaction.set_properties(told)
    return added


def _table(catalog: Catalog, name: str, columns: Any, day_of: str | None) -> Table:
    from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
    from pyiceberg.transforms import DayTransform

    schema = _schema(columns)
    spec = UNPARTITIONED_PARTITION_SPEC
    if day_of is not None:
        source = schema.find_field(day_of).field_id
        spec = PartitionSpec(PartitionField(source, 1000, DayTransform(), f"{day_of}_day"))
    properties = {
        "format-version": "2",
        "write.parquet.compression-codec": "zstd",
        "comment": f"Tallystick {name}; units are in the column names; null: the record does not say",
    }
    return catalog.create_table_if_not_exists(
        f"{NAMESPACE}.{name}", schema, partition_spec=spec, properties=properties
    )


def _schema(columns: Any) -> Schema:
    """Field ids count from 1 in the order of the columns; those inside ``quality`` follow them all."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    inner = iter(range(len(columns) + 1, len(columns) + 5))
    fields = [
        NestedField(
            at, column.name, _type(column, inner), required=not column.nullable, doc=column.description
        )
        for at, column in enumerate(columns, 1)
    ]
    return Schema(*fields)


def _type(column: Column, ids: Iterator[int]) -> Any:
    from pyiceberg import types

    plain: dict[str, Any] = {
        "int32": types.IntegerType(),
        "int64": types.LongType(),
        "string": types.StringType(),
        "binary": types.BinaryType(),
        "timestamp[us, tz=UTC]": types.TimestamptzType(),
    }
    if column.type in plain:
        return plain[column.type]
    element = next(ids)
    metric = types.StructType(
        types.NestedField(next(ids), "name", types.StringType(), required=True, doc="name of the metric"),
        types.NestedField(next(ids), "value", types.LongType(), required=True, doc="value times 10^scale"),
        types.NestedField(next(ids), "scale", types.LongType(), required=True, doc="decimal places"),
    )
    return types.ListType(element, metric, element_required=True)


def _checked(table: Table, told: dict[str, str], size: int) -> int:
    """The size of the log that the table goes to, 0 if it is new."""
    before = table.properties
    if _TREE_SIZE not in before:
        return 0
    done = int(before[_TREE_SIZE])
    same = all(before.get(name) == told[name] for name in (f"{_PROPERTIES}origin", f"{_PROPERTIES}scope"))
    if not same or done > size:
        raise RefusedError(
            "was made from another log or scope, or from a newer export",
            where=f"table {'.'.join(table.name())}",
            remedy="use a new warehouse, or the export that the tables were made from",
            code="export-differs",
        )
    return done


def _record_files(manifest: Manifest) -> Iterator[ManifestFile]:
    return (each for each in manifest.files if each.path.startswith(f"{RECORDS_DIR}/"))


def _location(table: Table, file: ManifestFile) -> str:
    """Named by its digest, so that a file is there once."""
    day = file.path.split("/")[1].removeprefix("day=")
    return f"{table.location()}/data/started_at_day={day}/{file.sha256}.parquet"


def _named(table: Table) -> set[str]:
    """The files of the table's newest snapshot."""
    snapshot = table.current_snapshot()
    if snapshot is None:
        return set()
    return {
        entry.data_file.file_path
        for manifest in snapshot.manifests(table.io)
        for entry in manifest.fetch_manifest_entry(table.io)
    }


def _check_is_new(export: Path, file: ManifestFile, done: int) -> None:
    """Refuse records that the table has from other files: they would count twice."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(export / file.path)
    groups = [metadata.row_group(n).column(0).statistics for n in range(metadata.num_row_groups)]
    if any(each is None or each.min < done for each in groups):
        raise RefusedError(
            "has records of leaves that the tables cover already: it is another export of the same log",
            where=str(export / file.path),
            remedy="use a new warehouse, or go on with the first export by `export parquet --resume`",
            code="export-differs",
        )


def _copy(export: Path, file: ManifestFile, table: Table) -> str:
    """Copy a record file to where the table has its data; check that it is what was signed."""
    target, digest = _location(table, file), hashlib.sha256()
    with (export / file.path).open("rb") as source, table.io.new_output(target).create(overwrite=True) as out:
        while chunk := source.read(_COPY_BYTES):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise InvalidError(
            "is not the file that the manifest lists",
            where=str(export / file.path),
            remedy="verify the export, and export again",
            code="export-files",
        )
    return target
