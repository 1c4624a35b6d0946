"""Meters: counters that wrap, start anew or fail; devices through the classes of ``zeus``; hosts over HTTP.

No accelerator is here, so the vendors' libraries are the part that is stood in for: NVML by the functions of
``pynvml`` that ``zeus`` calls, everything above them is ``zeus`` itself.
"""

from __future__ import annotations

import inspect
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ledger.core.errors import InvalidError, UnavailableError
from ledger.energy import meters
from ledger.energy.host_power import HostPower
from ledger.energy.meters import (
    ModelledMeter,
    PowerMeter,
    PrometheusMeter,
    RaplMeter,
    ReplayMeter,
    SystemOnChipMeter,
    TotalMeter,
    accelerator_meter,
    find_meter,
    ipmi_meter,
    prometheus_power_meter,
    read_trace,
    redfish_meter,
    windows_of,
)
from ledger.energy.meters.counting import Meter, MeterReset, RisingCounter

S = 10**9
MS = 10**6


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Fixed:
    def __init__(self, name: str = "fixed", method: Any = "measured", accuracy: int | None = 50) -> None:
        self.name, self.method, self.accuracy_milli, self.value = name, method, accuracy, 0

    def read(self) -> int:
        return self.value


def test_every_name_of_the_package_is_there() -> None:
    assert all(getattr(meters, name) for name in meters.__all__)
    with pytest.raises(AttributeError):
        _ = meters.nothing


# --- counters --------------------------------------------------------------------------------------------


def test_a_counter_wraps_and_goes_on() -> None:
    counter = RisingCounter(wraps_at=1_000_000, max_mw=1_000)  # 1 W: once a second at most
    readings = [(900_000, 0), (950_000, 50 * MS), (50_000, 150 * MS), (950_000, 1050 * MS)]
    assert [counter.add(value, at_ns) for value, at_ns in readings] == [0, 50_000, 150_000, 1_050_000]


@pytest.mark.parametrize(
    ("value", "after_ns"),
    [
        (40 * 10**9, S),  # it fell by far more than a wrap explains at 2 kW
        (99 * 10**9, S),  # it rose by more than 2 kW
        (60 * 10**9, 60 * S),  # it may have wrapped more than once
    ],
)
def test_a_counter_that_starts_anew_says_so_once(value: int, after_ns: int) -> None:
    counter = RisingCounter(wraps_at=100 * 10**9, max_mw=2_000_000)
    assert counter.add(50 * 10**9, 0) == 0
    with pytest.raises(MeterReset):
        counter.add(value, after_ns)
    assert counter.add(value + 1000, after_ns + S) == 1000


def test_a_counter_without_a_wrap_may_not_fall() -> None:
    counter = RisingCounter()
    counter.add(100, 0)
    with pytest.raises(MeterReset):
        counter.add(99, 1)
    assert counter.add(109, 2) == 10


# --- RAPL ------------------------------------------------------------------------------------------------


def zone(root: Path, name: str, label: str, energy: int, wrap: int = 262_143_328_850) -> Path:
    path = root / name
    path.mkdir()
    (path / "name").write_text(f"{label}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{wrap}\n")
    return path


def test_rapl_sums_packages_and_memory_and_survives_the_wrap(tmp_path: Path) -> None:
    clock = Clock()
    first = zone(tmp_path, "intel-rapl:0", "package-0", 262_143_328_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)  # a part of package 0: not counted twice
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 70, wrap=65_712_999_613)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 10)
    zone(tmp_path, "intel-rapl:2", "psys", 10)  # all of them again
    meter = RaplMeter(tmp_path, clock_ns=clock)
    assert meter.read() == 0
    clock.now += S
    (first / "energy_uj").write_text("150\n")  # wrapped: 1000
    (second / "energy_uj").write_text("30\n")  # 20
    (memory / "energy_uj").write_text("73\n")  # 3
    assert meter.read() == 1023
    (memory / "energy_uj").unlink()
    with pytest.raises(UnavailableError, match="0400"):
        meter.read()


def test_no_rapl_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        RaplMeter(tmp_path)
    (zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").write_text("many")
    with pytest.raises(UnavailableError):
        RaplMeter(tmp_path)


# --- power over time -------------------------------------------------------------------------------------


def test_power_is_summed_by_trapezoids() -> None:
    clock, power = Clock(), [1000]
    meter = PowerMeter(lambda: power[0], name="p", clock_ns=clock)
    assert meter.read() == 0
    clock.now, power[0] = S, 3000
    assert meter.read() == 2_000_000
    clock.now = 11 * S + 500_000_000  # a window of ten seconds, and a slow controller
    assert meter.read() == 33_500_000
    clock.now = 42 * S
    with pytest.raises(MeterReset):
        meter.read()
    clock.now = 43 * S
    assert meter.read() == 36_500_000
    power[0] = -1
    with pytest.raises(UnavailableError):
        meter.read()


# --- several ---------------------------------------------------------------------------------------------


def test_a_sum_is_as_good_as_its_worst_part() -> None:
    one, two = Fixed("NVML: H100"), Fixed("NVML: H100")
    total = TotalMeter([one, two, Fixed("RAPL", "modelled", 100)])
    one.value, two.value = 5, 6
    assert total.read() == 11
    assert (total.name, total.method, total.accuracy_milli) == ("2 x NVML: H100 + RAPL", "modelled", 100)
    assert TotalMeter([one, Fixed(accuracy=None)]).accuracy_milli is None
    with pytest.raises(InvalidError):
        TotalMeter([])


def test_the_model_is_the_hosts_power() -> None:
    power = HostPower("cpu", "gen", 2, 1_000, 2_000, 10_001, 20_000, "table", True)
    meter = ModelledMeter(power, utilisation_milli=500)
    assert (meter.low_mw, meter.power_mw, meter.high_mw, meter.method) == (1_000, 6_001, 20_000, "modelled")
    assert ModelledMeter(HostPower("?", "", 1, 1, 2, 3, 4, "any", False)).method == "estimated"
    with pytest.raises(InvalidError):
        ModelledMeter(power, utilisation_milli=1001)


def test_the_best_that_can_be_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = find_meter()  # of this machine: whatever it has, everything is either found or explained
    assert len(finding.found) + len(finding.failed) >= 2
    monkeypatch.setattr("ledger.energy.meters.rapl.POWERCAP", tmp_path)
    monkeypatch.setattr(RaplMeter.__init__, "__defaults__", (tmp_path,))
    none = find_meter()
    assert isinstance(none.meter, ModelledMeter)
    assert {name for name, _ in none.failed} == {"system on a chip", "accelerators", "RAPL"}
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    assert find_meter().found == ("RAPL (Linux powercap)",)
    assert isinstance(find_meter().meter, RaplMeter)


# --- accelerators, through zeus --------------------------------------------------------------------------


class Nvml:
    """The functions of ``pynvml`` that ``zeus`` calls, for boards that draw what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, architectures: tuple[int, ...]) -> None:
        import pynvml
        from zeus.device import gpu
        from zeus.device.gpu import nvidia

        self.energy_mj = [1000] * len(architectures)
        self.power_mw = [200_000] * len(architectures)
        self.architectures = architectures
        self.inits = 0
        self.broken = False
        self.pynvml = pynvml
        stand_ins = {
            "nvmlInit": self._init,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(architectures),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetName": lambda handle: f"Board {self.architectures[handle]}",
            "nvmlDeviceGetArchitecture": lambda handle: self.architectures[handle],
            "nvmlDeviceGetTotalEnergyConsumption": self._energy,
            "nvmlDeviceGetPowerManagementLimitConstraints": lambda handle: (100_000, 700_000),
            "nvmlDeviceGetFieldValues": self._fields,
            "nvmlDeviceGetMigMode": lambda handle: (0, 0),
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(pynvml, name, stand_in, raising=False)
        monkeypatch.setattr(gpu, "_gpus", None)
        nvidia.nvml_is_available.cache_clear()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(architectures)))))

    def _init(self) -> None:
        self.inits += 1

    def _energy(self, handle: int) -> int:
        if self.broken:
            raise self.pynvml.NVMLError(self.pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.energy_mj[handle]

    def _fields(self, handle: int, fields: list[Any]) -> list[Any]:
        class Value:
            nvmlReturn = self.pynvml.NVML_SUCCESS

            class value:
                uiVal = self.power_mw[handle]

        return [Value()]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nvml]:
    pytest.importorskip("zeus")
    yield Nvml(monkeypatch, architectures=(9, 9))
    from zeus.device.gpu import nvidia

    nvidia.nvml_is_available.cache_clear()


def test_nvidia_counts_through_zeus(nvml: Nvml) -> None:
    meter = accelerator_meter()
    assert meter.name == "2 x NVML: Board 9"
    assert (meter.method, meter.accuracy_milli) == ("measured", 50)
    assert meter.read() == 0
    nvml.energy_mj[:] = [1500, 1001]
    assert meter.read() == 501_000
    nvml.energy_mj[1] = 3  # the driver was loaded anew
    with pytest.raises(MeterReset):
        meter.read()
    nvml.energy_mj[:] = [1600, 5]
    assert meter.read() == 603_000
    nvml.broken = True
    with pytest.raises(UnavailableError, match="NVML"):
        meter.read()


def test_an_old_board_is_metered_by_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zeus")
    Nvml(monkeypatch, architectures=(4,))  # Pascal: no energy counter
    meter = accelerator_meter()
    assert meter.name == "NVML: Board 4, power"
    assert 0 <= meter.read() <= meter.read()


def test_a_forked_child_opens_the_devices_anew(nvml: Nvml) -> None:
    meter = accelerator_meter()
    meter.read()
    before = nvml.inits
    child = os.fork()
    if child == 0:
        try:
            meter.read()
        except MeterReset:
            nvml.energy_mj[0] += 2
            good = meter.read() == 0 and nvml.inits > before
            nvml.energy_mj[0] += 2
            os._exit(0 if good and meter.read() == 2000 else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert meter.read() == 0


def test_no_accelerator_is_said_by_zeus_itself() -> None:
    common = pytest.importorskip("zeus.device.gpu.common")
    with pytest.raises(UnavailableError):
        accelerator_meter(common.EmptyGPUs())
    with pytest.raises(UnavailableError):
        SystemOnChipMeter(pytest.importorskip("zeus.device.soc.common").EmptySoC())


def test_amd_is_asked_as_zeus_has_it() -> None:
    """Its class, without a device: what we call is there, and means what we take it for."""
    amd = pytest.importorskip("zeus.device.gpu.amd")
    device = object.__new__(amd.AMDGPU)
    device.handle, device._supports_get_total_energy_consumption = None, True
    assert device.supports_get_total_energy_consumption()
    assert "Units: mJ" in str(inspect.getdoc(amd.AMDGPU.get_total_energy_consumption))

    class Library:
        AmdSmiLibraryException = OSError

        @staticmethod
        def amdsmi_get_energy_count(handle: object) -> dict[str, float]:
            return {"energy_accumulator": 1_000_000, "counter_resolution": 15.3}

    amd_module_before = amd.__dict__.get("amdsmi")
    amd.amdsmi = Library
    try:
        from ledger.energy.meters.accelerators import AcceleratorMeter

        meter = AcceleratorMeter(device, name="AMD SMI: test")
        assert meter.read() == 0
    finally:
        amd.amdsmi = amd_module_before


# --- systems on a chip, through zeus ---------------------------------------------------------------------


def test_apple_parts_are_summed() -> None:
    apple = pytest.importorskip("zeus.device.soc.apple")

    class AppleSilicon(apple.AppleSilicon):
        def __init__(self) -> None:
            self.mj = 0

        def get_total_energy_consumption(self) -> Any:
            return apple.AppleSiliconMeasurement(
                cpu_total_mj=self.mj, efficiency_cores_mj=[9, 9], gpu_mj=10, dram_mj=5, ane_mj=None
            )

    chip = AppleSilicon()
    meter = SystemOnChipMeter(chip)
    chip.mj = 100
    assert meter.read() == 100_000
    assert (meter.name, meter.method) == ("Apple silicon IOReport", "modelled")


def test_a_jetson_shows_its_input_or_its_rails(tmp_path: Path) -> None:
    jetson = pytest.importorskip("zeus.device.soc.jetson")
    for name, text in {"volt": "5000", "curr": "2000", "power": "7000"}.items():
        (tmp_path / name).write_text(text)
    both = jetson.VoltageCurrentProduct(tmp_path / "volt", tmp_path / "curr").measure_power()
    assert both == 10_000  # mV times mA is uW: zeus gives milliwatts
    assert jetson.DirectPower(tmp_path / "power").measure_power() == 7000

    class Jetson(jetson.Jetson):
        def __init__(self) -> None:
            self.shown = jetson.JetsonMeasurement(cpu_energy_mj=0.0, gpu_energy_mj=0.0)

        def get_total_energy_consumption(self, timeout: float = 15.0) -> Any:
            return self.shown

    chip = Jetson()
    meter = SystemOnChipMeter(chip)
    chip.shown = jetson.JetsonMeasurement(cpu_energy_mj=1.5, gpu_energy_mj=2.0)
    assert meter.read() == 3500
    assert (meter.name, meter.method) == ("Jetson INA3221", "measured")
    whole = Jetson()
    whole.shown = jetson.JetsonMeasurement(cpu_energy_mj=1.0, gpu_energy_mj=1.0, total_energy_mj=0.0)
    meter = SystemOnChipMeter(whole)
    whole.shown = jetson.JetsonMeasurement(cpu_energy_mj=1.0, gpu_energy_mj=1.0, total_energy_mj=7.25)
    assert meter.read() == 7250


# --- hosts, over HTTP and by command ---------------------------------------------------------------------


class Web:
    """A real HTTP server with the answers of a controller or of Prometheus."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                web.asked.append((self.path, self.headers.get("Authorization")))
                status, body = web.answers.get(urlsplit(self.path).path, (404, b"{}"))
                self.send_response(status)
                if status in (301, 307):
                    self.send_header("Location", web.url + "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def say(self, path: str, value: Any, status: int = 200) -> None:
        self.answers[path] = (status, value if isinstance(value, bytes) else json.dumps(value).encode())


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.server.shutdown()
    server.server.server_close()


def second_reading(meter: Meter, clock: Clock) -> int:
    meter.read()
    clock.now += S
    return meter.read()


def test_redfish_gives_the_chassis_power(web: Web) -> None:
    clock = Clock()
    web.say("/redfish/v1/Chassis/node%201/EnvironmentMetrics", {"PowerWatts": {"Reading": 412.5}})
    meter = redfish_meter(web.url, chassis="node 1", user="u", password="p", clock_ns=clock)
    assert second_reading(meter, clock) == 412_500_000
    assert (meter.name, meter.method, meter.accuracy_milli) == ("Redfish chassis node 1", "measured", 100)
    assert web.asked[0][1] == "Basic dTpw"


def test_an_older_controller_is_asked_the_older_way(web: Web) -> None:
    clock = Clock()
    web.say("/redfish/v1/Chassis/1/Power", {"PowerControl": [{"PowerConsumedWatts": 300}]})
    assert second_reading(redfish_meter(web.url, clock_ns=clock), clock) == 300_000_000


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"PowerControl": [{"PowerConsumedWatts": None}]}, 200),
        ({"PowerControl": [{"PowerConsumedWatts": True}]}, 200),
        ({"PowerControl": [{"PowerConsumedWatts": -5}]}, 200),
        ({"PowerControl": [{"PowerConsumedWatts": 1e12}]}, 200),
        ({"PowerControl": "x"}, 200),
        ([], 200),
        (b"<html>", 200),
        (b"[" * 5000, 200),
        (b" " * 300_000, 200),
        ({}, 401),
        ({}, 500),
        ({}, 307),
    ],
)
def test_what_is_no_reading_is_no_reading(web: Web, answer: Any, status: int) -> None:
    web.say("/redfish/v1/Chassis/1/Power", answer, status)
    with pytest.raises(UnavailableError):
        redfish_meter(web.url).read()
    assert not any(path == "/elsewhere" for path, _ in web.asked)


def test_a_host_that_is_not_there_is_unavailable(web: Web) -> None:
    web.server.server_close()
    web.server.shutdown()
    with pytest.raises(UnavailableError):
        redfish_meter(web.url).read()


@pytest.mark.parametrize("url", ["bmc.example", "ftp://bmc.example", "https://u:p@bmc.example", "http://"])
def test_addresses_that_cannot_be_used_are_refused(url: str) -> None:
    with pytest.raises(InvalidError):
        redfish_meter(url)


def test_credentials_do_not_go_over_the_network_in_the_clear() -> None:
    with pytest.raises(InvalidError, match="encryption"):
        redfish_meter("http://bmc.example", user="u", password="p")
    with pytest.raises(InvalidError, match="encryption"):
        PrometheusMeter("http://prometheus.example", "x", bearer_token="t")
    redfish_meter("https://bmc.example", user="u", password="p")


def vector(*values: str) -> dict[str, Any]:
    result = [{"metric": {"gpu": str(i)}, "value": [1.5, value]} for i, value in enumerate(values)]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


def test_prometheus_gives_power_or_counted_energy(web: Web) -> None:
    clock = Clock()
    query = 'sum(node_hwmon_power_average_watt{instance="gpu-7:9100"})'
    web.say("/prom/api/v1/query", vector("200.5", "100"))
    power = prometheus_power_meter(web.url + "/prom/", query, clock_ns=clock)
    assert second_reading(power, clock) == 300_500_000
    assert parse_qs(urlsplit(web.asked[0][0]).query) == {"query": [query]}
    assert web.asked[0][1] is None
    meter = PrometheusMeter(web.url + "/prom", "joules", bearer_token="t", clock_ns=clock)
    assert meter.read() == 0
    assert web.asked[-1][1] == "Bearer t"
    web.say("/prom/api/v1/query", vector("201.000001", "100.5"))
    assert meter.read() == 1_000_001
    web.say("/prom/api/v1/query", vector("3", "101.5"))
    with pytest.raises(MeterReset):
        meter.read()
    web.say("/prom/api/v1/query", vector("5", "102.5"))
    assert meter.read() == 1_000_001 + 2_000_000 + 2_000_000


def test_a_series_that_comes_or_goes_is_a_new_start(web: Web) -> None:
    meter = PrometheusMeter(web.url, "joules", clock_ns=Clock())
    web.say("/api/v1/query", vector("200"))
    before = meter.read()
    for values, later in ((("201", "9000000"), ("202", "9000001")), (("203",), ("205",))):
        web.say("/api/v1/query", vector(*values))
        with pytest.raises(MeterReset, match="other series"):
            meter.read()
        before = meter.read()
        web.say("/api/v1/query", vector(*later))
        assert meter.read() - before == 2_000_000
    web.say("/api/v1/query", {"data": {"resultType": "scalar", "result": [1, "5"]}})
    with pytest.raises(MeterReset):
        meter.read()
    assert meter.read() == 0


@pytest.mark.parametrize("values", [(), ("NaN",), ("+Inf",), ("-1",), ("x",), ("1", "NaN")])
def test_a_query_without_a_number_is_no_reading(web: Web, values: tuple[str, ...]) -> None:
    web.say("/api/v1/query", vector(*values))
    with pytest.raises(UnavailableError):
        PrometheusMeter(web.url, "up").read()


DCMI = """
    Instantaneous power reading:                   220 Watts
    Minimum during sampling period:                  8 Watts
    IPMI timestamp:                           Thu Nov 20 08:02:17 2025
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   {state}

"""


def script(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "ipmitool"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return [str(path), "dcmi", "power", "reading"]


def test_ipmi_reads_what_ipmitool_prints(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "out").write_text(DCMI.format(state="activated"))
    command = script(tmp_path, f'test "$*" = "dcmi power reading" && cat {tmp_path / "out"}')
    assert second_reading(ipmi_meter(command, clock_ns=clock), clock) == 220_000_000


@pytest.mark.parametrize(
    "body",
    [
        "echo 'Could not open device at /dev/ipmi0' >&2; exit 1",
        "echo nothing",
        f"cat <<'E'\n{DCMI.format(state='deactivated')}\nE",
    ],
)
def test_ipmi_that_fails_says_why(tmp_path: Path, body: str) -> None:
    with pytest.raises(UnavailableError):
        ipmi_meter(script(tmp_path, body)).read()


def test_without_ipmitool_ipmi_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="ipmitool"):
        ipmi_meter([str(tmp_path / "missing")]).read()


def test_an_ipmi_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.energy.meters.host._TIMEOUT_S", 0.2)
    with pytest.raises(UnavailableError, match="timed out"):
        ipmi_meter(script(tmp_path, "exec sleep 30")).read()


# --- traces ----------------------------------------------------------------------------------------------


def test_a_trace_is_read_without_floats(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time_s,power_w\n1700000000.1,0.1\n1700000000.2,0.3\n1700000001.2,0.3\n")
    trace = read_trace(path)
    assert trace == [(0, 0), (100 * MS, 20_000), (1100 * MS, 320_000)]
    assert [w.energy_uj for w in windows_of(trace, start_ns=5)] == [20_000, 300_000]
    path.write_text("t,energy_j\n0,10\n1,12.5\n")
    assert read_trace(path, time_column="t", value_column="energy_j") == [(0, 0), (S, 2_500_000)]


@pytest.mark.parametrize(
    "text",
    [
        "", "time_s\n1\n", "time_s,power_w\n", "time_s,power_w\n0,x\n", "time_s,power_w\n0,-1\n",
        "time_s,power_w\n0,1\n0,1\n", "time_s,power_w\n0,NaN\n", "time_s,power_w\n0\n", "\xff\x00",
    ],
)  # fmt: skip
def test_a_trace_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidError):
        read_trace(path)


def test_traces_have_a_unit_and_rising_energy(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time_s,power,energy_j\n0,1,5\n1,1,4\n")
    for column in ("power", "energy_j"):
        with pytest.raises(InvalidError):
            read_trace(path, value_column=column)
    with pytest.raises(InvalidError):
        ReplayMeter([])


def test_a_replay_shows_the_trace_from_its_first_reading_on() -> None:
    clock = Clock()
    clock.now = 77 * S
    meter = ReplayMeter([(0, 0), (S, 100), (3 * S, 100), (4 * S, 201)], speed=2, clock_ns=clock)
    shown = []
    for _ in range(6):
        shown.append(meter.read())
        clock.now += S // 4
    assert shown == [0, 50, 100, 100, 100, 100]
    clock.now = 77 * S + 7 * S // 4
    assert meter.read() == 150
    clock.now += 100 * S
    assert meter.read() == meter.total_uj == 201


def test_a_replay_can_start_anew() -> None:
    clock = Clock()
    meter = ReplayMeter([(0, 0), (10 * S, 100)], resets_at_ns=[5 * S], clock_ns=clock)
    meter.read()
    clock.now = 6 * S
    with pytest.raises(MeterReset):
        meter.read()
    assert meter.read() == 60
