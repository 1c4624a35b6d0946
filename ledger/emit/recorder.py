"""Owns ``Recorder``, what serving code imports: it takes reports in a microsecond and loses none silently."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ledger.core.commitments import pack_pair
from ledger.core.errors import InvalidError, TallystickError, UnavailableError
from ledger.core.keys import PrivateKey, PublicKey
from ledger.core.records import Deployment, Energy, FactorSet, Quality, Usage
from ledger.core.statements import MAX_BATCH_RECORDS, SignedStatement
from ledger.emit import _lifetime as lifetime
from ledger.emit._disk import locked_file
from ledger.emit.client import Client
from ledger.emit.compose import Composer, checked_deployment
from ledger.emit.deliveries import Deliveries, RecordReceipt
from ledger.emit.energising import Energising
from ledger.emit.factor_source import Factors, checked_factors
from ledger.emit.flights import ABANDONED, LOST
from ledger.emit.identity import Tenants, default_spool, load_secret, open_spool
from ledger.emit.inbox import ENOUGH, Inbox
from ledger.emit.metering import Metering
from ledger.emit.pricing import Prices, PriceSource
from ledger.emit.sealer import Sealer
from ledger.emit.sender import Sender, check_receipt, read_log_key
from ledger.emit.shipper import Shipper
from ledger.emit.signing import SigningKey
from ledger.energy.meters.counting import AnyMeter
from ledger.energy.windows import Rule

__all__ = ["Recorder", "Status"]

_logger = logging.getLogger("tallystick.emit")

_FULL_POLL_S = 0.005
_MANY_MARKS = 4096
"""Beginnings that may wait for the sealer before it is woken for their sake."""
_MANY_REPORTS = 16_384
"""From here on, reports wait for so long that what their ids take of memory counts: packed, a tenth."""
_SEAL, _SEND, _METER = "tallystick-seal", "tallystick-send", "tallystick-meter"
_MIN_WINDOW_S = 0.01
_SEAL_AT_LEAST_S = 1.0
"""What is in memory is lost if it is not sealed, so sealing has so long though ``close`` may have less."""


@dataclass(frozen=True)
class Status:
    """How the emitter is doing.

    Attributes:
        issuer: under this name the ledger must know the key.
        queued: records in memory, not sealed yet.
        spooled: statements in the spool whose receipt is not here yet (of all processes that share it).
        sent: statements that this process delivered.
        dropped: records that this process lost (queue full, or begun a day ago and never ended) or rejected
            (invalid); the chain tells them.
        problem: what is wrong now, None if nothing is.
        blocked: the problem will not go away until somebody acts.
        torn: spool files that were found cut or changed and set aside.
    """

    issuer: str
    queued: int
    spooled: int
    sent: int
    dropped: int
    problem: str | None
    blocked: bool
    torn: tuple[str, ...]


class Recorder:
    """Records what a model generated, seals it into signed statements, and brings them to a ledger.

    ``record`` only packs token ids and puts its arguments into a queue. A background thread commits to the
    content, signs, and writes to the spool on disk; another sends and waits for receipts. Safe to use from
    any thread, and after a fork; several processes may use one spool directory.

    Args:
        url: the ledger. None keeps statements in the spool. Environment: TALLYSTICK_URL.
        api_key: with scope ``emit``. Environment: TALLYSTICK_API_KEY.
        log_key: the log's verifier key text, or a path to a file with it. Receipts are verified with it;
            without it, what was sent is kept in the spool until that is full. Environment:
            TALLYSTICK_LOG_KEY.
        spool: directory of this issuer's chain; keep it on a disk that outlives the process. Environment:
            TALLYSTICK_SPOOL; default: ``~/.local/state/tallystick/spool``.
        issuer: name under which the ledger knows the key. Environment: TALLYSTICK_ISSUER; default: made once
            for each spool, from the host's name and a random part.
        key: signing key or its PEM file, which is read anew when it changes. Environment: TALLYSTICK_KEY;
            default: made once in the spool.
        secret: file of the issuer's secret, from which salts derive; made if missing. Back it up: without it
            no commitment can be opened.
        tenants: file of the tenants' secrets; made if missing.
        deployment: what generates, for calls of ``record`` that name none.
        factors: turns energy into carbon and water: a factor set, or what gives the one of now, such as
            ``ledger.energy.live_intensity.LiveFactors``. Environment: TALLYSTICK_FACTORS and keys of services
            (see docs/how-to/factors.md).
        prices: price books, or paths of their files (read anew when they change): give records a cost where
            ``record`` is told none. Environment: TALLYSTICK_PRICES, paths separated as in PATH (see
            docs/how-to/costs.md).
        max_records: seal a batch at this many records,
        max_age_s: or when the oldest is this old.
        queue_limit: how many records may wait in memory.
        when_full: ``drop-and-count`` counts the record as dropped; ``block`` waits for room.
        heartbeat_s: give a sign of life when nothing was sealed for so long; None for none.
        spool_limit_bytes: how much the spool may take; beyond it, records wait in memory.
        keep_receipts: for how many of the newest records ``receipt_for`` can answer.
        meter: counts the energy of the hardware that generates (``ledger.energy.meters``), which is divided
            between the generations that report none themselves. They wait for it: a second or two, or until
            who was active with them has ended. Environment: TALLYSTICK_METER, by name: ``auto``, ``model`` or
            ``none``.
        rule: how it is divided.
        meter_window_s: how often the meter is read.

    Raises:
        InvalidError: an argument is not usable.
        RefusedError: the spool belongs to another issuer.
        CorruptError: the spool does not verify.
        UnavailableError: the spool cannot be opened.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        log_key: str | Path | None = None,
        spool: str | Path | None = None,
        issuer: str | None = None,
        key: PrivateKey | str | Path | None = None,
        secret: str | Path | None = None,
        tenants: str | Path | None = None,
        deployment: Deployment | None = None,
        factors: Factors | None = None,
        prices: Prices | None = None,
        max_records: int = MAX_BATCH_RECORDS,
        max_age_s: float = 1.0,
        queue_limit: int = 65_536,
        when_full: Literal["drop-and-count", "block"] = "drop-and-count",
        heartbeat_s: float | None = 60.0,
        spool_limit_bytes: int = 4 << 30,
        keep_receipts: int = 10_000,
        meter: AnyMeter | str | None = None,
        rule: Rule | None = None,
        meter_window_s: float = 1.0,
    ) -> None:
        if not 1 <= max_records <= MAX_BATCH_RECORDS or queue_limit < 1 or max_age_s < 0:
            raise InvalidError(
                "max_records, queue_limit or max_age_s is out of range",
                remedy=f"use 1 to {MAX_BATCH_RECORDS} records, a queue of at least 1, an age of at least 0",
                code="bad-setting",
            )
        if meter_window_s < _MIN_WINDOW_S:
            raise InvalidError(f"meter_window_s is less than {_MIN_WINDOW_S}", code="bad-setting")
        if when_full not in ("drop-and-count", "block"):
            raise InvalidError("when_full is neither drop-and-count nor block", code="bad-setting")
        environment = os.environ
        self._url = url or environment.get("TALLYSTICK_URL") or None
        self._api_key = api_key or environment.get("TALLYSTICK_API_KEY") or None
        self._log = read_log_key(log_key or environment.get("TALLYSTICK_LOG_KEY"))
        if self._url is not None:
            client = Client(self._url, self._api_key)  # refuse unusable ones now, not on a background thread
            if client.plain_text and self._api_key:
                _logger.warning("the API key goes to %s without encryption: use https", self._url)
            if self._log is None:
                _logger.warning("no log_key: receipts are not checked, so the spool keeps all statements")
        self._deployment = None if deployment is None else checked_deployment(deployment)

        directory = Path(spool or environment.get("TALLYSTICK_SPOOL") or default_spool())
        if factors is None:
            from ledger.energy.site import factors_from_environment

            factors = factors_from_environment(environment, cache=directory)
        named = environment.get("TALLYSTICK_PRICES") or None if prices is None else prices
        # Read now: unusable ones are refused here, and a forked child goes on with what was read.
        self._prices = None if named is None else PriceSource(named)
        self._factors = checked_factors(factors) if isinstance(factors, FactorSet) else factors
        self._spool = open_spool(directory, issuer or environment.get("TALLYSTICK_ISSUER"), spool_limit_bytes)
        with locked_file(directory / "identity.lock"):
            self._key = SigningKey(key or environment.get("TALLYSTICK_KEY"), directory)
            self._secret = load_secret(Path(secret or directory / "issuer.secret"))
        self._tenants_path = Path(tenants or directory / "tenants")

        self._max_records = max_records
        self._max_age_s = max_age_s
        self._heartbeat_s = heartbeat_s
        self._keep_receipts = keep_receipts
        self._queue_limit = queue_limit
        self._block = when_full == "block"
        self._meter = _meter(environment.get("TALLYSTICK_METER", "") if meter is None else meter)
        self._rule = rule or Rule()
        self._meter_window_s = meter_window_s
        self._closed = self._was_late = False
        self._limit = queue_limit  # 0 once closed
        self._begin()
        self._sealer.open_session()
        if self._metering is not None:
            self._metering.look()
        lifetime.watch(self)
        if self._spool.waiting():
            self._rouse()  # left by an earlier process

    def _begin(self) -> None:
        """Make everything that belongs to one process."""
        self._inbox = Inbox()
        self._start_lock = threading.Lock()  # guards the start of the threads
        self._threads: dict[str, threading.Thread] = {}
        self._deliveries = Deliveries(self._keep_receipts)
        self._shipper: Shipper | None = None
        if self._url is not None:
            client = Client(self._url, self._api_key)
            self._shipper = Shipper(
                Sender(self._spool, client, self._log, self._key.current),
                self._spool,
                self._deliveries,
                client,
            )
        tenants = Tenants(self._tenants_path, self._secret)
        self._metering: Metering | None = None
        energising = None
        if self._meter is not None:
            self._inbox.cold = True
            self._metering = Metering(
                self._meter, self._spool.directory, self._meter_window_s, self._inbox.wake.set
            )
            energising = Energising(self._metering, self._rule, self._queue_limit)
        self._sealer = Sealer(
            self._inbox,
            self._spool,
            self._key,
            Composer(self._deployment, self._factors, tenants, self._prices),
            self._deliveries,
            (lambda: None) if self._shipper is None else self._shipper.wake,
            max_records=self._max_records,
            max_age_s=self._max_age_s,
            heartbeat_s=self._heartbeat_s,
            energising=energising,
        )

    # --- recording -----------------------------------------------------------------------------------

    def record(
        self,
        *,
        usage: Usage,
        started_us: int,
        ended_us: int,
        first_token_us: int | None = None,
        busy_us: int | None = None,
        input_ids: Sequence[int] | None = None,
        output_ids: Sequence[int] | None = None,
        input_text: str | None = None,
        output_text: str | None = None,
        finish_reason: str | None = None,
        request_id: str | None = None,
        tenant: str | None = None,
        deployment: Deployment | None = None,
        parent: str | None = None,
        energy: Energy | None = None,
        quality: dict[str, Quality] | None = None,
        cost_nano: int | None = None,
        currency: str | None = None,
        id: str | None = None,
    ) -> str:
        """Record one generation; return the record's id at once.

        Nothing is checked here: what turns out to be invalid is logged and counted as dropped. The arguments
        are not copied, so do not change a list of ids after the call.

        Args:
            usage: token counts, as the engine reports them.
            started_us: when the request came, Unix microseconds.
            ended_us: when its last token was there.
            first_token_us: when its first token was there.
            busy_us: machine time of this generation alone, other requests' shares taken out.
            input_ids: token ids of the prompt; a salted commitment to them is recorded, not they.
            output_ids: token ids of the answer, likewise.
            input_text: the prompt, for engines that do not show ids; likewise.
            output_text: the answer, likewise.
            finish_reason: ``stop``, ``length``, ``tool_calls``, ``abort``, ...
            request_id: the caller's id; a salted hash is recorded.
            tenant: stands for who asked. What does not look like a pseudonym is replaced by one.
            deployment: what generated it, if not the recorder's own.
            parent: id of the record that caused this one.
            energy: what it took, with method and range.
            quality: metrics of this generation.
            cost_nano: price in billionths of ``currency``.
            currency: ISO 4217 code.
            id: what ``begin`` returned for this generation; each is good for one record.
        """
        inbox = self._inbox
        record_id = inbox.ids.new() if id is None else id
        queue = inbox.queue
        waiting = len(queue)
        if waiting >= self._limit and not self._wait_for_room(inbox):
            if id is not None:
                inbox.marks.append((id, time.monotonic_ns(), LOST))
            return record_id
        packed = None
        # At an ordinary pace ids are packed here: half a microsecond, against ten for reading them on another
        # core and the garbage collector's walks over them. In a burst, who serves is spared, until memory
        # counts.
        if waiting < ENOUGH or waiting >= _MANY_REPORTS:
            packed = pack_pair(input_ids, output_ids)
            if packed is not None:
                input_ids = output_ids = None
        queue.append(
            (
                record_id,
                usage,
                started_us,
                ended_us,
                first_token_us,
                busy_us,
                input_ids,
                output_ids,
                input_text,
                output_text,
                finish_reason,
                request_id,
                tenant,
                deployment,
                parent,
                energy,
                quality,
                cost_nano,
                currency,
                time.monotonic_ns(),
                id is not None,
                packed,
            )
        )
        if inbox.idle:
            self._rouse()
        elif len(queue) == ENOUGH:  # missed when two threads append at once; then the sealer looks by itself
            inbox.wake.set()
        return record_id

    def begin(self, *, input_tokens: int | None = None) -> str:
        """Say that a generation begins; return the id of the record that it will have.

        Optional. It lets energy be shared with whoever is active meanwhile, and times be right though the
        clock is set during the generation. What began must end in ``record(id=...)``, ``abandon`` or
        ``lose``: a generation that this process never told the end of is counted as dropped, when the process
        ends or a day later. What ends after more than a day has no record.

        Args:
            input_tokens: how long the prompt is, if that is known already.
        """
        inbox = self._inbox
        record_id = inbox.ids.new()
        if not self._closed:
            marks = inbox.marks
            marks.append((record_id, time.monotonic_ns(), input_tokens))
            if inbox.cold or (inbox.idle and len(marks) > _MANY_MARKS):
                self._rouse()
        return record_id

    def abandon(self, id: str) -> None:
        """Say that what began generated nothing: it was refused. There is no record, and nothing was lost."""
        inbox = self._inbox
        inbox.marks.append((id, time.monotonic_ns(), ABANDONED))
        if inbox.idle:
            self._rouse()

    def lose(self, id: str) -> None:
        """Say that what began generated something that cannot be recorded: it counts as dropped."""
        inbox = self._inbox
        inbox.drop()
        inbox.marks.append((id, time.monotonic_ns(), LOST))
        if inbox.idle:
            self._rouse()

    def _wait_for_room(self, inbox: Inbox) -> bool:
        """Whether there is room now; if not, the record was counted as dropped."""
        self._rouse()
        while self._block and not self._closed:
            if len(inbox.queue) < self._limit:
                return True
            time.sleep(_FULL_POLL_S)
        inbox.drop(full=not self._closed)
        if self._closed and not self._was_late:
            self._was_late = True
            _logger.warning("record was called after close: such records are lost, and no statement tells it")
        return False

    def _rouse(self) -> None:
        """Wake the sealer; start the threads if this process has none yet."""
        # Not waited for: who holds it starts them, and may be this very thread, further up, where a finalizer
        # ends a generation meanwhile.
        if self._start_lock.acquire(blocking=False):
            try:
                started = self._closed or self._start()
            finally:
                self._start_lock.release()
            if started:  # else the next record tries again, and ``close`` does the work on its own thread
                self._inbox.idle = self._inbox.cold = False
        self._inbox.wake.set()

    def _start(self) -> bool:
        """Start the threads that do not run yet; False if the system gives none."""
        if not self._threads:
            lifetime.close_with_worker()
            self._sealer.open_session_now()  # a forked child has none yet, and may be killed at any time
        runs = {_SEAL: self._sealer.run}
        if self._metering is not None:
            runs = {_METER: self._metering.run} | runs
        if self._shipper is not None:
            self._shipper.bind(self._sealer)
            runs[_SEND] = self._shipper.run
        for name, run in runs.items():
            if name not in self._threads:
                thread = threading.Thread(target=run, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # too many threads, or the interpreter is ending
                    return False
                self._threads[name] = thread
        return True

    # --- waiting for it ------------------------------------------------------------------------------

    def sync(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything recorded so far is on disk; False if that took too long."""
        if self._closed or not (self._threads or self._inbox.queue):
            return not self._inbox.queue
        barrier = self._inbox.put_barrier()
        self._rouse()
        return barrier.reached.wait(timeout_s)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything recorded so far is in the log and its receipts are checked.

        Without a ledger, wait until it is on disk. False if that took too long.
        """
        deadline = time.monotonic() + timeout_s
        if not self.sync(timeout_s):
            return False
        return self._shipper is None or self._shipper.wait_past(self._sealer.last_seq, deadline)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Seal and send what is left, and stop. True if the ledger has it all (without a ledger: the disk).

        What was not sent waits in the spool for the next process; ``record`` drops from here on. What the
        disk does not take in time, a second at least, is counted as dropped.
        """
        deadline = time.monotonic() + timeout_s
        with self._start_lock:
            first, self._closed, self._limit = not self._closed, True, 0
        if not first:
            return not self._inbox.queue and self._delivered()
        lifetime.unwatch(self)
        if self._metering is not None:
            self._metering.end()
        seal_by = max(deadline, time.monotonic() + _SEAL_AT_LEAST_S)
        self._sealer.close(seal_by)
        sealed = self._end(_SEAL, self._sealer.run, seal_by) and not self._inbox.queue
        if self._metering is not None:
            self._metering.close()
            self._end(_METER, lambda: None, deadline)
        if self._shipper is not None:
            self._shipper.close(deadline)
            if _SEND in self._threads or self._sealer.last_seq >= 0:
                self._end(_SEND, self._shipper.run, deadline)
        return sealed and self._delivered()

    def _end(self, name: str, run: Callable[[], None], deadline: float) -> bool:
        """Wait for a thread that was told to end; without one, do its work here. True if it ended in time."""
        thread = self._threads.get(name)
        if thread is None:
            run()
            return True
        thread.join(max(0.0, deadline - time.monotonic()))
        return not thread.is_alive()

    def _delivered(self) -> bool:
        return self._shipper is None or self._shipper.is_past(self._sealer.last_seq)

    async def aflush(self, timeout_s: float = 10.0) -> bool:
        """``flush`` without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.flush, timeout_s)

    async def aclose(self, timeout_s: float = 10.0) -> bool:
        """``close`` without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.close, timeout_s)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- looking -------------------------------------------------------------------------------------

    @property
    def is_metered(self) -> bool:
        """Whether a meter gives the records their energy, so that hooks need not."""
        return self._meter is not None

    @property
    def issuer(self) -> str:
        """The name under which the ledger must know ``public_key``."""
        return self._spool.issuer

    @property
    def public_key(self) -> PublicKey:
        """The key to register with the ledger."""
        return self._key.current().public

    def rotate_key(self, key: PrivateKey) -> None:
        """Sign with ``key`` from the next statement on. The ledger must know it already.

        It is written to the key's file, so that every process that reads the same file changes over too. The
        old key may be revoked once nothing that it signed waits; ``tallystick spool rotate-key`` does all.

        Raises:
            InvalidError, UnavailableError: the file cannot be replaced; the old key signs on.
        """
        self._key.replace(key, self._spool)

    def status(self) -> Status:
        """How things stand now."""
        shipper, sealer = self._shipper, self._sealer
        problem = sealer.problem or (None if shipper is None else shipper.problem)
        if problem is None and self._metering is not None:
            problem = self._metering.problem
        return Status(
            issuer=self._spool.issuer,
            queued=max(0, len(self._inbox.queue) - self._inbox.barriers) + sealer.held,
            spooled=len(self._spool.waiting()),
            sent=0 if shipper is None else shipper.sent,
            dropped=self._inbox.dropped + sealer.rejected + sealer.given_up,
            problem=problem,
            blocked=shipper is not None and shipper.blocked,
            torn=tuple(self._spool.torn()),
        )

    def receipt_for(self, record_id: str, timeout_s: float | None = None) -> RecordReceipt | None:
        """What proves that a recent record is in the log, or None if there is no checked receipt (yet).

        Args:
            record_id: as ``record`` returned it, in this process.
            timeout_s: wait so long for it; None only looks.
        """
        return self._deliveries.find(record_id, timeout_s, self._fetch_receipt)

    def _fetch_receipt(self, seq: int, statement: SignedStatement) -> tuple[int, bytes] | None:
        """The receipt that another process of this spool got for our statement, if it is there and right."""
        if self._log is None:
            return None
        try:
            data = (self._spool.receipts / f"{seq:016d}").read_bytes()
            receipt = check_receipt(data, self._log, statement.leaf_hash, statement.subject)
        except (OSError, TallystickError):
            return None
        return receipt.leaf_index, data

    def pseudonym(self, tenant: str) -> str:
        """What records say of a tenant: the name itself if it has that form, else what stands for it.

        Raises:
            OSError: the secret of a new tenant could not be stored.
        """
        with contextlib.closing(Tenants(self._tenants_path, self._secret)) as tenants:
            try:
                return tenants.pseudonym(tenant)
            except KeyError:  # not of that form, so its secret is needed
                tenants.keys({tenant})
                return tenants.pseudonym(tenant)

    def forget_tenant(self, tenant: str) -> bool:
        """Drop a tenant's secret for ever, so that nobody can open that tenant's commitments any more.

        Returns:
            Whether the tenant had a secret.
        """
        with contextlib.closing(Tenants(self._tenants_path, self._secret)) as tenants:
            return tenants.forget(tenant)

    def forget_parent(self) -> None:
        """Leave what is the parent's to the parent, and begin afresh. Runs by itself in a forked child."""
        if self._sealer.session is not None:
            self._sealer.session.forget()
        self._spool.forget_parent()
        if self._metering is not None:
            self._metering.forget_parent()
        self._begin()
        self._inbox.cold = True
        if not self._closed:
            self._limit = self._queue_limit


def _meter(meter: AnyMeter | str) -> AnyMeter | None:
    if not isinstance(meter, str):
        return meter
    if meter in ("", "none"):
        return None
    from ledger.energy.meters.find import named_meter

    try:
        return named_meter(meter)
    except UnavailableError as error:
        _logger.warning("records will have no measured energy: %s", error)
        return None
