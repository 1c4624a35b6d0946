from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.core.records import Usage
from ledger.emit import Recorder
from ledger.emit import sender as sender_module
from tests.build import make_deployment
from tests.emit.ledger_double import LedgerDouble

MakeRecorder = Callable[..., Recorder]


@pytest.fixture
def double() -> Iterator[LedgerDouble]:
    with LedgerDouble() as ledger:
        yield ledger


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def make_recorder(spool_dir: Path) -> Iterator[MakeRecorder]:
    """Makes recorders of this test's spool, and closes them."""
    made: list[Recorder] = []

    def make(double: LedgerDouble | None = None, **options: Any) -> Recorder:
        defaults: dict[str, Any] = {
            "spool": spool_dir,
            "issuer": "tests.example/emitter",
            "deployment": make_deployment(),
            "max_age_s": 0.1,
        }
        if double is not None:
            defaults |= {"url": double.url, "api_key": double.api_key, "log_key": double.vkey}
        recorder = Recorder(**(defaults | options))
        if double is not None:
            double.keys[recorder.issuer] = recorder.public_key
        made.append(recorder)
        return recorder

    yield make
    for recorder in made:
        recorder.close(0.5)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry within milliseconds instead of seconds."""
    monkeypatch.setattr(sender_module, "_FIRST_DELAY_S", 0.002)
    monkeypatch.setattr(sender_module, "_LAST_DELAY_S", 0.02)
    monkeypatch.setattr("ledger.emit.shipper._BLOCKED_S", 0.02)


def report(**changes: Any) -> dict[str, Any]:
    """Arguments of ``Recorder.record``."""
    now = time.time_ns() // 1000
    fields: dict[str, Any] = {
        "usage": Usage(input_tokens=12, output_tokens=5),
        "started_us": now - 900_000,
        "first_token_us": now - 800_000,
        "ended_us": now,
        "input_ids": list(range(12)),
        "output_ids": [7, 8, 9, 10, 11],
        "finish_reason": "stop",
        "tenant": "t-1",
    }
    return fields | changes


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return condition()
