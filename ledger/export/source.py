"""Reads what is exported out of the store: leaves in order, each checked before the log signs for it again.

Reading goes in pages, each in a transaction of its own, so that a long export neither holds back the
database's housekeeping nor needs memory for more than a page. The checkpoint read first bounds what is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, and_, case, or_, select, true
from sqlmodel import SQLModel

from ledger import zstd
from ledger.core import merkle
from ledger.core.checkpoint import Checkpoint, open_checkpoint
from ledger.core.erased import ERASED_MARK, erased_hash, line_hashes
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.keys import Signer
from ledger.core.log_keys import log_verifier_key
from ledger.core.records import (
    MAX_RECORD_BYTES,
    Deployment,
    decode_deployment,
    decode_record_lines,
    document_digest,
)
from ledger.core.statements import MAX_BATCH_RECORDS, Batch, SignedStatement, decode_statement
from ledger.core.tiles import TileReader
from ledger.store.engine import Store
from ledger.store.tables import Document, LogHead, StatementRow, Tile

__all__ = ["Leaf", "Period", "Source", "open_source"]

_STATEMENT, _DOCUMENT, _HEAD, _TILE = (
    SQLModel.metadata.tables[str(each.__tablename__)].c for each in (StatementRow, Document, LogHead, Tile)
)
_PAGE_BYTES = 32 << 20
"""What a page of leaves should hold: far more than a query costs, far less than memory."""
_FIRST_PAGE = 32
_MAX_PAGE = 2_048
_MAX_BLOCK_BYTES = MAX_BATCH_RECORDS * (MAX_RECORD_BYTES + 1)
_REMEDY = "run the audit: the database was changed behind the ledger, or is damaged; restore a back-up"


@dataclass(frozen=True)
class Period:
    """Records with ``from_us <= started_us < to_us``; None leaves an end open."""

    from_us: int | None = None
    to_us: int | None = None

    def __post_init__(self) -> None:
        if self.from_us is not None and self.to_us is not None and self.from_us >= self.to_us:
            raise InvalidError(
                "the period is empty", where="from_us, to_us", remedy="let it end after it begins"
            )

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self.from_us is None and self.to_us is None

    def __contains__(self, time_us: int) -> bool:
        return (self.from_us is None or self.from_us <= time_us) and (
            self.to_us is None or time_us < self.to_us
        )


@dataclass(frozen=True)
class Leaf:
    """A leaf: its statement, what its receipt says and, for a batch, those records that are exported.

    Attributes:
        lines: the canonical bytes of the exported records, each ended by a newline.
        count: how many those are.
        positions: their places in the batch; None: they are all of it, in order.
        record_hashes: hashes of all records of the batch, joined, where ``lines`` holds only some of them:
            those of a period, or those whose bytes were not erased.
    """

    index: int
    statement: SignedStatement
    tree_size: int
    registered_s: int
    receipt_signature: bytes
    lines: bytes = b""
    count: int = 0
    positions: Sequence[int] | None = None
    record_hashes: bytes | None = None


@dataclass(frozen=True)
class Source:
    """A store up to a checkpoint. ``tiles`` is not safe to share between threads."""

    store: Store
    note: str
    checkpoint: Checkpoint
    tiles: TileReader

    def deployment(self, digest: str) -> Deployment:
        """The deployment of that digest."""
        with self.store.read() as connection:
            body = connection.scalar(
                select(_DOCUMENT.body).where(_DOCUMENT.digest == digest, _DOCUMENT.kind == "deployment")
            )
        if body is None:
            raise CorruptError("is not in the store", where=f"deployment {digest}", remedy=_REMEDY)
        deployment = decode_deployment(body, where=f"deployment {digest}")
        if document_digest(deployment) != digest:
            raise CorruptError("has another digest", where=f"deployment {digest}", remedy=_REMEDY)
        return deployment

    def erased_since(self, size: int) -> bool:
        """Whether an erasure is among the leaves from ``size`` on."""
        with self.store.read() as connection:
            found = connection.scalar(
                select(_STATEMENT.leaf_index)
                .where(_STATEMENT.kind == "erasure", _STATEMENT.leaf_index >= size)
                .limit(1)
            )
        return found is not None

    def leaves(self, period: Period, *, every_statement: bool, start: int = 0) -> Iterator[Leaf]:
        """Leaves in order, with the records of ``period``.

        Args:
            period: which records.
            every_statement: all leaves; else only those that the records of the period need.
            start: the first leaf.
        """
        query = _leaves_query(period, every_statement=every_statement)
        page = _FIRST_PAGE
        while start < self.checkpoint.size:
            bounded = query.where(
                _STATEMENT.leaf_index >= start, _STATEMENT.leaf_index < self.checkpoint.size
            )
            with self.store.read() as connection:
                rows = connection.execute(bounded.order_by(_STATEMENT.leaf_index).limit(page)).all()
            size = 0
            for index, leaf_hash, tree_size, registered_s, signature, entry, block in rows:
                if every_statement and index != start:
                    raise CorruptError("is not in the store", where=f"leaf {start}", remedy=_REMEDY)
                start = index + 1
                size += len(entry) + len(block or b"")
                statement = _statement(index, leaf_hash, entry)
                leaf = Leaf(index, statement, tree_size, registered_s, signature)
                if block is not None:
                    leaf = _with_records(leaf, block, period)
                if every_statement or leaf.count or not isinstance(statement.payload, Batch):
                    yield leaf
            if len(rows) < page:
                break
            page = max(1, min(_MAX_PAGE, page * _PAGE_BYTES // max(size, 1), 2 * page))
        if every_statement and start != self.checkpoint.size:
            raise CorruptError("is not in the store", where=f"leaf {start}", remedy=_REMEDY)


def open_source(store: Store, log_key: Signer) -> Source:
    """Read the newest checkpoint, and check that ``log_key`` signed it and that the tiles lead to its root.

    Raises:
        InvalidError: the key is another log's. CorruptError: checkpoint and tiles do not agree.
    """
    with store.read() as connection:
        head = connection.execute(select(_HEAD.origin, _HEAD.checkpoint)).one_or_none()
    if head is None:
        raise InvalidError("the store holds no log", remedy="make one with: tallystick init")
    origin, note = head
    checkpoint = open_checkpoint(note.encode(), log_verifier_key(origin, log_key.public))

    def fetch(level: int, index: int, width: int) -> bytes:
        with store.read() as connection:
            hashes = connection.scalar(select(_TILE.hashes).where(_TILE.level == level, _TILE.idx == index))
        return (hashes or b"")[: width * merkle.HASH_SIZE]

    tiles = TileReader(fetch, checkpoint.size)
    if tiles.root() != checkpoint.root:
        raise CorruptError("do not lead to the checkpoint's root", where="tiles", remedy=_REMEDY)
    return Source(store, note, checkpoint, tiles)


def _leaves_query(period: Period, *, every_statement: bool) -> Select[Any]:
    row = _STATEMENT
    touched = and_(
        row.kind == "batch",
        true() if period.from_us is None else row.last_us >= period.from_us,
        true() if period.to_us is None else row.first_us < period.to_us,
    )
    block = row.records if period.is_all else case((touched, row.records)).label("records")
    query = select(
        row.leaf_index,
        row.leaf_hash,
        row.tree_size,
        row.registered_s,
        row.receipt_signature,
        row.entry,
        block,
    )
    return query if every_statement else query.where(or_(row.kind.not_in(("batch", "heartbeat")), touched))


def _statement(index: int, leaf_hash: bytes, entry: bytes) -> SignedStatement:
    statement = decode_statement(entry, where=f"leaf {index}")
    if statement.leaf_hash != leaf_hash:
        raise CorruptError("has another hash than the store says", where=f"leaf {index}", remedy=_REMEDY)
    return statement


def _with_records(leaf: Leaf, block: bytes, period: Period) -> Leaf:
    where = f"leaf {leaf.index}"
    try:
        data = zstd.decompress_bounded(block, _MAX_BLOCK_BYTES)
    except zstd.ZstdError:
        data = None
    if data is None:
        raise CorruptError("its records cannot be decompressed", where=where, remedy=_REMEDY)
    payload = leaf.statement.payload
    if not isinstance(payload, Batch) or data.count(b"\n") != payload.count:  # before there is a list of them
        raise CorruptError("its records are not as many as the statement counts", where=where, remedy=_REMEDY)
    if ERASED_MARK in data:
        return _with_rest(leaf, data, period)
    hashes, root = merkle.hash_lines(data) if data[-1:] == b"\n" else (b"", b"")
    if root.hex() != payload.root:
        raise CorruptError("its records do not hash to the statement's root", where=where, remedy=_REMEDY)
    count = len(hashes) // merkle.HASH_SIZE
    if payload.first_us in period and payload.last_us in period:  # as the service has checked
        return replace(leaf, lines=data, count=count)
    records, lines = decode_record_lines(data, where=f"{where} records")
    positions = [p for p, record in enumerate(records) if record.started_us in period]
    if len(positions) == count:
        return replace(leaf, lines=data, count=count)
    return replace(
        leaf,
        lines=b"".join([lines[p] + b"\n" for p in positions]),
        count=len(positions),
        positions=positions,
        record_hashes=hashes if positions else None,
    )


def _with_rest(leaf: Leaf, data: bytes, period: Period) -> Leaf:
    """The leaf with what is left of its records: of the erased ones, the hash alone is exported."""
    where = f"leaf {leaf.index}"
    parts = data[:-1].split(b"\n")
    hashes = line_hashes(parts)
    payload = leaf.statement.payload
    if not isinstance(payload, Batch) or merkle.root(hashes).hex() != payload.root:
        raise CorruptError("its records do not hash to the statement's root", where=where, remedy=_REMEDY)
    present = [at for at, line in enumerate(parts) if erased_hash(line) is None]
    lines = b"".join([parts[at] + b"\n" for at in present])
    records = decode_record_lines(lines, where=f"{where} records")[0] if lines else []
    positions = [at for at, record in zip(present, records, strict=True) if record.started_us in period]
    return replace(
        leaf,
        lines=b"".join([parts[at] + b"\n" for at in positions]),
        count=len(positions),
        positions=positions,
        record_hashes=b"".join(hashes) if positions else None,
    )
