"""Generations that begin before they are recorded: what is counted, and when the clock is set meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.records import Record
from ledger.emit import Recorder
from ledger.emit.flights import Began, Flights
from ledger.emit.ids import RecordIds
from tests.emit.conftest import MakeRecorder, eventually, report
from tests.emit.ledger_double import LedgerDouble
from tests.emit.test_recorder import batches, told


def test_one_record_for_each_beginning(make_recorder: MakeRecorder, double: LedgerDouble) -> None:
    recorder = make_recorder(double)
    ids = [recorder.begin(input_tokens=12) for _ in range(5)]
    for id in reversed(ids):
        assert recorder.record(**report(), id=id) == id
    assert recorder.close()
    assert sorted(double.records) == sorted(ids) == ids
    assert recorder.status().dropped == 0


def test_what_was_abandoned_is_not_lost(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder()
    refused, kept = recorder.begin(), recorder.begin()
    recorder.abandon(refused)
    recorder.record(**report(), id=kept)
    assert recorder.close()
    assert sum(each.count for each in batches(spool_dir)) == 1
    assert told(spool_dir) == 0


def test_what_cannot_be_recorded_is_lost_and_told(
    make_recorder: MakeRecorder, spool_dir: Path, caplog: Any
) -> None:
    recorder = make_recorder()
    lost, kept = recorder.begin(), recorder.begin()
    recorder.lose(lost)
    recorder.record(**report(), id=kept)
    assert recorder.sync()
    assert (recorder.status().dropped, told(spool_dir)) == (1, 1)
    assert "queue is full" not in caplog.text
    assert recorder.close()
    assert sum(each.count for each in batches(spool_dir)) == 1
    assert told(spool_dir) == 1


def test_what_is_in_flight_at_the_end_is_told(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder()
    recorder.record(**report())
    for _ in range(3):
        recorder.begin()
    assert recorder.close()
    assert told(spool_dir) == 3


@pytest.mark.parametrize("wait", [False, True])
def test_what_a_kill_cut_short_is_told(make_recorder: MakeRecorder, spool_dir: Path, wait: bool) -> None:
    child = os.fork()
    if child == 0:
        recorder = make_recorder(max_age_s=0.0)
        recorder.abandon(recorder.begin())
        recorder.record(**report(), id=recorder.begin())
        recorder.begin()
        recorder.begin()
        if wait:
            recorder.sync()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    recorder = make_recorder()
    recorder.record(**report())
    assert recorder.close()
    logged = sum(each.count for each in batches(spool_dir))
    if wait:
        assert (logged, told(spool_dir)) == (2, 2)
    else:  # whatever the sealer had done by then: an abandoned one may count as lost, none as neither
        assert 4 <= logged + told(spool_dir) <= 5


def test_an_id_is_good_for_one_record(make_recorder: MakeRecorder, double: LedgerDouble, caplog: Any) -> None:
    recorder = make_recorder(double)
    id = recorder.begin()
    recorder.record(**report(), id=id)
    recorder.record(**report(), id=id)
    recorder.record(**report(), id="0190a6c8-0000-7000-8000-000000000000")
    recorder.record(**report())
    assert recorder.close()
    assert len(double.records) == 2
    assert recorder.status().dropped == 2
    assert double.dropped == 2
    assert "no generation with this id is in flight" in caplog.text


def test_a_child_records_what_its_parent_began(make_recorder: MakeRecorder, double: LedgerDouble) -> None:
    recorder = make_recorder(double)
    id = recorder.begin()
    child = os.fork()
    if child == 0:
        recorder.record(**report(), id=id)
        recorder.record(**report(), id=id)
        os._exit(0 if recorder.close() else 1)
    assert os.waitpid(child, 0)[1] == 0
    recorder.abandon(id)
    assert recorder.close()
    assert list(double.records) == [id]
    assert double.dropped == 1


def test_beginnings_that_nobody_ends_do_not_wait_in_the_queue(make_recorder: MakeRecorder) -> None:
    """However many: the serving thread wakes the sealer before they pile up."""
    recorder = make_recorder()
    for _ in range(20_000):
        recorder.abandon(recorder.begin())
    inbox = recorder._inbox
    assert eventually(lambda: not inbox.marks)


def test_a_beginning_after_the_end_leaves_nothing(make_recorder: MakeRecorder) -> None:
    recorder = make_recorder()
    recorder.close()
    recorder.record(**report(), id=recorder.begin())
    assert len(recorder._inbox.marks) <= 1
    assert recorder.status().dropped == 1


def test_a_full_queue_frees_what_began(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder(queue_limit=1, max_age_s=30.0)
    ids = [recorder.begin() for _ in range(4)]
    for id in ids:
        recorder.record(**report(), id=id)
    lost = recorder.status().dropped
    assert recorder.close()
    assert lost > 0
    assert sum(each.count for each in batches(spool_dir)) == 4 - lost
    assert told(spool_dir) == lost


def test_what_nobody_ends_is_given_up_and_counted_once(
    make_recorder: MakeRecorder, spool_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A process that runs for a month says so meanwhile, and keeps no memory for it."""
    monkeypatch.setattr("ledger.emit.flights.LONGEST_S", 0.1)
    monkeypatch.setattr("ledger.emit.sealer._UPKEEP_S", 0.02)
    recorder = make_recorder()
    ids = [recorder.begin() for _ in range(4)]
    recorder.record(**report())
    assert eventually(lambda: recorder.status().dropped == 4)
    assert len(recorder._sealer._flights) == 0
    assert "never ended" in caplog.text
    recorder.record(**report(), id=ids[0])
    recorder.lose(ids[1])
    recorder.abandon(ids[2])
    assert recorder.sync()
    assert recorder.status().dropped == 4
    assert "ended too late" in caplog.text
    young = recorder.begin()
    recorder.lose(young)
    recorder.record(**report())
    assert recorder.close()
    assert sum(each.count for each in batches(spool_dir)) == 2
    assert (recorder.status().dropped, told(spool_dir)) == (5, 5)
    assert not list((spool_dir / "sessions").iterdir())


def test_what_waits_in_the_queue_is_not_given_up(
    make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the spool took nothing."""
    monkeypatch.setattr("ledger.emit.flights.LONGEST_S", 0.0)
    recorder = make_recorder(max_records=2)
    monkeypatch.setattr(recorder, "_rouse", lambda: None)
    for id in [recorder.begin() for _ in range(5)]:
        recorder.record(**report(), id=id)
    sealer = recorder._sealer
    for _ in range(3):
        sealer._take()
    assert (sealer.held, sealer.given_up, sealer.rejected) == (5, 0, 0)


def test_old_flights_are_given_up_by_their_steady_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.emit.flights.LONGEST_S", 10.0)
    ids = RecordIds()
    flights = Flights(ids)
    old, young = ids.new(), ids.new()
    flights.began(old, 1_000_000_000, None)
    flights.began(young, 3_000_000_000, None)
    assert flights.give_up(11_000_000_000) == []
    assert flights.give_up(12_000_000_000) == [old]
    assert len(flights) == 1
    assert not flights.gave_up(old)  # its own time says that it is young
    monkeypatch.setattr("ledger.emit.flights.LONGEST_S", -1.0)
    assert flights.gave_up(old)
    assert not flights.gave_up(young)
    assert not flights.gave_up(RecordIds().new())
    assert not flights.gave_up("no id" + old[-9:])


def test_flights_follow_the_marks() -> None:
    ids = RecordIds()
    flights = Flights(ids)
    first, second = ids.new(), ids.new()
    flights.began(first, 10, 7)
    flights.began(second, 20, None)
    assert flights.landed(first) == Began(10, 7)
    assert flights.ended(second) == Began(20, None)
    assert flights.ended(second) is None
    assert len(flights) == 0
    with pytest.raises(InvalidError):
        flights.landed(first)


# --- the clock is set ------------------------------------------------------------------------------------

HOUR_US = 3_600_000_000


def one_record(
    recorder: Recorder, double: LedgerDouble, *, began: bool = True, **changes: Any
) -> Record | None:
    """Record a generation that took 20 ms and more; None if it was dropped."""
    id = recorder.begin() if began else None
    time.sleep(0.02)
    id = recorder.record(**report(**changes), id=id)
    assert recorder.flush()
    return double.records.get(id)


def spans(record: Record | None) -> tuple[int, int]:
    """Microseconds from start to first token, and from start to end."""
    assert record is not None
    assert isinstance(record.first_token_us, int)
    return record.first_token_us - record.started_us, record.ended_us - record.started_us


@pytest.mark.parametrize("step_us", [-HOUR_US, HOUR_US])
def test_a_clock_set_during_a_generation_spares_the_record(
    make_recorder: MakeRecorder, double: LedgerDouble, step_us: int
) -> None:
    """The times before the step are of the old clock, those after it of the new one."""
    recorder = make_recorder(double)
    now = time.time_ns() // 1000
    old = now - step_us
    before_first = one_record(
        recorder, double, started_us=old - 20_000, first_token_us=now - 9000, ended_us=now
    )
    first, whole = spans(before_first)
    assert 20_000 <= whole < 2_000_000
    assert first == whole - 9000
    after_first = one_record(
        recorder, double, started_us=old - 20_000, first_token_us=old - 9000, ended_us=now
    )
    first, whole = spans(after_first)
    assert 20_000 <= whole < 2_000_000
    assert first == 11_000
    assert recorder.status().dropped == 0


def test_a_clock_set_back_before_the_record_is_made_spares_it(
    make_recorder: MakeRecorder, double: LedgerDouble
) -> None:
    recorder = make_recorder(double)
    later = time.time_ns() // 1000 + HOUR_US
    record = one_record(
        recorder, double, started_us=later - 20_000, first_token_us=later - 5000, ended_us=later
    )
    assert spans(record) == (15_000, 20_000)
    assert record is not None
    assert record.ended_us < later - HOUR_US // 2


def test_a_first_token_at_no_possible_time_is_not_known(
    make_recorder: MakeRecorder, double: LedgerDouble
) -> None:
    now = time.time_ns() // 1000
    record = one_record(
        make_recorder(double), double, started_us=now - 50, first_token_us=now + 9, ended_us=now
    )
    assert record is not None
    assert record.first_token_us is UNSET
    assert (record.started_us, record.ended_us) == (now - 50, now)


def test_another_unit_is_not_another_time(make_recorder: MakeRecorder, double: LedgerDouble) -> None:
    recorder = make_recorder(double)
    nanoseconds = time.time_ns()
    for changes in (
        {"started_us": nanoseconds, "ended_us": nanoseconds + 5},
        {"started_us": nanoseconds // 1000, "ended_us": nanoseconds + 5},
        {"started_us": nanoseconds // 10**6, "ended_us": nanoseconds // 10**6 + 5},
        {"started_us": nanoseconds // 10**6, "ended_us": nanoseconds // 1000},
    ):
        assert one_record(recorder, double, first_token_us=None, **changes) is None
    assert recorder.status().dropped == 4


def test_without_a_beginning_nobody_knows_better(make_recorder: MakeRecorder, double: LedgerDouble) -> None:
    now = time.time_ns() // 1000
    recorder = make_recorder(double)
    assert one_record(recorder, double, began=False, started_us=now + 5, ended_us=now) is None
