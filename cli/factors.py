"""``tallystick factors``: which grid factors there are, and a factor set for a site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json, command

if TYPE_CHECKING:
    from ledger.energy.factor_sets import Stated

__all__ = ["app"]

app = typer.Typer(help="Show grid factors and factor sets.", no_args_is_help=True)

_PUE_MILLI = 1000


@command(
    app,
    "tallystick factors list",
    "tallystick factors list --json",
    name="list",
)
def list_zones(json: Json = False) -> None:
    """List the zones that installed packages have grid factors of, with intensity, year and package.

    Regions of AWS and Azure are understood too: aws:eu-north-1, azure:westeurope.

    With --json: zones, each with zone, country, intensity_ug_per_kwh, package and, where it is stated, year.
    """
    from cli.output import print_json, table
    from ledger.energy.grid_data import intensities, zones

    found = [intensities(zone)[0] for zone in zones()]
    if json:
        rows = [
            {
                "zone": each.zone,
                "country": each.country,
                "intensity_ug_per_kwh": each.ug_per_kwh,
                "package": each.package,
            }
            | ({} if each.year is None else {"year": each.year})
            for each in found
        ]
        print_json({"zones": rows})
        return
    table(
        ("zone", "g CO2e/kWh", "year", "package"),
        [
            (each.zone, _grams(each.ug_per_kwh), "" if each.year is None else str(each.year), each.package)
            for each in found
        ],
        right=("g CO2e/kWh", "year"),
    )


@command(
    app,
    "tallystick factors show FRA",
    "tallystick factors show aws:eu-north-1 --pue 1.12 --pue-source 'our meters, 2025' --json > site.json",
)
def show(
    zone: Annotated[
        str, typer.Argument(metavar="ZONE", help="Country (FRA), part of one (US-CA), or cloud:region.")
    ],
    pue: Annotated[
        str | None, typer.Option("--pue", metavar="X", help="The site's power usage effectiveness, as 1.12.")
    ] = None,
    pue_source: Annotated[
        str | None, typer.Option("--pue-source", metavar="TEXT", help="Who measured it; needed with --pue.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the factor set of a site in a grid zone, each factor with its source, version and year.

    With --json: the factor set as it is logged; change it, and name the file in TALLYSTICK_FACTORS.
    """
    import msgspec
    from msgspec import UNSET

    from cli.output import fields, print_json, table
    from ledger.core.records import document_digest
    from ledger.energy.factor_sets import AVERAGE_PUE, factor_set_for

    made = factor_set_for(zone, pue_milli=AVERAGE_PUE if pue is None else _stated_pue(pue, pue_source))
    if json:
        print_json(msgspec.to_builtins(made))
        return
    fields((("name", made.name), ("version", made.version), ("digest", document_digest(made))))
    cited = {each.factor: each for each in made.sources}
    table(
        ("factor", "value", "unit", "year", "source"),
        [
            (
                factor.removesuffix(suffix).removesuffix("_milli"),
                f"{value / divisor:g}",
                unit,
                "" if cited[factor].year is UNSET else str(cited[factor].year),
                f"{cited[factor].source}, {cited[factor].version}"
                if cited[factor].version is not UNSET
                else cited[factor].source,
            )
            for factor, suffix, divisor, unit in _SHOWN
            if (value := getattr(made, factor)) is not UNSET
        ],
        right=("value", "year"),
    )


_SHOWN = (
    ("pue_milli", "", 1000, ""),
    ("intensity_ug_per_kwh", "_ug_per_kwh", 10**6, "g CO2e/kWh"),
    ("intensity_low_ug_per_kwh", "_ug_per_kwh", 10**6, "g CO2e/kWh"),
    ("intensity_high_ug_per_kwh", "_ug_per_kwh", 10**6, "g CO2e/kWh"),
    ("source_water_ul_per_kwh", "_ul_per_kwh", 10**6, "l/kWh"),
)


def _stated_pue(pue: str, source: str | None) -> Stated:
    from decimal import Decimal, InvalidOperation

    from ledger.core.errors import InvalidError
    from ledger.energy.factor_sets import Stated

    try:
        milli = int(Decimal(pue) * _PUE_MILLI)
    except (InvalidOperation, ValueError, OverflowError):
        milli = 0
    if source is None or milli < _PUE_MILLI:
        raise InvalidError(
            "PUE is a number from 1 on, and its source must be named",
            remedy="pass --pue 1.12 --pue-source 'who measured it, and when'",
            code="bad-factor",
        )
    return Stated(milli, source)


def _grams(ug_per_kwh: int) -> str:
    return f"{ug_per_kwh / 10**6:.1f}"
