"""Makes settlement bundles (``ledger.core.settlement``): one tenant and period, out of the store."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import UNSET
from sqlalchemy import and_, select

import ledger
from ledger.core import merkle
from ledger.core import settlement as form
from ledger.core.corrections import restate
from ledger.core.erased import erased_hash, line_hashes
from ledger.core.errors import CorruptError, InvalidError, RefusedError, UnavailableError
from ledger.core.keys import Signer
from ledger.core.log_keys import log_verifier_key
from ledger.core.note import format_vkey
from ledger.core.records import Record, decode_record, record_hash
from ledger.core.statements import Batch, Correction, SignedStatement, decode_statement
from ledger.export.source import Period, Source, open_source
from ledger.store import queries
from ledger.store.engine import Store
from ledger.store.tables import BatchSlice, Document, IssuerKeyRow, StatementRow, table

__all__ = ["SettlementSummary", "make_settlement"]

_PAGE = 32
_REMEDY = "run the audit: the database was changed behind the ledger, or is damaged; restore a back-up"

RequestSalt = Callable[[str, Record], bytes | None]
"""The salt of a record's request commitment, given its issuer, if its secrets are at hand."""


@dataclass(frozen=True)
class SettlementSummary:
    """What a bundle holds. ``opened`` requests can be matched by the customer's own request ids."""

    file: Path
    tenant: str
    records: int
    statements: int
    corrected_records: int
    opened: int
    size_bytes: int
    tree_size: int


def make_settlement(
    store: Store,
    out: Path,
    *,
    log_key: Signer,
    tenant: str,
    from_us: int | None = None,
    to_us: int | None = None,
    request_salt: RequestSalt | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SettlementSummary:
    """Write the bundle of ``tenant`` for records with ``from_us <= started_us < to_us``.

    The file appears whole or not at all; an existing one is not overwritten.

    Args:
        store: the ledger; it can go on appending.
        out: the file.
        log_key: the log's key, which seals it.
        tenant: the pseudonym that its records carry.
        from_us: start of the period, Unix microseconds; open if absent.
        to_us: its end, not included.
        request_salt: opens request commitments for the customer.
        progress: called with (leaves looked at, leaves of the log).

    Raises:
        RefusedError: the file exists. InvalidError: no record of that tenant and period, or too many.
        CorruptError: the ledger does not prove what would be given. UnavailableError: it cannot be written.
    """
    if out.exists():
        raise RefusedError("exists", where=str(out), remedy="name another file", code="exists")
    period = Period(from_us, to_us)
    source = open_source(store, log_key)
    work = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    parts = [work.with_name(f"{work.name}.{name}") for name in ("leaf", "record")]
    try:
        with parts[0].open("w+b") as leaves, parts[1].open("w+b") as records:
            made = _Making(source, tenant, period, leaves, records, request_salt)
            made.run(progress)
            with work.open("xb") as file:
                _assemble(file, made, log_key, from_us, to_us)
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
        os.link(work, out)  # unlike a rename, it never replaces a file
    except FileExistsError:
        raise RefusedError("exists", where=str(out), remedy="name another file", code="exists") from None
    except OSError as error:
        raise UnavailableError(
            f"could not write the bundle: {error.strerror or error}",
            where=str(out),
            remedy="make room, or write to another disk; nothing is left behind",
            code="export-failed",
        ) from error
    finally:
        for each in (work, *parts):
            with suppress(OSError):
                each.unlink()
    return SettlementSummary(
        file=out,
        tenant=tenant,
        records=made.records,
        statements=made.batches,
        corrected_records=made.corrected,
        opened=made.opened,
        size_bytes=size,
        tree_size=source.checkpoint.size,
    )


def _assemble(
    file: IO[bytes], made: _Making, log_key: Signer, from_us: int | None, to_us: int | None
) -> None:
    origin = made.source.checkpoint.origin
    header = form.encode_line(
        form.SettlementHeader(
            origin=origin,
            log_key=format_vkey(log_verifier_key(origin, log_key.public)),
            checkpoint=made.source.note,
            tenant=made.tenant,
            issuers=tuple(
                form.SettlementKey(issuer=issuer, kid=kid.hex()) for issuer, kid in sorted(made.signers)
            ),
            software=f"tallystick {ledger.__version__}",
            from_us=UNSET if from_us is None else from_us,
            to_us=UNSET if to_us is None else to_us,
        )
    )
    file.write(form.MAGIC)
    file.write(header)
    made.digests.add("header", header)
    for part in (made.leaf_file, made.record_file):
        part.seek(0)
        while block := part.read(1 << 20):
            file.write(block)
    for number, total in enumerate(made.sums.lines()):
        if number == form.MAX_TOTALS:
            raise _too_many("days and models", form.MAX_TOTALS)
        line = form.encode_line(total)
        made.digests.add("total", line)
        file.write(line)
    file.write(form.encode_line(form.seal(made.digests.contents(), origin, log_key)))


class _Making:
    """One bundle while it is made. Owned by the thread that makes it."""

    def __init__(
        self,
        source: Source,
        tenant: str,
        period: Period,
        leaf_file: IO[bytes],
        record_file: IO[bytes],
        request_salt: RequestSalt | None,
    ) -> None:
        self.source = source
        self.tenant = tenant
        self.leaf_file, self.record_file = leaf_file, record_file
        self.digests = form.Digests()
        self.sums = form.Sums()
        self.signers: set[tuple[str, bytes]] = set()
        self.records = self.batches = self.corrected = self.opened = 0
        self._period = period
        self._request_salt = request_salt
        self._leaves: dict[int, bool] = {}  # index of each leaf to give, and whether with its receipt
        self._documents: set[str] = set()
        self._models: dict[str, str] = {}

    def run(self, progress: Callable[[int, int], None] | None) -> None:
        """Write the parts of leaves and records, and add up."""
        self._corrections = _corrections(self.source)
        size = self.source.checkpoint.size
        for index, statement, lines in _batches(self.source, self.tenant, self._period):
            self._take(index, statement, lines)
            if progress is not None:
                progress(index + 1, size)
        if not self.records:
            raise InvalidError(
                f"the log has no record of tenant {self.tenant} in that period",
                where="--tenant",
                remedy="tenants are pseudonyms: see `tallystick rollups --by tenant`",
                code="not-found",
            )
        self._find_leaves()
        for index in sorted(self._leaves):
            self._write_leaf(index, receipt=self._leaves[index])

    def _take(self, index: int, statement: SignedStatement, lines: Sequence[bytes]) -> None:
        wanted = [
            (position, line, record)
            for position, line in enumerate(lines)
            if erased_hash(line) is None  # its bytes are gone: nothing of it can be settled
            and (record := decode_record(line, where=f"leaf {index}")).tenant == self.tenant
            and record.started_us in self._period
        ]
        if not wanted:
            return
        paths = _Paths(line_hashes(lines))
        self._check_root(index, statement, paths)
        self.batches += 1
        self._leaves[index] = True
        self.signers.add((statement.issuer, statement.kid))
        for position, line, record in wanted:
            self._add(index, position, line, record, statement.issuer, paths.path(position))

    def _check_root(self, index: int, statement: SignedStatement, paths: _Paths) -> None:
        payload = statement.payload
        if not isinstance(payload, Batch) or paths.root().hex() != payload.root:
            raise CorruptError(
                "its records do not hash to the statement's root", where=f"leaf {index}", remedy=_REMEDY
            )

    def _add(
        self, index: int, position: int, line: bytes, record: Record, issuer: str, path: list[bytes]
    ) -> None:
        self.records += 1
        if self.records > form.MAX_RECORDS:
            raise _too_many("records", form.MAX_RECORDS)
        salt = None
        if self._request_salt is not None and record.request is not UNSET:
            salt = self._request_salt(issuer, record)
            self.opened += salt is not None
        written = form.encode_line(
            form.SettlementRecord(
                leaf_index=index,
                position=position,
                path=tuple(each.hex() for each in path),
                record=msgspec.Raw(line),
                request_salt=UNSET if salt is None else salt.hex(),
            )
        )
        self.digests.add("record", written)
        self.record_file.write(written)
        found = self._corrections.get((issuer, record.id, record_hash(line).hex()), [])
        self.corrected += bool(found)
        for leaf, _, kid in found:
            self._leaves[leaf] = False
            self.signers.add((issuer, kid))
        self._documents.add(record.deployment)
        if record.factors is not UNSET:
            self._documents.add(record.factors)
        restated = restate(record, [(leaf, correction) for leaf, correction, _ in found])
        self.sums.add(self._model(record.deployment), restated)

    def _model(self, digest: str) -> str:
        if digest not in self._models:
            self._models[digest] = self.source.deployment(digest).model
        return self._models[digest]

    def _find_leaves(self) -> None:
        """Add the leaves that the proofs need: the signers' keys, deployments and factor sets."""
        keys, documents = table(IssuerKeyRow), table(Document)
        with self.source.store.read() as connection:
            for _, kid in self.signers:
                query = select(keys.c.added_leaf).where(keys.c.kid == kid)
                self._leaves[connection.execute(query).scalar_one()] = False
            for digest in self._documents:
                query = select(documents.c.leaf_index).where(documents.c.digest == digest)
                self._leaves.setdefault(connection.execute(query).scalar_one(), False)
        if len(self._leaves) > form.MAX_LEAVES:
            raise _too_many("statements", form.MAX_LEAVES)

    def _write_leaf(self, index: int, *, receipt: bool) -> None:
        with self.source.store.read() as connection:
            statement = queries.statement(connection, index)
            given = queries.receipt(connection, index) if receipt else UNSET
        line = form.encode_line(
            form.SettlementLeaf(
                entry=statement.entry,
                leaf_index=index,
                path=tuple(each.hex() for each in self.source.tiles.inclusion_path(index)),
                receipt=given,
            )
        )
        self.digests.add("leaf", line)
        self.leaf_file.write(line)


class _Paths:
    """Inclusion paths in one batch: each subtree is hashed once, however many records are proven."""

    def __init__(self, hashes: Sequence[bytes]) -> None:
        self._hashes = hashes
        self._roots: dict[tuple[int, int], bytes] = {}

    def root(self) -> bytes:
        return self._root(0, len(self._hashes))

    def path(self, position: int) -> list[bytes]:
        ranges = merkle.inclusion_ranges(position, len(self._hashes))
        return [self._root(begin, end) for begin, end in ranges]

    def _root(self, begin: int, end: int) -> bytes:
        if end - begin == 1:
            return self._hashes[begin]
        known = self._roots.get((begin, end))
        if known is None:
            split = begin + (1 << (end - begin - 1).bit_length() - 1)
            known = merkle.node_hash(self._root(begin, split), self._root(split, end))
            self._roots[begin, end] = known
        return known


def _batches(
    source: Source, tenant: str, period: Period
) -> Iterator[tuple[int, SignedStatement, list[bytes]]]:
    """Batches that hold records of the tenant and may hold some of the period, in the order of the log."""
    rows, slices = table(StatementRow), table(BatchSlice)
    query = (
        select(rows.c.leaf_index, rows.c.entry, rows.c.records)
        .where(
            rows.c.kind == "batch",
            rows.c.leaf_index < source.checkpoint.size,
            select(slices.c.leaf_index)
            .where(and_(slices.c.leaf_index == rows.c.leaf_index, slices.c.tenant == tenant))
            .exists(),
        )
        .order_by(rows.c.leaf_index)
        .limit(_PAGE)
    )
    if period.from_us is not None:
        query = query.where(rows.c.last_us >= period.from_us)
    if period.to_us is not None:
        query = query.where(rows.c.first_us < period.to_us)
    start = 0
    while True:
        with source.store.read() as connection:
            found: list[Any] = list(connection.execute(query.where(rows.c.leaf_index >= start)))
        for index, entry, block in found:
            start = index + 1
            if block is None:
                raise CorruptError("its records are gone", where=f"leaf {index}", remedy=_REMEDY)
            yield (
                index,
                decode_statement(bytes(entry), where=f"leaf {index}"),
                queries.split_block(block, index),
            )
        if len(found) < _PAGE:
            return


_Found = dict[tuple[str, str, str], list[tuple[int, Correction, bytes]]]


def _corrections(source: Source) -> _Found:
    """Corrections by issuer, record id and record hash."""
    rows = table(StatementRow)
    query = select(rows.c.leaf_index, rows.c.entry).where(
        rows.c.kind == "correction", rows.c.leaf_index < source.checkpoint.size
    )
    made: _Found = {}
    with source.store.read() as connection:
        for index, entry in connection.execute(query):
            statement = decode_statement(bytes(entry), where=f"leaf {index}")
            payload = statement.payload
            if isinstance(payload, Correction):
                key = statement.issuer, payload.record, payload.record_hash
                made.setdefault(key, []).append((index, payload, statement.kid))
    return made


def _too_many(what: str, limit: int) -> InvalidError:
    return InvalidError(
        f"there are more than {limit:,} {what}",
        where="period",
        remedy="settle shorter periods",
        code="too-large",
    )
