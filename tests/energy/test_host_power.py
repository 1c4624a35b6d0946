"""What is known of a host: by its CPUID, blurred names, unknown CPUs, counters that wrap."""

from __future__ import annotations

import pytest

from ledger.core.errors import UnavailableError
from ledger.energy.host_power import _ANY, _GENERATIONS, RaplCounter, host_power

GENOA = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"


def cpuinfo(tmp_path, text):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    return path


def test_a_blurred_name_is_found_by_family_and_model(tmp_path):
    host = host_power(threads=2, cpuinfo=cpuinfo(tmp_path, GENOA + "\n" + GENOA.replace("17", "1")))
    assert (host.cpu, host.generation, host.known) == ("AMD EPYC", "EPYC 4th generation", True)
    assert (host.low_mw, host.idle_mw, host.rated_mw, host.high_mw) == (610, 754, 3698, 8438)
    assert "SPECpower" in host.source
    assert "b0032d9" in host.source


def test_skylake_and_cascade_lake_differ_by_stepping(tmp_path):
    text = "vendor_id : GenuineIntel\ncpu family : 6\nmodel : 85\nstepping : {}\nmodel name : Xeon\n"
    skylake = host_power(threads=1, cpuinfo=cpuinfo(tmp_path, text.format(4)))
    cascade = host_power(threads=1, cpuinfo=cpuinfo(tmp_path, text.format(7)))
    assert (skylake.rated_mw, cascade.rated_mw) == (4118, 4041)


def test_an_unknown_cpu_is_any_server(tmp_path):
    host = host_power(threads=4, cpuinfo=tmp_path / "absent")
    assert (host.cpu, host.known) == ("unknown CPU", False)
    assert host.rated_mw == 4 * _ANY[2]


def test_powers_rise():
    for _, row in [*_GENERATIONS.values(), ("any", _ANY)]:
        assert sorted(row) == list(row)


def zone(root, name, energy, wrap=1000):
    path = root / name
    path.mkdir()
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{wrap}\n")
    return path


def test_rapl_sums_packages_and_survives_the_wrap(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", 900)
    zone(tmp_path, "intel-rapl:0:0", 5)  # a part of package 0: not counted twice
    second = zone(tmp_path, "intel-rapl:1", 10)
    counter = RaplCounter.find(tmp_path)
    assert counter() == 0
    (first / "energy_uj").write_text("50\n")  # wrapped: 150
    (second / "energy_uj").write_text("30\n")  # 20
    assert counter() == 170


def test_no_counter_is_none(tmp_path):
    assert RaplCounter.find(tmp_path) is None
    (zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").unlink()
    assert RaplCounter.find(tmp_path) is None


def test_a_counter_that_disappears_says_so(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", 1)
    counter = RaplCounter.find(tmp_path)
    (path / "energy_uj").unlink()
    with pytest.raises(UnavailableError):
        counter()
