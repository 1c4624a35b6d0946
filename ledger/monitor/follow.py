"""Follows one log: each round fetches its checkpoint, and checks that it extends all that was seen before.

Three depths. ``tree``: the checkpoint is the log's, and the tree only grew (proved from tiles). ``entries``:
besides, every new entry is read: they hash to the checkpoint's root, statements are signed by keys that the
log named, and issuers' chains have no gap. ``records``: besides, the records of every new batch are what the
statement commits to; that needs an API key of scope read. With a policy, a quorum of witnesses must have
cosigned, and witnesses that have an address are asked whether they saw another history.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from ledger import http_call
from ledger.audit.batches import check_root
from ledger.audit.leaves import Document, LeafAudit
from ledger.audit.report import Findings
from ledger.audit.sources import Leaf
from ledger.core import cose
from ledger.core.chain import ChainHead
from ledger.core.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint_text
from ledger.core.errors import CorruptError, InvalidError, TallystickError, UnavailableError
from ledger.core.keys import parse_cose_key
from ledger.core.log_keys import public_of_log_key
from ledger.core.merkle import CompactRange, leaf_hash, verify_consistency
from ledger.core.note import MAX_NOTE_BYTES, VerifierKey, parse_note
from ledger.core.policy import Policy, cosigned_by
from ledger.core.records import MAX_RECORD_BYTES
from ledger.core.statements import Batch
from ledger.core.tiles import (
    MAX_ENTRY,
    TILE_WIDTH,
    TileReader,
    decode_bundle,
    entries_path,
    tile_path,
)
from ledger.monitor.state import IssuerState, KeyState, LogState, keep_evidence
from ledger.witness.ask import WitnessClient

__all__ = ["Alarm", "Depth", "Followed", "Round", "follow"]

Depth = Literal["tree", "entries", "records"]
_CONNECT_S, _READ_S, _TOTAL_S = 10.0, 30.0, 120.0
_PROBLEM_BYTES = 4_096
_MAX_FINDINGS = 20


@dataclass(frozen=True)
class Alarm:
    """Something that a person has to look at. ``code`` is stable; ``grave``: the log contradicts itself."""

    code: str
    what: str
    where: str
    grave: bool


@dataclass(frozen=True)
class Followed:
    """One log to follow.

    Args:
        url: its base address.
        keys: all verifier keys that it has had.
        api_key: of scope read, for the depth ``records``, and for logs that are not public.
        policy: which witnesses must have cosigned.
        witnesses: to be asked what they saw.
        max_age_s: how old the newest cosignature may be, or the last growth without a policy; 0 for any.
    """

    url: str
    keys: tuple[VerifierKey, ...]
    depth: Depth = "entries"
    api_key: str | None = None
    policy: Policy | None = None
    witnesses: tuple[WitnessClient, ...] = ()
    max_age_s: int = 0

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.keys[0].name


@dataclass
class Round:
    """What one round found. ``state`` is what to remember; it does not move past what is in doubt."""

    state: LogState
    alarms: list[Alarm] = field(default_factory=list)
    size: int = 0
    entries: int = 0
    records: int = 0
    seconds: float = 0.0


def follow(log: Followed, state: LogState, folder: Path, *, now_s: int | None = None) -> Round:
    """Make one round. Never raises for what the log or a witness does: that is an alarm."""
    begun = time.monotonic()
    now_s = int(time.time()) if now_s is None else now_s
    found = Round(state, size=state.seen)
    try:
        with _Session(log) as session:
            _follow(log, session, state, folder, now_s, found)
    except CorruptError as error:
        found.alarms.append(_alarm(error, grave=True))
    except TallystickError as error:
        found.alarms.append(_alarm(error, grave=False))
    found.seconds = time.monotonic() - begun
    return found


def _follow(
    log: Followed, session: _Session, state: LogState, folder: Path, now_s: int, found: Round
) -> None:
    note = session.get("/checkpoint", MAX_NOTE_BYTES)
    try:
        newest = open_checkpoint(note, log.keys)
    except (CorruptError, InvalidError) as error:
        raise CorruptError(
            f"its checkpoint does not verify: {error.what}", where=log.url, code="bad-checkpoint"
        ) from None
    found.size = newest.size
    last = parse_checkpoint_text(parse_note(state.note.encode()).text) if state.note else None
    if last is not None:
        _check_growth(log, session, last, newest, state.note.encode(), note, folder)
    _check_policy(log, note, newest, now_s, found)
    _check_witnesses(log, session, newest, note, folder, found)
    changed_s = now_s if last is None or newest.size > last.size else state.changed_s
    if log.max_age_s and log.policy is None and now_s - changed_s > log.max_age_s:
        age_s = now_s - changed_s
        found.alarms.append(Alarm("stale", f"the log did not grow for {age_s} s", log.url, grave=False))
    kept = msgspec.structs.replace(state, seen=newest.size, note=note.decode(), changed_s=changed_s)
    if log.depth != "tree":
        kept = _read_entries(log, session, kept, newest, found)
    found.state = kept


def _check_growth(
    log: Followed,
    session: _Session,
    last: Checkpoint,
    newest: Checkpoint,
    old_note: bytes,
    new_note: bytes,
    folder: Path,
) -> None:
    """Check that the newest tree extends the last one.

    Raises:
        CorruptError: ``log-rolled-back`` or ``forked``; both checkpoints are kept.
    """
    if newest.size < last.size:
        path = keep_evidence(folder, log.origin, old_note, new_note)
        raise CorruptError(
            f"it serves a tree of {newest.size} leaves, but signed one of {last.size} before",
            where=str(path),
            code="log-rolled-back",
        )
    try:
        if last.size in (0, newest.size):
            verify_consistency(last.size, newest.size, last.root, newest.root, ())
        else:
            path_hashes = session.tiles(newest.size).consistency_path(last.size)
            verify_consistency(last.size, newest.size, last.root, newest.root, path_hashes)
    except CorruptError:
        path = keep_evidence(folder, log.origin, old_note, new_note)
        raise CorruptError(
            f"its tree of {newest.size} leaves does not extend the one of {last.size} that it signed before",
            where=str(path),
            code="forked",
        ) from None


def _check_policy(log: Followed, note: bytes, newest: Checkpoint, now_s: int, found: Round) -> None:
    if log.policy is None:
        return
    try:
        cosigned = cosigned_by(parse_note(note), log.policy)
    except TallystickError as error:
        raise CorruptError(error.what, where=error.where, code="bad-checkpoint") from None
    if not log.policy.satisfied_by(cosigned):
        what = f"{len(cosigned)} witnesses cosigned the tree of {newest.size} leaves, which is no quorum"
        found.alarms.append(Alarm("quorum-missed", what, log.url, grave=False))
    elif log.max_age_s and cosigned and now_s - max(cosigned.values()) > log.max_age_s:
        age_s = now_s - max(cosigned.values())
        what = f"the newest cosignature is {age_s} s old: the log may show us a stale tree"
        found.alarms.append(Alarm("stale", what, log.url, grave=False))


def _check_witnesses(
    log: Followed, session: _Session, newest: Checkpoint, note: bytes, folder: Path, found: Round
) -> None:
    """Ask the witnesses what they saw, and check that it is the same history."""
    for client in log.witnesses:
        try:
            seen = client.latest(log.origin, log.keys)
        except TallystickError as error:
            found.alarms.append(_alarm(error, grave=False))
            continue
        if seen is None:
            continue
        checkpoint, cosigned = seen
        size = max(checkpoint.size, newest.size)
        try:
            if checkpoint.size > newest.size:  # the log goes on, or shows us less than it shows the witness
                grown = open_checkpoint(session.get("/checkpoint", MAX_NOTE_BYTES), log.keys)
                if grown.size < checkpoint.size and log.policy is None:
                    path = keep_evidence(folder, log.origin, cosigned, note)
                    raise CorruptError(
                        f"the witness {client.name} cosigned {checkpoint.size} leaves, but the log serves us "
                        f"{grown.size}",
                        where=str(path),
                        code="log-rolled-back",
                    )
                if grown.size < checkpoint.size:
                    continue  # it publishes once a quorum has cosigned
                size = grown.size
                tree, root = session.tiles(size), grown.root
            else:
                tree, root = session.tiles(size), newest.root
            proof = tree.consistency_path(checkpoint.size) if 0 < checkpoint.size < size else []
            verify_consistency(checkpoint.size, size, checkpoint.root, root, proof)
        except CorruptError as error:
            if error.code == "log-rolled-back":
                raise
            path = keep_evidence(folder, log.origin, cosigned, note)
            raise CorruptError(
                f"the witness {client.name} saw another history of {checkpoint.size} leaves",
                where=str(path),
                code="forked",
            ) from None


# --- entries ------------------------------------------------------------------------------------------------


class _NoRoots:
    """Receipts are not followed: what they prove, the tree proves too."""

    size = 0

    def when(self, size: int, verify: Callable[[bytes], None]) -> bool:  # noqa: ARG002
        return True


def _read_entries(
    log: Followed, session: _Session, state: LogState, newest: Checkpoint, found: Round
) -> LogState:
    """Read every entry that is new; the state with what they established."""
    findings = Findings(_MAX_FINDINGS)
    leaves = _restore(log, state, findings)
    tree = CompactRange(state.size, [bytes.fromhex(each) for each in state.hashes])
    index = state.size
    while index < newest.size:
        first = index // TILE_WIDTH * TILE_WIDTH
        width = min(TILE_WIDTH, newest.size - first)
        path = entries_path(first // TILE_WIDTH, width)
        try:
            entries = decode_bundle(session.get(f"/{path}", width * (MAX_ENTRY + 2)), width)
        except InvalidError as error:
            raise CorruptError(error.what, where=path, code="bad-entries") from None
        for entry in entries[index - first :]:
            tree.append(leaf_hash(entry))
            _check_entry(log, session, leaves, index, entry, findings, found)
            index += 1
    if (tree.size, tree.root()) != (newest.size, newest.root):
        raise CorruptError(
            f"the entries do not hash to the root of the checkpoint of {newest.size} leaves",
            where=log.url,
            code="bad-entries",
        )
    found.alarms += [Alarm(each.code, each.what, each.where, grave=True) for each in findings.kept]
    return _kept(state, leaves, tree)


def _check_entry(
    log: Followed,
    session: _Session,
    leaves: LeafAudit,
    index: int,
    entry: bytes,
    findings: Findings,
    found: Round,
) -> None:
    found.entries += 1
    leaf = Leaf(index, entry)
    statement = leaves.read(leaf)
    if statement is None:
        return
    leaves.check_receipt(leaf, statement)  # which learns of the log's own keys
    leaves.check(leaf, statement, statement.leaf_hash)
    if not isinstance(statement.payload, Batch):
        return
    leaves.check_documents(statement.payload, f"entry {index}")
    if log.depth == "records":
        limit = statement.payload.count * (MAX_RECORD_BYTES + 1)
        try:
            lines = session.get(f"/entries/{index}/records", limit)
        except UnavailableError as error:
            found.alarms.append(_alarm(error, grave=False))
            return
        check_root(lines, statement.payload, f"records of entry {index}", findings)
        found.records += statement.payload.count


def _restore(log: Followed, state: LogState, findings: Findings) -> LeafAudit:
    publics = [public_of_log_key(key) for key in log.keys]
    leaves = LeafAudit(
        publics, log.origin, _NoRoots(), findings, None, lambda index, _column: f"entry {index}"
    )
    leaves.restore(
        keys={
            bytes.fromhex(kid): (
                each.issuer,
                parse_cose_key(cose.decode_cbor(bytes.fromhex(each.key), where="key")),
                bytes.fromhex(each.key),
                each.added_leaf,
                each.revoked_leaf,
                each.named,
            )
            for kid, each in state.keys.items()
        },
        heads={
            name: ChainHead(each.next_seq, None if each.last_leaf is None else bytes.fromhex(each.last_leaf))
            for name, each in state.issuers.items()
        },
        own=[(leaf, bytes.fromhex(kid)) for leaf, kid in state.own],
        documents={digest: Document(kind, 0, b"", None, None) for digest, kind in state.documents},
    )
    return leaves


def _kept(state: LogState, leaves: LeafAudit, tree: CompactRange) -> LogState:
    return msgspec.structs.replace(
        state,
        size=tree.size,
        hashes=tuple(each.hex() for each in tree.hashes),
        issuers={
            name: IssuerState(head.next_seq, None if head.last_leaf is None else head.last_leaf.hex())
            for name, head in leaves.heads.items()
        },
        keys={
            kid.hex(): KeyState(
                each.issuer, each.encoded.hex(), each.added_leaf, each.revoked_leaf, each.named
            )
            for kid, each in leaves.keys.items()
        },
        own=tuple((leaf, key.kid.hex()) for leaf, key in leaves.own),
        documents=tuple((digest, each.kind) for digest, each in leaves.documents.items()),
    )


# --- requests -----------------------------------------------------------------------------------------------


class _Session:
    """Requests to one log during one round."""

    def __init__(self, log: Followed) -> None:
        self._log = log
        self._pool = http_call.open_pool(log.url)

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def get(self, path: str, limit: int) -> bytes:
        """The body of an answer with status 200.

        Raises:
            UnavailableError: anything else.
        """
        headers = {} if self._log.api_key is None else {"Authorization": f"Bearer {self._log.api_key}"}
        limits = http_call.Limits(_CONNECT_S, _READ_S, _TOTAL_S, limit, _PROBLEM_BYTES)
        try:
            answer = http_call.call(self._pool, "GET", self._log.url + path, limits, headers=headers)
        except ConnectionError as error:
            raise UnavailableError(
                f"the log cannot be reached: {error}", where=self._log.url, code="unreachable"
            ) from None
        if answer.status != 200:
            raise UnavailableError(
                f"the log answers {path} with status {answer.status}", where=self._log.url, code="not-given"
            )
        return answer.body

    def tiles(self, size: int) -> TileReader:
        """The tree of ``size`` leaves, as the log's tiles give it: to be believed as far as a root fits."""

        def fetch(level: int, index: int, width: int) -> bytes:
            data = self.get(f"/{tile_path(level, index, width)}", width * 32)
            if len(data) != width * 32:
                raise CorruptError("a tile has the wrong length", where=self._log.url, code="bad-entries")
            return data

        return TileReader(fetch, size)


def _alarm(error: TallystickError, *, grave: bool) -> Alarm:
    return Alarm(error.code, error.what, error.where, grave)
