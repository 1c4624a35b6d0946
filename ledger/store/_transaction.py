"""One append: a group of prepared statements goes into the log inside one transaction, or nothing does.

The caller holds the write lock. What a statement's acceptance depends on - chain heads, revocations, known
documents, record ids - is read inside the transaction, so that several replicas agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from msgspec import UNSET
from sqlalchemy import Connection, bindparam, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from ledger.core import cose, receipts
from ledger.core.chain import ChainHead, next_head
from ledger.core.checkpoint import Checkpoint, sign_checkpoint
from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError
from ledger.core.keys import PrivateKey, parse_cose_key
from ledger.core.merkle import HASH_SIZE, CompactRange
from ledger.core.records import decode_deployment
from ledger.core.statements import Batch, DeploymentStatement, IssuerKey, Payload, sign_statement
from ledger.core.tiles import TileReader, append_tiles, tile_widths
from ledger.store import queries
from ledger.store.prepare import Prepared, prepare_own
from ledger.store.tables import (
    PLACES_PER_LEAF,
    ROLLUP_SUMS,
    BatchSlice,
    CheckpointRow,
    Document,
    Issuer,
    IssuerKeyRow,
    LogHead,
    RecordIndex,
    Rollup,
    StatementRow,
    Tile,
)

__all__ = ["Log", "OwnStatement", "Registration", "Tip", "append_group", "load_tip", "table"]


def table(model: Any) -> Any:
    """The SQLAlchemy table of a model."""
    return model.__table__


@dataclass(frozen=True)
class Log:
    """The log's name and key (Ed25519)."""

    origin: str
    key: PrivateKey


@dataclass(frozen=True)
class OwnStatement:
    """A statement that the log itself makes: built inside the transaction, from its own chain's head."""

    build: Callable[[int, str | None], Payload]
    """(seq, prev) -> payload."""


@dataclass(frozen=True)
class Registration:
    """A logged statement. ``fresh`` is False for one that had been logged before."""

    leaf_index: int
    leaf_hash: bytes
    tree_size: int
    receipt: bytes
    fresh: bool


@dataclass
class Tip:
    """The right edge of the tree: all that appending needs. Owned by the sequencer's thread."""

    size: int
    root: bytes
    range: CompactRange
    last_tiles: dict[int, bytes]


Item: TypeAlias = Prepared | OwnStatement
Outcome: TypeAlias = Registration | TallystickError


@dataclass
class _Accepted:
    """What the group adds, gathered before anything but record ids is written."""

    prepared: list[Prepared] = field(default_factory=list)
    slot: list[int] = field(default_factory=list)
    by_hash: dict[bytes, int] = field(default_factory=dict)
    heads: dict[str, ChainHead] = field(default_factory=dict)
    documents: set[str] = field(default_factory=set)


def load_tip(connection: Connection) -> Tip:
    """Read the tip from the tiles.

    Raises:
        CorruptError: tiles are missing or have the wrong length.
    """
    head = connection.execute(select(table(LogHead))).one_or_none()
    size = head.size if head is not None else 0
    reader = TileReader(queries.tile_fetcher(connection), size)
    hashes, start = [], 0
    for bit in reversed(range(size.bit_length())):
        if size >> bit & 1:
            hashes.append(reader.subtree_hash(start, start + (1 << bit)))
            start += 1 << bit
    last = {
        level: queries.read_tile(connection, level, full, width)
        for level, full, width in tile_widths(size)
        if width
    }
    compact = CompactRange(size, hashes)
    return Tip(size, compact.root(), compact, last)


def append_group(
    connection: Connection, log: Log, tip: Tip, items: Sequence[Item], *, now_s: int
) -> tuple[Tip, list[Outcome], bytes | None]:
    """Append what may be appended of ``items``, in their order.

    Returns:
        The new tip, an outcome for each item, and the new checkpoint, or None if nothing was added.
    """
    accepted = _Accepted()
    outcomes: list[Outcome | None] = [None] * len(items)
    repeats: list[tuple[int, bytes]] = []
    known = _known_leaves(connection, items)
    for i, item in enumerate(items):
        try:
            if isinstance(item, Prepared) and (item.leaf_hash in known or item.leaf_hash in accepted.by_hash):
                repeats.append((i, item.leaf_hash))
                continue
            prepared = _accept(connection, log, tip, accepted, item)
        except TallystickError as error:
            outcomes[i] = error
        else:
            accepted.by_hash[prepared.leaf_hash] = tip.size + len(accepted.prepared)
            accepted.prepared.append(prepared)
            accepted.slot.append(i)
    checkpoint = None
    if accepted.prepared:
        tip, registrations, checkpoint = _write(connection, log, tip, accepted, now_s)
        for i, registration in zip(accepted.slot, registrations, strict=True):
            outcomes[i] = registration
    for i, leaf in repeats:
        index = known[leaf] if leaf in known else accepted.by_hash[leaf]
        stored = queries.receipt_row(connection, index)
        receipt = queries.receipt_bytes(connection, log.origin, stored)
        outcomes[i] = Registration(index, leaf, stored.tree_size, receipt, fresh=False)
    return tip, [outcome for outcome in outcomes if outcome is not None], checkpoint


def _known_leaves(connection: Connection, items: Sequence[Item]) -> dict[bytes, int]:
    hashes = [item.leaf_hash for item in items if isinstance(item, Prepared)]
    statements = table(StatementRow)
    query = select(statements.c.leaf_hash, statements.c.leaf_index).where(
        statements.c.leaf_hash.in_(bindparam("hashes", expanding=True))
    )
    return {row.leaf_hash: row.leaf_index for row in connection.execute(query, {"hashes": hashes})}


# --- accepting one statement -----------------------------------------------------------------------------


def _accept(connection: Connection, log: Log, tip: Tip, accepted: _Accepted, item: Item) -> Prepared:
    """Check ``item`` against the log's state and claim its record ids.

    Raises:
        TallystickError: it may not be appended. The transaction is as it was.
    """
    if isinstance(item, OwnStatement):
        head = _chain_head(connection, accepted, log.origin)
        prev = None if head.last_leaf is None else head.last_leaf.hex()
        payload = item.build(head.next_seq, prev)
        prepared = prepare_own(sign_statement(payload, issuer=log.origin, key=log.key))
    else:
        prepared = item
        _check_not_revoked(connection, prepared)
    statement = prepared.statement
    head = next_head(_chain_head(connection, accepted, statement.issuer), statement)
    leaf_index = tip.size + len(accepted.prepared)
    if isinstance(statement.payload, Batch):
        wanted = {*statement.payload.deployments, *statement.payload.factors} - accepted.documents
        _check_documents(connection, accepted, wanted)
    if prepared.records is not None:
        _claim_ids(connection, prepared.records.ids, leaf_index)
    if isinstance(statement.payload, IssuerKey):
        _apply_key(connection, accepted, statement.payload, leaf_index)
    if prepared.document is not None:
        _publish(connection, prepared, leaf_index)
        accepted.documents.add(prepared.document[0])
    accepted.heads[statement.issuer] = head
    return prepared


def _chain_head(connection: Connection, accepted: _Accepted, issuer: str) -> ChainHead:
    head = accepted.heads.get(issuer)
    if head is None:
        issuers = table(Issuer)
        row = connection.execute(select(issuers).where(issuers.c.issuer == issuer)).one_or_none()
        head = ChainHead() if row is None else ChainHead(row.next_seq, row.last_leaf)
        accepted.heads[issuer] = head
    return head


def _check_not_revoked(connection: Connection, prepared: Prepared) -> None:
    keys = table(IssuerKeyRow)
    query = select(keys.c.revoked_leaf).where(keys.c.kid == prepared.statement.kid)
    row = connection.execute(query).one_or_none()
    if row is None or row.revoked_leaf is not None:
        raise queries.revoked_key(prepared.statement.issuer, prepared.statement.kid)


def _check_documents(connection: Connection, accepted: _Accepted, wanted: set[str]) -> None:
    if not wanted:
        return
    documents = table(Document)
    query = select(documents.c.digest).where(documents.c.digest.in_(bindparam("digests", expanding=True)))
    found = {row.digest for row in connection.execute(query, {"digests": list(wanted)})}
    # Documents never go away, so what was found stays known for the whole group.
    accepted.documents |= found
    missing = wanted - found
    if missing:
        raise RefusedError(
            f"deployment or factor set {min(missing)} is not in the log",
            where="statement",
            remedy="log its `deployment` or `factors` statement first",
            code="unknown-document",
        )


def _claim_ids(connection: Connection, ids: list[bytes], leaf_index: int) -> None:
    first = leaf_index * PLACES_PER_LEAF
    rows = list(zip(ids, range(first, first + len(ids)), strict=True))
    mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"INSERT INTO record_index (id, place) VALUES ({mark}, {mark})", rows)  # noqa: S608
    except IntegrityError:
        index = table(RecordIndex)
        for position, each in enumerate(ids):
            row = connection.execute(select(index.c.place).where(index.c.id == each)).one_or_none()
            if row is not None:
                raise RefusedError(
                    f"record id {each.hex()} is in the log already, at leaf {row.place // PLACES_PER_LEAF}",
                    where=f"records[{position}]",
                    remedy="give each record a new UUIDv7; a resend must repeat the statement unchanged",
                    code="duplicate-record",
                ) from None
        raise


def _apply_key(connection: Connection, accepted: _Accepted, change: IssuerKey, leaf_index: int) -> None:
    keys, issuers = table(IssuerKeyRow), table(Issuer)
    kid = bytes.fromhex(change.kid)
    present = connection.execute(select(keys).where(keys.c.kid == kid)).one_or_none()
    if change.action == "revoke":
        if present is None or present.issuer != change.issuer or present.revoked_leaf is not None:
            raise RefusedError(
                f"{change.issuer} has no key {change.kid} to revoke", where="statement", code="unknown-key"
            )
        connection.execute(update(keys).where(keys.c.kid == kid).values(revoked_leaf=leaf_index))
        return
    if present is not None:
        raise RefusedError(
            f"key {change.kid} is registered already, for {present.issuer}",
            where="statement",
            remedy="make a new key for each issuer; a revoked key never comes back",
            code="key-exists",
        )
    if change.key is UNSET:
        raise InvalidError("the key is missing", where="statement", code="malformed-statement")
    encoded = bytes.fromhex(change.key)
    public = parse_cose_key(cose.decode_cbor(encoded, where="key"))
    if public.kid != kid:
        raise InvalidError("kid is not the thumbprint of the key", where="statement", code="bad-key")
    if connection.execute(select(issuers).where(issuers.c.issuer == change.issuer)).one_or_none() is None:
        connection.execute(insert(issuers).values(issuer=change.issuer, next_seq=0, last_leaf=None))
        accepted.heads.setdefault(change.issuer, ChainHead())
    connection.execute(
        insert(keys).values(
            kid=kid, issuer=change.issuer, alg=public.alg, cose_key=encoded, added_leaf=leaf_index
        )
    )


def _publish(connection: Connection, prepared: Prepared, leaf_index: int) -> None:
    assert prepared.document is not None  # noqa: S101 - the caller looked
    digest, body = prepared.document
    documents = table(Document)
    if connection.execute(select(documents.c.digest).where(documents.c.digest == digest)).one_or_none():
        return  # published before, perhaps by another issuer: the first leaf stays the reference
    values: dict[str, Any] = {"digest": digest, "leaf_index": leaf_index, "body": body}
    if isinstance(prepared.statement.payload, DeploymentStatement):
        deployment = decode_deployment(body)
        version = None if deployment.version is UNSET else deployment.version
        values |= {"kind": "deployment", "model": deployment.model, "version": version}
    else:
        values |= {"kind": "factors", "model": None, "version": None}
    connection.execute(insert(documents).values(values))


# --- writing the group -----------------------------------------------------------------------------------


def _write(
    connection: Connection, log: Log, tip: Tip, accepted: _Accepted, now_s: int
) -> tuple[Tip, list[Registration], bytes]:
    hashes = [prepared.leaf_hash for prepared in accepted.prepared]
    compact = tip.range.copy()
    compact.extend(hashes)
    root = compact.root()
    changed = append_tiles(tip.size, hashes, tip.last_tiles)
    tree = Checkpoint(log.origin, compact.size, root)
    checkpoint = _sign(log, tree)
    registrations = _issue_receipts(connection, log, accepted, tree, changed, now_s)
    _write_statements(connection, tip.size, accepted.prepared, registrations, now_s)
    _write_tiles(connection, tip, changed)
    _write_sums(connection, accepted.prepared)
    issuers = table(Issuer)
    connection.execute(
        update(issuers).where(issuers.c.issuer == bindparam("name")),
        [
            {"name": name, "next_seq": head.next_seq, "last_leaf": head.last_leaf}
            for name, head in accepted.heads.items()
            if head.last_leaf is not None
        ],
    )
    connection.execute(insert(table(CheckpointRow)).values(size=compact.size, note=checkpoint.decode()))
    heads = table(LogHead)
    moved = connection.execute(
        update(heads)
        .where(heads.c.id == 1, heads.c.size == tip.size)
        .values(size=compact.size, root=root, checkpoint=checkpoint.decode())
    )
    if moved.rowcount != 1:
        raise CorruptError(
            f"the log's head is not at size {tip.size} any more",
            where="log_head",
            remedy="another writer got past the fence; do not use this database without its lock",
            code="fence-lost",
        )
    last = {
        level: data
        for (level, _), data in changed.items()  # indexes rise within a level: the last one wins
        if len(data) < 256 * HASH_SIZE
    }
    kept = {
        level: last.get(level, tip.last_tiles.get(level, b""))
        for level, _, width in tile_widths(compact.size)
        if width
    }
    return Tip(compact.size, root, compact, kept), registrations, checkpoint


def _sign(log: Log, checkpoint: Checkpoint) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not isinstance(log.key.raw, Ed25519PrivateKey):
        raise InvalidError("the log's key must be Ed25519", where="log key", code="bad-key")
    return sign_checkpoint(checkpoint, log.key.raw)


def _issue_receipts(
    connection: Connection,
    log: Log,
    accepted: _Accepted,
    tree: Checkpoint,
    changed: dict[tuple[int, int], bytes],
    now_s: int,
) -> list[Registration]:
    stored = queries.tile_fetcher(connection)

    def fetch(level: int, index: int, width: int) -> bytes:
        data = changed.get((level, index))
        return stored(level, index, width) if data is None else data[: width * HASH_SIZE]

    reader = TileReader(fetch, tree.size)
    registrations = []
    for index, prepared in enumerate(accepted.prepared, start=tree.size - len(accepted.prepared)):
        receipt = receipts.issue_receipt(
            origin=log.origin,
            subject=prepared.statement.subject,
            registered_s=now_s,
            tree_size=tree.size,
            leaf_index=index,
            path=reader.inclusion_path(index),
            root=tree.root,
            key=log.key,
        )
        registrations.append(Registration(index, prepared.leaf_hash, tree.size, receipt, fresh=True))
    return registrations


def _write_statements(
    connection: Connection,
    first: int,
    group: list[Prepared],
    registrations: list[Registration],
    now_s: int,
) -> None:
    rows: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    for index, (prepared, registration) in enumerate(zip(group, registrations, strict=True), start=first):
        statement, payload = prepared.statement, prepared.statement.payload
        batch = payload if isinstance(payload, Batch) else None
        rows.append(
            {
                "leaf_index": index,
                "leaf_hash": prepared.leaf_hash,
                "kind": statement.kind,
                "issuer": statement.issuer,
                "seq": payload.seq,
                "entry": statement.entry,
                "tree_size": registration.tree_size,
                "registered_s": now_s,
                "receipt_signature": receipts.decode_receipt(registration.receipt).message.signature,
                "record_count": batch.count if batch else 0,
                "first_us": batch.first_us if batch else None,
                "last_us": batch.last_us if batch else None,
                "records_sha256": prepared.records.block_sha256 if prepared.records else None,
                "records": prepared.records.block if prepared.records else None,
            }
        )
        if prepared.records:
            slices += [
                {"leaf_index": index, "tenant": tenant, "deployment": deployment, "records": count}
                for (tenant, deployment), count in prepared.records.slices.items()
            ]
    connection.execute(insert(table(StatementRow)), rows)
    if slices:
        connection.execute(insert(table(BatchSlice)), slices)


def _write_tiles(connection: Connection, tip: Tip, changed: dict[tuple[int, int], bytes]) -> None:
    tiles = table(Tile)
    old = {(level, full) for level, full, width in tile_widths(tip.size) if width}
    grown = [
        {"at": level, "no": i, "hashes": data} for (level, i), data in changed.items() if (level, i) in old
    ]
    new = [
        {"level": level, "idx": i, "hashes": data}
        for (level, i), data in changed.items()
        if (level, i) not in old
    ]
    if grown:
        where = (tiles.c.level == bindparam("at"), tiles.c.idx == bindparam("no"))
        connection.execute(update(tiles).where(*where), grown)
    if new:
        connection.execute(insert(tiles), new)


def _write_sums(connection: Connection, group: list[Prepared]) -> None:
    added: dict[tuple[int, str, str], list[int]] = {}
    for prepared in group:
        if prepared.records is None:
            continue
        for key, sums in prepared.records.rollups.items():
            before = added.get(key)
            added[key] = sums if before is None else [a + b for a, b in zip(before, sums, strict=True)]
    if not added:
        return
    rollups = table(Rollup)
    key_columns = tuple_(rollups.c.hour, rollups.c.tenant, rollups.c.deployment)
    keys = list(added)
    present: dict[tuple[int, str, str], Any] = {}
    for start in range(0, len(keys), 300):  # three variables each: stay below SQLite's 999
        found = connection.execute(select(rollups).where(key_columns.in_(keys[start : start + 300])))
        present |= {(row.hour, row.tenant, row.deployment): row for row in found}
    fresh, grown = [], []
    for key, sums in added.items():
        row = present.get(key)
        if row is None:
            fresh.append(
                {
                    "hour": key[0],
                    "tenant": key[1],
                    "deployment": key[2],
                    **dict(zip(ROLLUP_SUMS, sums, strict=True)),
                }
            )
        else:
            totals = {name: row._mapping[name] + value for name, value in zip(ROLLUP_SUMS, sums, strict=True)}
            grown.append({"h": key[0], "t": key[1], "d": key[2], **totals})
    if grown:
        where = (
            rollups.c.hour == bindparam("h"),
            rollups.c.tenant == bindparam("t"),
            rollups.c.deployment == bindparam("d"),
        )
        connection.execute(update(rollups).where(*where), grown)
    if fresh:
        connection.execute(insert(rollups), fresh)
