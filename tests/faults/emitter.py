"""A process that records at a walking pace until told to stop: ``python -m tests.faults.emitter``.

Arguments: seed, spool, issuer. Lines on stdout: ``recorded ID``; ``acknowledged`` when the ledger has given
receipts for all so far; ``closed`` at the end. A line on stdin stops it: it then waits until all is sent.
"""

from __future__ import annotations

import os
import random
import select
import sys
import time

from ledger.emit import Recorder
from ledger.emit import sender as sender_module
from tests.build import make_deployment
from tests.emit.conftest import report

CLOSE_S = 120


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def main() -> None:
    seed, spool, issuer = sys.argv[1:]
    chance = random.Random(int(seed))
    sender_module._LAST_DELAY_S = 1.0  # a minute between tries would test nothing
    recorder = Recorder(
        spool=spool,
        issuer=issuer,
        deployment=make_deployment(model=f"m{chance.randrange(3)}"),
        max_age_s=0.05,
        max_records=chance.choice([3, 50, 4096]),
        heartbeat_s=2.0,
    )
    while not select.select([sys.stdin], [], [], 0)[0]:
        for _ in range(chance.randrange(1, 20)):
            say("recorded " + recorder.record(**report(tenant=f"t-{chance.randrange(9)}")))
        if chance.randrange(3) == 0 and recorder.flush(2.0):
            say("acknowledged")
        time.sleep(chance.random() * 0.2)
    if recorder.close(CLOSE_S):
        say("acknowledged")
    say("closed")


if __name__ == "__main__":
    main()
