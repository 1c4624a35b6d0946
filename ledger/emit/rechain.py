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
from typing import Any

import msgspec
from msgspec import UNSET

from ledger import zstd
from ledger.core import cose
from ledger.core.errors import CorruptError, RefusedError, UnavailableError
from ledger.core.keys import PrivateKey
from ledger.core.statements import Batch, Heartbeat, Payload, sign_statement
from ledger.emit._disk import replace_file
from ledger.emit.chain import NEW, Chain
from ledger.emit.seal import MAX_BLOCK_BYTES, wrap_records
from ledger.emit.spool import Spool
from ledger.emit.spooled import Spooled, encode_spooled
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

    Args:
        spool: whose chain it is.
        chain: its end.
        key: in force at the ledger.
        place: what the ledger has; nothing from there on.
        assumed_lost: how many records to count for a damaged statement of which the tally knows nothing.

    Raises:
        RefusedError: how many records were lost is not known, or the ledger gave receipts for them. Nothing
            was changed.
        UnavailableError: the disk is full. Nothing was changed.
    """
    waiting = spool.waiting()
    end = chain.head.next_seq
    if end >= place.next_seq and (not waiting or waiting[0] >= place.next_seq):
        olds: Sequence[int] = range(place.next_seq, end)  # with those that are missing
    else:
        olds = waiting  # the ledger is ahead: seq changes too
    last_leaf, issued_us, lost = place.last_leaf, 0, 0
    dropped = chain.head.dropped
    written = []
    held = []
    damaged = []
    try:
        for seq, old in enumerate(olds, place.next_seq):
            spooled = _load(spool, old)
            if spooled is None:
                damaged.append(spool.path_of(old))
                missing = spool.lost_with(old)
                if missing == DELIVERED:
                    raise RefusedError(
                        f"the ledger gave a receipt for statement {old}, and now does not have it",
                        where=f"issuer {spool.issuer}",
                        remedy="it lost or hides what it signed for: keep the spool and all receipts, and "
                        "ask its operator; nothing was counted as dropped",
                        code="ledger-behind",
                    )
                missing = assumed_lost if missing is None else missing
                if missing is None:
                    raise RefusedError(
                        f"statement {old} is damaged, and how many records it held is not known",
                        where=str(spool.directory),
                        remedy="say so with `tallystick spool flush --assume-lost N`",
                        code="spool-corrupt",
                    )
                lost += missing
                issued_us = issued_us or _issued_after(spool, olds, old)
                payload: Payload = Heartbeat(seq=seq, prev=UNSET, issued_us=issued_us, dropped=missing)
                body, session, settled = b"", _NO_SESSION, 0
            else:
                payload, body = spooled.statement.payload, spooled.body
                session, settled = spooled.session, spooled.settled
            fields: dict[str, Any] = {"seq": seq, "prev": UNSET if last_leaf is None else last_leaf}
            payload = msgspec.structs.replace(payload, **fields)
            statement = sign_statement(payload, issuer=spool.issuer, key=key)
            if isinstance(payload, Batch):
                body = wrap_records(statement, [_records(body, old)])
            path = spool.path_of(seq).with_suffix(NEW)
            written.append(path)
            anew = Spooled(statement, body, session, settled)
            replace_file(path, encode_spooled(anew))
            held.append((seq, anew.count + anew.told))
            last_leaf, issued_us = statement.leaf_hash.hex(), payload.issued_us
    except BaseException as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise UnavailableError(
                f"the spool cannot be mended: {error.strerror}",
                where=str(spool.directory),
                remedy="make room on its disk: what waits is written anew before the old goes",
                code="spool-unavailable",
            ) from error
        raise
    for path in damaged:
        with contextlib.suppress(FileNotFoundError):
            spool.set_aside(path)
    chain.swap(place.next_seq, place.next_seq + len(written), last_leaf, dropped)
    for seq, count in held:
        spool.note_held(seq, count)
        spool.path_of(seq, kept=True).unlink(missing_ok=True)
    _log.warning("%d statements were signed anew; %d records are counted as dropped", len(written), lost)
    return Rechained(len(written), lost)


def _load(spool: Spool, seq: int) -> Spooled | None:
    for kept in (False, True):  # a kept one was sent, but the ledger does not have it
        with contextlib.suppress(FileNotFoundError, CorruptError):
            return spool.load(seq, kept=kept)
    return spool.document_at(seq)


def _records(body: bytes, seq: int) -> bytes:
    """The records' lines in the body of a batch."""
    plain = zstd.decompress_bounded(body, _MAX_BODY_BYTES)
    decoded = None if plain is None else cose.decode_cbor(plain, where=f"{seq}", max_bytes=_MAX_BODY_BYTES)
    if not (isinstance(decoded, list) and len(decoded) == 2 and isinstance(decoded[1], bytes)):
        raise CorruptError("the body of a batch does not decode", where=f"{seq}", code="spool-corrupt")
    return decoded[1]


def _issued_after(spool: Spool, seqs: Sequence[int], lost: int) -> int:
    """When the first statement after ``lost`` was signed, so that times do not step back; else now."""
    for seq in seqs:
        if seq > lost and (after := _load(spool, seq)) is not None:
            return after.statement.payload.issued_us
    return time.time_ns() // 1000
