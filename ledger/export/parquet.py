"""Exports a ledger as Parquet that proves itself. The layout is that of ``ledger.core.export_layout``."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from ledger.core.errors import RefusedError, UnavailableError
from ledger.core.export_layout import Scope
from ledger.core.keys import PrivateKey
from ledger.export.manifest import write_manifest
from ledger.export.partitions import RecordFiles, StatementFile
from ledger.export.source import Period, Source, open_source
from ledger.store.engine import Store

__all__ = ["ExportSummary", "export_parquet"]


@dataclass(frozen=True)
class ExportSummary:
    """What an export holds. ``size_bytes`` is that of all files; ``tree_size`` the checkpoint's."""

    directory: Path
    records: int
    statements: int
    every_statement: bool
    files: int
    size_bytes: int
    tree_size: int


def export_parquet(
    source: Store,
    directory: str | Path,
    *,
    log_key: PrivateKey,
    from_us: int | None = None,
    to_us: int | None = None,
    every_statement: bool | None = None,
    created_us: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportSummary:
    """Export records with ``from_us <= started_us < to_us`` and what proves them to the newest checkpoint.

    The directory appears whole or not at all. The same ledger, period and ``created_us`` give the same bytes,
    as far as the version of pyarrow is the same.

    Args:
        source: the store to read; it can go on appending.
        directory: where to write; must not exist, or be empty.
        log_key: the log's key, which signs the manifest.
        from_us: start of the period, Unix microseconds.
        to_us: end of the period, not included.
        every_statement: whether to give all statements of the log, which shows that no record was left out;
            by default only for an export without a period.
        created_us: the time to state; now by default.
        progress: called with (leaves done, leaves of the log).

    Raises:
        RefusedError: the directory is not empty.
        InvalidError: the period is empty, or ``log_key`` is not the log's.
        CorruptError: the ledger does not prove what would be exported.
        UnavailableError: it cannot be written.
    """
    period = Period(from_us, to_us)
    if every_statement is None:
        every_statement = period.is_all
    target = Path(directory).absolute()
    _check_free(target)
    opened = open_source(source, log_key)
    work = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        work.mkdir(parents=True)
        rows = _write(opened, work, period, every_statement=every_statement, progress=progress)
        manifest = write_manifest(
            work,
            rows,
            origin=opened.checkpoint.origin,
            checkpoint=opened.note,
            scope=Scope(
                statements="all" if every_statement else "needed",
                from_us=UNSET if from_us is None else from_us,
                to_us=UNSET if to_us is None else to_us,
            ),
            created_us=time.time_ns() // 1000 if created_us is None else created_us,
            log_key=log_key,
        )
        sizes = _sync(work)
        _check_free(target)
        work.rename(target)
        _sync_directory(target.parent)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise UnavailableError(
            f"could not write the export: {error.strerror or error}",
            where=str(target),
            remedy="make room, or write to another disk; nothing is left behind",
            code="export-failed",
        ) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return ExportSummary(
        directory=target,
        records=manifest.records,
        statements=manifest.statements,
        every_statement=every_statement,
        files=len(sizes),
        size_bytes=sum(sizes),
        tree_size=opened.checkpoint.size,
    )


def _write(
    source: Source,
    work: Path,
    period: Period,
    *,
    every_statement: bool,
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Write the Parquet files; return their numbers of rows by path."""
    statements = StatementFile(work)
    records = RecordFiles(work, source.deployment)
    size = source.checkpoint.size
    try:
        for leaf in source.leaves(period, every_statement=every_statement):
            statements.add(leaf, source.tiles.inclusion_path(leaf.index))
            records.add(leaf)
            if progress is not None:
                progress(leaf.index + 1, size)
        statements.close()
        records.close()
    except BaseException:
        statements.abandon()
        records.abandon()
        raise
    return {**statements.rows, **records.rows}


def _check_free(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RefusedError(
            "exists and is not an empty directory",
            where=str(target),
            remedy="name a new directory; an export is never merged into another",
            code="directory-not-empty",
        )


def _sync(work: Path) -> list[int]:
    """Make all files durable before the rename shows them; return their sizes."""
    sizes = []
    for path in sorted(work.rglob("*")):
        if path.is_dir():
            _sync_directory(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes.append(path.stat().st_size)
    _sync_directory(work)
    return sizes


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
