"""The fuzzer: ``python -m tests.fuzz --seconds N --inputs N --seed S --target T --workers N``.

Every input runs under a limit of time (a second of this process's own CPU) and memory; whatever escapes a
target but its return is a failure: the input is written to ``crashes/``, to be moved to ``corpus/<target>/``
once the cause is repaired. An input with an outcome not seen before joins the seeds, so that the search goes
on from there. The same seed and number of workers give the same inputs.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import mmap
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue
from threading import Thread

from tests.fuzz.mutate import MAX_INPUT_BYTES, mutate

__all__ = ["CORPUS", "Result", "load_targets", "main", "run_target"]

Target = Callable[[bytes], "str | None"]

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
CRASHES = HERE / "crashes"
MODULES = (
    "targets_core",
    "targets_emit",
    "targets_engines",
    "targets_log",
    "targets_native",
    "targets_service",
)

CPU_LIMIT_S = 1.0
"""No parser may take longer, whatever 128 KiB it is fed."""
MEMORY_LIMIT_BYTES = 1 << 30
"""What a worker may allocate beyond what it has when it starts."""
MAX_FAILURES = 20
"""A target that failed in so many places is left alone."""
_MAX_LEARNED = 300


class _TooSlowError(Exception):
    """An input took longer than ``CPU_LIMIT_S``."""


@dataclass
class Result:
    """What came of one target's inputs."""

    inputs: int = 0
    slowest_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """By place of failure: the first input and its traceback."""

    def add(self, other: Result) -> None:
        """Take in another worker's result."""
        self.inputs += other.inputs
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.outcomes += other.outcomes
        self.failures = other.failures | self.failures


def load_targets() -> tuple[dict[str, Target], dict[str, list[bytes]]]:
    """All targets and, for each, its seeds and regression inputs."""
    targets: dict[str, Target] = {}
    seeds: dict[str, list[bytes]] = {}
    for name in MODULES:
        module = importlib.import_module(f"tests.fuzz.{name}")
        targets |= module.TARGETS
        seeds |= module.SEEDS
    for name in targets:
        folder = CORPUS / name
        kept = sorted(folder.iterdir()) if folder.is_dir() else []
        seeds[name] = [*seeds[name], *(path.read_bytes() for path in kept)]
    return targets, seeds


def run_target(
    target: Target,
    seeds: Sequence[bytes],
    *,
    inputs: int,
    seconds: float,
    randomness: random.Random,
    remember: Callable[[bytes], object] = bytes,
) -> Result:
    """Feed ``target`` its seeds, then broken copies of them, until ``inputs`` or ``seconds`` are used up.

    Args:
        target: what is tested.
        seeds: inputs to start from.
        inputs: how many at most.
        seconds: how long at most.
        randomness: decides what is broken.
        remember: is called with each input before the target is.
    """
    result = Result()
    pool = list(seeds)
    queue = list(seeds)
    deadline = time.monotonic() + seconds
    previous = signal.signal(signal.SIGPROF, _too_slow)
    try:
        while result.inputs < inputs and len(result.failures) < MAX_FAILURES:
            if time.monotonic() > deadline:
                break
            data = queue.pop() if queue else mutate(randomness, pool)
            remember(data)
            outcome = _run_one(target, data, result)
            result.inputs += 1
            result.outcomes[outcome] += 1
            if result.outcomes[outcome] == 1 and result.inputs > len(seeds) and len(pool) < _MAX_LEARNED:
                pool.append(data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    return result


def _run_one(target: Target, data: bytes, result: Result) -> str:
    begun = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
        outcome = target(data) or "done"
        signal.setitimer(signal.ITIMER_PROF, 0)
        elapsed = time.process_time() - begun
        result.slowest_s = max(result.slowest_s, elapsed)
        if elapsed > CPU_LIMIT_S:  # in C code that no signal interrupts
            raise _TooSlowError(f"{elapsed:.1f} s")
    except Exception as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        result.failures.setdefault(place, (data, "".join(traceback.format_exception(error))))
        return f"FAILURE {place}"
    return outcome


def _too_slow(_signal: int, _frame: object) -> None:
    raise _TooSlowError(f"more than {CPU_LIMIT_S} s")


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _LastInput:
    """The input at hand, in memory shared with the parent, which can so tell what killed a worker."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, MAX_INPUT_BYTES + 4)

    def store(self, data: bytes) -> None:
        """Remember ``data``."""
        self._memory[: 4 + len(data)] = len(data).to_bytes(4, "big") + data

    def load(self) -> bytes:
        """What was stored last."""
        return self._memory[4 : 4 + int.from_bytes(self._memory[:4], "big")]


@dataclass(frozen=True)
class _Plan:
    """What each worker does: all targets in turn, each with its share of inputs and time."""

    targets: dict[str, Target]
    seeds: dict[str, list[bytes]]
    inputs: int
    seconds: float
    seed: str


def _work(plan: _Plan, names: Sequence[str], worker: int, last: _LastInput, out: Connection) -> None:
    _limit_memory()
    for name in names:
        result = run_target(
            plan.targets[name],
            plan.seeds[name],
            inputs=plan.inputs,
            seconds=plan.seconds,
            randomness=random.Random(f"{plan.seed}/{name}/{worker}"),
            remember=last.store,
        )
        out.send((name, result))
        gc.collect()
    out.close()


def _oversee(plan: _Plan, names: Sequence[str], worker: int, results: Queue[tuple[str, Result]]) -> None:
    """Run one worker over ``names``; start another for what is left when a parser kills it."""
    context = multiprocessing.get_context("fork")  # the workers share the seeds, signatures included
    left = list(names)
    while left:
        last = _LastInput()
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(plan, left, worker, last, writer))
        process.start()
        writer.close()
        while left:
            try:
                results.put(reader.recv())
            except EOFError:
                break
            del left[0]
        process.join()
        if left:
            death = f"worker died with {process.exitcode}"
            failed = Result(inputs=1, outcomes=Counter({f"FAILURE {death}": 1}))
            failed.failures[death] = (last.load(), death + "\n")
            results.put((left.pop(0), failed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fuzzer; the exit code tells whether anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (default: 60)")
    parser.add_argument("--inputs", type=int, default=0, help="for all targets together (default: no limit)")
    parser.add_argument("--seed", default="tallystick", help="of the random numbers")
    parser.add_argument("--target", action="append", help="only this one; repeatable")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    targets, seeds = load_targets()
    names = sorted(options.target or targets)
    if unknown := set(names) - set(targets):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(sorted(targets))}")
    workers = max(1, options.workers)
    inputs = -(-options.inputs // (len(names) * workers)) if options.inputs else sys.maxsize
    plan = _Plan(targets, seeds, inputs, options.seconds / len(names), options.seed)
    found: Queue[tuple[str, Result]] = Queue()
    overseers = [Thread(target=_oversee, args=(plan, names, n, found)) for n in range(workers)]
    begun = time.monotonic()
    for each in overseers:
        each.start()
    for each in overseers:
        each.join()
    results = {name: Result() for name in names}
    while not found.empty():
        name, result = found.get()
        results[name].add(result)
    return _report(results, time.monotonic() - begun)


def _report(results: dict[str, Result], seconds: float) -> int:
    failures = 0
    for name, result in results.items():
        fine = sum(
            n for outcome, n in result.outcomes.items() if outcome.startswith(("accepted", "verified"))
        )
        print(
            f"{name:20} {result.inputs:>10,} inputs {fine:>9,} accepted {len(result.outcomes):>4} outcomes "
            f"slowest {result.slowest_s * 1000:7.1f} ms  failures {len(result.failures)}"
        )
        for place, (data, text) in result.failures.items():
            failures += 1
            CRASHES.mkdir(exist_ok=True)
            path = CRASHES / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"  {place}: {path}\n{text}")
    total = sum(result.inputs for result in results.values())
    print(f"{total:,} inputs in {seconds:.0f} s, {len(results)} targets, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
