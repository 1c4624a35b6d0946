"""Owns the background half of recording: takes reports from the inbox, puts statements into the spool.

Between groups of a few records the thread gives up the interpreter lock (``_breathe``). Otherwise serving
threads that come back from I/O would wait a whole switch interval, 5 ms, for each of its steps.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import UNSET

from ledger.core.errors import TallystickError, UnavailableError
from ledger.core.statements import (
    DeploymentStatement,
    FactorsStatement,
    Heartbeat,
    Payload,
    PricesStatement,
    sign_statement,
)
from ledger.emit._complaints import Complaints
from ledger.emit.chain import Chain
from ledger.emit.compose import Composer, Report
from ledger.emit.deliveries import Deliveries
from ledger.emit.energising import Energised, Energising
from ledger.emit.flights import ABANDONED, LONGEST_S, LOST, Began, Flights
from ledger.emit.ids import GIVEN, SETTLED
from ledger.emit.inbox import ENOUGH, Barrier, Inbox
from ledger.emit.seal import Block, batch_body, batch_payload
from ledger.emit.session import Session
from ledger.emit.signing import SigningKey
from ledger.emit.spool import Spool
from ledger.emit.spooled import Spooled

__all__ = ["Sealer"]

_log = logging.getLogger("tallystick.emit")

_GROUP = 12
"""Records composed between two breaths: about 150 microseconds."""
_TAKEN = 256
"""Reports taken out of the queue between two breaths."""
_TICK_S = 0.1
_UPKEEP_S = 30.0
_FIRST_RETRY_S, _LAST_RETRY_S = 0.2, 5.0
_NO_SESSION = "00" * 8
_breathe = time.sleep


class Sealer:
    """Runs in one thread, which owns all its state but the inbox.

    Args:
        inbox: where reports come from.
        spool: where statements go.
        key: signs them.
        composer: makes records of reports.
        deliveries: is told which records are in which batch.
        sealed: called after each statement that went into the spool.
        energising: gives records the energy that a meter counted; None without a meter.
    """

    def __init__(
        self,
        inbox: Inbox,
        spool: Spool,
        key: SigningKey,
        composer: Composer,
        deliveries: Deliveries,
        sealed: Callable[[], None],
        *,
        max_records: int,
        max_age_s: float,
        heartbeat_s: float | None,
        energising: Energising | None = None,
    ) -> None:
        self._inbox = inbox
        self._spool = spool
        self._key = key
        self._composer = composer
        self._deliveries = deliveries
        self._sealed = sealed
        self._max_records = max_records
        self._max_age_s = max_age_s
        self._heartbeat_s = heartbeat_s
        self._session: Session | None = None
        self._settled = inbox.ids.marks[SETTLED]
        self._energising = energising
        self._ready: deque[Energised] = deque()  # with energy, and not composed yet
        self._flights = Flights(inbox.ids)
        self._abandoned = 0  # not yet counted as settled
        self._reports: deque[tuple[Any, ...]] = deque()
        self._blocks: deque[Block] = deque()
        self._barriers: list[Barrier] = []
        self._untold = 0  # lost, but not yet noted in the head
        self._dropped_seen = self._overflowed = 0
        self._failures = 0
        self._complaints = Complaints("records cannot be put into the spool")
        self._overflows = Complaints("the queue is full")
        self._rejections = Complaints("a record was rejected and is counted as dropped")
        self._unended = Complaints("generations were begun and never ended")
        self._late = Complaints("what was begun ended too late")
        self._counted = 0  # drops to come of what was given up, and counted then
        self._give_up_at_ns = 0
        self._due = 0.0
        self._now_us = 0  # the time when the reports at hand were taken: they are of before
        self._upkeep_at = 0.0
        self._beat_at = time.monotonic() + (heartbeat_s or 0.0)
        self._close_by: float | None = None
        # Read by other threads:
        self.rejected = 0
        self.given_up = 0
        self.last_seq = -1
        self.problem: str | None = None

    @property
    def session(self) -> Session | None:
        """The session of this process, once there is one."""
        return self._session

    @property
    def held(self) -> int:
        """Records out of the queue, but not in the spool yet."""
        waiting = 0 if self._energising is None else len(self._energising)
        return len(self._reports) + waiting + len(self._ready) + sum(map(len, list(self._blocks)))

    def open_session(self) -> None:
        """Start counting in the spool what this process records.

        Raises:
            UnavailableError: the spool cannot be written.
        """
        if self._session is None:
            with self._spool.locked():
                self._ensure_session()

    def open_session_now(self) -> None:
        """``open_session`` without a wait for the spool, and without an error: ``run`` tries again.

        Call it before the thread runs.
        """
        if self._session is None:
            with contextlib.suppress(UnavailableError):
                self._ensure_session()

    def close(self, by: float) -> None:
        """Ask ``run`` to seal what is left and end, at the latest at the monotonic time ``by``."""
        self._close_by = by
        self._inbox.wake.set()

    def run(self) -> None:
        """Seal until closed. Nothing that goes wrong ends the thread."""
        try:
            self.open_session()
        except TallystickError as error:
            self._failed(str(error), None)
        while not self._finished():
            try:
                self._wait()
                self._take()
                self._store()
                self._keep_up()
                self._recovered()
            except TallystickError as error:
                self._failed(str(error), None)
            except Exception as error:
                self._failed(f"sealing failed: {error!r}", error)
        try:
            self._finish()
        except Exception:
            _log.exception("the spool could not be closed")

    def _finished(self) -> bool:
        if self._close_by is None:
            return False
        left = self._inbox.queue or self._reports or self._ready or self._energising or self._blocks
        return not left or time.monotonic() > self._close_by

    def _failed(self, problem: str, error: BaseException | None) -> None:
        self.problem = problem
        self._failures += 1
        self._complaints.say(problem, error)

    def _recovered(self) -> None:
        self.problem = None
        self._failures = 0

    # --- waiting -------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Return when there is something to do: enough records, old enough ones, or somebody asks."""
        inbox = self._inbox
        inbox.ids.follow_clock()
        if self._failures:
            inbox.wake.clear()
            pause_s = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** min(self._failures, 8))
            if self._close_by is not None:
                pause_s = min(pause_s, max(0.0, self._close_by - time.monotonic()))
            inbox.wake.wait(pause_s)
            return
        if not inbox.queue and not self._blocks:
            self._sleep()
            self._due = 0.0
        now = time.monotonic()
        self._due = self._due or now + self._max_age_s
        # What a meter counts is known a window later: to look sooner is of no use.
        enough = self._max_records if self._energising is not None else min(ENOUGH, self._max_records)
        while (
            (inbox.queue or self._blocks)
            and len(inbox.queue) < enough
            and not inbox.barriers
            and self._close_by is None
            and now < self._due
        ):
            inbox.wake.wait(min(_TICK_S, self._due - now))
            inbox.wake.clear()
            now = time.monotonic()

    def _sleep(self) -> None:
        inbox = self._inbox
        inbox.wake.clear()
        inbox.idle = True
        # Who appends after this sees ``idle`` and wakes us; who appended before it is seen here.
        if not inbox.queue and not inbox.marks and self._close_by is None:
            wake_at = self._upkeep_at
            if self._heartbeat_s:
                wake_at = min(wake_at, self._beat_at)
            inbox.wake.wait(max(0.0, wake_at - time.monotonic()))
        inbox.idle = False
        inbox.wake.clear()

    # --- reports to blocks ---------------------------------------------------------------------------

    def _take(self) -> None:
        """Compose what waits, up to one batch or a barrier."""
        if self._blocks and self._failures:
            self._read_marks()
            return  # the spool takes nothing now; the queue holds what comes, and counts what it cannot
        queue, reports = self._inbox.queue, self._reports
        taken_at_ns = time.monotonic_ns()
        while len(reports) < self._max_records and not self._barriers and queue:
            item = queue.popleft()
            if isinstance(item, Barrier):
                self._barriers.append(item)
                self._inbox.take_barrier()
            else:
                reports.append(item)
                if len(reports) % _TAKEN == 0:
                    _breathe(0)
        is_all = not queue
        self._read_marks()  # after the reports were taken: what they end began before
        self._now_us = self._inbox.ids.now_us()
        if reports:
            self._composer.prepare(reports)
            while reports:
                if len(reports) % _GROUP == 0:
                    _breathe(0)
                self._receive(reports.popleft())
        if is_all:  # else a report that waits may end what is open
            self._give_up(taken_at_ns)
        if self._energising is not None:
            self._take_energised(self._energising, taken_at_ns)

    def _take_energised(self, energising: Energising, taken_at_ns: int) -> None:
        """Compose the reports whose energy is known by now; all of them if somebody waits."""
        force = bool(self._barriers) or self._close_by is not None
        if force or not self._inbox.queue:  # else who was active in the windows is not known yet
            self._ready += energising.settle(force=force, taken_at_ns=taken_at_ns)
        if self._ready:
            self._composer.prepare([each.report for each in self._ready])
            while self._ready:
                if len(self._ready) % _GROUP == 0:
                    _breathe(0)
                self._compose(self._ready.popleft())

    def _read_marks(self) -> None:
        marks, flights, energising = self._inbox.marks, self._flights, self._energising
        while marks:
            id, stamp_ns, tokens = marks.popleft()
            if tokens == ABANDONED:
                self._abandoned += flights.ended(id) is not None
                if energising is not None:
                    energising.abandoned(id)
            elif tokens == LOST:
                if flights.ended(id) is None and flights.gave_up(id):
                    self._counted += 1
                    self.given_up -= 1  # the inbox counts it now
                if energising is not None:
                    energising.lost(id, stamp_ns)
            else:
                flights.began(id, stamp_ns, tokens)
                if energising is not None:
                    energising.began(id, stamp_ns)

    def _give_up(self, now_ns: int) -> None:
        """Count as lost what began so long ago that nobody will tell its end, and free its memory."""
        if now_ns < self._give_up_at_ns:
            return
        self._give_up_at_ns = now_ns + int(_UPKEEP_S * 1e9)
        overdue = self._flights.give_up(now_ns)
        if not overdue:
            return
        self.given_up += len(overdue)
        self._untold += len(overdue)
        if self._energising is not None:
            for id in overdue:
                self._energising.lost(id, now_ns)
        self._unended.say(f"after {LONGEST_S:g} s, they are counted as dropped")

    def _receive(self, fields: tuple[Any, ...]) -> None:
        """Compose a report, or let it wait for its energy."""
        try:
            report = Report._make(fields)
            if report.reserved and self._flights.gave_up(report.id):
                self._late.say("it was counted as dropped already, so its record is not kept")
                return
            began = self._flights.landed(report.id) if report.reserved else None
            if self._energising is not None and self._energising.takes(report, began):
                return
        except Exception as error:
            self._reject(error)
            return
        self._compose(Energised(report, began, None))

    def _reject(self, error: Exception) -> None:
        self.rejected += 1
        self._untold += 1
        self._rejections.say(str(error))

    def _compose(self, energised: Energised) -> None:
        """Add the report's record to the last block, or to a new one where that is full."""
        try:
            began: Began | None = energised.began
            composed = self._composer.compose(
                energised.report,
                self._now_us,
                None if began is None else began.stamp_ns,
                metered=self._energising is not None,
            )
            if not self._blocks or not self._blocks[-1].add(composed):
                block = Block(self._max_records)
                block.add(composed)
                self._blocks.append(block)
        except Exception as error:  # whatever the caller passed: it must cost this record only
            self._reject(error)
            if self._energising is not None:
                self._energising.give_back(energised.portion)

    # --- blocks to spool -----------------------------------------------------------------------------

    def _store(self) -> None:
        if self._inbox.overflowed > self._overflowed:
            self._overflowed = self._inbox.overflowed
            self._overflows.say("records find no room, and are counted as dropped")
        dropped = self._inbox.dropped
        news = dropped - self._dropped_seen
        self._dropped_seen = dropped
        told = min(news, self._counted)
        self._counted -= told
        self._untold += news - told
        due = self._is_due()
        if (self._blocks and due) or self._untold or self._session is None:
            with self._spool.locked() as chain:
                self._ensure_session()
                self._tell_drops(chain)
        while len(self._blocks) > (0 if due else 1):
            if pieces := self._blocks[0].pieces():
                self._blocks.popleft()
                self._blocks.extendleft(reversed(pieces))
                continue
            with self._spool.locked() as chain:
                self._seal(chain, self._blocks[0])
            self._due = time.monotonic() + self._max_age_s if self._blocks else 0.0
            _breathe(0)
        if self._abandoned:
            self._settle(self._settled + self._abandoned)
            self._abandoned = 0
        for barrier in self._barriers:
            barrier.reached.set()
        self._barriers.clear()

    def _is_due(self) -> bool:
        """Whether the last block, which is open to more records, is to be sealed as it is."""
        return (
            bool(self._barriers)
            or self._close_by is not None
            or self._energising is not None  # its records waited long enough
            or (bool(self._blocks) and len(self._blocks[-1]) >= self._max_records)
            or time.monotonic() >= self._due
        )

    def _ensure_session(self) -> None:
        if self._session is None:
            try:
                self._session = Session(self._spool.sessions, self._inbox.ids)
            except OSError as error:
                raise UnavailableError(
                    f"no session file: {error.strerror}", where=str(self._spool.sessions)
                ) from error

    def _tell_drops(self, chain: Chain) -> None:
        # Where the flush of the head failed, what it says stands nevertheless: the chain settled our session
        # by it when the lock was taken anew.
        noted = min(self._untold, max(0, self._inbox.ids.marks[SETTLED] - self._settled))
        self._settled += noted
        self._untold -= noted
        if self._untold:
            settled = self._settled + self._untold
            chain.add_dropped(self._untold, self._session_name(), settled)
            self._settle(settled)
            self._untold = 0

    def _seal(self, chain: Chain, block: Block) -> None:
        known = self._spool.documents()
        for digest, deployment in block.deployments.items():
            if digest not in known:
                self._append(chain, DeploymentStatement(deployment=deployment, **_chain_fields(chain)))
                chain.publish(digest)
        for digest, factors in block.factors.items():
            if digest not in known:
                self._append(chain, FactorsStatement(factors=factors, **_chain_fields(chain)))
                chain.publish(digest)
        for digest, book in block.prices.items():
            if digest not in known:
                self._append(chain, PricesStatement(prices=book, **_chain_fields(chain)))
                chain.publish(digest)
        settled = self._settled + len(block)
        with self._unattributed() as unattributed_uj:
            payload = batch_payload(block, chain.head, _now_us(chain), unattributed_uj)
            statement = sign_statement(payload, issuer=self._spool.issuer, key=self._key.current())
            body = batch_body(statement, block)
            chain.append(Spooled(statement, body, self._session_name(), settled))
        # It is in the chain: whatever fails from here on, it must not be sealed a second time.
        self._blocks.popleft()
        self._settle(settled)
        self._deliveries.sealed(block, statement)
        self._was_sealed(statement.payload.seq)

    @contextlib.contextmanager
    def _unattributed(self) -> Iterator[int]:
        """Energy that no record carries, for the statement made inside; kept if that fails."""
        amount = 0 if self._energising is None else self._energising.take_unattributed()
        try:
            yield amount
        except BaseException:
            if self._energising is not None:
                self._energising.return_unattributed(amount)
            raise

    def _append(self, chain: Chain, payload: Payload) -> None:
        """Sign and append a statement without records."""
        statement = sign_statement(payload, issuer=self._spool.issuer, key=self._key.current())
        chain.append(Spooled(statement, b"", self._session_name(), self._settled))
        self._was_sealed(payload.seq)

    def _was_sealed(self, seq: int) -> None:
        self.last_seq = seq
        self._beat_at = time.monotonic() + (self._heartbeat_s or 0.0)
        self._sealed()

    def _session_name(self) -> str:
        return _NO_SESSION if self._session is None else self._session.name

    def _settle(self, settled: int) -> None:
        self._settled = settled
        if self._session is not None:
            self._session.settle(settled)

    # --- upkeep --------------------------------------------------------------------------------------

    def _keep_up(self) -> None:
        """Look for sessions that ended early, and give a sign of life if the chain was silent."""
        now = time.monotonic()
        if now >= self._upkeep_at:
            self._upkeep_at = now + _UPKEEP_S
            with self._spool.locked() as chain:
                chain.reap()
        if self._heartbeat_s and now >= self._beat_at:
            self._beat_at = now + self._heartbeat_s
            with self._spool.locked() as chain:
                # Without its sign: a clock that was stepped back must not keep us silent for as long.
                silent_us = abs(time.time_ns() // 1000 - chain.head.issued_us)
                # A chain that never began needs no sign of life, and one with statements to send shows them.
                if chain.head.next_seq and silent_us >= self._heartbeat_s * 1e6 and not self._spool.waiting():
                    self._beat(chain)

    def _beat(self, chain: Chain) -> None:
        with self._unattributed() as amount:
            told = amount or UNSET
            fields = _chain_fields(chain)
            self._append(chain, Heartbeat(dropped=chain.head.dropped, unattributed_uj=told, **fields))

    def _finish(self) -> None:
        """Tell what was lost, end the session, and close the tenants' file."""
        untold_uj = 0
        if self._energising is not None:
            for each in self._energising.close():
                self._energising.give_back(each.portion)
            untold_uj = self._energising.unattributed_uj
        if self._session is not None:
            with self._spool.locked() as chain:
                # In flight still, or not sealed in time: no thread is left that could.
                self._untold += max(0, self._inbox.ids.marks[GIVEN] - self._settled - self._untold)
                self._tell_drops(chain)
                if chain.head.dropped or (untold_uj and chain.head.next_seq):
                    self._beat(chain)
                session, self._session = self._session, None
                session.close()
        self._composer.close()


def _chain_fields(chain: Chain) -> dict[str, Any]:
    head = chain.head
    return {
        "seq": head.next_seq,
        "prev": UNSET if head.last_leaf is None else head.last_leaf,
        "issued_us": _now_us(chain),
    }


def _now_us(chain: Chain) -> int:
    """The time of the next statement: never before the last one's, whatever the clock does."""
    return max(time.time_ns() // 1000, chain.head.issued_us)
