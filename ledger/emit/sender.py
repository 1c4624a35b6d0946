"""Owns sending: takes the spool's statements to the ledger, in order; lets go of each only for its receipt.

A statement is deleted when, and only when, a receipt came back that verifies: for this very statement, by the
log's key, from the log of the expected origin. Whatever else happens, the file stays. Where the chain cannot
go on, because a file was damaged or a key revoked, the sender has it mended (see ``rechain``).
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.core.keys import PrivateKey, PublicKey
from ledger.core.log_keys import parse_log_keys, public_of_log_key
from ledger.core.receipts import Receipt, decode_receipt, verify_receipt
from ledger.core.statements import Batch
from ledger.emit.client import Accepted, Client, Refused, Reply, Retry, judge
from ledger.emit.rechain import Place, rechain
from ledger.emit.spool import Spool
from ledger.emit.spooled import Spooled

__all__ = [
    "Delivery",
    "LogIdentity",
    "Pass",
    "Sender",
    "backoff_s",
    "check_receipt",
    "find_place",
    "parse_log_key",
    "read_log_key",
]

_log = logging.getLogger("tallystick.emit")

BATCH_TYPE = "application/vnd.tallystick.batch+cbor"
ENTRY_TYPE = "application/cose"
_DAMAGED = "spool-corrupt"
_NOT_FOUND = 404
KEPT_RECEIPTS = 1024
"""Receipts left for the other processes of a spool; they fetch theirs within seconds."""
_PURGE_EVERY = 64
_SETTLE_S = 3.0
"""Between the two looks at the ledger before a chain is mended: what a lost connection left behind in it is
logged, or gone, by then."""
_FIRST_DELAY_S = 0.5
_LAST_DELAY_S = 60.0


@dataclass(frozen=True)
class LogIdentity:
    """Which log receipts must come from."""

    origin: str
    key: PublicKey
    others: tuple[PublicKey, ...] = ()
    """Of a log that rotated its key: the keys that signed other receipts."""


@dataclass(frozen=True)
class Delivery:
    """A statement that is in the log, with its verified receipt (None: no log key to verify with)."""

    spooled: Spooled
    leaf_index: int | None
    receipt: bytes | None


@dataclass(frozen=True)
class Pass:
    """What one pass over the spool achieved.

    ``waiting`` statements are left. ``reason`` says why, if something is wrong; ``blocked`` that it will not
    mend itself; ``after_s`` that the ledger asked for this pause.
    """

    sent: int
    waiting: int
    reason: str | None = None
    blocked: bool = False
    after_s: float | None = None


def parse_log_key(vkey: str) -> LogIdentity:
    """The log's identity from the text of its verifier key, or of all that it has had, one a line.

    Raises:
        InvalidError: not the verifier key of a log.
    """
    keys = parse_log_keys(vkey)
    newest, *others = [public_of_log_key(key) for key in keys]
    return LogIdentity(keys[0].name, newest, tuple(others))


def read_log_key(given: str | Path | None) -> LogIdentity | None:
    """The log's identity from a verifier key text, or from a file with one; None if nothing is given.

    Raises:
        InvalidError: it is neither.
    """
    if not given:
        return None
    text = str(given)
    if "+" not in text or isinstance(given, Path):
        try:
            text = Path(given).read_text("utf-8")
        except (OSError, ValueError):
            raise InvalidError(
                f"log_key {text[:200]!r} is neither a verifier key nor a file with one",
                remedy="pass the text of the log's vkey file, <name>+<hex>+<base64>",
                code="bad-key",
            ) from None
    return parse_log_key(text)


def check_receipt(data: bytes, log: LogIdentity, leaf: bytes, subject: str | None) -> Receipt:
    """The receipt in ``data``, once it is shown that ``log`` gave it for the statement ``leaf``.

    Raises:
        InvalidError: malformed, by another log, or about something else. CorruptError: it does not verify.
    """
    receipt = decode_receipt(data)
    if receipt.origin != log.origin:
        raise InvalidError(
            f"comes from log {receipt.origin!r}, not from {log.origin!r}", where="receipt", code="other-log"
        )
    key = next((each for each in log.others if each.kid == receipt.kid), log.key)
    verify_receipt(receipt, leaf, key, subject=subject)
    return receipt


def backoff_s(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """How long to wait after ``failures`` in a row: doubling, half of it at random, so that a fleet that lost
    its ledger does not come back in step.
    """
    whole: float = min(_LAST_DELAY_S, _FIRST_DELAY_S * 2 ** min(failures, 16))
    return whole * (0.5 + 0.5 * jitter())


def find_place(client: Client, issuer: str) -> tuple[Place, frozenset[str]]:
    """Where the ledger says that the chain of ``issuer`` stands, and the thumbprints of its keys in force.

    Raises:
        RefusedError: it does not know the issuer, or does not say. UnavailableError: it does not answer.
    """
    reply = client.get(f"/issuers/{quote(issuer, safe='')}/keys")
    try:
        if reply.status == 200:
            found = json.loads(reply.body)
            place = Place(int(found["next_seq"]), found.get("last_leaf"))
            kids = frozenset(each["kid"] for each in found["keys"] if each.get("revoked_leaf") is None)
            if (place.last_leaf is None) == (place.next_seq == 0):
                return place, kids
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    if reply.status == _NOT_FOUND:
        raise RefusedError(
            f"the ledger does not know the issuer {issuer}",
            where=client.url,
            remedy="register it: `tallystick issuers add`",
            code="unknown-issuer",
        )
    verdict = judge(reply, now_s=time.time())
    raise RefusedError(
        f"the ledger does not say where the chain of {issuer} stands"
        + ("" if isinstance(verdict, Accepted) else f": {verdict.reason}"),
        where=client.url,
        remedy="register the issuer (`tallystick issuers add`); use an API key of scope emit or read",
        code="no-chain",
    )


class Sender:
    """Sends one spool to one ledger. Used by one thread at a time.

    Args:
        spool: where the statements wait.
        client: the ledger.
        log: which log it must be; None verifies nothing and therefore deletes nothing.
        key: the key that signs now, asked under the spool's lock; without it, chains are not mended.
    """

    def __init__(
        self,
        spool: Spool,
        client: Client,
        log: LogIdentity | None,
        key: Callable[[], PrivateKey] | None = None,
    ) -> None:
        self._spool = spool
        self._client = client
        self._log = log
        self._key = key
        self._handed_over = 0
        self._looked: tuple[float, Place] | None = None  # when the ledger was asked where the chain stands
        self.assumed_lost: int | None = None
        self._deliver: Callable[[Delivery], None] = lambda _: None
        self.session = ""  # this process's own, which needs no receipt left for it

    def on_delivery(self, deliver: Callable[[Delivery], None]) -> None:
        """Have ``deliver`` called with each delivery, in order, before it leaves the spool."""
        self._deliver = deliver

    def run_pass(self, stop: Callable[[], bool] = lambda: False) -> Pass:
        """Send what waits, until all is sent, something fails, or ``stop`` says so. Raises nothing."""
        sent = 0
        reason: str | None = None
        blocked = False
        after_s: float | None = None
        mine = False
        try:
            with self._spool.sending() as mine:
                if not mine:
                    return Pass(0, len(self._spool.waiting()))
                work = self._work()
                if work and self._spool.is_mending():
                    mended = self._mend(None, Refused("the chain is being mended"), kept=False)
                    blocked = isinstance(mended, Refused)
                    after_s = mended.after_s if isinstance(mended, Retry) else None
                    reason, work = mended.reason, []
                for seq, kept in work:
                    if stop():
                        return Pass(sent, self._count_waiting())
                    outcome = self._send(seq, kept=kept)
                    if isinstance(outcome, Delivery):
                        sent += 1
                        continue
                    if isinstance(outcome, Refused) and self._can_mend(seq, outcome, kept=kept):
                        outcome = self._mend(seq, outcome, kept=kept)
                    reason, blocked = outcome.reason, isinstance(outcome, Refused)
                    after_s = outcome.after_s if isinstance(outcome, Retry) else None
                    break
        except UnavailableError as error:
            reason = str(error)
        except TallystickError as error:
            reason, blocked = str(error), True
        except OSError as error:
            reason = f"the spool cannot be read: {error}"
        if mine:
            self._spool.note_problem(reason, blocked=blocked)
        return Pass(sent, self._count_waiting(), reason, blocked, after_s)

    def _count_waiting(self) -> int:
        try:
            return len(self._spool.waiting())
        except OSError:
            return 0

    def _work(self) -> list[tuple[int, bool]]:
        """What to send now, in order: (seq, whether it was sent before without a check of its receipt)."""
        with self._spool.locked() as chain:  # brings the head up to the files: only what it counts may go
            end = chain.head.next_seq
        kept = [] if self._log is None else [(seq, True) for seq in self._spool.kept()]
        return sorted(kept + [(seq, False) for seq in self._spool.waiting() if seq < end])

    def _send(self, seq: int, *, kept: bool) -> Delivery | Retry | Refused:
        try:
            spooled = self._spool.load(seq, kept=kept)
        except (FileNotFoundError, CorruptError) as error:
            return self._recover_receipt(seq, error, kept=kept)
        statement = spooled.statement
        if isinstance(statement.payload, Batch):
            reply = self._client.post("/batches", spooled.body, media_type=BATCH_TYPE, encoding="zstd")
        else:
            reply = self._client.post("/entries", statement.entry, media_type=ENTRY_TYPE)
        verdict = judge(reply, now_s=time.time())
        if not isinstance(verdict, Accepted):
            return verdict
        if self._log is None:
            delivery = Delivery(spooled, None, None)
            self._deliver(delivery)
            self._spool.keep(seq)
            return delivery
        try:
            receipt = check_receipt(verdict.receipt, self._log, statement.leaf_hash, statement.subject)
        except TallystickError as error:
            # Never proof of delivery. A broken proxy is as likely as a lying ledger, so it is tried again;
            # a receipt by another log needs somebody to set the right URL or key.
            reason = f"the ledger's receipt for statement {seq} does not verify: {error}"
            return Refused(reason) if error.code in ("other-key", "other-log") else Retry(reason)
        self._hand_over(spooled, verdict.receipt)
        # Told first: whoever waits for the spool to be empty may ask for the receipt at once.
        delivery = Delivery(spooled, receipt.leaf_index, verdict.receipt)
        self._deliver(delivery)
        self._spool.remove(seq, kept=kept)
        return delivery

    def _recover_receipt(self, seq: int, error: Exception, *, kept: bool) -> Delivery | Retry | Refused:
        """A damaged file can only be let go of if the ledger has its statement already.

        Its leaf hash is known from the statement after it, or from the head.
        """
        lost = Refused(f"{error}; the ledger does not have statement {seq} either", _DAMAGED)
        if self._log is None:
            return lost
        leaf = self._leaf_of(seq)
        if leaf is None:
            return lost
        reply: Reply = self._client.get(f"/entries/{leaf}")
        if reply.status != 200:
            verdict = judge(reply, now_s=time.time())
            return verdict if isinstance(verdict, Retry) else lost
        try:
            check_receipt(reply.body, self._log, bytes.fromhex(leaf), None)
        except TallystickError:
            return lost
        _log.warning("statement %d was damaged in the spool, but the ledger has it", seq)
        self._spool.remove(seq, kept=kept)
        return Retry(f"statement {seq} was damaged in the spool, but the ledger has it", 0.0)

    def _can_mend(self, seq: int, refused: Refused, *, kept: bool) -> bool:
        """Whether signing anew what waits could help, or setting aside what was sent once and is damaged."""
        if self._key is None or kept:
            return kept and refused.code == _DAMAGED
        if refused.code == "revoked-key":
            try:
                return self._spool.load(seq).statement.kid != self._key().public.kid
            except (OSError, TallystickError):
                return False
        return refused.code in (_DAMAGED, "seq-gap")

    def _mend(self, seq: int | None, refused: Refused, *, kept: bool) -> Retry | Refused:
        """Sign what waits anew, once the ledger said twice that it has none of it.

        ``seq`` is the statement that shows the damage; None goes on with what was cut off.
        """
        try:
            place, _ = find_place(self._client, self._spool.issuer)
        except RefusedError:
            return refused
        if seq is not None and place.next_seq > seq:
            if refused.code != _DAMAGED:
                return refused
            # It has one with this seq, and the chain goes on from it, or the next one will be refused.
            _log.warning("statement %d was damaged in the spool; the ledger is past it", seq)
            self._spool.set_aside(self._spool.path_of(seq, kept=kept))
            return Retry(f"statement {seq} was damaged in the spool, but the ledger is past it", 0.0)
        if kept or self._key is None:
            return refused
        now = time.monotonic()
        if self._looked is None or self._looked[1] != place:
            self._looked = (now, place)
        if (left_s := self._looked[0] + _SETTLE_S - now) > 0:
            return Retry(f"{refused.reason}; the chain will be mended", left_s)
        self._looked = None
        with self._spool.locked() as chain:
            done = rechain(self._spool, chain, self._key(), place, assumed_lost=self.assumed_lost)
        return Retry(
            f"{refused.reason}; {done.signed} statements were signed anew, {done.lost} records are counted "
            "as dropped",
            0.0,
        )

    def _leaf_of(self, seq: int) -> str | None:
        with self._spool.locked() as chain:
            if chain.head.next_seq == seq + 1:
                return chain.head.last_leaf
        for kept in (False, True):
            try:
                prev = self._spool.load(seq + 1, kept=kept).statement.payload.prev
            except (FileNotFoundError, CorruptError):
                continue
            return prev if isinstance(prev, str) else None
        return None

    def _hand_over(self, spooled: Spooled, receipt: bytes) -> None:
        """Leave the receipt for the process that made the statement, if it runs and is not this one."""
        if spooled.session == self.session or not (self._spool.sessions / spooled.session).exists():
            return
        seq = spooled.statement.payload.seq
        try:
            path = self._spool.receipts / f"{seq:016d}"
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(receipt)
            temporary.rename(path)
            if self._handed_over % _PURGE_EVERY == 0:
                for old in sorted(self._spool.receipts.iterdir())[:-KEPT_RECEIPTS]:
                    old.unlink(missing_ok=True)
            self._handed_over += 1
        except OSError:
            _log.warning("a receipt could not be left for its process", exc_info=True)
