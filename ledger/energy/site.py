"""Owns which factors a process uses by its environment, for hooks that are configured without code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.records import FactorSet, decode_factor_set
from ledger.energy.factor_sets import factor_set_for
from ledger.energy.factors import default_factor_set
from ledger.energy.grid_services import ElectricityMaps, GridService, WattTime
from ledger.energy.live_intensity import LiveFactors

__all__ = ["VARIABLES", "factors_from_environment", "factors_unless_named", "read_factor_set"]

VARIABLES = {
    "TALLYSTICK_FACTORS": "grid zone or cloud region (`FRA`, `aws:eu-north-1`), or a factor set's JSON file",
    "TALLYSTICK_ELECTRICITY_MAPS_KEY": "API token of Electricity Maps, for live intensity",
    "TALLYSTICK_ELECTRICITY_MAPS_ZONE": "the zone to ask it for, as it names it (`FR`, `US-CAL-CISO`)",
    "TALLYSTICK_WATTTIME_USER": "account of WattTime, for live intensity",
    "TALLYSTICK_WATTTIME_PASSWORD": "its password",
    "TALLYSTICK_WATTTIME_REGION": "the region to ask it for, as it names it (`CAISO_NORTH`)",
}

_ASKING = ("TALLYSTICK_FACTORS", "TALLYSTICK_ELECTRICITY_MAPS_KEY", "TALLYSTICK_WATTTIME_USER")
"""Those of them without which the environment asks for no factors."""
_MAX_FILE_BYTES = 65_536


def factors_from_environment(
    environment: Mapping[str, str], *, cache: Path | None = None
) -> FactorSet | LiveFactors | None:
    """The factors that the environment asks for; None where it asks for none.

    Live intensity needs a key and a zone. Without ``TALLYSTICK_FACTORS``, the static set beneath it is the
    average of the world.

    Args:
        environment: such as ``os.environ``.
        cache: directory for the newest live set; see ``LiveFactors``.

    Raises:
        InvalidError: a variable is not usable, or one of a pair is missing.
        UnavailableError: no package with grid factors is installed.
    """
    wanted = environment.get("TALLYSTICK_FACTORS", "").strip()
    service = _service(environment)
    if not wanted and service is None:
        return None
    if not wanted:
        base = default_factor_set()
    elif wanted.endswith(".json"):
        base = read_factor_set(Path(wanted))
    else:
        base = factor_set_for(wanted)
    return base if service is None else LiveFactors(base, service, cache=cache)


def factors_unless_named(environment: Mapping[str, str]) -> FactorSet | None:
    """The average of the world, for hooks that are set up without code; None where the environment asks for
    factors, which a ``Recorder`` then reads by itself.
    """
    return None if any(environment.get(name, "").strip() for name in _ASKING) else default_factor_set()


def _service(environment: Mapping[str, str]) -> GridService | None:
    def values(*names: str) -> list[str] | None:
        given = [environment.get(f"TALLYSTICK_{name}", "").strip() for name in names]
        if not given[0]:
            return None
        for name, value in zip(names, given, strict=True):
            if not value:
                raise InvalidError(
                    f"TALLYSTICK_{names[0]} is set, but TALLYSTICK_{name} is not",
                    remedy="set both, or none",
                    code="bad-setting",
                )
        return given

    if (maps := values("ELECTRICITY_MAPS_KEY", "ELECTRICITY_MAPS_ZONE")) is not None:
        return ElectricityMaps(maps[0], maps[1])
    if (watt := values("WATTTIME_USER", "WATTTIME_PASSWORD", "WATTTIME_REGION")) is not None:
        return WattTime(watt[0], watt[1], watt[2])
    return None


def read_factor_set(path: Path) -> FactorSet:
    """Read a factor set from JSON of any layout, such as ``tallystick factors show ZONE --json`` writes.

    Raises:
        InvalidError: the file cannot be read, or is not a factor set.
    """
    try:
        data = path.read_bytes()[: _MAX_FILE_BYTES + 1]
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_FILE_BYTES} bytes")
        return decode_factor_set(encode_canonical(msgspec.json.decode(data, type=FactorSet)), where=str(path))
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidError(
            f"the file of the factor set cannot be used: {error}"[:300],
            where=str(path),
            remedy="make one with `tallystick factors show ZONE --json`, and change it",
            code="bad-setting",
        ) from None
