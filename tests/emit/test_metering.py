"""A meter beside the recorder: records and what is nobody's sum to what it counted, whatever happens."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ledger import zstd
from ledger.core import cose
from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.records import Energy, Record, Usage, decode_record_lines
from ledger.core.statements import Batch, Heartbeat
from ledger.emit import Recorder
from ledger.emit.metering import Metering
from ledger.emit.spool import Spool
from ledger.energy.host_power import HostPower
from ledger.energy.meters import MeterReset, ModelledMeter, ReplayMeter, read_trace
from ledger.energy.windows import Rule
from tests.build import make_deployment, make_factor_set
from tests.emit.conftest import MakeRecorder, eventually, report

S = 10**9


class Dial:
    """A meter that shows what the test says, and 1 uJ more at each reading if it runs."""

    name = "dial"
    method = "measured"
    accuracy_milli: int | None = 50

    def __init__(self, *, running: int = 0) -> None:
        self.value = 0
        self.running = running
        self.first: int | None = None
        self.error: Exception | None = None

    def read(self) -> int:
        if self.error is not None:
            raise self.error
        self.value += self.running
        if self.first is None:
            self.first = self.value
        return self.value


class Books:
    """What the statements of a spool say."""

    def __init__(self, directory: Path) -> None:
        spool = Spool(directory)
        self.records: dict[str, Record] = {}
        self.unattributed_uj = self.dropped = 0
        for seq in spool.waiting():
            spooled = spool.load(seq)
            payload = spooled.statement.payload
            if isinstance(payload, Batch | Heartbeat):
                self.unattributed_uj += payload.unattributed_uj or 0
                self.dropped += payload.dropped
            if isinstance(payload, Batch):
                _, lines = cose.decode_cbor(zstd.decompress_bounded(spooled.body, 1 << 26), where="body")
                records, _ = decode_record_lines(lines)
                self.records |= {each.id: each for each in records}
                assert payload.count == len(records)

    def energy(self, id: str) -> Energy | None:
        energy = self.records[id].energy
        return energy if isinstance(energy, Energy) else None

    @property
    def carried_uj(self) -> int:
        return sum(e.energy_uj for id in self.records if (e := self.energy(id)) and e.method == "measured")


def begun(recorder: Recorder, count: int = 1) -> list[str]:
    """Begin, and let the meter be read: what it counts next is counted while they are active."""
    ids = [recorder.begin(input_tokens=12) for _ in range(count)]
    assert recorder.sync()
    return ids


def metered(make: MakeRecorder, meter: Any, **options: Any) -> Recorder:
    return make(meter=meter, **({"meter_window_s": 0.02, "heartbeat_s": None} | options))


def test_a_record_gets_what_was_counted_while_it_ran(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    dial = Dial()
    factors = make_factor_set(embodied_ng_per_s=10**9)
    recorder = metered(make_recorder, dial, meter_window_s=60.0, factors=factors)
    (id,) = begun(recorder)
    dial.value = 1001
    recorder.record(**report(), id=id)
    assert recorder.sync()
    assert recorder.close()
    books = Books(spool_dir)
    energy = books.energy(id)
    assert energy == Energy(
        energy_uj=1001, low_uj=950, high_uj=1052, method="measured", source="dial; windows/1"
    )
    record = books.records[id]
    assert isinstance(record.carbon_ng, int)
    assert isinstance(record.embodied_ng, int)  # from the share of the time
    assert books.unattributed_uj == 0


def test_overlapping_records_share_and_what_is_nobodys_is_told(
    make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    dial = Dial()
    recorder = metered(make_recorder, dial, meter_window_s=60.0)
    first, second = begun(recorder, 2)
    dial.value = 300
    for id in (first, second):
        recorder.record(**report(), id=id)
    assert recorder.sync()
    dial.value = 1000
    assert recorder.close()
    books = Books(spool_dir)
    shares = [energy.energy_uj for id in (first, second) if (energy := books.energy(id))]
    assert sum(shares) == 300
    assert all(share > 0 for share in shares)
    assert books.unattributed_uj == 700


def test_a_heartbeat_tells_what_is_nobodys(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    dial = Dial()
    recorder = make_recorder(meter=dial, meter_window_s=0.02, heartbeat_s=0.05)
    recorder.record(**report(), id=recorder.begin())
    assert recorder.sync()
    for seq in (spool := Spool(spool_dir)).waiting():
        spool.remove(seq)  # sent: with statements waiting, no other sign of life is given
    dial.value = 5000
    assert eventually(lambda: bool(spool.waiting()))
    assert recorder.close()
    assert Books(spool_dir).unattributed_uj == 5000


def test_records_with_energy_of_their_own_keep_it_and_weigh_nothing(
    make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    dial = Dial()
    recorder = metered(make_recorder, dial, meter_window_s=60.0)
    theirs, ours = begun(recorder, 2)
    own = Energy(energy_uj=5, method="estimated", source="table")
    recorder.record(**report(energy=own), id=theirs)
    dial.value = 900
    recorder.record(**report(), id=ours)
    assert recorder.sync()
    assert recorder.close()
    books = Books(spool_dir)
    assert books.energy(theirs) == own
    assert books.carried_uj == 900


def test_what_is_refused_abandoned_or_running_leaves_its_energy_to_nobody(
    make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    dial = Dial()
    recorder = metered(make_recorder, dial, meter_window_s=60.0)
    invalid, abandoned, running, good = begun(recorder, 4)
    dial.value = 4000
    assert recorder.sync()
    recorder.abandon(abandoned)
    recorder.record(**report(finish_reason=7), id=invalid)
    recorder.record(**report(), id=good)
    dial.value = 5000
    assert recorder.sync()
    assert recorder.close()
    books = Books(spool_dir)
    assert list(books.records) == [good]
    energy = books.energy(good)
    assert energy is not None
    assert energy.source == "dial; windows/1, presumed in part"
    assert energy.energy_uj + books.unattributed_uj == 5000
    assert books.unattributed_uj > 3000
    assert books.dropped == 2  # the invalid one, and the one that still ran
    del running


@pytest.mark.parametrize(
    "usage",
    [None, 7, Usage(input_tokens=-1, output_tokens=1), Usage(input_tokens="x", output_tokens=1)],  # type: ignore[arg-type]
)
def test_nonsense_costs_that_record_only(make_recorder: MakeRecorder, spool_dir: Path, usage: Any) -> None:
    dial = Dial()
    recorder = metered(make_recorder, dial, meter_window_s=60.0)
    bad, good = begun(recorder, 2)
    recorder.record(**report(usage=usage), id=bad)
    recorder.record(**report(usage=usage))
    recorder.record(**report(started_us="x", ended_us=None))
    dial.value = 70
    recorder.record(**report(), id=good)
    assert recorder.sync()
    assert recorder.close()
    books = Books(spool_dir)
    assert list(books.records) == [good]
    assert books.carried_uj + books.unattributed_uj == 70
    assert books.dropped == 3


def test_without_a_beginning_times_say_who_was_active(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    dial = Dial()
    recorder = metered(make_recorder, dial, meter_window_s=60.0)
    time.sleep(0.1)
    now = time.time_ns() // 1000
    short = recorder.record(**report(started_us=now - 90_000, first_token_us=None, ended_us=now))
    before = recorder.record(**report(started_us=now - 900_000, first_token_us=None, ended_us=now))
    dial.value = 1000
    assert recorder.sync()
    assert recorder.close()
    books = Books(spool_dir)
    assert books.energy(short) is not None
    assert books.energy(before) is None  # most of its time was before the meter
    assert books.carried_uj + books.unattributed_uj == 1000


# --- meters that fail ------------------------------------------------------------------------------------


def test_a_meter_that_never_answers_costs_energy_not_records(
    make_recorder: MakeRecorder, spool_dir: Path, caplog: Any
) -> None:
    dial = Dial()
    dial.error = UnavailableError("unplugged")
    # With a rated power, one could guess; beside what a meter measured, nobody may.
    recorder = metered(make_recorder, dial, deployment=make_deployment(power_mw=1000))
    ids = [recorder.record(**report(busy_us=5), id=recorder.begin()) for _ in range(5)]
    assert recorder.sync()
    assert recorder.status().problem == "unplugged"
    assert "unplugged" in caplog.text
    assert recorder.close()
    books = Books(spool_dir)
    assert sorted(books.records) == sorted(ids)
    assert all(books.energy(id) is None for id in ids)


def test_a_meter_that_fails_for_a_while(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    dial = Dial(running=1)
    recorder = metered(make_recorder, dial)
    good = recorder.record(**report(), id=recorder.begin())
    assert recorder.sync()
    dial.error = RuntimeError("a bug")
    assert eventually(lambda: "a bug" in str(recorder.status().problem))
    without = recorder.record(**report(), id=recorder.begin())
    assert recorder.sync()
    dial.error = None
    assert eventually(lambda: recorder.status().problem is None)
    again = recorder.begin()
    time.sleep(0.1)
    recorder.record(**report(), id=again)
    assert recorder.sync()
    assert recorder.close()
    books = Books(spool_dir)
    assert [books.energy(id) is None for id in (good, without, again)] == [False, True, False]
    assert books.carried_uj + books.unattributed_uj == dial.value - (dial.first or 0)


@pytest.mark.parametrize("counters", [1, 2, 3])
def test_counters_that_start_anew_cost_their_window(
    make_recorder: MakeRecorder, spool_dir: Path, counters: int
) -> None:
    """Of several that are summed, each says so at another reading."""

    class Resetting(Dial):
        resets = 0

        def read(self) -> int:
            if self.resets:
                self.resets -= 1
                raise MeterReset("anew")
            return super().read()

    dial = Resetting()
    recorder = metered(make_recorder, dial, meter_window_s=60.0)
    (before,) = begun(recorder)
    dial.value = 100
    recorder.record(**report(), id=before)
    assert recorder.sync()
    (through,) = begun(recorder)
    time.sleep(0.06)
    dial.value, dial.resets = 107, counters
    recorder.record(**report(), id=through)
    for _ in range(counters):
        assert recorder.sync()
    (after,) = begun(recorder)
    dial.value = 127
    recorder.record(**report(), id=after)
    assert recorder.sync()
    assert recorder.close()
    books = Books(spool_dir)
    found = [e.energy_uj if (e := books.energy(id)) else None for id in (before, through, after)]
    assert found == [100, None, 20]
    assert books.unattributed_uj == 0


def test_a_meter_that_hangs_holds_nobody_up(
    make_recorder: MakeRecorder, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.emit.metering._LOCK_WAIT_S", 0.1)
    hangs, release = threading.Event(), threading.Event()

    class Hanging(Dial):
        def read(self) -> int:
            if hangs.is_set():
                release.wait(40)
            return super().read()

    recorder = metered(make_recorder, Hanging(running=1))
    first = recorder.record(**report(), id=recorder.begin())
    assert recorder.sync()
    hangs.set()
    time.sleep(0.1)
    id = recorder.begin()
    time.sleep(0.1)
    recorder.record(**report(), id=id)
    began = time.monotonic()
    assert recorder.sync(10)
    assert recorder.close(10)
    assert time.monotonic() - began < 25
    release.set()
    books = Books(spool_dir)
    assert list(books.records) == [first, id]
    assert books.energy(id) is None


def test_a_modelled_meter_counts_active_time_only(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    power = HostPower("cpu", "gen", 2, 1_000, 2_000, 10_000, 20_000, "table", True)
    recorder = metered(make_recorder, ModelledMeter(power, utilisation_milli=500))
    time.sleep(0.3)
    begun = time.monotonic()
    id = recorder.begin()
    time.sleep(0.1)
    recorder.record(**report(), id=id)
    active_s = time.monotonic() - begun
    time.sleep(0.3)
    assert recorder.close()
    energy = Books(spool_dir).energy(id)
    assert energy is not None
    assert (energy.method, energy.source) == ("modelled", "table; windows/1")
    assert 600_000 <= energy.energy_uj <= 6_000_000 * (active_s + 0.1)  # 6 W while it was active
    assert energy.low_uj == pytest.approx(energy.energy_uj / 6, rel=0.01)
    assert energy.high_uj == pytest.approx(energy.energy_uj / 6 * 20, rel=0.01)
    assert Books(spool_dir).unattributed_uj == 0


@pytest.mark.parametrize("options", [{"meter_window_s": 0.0}, {"meter_window_s": -1.0}])
def test_a_window_without_length_is_refused(make_recorder: MakeRecorder, options: dict[str, float]) -> None:
    with pytest.raises(InvalidError):
        metered(make_recorder, Dial(), **options)


def test_a_meter_is_named_by_the_environment(
    make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    assert not make_recorder().is_metered
    monkeypatch.setenv("TALLYSTICK_METER", "model")
    assert make_recorder().is_metered
    assert not make_recorder(meter="none").is_metered
    monkeypatch.setenv("TALLYSTICK_METER", "psychic")
    with pytest.raises(InvalidError):
        make_recorder()
    monkeypatch.setenv("TALLYSTICK_METER", "auto")
    monkeypatch.setattr("ledger.energy.meters.find._PARTS", ())
    monkeypatch.setattr(
        "ledger.energy.meters.find._chip", lambda: (_ for _ in ()).throw(UnavailableError("no"))
    )
    assert not make_recorder().is_metered
    assert "no energy counter can be read" in caplog.text


# --- processes -------------------------------------------------------------------------------------------


def test_what_waits_for_its_energy_is_counted_when_killed(
    make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    child = os.fork()
    if child == 0:
        recorder = metered(make_recorder, Dial(running=1), rule=Rule(patience_s=60))
        recorder.begin()  # runs on, so that the others wait for it
        for _ in range(6):
            recorder.record(**report(), id=recorder.begin())
        eventually(lambda: not recorder._inbox.queue and recorder.status().queued == 6)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    recorder = make_recorder()
    recorder.record(**report())
    assert recorder.close()
    books = Books(spool_dir)
    assert len(books.records) == 1
    assert books.dropped == 7


def test_of_two_processes_one_meters(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    dial = Dial()
    recorder = metered(make_recorder, dial, meter_window_s=60.0)
    (id,) = begun(recorder)
    dial.value = 10
    recorder.record(**report(), id=id)
    assert recorder.sync()
    child = os.fork()
    if child == 0:
        dial.value = 10_000
        recorder.record(**report(), id=recorder.begin())
        good = recorder.sync() and "another process" in str(recorder.status().problem)
        os._exit(0 if recorder.close() and good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert recorder.close()
    # A thread that signed holds a lock of OpenSSL while it ends, after Python has joined it: a child that is
    # forked then could never sign.
    time.sleep(0.2)
    child = os.fork()
    if child == 0:  # the first is gone: whoever comes takes over
        recorder = metered(make_recorder, dial, meter_window_s=60.0)
        (id,) = begun(recorder)
        dial.value = 17
        recorder.record(**report(), id=id)
        os._exit(0 if recorder.sync() and recorder.close() else 1)
    assert os.waitpid(child, 0)[1] == 0
    books = Books(spool_dir)
    assert len(books.records) == 3
    assert books.carried_uj == 17


def test_a_child_meters_if_its_parent_does_not(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    """As under a server that forks its workers: the parent only made the recorder."""
    dial = Dial()
    recorder = metered(make_recorder, dial)
    child = os.fork()
    if child == 0:
        dial.running = 1
        recorder.record(**report(), id=recorder.begin())
        recorder.sync()
        id = recorder.begin()
        time.sleep(0.1)
        recorder.record(**report(), id=id)
        os._exit(0 if recorder.close() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert recorder.close()
    assert Books(spool_dir).carried_uj > 0


def test_what_another_process_attributed_is_not_attributed_again(spool_dir: Path) -> None:
    spool_dir.mkdir()
    late, dial = Metering(Dial(), spool_dir, 60.0, lambda: None), Dial()
    early = Metering(dial, spool_dir, 60.0, lambda: None)
    for each in (late, early):
        each.look()
    time.sleep(0.01)
    assert early.read() is not None
    assert late.read() is None  # it is the other's to read
    early.close()
    assert late.read() is None  # only the beginning of a window
    assert late.read() is not None
    assert len(late.take(time.monotonic_ns())) == 1


# --- everything at once ----------------------------------------------------------------------------------


def trace_of_a_server(seed: int, seconds: int = 60) -> list[tuple[int, int]]:
    """A power trace as a model has it (no machine was measured): 90 W idle, 35 W a request."""
    dice = random.Random(seed)
    points, energy, at = [(0, 0)], 0, 0
    while at < seconds * S:
        step = int(dice.uniform(0.05, 0.2) * S)
        at += step
        energy += (90 + 35 * dice.randrange(8)) * step // 1000
        points.append((at, energy))
    return points


def power_trace() -> list[tuple[int, int]]:
    """The trace of TALLYSTICK_POWER_TRACE (CSV: time_s, power_w), for real ones; else a modelled one."""
    path = os.environ.get("TALLYSTICK_POWER_TRACE")
    return read_trace(Path(path)) if path else trace_of_a_server(7)


def busy(recorder: Recorder, seed: int, until: float, ids: list[str]) -> None:
    dice = random.Random(seed)
    while time.monotonic() < until:
        id = recorder.begin(input_tokens=9)
        started = time.time_ns() // 1000
        time.sleep(dice.uniform(0, 0.03))
        first = time.time_ns() // 1000
        time.sleep(dice.uniform(0, 0.05))
        if dice.random() < 0.1:
            recorder.abandon(id)
            continue
        usage = Usage(input_tokens=dice.randrange(2000), output_tokens=dice.randrange(300))
        ended = time.time_ns() // 1000
        fields = report(usage=usage, started_us=started, first_token_us=first, ended_us=ended)
        if dice.random() < 0.1:
            fields["finish_reason"] = 7  # invalid
        else:
            ids.append(id)
        recorder.record(**fields, id=id)


def test_a_replayed_trace_is_conserved_in_the_chain(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    """Eight threads serve while a trace is replayed at twenty times its speed; some is refused."""
    meter = ReplayMeter(power_trace(), speed=20, accuracy_milli=50)
    recorder = metered(
        make_recorder, meter, meter_window_s=0.05, rule=Rule(patience_s=0.2, idle_mw=90_000, idle="gaps")
    )
    first = meter.total_uj
    until = time.monotonic() + 3.0
    ids: list[list[str]] = [[] for _ in range(8)]
    threads = [threading.Thread(target=busy, args=(recorder, i, until, ids[i])) for i in range(8)]
    for each in threads:
        each.start()
    while time.monotonic() < until:
        time.sleep(0.3)
        assert recorder.sync()
    for each in threads:
        each.join()
    assert recorder.close()
    books = Books(spool_dir)
    assert sorted(books.records) == sorted(id for some in ids for id in some)
    assert meter.total_uj - first > 0
    assert books.carried_uj + books.unattributed_uj == meter.total_uj - first
    assert books.carried_uj > books.unattributed_uj
    energies = [books.energy(id) for id in books.records]
    assert sum(energy is None for energy in energies) == 0
