"""Owns live grid intensity: fetched in the background, kept on disk, given out as factor sets of its own.

``LiveFactors.current`` never waits and never raises: it answers with what is known, the live set while it
holds, else the static one; the log says why. Every live set names the service, the moment that it describes,
and until when it was used (``valid_until_us``); it goes into the ledger like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import UNSET

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError, TallystickError
from ledger.core.records import FactorSet, FactorSource, decode_factor_set, document_digest
from ledger.energy.grid_services import GridService, Reading

__all__ = ["LiveFactors", "with_reading"]

_logger = logging.getLogger("tallystick.energy")

REFRESH_S = 900.0
"""A quarter of an hour: the services give hourly or five-minute values."""
RETRY_S = 60.0
HOLDS_S = 7200.0
"""How long a reading stands for the grid: two hours after the moment that it describes."""
MAX_SETS_PER_HOUR = 4
"""New factor sets, each of which becomes an entry of the log."""
_COMPLAIN_S = 3600.0
_HOUR_S = 3600.0
_INTENSITY = "intensity_"


class LiveFactors:
    """Gives factor sets with the grid's intensity now. Safe to use from any thread, and after a fork.

    Args:
        base: everything but the intensity; used whole while no reading holds.
        service: where readings come from.
        cache: directory for the newest set, shared by the processes of a host; beside the spool is a good
            place. None keeps it in memory.
        refresh_s: how often a reading is fetched.
        holds_s: how long a reading may be used after the moment that it describes.
        max_per_hour: how many new factor sets at most; further readings wait.
        now_s: the time, Unix seconds.

    Raises:
        InvalidError: a number is not positive.
    """

    def __init__(
        self,
        base: FactorSet,
        service: GridService,
        *,
        cache: Path | None = None,
        refresh_s: float = REFRESH_S,
        holds_s: float = HOLDS_S,
        max_per_hour: int = MAX_SETS_PER_HOUR,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        if min(refresh_s, holds_s, max_per_hour) <= 0:
            raise InvalidError("refresh_s, holds_s and max_per_hour must be positive", code="bad-setting")
        self.base = base
        self._service = service
        self._refresh_s = refresh_s
        self._holds_s = holds_s
        self._max_per_hour = max_per_hour
        self._now_s = now_s
        about = f"{type(service).__name__} {service.zone} {document_digest(base)}".encode()
        self._file = (
            None if cache is None else cache / f"intensity-{hashlib.sha256(about).hexdigest()[:16]}.json"
        )
        self._forget_parent()

    def _forget_parent(self) -> None:
        """A child has no thread of its parent. Also what a new object begins with."""
        self._pid = os.getpid()
        self._one_fetch = threading.Lock()  # held while the service is asked
        self._lock = threading.Lock()  # guards everything below
        self._live: FactorSet | None = None
        self._asked_s = self._next_s = 0.0
        self._fetching: threading.Thread | None = None
        self._made: deque[float] = deque()
        self._complained_s = -_COMPLAIN_S

    def current(self) -> FactorSet:
        """The factors of now. Costs a microsecond; fetches on another thread when it is time to."""
        if self._pid != os.getpid():
            self._forget_parent()
        now = self._now_s()
        live = self._live
        if self._is_due(now) or (live is not None and not _holds(live, now)):
            self._fetch_soon()
            live = self._live
        return live if live is not None and _holds(live, now) else self.base

    def refresh(self) -> bool:
        """Fetch a reading now, on this thread; whether a live set holds afterwards."""
        self._fetch()
        live = self._live
        return live is not None and _holds(live, self._now_s())

    def _is_due(self, now: float) -> bool:
        """Whether it is time to fetch: also when the clock was stepped back behind the last time."""
        return not self._asked_s <= now < self._next_s

    def _wait(self, now: float, seconds: float) -> None:
        self._asked_s, self._next_s = now, now + seconds

    def _fetch_soon(self) -> None:
        with self._lock:
            now = self._now_s()  # under the lock: one of before would look like a clock that went back
            if self._live is None:
                self._adopt(self._stored(), now)  # another process may have fetched it
            if not self._is_due(now) or (self._fetching is not None and self._fetching.is_alive()):
                return
            self._wait(now, RETRY_S)  # until the thread knows better
            thread = threading.Thread(target=self._fetch, name="tallystick-intensity", daemon=True)
            with contextlib.suppress(RuntimeError):  # at the interpreter's end none can be started
                thread.start()
                self._fetching = thread

    def _fetch(self) -> None:
        """Fetch, keep, and say when to come again. Never raises."""
        try:
            with self._one_fetch:
                made = self._stored() if 0 <= self._age_s() < self._refresh_s else None
                if made is None or not _holds(made, self._now_s()):
                    made = with_reading(self.base, self._service.latest(), holds_s=self._holds_s)
                    self._store(made)
            now = self._now_s()
            with self._lock:
                self._adopt(made, now)
                self._wait(now, self._refresh_s)
            if not _holds(made, now):
                self._complain("the newest reading is too old; the static factors are used")
        except TallystickError as error:
            self._complain(str(error))
        except Exception:
            _logger.exception("fetching the grid's intensity failed; the static factors are used")

    def _adopt(self, made: FactorSet | None, now: float) -> None:
        """Use a set from now on, unless too many were new this hour. Under the lock."""
        if made is None or made == self._live or not _holds(made, now):
            return
        while self._made and not now - _HOUR_S < self._made[0] <= now:
            self._made.popleft()
        if len(self._made) < self._max_per_hour:
            self._made.append(now)
            self._live = made

    def _complain(self, problem: str) -> None:
        """Once an hour: a service that is away stays away for a while."""
        now = time.monotonic()
        if now - self._complained_s >= _COMPLAIN_S:
            self._complained_s = now
            _logger.warning("live grid intensity: %s", problem)

    # --- the file ------------------------------------------------------------------------------------

    def _age_s(self) -> float:
        try:
            return time.time() - self._file.stat().st_mtime if self._file is not None else float("inf")
        except OSError:
            return float("inf")

    def _stored(self) -> FactorSet | None:
        """What a process of this host stored, if it is a set of this base."""
        if self._file is None:
            return None
        try:
            found = decode_factor_set(self._file.read_bytes())
        except (OSError, TallystickError):
            return None
        return found if _without_intensity(found) == _without_intensity(self.base) else None

    def _store(self, made: FactorSet) -> None:
        """Replace the file whole, so that no reader sees a part of it."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._file.parent, prefix=".intensity-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(encode_canonical(made))
                Path(name).replace(self._file)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._complain(f"it cannot be kept on disk: {error}")


def with_reading(base: FactorSet, reading: Reading, *, holds_s: float = HOLDS_S) -> FactorSet:
    """``base`` with a reading in place of its location-based intensity. Market-based factors stay.

    The range of the static intensity does not apply to a moment, and the services give none: there is none.
    """
    kept = tuple(each for each in base.sources if not each.factor.startswith(_INTENSITY))
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(reading.at_us // 1_000_000))
    cited = FactorSource(
        factor="intensity_ug_per_kwh",
        source=f"{reading.source}, {moment}",
        version=reading.version,
        year=int(moment[:4]),
    )
    return msgspec.structs.replace(
        base,
        name=f"{base.name[:240]}-live",
        version=moment,
        intensity_ug_per_kwh=reading.ug_per_kwh,
        intensity_low_ug_per_kwh=UNSET,
        intensity_high_ug_per_kwh=UNSET,
        sources=(cited, *kept),
        valid_from_us=reading.at_us,
        valid_until_us=reading.at_us + round(holds_s * 1_000_000),
    )


def _without_intensity(factors: FactorSet) -> str:
    """All but what a reading changes: whether a stored set belongs to a base."""
    told = {
        name: getattr(factors, name)
        for name in factors.__struct_fields__
        if not name.startswith((_INTENSITY, "valid_")) and name not in ("name", "version", "sources")
    }
    return json.dumps({name: value for name, value in told.items() if value is not UNSET}, sort_keys=True)


def _holds(factors: FactorSet, now_s: float) -> bool:
    until = factors.valid_until_us
    return until is UNSET or now_s * 1_000_000 < until
