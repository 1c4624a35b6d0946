"""Records: by id, by filter in log order, and with their proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, select

from ledger import zstd
from ledger.core.erased import erased_hash, line_hash
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.merkle import inclusion_path
from ledger.core.records import MAX_RECORD_BYTES, Record, decode_record
from ledger.core.statements import MAX_BATCH_RECORDS
from ledger.store.queries._common import not_found
from ledger.store.queries._entries import receipt_bytes, receipt_row
from ledger.store.queries._tree import log_head
from ledger.store.tables import PLACES_PER_LEAF, BatchSlice, Document, RecordIndex, StatementRow, table

__all__ = [
    "MAX_BLOCK_BYTES",
    "MAX_PAGE",
    "Found",
    "RecordFilter",
    "RecordProof",
    "iterate_records",
    "place_of",
    "record_by_id",
    "record_lines",
    "record_proof",
    "records",
    "split_block",
]

MAX_BLOCK_BYTES = MAX_BATCH_RECORDS * (MAX_RECORD_BYTES + 1)
MAX_PAGE = 1_000


@dataclass(frozen=True)
class Found:
    """A record and where it is."""

    leaf_index: int
    position: int
    issuer: str
    line: bytes
    record: Record


@dataclass(frozen=True)
class RecordFilter:
    """Which records: all conditions must hold. Times are about ``started_us``: from <= t < to."""

    from_us: int | None = None
    to_us: int | None = None
    model: str | None = None
    deployment: str | None = None
    tenant: str | None = None
    issuer: str | None = None


@dataclass(frozen=True)
class RecordProof:
    """What proves one record: record -> statement -> log."""

    found: Found
    path: tuple[bytes, ...]
    entry: bytes
    receipt: bytes


def record_lines(connection: Connection, leaf_index: int, *, tenant: str | None = None) -> list[bytes]:
    """The canonical bytes of a batch's records, in order. None for other kinds.

    Where a record was erased, its line is that of ``core.erased``.

    Args:
        connection: a snapshot.
        leaf_index: the batch.
        tenant: only this tenant's records, if it is given.
    """
    rows = table(StatementRow)
    query = select(rows.c.records).where(rows.c.leaf_index == leaf_index)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise not_found("there is no such entry", f"entry {leaf_index}")
    lines = [] if row.records is None else split_block(row.records, leaf_index)
    if tenant is None:
        return lines
    where = f"leaf {leaf_index}"
    present = [line for line in lines if erased_hash(line) is None]
    return [line for line in present if decode_record(line, where=where).tenant == tenant]


def split_block(block: bytes, leaf_index: int) -> list[bytes]:
    """Decompress a record block into its records' bytes.

    Raises:
        CorruptError: it is damaged.
    """
    try:
        data = zstd.decompress_bounded(block, MAX_BLOCK_BYTES)
    except zstd.ZstdError:
        data = None
    if not data or data[-1] != 0x0A or data.count(b"\n") > MAX_BATCH_RECORDS:
        raise CorruptError(
            "the record block is damaged",
            where=f"statement {leaf_index} records",
            remedy="run `tallystick audit` on the database, restore a good copy",
            code="corrupt",
        )
    return data[:-1].split(b"\n")


def place_of(connection: Connection, record_id: str) -> tuple[int, int]:
    """(leaf index, position) of a record.

    Raises:
        InvalidError: malformed id (``bad-record-id``) or unknown record (``not-found``).
    """
    try:
        key = bytes.fromhex(record_id.replace("-", ""))
    except ValueError:
        key = b""
    if len(key) != 16 or len(record_id) != 36:
        raise InvalidError(f"{record_id[:80]!r} is not a record id", where="record id", code="bad-record-id")
    index = table(RecordIndex)
    place = connection.execute(select(index.c.place).where(index.c.id == key)).scalar_one_or_none()
    if place is None:
        raise _no_record(record_id)
    leaf_index, position = divmod(int(place), PLACES_PER_LEAF)
    return leaf_index, position


def record_by_id(connection: Connection, record_id: str, *, tenant: str | None = None) -> Found:
    """One record; of ``tenant``, if that is given: another's is as if it were not there."""
    leaf_index, position = place_of(connection, record_id)
    if tenant is not None:
        slices = table(BatchSlice)
        own = select(slices.c.leaf_index).where(slices.c.leaf_index == leaf_index, slices.c.tenant == tenant)
        if connection.execute(own.limit(1)).one_or_none() is None:
            raise _no_record(record_id)
    rows = table(StatementRow)
    issuer = connection.execute(select(rows.c.issuer).where(rows.c.leaf_index == leaf_index)).scalar_one()
    line = record_lines(connection, leaf_index)[position]
    if erased_hash(line) is not None:
        raise InvalidError("this record's bytes were erased", where=f"record {record_id}", code="erased")
    record = decode_record(line, where=f"leaf {leaf_index}")
    if tenant is not None and record.tenant != tenant:
        raise _no_record(record_id)
    return Found(leaf_index, position, issuer, line, record)


def _no_record(record_id: str) -> InvalidError:
    return not_found("there is no such record", f"record {record_id}")


def record_proof(connection: Connection, record_id: str, *, tenant: str | None = None) -> RecordProof:
    """A record with its path in its statement, the statement and the receipt."""
    found = record_by_id(connection, record_id, tenant=tenant)
    hashes = [line_hash(line) for line in record_lines(connection, found.leaf_index)]
    stored = receipt_row(connection, found.leaf_index)
    return RecordProof(
        found,
        tuple(inclusion_path(hashes, found.position)),
        bytes(stored.entry),
        receipt_bytes(connection, log_head(connection).origin, stored),
    )


def records(
    connection: Connection, wanted: RecordFilter, *, after: int | None = None, limit: int = 100
) -> tuple[list[Found], int | None]:
    """A page of records in log order.

    Args:
        connection: a snapshot.
        wanted: the filter.
        after: the place after which the page begins (keyset pagination), None for the first page.
        limit: records on the page, at most ``MAX_PAGE``.

    Returns:
        The records, and the place to pass as ``after`` for the next page, None at the end.
    """
    limit = max(1, min(limit, MAX_PAGE))
    found: list[Found] = []
    for each in iterate_records(connection, wanted, after=after):
        if len(found) == limit:
            last = found[-1]
            return found, last.leaf_index * PLACES_PER_LEAF + last.position
        found.append(each)
    return found, None


def iterate_records(
    connection: Connection, wanted: RecordFilter, *, after: int | None = None
) -> Iterator[Found]:
    """All matching records in log order, one batch in memory at a time."""
    deployments = _deployments_of(connection, wanted)
    if deployments is not None and not deployments:
        return
    leaf, skip = divmod(after + 1, PLACES_PER_LEAF) if after is not None else (0, 0)
    while True:
        rows = connection.execute(_batches(wanted, deployments, leaf).limit(16)).all()
        for row in rows:
            lines = split_block(row.records, row.leaf_index)
            for position in range(skip if row.leaf_index == leaf else 0, len(lines)):
                line = lines[position]
                if erased_hash(line) is not None:
                    continue
                record = decode_record(line, where=f"leaf {row.leaf_index}")
                if _matches(record, wanted, deployments):
                    yield Found(row.leaf_index, position, row.issuer, line, record)
        if not rows:
            return
        leaf, skip = rows[-1].leaf_index + 1, 0


def _deployments_of(connection: Connection, wanted: RecordFilter) -> set[str] | None:
    if wanted.model is None:
        return None if wanted.deployment is None else {wanted.deployment}
    rows = table(Document)
    query = select(rows.c.digest).where(rows.c.kind == "deployment", rows.c.model == wanted.model)
    digests = set(connection.execute(query).scalars())
    return digests if wanted.deployment is None else digests & {wanted.deployment}


def _batches(wanted: RecordFilter, deployments: set[str] | None, leaf: int) -> Select[Any]:
    rows, slices = table(StatementRow), table(BatchSlice)
    query = (
        select(rows.c.leaf_index, rows.c.issuer, rows.c.records)
        .where(rows.c.leaf_index >= leaf, rows.c.kind == "batch", rows.c.records.is_not(None))
        .order_by(rows.c.leaf_index)
    )
    if wanted.from_us is not None:
        query = query.where(rows.c.last_us >= wanted.from_us)
    if wanted.to_us is not None:
        query = query.where(rows.c.first_us < wanted.to_us)
    if wanted.issuer is not None:
        query = query.where(rows.c.issuer == wanted.issuer)
    if wanted.tenant is not None or deployments is not None:
        conditions = [slices.c.leaf_index == rows.c.leaf_index]
        if wanted.tenant is not None:
            conditions.append(slices.c.tenant == wanted.tenant)
        if deployments is not None:
            conditions.append(slices.c.deployment.in_(deployments))
        query = query.where(select(slices.c.leaf_index).where(and_(*conditions)).exists())
    return query


def _matches(record: Record, wanted: RecordFilter, deployments: set[str] | None) -> bool:
    return (
        (wanted.from_us is None or record.started_us >= wanted.from_us)
        and (wanted.to_us is None or record.started_us < wanted.to_us)
        and (wanted.tenant is None or record.tenant == wanted.tenant)
        and (deployments is None or record.deployment in deployments)
    )
