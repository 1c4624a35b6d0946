"""What is known of a host: by its CPUID, blurred names, unknown CPUs, counters that wrap."""

from __future__ import annotations

from ledger.energy.host_power import _ANY, _GENERATIONS, host_power

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
