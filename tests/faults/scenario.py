"""Everything at once: ``python -m tests.faults.scenario``, in a mount namespace of its own where root may.

The ledger is down for the whole run. In each round four processes record into one spool on a small disk;
the disk is full for a while, the clock is stepped, statements that wait are cut or changed at random bytes,
and the processes are killed. Then the ledger comes up, and the spool is sent. Prints what was recorded.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ledger.emit import Recorder
from ledger.emit import sender as sender_module
from ledger.emit.spool import Spool
from tests.build import make_deployment
from tests.emit.conftest import report
from tests.emit.real_service import RealService

DISK_BYTES = 6 << 20
WORKERS = 4
HOUR_S = 3600


@dataclass
class Worker:
    """One process, and what it said before it was killed."""

    process: subprocess.Popen[bytes]
    recorded: list[str] = field(default_factory=list)
    safe: set[str] = field(default_factory=set)
    ready: bool = False
    pending: bytes = b""

    def hear(self, chunk: bytes) -> None:
        *lines, self.pending = (self.pending + chunk).split(b"\n")
        for line in lines:
            word, _, record_id = line.decode().partition(" ")
            match word:
                case "ready":
                    self.ready = True
                case "recorded":
                    self.recorded.append(record_id)
                case "safe":
                    self.safe.update(self.recorded)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.stdout is not None
        while chunk := os.read(self.process.stdout.fileno(), 1 << 16):
            self.hear(chunk)
        self.process.wait(60)


def listen(workers: list[Worker], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    # Not select(), which refuses descriptors from 1024 on: a long test run has opened many.
    with selectors.DefaultSelector() as selector:
        for each in workers:
            assert each.process.stdout is not None
            selector.register(each.process.stdout, selectors.EVENT_READ, each)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, 1 << 16)
                assert chunk, "a worker ended by itself"
                key.data.hear(chunk)


def tear(spool: Path, chance: random.Random) -> int:
    """Cut or change one statement that waits, at any byte. Returns 1 if there was one."""
    files = sorted(spool.glob("*.statement"))
    if not files:
        return 0
    path = chance.choice(files)
    try:
        with open(path, "r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            at = chance.randrange(size) if size else 0
            if chance.randrange(2):
                file.truncate(at)
            elif size:
                byte = os.pread(file.fileno(), 1, at)
                os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << chance.randrange(8)]), at)
    except FileNotFoundError:
        return 0
    return 1


def fill(path: Path, leave: int) -> None:
    """Leave ``leave`` bytes of the disk."""
    with open(path, "wb", buffering=0) as file:
        free = shutil.disk_usage(path.parent).free - leave
        try:
            while free > 0:
                free -= file.write(bytes(min(free, 1 << 16)))
        except OSError:
            pass


def mount(directory: Path) -> bool:
    """A small disk of memory, which ends with this mount namespace."""
    if os.geteuid() != 0 or os.environ.get("TALLYSTICK_PRIVATE_MOUNTS") != "1":
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(directory)]
    return subprocess.run(command, check=False).returncode == 0


def main() -> None:
    seed, rounds, data, issuer, disk_text = sys.argv[1:]
    chance = random.Random(int(seed))
    disk = Path(disk_text)
    small = mount(disk)
    spool, clock = disk / "spool", disk.parent / "clock"
    clock.write_text("0")
    environment = os.environ | {
        "TALLYSTICK_URL": "http://127.0.0.1:9",
        "TALLYSTICK_LOG_KEY": f"{data}/log.vkey",
    }
    workers: list[Worker] = []
    torn = full = stepped = 0
    for _ in range(int(rounds)):
        running = []
        for _ in range(WORKERS):
            command = [
                sys.executable,
                "-m",
                "tests.faults.worker",
                str(chance.getrandbits(60)),
                str(spool),
                issuer,
            ]
            command.append(str(clock))
            running.append(Worker(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)))
        workers += running
        while not all(each.ready for each in running):
            listen(running, 0.05)
        for _ in range(chance.randrange(1, 6)):
            listen(running, chance.random() * 0.2)
            match chance.randrange(4):
                case 0:
                    torn += tear(spool, chance)
                case 1 if small:
                    full += 1
                    fill(disk / "filler", chance.choice([0, 0, 5000, 50_000]))
                    listen(running, 0.2)
                    (disk / "filler").unlink()
                case 2:
                    stepped += 1
                    write(clock, chance.choice([-HOUR_S, -HOUR_S, 0, -60]))
        for each in running:
            listen(running, chance.random() * 0.05)
            running = [other for other in running if other is not each]
            each.kill()
            torn += chance.randrange(2) and tear(spool, chance)
    write(clock, 0)

    sender_module._SETTLE_S = 0.2
    service = serve(Path(data))
    try:
        last_ids = send(spool, issuer, service)
    finally:
        service.stop()
    told = {
        "recorded": [record_id for each in workers for record_id in each.recorded] + last_ids,
        "safe": sorted({record_id for each in workers for record_id in each.safe}),
        "killed": len(workers),
        "torn": torn,
        "full": full,
        "stepped": stepped,
        "small": small,
        "set_aside": len(Spool(spool).torn()),
    }
    print(json.dumps(told))


def write(clock: Path, offset_s: int) -> None:
    temporary = clock.with_suffix(".tmp")
    temporary.write_text(str(offset_s))
    temporary.replace(clock)


def serve(data: Path) -> RealService:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        service = RealService(data, probe.getsockname()[1])
    service.start()
    return service


def send(spool: Path, issuer: str, service: RealService) -> list[str]:
    """Send all that waits, with recorders as usual; returns the ids of their own records."""
    ids = []
    with Recorder(spool=spool, issuer=issuer, deployment=make_deployment(), **service.options) as recorder:
        service.register(recorder)
        ids.append(recorder.record(**report()))
        for _ in range(60):
            if recorder.flush(5):
                break
        assert recorder.close(60), recorder.status()
    # Now nothing waits any more: a second one must find nothing to mend.
    with Recorder(spool=spool, issuer=issuer, deployment=make_deployment(), **service.options) as recorder:
        ids.append(recorder.record(**report()))
        assert recorder.close(60), recorder.status()
    return ids


if __name__ == "__main__":
    main()
