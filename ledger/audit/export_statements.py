"""Checks an export's statements: each against the tree, its issuer's key and chain, and its columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ledger.audit.export_files import CHANGED, cell, read_batches
from ledger.audit.leaves import LeafAudit
from ledger.audit.report import Findings
from ledger.audit.sources import Leaf, StoredColumns
from ledger.audit.tables import shown
from ledger.core import merkle
from ledger.core.checkpoint import Checkpoint
from ledger.core.errors import TallystickError
from ledger.core.export_layout import STATEMENT_COLUMNS, STATEMENTS_FILE, Manifest
from ledger.core.keys import PublicKey
from ledger.core.merkle import HASH_SIZE, CompactRange
from ledger.core.records import Deployment, document_digest
from ledger.core.statements import Batch, DeploymentStatement, Erasure, SignedStatement

__all__ = ["ExportedBatch", "StatementRows"]

_ROWS = 256


@dataclass
class ExportedBatch:
    """A batch whose records may be in the export. ``seen`` has the hash of each position, zeros before."""

    batch: Batch
    issuer: str
    row: int
    exported: int
    listed: bytes | None
    seen: bytearray
    filled: int = 0
    leaf_hash: bytes = b""
    inside: bool = False
    """All its records started within the period of the export."""


class _KnownRoots:
    """The roots that a whole export shows, and what waits for them. A partial one shows the last alone."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.size = checkpoint.size
        self.waiting: dict[int, list[Callable[[bytes], None]]] = defaultdict(list)

    def when(self, size: int, verify: Callable[[bytes], None]) -> bool:
        """See ``leaves.Roots``."""
        if not 0 < size <= self.size:
            return False
        self.waiting[size].append(verify)
        return True


class StatementRows:
    """Reads ``_log/statements.parquet``. Owned by the one thread that audits.

    Attributes:
        batches: the batches by leaf index, for the records that follow.
        deployments: what the statements published, by digest.
        roots: size -> root, for each size that the export shows.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        checkpoint: Checkpoint,
        log_keys: Sequence[PublicKey],
        findings: Findings,
        issuer_keys: Mapping[str, Collection[PublicKey]] | None,
    ) -> None:
        self.batches: dict[int, ExportedBatch] = {}
        self.deployments: dict[str, Deployment] = {}
        self.roots: dict[int, bytes] = {checkpoint.size: checkpoint.root}
        self._path = path
        self._manifest = manifest
        self._checkpoint = checkpoint
        self._findings = findings
        self._whole = manifest.scope.statements == "all"
        self._roots = _KnownRoots(checkpoint)
        self._row_of: dict[int, int] = {}
        self.erased: dict[bytes, set[int]] = {}  # leaf hash of a batch -> positions, as the log says
        self._short: list[tuple[ExportedBatch, str]] = []  # records that the period has and the export not
        self._leaves = LeafAudit(
            log_keys,
            checkpoint.origin,
            self._roots,
            findings,
            issuer_keys,
            lambda index, column: cell(STATEMENTS_FILE, self._row_of.get(index, -1), column),
            whole=self._whole,
        )

    def read(self) -> None:
        """Check every row."""
        findings, row, last = self._findings, 0, -1
        tree = CompactRange()
        for batch in read_batches(self._path, STATEMENTS_FILE, STATEMENT_COLUMNS, _ROWS, findings):
            for values in batch.to_pylist():
                index = values["leaf_index"]
                self._row_of = {index: row}
                if index <= last or index >= self._checkpoint.size or (self._whole and index != last + 1):
                    findings.add(
                        "leaf-missing" if index > last + 1 else "row-extra",
                        cell(STATEMENTS_FILE, row, "leaf_index"),
                        f"is {index} after {last} in a log of {self._checkpoint.size} leaves",
                        CHANGED,
                    )
                last = max(index, last)
                self._check(index, row, values)
                if self._whole:
                    tree.append(merkle.leaf_hash(values["entry"]))
                    self.roots[tree.size] = tree.root()
                    for verify in self._roots.waiting.pop(tree.size, ()):
                        verify(self.roots[tree.size])
                row += 1
                findings.counts.rows += 1
        self._close(row, last)

    def _close(self, rows: int, last: int) -> None:
        findings, size = self._findings, self._checkpoint.size
        for short, where in self._short:
            erased = {each for each in self.erased.get(short.leaf_hash, ()) if each < short.batch.count}
            if short.batch.count - short.exported > len(erased):
                findings.add(
                    "records-missing",
                    where,
                    f"is {short.exported} of {short.batch.count} records, all of them within the period, and "
                    f"the log says that {len(erased)} were erased",
                    "records of the period were left out: ask why, and export again",
                )
        findings.counts.issuers = len(self._leaves.heads)
        if rows != self._manifest.statements:
            findings.add(
                "wrong-count", STATEMENTS_FILE, f"has {rows} rows, not {self._manifest.statements}", CHANGED
            )
        if self._whole and last != size - 1:
            findings.add(
                "leaf-missing",
                STATEMENTS_FILE,
                f"ends at leaf {last}, not at {size - 1}",
                CHANGED,
            )
        if not self._whole:
            findings.note(
                "the export holds a part of the log: what is there is proven, but not that no statement of "
                "its period was left out"
            )
        for verify in self._roots.waiting.pop(size, ()):
            verify(self._checkpoint.root)
        if self._roots.waiting:
            count = sum(map(len, self._roots.waiting.values()))
            findings.note(
                f"{count} receipts were not checked: the export does not have all statements, so it does not "
                "show the trees that they name; the statements themselves are proven by the checkpoint"
            )

    def _check(self, index: int, row: int, values: dict[str, Any]) -> None:
        findings = self._findings
        findings.counts.statements += 1
        entry = values["entry"]
        leaf_hash = merkle.leaf_hash(entry)
        try:
            path = values["inclusion_path"]
            hashes = [path[at : at + HASH_SIZE] for at in range(0, len(path), HASH_SIZE)]
            merkle.verify_inclusion(leaf_hash, index, self._checkpoint.size, hashes, self._checkpoint.root)
        except TallystickError as error:
            findings.add_error(
                error, cell(STATEMENTS_FILE, row, "inclusion_path"), code="bad-inclusion-proof"
            )
        seconds, rest = divmod(values["registered_at"], 1_000_000)
        columns = StoredColumns(
            leaf_hash=None,
            kind=values["kind"],
            issuer=values["issuer"],
            seq=values["seq"],
            tree_size=values["tree_size"],
            registered_s=seconds if not rest else -1,
            receipt_signature=values["receipt_signature"],
            record_count=values["record_count"],
            first_us=None,
            last_us=None,
            records_sha256=None,
        )
        leaf = Leaf(index, entry, columns)
        statement = self._leaves.read(leaf)
        if statement is None:
            self._leaves.skip(columns, leaf_hash)
            return
        self._leaves.check_receipt(leaf, statement)
        self._leaves.check(leaf, statement, leaf_hash)
        self._check_columns(row, values, statement, leaf_hash)
        if isinstance(statement.payload, DeploymentStatement):
            deployment = statement.payload.deployment
            self.deployments[document_digest(deployment)] = deployment
        if isinstance(statement.payload, Batch):
            self._leaves.check_documents(statement.payload, cell(STATEMENTS_FILE, row, "entry"))
            self._expect_records(index, row, values, statement)
        if isinstance(statement.payload, Erasure) and statement.issuer == self._leaves.origin:
            batch_hash = bytes.fromhex(statement.payload.statement)
            self.erased.setdefault(batch_hash, set()).update(statement.payload.positions)

    def _check_columns(
        self, row: int, values: dict[str, Any], statement: SignedStatement, leaf_hash: bytes
    ) -> None:
        payload, data = statement.payload, statement.message.payload
        expected = {
            "leaf_hash": leaf_hash.hex(),
            "kind": statement.kind,
            "issuer": statement.issuer,
            "seq": payload.seq,
            "payload": data.decode() if data is not None else None,
            "record_count": payload.count if isinstance(payload, Batch) else None,
        }
        if not isinstance(payload, Batch):
            expected |= {"exported_records": None, "record_hashes": None}
        for name, right in expected.items():
            if values[name] != right:
                self._findings.add(
                    "row-differs",
                    cell(STATEMENTS_FILE, row, name),
                    f"is {shown(values[name])}, but the statement says {shown(right)}",
                    CHANGED,
                )

    def _expect_records(
        self, index: int, row: int, values: dict[str, Any], statement: SignedStatement
    ) -> None:
        exported, listed = values["exported_records"], values["record_hashes"]
        batch = statement.payload
        assert isinstance(batch, Batch)  # noqa: S101 - the caller looked
        scope = self._manifest.scope
        inside = (scope.from_us is UNSET or scope.from_us <= batch.first_us) and (
            scope.to_us is UNSET or batch.last_us < scope.to_us
        )
        where = cell(STATEMENTS_FILE, row, "exported_records")
        if exported is None or not 0 <= exported <= batch.count:
            self._findings.add(
                "row-differs", where, f"is {exported}, but the batch has {batch.count} records", CHANGED
            )
            exported = 0
        if (listed is not None) != (0 < exported < batch.count):
            self._findings.add(
                "row-differs",
                cell(STATEMENTS_FILE, row, "record_hashes"),
                "must be there exactly where some, not all, of the records are exported",
                CHANGED,
            )
        elif listed is not None:
            hashes = [listed[at : at + HASH_SIZE] for at in range(0, len(listed), HASH_SIZE)]
            if len(listed) != batch.count * HASH_SIZE or merkle.root(hashes).hex() != batch.root:
                self._findings.add(
                    "records-changed",
                    cell(STATEMENTS_FILE, row, "record_hashes"),
                    "do not lead to the root that the issuer signed",
                    CHANGED,
                )
        expected = ExportedBatch(
            batch,
            statement.issuer,
            row,
            exported,
            listed,
            bytearray(batch.count * HASH_SIZE if exported else 0),
            leaf_hash=statement.leaf_hash,
            inside=inside,
        )
        if inside and exported < batch.count:  # erasure statements come later: see _close
            self._short.append((expected, where))
        if exported:
            self.batches[index] = expected
