"""A process that records until it is killed, and says what it did: ``python -m tests.faults.worker``.

Arguments: seed, spool, issuer, and a file that says by how many seconds the clock is wrong (``-`` for none).
Lines on stdout: ``ready``; ``recorded ID`` for each record begun; ``safe`` when all so far are on disk.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from ledger.core.errors import TallystickError
from ledger.emit import Recorder
from tests.build import make_deployment
from tests.emit.conftest import report


def follow(path: Path) -> None:
    """Let this process's wall clock be wrong by what ``path`` says; monotonic time is not."""
    real_time_ns = time.time_ns

    def wrong_time_ns() -> int:
        try:
            offset_s = int(path.read_text() or 0)
        except (OSError, ValueError):
            offset_s = 0
        return real_time_ns() + offset_s * 1_000_000_000

    time.time_ns = wrong_time_ns
    time.time = lambda: wrong_time_ns() / 1e9


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def main() -> None:
    seed, spool, issuer, clock = sys.argv[1:]
    patience_s = 60.0
    if clock != "-":
        follow(Path(clock))
        patience_s = 0.3  # the ledger is down, and the disk may be full
    chance = random.Random(int(seed))
    while True:
        try:
            recorder = Recorder(
                spool=spool,
                issuer=issuer,
                deployment=make_deployment(model=f"m{chance.randrange(3)}"),
                max_age_s=chance.choice([0.0, 0.005, 0.05]),
                max_records=chance.choice([3, 50, 4096]),
                queue_limit=65_536 if clock == "-" else chance.choice([40, 65_536]),
                heartbeat_s=0.5,
            )
            break
        except TallystickError:  # a full disk
            time.sleep(0.05)
    say("ready")
    while True:
        for _ in range(chance.randrange(1, 60)):
            if chance.randrange(4):
                say("recorded " + recorder.record(**report(tenant=f"t-{chance.randrange(50)}")))
                continue
            begun = report()
            record_id = recorder.begin(input_tokens=12)
            say("recorded " + record_id)
            if chance.randrange(20) == 0:
                time.sleep(chance.random() / 20)
            now = time.time_ns() // 1000
            recorder.record(**(begun | {"ended_us": now, "first_token_us": None}), id=record_id)
        match chance.randrange(4):
            case 0:
                recorder.sync(patience_s) and say("safe")
            case 1:
                recorder.flush(patience_s) and say("safe")
            case 2:
                time.sleep(chance.random() / 50)


if __name__ == "__main__":
    main()
