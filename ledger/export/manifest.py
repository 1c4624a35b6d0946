"""Makes the manifest of an export: digests of every file, signed by the log.

What the manifest holds and how it is checked is in ``ledger.core.export_layout``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from msgspec import UNSET

import ledger
from ledger.core.errors import CorruptError
from ledger.core.export_layout import (
    MANIFEST_FILE,
    MANIFEST_SIGNATURE_FILE,
    README_FILE,
    STATEMENTS_FILE,
    Manifest,
    ManifestFile,
    Scope,
    sign_manifest,
)
from ledger.core.keys import Signer

__all__ = ["check_files", "describe", "write_manifest"]

_README = """# Export of a Tallystick log

Each row of `records/` is one record: the tokens of one generation, with usage, times, energy and carbon.
Units are in the column names; null means that the record does not say. Query it with any Parquet reader:

    SELECT day, model, sum(output_tokens) AS output_tokens, sum(energy_uj) / 3.6e12 AS kwh
    FROM read_parquet('records/**/*.parquet', hive_partitioning = true)
    GROUP BY ALL ORDER BY ALL;

`_log/statements.parquet` holds the signed statements that commit to these records, each with its proof up to
the checkpoint in `manifest.json`. Corrections and evaluations of records are among them: see `payload`, JSON.

To verify everything with nothing but the log's key, which you should have from elsewhere than this directory:

    tallystick verify THIS_DIRECTORY --log-key log.vkey
"""


def write_manifest(
    directory: Path,
    *,
    records: Sequence[ManifestFile],
    statements: int,
    origin: str,
    checkpoint: str,
    scope: Scope,
    created_us: int,
    log_key: Signer,
) -> Manifest:
    """Write the read-me, the manifest and its signature into ``directory``.

    Args:
        directory: where the files are.
        records: the record files, which are described already.
        statements: number of rows of the statements.
        origin: the log's name.
        checkpoint: the signed note that the statements are proven against.
        scope: what was exported.
        created_us: when.
        log_key: the log's key.
    """
    (directory / README_FILE).write_text(_README, encoding="utf-8")
    others = (describe(directory, STATEMENTS_FILE, statements), describe(directory, README_FILE))
    manifest = Manifest(
        origin=origin,
        checkpoint=checkpoint,
        created_us=created_us,
        software=f"tallystick {ledger.__version__}",
        scope=scope,
        records=sum(0 if each.rows is UNSET else each.rows for each in records),
        statements=statements,
        files=tuple(sorted((*records, *others), key=lambda each: each.path)),
    )
    data, signature = sign_manifest(manifest, log_key)
    (directory / MANIFEST_FILE).write_bytes(data)
    (directory / MANIFEST_SIGNATURE_FILE).write_bytes(signature)
    return manifest


def check_files(directory: Path, manifest: Manifest) -> None:
    """Check that ``directory`` holds exactly what ``manifest`` lists: for copies and transfers.

    Raises:
        CorruptError: a file is missing, changed or not listed; ``where`` names it.
    """
    there = {str(p.relative_to(directory).as_posix()) for p in directory.rglob("*") if not p.is_dir()}
    expected = {MANIFEST_FILE, MANIFEST_SIGNATURE_FILE, *(each.path for each in manifest.files)}
    for path in sorted(there ^ expected):
        what = "is missing" if path in expected else "is not in the manifest"
        raise CorruptError(what, where=path, remedy="copy the whole export again", code="export-files")
    for each in manifest.files:
        found = describe(directory, each.path)
        if (found.bytes, found.sha256) != (each.bytes, each.sha256):
            raise CorruptError(
                "is not the file that the manifest lists",
                where=each.path,
                remedy="copy the whole export again",
                code="export-files",
            )


def describe(directory: Path, path: str, rows: int | None = None) -> ManifestFile:
    """What a manifest says of the file ``path`` below ``directory``."""
    with (directory / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return ManifestFile(path=path, bytes=size, sha256=digest, rows=UNSET if rows is None else rows)
