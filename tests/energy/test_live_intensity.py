"""Live grid intensity against a server on this machine.

It answers in the shapes of the services' documentation (Electricity Maps API v3, carbon-intensity/latest;
WattTime API v3, login and historical): by their documentation, not recorded from the services.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec import UNSET

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.records import FactorSet, FactorSource, decode_factor_set, document_digest
from ledger.energy.grid_services import ElectricityMaps, Reading, WattTime
from ledger.energy.live_intensity import LiveFactors, with_reading

KEY = "secret-token-0123"
BASE = FactorSet(
    name="site",
    version="1",
    pue_milli=1200,
    intensity_ug_per_kwh=56_039_000,
    intensity_low_ug_per_kwh=41_440_000,
    intensity_high_ug_per_kwh=60_000_000,
    market_ug_per_kwh=0,
    sources=(
        FactorSource(factor="intensity_ug_per_kwh", source="static"),
        FactorSource(factor="intensity_low_ug_per_kwh", source="static"),
        FactorSource(factor="pue_milli", source="ours"),
    ),
)
AT = datetime(2026, 3, 20, 17, tzinfo=UTC)
AT_US = round(AT.timestamp()) * 1_000_000


class Server:
    """Answers what a test puts into ``answers`` (by path), and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        self.asked: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.asked.append((parts.path, parse_qs(parts.query), headers))
                status, body = server.answers.get(parts.path, (404, {"message": "no such route"}))
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def latest(intensity: object = 83, at: str = "2026-03-20T17:00:00.000Z", **more: object) -> dict[str, object]:
    """Electricity Maps' documented answer."""
    return {
        "zone": "FR",
        "carbonIntensity": intensity,
        "datetime": at,
        "updatedAt": "2026-03-20T16:51:02.892Z",
        "createdAt": "2026-03-17T17:54:01.319Z",
        "emissionFactorType": "lifecycle",
        "isEstimated": True,
        "estimationMethod": "TIME_SLICER_AVERAGE",
        "temporalGranularity": "hourly",
        **more,
    }


MAPS = "/v3/carbon-intensity/latest"


def historical(**more: object) -> dict[str, object]:
    """WattTime's documented answer."""
    return {
        "data": [
            {"point_time": "2026-03-20T16:55:00+00:00", "value": 700.5},
            {"point_time": "2026-03-20T17:00:00+00:00", "value": 1000},
        ],
        "meta": {
            "data_point_period_seconds": 300,
            "region": "CAISO_NORTH",
            "warnings": [],
            "signal_type": "co2_aoer",
            "model": {"date": "2023-03-01"},
            "units": "lbs_co2_per_mwh",
            **more,
        },
    }


# --- readings --------------------------------------------------------------------------------------------


def test_electricity_maps(server: Server) -> None:
    server.answers[MAPS] = (200, latest(83.25))
    reading = ElectricityMaps(KEY, "FR", url=server.url).latest()
    assert reading.ug_per_kwh == 83_250_000
    assert reading.at_us == AT_US
    assert "lifecycle" in reading.source
    assert "FR" in reading.source
    assert "estimated" in reading.source
    [(_, query, headers)] = server.asked
    assert headers["auth-token"] == KEY
    assert query == {"zone": ["FR"], "emissionFactorType": ["lifecycle"], "disableCallerLookup": ["true"]}


def test_watttime_asks_for_the_average_never_the_marginal_rate(server: Server) -> None:
    server.answers["/login"] = (200, {"token": "abc.def"})
    server.answers["/v3/historical"] = (200, historical())
    reading = WattTime("me", KEY, "CAISO_NORTH", url=server.url, now=lambda: AT).latest()
    assert reading.ug_per_kwh == 453_592_370  # 1,000 lb/MWh
    assert reading.at_us == AT_US
    assert "CO2 alone" in reading.source
    (login, _, first), (path, query, second) = server.asked
    assert (login, path) == ("/login", "/v3/historical")
    assert first["authorization"] == "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()
    assert second["authorization"] == "Bearer abc.def"
    assert query["signal_type"] == ["co2_aoer"]
    assert query["region"] == ["CAISO_NORTH"]
    assert query["start"] == ["2026-03-19T17:00:00+00:00"]
    server.answers["/v3/historical"] = (200, historical(signal_type="co2_moer"))
    with pytest.raises(UnavailableError):
        WattTime("me", KEY, "CAISO_NORTH", url=server.url, now=lambda: AT).latest()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, latest(zone="DE")),
        (200, latest(emissionFactorType="direct")),
        (200, latest(None)),
        (200, latest("83")),
        (200, latest(True)),
        (200, latest(-1)),
        (200, latest(10**9)),
        (200, latest(at="yesterday")),
        (200, latest(at="2026-03-20T17:00:00")),
        (200, latest(at=5)),
        (200, []),
        (200, b"<html>"),
        (200, b"[" * 100_000),
        (200, b'{"carbonIntensity": NaN}'),
        (200, b" " * 300_000),
        (401, {"error": "Invalid auth-token"}),
        (403, {}),
        (404, {}),
        (429, {}),
        (500, {}),
        (302, {}),
    ],
)
def test_answers_that_are_not_usable(server: Server, status: int, body: object) -> None:
    server.answers[MAPS] = (status, body)
    with pytest.raises(UnavailableError) as caught:
        ElectricityMaps(KEY, "FR", url=server.url).latest()
    assert caught.value.code == "intensity-unavailable"
    assert KEY not in str(caught.value)
    assert len(server.asked) == 1, "redirects are not followed, nothing is tried again"


@pytest.mark.parametrize(
    ("key", "zone", "url"),
    [
        ("", "FR", "https://api.example.com"),
        ("a\nb", "FR", "https://api.example.com"),
        ("schlüssel", "FR", "https://api.example.com"),
        (KEY, "", "https://api.example.com"),
        (KEY, "FR", "http://api.example.com"),
        (KEY, "FR", "ftp://api.example.com"),
        (KEY, "FR", "https://user@api.example.com"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(key: str, zone: str, url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        ElectricityMaps(key, zone, url=url)
    assert not key or key not in str(caught.value)


# --- factor sets -----------------------------------------------------------------------------------------


def test_a_reading_becomes_a_factor_set_of_its_own() -> None:
    made = with_reading(BASE, Reading(83_250_000, AT_US, "a service", "v3"))
    assert made.intensity_ug_per_kwh == 83_250_000
    assert made.intensity_low_ug_per_kwh is UNSET
    assert made.market_ug_per_kwh == 0
    assert made.pue_milli == 1200
    assert made.valid_from_us == AT_US
    assert made.valid_until_us == AT_US + 7200 * 10**6
    assert [each.factor for each in made.sources] == ["intensity_ug_per_kwh", "pue_milli"]
    assert made.sources[0].year == 2026
    assert made.version == "2026-03-20T17:00:00Z"
    assert decode_factor_set(encode_canonical(made)) == made
    assert document_digest(made) != document_digest(BASE)


class Clock:
    def __init__(self) -> None:
        self.s = AT.timestamp() + 60

    def __call__(self) -> float:
        return self.s


def settled(live: LiveFactors) -> FactorSet:
    """What it gives once its thread has ended."""
    live.current()
    thread = live._fetching
    if thread is not None:
        thread.join(10)
        assert not thread.is_alive()
    return live.current()


def test_it_gives_the_static_set_first_and_the_live_one_once_it_is_there(server: Server) -> None:
    server.answers[MAPS] = (200, latest())
    clock = Clock()
    live = LiveFactors(BASE, ElectricityMaps(KEY, "FR", url=server.url), now_s=clock)
    assert live.current() is BASE
    made = settled(live)
    assert made.intensity_ug_per_kwh == 83_000_000
    for _ in range(100):
        assert live.current() is made
    assert len(server.asked) == 1
    clock.s += 901
    server.answers[MAPS] = (200, latest(84, "2026-03-20T17:15:00Z"))
    assert settled(live).intensity_ug_per_kwh == 84_000_000
    assert len(server.asked) == 2


def test_a_clock_that_is_stepped_back_does_not_stop_readings(server: Server) -> None:
    server.answers[MAPS] = (200, latest())
    clock = Clock()
    live = LiveFactors(BASE, ElectricityMaps(KEY, "FR", url=server.url), max_per_hour=1, now_s=clock)
    settled(live)
    clock.s -= 3600
    server.answers[MAPS] = (200, latest(84, datetime.fromtimestamp(clock.s, UTC).isoformat()))
    assert settled(live).intensity_ug_per_kwh == 84_000_000
    assert len(server.asked) == 2


def test_it_falls_back_and_complains_once_when_the_service_is_away(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers[MAPS] = (200, latest())
    clock = Clock()
    live = LiveFactors(BASE, ElectricityMaps(KEY, "FR", url=server.url), now_s=clock)
    held = settled(live)
    server.answers[MAPS] = (500, {})
    with caplog.at_level(logging.WARNING, logger="tallystick.energy"):
        clock.s += 901
        assert settled(live) is held, "it holds for two hours"
        for _ in range(4):
            clock.s += 3600
            assert settled(live) is BASE or clock.s * 10**6 < held.valid_until_us
    assert len(caplog.records) == 1
    assert "static" in caplog.text or "answered 500" in caplog.text
    assert KEY not in caplog.text
    server.answers[MAPS] = (200, latest(90, datetime.fromtimestamp(clock.s, UTC).isoformat()))
    clock.s += 61
    assert settled(live).intensity_ug_per_kwh == 90_000_000


def test_a_reading_that_is_too_old_is_not_used(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answers[MAPS] = (200, latest(at="2026-03-20T09:00:00Z"))
    live = LiveFactors(BASE, ElectricityMaps(KEY, "FR", url=server.url), now_s=Clock())
    with caplog.at_level(logging.WARNING, logger="tallystick.energy"):
        assert settled(live) is BASE
    assert "too old" in caplog.text


def test_new_sets_are_bounded(server: Server) -> None:
    clock = Clock()
    live = LiveFactors(
        BASE, ElectricityMaps(KEY, "FR", url=server.url), refresh_s=60, max_per_hour=3, now_s=clock
    )
    seen = set()
    for minute in range(60):
        server.answers[MAPS] = (200, latest(100 + minute, datetime.fromtimestamp(clock.s, UTC).isoformat()))
        seen.add(document_digest(settled(live)))
        clock.s += 60.5
    assert len(server.asked) > 50
    assert len(seen - {document_digest(BASE)}) == 3
    clock.s += 60.5
    settled(live)
    assert document_digest(settled(live)) not in seen, "the next hour brings new ones"


def test_processes_of_a_host_share_what_one_fetched(server: Server, tmp_path: Path) -> None:
    server.answers[MAPS] = (200, latest())
    clock = Clock()

    def other(base: FactorSet = BASE, zone: str = "FR") -> LiveFactors:
        service = ElectricityMaps(KEY, zone, url=server.url)
        return LiveFactors(base, service, cache=tmp_path / "spool", now_s=clock)

    made = settled(other())
    assert len(server.asked) == 1
    assert settled(other()) == made, "read from the file, not fetched"
    assert len(server.asked) == 1
    [file] = (tmp_path / "spool").iterdir()
    assert KEY.encode() not in file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(file.read_bytes()[:-5])
    assert settled(other()) == made, "a torn file is fetched anew"
    assert len(server.asked) == 2
    settled(other(zone="DE"))
    assert len(server.asked) == 3, "another zone has a file of its own"
    file.write_bytes(encode_canonical(with_reading(BASE, Reading(1, AT_US, "x", "1"), holds_s=30)))
    assert settled(other()) == made, "what no longer holds is fetched anew"


def test_an_unwritable_cache_is_only_a_complaint(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    server.answers[MAPS] = (200, latest())
    live = LiveFactors(
        BASE, ElectricityMaps(KEY, "FR", url=server.url), cache=tmp_path / "file" / "x", now_s=Clock()
    )
    with caplog.at_level(logging.WARNING, logger="tallystick.energy"):
        assert settled(live).intensity_ug_per_kwh == 83_000_000
    assert "kept on disk" in caplog.text


def test_a_service_that_breaks_does_not_reach_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        zone = "FR"

        def latest(self) -> Reading:
            raise RuntimeError("a fault of ours")

    live = LiveFactors(BASE, Broken(), now_s=Clock())
    assert settled(live) is BASE
    assert not live.refresh()
    assert "a fault of ours" in caplog.text


def test_current_is_cheap_and_does_not_wait_for_a_slow_service() -> None:
    release = threading.Event()

    class Slow:
        zone = "FR"

        def latest(self) -> Reading:
            release.wait(30)
            return Reading(1, AT_US, "slow", "1")

    live = LiveFactors(BASE, Slow(), now_s=Clock())
    began = time.perf_counter()
    for _ in range(1000):
        assert live.current() is BASE
    assert time.perf_counter() - began < 15
    release.set()
    assert settled(live).intensity_ug_per_kwh == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_fetches_by_itself(server: Server) -> None:
    server.answers[MAPS] = (200, latest())
    live = LiveFactors(BASE, ElectricityMaps(KEY, "FR", url=server.url), now_s=Clock())
    settled(live)
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = live.current() is BASE and settled(live).intensity_ug_per_kwh == 83_000_000
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(server.asked) == 2


@pytest.mark.parametrize("numbers", [{"refresh_s": 0}, {"holds_s": -1}, {"max_per_hour": 0}])
def test_impossible_settings_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(InvalidError):
        LiveFactors(BASE, ElectricityMaps(KEY, "FR"), **numbers)
