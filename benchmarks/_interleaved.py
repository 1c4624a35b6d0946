"""Owns the comparison of the same work with and without a hook, in turns, so that drifts cancel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

__all__ = ["compared"]


def compared(
    without: Callable[[], int],
    with_hook: Callable[[], int],
    pairs: int,
    *,
    cpu_s: tuple[Callable[[], float], Callable[[], float]] = (time.process_time, time.process_time),
) -> dict[str, float]:
    """Run both ``pairs`` times, each first in every other pair.

    Each function does the same work and returns its tokens. ``cpu_s`` tells the CPU seconds so far of what
    works without the hook, and of what works with it: this process, unless it is told.

    Returns:
        ``throughput_ratio``: tokens a second with the hook over those without, median of the pairs, and the
        quartiles of that; ``cpu_ratio``: CPU seconds without over with, which other processes disturb
        less; tokens a second of both.
    """
    without(), with_hook()  # caches, lazy imports, the first threads
    ratios, cpu_ratios, rates = [], [], {False: [], True: []}
    for pair in range(pairs):
        measured = {}
        for hooked in (False, True) if pair % 2 else (True, False):
            began, began_cpu = time.perf_counter(), cpu_s[hooked]()
            tokens = (with_hook if hooked else without)()
            wall, cpu = time.perf_counter() - began, cpu_s[hooked]() - began_cpu
            measured[hooked] = tokens / wall, tokens / cpu
            rates[hooked].append(tokens / wall)
        ratios.append(measured[True][0] / measured[False][0])
        cpu_ratios.append(measured[True][1] / measured[False][1])
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratio_q1": low,
        "throughput_ratio_q3": high,
        "cpu_ratio": statistics.median(cpu_ratios),
        "tokens_per_s": statistics.median(rates[True]),
        "tokens_per_s_without": statistics.median(rates[False]),
        "pairs": pairs,
    }
