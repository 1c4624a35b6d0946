"""Owns the sending thread: when to run a pass over the spool, how long to pause, whom to tell."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from ledger.emit._complaints import Complaints
from ledger.emit.client import Client
from ledger.emit.deliveries import Deliveries
from ledger.emit.sender import Delivery, Pass, Sender, backoff_s
from ledger.emit.session import Session
from ledger.emit.spool import Spool

__all__ = ["Shipper"]

_IDLE_S = 5.0
"""How often an idle process looks whether another one left statements behind."""
_SHARED_S = 0.2
"""Pause while another process sends from the same spool."""
_BLOCKED_S = 30.0
"""Pause after a refusal: somebody has to act first, such as registering the key."""
_POLL_S = 0.05


class _HasSession(Protocol):
    @property
    def session(self) -> Session | None: ...


class Shipper:
    """Runs in one thread; ``wake``, ``close`` and the waits are for others.

    Args:
        sender: does the sending.
        spool: where statements wait.
        deliveries: is told of receipts.
        client: closed at the end.
    """

    def __init__(self, sender: Sender, spool: Spool, deliveries: Deliveries, client: Client) -> None:
        self._sender = sender
        self._spool = spool
        self._deliveries = deliveries
        self._client = client
        self._owner: _HasSession | None = None
        self._complaints = Complaints("statements wait in the spool")
        self._work = threading.Event()  # there is something to send
        self._urgent = threading.Event()  # somebody waits: do not finish a pause
        self._close_by: float | None = None
        self._progress = threading.Condition()
        sender.on_delivery(self._delivered)
        # Read by other threads:
        self.sent = 0
        self.problem: str | None = None
        self.blocked = False

    def bind(self, owner: _HasSession) -> None:
        """Name the sealer whose statements need no receipt left for them."""
        self._owner = owner

    def wake(self) -> None:
        """Say that a statement was put into the spool."""
        self._work.set()

    def close(self, by: float) -> None:
        """Ask ``run`` to send what is left and end, at the latest at the monotonic time ``by``."""
        self._close_by = by
        self._work.set()
        self._urgent.set()

    def is_past(self, seq: int) -> bool:
        """Whether the ledger has every statement up to ``seq``."""
        waiting = self._spool.waiting()
        return not waiting or waiting[0] > seq

    def wait_past(self, seq: int, deadline: float) -> bool:
        """Wait until the ledger has every statement up to ``seq``; False at the monotonic ``deadline``."""
        self._work.set()
        self._urgent.set()
        while not self.is_past(seq):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._progress:
                self._progress.wait(min(left, _POLL_S))
        return True

    def run(self) -> None:
        """Send until closed. Nothing that goes wrong ends the thread."""
        failures = 0
        while True:
            self._work.clear()
            self._urgent.clear()
            if self._owner is not None and self._owner.session is not None:
                self._sender.session = self._owner.session.name
            try:
                result = self._sender.run_pass(self._out_of_time)
            except Exception as error:
                result = Pass(0, 1, f"sending failed: {error!r}")
                self._complaints.say(f"sending failed: {error!r}", error)
            self.problem, self.blocked = result.reason, result.blocked
            with self._progress:
                self._progress.notify_all()
            if self._close_by is not None and (not result.waiting or self._out_of_time()):
                break
            if result.reason is None:
                failures = 0
                self._work.wait(_SHARED_S if result.waiting else _IDLE_S)
                continue
            self._complaints.say(result.reason)
            pause_s = backoff_s(failures)
            if result.blocked:
                pause_s = max(pause_s, _BLOCKED_S)
            if result.after_s is not None:
                pause_s = result.after_s
            failures = 0 if result.sent else failures + 1
            self._pause(pause_s)
        self._client.close()

    def _pause(self, seconds: float) -> None:
        if self._close_by is not None:
            seconds = min(seconds, max(0.0, self._close_by - time.monotonic()))
        self._urgent.wait(seconds)

    def _out_of_time(self) -> bool:
        return self._close_by is not None and time.monotonic() > self._close_by

    def _delivered(self, delivery: Delivery) -> None:
        self.sent += 1
        self.problem, self.blocked = None, False  # before it leaves: whoever waits may look
        if delivery.receipt is not None and delivery.leaf_index is not None:
            statement = delivery.spooled.statement
            self._deliveries.delivered(
                statement.payload.seq, delivery.leaf_index, delivery.receipt, statement
            )
