"""One host shared by generations, modelled."""

from __future__ import annotations

import pytest

from ledger.energy.host_power import HostPower
from ledger.energy.metering import HostMeter

POWER = HostPower("cpu", "gen", 2, 1_000, 2_000, 10_000, 20_000, "table", True)


class Counter:
    def __init__(self):
        self.value = 0

    def __call__(self):
        return self.value


def test_two_overlapping_generations_share_the_power():
    clock = Counter()
    meter = HostMeter(POWER, clock_ns=clock)
    first, second = meter.start(), meter.start()
    clock.value = 2_000_000_000  # two seconds, shared
    got = [meter.stop(first), meter.stop(second)]
    assert [m.busy_us for m in got] == [1_000_000, 1_000_000]
    for metered in got:  # one second of 10 W each
        energy = metered.energy
        assert (energy.low_uj, energy.energy_uj, energy.high_uj) == (1_000_000, 10_000_000, 20_000_000)
        assert (energy.method, energy.source) == ("modelled", "table")
    assert meter.stop(first) == got[0]


def test_unknown_hardware_is_only_estimated():
    clock = Counter()
    meter = HostMeter(HostPower("?", "", 1, 1, 2, 3, 4, "any", False), clock_ns=clock)
    ticket = meter.start()
    clock.value = 5_000
    assert meter.stop(ticket).energy.method == "estimated"


@pytest.mark.parametrize("utilisation", [0, 500])
def test_utilisation(utilisation):
    clock = Counter()
    meter = HostMeter(POWER, utilisation_milli=utilisation, clock_ns=clock)
    ticket = meter.start()
    clock.value = 1_000_000_000
    assert meter.stop(ticket).energy.energy_uj == 2_000_000 + utilisation * 8_000
