"""Owns what services that measure the grid answer: Electricity Maps and WattTime. One reading for each call.

By their documentation (Electricity Maps API v3, ``/v3/carbon-intensity/latest``; WattTime API v3, ``/login``
and ``/v3/historical``). Only average intensities are read: WattTime's ``co2_moer`` is *marginal* (what one
more kWh would cause) and must not stand for the location-based average of the GHG Protocol, so it is
``co2_aoer`` that is asked for.

Keys go to the host that is configured, in headers, and nowhere else: not into errors, logs, or factor sets.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from ledger import __version__
from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    import urllib3

__all__ = ["ElectricityMaps", "GridService", "Reading", "WattTime"]

_T = TypeVar("_T")

ELECTRICITY_MAPS_URL = "https://api.electricitymaps.com"
WATTTIME_URL = "https://api.watttime.org"

_CONNECT_S, _READ_S, _TOTAL_S = 5.0, 10.0, 20.0
_MAX_BYTES = 256 * 1024
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_UG_PER_G = 1_000_000
_UG_PER_KWH_FOR_LB_PER_MWH = Fraction("453.59237") / 1000 * _UG_PER_G
_WATTTIME_WINDOW = timedelta(hours=24)
_MAX_INTENSITY_UG = 3_000_000_000
"""3 kg for each kWh: oil burnt badly gives half of it. More is another unit."""


@dataclass(frozen=True)
class Reading:
    """The average intensity of a grid at a time.

    Attributes:
        ug_per_kwh: micrograms of CO2e, or of CO2 where ``source`` says so.
        at_us: which moment it describes, Unix microseconds.
        source: what to cite: service, signal, zone, and whether it is measured or estimated.
        version: of the interface and model.
    """

    ug_per_kwh: int
    at_us: int
    source: str
    version: str


class GridService(Protocol):
    """Anything that tells the intensity of a grid now."""

    @property
    def zone(self) -> str:
        """Which grid; no secret in it."""

    def latest(self) -> Reading:
        """Fetch the newest reading.

        Raises:
            UnavailableError: no usable answer.
        """


class ElectricityMaps:
    """Electricity Maps, carbon intensity of consumption (flow-traced).

    Args:
        key: API token.
        zone: as they name it, such as ``DE`` or ``US-CAL-CISO``.
        lifecycle: life cycle emissions, as the static sets have; else direct ones, of combustion alone.
        url: of the service.

    Raises:
        InvalidError: key, zone or URL are not usable.
    """

    def __init__(
        self, key: str, zone: str, *, lifecycle: bool = True, url: str = ELECTRICITY_MAPS_URL
    ) -> None:
        self.zone = _plain(zone, "zone")
        self._kind = "lifecycle" if lifecycle else "direct"
        self._get = _Getter(url)
        self._headers = {"auth-token": _plain(key, "key")}

    def latest(self) -> Reading:
        """Fetch the newest reading.

        Raises:
            UnavailableError: no usable answer.
        """
        # Without disableCallerLookup, an unknown zone is answered for where the caller seems to be.
        path = (
            f"/v3/carbon-intensity/latest?zone={quote(self.zone, safe='')}"
            f"&emissionFactorType={self._kind}&disableCallerLookup=true"
        )
        return self._get(path, self._headers, self._read)

    def _read(self, answer: dict[str, Any]) -> Reading:
        if answer["zone"] != self.zone or answer.get("emissionFactorType", self._kind) != self._kind:
            raise ValueError("it is about another zone or kind of emissions")
        how = "estimated" if answer.get("isEstimated") else "measured"
        return Reading(
            ug_per_kwh=_intensity(Fraction(_number(answer["carbonIntensity"])) * _UG_PER_G),
            at_us=_unix_us(answer["datetime"]),
            source=f"Electricity Maps, intensity of consumption, {self._kind}, zone {self.zone}, {how}",
            version="v3",
        )


class WattTime:
    """WattTime, average operating emissions rate (``co2_aoer``, CO2 alone).

    Args:
        user: of the account.
        password: of the account.
        region: as they name it, such as ``CAISO_NORTH``.
        url: of the service.
        now: the time, for the window that is asked for.

    Raises:
        InvalidError: an argument is not usable.
    """

    def __init__(
        self,
        user: str,
        password: str,
        region: str,
        *,
        url: str = WATTTIME_URL,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.zone = _plain(region, "region")
        if not user or not password:
            raise InvalidError("WattTime needs a user and a password", code="bad-api-key")
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._login = {"Authorization": f"Basic {login}"}
        self._get = _Getter(url)
        self._now = now

    def latest(self) -> Reading:
        """Log in and fetch the newest reading of the last day. Tokens last half an hour, so none is kept.

        Raises:
            UnavailableError: no usable answer.
        """
        token = self._get("/login", self._login, lambda answer: _plain(answer["token"], "token"))
        end = self._now().astimezone(UTC).replace(second=0, microsecond=0)
        window = ((end - _WATTTIME_WINDOW).isoformat(), end.isoformat())
        start, until = (quote(each, safe="") for each in window)
        region = quote(self.zone, safe="")
        path = f"/v3/historical?region={region}&signal_type=co2_aoer&start={start}&end={until}"
        return self._get(path, {"Authorization": f"Bearer {token}"}, self._read)

    def _read(self, answer: dict[str, Any]) -> Reading:
        meta = answer["meta"]
        told = (meta["region"], meta["signal_type"], meta["units"])
        if told != (self.zone, "co2_aoer", "lbs_co2_per_mwh"):
            raise ValueError("it is about another region, signal or unit")
        points = [(_unix_us(point["point_time"]), point["value"]) for point in answer["data"]]
        if not points:
            raise ValueError("it has no points for the last day")
        at_us, value = max(points, key=lambda point: point[0])
        model = meta.get("model") or {}
        return Reading(
            ug_per_kwh=_intensity(Fraction(_number(value)) * _UG_PER_KWH_FOR_LB_PER_MWH),
            at_us=at_us,
            source=f"WattTime, average operating emissions rate (co2_aoer), CO2 alone, region {self.zone}",
            version=f"v3 {model.get('date', '')}".strip()[:64],
        )


# --- asking ----------------------------------------------------------------------------------------------


class _Getter:
    """GET of JSON from one host. Used by one thread at a time.

    Raises:
        InvalidError: the URL is not usable, or would send the key without encryption.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise InvalidError("the URL of the grid service is not usable", code="bad-url")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise InvalidError(
                "the key would go to the grid service without encryption",
                where=parts.hostname,
                remedy="use https",
                code="bad-url",
            )
        self._url = url.rstrip("/")
        self._pool: urllib3.PoolManager | None = None
        self._pid = 0

    def __call__(self, path: str, headers: dict[str, str], read: Callable[[dict[str, Any]], _T]) -> _T:
        """Fetch and read; the error names the host and what was wrong, never the key.

        Raises:
            UnavailableError: no answer, another status than 200, or not what was expected.
        """
        from ledger import http_call

        host = urlsplit(self._url).netloc
        if self._pool is None or self._pid != os.getpid():  # a child must not use its parent's connection
            self._pool, self._pid = http_call.open_pool(self._url), os.getpid()
        sent = {**headers, "Accept": "application/json", "User-Agent": f"tallystick/{__version__}"}
        limits = http_call.Limits(_CONNECT_S, _READ_S, _TOTAL_S, _MAX_BYTES, _MAX_BYTES)
        try:
            answer = http_call.call(self._pool, "GET", self._url + path, limits, headers=sent)
        except (ConnectionError, UnavailableError) as error:
            raise _no_answer(host, f"it cannot be reached: {error}") from None
        if answer.status in (401, 403):
            raise _no_answer(host, f"it refuses the key ({answer.status})")
        if answer.status != 200:
            raise _no_answer(host, f"it answered {answer.status}")
        try:
            return read(json.loads(answer.body, parse_float=Decimal))
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise _no_answer(
                host, f"its answer is not as documented: {type(error).__name__}: {error}"
            ) from None


def _no_answer(host: str, what: str) -> UnavailableError:
    return UnavailableError(
        f"no live grid intensity: {what}"[:300],
        where=host,
        remedy="check key, zone and connection; until then the static factor set is used",
        code="intensity-unavailable",
    )


def _plain(value: Any, what: str) -> str:
    if not isinstance(value, str) or not (value.isascii() and value.isprintable() and value.strip()):
        raise InvalidError(f"the grid service's {what} has characters that no {what} has", code="bad-api-key")
    return value.strip()


def _number(value: Any) -> Decimal | int:
    if isinstance(value, bool) or not isinstance(value, Decimal | int):
        raise TypeError("the intensity is no number")
    return value


def _intensity(ug_per_kwh: Fraction) -> int:
    if not 0 <= ug_per_kwh <= min(_MAX_INTENSITY_UG, MAX_SAFE_INTEGER):
        raise ValueError("the intensity is out of range")
    return int(ug_per_kwh + Fraction(1, 2))


def _unix_us(text: Any) -> int:
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("the time has no zone")
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
