"""Clocks that are stepped while a recorder runs, against the real service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledger.core.records import decode_record
from ledger.emit.ids import RecordIds
from ledger.emit.survey import survey
from tests.emit.conftest import MakeRecorder, eventually, report
from tests.emit.ledger_double import LedgerDouble
from tests.emit.real_service import RealService, running_service
from tests.faults.counting import account

HOUR_S, DAY_S = 3600, 86_400
Step = Callable[[float], None]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("ledger") / "data") as running:
        yield running


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Step:
    """Sets by how many seconds this process's wall clock is wrong from now on."""
    real, offset = time.time_ns, 0

    def wrong() -> int:
        return real() + offset

    def set_to(seconds: float) -> None:
        nonlocal offset
        offset = int(seconds * 1e9)

    monkeypatch.setattr(time, "time_ns", wrong)
    monkeypatch.setattr(time, "time", lambda: wrong() / 1e9)
    return set_to


@pytest.mark.usefixtures("quick_retries")
def test_a_clock_stepped_back_one_hour_costs_nothing(
    service: RealService, make_recorder: MakeRecorder, step: Step
) -> None:
    recorder = make_recorder(issuer="tests.example/back", **service.options)
    service.register(recorder)
    ids = [recorder.record(**report()) for _ in range(3)]
    assert recorder.flush()
    begun = recorder.begin(), report()
    step(-HOUR_S)
    ids.append(recorder.record(**(begun[1] | {"ended_us": time.time_ns() // 1000}), id=begun[0]))
    ids += [recorder.record(**report()) for _ in range(3)]
    assert recorder.flush(20), recorder.status()
    step(0)
    ids += [recorder.record(**report()) for _ in range(3)]
    assert recorder.close(20), recorder.status()

    found = account(service.folder, recorder.issuer)
    assert sorted(found.logged) == ids  # in the order in which they were made
    assert found.dropped == recorder.status().dropped == 0
    issued = [each.payload.issued_us for each in found.statements]
    assert issued == sorted(issued)
    for record_id in ids:
        line = recorder.receipt_for(record_id)
        assert line is not None
        record = decode_record(line.record)
        assert record.started_us <= record.ended_us


def test_what_was_recorded_before_a_step_back_is_sealed_after_it(
    make_recorder: MakeRecorder, spool_dir: Path, step: Step
) -> None:
    recorder = make_recorder(max_age_s=10)
    for _ in range(5):
        recorder.record(**report())
    step(-HOUR_S)
    assert recorder.sync()
    assert recorder.status().dropped == 0
    assert survey(spool_dir).records == 5


def test_heartbeats_go_on_after_a_step_back(
    double: LedgerDouble, make_recorder: MakeRecorder, step: Step
) -> None:
    recorder = make_recorder(double, heartbeat_s=0.2)
    recorder.record(**report())
    assert recorder.flush()
    step(-HOUR_S)
    before = len(double.statements)
    assert eventually(lambda: len(double.statements) >= before + 2)


@pytest.mark.usefixtures("quick_retries")
def test_a_clock_stepped_forward_one_day_delays_and_costs_nothing(
    service: RealService, make_recorder: MakeRecorder, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger takes nothing from the future. It waits until the ledger's clock is there."""
    monkeypatch.setattr("ledger.emit.client._FUTURE_S", 0.05)
    recorder = make_recorder(issuer="tests.example/forward", **service.options)
    service.register(recorder)
    ids = [recorder.record(**report())]
    assert recorder.flush()
    step(DAY_S)
    ids.append(recorder.record(**report()))
    assert recorder.sync()
    step(0)
    ids += [recorder.record(**report()) for _ in range(3)]
    assert recorder.sync()
    assert eventually(lambda: "ahead of the ledger's clock" in str(recorder.status().problem))
    assert not recorder.status().blocked
    assert recorder.status().spooled > 0
    service.stop()
    monkeypatch.setenv("TALLYSTICK_MAX_CLOCK_SKEW_S", str(2 * DAY_S))  # stands for a day that passes
    service.start()
    assert recorder.flush(20), recorder.status()
    assert recorder.close(20), recorder.status()
    found = account(service.folder, recorder.issuer)
    assert sorted(found.logged) == sorted(ids)
    assert found.dropped == 0


def test_ids_of_a_process_never_step_back(step: Step) -> None:
    ids = RecordIds()
    made = []
    for offset in (0, -HOUR_S, DAY_S, 0, -DAY_S, HOUR_S):
        step(offset)
        ids.follow_clock()
        made += [ids.new() for _ in range(3)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_a_clock_before_2020_is_told(make_recorder: MakeRecorder, spool_dir: Path, step: Step) -> None:
    """A machine without a clock begins in 1970: its records cannot be times of the past, and are counted."""
    recorder = make_recorder()
    step(-time.time())
    recorder.record(**report())
    assert recorder.sync()
    assert recorder.status().dropped == 1
    step(0)
    recorder.record(**report())
    assert recorder.close()
