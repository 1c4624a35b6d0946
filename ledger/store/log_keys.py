"""Owns the log's own keys: which is in force, handing over to another one, and freezing the log for good.

Each is a ``key`` statement of the log about itself. The old key signs that the new one takes over; from that
leaf on, receipts and the log's own statements are by the new one, and both sign checkpoints for as long as
the operator keeps the old one beside. Revoking the key in force without another one freezes the log: nothing
can be signed after that leaf, and it names the log that goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET
from sqlalchemy import Connection, select

from ledger.core.cose import encode_cbor
from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError
from ledger.core.keys import PublicKey, Signer
from ledger.core.log_keys import log_verifier_key
from ledger.core.note import VerifierKey
from ledger.core.statements import IssuerKey, check_issuer_id
from ledger.store import queries
from ledger.store._tip import load_tip
from ledger.store._transaction import OwnStatement, append_group
from ledger.store._write import Log, Registration
from ledger.store.engine import Store
from ledger.store.fence import lock_head
from ledger.store.queries import KeyInfo
from ledger.store.tables import IssuerKeyRow, table

__all__ = [
    "Frozen",
    "check_log_key",
    "freeze_log",
    "frozen",
    "key_change",
    "log_keys",
    "log_verifier_keys",
    "retire_log_key",
    "rotate_log_key",
]

_FROZEN = re.compile(r"log frozen(?:; continued by (\S+)(?: with the key ([0-9a-f]{64}))?)?")


@dataclass(frozen=True)
class Frozen:
    """A log that takes nothing any more. ``successor`` goes on; ``kid`` is that one's key, hex."""

    leaf_index: int
    successor: str | None = None
    kid: str | None = None


def log_keys(connection: Connection) -> list[KeyInfo]:
    """All keys that the log has had, the newest last."""
    rows = table(IssuerKeyRow)
    origin = queries.log_head(connection).origin
    query = select(rows.c.kid).where(rows.c.issuer == origin).order_by(rows.c.added_leaf)
    found = (queries.issuer_key(connection, bytes(kid)) for kid in connection.execute(query).scalars())
    return [each for each in found if each is not None]


def log_verifier_keys(connection: Connection) -> tuple[VerifierKey, ...]:
    """The verifier keys of ``log_keys``, the newest first: as they are published."""
    origin = queries.log_head(connection).origin
    return tuple(log_verifier_key(origin, each.public) for each in reversed(log_keys(connection)))


def frozen(connection: Connection) -> Frozen | None:
    """Whether and how the log was frozen; None if it was not."""
    keys = log_keys(connection)
    if not keys or keys[-1].revoked_leaf is None:
        return None
    leaf_index = keys[-1].revoked_leaf
    payload = queries.statement(connection, leaf_index).payload
    reason = payload.reason if isinstance(payload, IssuerKey) and payload.reason is not UNSET else ""
    match = _FROZEN.fullmatch(reason)
    return Frozen(leaf_index, *(match.groups() if match else (None, None)))


def check_log_key(connection: Connection, log: Log) -> None:
    """Check that ``log`` signs with the key in force.

    Raises:
        RefusedError: ``log-frozen``: no key is in force any more.
        CorruptError: ``other-log-key``: another one is.
    """
    end = frozen(connection)
    if end is not None:
        raise _frozen_error(log.origin, end)
    keys = log_keys(connection)
    if keys and keys[-1].kid != log.key.public.kid:
        raise CorruptError(
            f"the log's key in force is {keys[-1].kid.hex()}, not {log.key.public.kid.hex()}",
            where=log.origin,
            remedy="start the service with the key that leaf "
            f"{keys[-1].added_leaf} names (see `tallystick log-key show`)",
            code="other-log-key",
        )


def key_change(
    action: Literal["add", "rotate", "revoke"],
    issuer: str,
    key: PublicKey,
    reason: str | None = None,
    detail: str | None = None,
) -> Callable[[int, str | None], IssuerKey]:
    """What builds a ``key`` statement, from its place in the log's own chain."""
    encoded = UNSET if action == "revoke" else encode_cbor(key.to_cose_key()).hex()

    def build(seq: int, prev: str | None) -> IssuerKey:
        return IssuerKey(
            seq=seq,
            issued_us=time.time_ns() // 1000,
            prev=UNSET if prev is None else prev,
            action=action,
            issuer=issuer,
            kid=key.kid.hex(),
            key=encoded,
            reason=UNSET if reason is None else reason,
            detail=UNSET if detail is None else detail,
        )

    return build


def rotate_log_key(store: Store, old: Signer, new: Signer, *, reason: str | None = None) -> Registration:
    """Let ``new`` take over from ``old``, which signs that. The checkpoint of that leaf is signed by both.

    Services that run must be started again with the new key: they refuse to append with the old one.

    Raises:
        RefusedError: ``old`` is not in force, or ``new`` is in the log already.
    """
    log_verifier_key("log", new.public)
    with store.write() as connection:
        origin = _check_before(connection, old)
        change = key_change("rotate", origin, new.public, reason)
        return _append(connection, Log(origin, new, (old,)), OwnStatement(change, old))


def retire_log_key(store: Store, key: Signer, old: PublicKey, *, reason: str | None = None) -> Registration:
    """Log, signed by ``key``, that ``old`` signs nothing of this log from now on.

    Raises:
        RefusedError: ``key`` is not in force, or ``old`` is none of the log's other keys.
    """
    with store.write() as connection:
        origin = _check_before(connection, key)
        if old.kid == key.public.kid:
            raise InvalidError(
                "the key in force cannot be retired",
                where=origin,
                remedy="rotate it first, or freeze the log",
                code="unknown-key",
            )
        return _append(connection, Log(origin, key), OwnStatement(key_change("revoke", origin, old, reason)))


def freeze_log(
    store: Store,
    key: Signer,
    *,
    beside: Sequence[Signer] = (),
    successor: str | None = None,
    successor_key: PublicKey | None = None,
) -> Registration:
    """Append the log's last statement, which revokes its key and names the log that goes on, for good.

    Raises:
        RefusedError: ``key`` is not in force.
    """
    reason = "log frozen"
    if successor is not None:
        reason += f"; continued by {check_issuer_id(successor)}"
        if successor_key is not None:
            reason += f" with the key {successor_key.kid.hex()}"
    with store.write() as connection:
        origin = _check_before(connection, key)
        change = key_change("revoke", origin, key.public, reason)
        return _append(connection, Log(origin, key, tuple(beside)), OwnStatement(change))


def _check_before(connection: Connection, key: Signer) -> str:
    lock_head(connection)
    origin = queries.log_head(connection).origin
    check_log_key(connection, Log(origin, key))
    return origin


def _append(connection: Connection, log: Log, statement: OwnStatement) -> Registration:
    tip = load_tip(connection)
    _, [outcome], _ = append_group(connection, log, tip, [statement], now_s=int(time.time()))
    if isinstance(outcome, TallystickError):
        raise outcome
    return outcome


def _frozen_error(origin: str, end: Frozen) -> RefusedError:
    onwards = f"log with {end.successor}" if end.successor else "ask the log's operator where to log now"
    return RefusedError(
        f"the log was frozen at leaf {end.leaf_index}",
        where=origin,
        remedy=onwards,
        code="log-frozen",
    )
