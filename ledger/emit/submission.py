"""Owns statements that somebody makes by hand: evaluations, corrections, acknowledgements.

They go through a spool like everything that an issuer says, so that its chain has no gap, nothing is lost
when the ledger is down, and recorders that share the spool may run meanwhile. What was said is noted in the
spool before it is appended, by a digest of its content: saying it again changes nothing and gives the same
receipt, also after a crash in between.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import UNSET

from ledger.core.canonical import encode_canonical
from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.core.statements import Acknowledgement, Correction, Evaluation, SignedStatement, sign_statement
from ledger.emit._disk import append_file
from ledger.emit.sender import Delivery, LogIdentity, Sender, backoff_s, check_receipt
from ledger.emit.signing import SigningKey

if TYPE_CHECKING:
    from ledger.emit.chain import Chain
    from ledger.emit.client import Client
    from ledger.emit.spool import Spool

__all__ = ["UNPLACED", "Content", "Submitted", "content_digest", "submit"]

Content: TypeAlias = Evaluation | Correction | Acknowledgement
"""What can be submitted. Its place in the chain is given when it is signed."""

UNPLACED: dict[str, Any] = {"seq": 0, "issued_us": 0}
"""The chain's fields of a content that has no place yet."""

MAX_CONTENTS = 100_000
"""Statements submitted at once: some two minutes of a disk's flushes."""
_NO_SESSION = "00" * 8
_SHARED_S = 0.1


@dataclass(frozen=True)
class Submitted:
    """A statement that the log has.

    Attributes:
        content: what was said.
        leaf_hash: the statement's leaf hash, hex.
        leaf_index: where the log has it.
        receipt: the log's receipt, verified.
        is_new: False if it had been said before.
    """

    content: Content
    leaf_hash: str
    leaf_index: int
    receipt: bytes
    is_new: bool


def content_digest(content: Content) -> str:
    """What tells two contents apart: SHA-256 of the canonical bytes without the place in the chain, hex."""
    bare = msgspec.structs.replace(content, prev=UNSET, **UNPLACED)
    return hashlib.sha256(encode_canonical(bare)).hexdigest()


def submit(
    spool: Spool,
    key: SigningKey,
    contents: Sequence[Content],
    client: Client,
    log: LogIdentity,
    *,
    timeout_s: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Submitted]:
    """Sign ``contents`` into the spool's chain, send them, and check their receipts.

    Nothing is signed unless all of them are sound. After a failure, do it again: what was said is not said
    twice.

    Args:
        spool: of the issuer who says it.
        key: signs; the ledger must know it for this issuer.
        contents: what to say, each with ``UNPLACED``; the same content twice is said once.
        client: the ledger, with an API key of scope ``emit``.
        log: which log it must be.
        timeout_s: how long to try.
        progress: called with (statements that the log has, all).

    Returns:
        One for each different content, in the order given.

    Raises:
        InvalidError: a content is not sound, or there are too many.
        RefusedError: the ledger refuses; what was signed waits in the spool until somebody acts.
        UnavailableError: it does not answer in time; what was signed waits.
    """
    if len(contents) > MAX_CONTENTS:
        raise InvalidError(
            f"{len(contents):,} statements at once are more than {MAX_CONTENTS:,}",
            remedy="submit them in parts",
            code="too-large",
        )
    wanted = {content_digest(each): each for each in contents}
    for number, each in enumerate(wanted.values()):
        _check(each, spool.issuer, key, number)
    said = _read(spool)
    found: dict[str, Submitted] = {}
    waiting = set(_waiting(spool))
    for digest, content in wanted.items():
        if digest in said and digest not in waiting:  # delivered, or a crash came before it was appended
            known = _ask(client, log, content, said[digest], is_new=False)
            if known is None:
                del said[digest]
            else:
                found[digest] = known
    missing = {digest: each for digest, each in wanted.items() if digest not in said}
    with spool.locked() as chain:
        for digest, content in missing.items():
            said[digest] = _append(spool, chain, key, digest, content)
    _deliver(
        spool, key, client, log, wanted, said, found, fresh=missing.keys(), limit_s=timeout_s, tell=progress
    )
    return [found[digest] for digest in wanted]


def _check(content: Content, issuer: str, key: SigningKey, number: int) -> None:
    try:
        sign_statement(content, issuer=issuer, key=key.current())
    except TallystickError as error:
        raise InvalidError(
            error.what, where=f"number {number + 1}", remedy=error.remedy, code=error.code
        ) from None


def _append(spool: Spool, chain: Chain, key: SigningKey, digest: str, content: Content) -> str:
    from ledger.emit.spooled import Spooled

    head = chain.head
    placed = msgspec.structs.replace(
        content,
        seq=head.next_seq,
        prev=UNSET if head.last_leaf is None else head.last_leaf,
        issued_us=max(time.time_ns() // 1000, head.issued_us),
    )
    statement = sign_statement(placed, issuer=spool.issuer, key=key.current())
    leaf = statement.leaf_hash.hex()
    append_file(spool.directory / _SAID, f"{digest} {leaf}\n".encode())
    chain.append(Spooled(statement, b"", _NO_SESSION, 0))
    return leaf


def _deliver(
    spool: Spool,
    key: SigningKey,
    client: Client,
    log: LogIdentity,
    wanted: dict[str, Content],
    said: dict[str, str],
    found: dict[str, Submitted],
    *,
    fresh: Iterable[str],
    limit_s: float,
    tell: Callable[[int, int], None] | None,
) -> None:
    """Send until the log has each of ``wanted``, adding to ``found``."""
    new = set(fresh)

    def delivered(delivery: Delivery) -> None:
        content = delivery.spooled.statement.payload
        if delivery.receipt is None or not isinstance(content, Evaluation | Correction | Acknowledgement):
            return
        digest = content_digest(content)
        if digest in wanted and delivery.leaf_index is not None:
            leaf = delivery.spooled.statement.leaf_hash.hex()
            if said.get(digest) != leaf:  # signed anew, because the chain had to be mended
                append_file(spool.directory / _SAID, f"{digest} {leaf}\n".encode())
            found[digest] = Submitted(
                wanted[digest], leaf, delivery.leaf_index, delivery.receipt, digest in new
            )
        if tell is not None:
            tell(len(found), len(wanted))

    sender = Sender(spool, client, log, key.current)
    sender.on_delivery(delivered)
    deadline = time.monotonic() + limit_s
    failures = 0
    while len(found) < len(wanted):
        done = sender.run_pass(lambda: time.monotonic() > deadline)
        waiting = set(_waiting(spool))
        for digest, content in wanted.items():
            if digest not in found and digest not in waiting:  # a recorder's own sender was faster
                known = _ask(client, log, content, said[digest], is_new=digest in new)
                if known is None:
                    raise CorruptError(
                        f"statement {said[digest]} left the spool, but the ledger does not have it",
                        where=client.url,
                        remedy="keep the spool; look at it with `tallystick spool inspect`, and ask the "
                        "ledger's operator",
                        code="ledger-behind",
                    )
                found[digest] = known
        if len(found) == len(wanted):
            break
        left = len(wanted) - len(found)
        if done.blocked:
            raise RefusedError(
                f"{left} statements wait in the spool: {done.reason}",
                where=str(spool.directory),
                remedy="act on that, then run it again: nothing is said twice",
                code="refused",
            )
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{left} statements wait in the spool: {done.reason or 'the time is over'}",
                where=str(spool.directory),
                remedy="run it again later, or `tallystick spool flush`: nothing is said twice",
                code="not-logged",
            )
        failures = 0 if done.reason is None or done.sent else failures + 1
        pause_s = done.after_s if done.after_s is not None else backoff_s(failures)
        time.sleep(max(0.0, min(deadline - time.monotonic(), _SHARED_S if done.reason is None else pause_s)))


def _ask(client: Client, log: LogIdentity, content: Content, leaf: str, *, is_new: bool) -> Submitted | None:
    """What the ledger has of a statement; None if it has it not.

    Raises:
        UnavailableError: it does not answer. RefusedError: it does not say.
    """
    reply = client.get(f"/entries/{leaf}")
    if reply.status == 404:
        return None
    if reply.status != 200:
        raise RefusedError(
            f"the ledger answered {reply.status} when asked for a receipt",
            where=client.url,
            remedy="use an API key of scope emit",
            code="refused",
        )
    receipt = check_receipt(reply.body, log, bytes.fromhex(leaf), None)
    return Submitted(content, leaf, receipt.leaf_index, reply.body, is_new)


def _waiting(spool: Spool) -> Iterable[str]:
    """Digests of the contents that wait in the spool."""
    for seq in spool.waiting():
        try:
            payload = _statement(spool, seq).payload
        except (FileNotFoundError, CorruptError):
            continue
        if isinstance(payload, Evaluation | Correction | Acknowledgement):
            yield content_digest(payload)


def _statement(spool: Spool, seq: int) -> SignedStatement:
    return spool.load(seq).statement


_SAID = "said"
"""File of the spool: one line for each content, its digest and its statement's leaf hash. Later lines win."""
_LINE_BYTES = 2 * 64 + 1


def _read(spool: Spool) -> dict[str, str]:
    try:
        lines = (spool.directory / _SAID).read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    whole = [line.decode("ascii", "replace") for line in lines if len(line) == _LINE_BYTES]
    return {line[:64]: line[65:] for line in whole}
