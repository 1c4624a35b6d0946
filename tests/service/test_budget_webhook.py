"""Alerts reach the address that the operator names, until it takes them, and no other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger import outgoing
from ledger.core.errors import RefusedError
from ledger.service.budget_webhook import AlertWebhook
from ledger.store import budgets as rows
from ledger.store.budgets import Alert
from tests.build import make_ledger
from tests.emit.wire import answering, free_port

HERE = outgoing.parse_reach("127.0.0.1")
TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
ALERT = Alert("b", "acme", 0, 80, "0199c6f2-7b1c-7000-8000-9f1d2c3b4a59", 81, 100, 1_760_000_000)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_alert_is_told_until_it_is_taken_and_then_no_more(tmp_path: Path) -> None:
    store = make_ledger(tmp_path).store
    with store.write() as connection:
        rows.lock(connection)
        assert rows.add_alert(connection, ALERT)

    def untold() -> int:
        with store.read() as connection:
            return len(rows.alerts(connection, untold=True))

    with answering(BUSY, TAKEN) as (url, requests):
        webhook = AlertWebhook(store, f"{url}/alerts", reach=HERE, retry_s=0.05)
        webhook.start()
        try:
            eventually(lambda: untold() == 0)
            webhook.wake()
        finally:
            webhook.stop()
        assert len(requests) == 2
        head, _, body = requests[1].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /alerts ")
        told = json.loads(body)
        assert (told["budget"], told["percent"], told["record"]) == ("b", 80, ALERT.record)
    store.close()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "https://10.0.0.1/", "https://169.254.169.254/latest"]
)
def test_an_internal_address_must_be_allowed(tmp_path: Path, url: str) -> None:
    store = make_ledger(tmp_path).store
    with pytest.raises(RefusedError) as refused:
        AlertWebhook(store, url)
    assert refused.value.code == "internal-address"
    store.close()


def test_an_address_that_is_away_stops_nothing(tmp_path: Path) -> None:
    store = make_ledger(tmp_path).store
    with store.write() as connection:
        rows.lock(connection)
        rows.add_alert(connection, ALERT)
    webhook = AlertWebhook(store, f"http://127.0.0.1:{free_port()}/", reach=HERE)
    webhook.start()
    time.sleep(0.2)
    begun = time.monotonic()
    webhook.stop()
    assert time.monotonic() - begun < 10
    with store.read() as connection:
        assert len(rows.alerts(connection, untold=True)) == 1
    store.close()
