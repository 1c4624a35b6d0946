"""kill -9 of processes that record: what they said is safe is in the log once, and what was lost is counted.

The ledger is the real service. TALLYSTICK_FAULT_ROUNDS sets how often processes are killed,
TALLYSTICK_FAULT_SEED when.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.emit import Recorder
from ledger.emit.spool import Spool
from tests.build import make_deployment
from tests.emit.conftest import report
from tests.emit.real_service import RealService, running_service
from tests.faults.counting import account
from tests.faults.scenario import Worker, listen

ROUNDS = int(os.environ.get("TALLYSTICK_FAULT_ROUNDS", "10"))
SEED = int(os.environ.get("TALLYSTICK_FAULT_SEED", str(time.time_ns())))
ISSUER = "tests.example/killed"
ROOT = Path(__file__).parents[2]


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
        while not all(each.ready for each in running):
            listen(running, 0.02)
        for each in running:
            listen(running, chance.random() ** 2 * 0.8)
            running = [other for other in running if other is not each]
            each.kill()
            killed.append(each)

    with Recorder(spool=spool, issuer=ISSUER, deployment=make_deployment()) as last:
        last_id = last.record(**report())
        assert last.close(120), last.status()
    assert not Spool(spool).waiting()
    assert not Spool(spool).torn()
    check(service.folder, killed, last_id)


def start(spool: Path, chance: random.Random) -> Worker:
    command = [
        sys.executable,
        "-m",
        "tests.faults.worker",
        str(chance.getrandbits(60)),
        str(spool),
        ISSUER,
        "-",
    ]
    return Worker(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT))


def check(folder: Path, killed: list[Worker], last_id: str) -> None:
    found = account(folder, ISSUER)
    logged, dropped = found.logged, found.dropped
    recorded = [record_id for each in killed for record_id in each.recorded] + [last_id]
    assert max(logged.values()) == 1
    assert len(set(recorded)) == len(recorded)
    for each in killed:
        assert logged.keys() >= each.safe
    unheard = logged.keys() - set(recorded)  # recorded, but killed before it said so
    assert len(unheard) <= len(killed)
    # Each record that was reported is logged or counted as dropped, and nothing else is counted.
    print(f"{len(recorded)} recorded, {len(logged)} logged, {dropped} dropped, {len(killed)} killed")
    assert len(recorded) <= len(logged) + dropped <= len(recorded) + len(killed)
