"""Exports a ledger as Parquet that proves itself. The layout is that of ``ledger.core.export_layout``."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from msgspec import UNSET
from msgspec.structs import replace

from ledger.core.errors import RefusedError, UnavailableError
from ledger.core.export_layout import Manifest, ManifestFile, Scope
from ledger.core.keys import Signer
from ledger.export.incremental import Base, State, Work, locked_work, read_base, sync_directory
from ledger.export.manifest import write_manifest
from ledger.export.partitions import MAX_PART_ROWS, RecordFiles
from ledger.export.source import Period, Source, open_source
from ledger.export.statement_file import StatementRows, read_exported, read_rows, write_statements
from ledger.store.engine import Store

__all__ = ["ExportSummary", "export_parquet"]

_SEGMENT_ROWS = 2 * MAX_PART_ROWS
"""Records and statements after which all files are closed: what an interrupted run does again is less."""
_day_of_path = re.compile(r"records/day=([^/]+)/").match


@dataclass(frozen=True)
class ExportSummary:
    """What an export holds. ``size_bytes`` is that of all files; ``tree_size`` the checkpoint's.

    ``added_records`` are new against the export that was added to: all of them, if there was none.
    """

    directory: Path
    records: int
    added_records: int
    statements: int
    every_statement: bool
    files: int
    size_bytes: int
    tree_size: int


@dataclass
class _Run:
    """One run over the leaves that are not yet exported. Owned by the thread that exports."""

    source: Source
    work: Work
    period: Period
    every_statement: bool
    base: Base | None
    state: State
    durable: bool
    progress: Callable[[int, int], None] | None = None
    records: RecordFiles = field(init=False)

    def write(self) -> None:
        """Write record files and the statements that wait for proofs, segment by segment."""
        taken = chain(self.base.files if self.base else (), self.state.files)
        parts = Counter(found[1] for each in taken if (found := _day_of_path(each.path)))
        self.records = RecordFiles(self.work.export, self.source.deployment, parts)
        try:
            self._segments()
            self.records.close()
        except BaseException:
            self.records.abandon()
            raise

    def _segments(self) -> None:
        size = self.source.checkpoint.size
        statements, rows = StatementRows(self.work.statements(self.state.segments)), 0
        leaves = self.source.leaves(
            self.period, every_statement=self.every_statement, start=self.state.next_leaf
        )
        for leaf in leaves:
            statements.add(leaf)
            self.records.add(leaf)
            rows += leaf.count
            if rows >= _SEGMENT_ROWS or statements.count >= _SEGMENT_ROWS:
                self._commit(statements, leaf.index + 1)
                statements, rows = StatementRows(self.work.statements(self.state.segments)), 0
            if self.progress is not None:
                self.progress(leaf.index + 1, size)
        self._commit(statements, size)

    def _commit(self, statements: StatementRows, next_leaf: int) -> None:
        """End a segment: close its files and say that they are finished."""
        statements.close()
        files = self.records.finish()
        state = replace(
            self.state,
            next_leaf=next_leaf,
            segments=self.state.segments + 1,
            files=(*self.state.files, *files),
        )
        if self.durable:
            _sync_file(self.work.statements(self.state.segments))
            for folder in {(self.work.export / each.path).parent for each in files}:
                sync_directory(folder)
            self.work.save(state)
        self.state = state

    def finish(self, created_us: int, log_key: Signer, scope: Scope) -> Manifest:
        """Put together the export from what is finished."""
        earlier = [read_exported(self.base.directory)] if self.base else []
        waiting = [read_rows(self.work.statements(n)) for n in range(self.state.segments)]
        statements = write_statements(
            self.work.export, chain.from_iterable([*earlier, *waiting]), self.source.tiles
        )
        if self.base is not None:
            self.work.share(self.base)
        return write_manifest(
            self.work.export,
            records=(*(self.base.files if self.base else ()), *self.state.files),
            statements=statements,
            origin=self.source.checkpoint.origin,
            checkpoint=self.source.note,
            scope=scope,
            created_us=created_us,
            log_key=log_key,
        )


def export_parquet(
    source: Store,
    directory: str | Path,
    *,
    log_key: Signer,
    from_us: int | None = None,
    to_us: int | None = None,
    every_statement: bool | None = None,
    resume: bool = False,
    created_us: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportSummary:
    """Export records with ``from_us <= started_us < to_us`` and what proves them to the newest checkpoint.

    The directory appears whole or not at all. The same ledger, period and ``created_us`` give the same bytes,
    as far as the version of pyarrow is the same.

    Args:
        source: the store to read; it can go on appending.
        directory: where to write; must not exist, or be empty, unless ``resume``.
        log_key: the log's key, which signs the manifest.
        from_us: start of the period, Unix microseconds.
        to_us: end of the period, not included.
        every_statement: whether to give all statements of the log, which shows that no record was left out;
            by default only for an export without a period.
        resume: whether to go on with an export that was interrupted, and to add what is new to one that is
            there. What is begun then stays after a failure, in ``.NAME.partial`` beside the directory.
        created_us: the time to state; now by default.
        progress: called with (leaves done, leaves of the log).

    Raises:
        RefusedError: the directory is not empty; or it cannot be added to.
        InvalidError: the period is empty, or ``log_key`` is not the log's.
        CorruptError: the ledger does not prove what would be exported.
        UnavailableError: it cannot be written.
    """
    period = Period(from_us, to_us)
    if every_statement is None:
        every_statement = period.is_all
    scope = Scope(
        statements="all" if every_statement else "needed",
        from_us=UNSET if from_us is None else from_us,
        to_us=UNSET if to_us is None else to_us,
    )
    target = Path(directory).absolute()
    if not resume:
        _check_free(target)
    opened = open_source(source, log_key)
    try:
        with locked_work(target) if resume else _own_work(target) as work:
            base = read_base(target, opened, scope) if resume else None
            if base is not None and base.size == opened.checkpoint.size:
                shutil.rmtree(work.directory)  # of a run that was cut off after its last step
                return _summary(target, base.manifest, 0, opened)
            run = _Run(
                opened,
                work,
                period,
                every_statement,
                base,
                _begin(work, base, opened, scope),
                resume,
                progress,
            )
            run.write()
            _check_nothing_was_erased(opened, target)
            now_us = time.time_ns() // 1000
            manifest = run.finish(now_us if created_us is None else created_us, log_key, scope)
            _sync(work.export)
            if not resume:
                _check_free(target)
            work.publish(target)
    except OSError as error:
        raise UnavailableError(
            f"could not write the export: {error.strerror or error}",
            where=str(target),
            remedy="make room, or write to another disk; "
            + ("then run it again, it goes on from there" if resume else "nothing is left behind"),
            code="export-failed",
        ) from error
    return _summary(target, manifest, sum(_rows(run.state.files)), opened)


@contextmanager
def _own_work(target: Path) -> Iterator[Work]:
    """A folder for one run alone, which is removed if it fails."""
    work = Work(target.parent / f".{target.name}.{secrets.token_hex(8)}")
    try:
        work.directory.mkdir(parents=True)
        yield work
    except BaseException:
        shutil.rmtree(work.directory, ignore_errors=True)
        raise


def _begin(work: Work, base: Base | None, source: Source, scope: Scope) -> State:
    """What to go on from: the state of an interrupted run, if it was the same work, or the beginning."""
    size = source.checkpoint.size
    state = work.load()
    digest, first = ("", 0) if base is None else (base.digest, base.size)
    if state is not None:
        same = (state.origin, state.scope, state.base) == (source.checkpoint.origin, scope, digest)
        # Finished files may hold what was erased since.
        if not same or state.next_leaf > size or source.erased_since(state.known_size):
            state = None
    if base is not None and source.erased_since(base.size):
        raise RefusedError(
            "records were erased since it was made, and their bytes may be in it",
            where=str(base.directory),
            remedy="export anew into another folder, and remove this one",
            code="export-erased",
        )
    work.clear(state)
    if state is not None:
        return state
    return State(origin=source.checkpoint.origin, scope=scope, base=digest, known_size=size, next_leaf=first)


def _check_nothing_was_erased(source: Source, target: Path) -> None:
    """Refuse what was read partly before and partly after an erasure, which this checkpoint does not know."""
    if source.erased_since(source.checkpoint.size):
        raise RefusedError(
            "records were erased while it was made",
            where=str(target),
            remedy="run it again",
            code="export-erased",
        )


def _summary(target: Path, manifest: Manifest, added: int, source: Source) -> ExportSummary:
    sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
    return ExportSummary(
        directory=target,
        records=manifest.records,
        added_records=added,
        statements=manifest.statements,
        every_statement=manifest.scope.statements == "all",
        files=len(sizes),
        size_bytes=sum(sizes),
        tree_size=source.checkpoint.size,
    )


def _rows(files: Iterable[ManifestFile]) -> Iterator[int]:
    return (0 if each.rows is UNSET else each.rows for each in files)


def _check_free(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RefusedError(
            "exists and is not an empty directory",
            where=str(target),
            remedy="name a new directory, or add to the export there with --resume",
            code="directory-not-empty",
        )


def _sync(directory: Path) -> None:
    """Make all files durable before the rename shows them."""
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            sync_directory(path)
        else:
            _sync_file(path)
    sync_directory(directory)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
