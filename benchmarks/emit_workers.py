"""Four processes that record on one machine: all in one spool (one chain), beside a spool and chain for each.

Each process records as fast as it can for a few seconds and waits for all of it to be on disk. *Full* seals
batches of 4,096 records; *second* seals what each process has once a second at 1,000 records/s in all, as a
server would; *small* seals every 16 records, which is the worst case for a shared lock. ``wait`` is how long
appending waited for the lock of the chain, for each statement.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from benchmarks.workload import DEPLOYMENT
from ledger.core.records import Usage
from ledger.emit import Recorder
from ledger.emit import spool as spool_module

WORKERS = 4
SECONDS = 3.0
ROUNDS = 3
_GROUP = 64
_KINDS: dict[str, tuple[int, float, float | None]] = {
    "full": (4096, 1.0, None),
    "second": (4096, 1.0, 1000.0),
    "small": (16, 0.0, None),
}
"""Records in a batch, its greatest age, and records a second of all processes (None: as they can)."""


def _work(directory: str, kind: str, start: Any, results: Queue[tuple[int, float, list[float]]]) -> None:
    waits: list[float] = []
    real = spool_module.locked_file

    @contextlib.contextmanager
    def timed(path: Path, **options: Any) -> Iterator[bool]:
        begun = time.perf_counter()
        with real(path, **options) as got:
            waits.append(time.perf_counter() - begun)
            yield got

    spool_module.locked_file = timed  # type: ignore[assignment]
    most, age_s, rate = _KINDS[kind]
    recorder = Recorder(
        spool=directory,
        issuer=f"bench.example/{Path(directory).name}",
        deployment=DEPLOYMENT,
        max_records=most,
        max_age_s=age_s,
        when_full="block",
        queue_limit=20_000,
    )
    prompt, output = list(range(512)), list(range(256))
    usage = Usage(input_tokens=512, output_tokens=256)
    start.wait()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        for _ in range(_GROUP if rate is None else 1):
            now = time.time_ns() // 1000
            recorder.record(
                usage=usage, started_us=now - 900_000, ended_us=now, input_ids=prompt, output_ids=output
            )
            count += 1
        if rate is not None:
            time.sleep(max(0.0, begun + count * WORKERS / rate - time.perf_counter()))
    recorder.close(120)
    results.put((count, time.perf_counter() - begun, waits))


def _measure(kind: str, *, shared: bool) -> tuple[float, list[float]]:
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(
                target=_work, args=(f"{folder}/{'all' if shared else number}", kind, start, results)
            )
            for number in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        time.sleep(2.0)
        start.set()
        found = [results.get(timeout=300) for _ in workers]
        for worker in workers:
            worker.join()
    rate = sum(count for count, _, _ in found) / max(took for _, took, _ in found)
    return rate, sorted(wait for _, _, waits in found for wait in waits)


def run() -> dict[str, Any]:
    """Records per second and waits for the lock, each the median of three runs in turns."""
    figures: dict[str, Any] = {}
    for kind in _KINDS:
        rates: dict[bool, list[float]] = {True: [], False: []}
        waits: dict[bool, list[list[float]]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for shared in (True, False):
                rate, waited = _measure(kind, shared=shared)
                rates[shared].append(rate)
                waits[shared].append(waited)
        for shared, name in ((True, "one_chain"), (False, "own_chains")):
            figures[f"{kind}_{name}_per_s"] = statistics.median(rates[shared])
            for share, text in ((50, "wait_ms"), (99, "wait_p99_ms")):
                each = [1000 * run_[len(run_) * share // 100] for run_ in waits[shared]]
                figures[f"{kind}_{name}_{text}"] = statistics.median(each)
        figures[f"{kind}_ratio"] = figures[f"{kind}_one_chain_per_s"] / figures[f"{kind}_own_chains_per_s"]
    return figures


if __name__ == "__main__":
    for figure, value in run().items():
        sys.stdout.write(f"{figure:36} {value:12.3f}\n")
