"""kill -9 of processes that record: what they said is safe is in the log once, and what was lost is counted.

The ledger is the real service. TALLYSTICK_FAULT_ROUNDS sets how often processes are killed,
TALLYSTICK_FAULT_SEED when.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ledger.emit import Recorder
from ledger.emit.spool import Spool
from tests.build import make_deployment
from tests.emit.conftest import report
from tests.emit.real_service import RealService, running_service
from tests.faults.counting import account

ROUNDS = int(os.environ.get("TALLYSTICK_FAULT_ROUNDS", "10"))
SEED = int(os.environ.get("TALLYSTICK_FAULT_SEED", str(time.time_ns())))
ISSUER = "tests.example/killed"

CHILD = textwrap.dedent(
    """
    import os, random, sys, time
    from ledger.emit import Recorder
    from tests.build import make_deployment
    from tests.emit.conftest import report
    seed, spool, issuer = sys.argv[1:]
    chance = random.Random(int(seed))
    recorder = Recorder(
        spool=spool,
        issuer=issuer,
        deployment=make_deployment(model=f"m{chance.randrange(3)}"),
        max_age_s=chance.choice([0.0, 0.005, 0.05]),
        max_records=chance.choice([3, 50, 4096]),
    )
    say = lambda text: os.write(1, text.encode() + b"\\n")
    say("ready")
    while True:
        for _ in range(chance.randrange(1, 60)):
            say("recorded " + recorder.record(**report(tenant=f"t-{chance.randrange(50)}")))
        match chance.randrange(4):
            case 0:
                recorder.sync(60) and say("safe")
            case 1:
                recorder.flush(60) and say("logged")
            case 2:
                time.sleep(chance.random() / 50)
    """
)


@dataclass
class Killed:
    """A process that records until it is killed, and what it said before."""

    process: subprocess.Popen[bytes]
    recorded: list[str] = field(default_factory=list)
    safe: set[str] = field(default_factory=set)
    logged: set[str] = field(default_factory=set)
    pending: bytes = b""

    def listen(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.process.stdout], [], [], left)[0]:
                self.hear(os.read(self.process.stdout.fileno(), 1 << 16))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        while chunk := os.read(self.process.stdout.fileno(), 1 << 16):
            self.hear(chunk)
        self.process.wait(30)

    def hear(self, chunk: bytes) -> None:
        *lines, self.pending = (self.pending + chunk).split(b"\n")
        for line in lines:
            word, _, record_id = line.decode().partition(" ")
            match word:
                case "recorded":
                    self.recorded.append(record_id)
                case "safe":
                    self.safe.update(self.recorded)
                case "logged":
                    self.logged.update(self.recorded)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("ledger") / "data") as running:
        yield running


@pytest.mark.faults
@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_kill_nine_of_recording_processes(
    service: RealService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {SEED}, {ROUNDS} rounds")
    chance = random.Random(SEED)
    spool = tmp_path / "spool"
    monkeypatch.setenv("TALLYSTICK_URL", service.url)
    monkeypatch.setenv("TALLYSTICK_API_KEY", service.admin_key)
    monkeypatch.setenv("TALLYSTICK_LOG_KEY", str(service.folder / "log.vkey"))
    with Recorder(spool=spool, issuer=ISSUER, deployment=make_deployment()) as recorder:
        service.register(recorder)

    killed = []
    for _ in range(ROUNDS):
        running = [start(spool, chance) for _ in range(chance.choice([1, 1, 2]))]
        for each in running:
            assert os.read(each.process.stdout.fileno(), 6) == b"ready\n"
        for each in running:
            each.listen(chance.random() ** 2 * 0.8)
        for each in running:
            each.kill()
            killed.append(each)

    with Recorder(spool=spool, issuer=ISSUER, deployment=make_deployment()) as last:
        last_id = last.record(**report())
        assert last.close(120), last.status()
    assert not Spool(spool).waiting()
    assert not Spool(spool).torn()
    check(service.folder, killed, last_id)


def start(spool: Path, chance: random.Random) -> Killed:
    command = [sys.executable, "-c", CHILD, str(chance.getrandbits(60)), str(spool), ISSUER]
    return Killed(subprocess.Popen(command, stdout=subprocess.PIPE))


def check(folder: Path, killed: list[Killed], last_id: str) -> None:
    found = account(folder, ISSUER)
    logged, dropped = found.logged, found.dropped
    recorded = [record_id for each in killed for record_id in each.recorded] + [last_id]
    assert max(logged.values()) == 1
    assert len(set(recorded)) == len(recorded)
    for each in killed:
        assert logged.keys() >= each.safe | each.logged
    unheard = logged.keys() - set(recorded)  # recorded, but killed before it said so
    assert len(unheard) <= len(killed)
    # Each record that was reported is logged or counted as dropped, and nothing else is counted.
    print(f"{len(recorded)} recorded, {len(logged)} logged, {dropped} dropped, {len(killed)} killed")
    assert len(recorded) <= len(logged) + dropped <= len(recorded) + len(killed)
