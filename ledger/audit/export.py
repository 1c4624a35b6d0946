"""Audits an export: that it is what the log's key signed, and that each row follows from proven bytes.

The layout, and the order of the checks, are those of ``ledger.core.export_layout``. The manifest's digests
already pin every byte; rows are compared all the same, since the manifest is the word of whoever exported,
while a record's bytes are proven by its issuer's signature and the log's tree.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from ledger.audit.export_files import CHANGED
from ledger.audit.export_records import RecordRows
from ledger.audit.export_statements import StatementRows
from ledger.audit.report import Findings, Signed
from ledger.core.checkpoint import Checkpoint, open_checkpoint
from ledger.core.errors import TallystickError
from ledger.core.export_layout import (
    MANIFEST_FILE,
    MANIFEST_SIGNATURE_FILE,
    MAX_MANIFEST_BYTES,
    RECORDS_DIR,
    STATEMENTS_FILE,
    Manifest,
    ManifestFile,
    open_manifest,
)
from ledger.core.keys import PublicKey
from ledger.core.log_keys import public_of_log_key
from ledger.core.note import VerifierKey

__all__ = ["ExportSource", "audit_export"]

_MAX_SIGNATURE_BYTES = 65_536
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ExportSource:
    """A directory that ``tallystick export`` made."""

    directory: Path

    @property
    def name(self) -> str:
        """The directory."""
        return str(self.directory)


def audit_export(
    source: ExportSource,
    log_keys: Sequence[VerifierKey],
    findings: Findings,
    *,
    known: Iterable[Checkpoint] = (),
    issuer_keys: Mapping[str, Collection[PublicKey]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Signed | None:
    """Audit an export; return its checkpoint if the log's key signed it."""
    public = [public_of_log_key(key) for key in log_keys]
    manifest = _read_manifest(source.directory, public, findings)
    if manifest is None:
        findings.gap(source.name, "without its manifest there is nothing to check it against")
        return None
    try:
        checkpoint = open_checkpoint(manifest.checkpoint.encode(), log_keys)
        findings.counts.signatures += 1
        findings.counts.checkpoints += 1
    except TallystickError as error:
        findings.add_error(error, f"{MANIFEST_FILE}: checkpoint", code="bad-checkpoint")
        findings.gap(source.name, "without its checkpoint there is nothing to check it against")
        return None
    if manifest.origin != checkpoint.origin:
        findings.add("bad-manifest", MANIFEST_FILE, f"names {manifest.origin}, not the log", CHANGED)
    signed = Signed(checkpoint, manifest.checkpoint.encode())
    # What is not what was signed is not parsed: a few kilobytes of Parquet can unpack to gigabytes.
    intact = _check_files(source.directory, manifest, findings)
    if STATEMENTS_FILE not in intact:
        findings.gap(source.name, "without the statements that were signed, no row can be checked")
        return signed
    statements = StatementRows(
        source.directory / STATEMENTS_FILE, manifest, checkpoint, public, findings, issuer_keys
    )
    statements.read()
    _check_known(statements, checkpoint, known, findings)
    records = RecordRows(
        source.directory, manifest, statements.batches, statements.deployments, statements.erased, findings
    )
    done, total = 0, sum(each.rows for each in manifest.files if each.rows is not UNSET)
    for each in manifest.files:
        if not each.path.startswith(f"{RECORDS_DIR}/"):
            continue
        if each.path in intact:
            records.read(each)
        else:
            records.skip(each)
        done += each.rows if each.rows is not UNSET else 0
        if progress is not None:
            progress(done, total)
    records.close()
    return signed


def _read_manifest(directory: Path, keys: Sequence[PublicKey], findings: Findings) -> Manifest | None:
    parts = []
    for name, limit in ((MANIFEST_FILE, MAX_MANIFEST_BYTES), (MANIFEST_SIGNATURE_FILE, _MAX_SIGNATURE_BYTES)):
        try:
            # A pipe in the file's place would be waited for without end.
            with open(os.open(directory / name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            findings.add("file-missing", name, f"cannot be read: {error.strerror}", CHANGED)
            return None
        if len(data) > limit:
            findings.add("bad-manifest", name, f"has more than {limit} bytes", CHANGED)
            return None
        parts.append(data)
    try:
        manifest = _opened(parts[0], parts[1], keys)
    except TallystickError as error:
        findings.add_error(error, error.where or MANIFEST_FILE, code="bad-manifest")
        return None
    findings.counts.signatures += 1
    return manifest


def _opened(manifest: bytes, signature: bytes, keys: Sequence[PublicKey]) -> Manifest:
    """The manifest, if one of the log's keys signed it."""
    for key in keys[:-1]:
        with contextlib.suppress(TallystickError):
            return open_manifest(manifest, signature, key)
    return open_manifest(manifest, signature, keys[-1])


def _check_files(directory: Path, manifest: Manifest, findings: Findings) -> set[str]:
    """Check that the directory holds the files of the manifest and no other; return those that are intact."""
    listed = {each.path: each for each in manifest.files}
    intact = set()
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            findings.add("file-extra", name, "is neither a file nor a directory", CHANGED)
        elif path.is_file() and name not in (MANIFEST_FILE, MANIFEST_SIGNATURE_FILE):
            if name not in listed:
                findings.add("file-extra", name, "is not in the manifest", "remove it: nobody vouches for it")
            elif _check_file(path, listed[name], findings):
                intact.add(name)
    for name in sorted(listed.keys() - intact):
        if not (directory / name).is_file():
            findings.add("file-missing", name, "is in the manifest, but not in the directory", CHANGED)
    return intact


def _check_file(path: Path, listed: ManifestFile, findings: Findings) -> bool:
    """Check a file's size and digest; return whether they are those that were signed."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        findings.gap(listed.path, f"cannot be read: {error.strerror}")
        return False
    if size != listed.bytes or digest.hexdigest() != listed.sha256:
        findings.add(
            "file-changed",
            listed.path,
            f"has {size} bytes with SHA-256 {digest.hexdigest()}, "
            f"but the manifest says {listed.bytes} with {listed.sha256}",
            CHANGED,
        )
        return False
    return True


def _check_known(
    statements: StatementRows, checkpoint: Checkpoint, known: Iterable[Checkpoint], findings: Findings
) -> None:
    """Compare the auditor's checkpoints. An older export is no contradiction: it is of its time."""
    for each in known:
        root = statements.roots.get(each.size)
        if each.size == checkpoint.size:
            root = checkpoint.root
        where = f"known checkpoint of size {each.size}"
        if root is None:
            findings.gap(where, "the export does not show the tree of that size")
        elif root != each.root:
            findings.add(
                "forked",
                where,
                f"its root is {each.root.hex()}, but here it is {root.hex()}: the log showed two histories",
                "keep both checkpoints: together they prove that the log's key signed a fork",
            )
