"""Owns the power of whole hosts: from the board's controller by Redfish or IPMI, or from a Prometheus server.

Each asks only the host that it is given, within a few seconds and kilobytes, and follows no redirect.

Accuracy: the readings are those of the power supplies' or the board's monitors, for which the standards state
none (Redfish DSP0268, DCMI 1.5); 10 % is taken unless the caller knows better.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from ledger.core.errors import InvalidError
from ledger.core.records import Method
from ledger.energy.meters.counting import MeterReset, PowerMeter, RisingCounter, unreadable

__all__ = ["PrometheusMeter", "ipmi_meter", "prometheus_power_meter", "redfish_meter"]

_ACCURACY_MILLI = 100
_TIMEOUT_S = 4.0
_MAX_BYTES = 256 * 1024
_MW_PER_W = 1000
_UJ_PER_J = 1_000_000
_MAX_W = 1_000_000
_INSTANTANEOUS = re.compile(r"Instantaneous power reading:\s+(\d{1,6}) Watts")
_STATE = re.compile(r"Power reading state is:\s+(\w+)")


def redfish_meter(
    url: str,
    *,
    chassis: str = "1",
    user: str = "",
    password: str = "",
    accuracy_milli: int = _ACCURACY_MILLI,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> PowerMeter:
    """The power of a chassis, from a Redfish service (DMTF DSP0266).

    Args:
        url: of the controller, such as ``https://bmc.example``.
        chassis: the id of the chassis.
        user: for HTTP basic authentication; only over https.
        password: likewise.
        accuracy_milli: how far a reading can be off.
        clock_ns: a steady clock.
    """
    ask = _Asking(url, user=user, password=password)
    base = f"/redfish/v1/Chassis/{quote(chassis, safe='')}"

    def read_mw() -> int:
        # EnvironmentMetrics since 2020.4; Power is what older controllers have, deprecated since.
        status, body = ask(f"{base}/EnvironmentMetrics")
        reading = _path(body, "PowerWatts", "Reading") if status == 200 else None
        if reading is None:
            _, body = ask(f"{base}/Power", required=True)
            reading = _path(body, "PowerControl", 0, "PowerConsumedWatts")
        return _milliwatts(reading, ask.url)

    return PowerMeter(
        read_mw, name=f"Redfish chassis {chassis}"[:80], accuracy_milli=accuracy_milli, clock_ns=clock_ns
    )


def ipmi_meter(
    command: Sequence[str] = ("ipmitool", "dcmi", "power", "reading"),
    *,
    accuracy_milli: int = _ACCURACY_MILLI,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> PowerMeter:
    """The power of this host, from its controller by DCMI; ``command`` may name another host (``-H``)."""

    def read_mw() -> int:
        try:
            result = subprocess.run(  # noqa: S603 - the caller's command, without a shell
                list(command),
                capture_output=True,
                timeout=_TIMEOUT_S,
                env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"},
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise unreadable("IPMI", error, "install ipmitool, and let this user open /dev/ipmi0") from None
        text = result.stdout.decode("ascii", "replace")
        found, state = _INSTANTANEOUS.search(text), _STATE.search(text)
        if result.returncode or found is None or (state is not None and state[1] != "activated"):
            said = (result.stderr or result.stdout).decode("utf-8", "replace").strip()
            raise unreadable("IPMI", said or "no power reading", "check `ipmitool dcmi power reading`")
        return int(found[1]) * _MW_PER_W

    return PowerMeter(read_mw, name="IPMI DCMI", accuracy_milli=accuracy_milli, clock_ns=clock_ns)


def prometheus_power_meter(
    url: str,
    query: str,
    *,
    bearer_token: str = "",
    accuracy_milli: int = _ACCURACY_MILLI,
    method: Method = "measured",
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> PowerMeter:
    """The power that an instant query gives, in watts; several series are summed."""
    ask = _Asking(url, bearer_token=bearer_token)
    return PowerMeter(
        lambda: _milliwatts(sum(_prometheus(ask, query).values(), Decimal(0)), ask.url),
        name=f"Prometheus: {query}"[:120],
        accuracy_milli=accuracy_milli,
        method=method,
        clock_ns=clock_ns,
    )


class PrometheusMeter:
    """A counter of joules in Prometheus, such as ``sum(kepler_node_cpu_joules_total{instance="gpu-7"})``.

    Its windows are as old as the last scrape: use windows much longer than the scrape interval.

    Args:
        url: of the server.
        query: an instant query; several series are summed, so a series that comes or goes is a new start.
        bearer_token: for the Authorization header; only over https.
        unit: of the value.
        accuracy_milli: of what the series were measured with.
        method: what its figures are.
        clock_ns: a steady clock.
    """

    def __init__(
        self,
        url: str,
        query: str,
        *,
        bearer_token: str = "",
        unit: Literal["joules", "microjoules", "kilowatt_hours"] = "joules",
        accuracy_milli: int = _ACCURACY_MILLI,
        method: Method = "measured",
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = f"Prometheus: {query}"[:120]
        self.method: Method = method
        self.accuracy_milli = accuracy_milli
        self._ask = _Asking(url, bearer_token=bearer_token)
        self._query = query
        self._uj = {"joules": _UJ_PER_J, "microjoules": 1, "kilowatt_hours": 3_600_000 * _UJ_PER_J}[unit]
        self._clock_ns = clock_ns
        self._counters: dict[str, RisingCounter] = {}

    def read(self) -> int:
        """See ``Meter.read``."""
        values, now = _prometheus(self._ask, self._query), self._clock_ns()
        if values.keys() != self._counters.keys():
            known, self._counters = self._counters, {name: RisingCounter() for name in values}
            if known:  # what a series counted before it came is nobody's here
                raise MeterReset("the query gives other series than before", where=self.name)
        return sum([self._counters[name].add(int(each * self._uj), now) for name, each in values.items()])


class _Asking:
    """Asks one HTTP server for JSON."""

    def __init__(self, url: str, *, user: str = "", password: str = "", bearer_token: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise InvalidError(
                "the meter's address is not an http or https URL without credentials in it",
                where=parts.hostname or "",
                remedy="pass credentials apart",
                code="bad-setting",
            )
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._base = self.url + parts.path.rstrip("/")
        self._headers = {"Accept": "application/json"}
        if user:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        elif bearer_token:
            self._headers["Authorization"] = f"Bearer {bearer_token}"
        if "Authorization" in self._headers and parts.scheme != "https" and parts.hostname not in _LOCAL:
            raise InvalidError(
                "credentials would go over the network without encryption",
                where=self.url,
                remedy="use https",
                code="bad-setting",
            )

    def __call__(self, path: str, *, required: bool = False) -> tuple[int, Any]:
        """Status and decoded body; the body is None unless the status is 200."""
        from ledger import http_call

        limits = http_call.Limits(_TIMEOUT_S, _TIMEOUT_S, _TIMEOUT_S, _MAX_BYTES, _MAX_BYTES)
        pool = http_call.open_pool(self.url)
        try:
            answer = http_call.call(pool, "GET", self._base + path, limits, headers=self._headers)
        except OSError as error:
            raise unreadable(self.url, error, "check the address") from None
        finally:
            pool.clear()
        if answer.status != 200:
            if required or answer.status != 404:
                raise unreadable(self.url, f"status {answer.status}", "check address and credentials")
            return answer.status, None
        try:
            return 200, json.loads(answer.body, parse_float=Decimal)
        except (ValueError, RecursionError):
            raise unreadable(self.url, "the answer is not JSON") from None


_LOCAL = ("localhost", "127.0.0.1", "::1")


def _prometheus(ask: _Asking, query: str) -> dict[str, Decimal]:
    """The value of each series, by its labels."""
    _, body = ask(f"/api/v1/query?{urlencode({'query': query})}", required=True)
    data = _path(body, "data")
    kind, result = _path(data, "resultType"), _path(data, "result")
    if kind == "scalar":
        values = {"": _path(result, 1)}
    elif kind == "vector" and isinstance(result, list):
        values = {
            json.dumps(_path(each, "metric"), sort_keys=True, default=str): _path(each, "value", 1)
            for each in result
        }
    else:
        values = {}
    try:
        numbers = {name: Decimal(value) for name, value in values.items()}
    except (InvalidOperation, TypeError, ValueError):
        numbers = {}
    if not numbers or not all(number.is_finite() and number >= 0 for number in numbers.values()):
        raise unreadable(ask.url, "the query gives no number", "try the query in Prometheus itself")
    return numbers


def _path(value: Any, *keys: str | int) -> Any:
    for key in keys:
        if isinstance(key, str) and isinstance(value, dict):
            value = value.get(key)
        elif isinstance(key, int) and isinstance(value, list) and len(value) > key:
            value = value[key]
        else:
            return None
    return value


def _milliwatts(watts: Any, where: str) -> int:
    if isinstance(watts, bool) or not isinstance(watts, int | Decimal) or not 0 <= watts <= _MAX_W:
        raise unreadable(where, "there is no power reading in the answer")
    return int(watts * _MW_PER_W)
