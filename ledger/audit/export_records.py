"""Checks an export's records: each against the batch that its issuer signed, and each column against it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from msgspec import UNSET
from msgspec.structs import asdict

from ledger.audit.export_files import CHANGED, cell, read_batches
from ledger.audit.export_statements import ExportedBatch
from ledger.audit.report import Findings
from ledger.audit.tables import shown
from ledger.core import merkle
from ledger.core.errors import TallystickError
from ledger.core.export_layout import (
    RECORD_COLUMNS,
    STATEMENTS_FILE,
    Manifest,
    ManifestFile,
    day_of,
    deployment_columns,
    record_columns,
)
from ledger.core.merkle import HASH_SIZE
from ledger.core.records import Deployment, Record, decode_record_lines
from ledger.core.statements import Totals, sum_records

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RecordRows", "Summary"]

_ROWS = 8_192


@dataclass(frozen=True)
class Summary:
    """What a statement must say of some records.

    ``sums`` lacks what none of them has; None: there are more than a statement can say.
    """

    count: int
    first_us: int
    last_us: int
    deployments: frozenset[str]
    factors: frozenset[str]
    sums: Mapping[str, int] | None

    @classmethod
    def of(cls, records: list[Record]) -> Summary:
        """The summary of ``records``, at least one."""
        sums = None
        with contextlib.suppress(TallystickError):
            totals = asdict(sum_records(records))
            sums = {name: value for name, value in totals.items() if value is not UNSET}
        return cls(
            len(records),
            min(r.started_us for r in records),
            max(r.ended_us for r in records),
            frozenset(r.deployment for r in records),
            frozenset(r.factors for r in records if r.factors is not UNSET),
            sums,
        )

    def plus(self, other: Summary) -> Summary:
        """The summary of both."""
        sums = None
        if self.sums is not None and other.sums is not None:
            names = self.sums.keys() | other.sums.keys()
            sums = {name: self.sums.get(name, 0) + other.sums.get(name, 0) for name in names}
        return Summary(
            self.count + other.count,
            min(self.first_us, other.first_us),
            max(self.last_us, other.last_us),
            self.deployments | other.deployments,
            self.factors | other.factors,
            sums,
        )

    def stated(self) -> dict[str, Any]:
        """The fields of the statement."""
        return {
            "first_us": self.first_us,
            "last_us": self.last_us,
            "deployments": tuple(sorted(self.deployments)),
            "factors": tuple(sorted(self.factors)),
            "totals": None if self.sums is None else Totals(**self.sums),
        }


class RecordRows:
    """Reads ``records/**/*.parquet``. Owned by the one thread that audits.

    Memory: 32 bytes for each record of a batch whose records have not all been seen, 16 for each record.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        batches: dict[int, ExportedBatch],
        deployments: dict[str, Deployment],
        erased: dict[bytes, set[int]],
        findings: Findings,
    ) -> None:
        self._erased = erased
        self._directory = directory
        self._manifest = manifest
        self._batches = batches
        self._findings = findings
        self._deployments = {digest: deployment_columns(each) for digest, each in deployments.items()}
        self._ids: list[pa.Array] = []
        self._summaries: dict[int, Summary] = {}  # of batches whose records were read in part
        self._rows = 0
        self._skipped = False

    def read(self, file: ManifestFile) -> None:
        """Check the rows of one file."""
        row = 0
        path = self._directory / file.path
        day = PurePosixPath(file.path).parent.name.removeprefix("day=")
        last = (-1, -1)
        for batch in read_batches(path, file.path, RECORD_COLUMNS, _ROWS, self._findings):
            last = self._check(file.path, day, row, batch, last)
            row += batch.num_rows
        self._rows += row
        self._findings.counts.rows += row
        if row != file.rows:
            self._findings.add(
                "wrong-count", file.path, f"has {row} rows, but the manifest says {file.rows}", CHANGED
            )

    def _check(
        self, file: str, day: str, row: int, batch: pa.RecordBatch, last: tuple[int, int]
    ) -> tuple[int, int]:
        """Check some rows of a file, the first of which is number ``row``; return the place of the last."""
        import pyarrow as pa

        leaves = batch.column("leaf_index").to_pylist()
        positions = batch.column("position").to_pylist()
        lines: list[bytes] = batch.column("record").to_pylist()
        places = [last, *zip(leaves, positions, strict=True)]
        for at, (before, after) in enumerate(pairwise(places)):
            if before >= after:
                self._findings.add(
                    "row-extra",
                    cell(file, row + at, "leaf_index"),
                    f"leaf {after[0]} position {after[1]} comes after leaf {before[0]} position {before[1]}",
                    CHANGED,
                )
        self._fill(file, row, leaves, positions, lines)
        for at, line in enumerate(lines):
            if b"\n" in line:  # it would pass for several
                self._findings.add(
                    "bad-record", cell(file, row + at, "record"), "is not one canonical record", CHANGED
                )
                return places[-1]
        try:
            records, _ = decode_record_lines(b"".join(line + b"\n" for line in lines), where=file)
        except TallystickError as error:
            self._findings.add_error(error, error.where or file, code="bad-record")
            return places[-1]
        self._findings.counts.records += len(records)
        expected = record_columns(records)
        expected["issuer"] = [b.issuer if (b := self._batches.get(leaf)) else None for leaf in leaves]
        for name in next(iter(self._deployments.values()), ()):
            expected[name] = [self._deployments.get(r.deployment, {}).get(name) for r in records]
        for name, values in expected.items():
            self._compare(file, row, name, values, batch.column(name))
        self._check_times(file, day, row, records)
        self._summarise(row, file, leaves, records)
        self._ids.append(pa.array([bytes.fromhex(r.id.replace("-", "")) for r in records], pa.binary(16)))
        return places[-1]

    def _fill(self, file: str, row: int, leaves: list[int], positions: list[int], lines: list[bytes]) -> None:
        """Put each record's hash where its batch has it."""
        for at, (leaf, position, digest) in enumerate(
            zip(leaves, positions, merkle.leaf_hashes(lines), strict=True)
        ):
            batch = self._batches.get(leaf)
            if batch is None or not 0 <= position < batch.batch.count:
                self._findings.add(
                    "row-extra",
                    cell(file, row + at, "position"),
                    f"no exported batch has leaf {leaf}, position {position}",
                    CHANGED,
                )
                continue
            spot = slice(position * HASH_SIZE, (position + 1) * HASH_SIZE)
            if batch.listed is not None and batch.listed[spot] != digest:
                self._findings.add(
                    "records-changed",
                    cell(file, row + at, "record"),
                    "does not have the hash that its batch lists",
                    CHANGED,
                )
            if batch.filled == batch.batch.count or any(batch.seen[spot]):
                self._findings.add(
                    "row-extra",
                    cell(file, row + at, "position"),
                    "the record is in the export twice",
                    CHANGED,
                )
                continue
            batch.seen[spot] = digest
            batch.filled += 1
            if batch.filled == batch.batch.count:
                self._check_root(leaf, batch)
                batch.seen.clear()

    def _check_root(self, leaf: int, batch: ExportedBatch) -> None:
        seen = bytes(batch.seen)
        hashes = [seen[at : at + HASH_SIZE] for at in range(0, len(seen), HASH_SIZE)]
        if merkle.root(hashes).hex() != batch.batch.root:
            self._findings.add(
                "records-changed",
                f"records of leaf {leaf}",
                "they are not those that the issuer signed: they do not hash to the statement's root",
                CHANGED,
            )

    def _compare(self, file: str, row: int, name: str, values: list[Any], stored: pa.Array) -> None:
        import pyarrow as pa

        if pa.array(values, stored.type).equals(stored):
            return
        for at, (found, right) in enumerate(zip(stored.to_pylist(), values, strict=True)):
            if found != right:
                self._findings.add(
                    "row-differs",
                    cell(file, row + at, name),
                    f"is {shown(found)}, but the record says {shown(right)}",
                    CHANGED,
                )

    def _check_times(self, file: str, day: str, row: int, records: list[Record]) -> None:
        scope = self._manifest.scope
        low = 0 if scope.from_us is UNSET else scope.from_us
        for at, record in enumerate(records):
            started = record.started_us
            outside = started < low or (scope.to_us is not UNSET and started >= scope.to_us)
            if outside or day_of(started) != day:
                self._findings.add(
                    "row-extra",
                    cell(file, row + at, "started_at"),
                    f"a record started at {started} does not belong into this file",
                    CHANGED,
                )

    def _summarise(self, row: int, file: str, leaves: list[int], records: list[Record]) -> None:
        """Compare a batch's records with what its statement says of them, once all of them were read."""
        ends = [at for at in range(1, len(leaves)) if leaves[at] != leaves[at - 1]]
        for begin, end in pairwise([0, *ends, len(leaves)] if leaves else []):
            batch = self._batches.get(leaves[begin])
            if batch is None or batch.exported != batch.batch.count:
                continue
            summary = Summary.of(records[begin:end])
            before = self._summaries.pop(leaves[begin], None)
            summary = summary if before is None else before.plus(summary)
            if summary.count < batch.batch.count:
                self._summaries[leaves[begin]] = summary
                continue
            for name, right in summary.stated().items():
                if getattr(batch.batch, name) != right:
                    self._findings.add(
                        "wrong-summary",
                        cell(file, row + end - 1, "leaf_index"),
                        f"the statement of leaf {leaves[begin]} states other {name} than its records have",
                        "the issuer signed a wrong summary: ask it for a correction",
                    )

    def skip(self, file: ManifestFile) -> None:
        """Leave a file out that is not what was signed, as a finding says already."""
        self._findings.gap(file.path, "it is not the file that was signed")
        self._skipped = True

    def close(self) -> None:
        """Check what only shows once all files were read."""
        findings = self._findings
        if self._ids:
            self._check_ids()
        if self._skipped:
            return  # what was in those files cannot be missed here
        if self._rows != self._manifest.records:
            findings.add(
                "wrong-count", "records", f"has {self._rows} rows, not {self._manifest.records}", CHANGED
            )
        for leaf, batch in self._batches.items():
            if batch.filled != batch.exported:
                findings.add(
                    "records-missing",
                    cell(STATEMENTS_FILE, batch.row, "exported_records"),
                    f"is {batch.exported}, but the files hold {batch.filled} records of leaf {leaf}",
                    CHANGED,
                )
            self._check_erased(leaf, batch)

    def _check_erased(self, leaf: int, batch: ExportedBatch) -> None:
        """Check that what a batch lacks, all of it in the period, are the very records that were erased."""
        said = self._erased.get(batch.leaf_hash, set())
        if not batch.inside and not said:
            return
        seen = batch.seen
        missing = {
            at
            for at in range(batch.batch.count if seen else 0)
            if not any(seen[at * HASH_SIZE : (at + 1) * HASH_SIZE])
        }
        if batch.inside and (silent := missing - said):
            self._findings.add(
                "records-missing",
                cell(STATEMENTS_FILE, batch.row, "exported_records"),
                f"record {min(silent)} of leaf {leaf} is not in the export, and the log does not say that it "
                "was erased",
                "records of the period were left out: ask why, and export again",
            )
        still = {at for at in said if at < batch.batch.count} - missing
        if batch.inside and still:
            self._findings.note(
                f"{len(still)} records of leaf {leaf} are in this export, though the log says that they were "
                "erased: it was begun before; erase it too"
            )

    def _check_ids(self) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        ids = pa.chunked_array(self._ids)
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        for each in pc.value_counts(ids).to_pylist():
            if each["counts"] > 1:
                self._findings.add(
                    "duplicate-record",
                    "records",
                    f"{each['counts']} records have the id {each['values'].hex()}",
                )
