"""Owns what operators do to a spool beside the recorders: send it now, restore it, change its key."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.core.keys import PrivateKey, PublicKey, generate_key
from ledger.core.statements import check_issuer_id
from ledger.emit._disk import locked_file
from ledger.emit.client import Client
from ledger.emit.head import Head, create_head
from ledger.emit.rechain import rechain
from ledger.emit.sender import Delivery, LogIdentity, Sender, backoff_s, check_receipt, find_place
from ledger.emit.signing import SigningKey, install_key
from ledger.emit.spool import Spool
from ledger.emit.survey import read_head_of
from ledger.keyfiles import load_private_key, save_private_key

__all__ = [
    "Flushed",
    "Restored",
    "flush_spool",
    "open_existing",
    "restore_spool",
    "rotate_key",
    "signing_key_of",
    "wait_for_old_key",
]

_SHARED_S = 0.2
_LONGEST_S = 5.0


@dataclass(frozen=True)
class Flushed:
    """``sent`` statements left the spool, ``waiting`` are in it. ``problem`` says why, if any are.

    ``blocked``: sending again will not help until somebody acts.
    """

    sent: int
    waiting: int
    problem: str | None
    blocked: bool


@dataclass(frozen=True)
class Restored:
    """The chain goes on at ``next_seq``. ``signed_anew`` statements waited and were moved to there,
    ``delivered`` ones the ledger had already; ``lost`` records of damaged ones are counted as dropped.
    """

    issuer: str
    next_seq: int
    signed_anew: int
    delivered: int
    lost: int


def open_existing(directory: Path) -> Spool:
    """The spool in ``directory``, which must be there.

    Raises:
        InvalidError: there is none. CorruptError: its head does not verify.
    """
    read_head_of(directory)
    return Spool(directory)


def signing_key_of(directory: Path, path: Path | None) -> SigningKey | None:
    """The spool's signing key, or that in ``path``; None if there is none, and none is made."""
    if path is None and not (directory / "issuer.pem").exists():
        return None
    return SigningKey(path, directory)


def flush_spool(
    spool: Spool,
    client: Client,
    log: LogIdentity | None,
    key: SigningKey | None,
    *,
    timeout_s: float,
    assumed_lost: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Flushed:
    """Send what waits until nothing does, the ledger refuses, or ``timeout_s`` is over.

    Where another process sends from the same spool, wait for it.
    """
    sender = Sender(spool, client, log, None if key is None else key.current)
    sender.assumed_lost = assumed_lost
    deadline = time.monotonic() + timeout_s
    total = len(spool.waiting())
    sent = failures = 0
    problem: str | None = None
    delivered = 0

    def tell(_: Delivery) -> None:
        nonlocal delivered
        delivered += 1  # not counted in the folder, which may hold a million files
        if progress is not None:
            progress(min(delivered, total), total)

    sender.on_delivery(tell)
    while True:
        done = sender.run_pass(lambda: time.monotonic() > deadline)
        sent += done.sent
        delivered = max(0, total - done.waiting)
        if progress is not None:
            progress(delivered, total)
        problem = done.reason or (None if done.sent else problem)
        left_s = deadline - time.monotonic()
        if not done.waiting or done.blocked or left_s <= 0:
            return Flushed(sent, done.waiting, problem if done.waiting else None, done.blocked)
        failures = 0 if done.reason is None or done.sent else failures + 1
        pause_s = done.after_s if done.after_s is not None else backoff_s(failures)
        time.sleep(min(left_s, _SHARED_S if done.reason is None else pause_s))


def restore_spool(
    directory: Path,
    issuer: str | None,
    client: Client,
    log: LogIdentity,
    key: PrivateKey,
    *,
    assumed_lost: int | None = None,
) -> Restored:
    """Let ``directory`` go on with a chain whose spool, or whose head, was lost or is older than the ledger.

    No other spool may use the same issuer name: two would fork the chain.

    Raises:
        InvalidError: no issuer is known. RefusedError: the ledger does not know the issuer, or not this key.
        UnavailableError: the ledger does not answer.
    """
    try:
        known: Head | None = read_head_of(directory)
    except (InvalidError, CorruptError):
        known = None
    if known is None and issuer is None:
        raise InvalidError(
            "the spool does not say whose chain it held",
            where=str(directory),
            remedy="name the issuer with --issuer",
            code="bad-issuer-name",
        )
    name = check_issuer_id(issuer if known is None or issuer is not None else known.issuer)  # type: ignore[arg-type]
    place, kids = find_place(client, name)
    if key.public.kid.hex() not in kids:
        raise RefusedError(
            f"the ledger has no key {key.public.kid.hex()} in force for {name}",
            where=client.url,
            remedy="name the issuer's key file with --key, or register the key: `tallystick issuers add`",
            code="revoked-key",
        )
    if known is None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked_file(directory / "lock"):
            create_head(directory / "head", Head(issuer=name))
        (directory / "tally").unlink(missing_ok=True)
    spool = Spool(directory, name)
    with spool.sending() as mine:
        if not mine:
            raise UnavailableError(
                "a recorder is sending from this spool",
                where=str(directory),
                remedy="stop the recorders first",
                code="spool-unavailable",
            )
        delivered = sum(_had_by_ledger(spool, seq, client, log) for seq in spool.waiting())
        with spool.locked() as chain:
            waiting = spool.waiting()
            whole = chain.head.next_seq >= place.next_seq and waiting[:1] in ([], [place.next_seq])
            if whole and not spool.is_mending():
                return Restored(name, chain.head.next_seq, 0, delivered, 0)
            done = rechain(spool, chain, key, place, assumed_lost=assumed_lost)
            return Restored(name, chain.head.next_seq, done.signed, delivered, done.lost)


def _had_by_ledger(spool: Spool, seq: int, client: Client, log: LogIdentity) -> bool:
    """Whether the ledger has this very statement; it is removed from the spool then."""
    try:
        leaf = spool.load(seq).statement.leaf_hash
        reply = client.get(f"/entries/{leaf.hex()}")
        if reply.status != 200:
            return False
        check_receipt(reply.body, log, leaf, None)
    except UnavailableError:
        raise
    except (FileNotFoundError, TallystickError):
        return False
    spool.remove(seq)
    return True


def rotate_key(
    spool: Spool,
    path: Path,
    register: Callable[[PublicKey], object],
    *,
    algorithm: str = "ed25519",
    new: PrivateKey | None = None,
) -> tuple[PublicKey, PublicKey]:
    """Make a new signing key, have it registered, and put it into place between two statements.

    Done again after a failure, it goes on with the key that it had made. Every recorder that reads ``path``
    signs with the new key from its next statement on.

    Returns:
        The old and the new public key.
    """
    old = load_private_key(path).public
    staged = path.with_name(path.name + ".next")
    if new is None:
        if not staged.exists():
            save_private_key(staged, generate_key(algorithm))
        new = load_private_key(staged)
    register(new.public)
    install_key(spool, path, new)
    staged.unlink(missing_ok=True)
    return old, new.public


def wait_for_old_key(
    spool: Spool, kid: bytes, *, timeout_s: float, progress: Callable[[int, int], None] | None = None
) -> None:
    """Wait until no statement that the key ``kid`` signed waits any more, so that it can be revoked.

    Raises:
        UnavailableError: some still wait after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    total = 0
    while True:
        begun = time.monotonic()
        count = 0
        for seq in (*spool.kept(), *spool.waiting()):
            try:
                kept = not spool.path_of(seq).exists()
                count += spool.load(seq, kept=kept).statement.kid == kid
            except (FileNotFoundError, CorruptError):
                continue
        total = max(total, count)
        if progress is not None:
            progress(total - count, total)
        if not count:
            return
        now = time.monotonic()
        if now > deadline:
            raise UnavailableError(
                f"{count} statements that the old key signed still wait in the spool",
                where=str(spool.directory),
                remedy="send them (`tallystick spool flush`), then `tallystick issuers revoke`",
                code="spool-waiting",
            )
        # Most of the time goes into waiting, not into looking.
        time.sleep(min(max(_SHARED_S, 4 * (now - begun)), max(_SHARED_S, deadline - now), _LONGEST_S))
