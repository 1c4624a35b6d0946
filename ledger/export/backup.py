"""Backups: every row of a ledger's database at one moment, in a folder that proves itself.

A Parquet file for each table, and a manifest that the log's key signed, with the checkpoint of that moment
and every file's SHA-256. It is read from one snapshot beside a running service, is the same for SQLite and
PostgreSQL, and restores into either. Private keys are not in it: who has both could sign another history.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, Integer, LargeBinary, String, Table

import ledger
from ledger.core import cose
from ledger.core.canonical import decode_canonical, encode_canonical
from ledger.core.errors import CorruptError, InvalidError, RefusedError
from ledger.core.keys import PublicKey, Signer
from ledger.store import Store, queries
from ledger.store.rows import Rows, count_rows, read_rows, tables_of
from ledger.store.upgrade import check_revision, revisions

__all__ = ["MANIFEST", "SIGNATURE", "Backup", "BackupTable", "make_backup", "open_backup", "read_table"]

MANIFEST, SIGNATURE = "backup.json", "backup.cose"
_VERSION = 1
_SUBJECT = "tallystick:backup"
_CONTENT_TYPE = "application/tallystick-backup+json"
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_SIGNATURE_BYTES = 16_384
_BLOCK = 1 << 20
_UNDERSTOOD = frozenset({cose.ALG, cose.CONTENT_TYPE, cose.KID, cose.CWT_CLAIMS})


class BackupTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table's file, ``tables/NAME.parquet``."""

    name: str
    rows: int
    bytes: int
    sha256: str

    @property
    def path(self) -> str:
        """The file, below the backup's folder."""
        return f"tables/{self.name}.parquet"


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says. ``revision`` is that of the tables, ``checkpoint`` the signed tree head."""

    checkpoint: str
    created_us: int
    origin: str
    revision: str
    software: str
    tables: tuple[BackupTable, ...]
    tree_size: int
    version: int = _VERSION


_decoder = msgspec.json.Decoder(Backup)


def make_backup(
    store: Store, key: Signer, destination: Path, progress: Callable[[int, int], None] | None = None
) -> Backup:
    """Write a backup into the new folder ``destination``, all of it or nothing.

    Args:
        store: the ledger's database. A service may go on appending to it.
        key: signs the manifest: the log's own.
        destination: must not exist.
        progress: is told rows done, and of how many.

    Raises:
        RefusedError: ``destination`` exists. InvalidError: tables of another version, or another log's key.
    """
    if destination.exists():
        raise RefusedError(
            "exists already", where=str(destination), remedy="name a new folder", code="exists"
        )
    check_revision(store)
    revision = str(revisions(store).current)
    destination.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        (building / "tables").mkdir()
        with store.read() as connection:
            backup = _write(connection, key, building, revision, progress)
        data = encode_canonical(backup)
        header = {
            cose.CONTENT_TYPE: _CONTENT_TYPE,
            cose.CWT_CLAIMS: {cose.CWT_ISS: backup.origin, cose.CWT_SUB: _SUBJECT},
        }
        _write_file(building / MANIFEST, data)
        _write_file(building / SIGNATURE, cose.encode_sign1(cose.sign1(header, data, key, detached=True)))
        for folder in (building / "tables", building):
            _sync(folder)
        os.rename(building, destination)
        _sync(destination.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return backup


def open_backup(folder: Path, key: PublicKey) -> Backup:
    """The manifest, once it is shown that ``key`` signed it and that every file is what it lists.

    Raises:
        InvalidError: it is no backup, of another version, or another key's. CorruptError: it was changed.
    """
    data = _bounded(folder / MANIFEST, _MAX_MANIFEST_BYTES)
    message = cose.decode_sign1(_bounded(folder / SIGNATURE, _MAX_SIGNATURE_BYTES), where=SIGNATURE)
    claims = message.header.get(cose.CWT_CLAIMS)
    if message.payload is not None or not isinstance(claims, dict) or claims.get(cose.CWT_SUB) != _SUBJECT:
        raise InvalidError("is not the signature of a backup", where=SIGNATURE, code="malformed-backup")
    if message.header.get(cose.KID) != key.kid:
        raise InvalidError(
            "was not signed by this key",
            where=SIGNATURE,
            remedy="use the key of the log that the backup is of",
            code="other-key",
        )
    cose.verify_sign1(message, key, payload=data, understood=_UNDERSTOOD, where=SIGNATURE)
    backup = decode_canonical(data, _decoder, where=MANIFEST)
    if backup.version != _VERSION or claims.get(cose.CWT_ISS) != backup.origin:
        raise InvalidError(
            f"is of version {backup.version}, not {_VERSION}, or names another log than its signature",
            where=MANIFEST,
            code="malformed-backup",
        )
    for table in backup.tables:
        _check_file(folder, table)
    return backup


def read_table(folder: Path, table: BackupTable) -> tuple[list[str], Iterator[Rows]]:
    """The columns' names and the rows of a table, in groups. The file must have been checked."""
    file = pq.ParquetFile(folder / table.path)

    def groups() -> Iterator[Rows]:
        for at in range(file.num_row_groups):  # as they were written: of bounded size
            columns = [column.to_pylist() for column in file.read_row_group(at).columns]
            yield list(zip(*columns, strict=True))

    return list(file.schema_arrow.names), groups()


def _write(
    connection: Connection,
    key: Signer,
    building: Path,
    revision: str,
    progress: Callable[[int, int], None] | None,
) -> Backup:
    head = queries.log_head(connection)
    found = queries.issuer_key(connection, key.public.kid)
    if found is None or found.issuer != head.origin:
        raise InvalidError("is not a key of this log", where="log key", code="other-key")
    tables = tables_of(connection)
    total = sum(count_rows(connection, table) for table in tables)
    written = []
    done = 0
    for table in tables:
        path = building / "tables" / f"{table.name}.parquet"
        rows = 0
        schema = pa.schema(
            [pa.field(c.name, _type(table, c), nullable=bool(c.nullable)) for c in table.columns]
        )
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for group in read_rows(connection, table):
                columns = zip(*group, strict=True)
                arrays = [pa.array(each, type=f.type) for each, f in zip(columns, schema, strict=True)]
                writer.write_table(pa.table(arrays, schema=schema), row_group_size=len(group))
                rows += len(group)
                if progress is not None:
                    progress(done + rows, total)
        done += rows
        _sync(path)
        written.append(BackupTable(str(table.name), rows, path.stat().st_size, _digest(path)))
    return Backup(
        checkpoint=head.checkpoint,
        created_us=time.time_ns() // 1000,
        origin=head.origin,
        revision=revision,
        software=f"tallystick {ledger.__version__}",
        tables=tuple(written),
        tree_size=head.size,
    )


def _type(table: Table, column: Any) -> pa.DataType:
    if isinstance(column.type, Integer):
        return pa.int64()
    if isinstance(column.type, LargeBinary):
        return pa.large_binary()
    if isinstance(column.type, String):
        return pa.large_string()
    raise InvalidError(
        f"has the type {column.type}, which backups do not know",
        where=f"{table.name}.{column.name}",
        code="other-tables",
    )


def _check_file(folder: Path, table: BackupTable) -> None:
    if not table.name.isidentifier():
        raise InvalidError(f"{table.name!r} is no table's name", where=MANIFEST, code="malformed-backup")
    path = folder / table.path
    if not path.is_file() or path.stat().st_size != table.bytes or _digest(path) != table.sha256:
        raise CorruptError(
            "is missing, or not the file that the manifest lists",
            where=table.path,
            remedy="copy the whole backup again, or use another one",
            code="backup-files",
        )


def _bounded(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="name the folder that `tallystick backup` wrote",
            code="no-backup",
        ) from None
    if len(data) > limit:
        raise InvalidError(f"has more than {limit} bytes", where=path.name, code="too-large")
    return data


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
