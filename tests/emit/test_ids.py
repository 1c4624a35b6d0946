from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import uuid

import pytest

from ledger.emit import ids as ids_module
from ledger.emit.ids import GIVEN, SETTLED, RecordIds

UUID7 = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def test_ids_are_uuid7_of_now() -> None:
    ids = RecordIds()
    before = time.time_ns() // 1_000_000
    for _ in range(1000):
        text = ids.new()
        assert UUID7.fullmatch(text)
        value = uuid.UUID(text)
        assert value.variant == uuid.RFC_4122
        assert value.version == 7
        assert before - 1 <= value.int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_ids_rise_strictly() -> None:
    ids = RecordIds()
    made = [ids.new() for _ in range(200_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_rise_through_carries_of_the_counter(monkeypatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: 5_000_000)
    ids = RecordIds()
    for start in (0xFFE, 0xFFFFFE, (1 << 35) - 2):
        ids._count = iter(range(start, start + 5)).__next__
        made = [ids.new() for _ in range(5)]
        assert made == sorted(set(made))


def test_ids_do_not_step_back_with_the_clock(monkeypatch) -> None:
    ids = RecordIds()
    first = ids.new()
    monkeypatch.setattr(ids_module.time, "time_ns", lambda: 0)
    ids.follow_clock()
    assert ids.new() > first


def test_ids_follow_a_clock_that_was_set_forward(monkeypatch) -> None:
    ids = RecordIds()
    ahead = time.time_ns() + 3_600_000_000_000
    monkeypatch.setattr(ids_module.time, "time_ns", lambda: ahead)
    ids.follow_clock()
    assert uuid.UUID(ids.new()).int >> 80 >= ahead // 1_000_000


def test_threads_get_different_ids_and_the_mark_counts_them() -> None:
    ids = RecordIds()
    assert ids.marks[GIVEN] == ids.marks[SETTLED]
    made: list[list[str]] = [[] for _ in range(4)]

    def run(own: list[str]) -> None:
        own.extend(ids.new() for _ in range(5000))

    threads = [threading.Thread(target=run, args=(own,)) for own in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for own in made for each in own}) == 20_000
    ids.new()
    assert ids.marks[GIVEN] - ids.marks[SETTLED] == 20_001
    for own in made:
        assert own == sorted(own)


def test_processes_do_not_share_the_random_part() -> None:
    code = "from ledger.emit.ids import RecordIds; print(RecordIds().new())"
    tails = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout[-10:]
        for _ in range(3)
    }
    assert len(tails) == 3


@pytest.mark.skipif(ids_module._native is None, reason="the native part is not here")
def test_the_native_part_writes_the_same_ids(monkeypatch) -> None:
    ids = RecordIds()
    now = time.monotonic_ns()
    monkeypatch.setattr(ids_module.time, "monotonic_ns", lambda: now)
    for start in (1, 0xFFE, 0xFFFFFE, (1 << 35) - 2, (1 << 36) - 3):
        made = []
        for native in (ids_module._native, None):
            monkeypatch.setattr(ids_module, "_native", native)
            ids._count = iter(range(start, start + 3)).__next__
            made.append([ids.new() for _ in range(3)])
            monkeypatch.undo()
            monkeypatch.setattr(ids_module.time, "monotonic_ns", lambda: now)
        assert made[0] == made[1]
