"""Owns what a budget is and what follows from it: windows of time, charges of records, refusals, alerts.

Pure: no clock, no database. Times are Unix seconds; days and months are those of UTC. A record counts in the
window that it started in, so that a budget's figure is the sum over records that ``tallystick query`` gives.

A budget counts use in buckets. Of ``day`` and ``month`` the window is one bucket. A rolling window of N
seconds counts the current sixtieth of N and the sixty before: at least N seconds, so that no span of N
seconds ever holds more than the limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias, get_args

from msgspec import UNSET

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError
from ledger.core.records import Record

__all__ = [
    "DEFAULT_ALERTS",
    "EACH",
    "MEASURES",
    "Budget",
    "Measure",
    "Refusal",
    "Room",
    "applies",
    "bucket_of",
    "charge",
    "checked_budget",
    "estimate",
    "period_of",
    "refusal",
    "thresholds_passed",
    "tokens_of",
    "told",
    "window_of",
]

Measure: TypeAlias = Literal["tokens", "cost_nano", "energy_uj", "carbon_ng"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
"""What can be limited. ``tokens`` are input and output; ``carbon_ng`` is by location, from the grid."""

EACH = "*"
"""As a tenant: every tenant by itself, those without a name together."""
DEFAULT_ALERTS = (80, 100)
"""Percent of the limit at which somebody should look, where nothing else is stated."""

MAX_LIMIT = 10**30
_MAX_ALERTS = 8
_MAX_PERCENT = 1_000
_S_PER_DAY = 86_400
_US_PER_S = 1_000_000
_BUCKETS = 60
_MAX_ROLLING_S = 366 * _S_PER_DAY
SETTLING_S = 2
"""When to ask again where only what is not settled yet stands in the way: most requests use less than they
reserve, and records come within a second or two."""

_name = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}").fullmatch
_tenant = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~-]{0,63}").fullmatch
_currency = re.compile(r"[A-Z]{3}").fullmatch
_rolling = re.compile(r"([1-9][0-9]{0,4})([hd])").fullmatch


@dataclass(frozen=True)
class Budget:
    """A limit on what may be used within a window.

    Attributes:
        name: of the budget: lower-case letters, digits, ``.``, ``_``, ``-``.
        measure: what is limited.
        limit: how much of it, in the measure's unit.
        window: ``day``, ``month``, or a rolling one: ``24h``, ``7d``.
        tenant: whose use counts: one tenant's, every tenant's by itself (``*``), or all together (None).
            The empty name stands for records without a tenant.
        model: of this model alone; of all if None.
        currency: of ``cost_nano``. Costs in another one do not count, and show as unknown.
        alerts: percent of the limit at which an alert is noted, rising.
        refuse: whether more is refused at the limit; else the budget only alerts.
    """

    name: str
    measure: Measure
    limit: int
    window: str
    tenant: str | None = None
    model: str | None = None
    currency: str | None = None
    alerts: tuple[int, ...] = DEFAULT_ALERTS
    refuse: bool = True


def checked_budget(budget: Budget) -> Budget:
    """``budget``, its alerts in order.

    Raises:
        InvalidError: ``bad-budget``, with what is wrong.
    """

    def wrong(what: str, where: str, remedy: str) -> InvalidError:
        return InvalidError(what, where=where, remedy=remedy, code="bad-budget")

    if _name(budget.name) is None:
        raise wrong(
            f"{budget.name[:80]!r} is not a budget's name",
            "name",
            "use up to 64 lower-case letters, digits and . _ -",
        )
    if budget.measure not in MEASURES:
        raise wrong("there is no such measure", "measure", f"use {', '.join(MEASURES)}")
    if not 0 < budget.limit <= MAX_LIMIT:
        raise wrong("the limit is out of range", "limit", f"use a whole number from 1 to {MAX_LIMIT}")
    _length_s(budget.window)
    if budget.tenant not in (None, EACH, "") and _tenant(budget.tenant or "") is None:
        raise wrong(
            f"{(budget.tenant or '')[:80]!r} is not a tenant as records name it",
            "tenant",
            "use the pseudonym that the records have, or * for each tenant by itself",
        )
    if budget.model is not None and not (0 < len(budget.model) <= 256 and budget.model.isprintable()):
        raise wrong("the model's name is empty, too long or not printable", "model", "name it as records do")
    if (budget.currency is None) == (budget.measure == "cost_nano"):
        raise wrong(
            "a currency belongs to a budget of cost_nano, and to no other",
            "currency",
            "name it by three capital letters, such as USD",
        )
    if budget.currency is not None and _currency(budget.currency) is None:
        raise wrong(f"{budget.currency[:8]!r} is not a currency", "currency", "use three capital letters")
    alerts = tuple(sorted(set(budget.alerts)))
    if len(alerts) > _MAX_ALERTS or not all(0 < each <= _MAX_PERCENT for each in alerts):
        raise wrong(
            "the alerts are too many or out of range",
            "alerts",
            f"use up to {_MAX_ALERTS} percentages from 1 to {_MAX_PERCENT}",
        )
    return Budget(**{**budget.__dict__, "alerts": alerts})


# --- windows ---------------------------------------------------------------------------------------------


def _length_s(window: str) -> int | None:
    """Length of a rolling window; None of ``day`` and ``month``."""
    if window in ("day", "month"):
        return None
    found = _rolling(window)
    length = int(found[1]) * (3_600 if found[2] == "h" else _S_PER_DAY) if found else 0
    if not 0 < length <= _MAX_ROLLING_S:
        raise InvalidError(
            f"{window[:20]!r} is not a window",
            where="window",
            remedy="use day, month, or a rolling one in hours or days, such as 24h or 7d; a year at most",
            code="bad-budget",
        )
    return length


def _month(at: datetime, *, after: int = 0) -> int:
    months = at.year * 12 + at.month - 1 + after
    return int(datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC).timestamp())


def bucket_of(window: str, time_s: int) -> int:
    """Beginning of the bucket that ``time_s`` falls into."""
    length = _length_s(window)
    if length is not None:
        return time_s - time_s % (length // _BUCKETS)
    if window == "day":
        return time_s - time_s % _S_PER_DAY
    return _month(datetime.fromtimestamp(time_s, UTC))


def window_of(window: str, now_s: int) -> tuple[int, int]:
    """The window at ``now_s``: beginning of its first bucket, and the time at which its last one ends."""
    length = _length_s(window)
    last = bucket_of(window, now_s)
    if length is not None:
        return last - length, last + length // _BUCKETS
    if window == "day":
        return last, last + _S_PER_DAY
    return last, _month(datetime.fromtimestamp(now_s, UTC), after=1)


def period_of(window: str, time_s: int) -> int:
    """What an alert is given once for: the day, the month, or a stretch as long as the rolling window."""
    length = _length_s(window)
    return bucket_of(window, time_s) if length is None else time_s - time_s % length


# --- charges ---------------------------------------------------------------------------------------------


def applies(budget: Budget, tenant: str, model: str) -> bool:
    """Whether use by ``tenant`` ('' for none) of ``model`` counts."""
    if budget.model is not None and budget.model != model:
        return False
    return budget.tenant in (None, EACH) or budget.tenant == tenant


def tokens_of(record: Record) -> int:
    """Input and output tokens."""
    return record.usage.input_tokens + record.usage.output_tokens


def charge(budget: Budget, record: Record) -> int | None:
    """What ``record`` counts for; None if it does not tell, or tells it in another currency."""
    if budget.measure == "tokens":
        return tokens_of(record)
    if budget.measure == "energy_uj":
        return None if record.energy is UNSET else record.energy.energy_uj
    if budget.measure == "carbon_ng":
        return None if record.carbon_ng is UNSET else record.carbon_ng
    known = record.cost_nano is not UNSET and record.currency == budget.currency
    return int(record.cost_nano) if known and record.cost_nano is not UNSET else None


def estimate(budget: Budget, wanted: Mapping[str, int | str], used: int, tokens: int) -> int:
    """What a request will use of a budget, as far as can be told before it.

    Args:
        budget: the budget.
        wanted: what the caller estimates: ``tokens`` and, where it knows them, the other measures (and
            ``currency``).
        used: the budget's use so far, of records that tell it,
        tokens: and the tokens of those. Their ratio stands in for an estimate that the caller does not have;
            without such records nothing is reserved.
    """
    stated = wanted.get(budget.measure)
    if isinstance(stated, int) and (budget.currency is None or wanted.get("currency") == budget.currency):
        return stated
    count = wanted.get("tokens")
    if not isinstance(count, int) or not tokens or budget.measure == "tokens":
        return 0
    return min(-(-used * count // tokens), MAX_SAFE_INTEGER)


# --- decisions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """Where a budget stands for one tenant.

    Attributes:
        budget: which.
        used: by records, within the window.
        reserved: by requests that run.
        wanted: by the request that asks.
        now_s: when.
        buckets: (beginning, used) of the window's buckets, oldest first.
    """

    budget: Budget
    used: int
    reserved: int
    wanted: int
    now_s: int
    buckets: Sequence[tuple[int, int]] = ()

    @property
    def fits(self) -> bool:
        """Whether the request may go on. At the limit nothing may, however little it wants."""
        taken = self.used + self.reserved
        return not self.budget.refuse or (
            taken < self.budget.limit and taken + self.wanted <= self.budget.limit
        )


@dataclass(frozen=True)
class Refusal:
    """Why a request may not go on: one budget's room, and when to ask again (None: it never fits)."""

    room: Room
    retry_after_s: int | None


def refusal(rooms: Iterable[Room]) -> Refusal | None:
    """The refusal of the budget that holds the request up longest; None if all have room."""
    found = [Refusal(room, _retry_after_s(room)) for room in rooms if not room.fits]
    return max(
        found, key=lambda r: float("inf") if r.retry_after_s is None else r.retry_after_s, default=None
    )


def _retry_after_s(room: Room) -> int | None:
    budget = room.budget
    if room.wanted > budget.limit:
        return None
    needed = max(1, room.wanted)
    if room.used + needed <= budget.limit:
        return SETTLING_S
    length = _length_s(budget.window)
    if length is None:
        return max(1, window_of(budget.window, room.now_s)[1] - room.now_s)
    left = room.used
    for start, used in room.buckets:  # the oldest leave the window first
        left -= used
        if left + needed <= budget.limit:
            return max(1, start + length + length // _BUCKETS - room.now_s)
    return length


def told(found: Refusal, *, shared: bool = False) -> str:
    """Why, for whoever made the request. ``shared``: without figures, which are of others too."""
    room, budget = found.room, found.room.budget
    ends = datetime.fromtimestamp(window_of(budget.window, room.now_s)[1], UTC)
    unit = f"{budget.currency} (billionths)" if budget.currency else budget.measure
    when = (
        "the request alone is larger than the budget"
        if found.retry_after_s is None
        else f"there can be room in {found.retry_after_s} s"
    )
    if budget.window in ("day", "month"):
        when += f"; the {budget.window} ends at {ends:%Y-%m-%dT%H:%M:%SZ}"
    if shared:
        return f"the budget {budget.name} is used up: {when}"
    return (
        f"the budget {budget.name} allows {budget.limit} {unit} a {_shown(budget.window)}: "
        f"{room.used} are used, {room.reserved} reserved, {room.wanted} more are wanted; {when}"
    )


def _shown(window: str) -> str:
    return window if window in ("day", "month") else f"stretch of {window}"


def thresholds_passed(budget: Budget, before: int, after: int) -> list[int]:
    """Percentages of the limit that ``after`` reaches and ``before`` did not."""
    return [percent for percent in budget.alerts if before * 100 < budget.limit * percent <= after * 100]
