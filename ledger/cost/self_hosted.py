"""Owns what tokens of one's own hardware cost: hours of hardware and energy, over the tokens it made.

From a file of stated assumptions, for each deployment (or for all that share hardware)::

    hardware = hours of the period * hourly rate of the hardware
    energy   = measured energy * PUE * price of electricity      (no other energy is added: what idle
                                                                  hardware takes is the operator's to state)
    cost per 1,000 tokens = (hardware + energy + other) * 1,000 / tokens

Money is billionths of one currency; each amount is rounded once, half up. Nothing is assumed that the file
does not state, but that hardware is paid for the whole period, busy or idle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core.canonical import check_nesting
from ledger.core.errors import InvalidError
from ledger.core.records import Amount, Name
from ledger.cost.rating import rounded

__all__ = ["Assumptions", "Hardware", "Made", "Spent", "read_assumptions", "self_hosted_cost"]

MAX_FILE_BYTES = 1 << 20
_US_PER_HOUR = 3_600_000_000
_UJ_PER_KWH = 3_600_000_000_000
_MILLI = 1000

Text = Annotated[str, Meta(min_length=1, max_length=1024)]


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hardware that deployments share, and what it costs. Whose deployments: all that fit what is stated.

    ``hourly_nano`` is the rate of one unit for an hour (rent, or depreciation with interest and operation),
    in billionths of the currency; ``units`` how many run; ``source`` says where the rate comes from.
    ``hours`` is how long they are paid for, if that is not the whole period.
    """

    name: Name
    hourly_nano: Amount
    source: Text
    units: Annotated[int, Meta(ge=1, le=10_000_000)] = 1
    hours: Amount | UnsetType = UNSET
    other_nano: Amount = 0
    """What else the period costs: staff, network, licences."""
    deployment: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    site: str | UnsetType = UNSET
    accelerator: str | UnsetType = UNSET


class Assumptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the log cannot know: ``energy_nano_per_kwh``, the price of electricity; ``pue_milli``, PUE in
    thousandths.
    """

    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")]
    energy_nano_per_kwh: Amount
    energy_source: Text
    pue_milli: Annotated[int, Meta(ge=1000, le=100_000)]
    pue_source: Text
    hardware: Annotated[tuple[Hardware, ...], Meta(min_length=1, max_length=1000)]


@dataclass(frozen=True)
class Made:
    """What one deployment made, by the log.

    ``energy_uj`` is of ``energy_records`` of its ``records``; ``measured_records`` of them were measured.
    """

    deployment: str
    model: str
    site: str | None
    accelerator: str | None
    records: int
    input_tokens: int
    output_tokens: int
    energy_uj: int
    energy_records: int
    measured_records: int


@dataclass(frozen=True)
class Spent:
    """What the tokens of one kind of hardware cost.

    Attributes:
        name: of the hardware.
        currency: of all amounts.
        deployments: digests of the deployments that it runs.
        records: of those.
        tokens: input and output.
        output_tokens: of those.
        hours: of all units together that are paid for.
        hardware_nano: their cost.
        energy_uj: that the records state, IT energy.
        energy_records: how many of the records state it; the energy of the others is in no figure.
        measured_records: how many of those have it from a counter.
        energy_nano: its cost, PUE included.
        other_nano: as stated.
        total_nano: all three.
        per_1k_tokens_nano: over all tokens; None without any.
        per_1k_output_tokens_nano: over output tokens alone; None without any.
    """

    name: str
    currency: str
    deployments: tuple[str, ...]
    records: int
    tokens: int
    output_tokens: int
    hours: int
    hardware_nano: int
    energy_uj: int
    energy_records: int
    measured_records: int
    energy_nano: int
    other_nano: int
    total_nano: int
    per_1k_tokens_nano: int | None
    per_1k_output_tokens_nano: int | None


def read_assumptions(data: bytes, *, where: str = "assumptions") -> Assumptions:
    """Read a file of assumptions: JSON as ``Assumptions``.

    Raises:
        InvalidError: not JSON, too large, or of another shape.
    """
    try:
        if len(data) > MAX_FILE_BYTES:
            raise InvalidError(f"has more than {MAX_FILE_BYTES} bytes", where=where, code="bad-assumptions")
        check_nesting(data, where=where)
        return msgspec.json.decode(data, type=Assumptions)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(
            f"is not a file of assumptions: {str(error)[:200]}",
            where=where,
            remedy="see docs/how-to/costs.md for its fields",
            code="bad-assumptions",
        ) from None


def self_hosted_cost(
    assumptions: Assumptions, made: Sequence[Made], period_us: int
) -> tuple[list[Spent], list[Made]]:
    """What each kind of hardware's tokens cost, and the deployments that no hardware is stated for.

    A deployment runs on the first hardware that it fits.

    Args:
        assumptions: what the log cannot know.
        made: what deployments made in the period.
        period_us: length of the period.

    Raises:
        InvalidError: the period is empty.
    """
    if period_us <= 0:
        raise InvalidError("the period is empty", where="--from, --to", code="bad-parameter")
    whose: dict[int, list[Made]] = {at: [] for at in range(len(assumptions.hardware))}
    unknown: list[Made] = []
    for each in made:
        at = next((at for at, one in enumerate(assumptions.hardware) if _fits(one, each)), None)
        (unknown if at is None else whose[at]).append(each)
    return [
        _spent(assumptions, hardware, whose[at], period_us)
        for at, hardware in enumerate(assumptions.hardware)
    ], unknown


def _fits(hardware: Hardware, made: Made) -> bool:
    stated: Mapping[str, object] = {
        "deployment": hardware.deployment,
        "model": hardware.model,
        "site": hardware.site,
        "accelerator": hardware.accelerator,
    }
    return all(value is UNSET or getattr(made, name) == value for name, value in stated.items())


def _spent(assumptions: Assumptions, hardware: Hardware, made: Sequence[Made], period_us: int) -> Spent:
    if hardware.hours is UNSET:
        unit_us = hardware.units * period_us
    else:
        unit_us = hardware.units * hardware.hours * _US_PER_HOUR
    hardware_nano = rounded(unit_us * hardware.hourly_nano, _US_PER_HOUR)
    energy_uj = sum(each.energy_uj for each in made)
    energy_nano = rounded(
        energy_uj * assumptions.pue_milli * assumptions.energy_nano_per_kwh, _MILLI * _UJ_PER_KWH
    )
    total = hardware_nano + energy_nano + hardware.other_nano
    output = sum(each.output_tokens for each in made)
    tokens = output + sum(each.input_tokens for each in made)
    return Spent(
        name=hardware.name,
        currency=assumptions.currency,
        deployments=tuple(sorted(each.deployment for each in made)),
        records=sum(each.records for each in made),
        tokens=tokens,
        output_tokens=output,
        hours=rounded(unit_us, _US_PER_HOUR),
        hardware_nano=hardware_nano,
        energy_uj=energy_uj,
        energy_records=sum(each.energy_records for each in made),
        measured_records=sum(each.measured_records for each in made),
        energy_nano=energy_nano,
        other_nano=hardware.other_nano,
        total_nano=total,
        per_1k_tokens_nano=rounded(1000 * total, tokens) if tokens else None,
        per_1k_output_tokens_nano=rounded(1000 * total, output) if output else None,
    )
