"""Figures for people: three digits, the right unit, exact rounding of integers of any size."""

from __future__ import annotations

import pytest

from cli import figures
from ledger.core.errors import InvalidError


@pytest.mark.parametrize(
    ("energy_uj", "shown"),
    [
        (None, "unknown"),
        (0, "0.00 µWh"),
        (3_600, "1.00 µWh"),
        (4_500_000, "1.25 mWh"),
        (3_600_000_000, "1.00 Wh"),
        (3_600_000_000_000, "1.00 kWh"),
        (123_456 * 3_600_000_000_000_000, "123,456 MWh"),
    ],
)
def test_energy(energy_uj: int | None, shown: str) -> None:
    assert figures.energy(energy_uj) == shown


def test_marks() -> None:
    assert figures.energy(3_600_000, "modelled") == "~1.00 mWh"
    assert figures.carbon(1_500_000, "estimated") == "~~1.50 mg CO2e"
    record = {"energy": {"energy_uj": 4_500_000, "method": "modelled"}}
    assert figures.energy_of(record) == "~1.25 mWh (4.50 J), modelled"
    assert figures.energy_of({}) == "unknown"


@pytest.mark.parametrize(
    ("carbon_ng", "shown"),
    [(0, "0 ng CO2e"), (999, "999 ng CO2e"), (438_000, "438 µg CO2e"), (12_345_678_901, "12.3 g CO2e")],
)
def test_carbon(carbon_ng: int, shown: str) -> None:
    assert figures.carbon(carbon_ng) == shown


def test_cost() -> None:
    assert figures.cost(1_234_567_890, "EUR") == "1.234568 EUR"
    assert figures.cost(None, None) == ""


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("0", 0),
        ("1760000400000000", 1_760_000_400_000_000),
        ("1970-01-02", 86_400_000_000),
        ("2025-10-09T09:00:00Z", 1_760_000_400_000_000),
        ("2025-10-09T11:00:00.000001+02:00", 1_760_000_400_000_001),
    ],
)
def test_parse_time(text: str, us: int) -> None:
    assert figures.parse_time(text, "--from") == us


@pytest.mark.parametrize(
    "text", ["", "now", "-5", "2025-13-01", "1e9", "1969-12-31", "9007199254740992", "9" * 5_000]
)
def test_bad_times_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        figures.parse_time(text, "--from")


def test_time_and_duration() -> None:
    assert figures.time(1_760_000_400_123_999) == "2025-10-09T09:00:00.123Z"
    assert figures.duration(1_234_567) == "1.23 s"
    assert figures.duration(40_000) == "40.0 ms"
