"""How much one caller may ask of the service: requests and body bytes in a second, each with a burst."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

from ledger.core.errors import RefusedError
from ledger.service.auth_caller import ApiKeyInfo

__all__ = ["Rates", "retry_after_s"]

_BURST_S = 10
"""What a caller may save up: ten seconds' worth."""
_MAX_CALLERS = 10_000


@dataclass
class _Bucket:
    """What is left of each limit, and when that was so (monotonic seconds)."""

    requests: float
    body_bytes: float
    at: float


class Rates:
    """Counts what callers ask. Used from the event loop alone, so it needs no lock.

    A tenant's keys share one count; a key without a tenant has its own. Each process counts for itself.

    Args:
        requests_per_s: requests that a caller may make each second, on average; 0 for any number.
        bytes_per_s: bytes of bodies that it may send; likewise.
    """

    def __init__(self, requests_per_s: int, bytes_per_s: int) -> None:
        self._requests_per_s = requests_per_s
        self._bytes_per_s = bytes_per_s
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def admit(self, caller: ApiKeyInfo, *, requests: int = 1, body_bytes: int = 0) -> None:
        """Count a request, or the bytes of its body once they are known.

        Raises:
            RefusedError: ``too-many-requests``: more than the caller may ask for now.
        """
        if not self._requests_per_s and not self._bytes_per_s:
            return
        now = time.monotonic()
        bucket = self._bucket(f"tenant:{caller.tenant}" if caller.tenant else caller.id, now)
        for limit, left in ((self._requests_per_s, bucket.requests), (self._bytes_per_s, bucket.body_bytes)):
            # A body may overdraw: it was read already, and what comes next waits for it.
            if limit and left < (1 if requests else 0):
                raise _too_many(max(1.0, (1 - left) / limit))
        bucket.requests -= requests
        bucket.body_bytes -= body_bytes

    def _bucket(self, who: str, now: float) -> _Bucket:
        full = _Bucket(self._requests_per_s * _BURST_S, self._bytes_per_s * _BURST_S, now)
        bucket = self._buckets.pop(who, full)
        passed_s = now - bucket.at
        bucket.requests = min(full.requests, bucket.requests + passed_s * self._requests_per_s)
        bucket.body_bytes = min(full.body_bytes, bucket.body_bytes + passed_s * self._bytes_per_s)
        bucket.at = now
        self._buckets[who] = bucket
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return bucket


def _too_many(wait_s: float) -> RefusedError:
    error = RefusedError(
        "you ask for more than a caller may now",
        where="Authorization",
        remedy="send again after the time that Retry-After names",
        code="too-many-requests",
    )
    error.__dict__["retry_after_s"] = math.ceil(wait_s)
    return error


def retry_after_s(error: BaseException) -> int | None:
    """After how many seconds a refused caller may come again, where that is known."""
    found = error.__dict__.get("retry_after_s")
    return found if isinstance(found, int) else None
