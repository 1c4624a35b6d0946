"""How integers are shown to people: energy, carbon, durations, times. Programs get the integers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError

__all__ = [
    "amount",
    "carbon",
    "check_period",
    "cost",
    "count",
    "duration",
    "energy",
    "energy_of",
    "joules",
    "parse_time",
    "scaled",
    "short",
    "signed_cost",
    "time",
]

_UJ_PER_UWH = 3_600
_ENERGY = ((10**12, "MWh"), (10**9, "kWh"), (10**6, "Wh"), (10**3, "mWh"), (1, "µWh"))
_US_PER_S = 1_000_000
_TIME_DIGITS = 20
"""More than any time has: Python takes long for numbers of many digits."""
# Times written without an offset are UTC; so are those we write.
_MARK = {"measured": "", "modelled": "~", "estimated": "~~"}
"""Put before a figure: nothing for what counters said, ``~`` for a model's word, ``~~`` for a table's."""


def amount(value: int, steps: tuple[tuple[int, str], ...]) -> str:
    """``value`` in the largest of ``steps`` (divisor, unit; falling) that leaves at least 1; three digits."""
    divisor, unit = next((step for step in steps if value >= step[0]), steps[-1])
    whole = value // divisor
    digits = 0 if divisor == 1 else max(0, 3 - len(str(whole)))
    scaled = (value * 10**digits + divisor // 2) // divisor
    text = f"{scaled // 10**digits:,}"
    return f"{text}.{scaled % 10**digits:0{digits}d} {unit}" if digits else f"{text} {unit}"


def energy(energy_uj: int | None, method: str = "measured") -> str:
    """Energy in watt-hours, marked by how it is known."""
    if energy_uj is None:
        return "unknown"
    steps = tuple((factor * _UJ_PER_UWH, unit) for factor, unit in _ENERGY)
    return _MARK.get(method, "") + amount(energy_uj, steps)


def joules(energy_uj: int) -> str:
    """Energy in joules."""
    return amount(energy_uj, ((10**12, "MJ"), (10**9, "kJ"), (10**6, "J"), (10**3, "mJ"), (1, "µJ")))


def energy_of(record: dict[str, Any]) -> str:
    """Energy of a record (decoded JSON) in both units, with how it is known."""
    figure = record.get("energy")
    if figure is None:
        return "unknown"
    value, method = figure["energy_uj"], figure["method"]
    return f"{energy(value, method)} ({joules(value)}), {method}"


def carbon(carbon_ng: int | None, method: str = "measured") -> str:
    """Mass of CO2e; it is known as its energy is."""
    if carbon_ng is None:
        return "unknown"
    steps = ((10**15, "t"), (10**12, "kg"), (10**9, "g"), (10**6, "mg"), (10**3, "µg"), (1, "ng"))
    return f"{_MARK.get(method, '')}{amount(carbon_ng, steps)} CO2e"


def water(water_nl: int) -> str:
    """A volume of water."""
    return amount(water_nl, ((10**12, "m³"), (10**9, "l"), (10**6, "ml"), (10**3, "µl"), (1, "nl")))


def restated(record: dict[str, Any], name: str) -> str:
    """A figure that a correction restated, as people read it; ``record`` is the view that has it."""
    if name == "energy":
        return energy_of(record)
    value = record[name]
    if name == "cost_nano":
        return cost(value, record.get("currency"))
    if name == "water_nl":
        return water(value)
    return carbon(value, record.get("energy", {}).get("method", "measured"))


def cost(cost_nano: int | None, currency: str | None) -> str:
    """An amount of money, to a millionth."""
    if cost_nano is None or currency is None:
        return ""
    micro = (cost_nano + 500) // 1000
    return f"{micro // 10**6:,}.{micro % 10**6:06d} {currency}"


def signed_cost(cost_nano: int | None, currency: str | None) -> str:
    """As ``cost``, for what may be negative."""
    if cost_nano is not None and cost_nano < 0:
        return f"-{cost(-cost_nano, currency)}"
    return cost(cost_nano, currency)


def count(value: int | None) -> str:
    """A number with thousands marked."""
    return "" if value is None else f"{value:,}"


def scaled(value: int, scale: int) -> str:
    """``value / 10**scale`` as a decimal number, without zeros at its end."""
    sign, digits = "-" if value < 0 else "", str(abs(value)).rjust(scale + 1, "0")
    whole, part = (digits[:-scale], digits[-scale:].rstrip("0")) if scale else (digits, "")
    return f"{sign}{int(whole):,}" + (f".{part}" if part else "")


def duration(us: int) -> str:
    """A length of time."""
    return amount(us, ((_US_PER_S, "s"), (1_000, "ms"), (1, "µs")))


def time(us: int | None) -> str:
    """A point in time, ISO 8601 in UTC, to the millisecond."""
    if us is None:
        return ""
    when = datetime.fromtimestamp(us // _US_PER_S, UTC)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{us % _US_PER_S // 1000:03d}Z"


def short(text: str, length: int = 12) -> str:
    """The beginning of a digest, enough to tell digests apart by eye."""
    return text if len(text) <= length else f"{text[:length]}…"


def parse_time(text: str | None, option: str) -> int | None:
    """Unix microseconds of an ISO 8601 time (UTC where it has no offset) or of a plain integer.

    Raises:
        InvalidError: it is neither, or before 1970 or beyond what a record can say.
    """
    if text is None:
        return None
    try:
        if text.isascii() and text.isdigit():
            us = int(text[:_TIME_DIGITS])
        else:
            when = datetime.fromisoformat(text)
            when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
            delta = when - datetime(1970, 1, 1, tzinfo=UTC)
            us = (delta.days * 86_400 + delta.seconds) * _US_PER_S + delta.microseconds
    except ValueError:
        us = -1
    if not 0 <= us <= MAX_SAFE_INTEGER:
        raise InvalidError(
            f"{text[:80]!r} is not a time",
            where=option,
            remedy="write 2026-01-31, 2026-01-31T12:00:00Z or Unix microseconds",
            code="bad-time",
        )
    return us


def check_period(from_us: int | None, to_us: int | None) -> None:
    """Refuse a period that ends before it begins: nothing would be found, and nobody told why.

    Raises:
        InvalidError: it does.
    """
    if from_us is not None and to_us is not None and from_us > to_us:
        raise InvalidError(
            "the period ends before it begins",
            where="--from, --to",
            remedy="exchange the two, or leave one out",
            code="bad-parameter",
        )
