"""Writing an accepted group: statements, tiles, sums, chains, checkpoint and head, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from ledger.core import receipts
from ledger.core.checkpoint import Checkpoint
from ledger.core.errors import CorruptError
from ledger.core.keys import Signer
from ledger.core.log_keys import sign_tree_head
from ledger.core.merkle import HASH_SIZE
from ledger.core.statements import Batch
from ledger.core.tiles import TILE_WIDTH, TileReader, append_tiles, tile_widths
from ledger.store import queries
from ledger.store._accept import Accepted
from ledger.store._sql import insert_rows, run, run_many
from ledger.store._tip import Tip
from ledger.store.prepare import Prepared
from ledger.store.tables import BatchSlice, CheckpointRow, Rollup, StatementRow, Tile

__all__ = ["Log", "Registration", "write_group"]

# SQLite takes 999 variables in every build; a roll-up key has three.
_KEYS_PER_QUERY = 300


@dataclass(frozen=True)
class Log:
    """The log's name and keys (Ed25519 or ML-DSA-44).

    ``key`` signs everything; those ``beside`` it, which it took over from, sign checkpoints too.
    """

    origin: str
    key: Signer
    beside: tuple[Signer, ...] = ()


@dataclass(frozen=True)
class Registration:
    """A logged statement. ``fresh`` is False for one that had been logged before."""

    leaf_index: int
    leaf_hash: bytes
    tree_size: int
    receipt: bytes
    fresh: bool


def write_group(
    connection: Connection, log: Log, tip: Tip, accepted: Accepted, now_s: int
) -> tuple[Tip, list[Registration], bytes]:
    """Write the group.

    Returns:
        The new tip, a registration for each accepted statement, and the signed checkpoint.

    Raises:
        CorruptError: somebody else moved the head behind the fence.
    """
    group = accepted.prepared
    hashes = [prepared.leaf_hash for prepared in group]
    compact = tip.range.copy()
    compact.extend(hashes)
    tree = Checkpoint(log.origin, compact.size, compact.root())
    changed = append_tiles(tip.size, hashes, tip.last_tiles)
    checkpoint = sign_tree_head(tree, (log.key, *log.beside), now_s)
    issued = _issue_receipts(connection, log, group, tree, changed, now_s)
    registrations = [registration for registration, _ in issued]
    _write_statements(connection, group, issued, now_s)
    _write_tiles(connection, tip, changed)
    _write_sums(connection, tip, group)
    chains = [(head.next_seq, head.last_leaf, name) for name, head in accepted.heads.items()]
    run_many(connection, "UPDATE issuer SET next_seq = ?, last_leaf = ? WHERE issuer = ?", chains)
    insert_rows(connection, CheckpointRow, [(tree.size, checkpoint.decode())])
    _move_head(connection, tip, tree, checkpoint)
    known = tip.known
    known.heads |= accepted.heads
    known.documents |= accepted.documents
    known.keys_in_force -= accepted.revoked
    known.bound()
    last = {
        level: data
        for (level, _), data in changed.items()  # indexes rise within a level: the last one wins
        if len(data) < TILE_WIDTH * HASH_SIZE
    }
    kept = {
        level: last.get(level, tip.last_tiles.get(level, b"")) for level, _, w in tile_widths(tree.size) if w
    }
    return Tip(tree.size, tree.root, compact, kept, known), registrations, checkpoint


def _move_head(connection: Connection, tip: Tip, tree: Checkpoint, checkpoint: bytes) -> None:
    sql = "UPDATE log_head SET size = ?, root = ?, checkpoint = ? WHERE id = 1 AND size = ?"
    moved = run(connection, sql, (tree.size, tree.root, checkpoint.decode(), tip.size))
    if moved.rowcount != 1:
        raise CorruptError(
            f"the log's head is not at size {tip.size} any more",
            where="log_head",
            remedy="another writer got past the fence; do not use this database without its lock",
            code="fence-lost",
        )


def _issue_receipts(
    connection: Connection,
    log: Log,
    group: list[Prepared],
    tree: Checkpoint,
    changed: dict[tuple[int, int], bytes],
    now_s: int,
) -> list[tuple[Registration, bytes]]:
    """A registration for each statement, and its receipt's signature, which is what is stored of it."""
    stored = queries.tile_fetcher(connection)

    def fetch(level: int, index: int, width: int) -> bytes:
        data = changed.get((level, index))
        return stored(level, index, width) if data is None else data[: width * HASH_SIZE]

    reader = TileReader(fetch, tree.size)
    issued = []
    for index, prepared in enumerate(group, start=tree.size - len(group)):
        receipt, signature = receipts.issue_receipt(
            origin=log.origin,
            subject=prepared.statement.subject,
            registered_s=now_s,
            tree_size=tree.size,
            leaf_index=index,
            path=reader.inclusion_path(index),
            root=tree.root,
            key=log.key,
        )
        registration = Registration(index, prepared.leaf_hash, tree.size, receipt, fresh=True)
        issued.append((registration, signature))
    return issued


def _write_statements(
    connection: Connection, group: list[Prepared], issued: list[tuple[Registration, bytes]], now_s: int
) -> None:
    rows: list[tuple[Any, ...]] = []
    slices: list[tuple[Any, ...]] = []
    for prepared, (registration, signature) in zip(group, issued, strict=True):
        statement, payload, records = prepared.statement, prepared.statement.payload, prepared.records
        summary: tuple[Any, ...] = (0, None, None)
        if isinstance(payload, Batch):
            summary = (payload.count, payload.first_us, payload.last_us)
        rows.append(
            (
                registration.leaf_index,
                prepared.leaf_hash,
                statement.kind,
                statement.issuer,
                payload.seq,
                statement.entry,
                registration.tree_size,
                now_s,
                signature,
                *summary,
                records.block_sha256 if records else None,
                records.block if records else None,
            )
        )
        if records:
            slices += [(registration.leaf_index, *key, count) for key, count in records.slices.items()]
    insert_rows(connection, StatementRow, rows)
    if slices:
        insert_rows(connection, BatchSlice, slices)


def _write_tiles(connection: Connection, tip: Tip, changed: dict[tuple[int, int], bytes]) -> None:
    old = {(level, full) for level, full, width in tile_widths(tip.size) if width}
    grown = [(data, *key) for key, data in changed.items() if key in old]
    new = [(*key, data) for key, data in changed.items() if key not in old]
    if grown:
        run_many(connection, "UPDATE tile SET hashes = ? WHERE level = ? AND idx = ?", grown)
    if new:
        insert_rows(connection, Tile, new)


def _write_sums(connection: Connection, tip: Tip, group: list[Prepared]) -> None:
    added: dict[tuple[int, str, str], list[int]] = {}
    for prepared in group:
        if prepared.records is not None:
            for key, sums in prepared.records.rollups.items():
                before = added.get(key)
                added[key] = sums if before is None else [a + b for a, b in zip(before, sums, strict=True)]
    if not added:
        return
    known = tip.known.rollups
    _read_sums(connection, known, [key for key in added if key not in known])
    fresh, grown = [], []
    for key, sums in added.items():
        before = known.get(key)
        total = sums if before is None else [a + b for a, b in zip(before, sums, strict=True)]
        known[key] = total
        text = msgspec.json.encode(total).decode()
        if before is None:
            fresh.append((*key, text))
        else:
            grown.append((text, *key))
    if grown:
        run_many(
            connection, "UPDATE rollup SET sums = ? WHERE hour = ? AND tenant = ? AND deployment = ?", grown
        )
    if fresh:
        insert_rows(connection, Rollup, fresh)


def _read_sums(
    connection: Connection, known: dict[tuple[int, str, str], list[int]], keys: list[tuple[int, str, str]]
) -> None:
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        some = keys[start : start + _KEYS_PER_QUERY]
        values = ", ".join(["(?, ?, ?)"] * len(some))
        sql = (
            "SELECT hour, tenant, deployment, sums FROM rollup "  # noqa: S608 - only marks are put in
            f"WHERE (hour, tenant, deployment) IN (VALUES {values})"
        )
        found = run(connection, sql, tuple(value for key in some for value in key))
        for hour, tenant, deployment, sums in found:
            known[hour, tenant, deployment] = msgspec.json.decode(sums, type=list[int])
