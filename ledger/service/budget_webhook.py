"""Owns the telling of budgets' alerts to one address, which the operator alone names.

An alert is told until the address answers with a status of success, so at least once: replicas may both tell
it. The address is in the service's settings, never in a request; which internal hosts it may be is the
operator's to say (``ledger.outgoing``), and redirects are not followed.
"""

from __future__ import annotations

import logging
import threading
import time

import msgspec

from ledger import http_call, outgoing
from ledger.store import Store
from ledger.store import budgets as rows
from ledger.store.budgets import Alert

__all__ = ["AlertWebhook", "described_alert"]

_log = logging.getLogger(__name__)

_LIMITS = http_call.Limits(5.0, 10.0, 20.0, 65_536, 65_536)
_RETRY_S = 30.0
"""How long an address that did not take an alert is left alone."""


class AlertWebhook:
    """Tells alerts that nobody was told yet, on a thread of its own.

    Args:
        store: where the alerts are.
        url: where to send them, one JSON document each.
        reach: which internal hosts may be called.

    Raises:
        InvalidError, RefusedError: the address cannot, or may not, be called.
    """

    def __init__(
        self,
        store: Store,
        url: str,
        *,
        reach: outgoing.Reach = outgoing.PUBLIC_ONLY,
        retry_s: float = _RETRY_S,
    ) -> None:
        outgoing.check_url(url, reach)
        self._store, self._url, self._reach, self._retry_s = store, url, reach, retry_s
        self._wake = threading.Event()
        self._wake.set()  # what was not told before the last stop
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to tell."""
        self._thread = threading.Thread(target=self._run, name="tallystick-alerts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; what is not told is told after the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_LIMITS.total_s)

    def wake(self) -> None:
        """There is something to tell."""
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopping.is_set():
                return
            try:
                self._tell_all()
            except Exception as error:
                _log.warning("budget alerts did not reach the webhook, and are told again: %s", error)
                if self._stopping.wait(self._retry_s):
                    return
                self._wake.set()

    def _tell_all(self) -> None:
        with self._store.read() as connection:
            waiting = rows.alerts(connection, untold=True)
        for alert in waiting:
            if self._stopping.is_set():
                return
            body = msgspec.json.encode(described_alert(alert))
            headers = {"Content-Type": "application/json"}
            answer = outgoing.send("POST", self._url, _LIMITS, reach=self._reach, headers=headers, body=body)
            if not 200 <= answer.status < 300:
                raise ConnectionError(f"it answered {answer.status}")
            with self._store.write() as connection:
                rows.tell_alert(connection, alert, int(time.time()))


def described_alert(alert: Alert) -> dict[str, object]:
    """An alert as JSON."""
    kind = {"kind": "refused"} if alert.percent == 0 else {"percent": alert.percent, "kind": "threshold"}
    return {
        "budget": alert.budget,
        "tenant": alert.tenant,
        "period_start_s": alert.period_s,
        **kind,
        "record": alert.record,
        "used": alert.used,
        "limit": alert.limit,
        "noticed_s": alert.at_s,
    }
