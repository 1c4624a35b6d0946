"""Owns mending a chain that cannot go on: what waits is signed anew, onto where the ledger stands.

Three things make that necessary: a statement that waits was damaged or deleted, and no later one can be
logged without it; what waits is signed by a key that was revoked; or the spool is older than the ledger,
because a back-up was restored. Each statement keeps its content. In place of one that is lost stands a
heartbeat that counts its records as dropped, or, if it published a document, the same document again.

Only statements that the ledger does not have may be signed anew, so the caller asks it first.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from ledger import zstd
from ledger.core import cose
from ledger.core.errors import CorruptError, RefusedError, UnavailableError
from ledger.core.keys import PrivateKey
from ledger.core.statements import Batch, Heartbeat, Payload, sign_statement
from ledger.emit._disk import replace_file
from ledger.emit.chain import Chain
from ledger.emit.seal import MAX_BLOCK_BYTES, wrap_records
from ledger.emit.spool import Spool
from ledger.emit.spooled import Spooled, decode_spooled, encode_spooled
from ledger.emit.tally import DELIVERED

__all__ = ["Place", "Rechained", "rechain"]

_log = logging.getLogger("tallystick.emit")

_NO_SESSION = "00" * 8
_MAX_BODY_BYTES = 2 * MAX_BLOCK_BYTES


@dataclass(frozen=True)
class Place:
    """Where the ledger says that the issuer's chain stands."""

    next_seq: int
    last_leaf: str | None


@dataclass(frozen=True)
class Rechained:
    """``signed`` statements were signed anew; ``lost`` records were counted as dropped."""

    signed: int
    lost: int


def rechain(
    spool: Spool, chain: Chain, key: PrivateKey, place: Place, *, assumed_lost: int | None = None
) -> Rechained:
    """Sign all that waits anew, from ``place`` on. Held meanwhile: the chain's lock and the right to send.

    One file after the other, so that a full disk has room for it. If it is cut off, doing it again goes on
    with it; until then nothing is sent, because the spool says that it is being mended.

    Args:
        spool: whose chain it is.
        chain: its end.
        key: in force at the ledger.
        place: what the ledger has; nothing from there on.
        assumed_lost: how many records to count for a damaged statement of which the tally knows nothing.

    Raises:
        RefusedError: how many records were lost is not known, or the ledger gave receipts for them. Nothing
            was changed.
        UnavailableError: the disk is full or fails.
    """
    waiting = spool.waiting()
    seqs: Sequence[int] = range(place.next_seq, chain.head.next_seq)  # with those that are missing
    moved = spool.is_moving()
    behind = chain.head.next_seq < place.next_seq or (waiting and waiting[0] < place.next_seq)
    _check_known(spool, waiting if behind else seqs, assumed_lost, moved=moved)
    try:
        if behind:  # the ledger is ahead: each seq changes
            seqs = range(place.next_seq, place.next_seq + len(waiting))
            moved = True
            _move(spool, chain, waiting, seqs)
        spool.begin_mending()
        done = _sign_anew(spool, chain, key, place, seqs, moved=moved)
        spool.end_mending()
    except OSError as error:
        raise UnavailableError(
            f"the spool cannot be mended: {error.strerror}",
            where=str(spool.directory),
            remedy="make room on its disk",
            code="spool-unavailable",
        ) from error
    if done.signed:
        _log.warning("%d statements were signed anew; %d records count as dropped", done.signed, done.lost)
    return done


def _check_known(spool: Spool, seqs: Sequence[int], assumed_lost: int | None, *, moved: bool) -> None:
    """See that it is known, and right to say, how many records go with each statement that is lost."""
    for seq in seqs:
        if _load(spool, seq, moved=moved) is not None:
            continue
        held = spool.lost_with(seq)
        if held == DELIVERED:
            raise RefusedError(
                f"the ledger gave a receipt for statement {seq}, and now does not have it",
                where=f"issuer {spool.issuer}",
                remedy="it lost or hides what it signed for: keep the spool and all receipts, and ask its "
                "operator; nothing was counted as dropped",
                code="ledger-behind",
            )
        if held is None and assumed_lost is None:
            raise RefusedError(
                f"statement {seq} is damaged, and how many records it held is not known",
                where=str(spool.directory),
                remedy="say so with `tallystick spool flush --assume-lost N`",
                code="spool-corrupt",
            )
        if held is None and assumed_lost is not None:
            spool.note_held(seq, assumed_lost)


def _move(spool: Spool, chain: Chain, olds: Sequence[int], seqs: Sequence[int]) -> None:
    """Give the files the numbers ``seqs``. Nothing is appended until all is done: see ``Spool.is_moving``."""
    spool.begin_mending(moving=True)
    chain.move_to(seqs[-1] + 1 if seqs else chain.head.next_seq, chain.head.last_leaf)
    pairs = list(zip(olds, seqs, strict=True))
    rising = [(old, new) for old, new in reversed(pairs) if new > old]  # the last first: none is overwritten
    for old, new in rising + [(old, new) for old, new in pairs if new < old]:
        if (held := spool.lost_with(old)) is not None:
            spool.note_held(new, held)
        spool.path_of(old).rename(spool.path_of(new))


def _sign_anew(
    spool: Spool, chain: Chain, key: PrivateKey, place: Place, seqs: Sequence[int], *, moved: bool
) -> Rechained:
    last_leaf, issued_us, signed, lost = place.last_leaf, 0, 0, 0
    for seq in seqs:
        prev = UNSET if last_leaf is None else last_leaf
        spooled = _load(spool, seq, moved=moved)
        if spooled is None:
            missing = spool.lost_with(seq) or 0
            lost += missing
            issued_us = issued_us or _issued_after(spool, seqs, seq, moved=moved)
            payload: Payload = Heartbeat(seq=seq, prev=prev, issued_us=issued_us, dropped=missing)
            body, session, settled = b"", _NO_SESSION, 0
            with contextlib.suppress(FileNotFoundError):
                spool.set_aside(spool.path_of(seq))
        else:
            payload, body = spooled.statement.payload, spooled.body
            session, settled = spooled.session, spooled.settled
            following = (payload.seq, payload.prev, spooled.statement.kid) == (seq, prev, key.public.kid)
            if following and _is_whole(spool.path_of(seq)):  # done before this was cut off
                last_leaf, issued_us = spooled.statement.leaf_hash.hex(), payload.issued_us
                continue
            fields: dict[str, Any] = {"seq": seq, "prev": prev}
            payload = msgspec.structs.replace(payload, **fields)
        statement = sign_statement(payload, issuer=spool.issuer, key=key)
        if isinstance(payload, Batch):
            body = wrap_records(statement, [_records(body, seq)])
        anew = Spooled(statement, body, session, settled)
        replace_file(spool.path_of(seq), encode_spooled(anew))
        spool.note_held(seq, anew.count + anew.told)
        spool.path_of(seq, kept=True).unlink(missing_ok=True)
        last_leaf, issued_us, signed = statement.leaf_hash.hex(), payload.issued_us, signed + 1
    chain.move_to(seqs[-1] + 1 if seqs else place.next_seq, last_leaf)
    return Rechained(signed, lost)


def _is_whole(path: Path) -> bool:
    try:
        decode_spooled(path.read_bytes(), where=path.name)
    except (FileNotFoundError, CorruptError):
        return False
    return True


def _load(spool: Spool, seq: int, *, moved: bool) -> Spooled | None:
    """The statement in the file ``seq``, or in another place; None if it is lost."""
    for kept in (False, True):  # a kept one was sent, but the ledger does not have it
        path = spool.path_of(seq, kept=kept)
        with contextlib.suppress(FileNotFoundError, CorruptError):
            spooled = decode_spooled(path.read_bytes(), where=path.name)
            if moved or spooled.statement.payload.seq == seq:
                return spooled
    return spool.document_at(seq)


def _records(body: bytes, seq: int) -> bytes:
    """The records' lines in the body of a batch."""
    plain = zstd.decompress_bounded(body, _MAX_BODY_BYTES)
    decoded = None if plain is None else cose.decode_cbor(plain, where=f"{seq}", max_bytes=_MAX_BODY_BYTES)
    if not (isinstance(decoded, list) and len(decoded) == 2 and isinstance(decoded[1], bytes)):
        raise CorruptError("the body of a batch does not decode", where=f"{seq}", code="spool-corrupt")
    return decoded[1]


def _issued_after(spool: Spool, seqs: Sequence[int], lost: int, *, moved: bool) -> int:
    """When the first statement after ``lost`` was signed, so that times do not step back; else now."""
    for seq in seqs:
        if seq > lost and (after := _load(spool, seq, moved=moved)) is not None:
            return after.statement.payload.issued_us
    return time.time_ns() // 1000
