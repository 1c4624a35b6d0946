"""Runs a monitor: rounds over all logs, alarms by webhook once each, metrics for Prometheus."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from ledger import http_call, outgoing
from ledger.core.errors import TallystickError
from ledger.monitor.follow import Alarm, Followed, Round, follow
from ledger.monitor.state import load_state, save_state

__all__ = ["LogReport", "Monitor", "Webhook"]

_log = logging.getLogger(__name__)
_AT_ONCE = 8
_WEBHOOK_LIMITS = http_call.Limits(5.0, 10.0, 20.0, 65_536, 65_536)
_TRIES = 3


@dataclass(frozen=True)
class LogReport:
    """What one round found of one log. ``new``: alarms that were not there the round before."""

    origin: str
    url: str
    size: int
    entries: int
    records: int
    seconds: float
    alarms: tuple[Alarm, ...]
    new: tuple[Alarm, ...]


@dataclass(frozen=True)
class Webhook:
    """Where alarms go: a POST of JSON to a configured address, which the reach has to allow.

    Args:
        url: the address.
        reach: internal hosts that it may be on.
        token: sent as a bearer token, if given.
    """

    url: str
    reach: outgoing.Reach = outgoing.PUBLIC_ONLY
    token: str | None = None

    def send(self, message: object) -> None:
        """Send one message.

        Raises:
            TallystickError, ConnectionError: it did not arrive.
        """
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        body = json.dumps(message).encode()
        answer = outgoing.send(
            "POST", self.url, _WEBHOOK_LIMITS, reach=self.reach, headers=headers, body=body
        )
        if not 200 <= answer.status < 300:
            raise ConnectionError(f"the webhook answers with status {answer.status}")


@dataclass
class Monitor:
    """Follows logs. To be used by one thread; ``metrics`` may be read by any.

    Args:
        logs: what to follow.
        folder: where its memory is.
        webhook: where alarms go.
    """

    logs: Sequence[Followed]
    folder: Path
    webhook: Webhook | None = None
    _reports: dict[str, LogReport] = field(default_factory=dict)
    _rounds: int = 0
    _failed_webhooks: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def round(self) -> list[LogReport]:
        """Look at every log once, remember what holds, and tell what is new.

        Raises:
            CorruptError: the monitor's own memory is damaged.
        """
        states = {log.origin: load_state(self.folder, log.origin) for log in self.logs}
        with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(self.logs)))) as threads:
            rounds = list(threads.map(lambda log: follow(log, states[log.origin], self.folder), self.logs))
        reports = [
            self._settle(log, states[log.origin].alarmed, found)
            for log, found in zip(self.logs, rounds, strict=True)
        ]
        with self._lock:
            self._rounds += 1
            self._reports |= {each.origin: each for each in reports}
        return reports

    def _settle(self, log: Followed, alarmed: Sequence[str], found: Round) -> LogReport:
        keys = [f"{each.code} {each.where}" for each in found.alarms]
        new = tuple(each for each, key in zip(found.alarms, keys, strict=True) if key not in alarmed)
        report = LogReport(
            log.origin, log.url, found.size, found.entries, found.records, found.seconds,
            tuple(found.alarms), new,
        )  # fmt: skip
        told = self._tell(report) if new else True
        remembered = dict.fromkeys(keys if told else [key for key in keys if key in alarmed])
        save_state(self.folder, msgspec.structs.replace(found.state, alarmed=tuple(remembered)))
        for each in new:
            _log.error("ALARM %s: %s: %s (%s)", log.origin, each.code, each.what, each.where)
        return report

    def _tell(self, report: LogReport) -> bool:
        """Send what is new; whether it arrived. What did not is new again in the next round."""
        if self.webhook is None:
            return True
        message = {
            "log": report.origin,
            "url": report.url,
            "size": report.size,
            "time_s": int(time.time()),
            "text": "; ".join(f"{each.code}: {each.what}" for each in report.new)[:2_000],
            "alarms": [
                {"code": each.code, "what": each.what, "where": each.where, "grave": each.grave}
                for each in report.new
            ],
        }
        for attempt in range(_TRIES):
            try:
                self.webhook.send(message)
            except (TallystickError, ConnectionError) as error:
                _log.error("the alarm did not reach the webhook: %s", error)
                time.sleep(0.2 * 2**attempt)
            else:
                return True
        with self._lock:
            self._failed_webhooks += 1
        return False

    def metrics(self) -> bytes:
        """The last round in Prometheus' text format."""
        with self._lock:
            reports, rounds, failed = list(self._reports.values()), self._rounds, self._failed_webhooks
        lines = [
            "# TYPE tallystick_monitor_rounds counter",
            f"tallystick_monitor_rounds_total {rounds}",
            "# TYPE tallystick_monitor_webhook_failures counter",
            f"tallystick_monitor_webhook_failures_total {failed}",
        ]
        gauges: tuple[tuple[str, Callable[[LogReport], float]], ...] = (
            ("tree_size", lambda each: each.size),
            ("alarms", lambda each: len(each.alarms)),
            ("grave_alarms", lambda each: sum(alarm.grave for alarm in each.alarms)),
            ("round_seconds", lambda each: round(each.seconds, 6)),
        )
        for name, value in gauges:
            lines.append(f"# TYPE tallystick_monitor_{name} gauge")
            lines += [
                f"tallystick_monitor_{name}{{log={json.dumps(each.origin)}}} {value(each)}"
                for each in reports
            ]
        lines.append("# TYPE tallystick_monitor_alarm gauge")
        lines += [
            f'tallystick_monitor_alarm{{log={json.dumps(each.origin)},code="{code}"}} 1'
            for each in reports
            for code in dict.fromkeys(alarm.code for alarm in each.alarms)
        ]
        return ("\n".join(lines) + "\n").encode()

    def write_metrics(self, path: Path) -> None:
        """Replace a file for node_exporter's textfile collector."""
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(self.metrics())
        os.replace(temporary, path)

    def serve_metrics(self, host: str, port: int) -> ThreadingHTTPServer:
        """Serve ``GET /metrics`` from a thread until the returned server is shut down."""
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                found = self.path == "/metrics"
                body = monitor.metrics() if found else b"there is nothing here\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer((host, port), Handler)
        threading.Thread(target=server.serve_forever, name="tallystick-metrics", daemon=True).start()
        return server
