"""Owns the folder in which an export is made: what of it is finished, so that a later run goes on from there.

Beside the export ``NAME`` stands ``.NAME.partial`` while one is made::

    state.json                  what is finished: replaced as a whole, after all that it names is durable
    statements-000000.arrow     statements of one segment, still without proofs
    export/                     the export as it grows

A segment ends after a fixed number of rows, with all its files closed; so an export that was interrupted has
the same files as one that was not. An export that is added to stays as it is until the new one, which shares
the old record files by hard links, takes its place in one step.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import CorruptError, InvalidError, RefusedError
from ledger.core.export_layout import (
    MANIFEST_FILE,
    MANIFEST_SIGNATURE_FILE,
    RECORDS_DIR,
    STATEMENTS_FILE,
    Manifest,
    ManifestFile,
    Scope,
    open_manifest,
)
from ledger.core.keys import PublicKey
from ledger.core.log_keys import log_verifier_key
from ledger.export.source import Source
from ledger.store.log_keys import log_keys

__all__ = ["Base", "State", "Work", "locked_work", "read_base", "sync_directory"]

_STATE_FILE = "state.json"
_VERSION = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is finished.

    Attributes:
        base: SHA-256 of the manifest that is added to; empty for a new export.
        known_size: size of the log when the work began: what was erased later may be in finished files.
        next_leaf: the first leaf that is not in a finished segment.
        segments: how many are finished.
        files: the record files of these, with their digests.
    """

    version: int = _VERSION
    origin: str
    scope: Scope
    base: str = ""
    known_size: int
    next_leaf: int = 0
    segments: int = 0
    files: tuple[ManifestFile, ...] = ()


@dataclass(frozen=True)
class Base:
    """An export that is added to: its manifest with its SHA-256, and its checkpoint's tree size."""

    directory: Path
    manifest: Manifest
    digest: str
    size: int

    @property
    def files(self) -> tuple[ManifestFile, ...]:
        """Its record files, which stay."""
        return tuple(each for each in self.manifest.files if each.path.startswith(f"{RECORDS_DIR}/"))


@dataclass(frozen=True)
class Work:
    """The folder of one export in the making."""

    directory: Path

    @property
    def export(self) -> Path:
        """Where the export grows."""
        return self.directory / "export"

    def statements(self, segment: int) -> Path:
        """Where the statements of a segment wait for their proofs."""
        return self.directory / f"statements-{segment:06d}.arrow"

    def load(self) -> State | None:
        """What earlier runs finished, if that can be told."""
        try:
            state = msgspec.json.decode((self.directory / _STATE_FILE).read_bytes(), type=State)
        except (OSError, msgspec.MsgspecError):
            return None
        whole = all(_size(self.export / each.path) == each.bytes for each in state.files) and all(
            self.statements(n).is_file() for n in range(state.segments)
        )
        return state if state.version == _VERSION and whole else None

    def save(self, state: State) -> None:
        """Make ``state`` what a later run goes on from. All that it names must be durable."""
        path = self.directory / f"{_STATE_FILE}.new"
        with path.open("wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        path.replace(self.directory / _STATE_FILE)
        sync_directory(self.directory)

    def clear(self, keep: State | None) -> None:
        """Remove what ``keep`` does not name: the begun and unfinished."""
        if keep is None:
            for each in self.directory.iterdir():
                _remove(each)
        else:
            kept = {self.export / each.path for each in keep.files}
            kept |= {self.statements(n) for n in range(keep.segments)} | {self.directory / _STATE_FILE}
            for each in sorted(self.directory.rglob("*"), reverse=True):
                if not each.is_dir() and each not in kept:
                    each.unlink()
        self.export.mkdir(exist_ok=True)

    def share(self, base: Base) -> None:
        """Give the new export the record files of ``base``: links, or copies where there are none."""
        for each in base.files:
            source, target = base.directory / each.path, self.export / each.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
                    raise
                shutil.copy2(source, target)

    def publish(self, target: Path) -> None:
        """Put the finished export in the place of ``target``, which is an older one, empty or not there."""
        if target.is_dir() and any(target.iterdir()):
            _exchange(self.export, target, self.directory / "old")
        else:
            self.export.rename(target)
        sync_directory(target.parent)
        shutil.rmtree(self.directory)


@contextmanager
def locked_work(target: Path) -> Iterator[Work]:
    """The folder for making ``target``, for this process alone; what is in it stays when the block fails.

    Raises:
        RefusedError: another process has it.
    """
    work = Work(target.parent / f".{target.name}.partial")
    work.directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work.directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = work.directory.stat().st_ino == os.fstat(descriptor).st_ino
        except OSError:  # locked, or removed meanwhile by whoever just finished
            held = False
        if not held:
            raise RefusedError(
                "another export is being made here",
                where=str(target),
                remedy="wait for it, then run this again",
                code="export-busy",
            )
        old = work.directory / "old"
        if old.is_dir() and not target.exists():  # a crash between the two steps of ``_exchange``
            old.rename(target)
        yield work
    finally:
        os.close(descriptor)


def read_base(target: Path, source: Source, scope: Scope) -> Base | None:
    """The export in ``target`` that can be added to; None if there is nothing.

    Its record files are not read again: the new manifest repeats their digests, and a verifier compares.

    Raises:
        RefusedError: there is something else, or an export of another scope or log.
        CorruptError: it is not what a key of the log signed, or its checkpoint is not of this log's tree.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST_FILE).is_file():
        raise RefusedError(
            "exists and is not an export",
            where=str(target),
            remedy="name a new folder, or that of an export",
            code="directory-not-empty",
        )
    data = (target / MANIFEST_FILE).read_bytes()
    with source.store.read() as connection:
        keys = [each.public for each in reversed(log_keys(connection))]
    manifest = _opened(data, (target / MANIFEST_SIGNATURE_FILE).read_bytes(), keys)
    if manifest.origin != source.checkpoint.origin or manifest.scope != scope:
        raise RefusedError(
            "the export there is of another log, period or choice of statements",
            where=str(target),
            remedy="give the same options as before, or name a new folder",
            code="export-differs",
        )
    vkeys = [log_verifier_key(manifest.origin, each) for each in keys]
    checkpoint = open_checkpoint(manifest.checkpoint.encode(), vkeys)
    if checkpoint.size > source.checkpoint.size or source.tiles.root(checkpoint.size) != checkpoint.root:
        raise CorruptError(
            "its checkpoint is not of this ledger's tree: one of them was rolled back or forked",
            where=str(target),
            remedy="keep both; audit the ledger with --known-checkpoint, and compare back-ups",
            code="forked",
        )
    for each in manifest.files:
        if _size(target / each.path) != each.bytes:
            raise _changed(target / each.path)
    listed = next(each for each in manifest.files if each.path == STATEMENTS_FILE)
    with (target / STATEMENTS_FILE).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != listed.sha256:
            raise _changed(target / STATEMENTS_FILE)
    return Base(target, manifest, hashlib.sha256(data).hexdigest(), checkpoint.size)


def _opened(manifest: bytes, signature: bytes, keys: Sequence[PublicKey]) -> Manifest:
    """The manifest, if one of the log's keys, the newest first, signed it."""
    for key in keys[1:]:
        with suppress(InvalidError):
            return open_manifest(manifest, signature, key)
    return open_manifest(manifest, signature, keys[0])


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(path: Path) -> CorruptError:
    return CorruptError(
        "is not the file that the manifest lists",
        where=str(path),
        remedy="export anew into another folder",
        code="export-files",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _exchange(new: Path, target: Path, aside: Path) -> None:
    """Swap two directories in one step where the system can (Linux); in two, which ``locked_work`` mends."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None, use_errno=True)
        paths = os.fsencode(new), os.fsencode(target)
        if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
    target.rename(aside)
    new.rename(target)
