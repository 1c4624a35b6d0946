"""Reading the log: heads, tiles, statements, receipts, proofs, records and roll-ups.

Each function takes a connection; one connection sees one snapshot, so that a proof and its checkpoint agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, and_, func, select

from ledger import zstd
from ledger.core import cose, receipts
from ledger.core.checkpoint import Checkpoint, parse_checkpoint_text
from ledger.core.errors import CorruptError, InvalidError, RefusedError
from ledger.core.keys import PublicKey, parse_cose_key
from ledger.core.merkle import HASH_SIZE, inclusion_path, leaf_hash
from ledger.core.note import parse_note
from ledger.core.records import MAX_RECORD_BYTES, Record, decode_record
from ledger.core.statements import MAX_BATCH_RECORDS, SignedStatement, decode_statement
from ledger.core.tiles import TILE_WIDTH, TileReader
from ledger.store.tables import (
    PLACES_PER_LEAF,
    ROLLUP_SUMS,
    BatchSlice,
    Document,
    Issuer,
    IssuerKeyRow,
    LogHead,
    RecordIndex,
    Rollup,
    StatementRow,
    Tile,
)

__all__ = [
    "Found",
    "RecordFilter",
    "RecordProof",
    "checkpoint",
    "consistency",
    "documents",
    "inclusion",
    "issuer_key",
    "issuers",
    "log_head",
    "read_bundle",
    "read_tile",
    "receipt",
    "record_by_id",
    "record_lines",
    "record_proof",
    "records",
    "resolve_entry",
    "rollups",
    "statement",
    "statement_count",
    "tile_fetcher",
    "tile_reader",
]

MAX_BLOCK_BYTES = MAX_BATCH_RECORDS * (MAX_RECORD_BYTES + 1)
MAX_PAGE = 1_000
_HOUR_US = 3_600_000_000


def _t(model: Any) -> Any:
    return model.__table__


def not_found(what: str, where: str, code: str = "not-found") -> InvalidError:
    """The error for something that the log does not have."""
    return InvalidError(what, where=where, code=code)


# --- head, tiles, proofs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The log as it stands."""

    origin: str
    size: int
    root: bytes
    checkpoint: str


def log_head(connection: Connection) -> Head:
    """Read the head.

    Raises:
        InvalidError: there is no log in this database.
    """
    row = connection.execute(select(_t(LogHead))).one_or_none()
    if row is None:
        raise InvalidError(
            "there is no log in this database",
            where="log_head",
            remedy="run `tallystick init`",
            code="no-log",
        )
    return Head(row.origin, row.size, row.root, row.checkpoint)


def checkpoint(connection: Connection) -> Checkpoint:
    """The newest checkpoint, parsed (its signature was made by us)."""
    return parse_checkpoint_text(parse_note(log_head(connection).checkpoint.encode()).text)


def read_tile(connection: Connection, level: int, index: int, width: int) -> bytes:
    """The first ``width`` hashes of a tile.

    Raises:
        CorruptError: the tile is missing or too narrow.
    """
    tiles = _t(Tile)
    query = select(tiles.c.hashes).where(tiles.c.level == level, tiles.c.idx == index)
    data = connection.execute(query).scalar_one_or_none()
    if data is None or len(data) < width * HASH_SIZE:
        raise CorruptError(
            f"tile is missing or narrower than {width}",
            where=f"tile level {level} index {index}",
            remedy="run `tallystick audit` on the database",
            code="missing-tile",
        )
    return bytes(data[: width * HASH_SIZE])


def tile_fetcher(connection: Connection) -> Callable[[int, int, int], bytes]:
    """``read_tile`` as ``TileReader`` wants it."""
    return lambda level, index, width: read_tile(connection, level, index, width)


def tile_reader(connection: Connection, size: int) -> TileReader:
    """A reader of the tree of ``size`` leaves, sharing tiles with other readers of this store."""
    cache = connection.get_execution_options().get("tallystick_tiles")
    return TileReader(tile_fetcher(connection), size, cache=cache)


def read_bundle(connection: Connection, index: int, width: int) -> list[bytes]:
    """The entries of a bundle."""
    rows = _t(StatementRow)
    first = index * TILE_WIDTH
    query = (
        select(rows.c.entry)
        .where(rows.c.leaf_index >= first, rows.c.leaf_index < first + width)
        .order_by(rows.c.leaf_index)
    )
    return [bytes(entry) for entry in connection.execute(query).scalars()]


def inclusion(connection: Connection, leaf_index: int, tree_size: int) -> list[bytes]:
    """The inclusion path of a leaf in the tree of ``tree_size`` leaves.

    Raises:
        InvalidError: the tree is not that large, or the leaf is not in it.
    """
    _check_size(connection, tree_size)
    if not 0 <= leaf_index < tree_size:
        raise InvalidError(
            f"leaf {leaf_index} is not in a tree of {tree_size}", where="leaf_index", code="out-of-range"
        )
    return tile_reader(connection, tree_size).inclusion_path(leaf_index)


def consistency(connection: Connection, old_size: int, new_size: int) -> list[bytes]:
    """The proof that the tree of ``new_size`` extends that of ``old_size``."""
    _check_size(connection, new_size)
    if not 0 <= old_size <= new_size:
        raise InvalidError(
            f"a tree of {new_size} does not extend one of {old_size}", where="from", code="out-of-range"
        )
    return tile_reader(connection, new_size).consistency_path(old_size)


def _check_size(connection: Connection, tree_size: int) -> None:
    size = log_head(connection).size
    if not 0 <= tree_size <= size:
        raise InvalidError(
            f"the log has {size} leaves, not {tree_size}", where="tree_size", code="out-of-range"
        )


# --- statements and receipts -----------------------------------------------------------------------------


def resolve_entry(connection: Connection, entry_id: str) -> int:
    """The leaf index that ``entry_id`` names: a decimal leaf index, or a leaf hash in hex.

    Raises:
        InvalidError: malformed (``bad-entry-id``) or not in the log (``not-found``).
    """
    rows = _t(StatementRow)
    if len(entry_id) == 64:
        try:
            leaf = bytes.fromhex(entry_id)
        except ValueError:
            leaf = b""
        query = select(rows.c.leaf_index).where(rows.c.leaf_hash == leaf)
    elif entry_id.isascii() and entry_id.isdecimal() and len(entry_id) <= 18:
        query = select(rows.c.leaf_index).where(rows.c.leaf_index == int(entry_id))
    else:
        raise InvalidError(
            f"{entry_id[:80]!r} is neither a leaf index nor a leaf hash",
            where="entry id",
            code="bad-entry-id",
        )
    index = connection.execute(query).scalar_one_or_none()
    if index is None:
        raise not_found("there is no such entry", f"entry {entry_id}")
    return int(index)


def statement(connection: Connection, leaf_index: int) -> SignedStatement:
    """The statement at a leaf."""
    rows = _t(StatementRow)
    query = select(rows.c.entry).where(rows.c.leaf_index == leaf_index)
    entry = connection.execute(query).scalar_one_or_none()
    if entry is None:
        raise not_found("there is no such entry", f"entry {leaf_index}")
    return decode_statement(bytes(entry), where=f"statement at leaf {leaf_index}")


def receipt_row(connection: Connection, leaf_index: int) -> Any:
    """What of a receipt is stored."""
    rows = _t(StatementRow)
    query = select(
        rows.c.leaf_index, rows.c.entry, rows.c.tree_size, rows.c.registered_s, rows.c.receipt_signature
    ).where(rows.c.leaf_index == leaf_index)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise not_found("there is no such entry", f"entry {leaf_index}")
    return row


def receipt_bytes(connection: Connection, origin: str, row: Any) -> bytes:
    """Give a receipt again, byte for byte as it was issued."""
    reader = tile_reader(connection, row.tree_size)
    keys = _t(IssuerKeyRow)
    encoded = connection.execute(
        select(keys.c.cose_key).where(keys.c.issuer == origin).order_by(keys.c.added_leaf.desc()).limit(1)
    ).scalar_one()
    return receipts.assemble_receipt(
        origin=origin,
        subject=decode_statement(bytes(row.entry)).subject,
        registered_s=row.registered_s,
        tree_size=row.tree_size,
        leaf_index=row.leaf_index,
        path=reader.inclusion_path(row.leaf_index),
        signature=row.receipt_signature,
        key=parse_cose_key(cose.decode_cbor(bytes(encoded), where="log key")),
    )


def receipt(connection: Connection, leaf_index: int) -> bytes:
    """The receipt of a leaf, as it was issued when the statement was logged."""
    return receipt_bytes(connection, log_head(connection).origin, receipt_row(connection, leaf_index))


def statement_count(connection: Connection) -> int:
    """How many statements there are, if they are numbered without a gap; else -1."""
    rows = _t(StatementRow)
    last = connection.execute(select(func.max(rows.c.leaf_index))).scalar_one()
    count = connection.execute(select(func.count()).select_from(rows)).scalar_one()
    return int(count) if count == (0 if last is None else last + 1) else -1


# --- records ---------------------------------------------------------------------------------------------


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


def record_lines(connection: Connection, leaf_index: int) -> list[bytes]:
    """The canonical bytes of a batch's records, in order. None for other kinds."""
    rows = _t(StatementRow)
    query = select(rows.c.records).where(rows.c.leaf_index == leaf_index)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise not_found("there is no such entry", f"entry {leaf_index}")
    return [] if row.records is None else split_block(row.records, leaf_index)


def split_block(block: bytes, leaf_index: int) -> list[bytes]:
    """Decompress a record block into its records' bytes.

    Raises:
        CorruptError: it is damaged.
    """
    try:
        data = zstd.decompress_bounded(block, MAX_BLOCK_BYTES)
    except zstd.ZstdError:
        data = None
    if not data or data[-1] != 0x0A:
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
    index = _t(RecordIndex)
    place = connection.execute(select(index.c.place).where(index.c.id == key)).scalar_one_or_none()
    if place is None:
        raise not_found("there is no such record", f"record {record_id}")
    leaf_index, position = divmod(int(place), PLACES_PER_LEAF)
    return leaf_index, position


def record_by_id(connection: Connection, record_id: str) -> Found:
    """One record."""
    leaf_index, position = place_of(connection, record_id)
    rows = _t(StatementRow)
    issuer = connection.execute(select(rows.c.issuer).where(rows.c.leaf_index == leaf_index)).scalar_one()
    line = record_lines(connection, leaf_index)[position]
    return Found(leaf_index, position, issuer, line, decode_record(line, where=f"leaf {leaf_index}"))


def record_proof(connection: Connection, record_id: str) -> RecordProof:
    """A record with its path in its statement, the statement and the receipt."""
    found = record_by_id(connection, record_id)
    hashes = [leaf_hash(line) for line in record_lines(connection, found.leaf_index)]
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
                record = decode_record(line, where=f"leaf {row.leaf_index}")
                if _matches(record, wanted, deployments):
                    yield Found(row.leaf_index, position, row.issuer, line, record)
        if not rows:
            return
        leaf, skip = rows[-1].leaf_index + 1, 0


def _deployments_of(connection: Connection, wanted: RecordFilter) -> set[str] | None:
    if wanted.model is None:
        return None if wanted.deployment is None else {wanted.deployment}
    rows = _t(Document)
    query = select(rows.c.digest).where(rows.c.kind == "deployment", rows.c.model == wanted.model)
    digests = set(connection.execute(query).scalars())
    return digests if wanted.deployment is None else digests & {wanted.deployment}


def _batches(wanted: RecordFilter, deployments: set[str] | None, leaf: int) -> Select[Any]:
    rows, slices = _t(StatementRow), _t(BatchSlice)
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


# --- roll-ups --------------------------------------------------------------------------------------------

ROLLUP_DIMENSIONS = ("hour", "day", "model", "deployment", "tenant")


def rollups(
    connection: Connection,
    by: Sequence[str],
    *,
    from_us: int | None = None,
    to_us: int | None = None,
    model: str | None = None,
    deployment: str | None = None,
    tenant: str | None = None,
) -> list[dict[str, Any]]:
    """Sums by ``by`` (of ``ROLLUP_DIMENSIONS``), in exact integers, ordered by their keys.

    ``hour`` and ``day`` are Unix seconds of their beginning (UTC). Whole hours only: the period's ends must
    be full hours. Figures that no record has are absent.

    Raises:
        InvalidError: unknown dimension, or a period that cuts an hour.
    """
    for name in by:
        if name not in ROLLUP_DIMENSIONS:
            raise InvalidError(
                f"cannot roll up by {name!r}",
                where="by",
                remedy=f"use {', '.join(ROLLUP_DIMENSIONS)}",
                code="bad-parameter",
            )
    for name, time_us in (("from_us", from_us), ("to_us", to_us)):
        if time_us is not None and time_us % _HOUR_US:
            raise InvalidError(
                f"{name} {time_us} is within an hour, and roll-ups are of whole hours",
                where=name,
                remedy="round it to a full hour, or list the records",
                code="bad-parameter",
            )
    rows, docs = _t(Rollup), _t(Document)
    query = select(rows, docs.c.model).join(docs, docs.c.digest == rows.c.deployment, isouter=True)
    if from_us is not None:
        query = query.where(rows.c.hour >= from_us // _HOUR_US)
    if to_us is not None:
        query = query.where(rows.c.hour < to_us // _HOUR_US)
    for column, value in ((docs.c.model, model), (rows.c.deployment, deployment), (rows.c.tenant, tenant)):
        if value is not None:
            query = query.where(column == value)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in connection.execute(query):
        values = {
            "hour": row.hour * 3600,
            "day": row.hour // 24 * 86_400,
            "model": row.model or "",
            "deployment": row.deployment,
            "tenant": row.tenant,
        }
        key = tuple(values[name] for name in by)
        sums = msgspec.json.decode(row.sums, type=list[int])
        before = groups.get(key)
        groups[key] = sums if before is None else [a + b for a, b in zip(before, sums, strict=True)]
    return [
        dict(zip(by, key, strict=True)) | present_sums(dict(zip(ROLLUP_SUMS, groups[key], strict=True)))
        for key in sorted(groups)
    ]


def present_sums(sums: dict[str, int]) -> dict[str, int]:
    """Drop the sums that no record contributed to: what is unknown is absent, not zero."""
    energy = sums["measured_records"] + sums["modelled_records"] + sums["estimated_records"]
    counts = {
        "cached_input_tokens": sums["cached_input_records"],
        "reasoning_tokens": sums["reasoning_records"],
        "energy_uj": energy,
        "energy_low_uj": energy,
        "energy_high_uj": energy,
        "carbon_ng": sums["carbon_records"],
        "carbon_market_ng": sums["carbon_market_records"],
        "embodied_ng": sums["embodied_records"],
        "water_nl": sums["water_records"],
    }
    return {name: value for name, value in sums.items() if counts.get(name, 1)}


# --- issuers and documents -------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyInfo:
    """An issuer's key."""

    kid: bytes
    issuer: str
    public: PublicKey
    added_leaf: int
    revoked_leaf: int | None


@dataclass(frozen=True)
class IssuerInfo:
    """An issuer, how far its chain goes, and its keys."""

    issuer: str
    next_seq: int
    keys: tuple[KeyInfo, ...]


def issuers(connection: Connection) -> list[IssuerInfo]:
    """All issuers, the log itself included, by name."""
    keys: dict[str, list[KeyInfo]] = {}
    rows = _t(IssuerKeyRow)
    for row in connection.execute(select(rows).order_by(rows.c.added_leaf)):
        keys.setdefault(row.issuer, []).append(_key_info(row))
    names = _t(Issuer)
    return [
        IssuerInfo(row.issuer, row.next_seq, tuple(keys.get(row.issuer, ())))
        for row in connection.execute(select(names).order_by(names.c.issuer))
    ]


def issuer_key(connection: Connection, kid: bytes) -> KeyInfo | None:
    """The key with this thumbprint."""
    rows = _t(IssuerKeyRow)
    row = connection.execute(select(rows).where(rows.c.kid == kid)).one_or_none()
    return None if row is None else _key_info(row)


def usable_key(connection: Connection, issuer: str, kid: bytes) -> PublicKey:
    """The key that verifies ``issuer``'s statements signed with ``kid``.

    Raises:
        RefusedError: unknown issuer, another issuer's key, or revoked.
    """
    info = issuer_key(connection, kid)
    if info is None or info.issuer != issuer:
        raise RefusedError(
            f"issuer {issuer} has no key {kid.hex()}",
            where="statement",
            remedy="register the issuer's public key with `tallystick issuers add`",
            code="unknown-issuer",
        )
    if info.revoked_leaf is not None:
        raise revoked_key(issuer, kid)
    return info.public


def revoked_key(issuer: str, kid: bytes) -> RefusedError:
    """The error for a key that was revoked."""
    return RefusedError(
        f"key {kid.hex()} of issuer {issuer} is revoked",
        where="statement",
        remedy="sign with a key that is in force",
        code="revoked-key",
    )


def _key_info(row: Any) -> KeyInfo:
    public = parse_cose_key(cose.decode_cbor(bytes(row.cose_key), where=f"issuer_key {row.kid.hex()}"))
    return KeyInfo(row.kid, row.issuer, public, row.added_leaf, row.revoked_leaf)


def documents(connection: Connection, kind: str, *, digest: str | None = None) -> list[Any]:
    """Deployments (``deployment``) or factor sets (``factors``), in log order; or the one with ``digest``."""
    rows = _t(Document)
    query = select(rows).where(rows.c.kind == kind).order_by(rows.c.leaf_index)
    if digest is not None:
        query = query.where(rows.c.digest == digest)
    found = list(connection.execute(query))
    if digest is not None and not found:
        raise not_found(f"there is no such {kind} document", f"{kind} {digest[:64]}")
    return found
