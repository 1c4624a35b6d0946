"""Every call by which a recorder changes its spool fails, once and for a while: before it does anything, or
after all was done, as a disk does that cannot confirm."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.emit import Recorder
from tests.build import make_deployment
from tests.emit.conftest import report
from tests.emit.ledger_double import LedgerDouble

pytestmark = pytest.mark.faults

CALLS = ("write", "pwrite", "fsync", "open", "rename", "replace", "unlink", "close")
RECORDS = 12
THREADS = ("tallystick-seal", "tallystick-send")


class Failing:
    """Makes the calls of a recorder's threads fail, from the one of number ``first`` on."""

    def __init__(self, first: int | None, count: int, code: int, *, done: bool) -> None:
        self.made = 0
        self._range = range(first, first + count) if first is not None else range(0)
        self._code = code
        self._done = done
        self._lock = threading.Lock()  # guards the number of calls made

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name not in THREADS:
                return call(*args, **kwargs)
            with self._lock:
                number = self.made
                self.made += 1
            if number not in self._range:
                return call(*args, **kwargs)
            if self._done or name == "close":  # a file is closed though closing it fails
                result = call(*args, **kwargs)
                if name == "open":
                    os.close(result)
            raise OSError(self._code, os.strerror(self._code))

        return failing

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self.wrap(name, getattr(os, name)))
            yield


class Dial:
    """A meter that has counted some more at each reading."""

    name, method, accuracy_milli = "dial", "measured", None

    def __init__(self) -> None:
        self.first = self.value = 0

    def read(self) -> int:
        self.value += 997
        self.first = self.first or self.value
        return self.value


def run(spool: Path, failing: Failing, dial: Dial | None = None) -> None:
    with LedgerDouble() as ledger:
        recorder = Recorder(
            ledger.url,
            api_key=ledger.api_key,
            log_key=ledger.vkey,
            spool=spool,
            issuer="tests.example/failing",
            deployment=make_deployment(),
            max_age_s=0.01,
            max_records=4,
            meter=dial,
            meter_window_s=0.01,
        )
        ledger.keys[recorder.issuer] = recorder.public_key
        ids = []
        with failing.in_force():
            for n in range(RECORDS):
                wrong = {"started_us": 1} if n % 4 == 1 else {}
                ids.append(recorder.record(**report(tenant=f"t-{n % 3}", **wrong)))
                if n % 5 == 4:
                    time.sleep(0.012)
            assert recorder.flush(10), recorder.status()
        assert recorder.close(10), recorder.status()
        assert set(ledger.records) == {id for n, id in enumerate(ids) if n % 4 != 1}
        assert ledger.dropped == RECORDS // 4
        if dial is not None:
            carried = sum(record.energy.energy_uj for record in ledger.records.values() if record.energy)
            told = sum(getattr(each.payload, "unattributed_uj", 0) or 0 for each in ledger.statements)
            assert carried + told == dial.value - dial.first
    assert not [path.name for path in spool.glob("*.statement*")]
    assert not list((spool / "sessions").iterdir())


@pytest.mark.parametrize(
    ("count", "done", "metered"),
    [(1, False, False), (1, True, False), (3, False, False), (3, False, True), (7, True, True)],
)
def test_whichever_call_fails_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, done: bool, metered: bool
) -> None:
    for name, value in {
        "sealer._FIRST_RETRY_S": 0.002,
        "sealer._LAST_RETRY_S": 0.02,
        "sender._FIRST_DELAY_S": 0.002,
        "sender._LAST_DELAY_S": 0.02,
        "shipper._BLOCKED_S": 0.02,
    }.items():
        monkeypatch.setattr(f"ledger.emit.{name}", value)
    logging.getLogger("tallystick.emit").setLevel(logging.CRITICAL)
    try:
        whole = Failing(None, 0, 0, done=False)
        run(tmp_path / "whole", whole)
        for first in range(0, whole.made, count):
            code = errno.EIO if done else errno.ENOSPC
            dial = Dial() if metered else None
            run(tmp_path / f"{first}", Failing(first, count, code, done=done), dial)
    finally:
        logging.getLogger("tallystick.emit").setLevel(logging.NOTSET)
