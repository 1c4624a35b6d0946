"""EU data-centre scheme: Delegated Regulation (EU) 2024/1364, Annexes I to III: PUE, WUE, ERF, REF.

The scheme asks for a data centre's calendar year. The log knows the IT energy of recorded inference, a part
of E_IT; everything else is the operator's own measurement and comes from the inputs file, under the annex's
symbols.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from ledger.export.reports import figures as fig
from ledger.export.reports.boundary import facility_energy
from ledger.export.reports.document import Figure, Section
from ledger.export.reports.facts import Facts
from ledger.export.reports.inputs import Asked, Inputs
from ledger.export.reports.tables import breakdown, stated_words

__all__ = ["INPUTS", "STANDARD", "TITLE", "build"]

TITLE = "EU data-centre scheme: indicators and the IT energy behind them"
STANDARD = "Commission Delegated Regulation (EU) 2024/1364, Annexes I, II and III"
_ENERGY, _CAPACITY, _TRAFFIC, _INDICATORS = (
    "Annex II, energy and sustainability indicators",
    "Annex II, ICT capacity indicators",
    "Annex II, data traffic indicators",
    "Annex III, data centre sustainability indicators",
)
INPUTS: Mapping[str, Asked] = {
    "data_centre": Asked("the data centre's name and location", None, "Annex I"),
    "operator": Asked("the data centre's owner and operator, with contact details", None, "Annex I"),
    "year": Asked("the calendar year reported on", None, "Annex I"),
    "pd_it_kw": Asked("PD_IT, installed information technology power demand", "kW", _ENERGY),
    "s_dc_m2": Asked("S_DC, data centre total floor area", "m2", _ENERGY),
    "s_cr_m2": Asked("S_CR, data centre computer room floor area", "m2", _ENERGY),
    "e_dc_kwh": Asked("E_DC, total energy consumption of the data centre", "kWh", _ENERGY),
    "e_dc_bg_kwh": Asked("E_DC-BG, total energy consumption from backup generators", "kWh", _ENERGY),
    "e_it_kwh": Asked("E_IT, total energy consumption of information technology equipment", "kWh", _ENERGY),
    "w_in_m3": Asked("W_IN, total water input", "m3", _ENERGY),
    "w_in_pot_m3": Asked("W_IN-POT, total potable water input", "m3", _ENERGY),
    "e_reuse_kwh": Asked("E_REUSE, waste heat reused", "kWh", _ENERGY),
    "t_wh_celsius": Asked("T_WH, average waste heat temperature", "°C", _ENERGY),
    "t_in_celsius": Asked("T_IN, average setpoint intake air temperature of IT equipment", "°C", _ENERGY),
    "cdd_degree_days": Asked("CDD, cooling degree days", "degree-days", _ENERGY),
    "e_res_tot_kwh": Asked("E_RES-TOT, total renewable energy consumption", "kWh", _ENERGY),
    "e_res_goo_kwh": Asked("E_RES-GOO, renewable energy by guarantees of origin", "kWh", _ENERGY),
    "e_res_ppa_kwh": Asked("E_RES-PPA, renewable energy by power purchase agreements", "kWh", _ENERGY),
    "e_res_os_kwh": Asked("E_RES-OS, renewable energy from on-site generation", "kWh", _ENERGY),
    "c_serv": Asked("C_SERV, ICT capacity for servers", "SERT active state", _CAPACITY),
    "c_stor_pb": Asked("C_STOR, ICT capacity for storage equipment", "PB", _CAPACITY),
    "b_in_gbps": Asked("B_IN, incoming traffic bandwidth", "Gbit/s", _TRAFFIC),
    "b_out_gbps": Asked("B_OUT, outgoing traffic bandwidth", "Gbit/s", _TRAFFIC),
    "t_in_eb": Asked("T_IN, incoming data traffic", "EB", _TRAFFIC),
    "t_out_eb": Asked("T_OUT, outgoing data traffic", "EB", _TRAFFIC),
}
_LITRES_PER_M3 = 1000


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections."""
    words = {name: asked for name, asked in INPUTS.items() if asked.unit is None}
    stated = {
        name: (fig.asked(inputs, name, asked), inputs.number(name, asked.what))
        for name, asked in INPUTS.items()
        if asked.unit is not None
    }

    def listed(annex: str) -> tuple[Figure, ...]:
        return tuple(
            stated[name][0] for name, asked in INPUTS.items() if asked.reference == annex and name in stated
        )

    amounts = {name: amount for name, (_, amount) in stated.items()}
    return (
        Section(
            title="Data centre",
            reference="Delegated Regulation (EU) 2024/1364, Article 3 and Annex I",
            text=(
                "The scheme covers data centres with an installed IT power demand of at least 500 kW, one "
                "calendar year at a time: choose scope and period so (--where site=..., --from, --to).",
                "The operator's measurements are as the inputs file states them; the log adds what it knows.",
            ),
            tables=(stated_words(inputs, words, name="stated", title="Statements of the operator"),),
        ),
        _indicators(amounts),
        _recorded(facts, amounts),
        Section(title="Energy and sustainability", reference=_ENERGY, figures=listed(_ENERGY)),
        Section(title="ICT capacity", reference=_CAPACITY, figures=listed(_CAPACITY)),
        Section(title="Data traffic", reference=_TRAFFIC, figures=listed(_TRAFFIC)),
    )


def _indicators(amounts: Mapping[str, Fraction | None]) -> Section:
    def ratio(
        name: str, label: str, above: str, below: str, unit: str, letter: str, times: int = 1
    ) -> Figure:
        return fig.share(
            name,
            label,
            amounts[above],
            amounts[below],
            unit=unit,
            times=times,
            both=False,
            derivation=f"inputs: {above} / {below}" + (f" * {times:,}" if times > 1 else ""),
            why=f"{above} or {below} is not stated",
            reference=f"Annex III, point ({letter})",
        )

    return Section(
        title="Sustainability indicators",
        reference=_INDICATORS,
        figures=(
            ratio("pue", "PUE, power usage effectiveness", "e_dc_kwh", "e_it_kwh", "ratio", "a"),
            ratio(
                "wue", "WUE, water usage effectiveness", "w_in_m3", "e_it_kwh", "l/kWh", "b", _LITRES_PER_M3
            ),
            ratio("erf", "ERF, energy reuse factor", "e_reuse_kwh", "e_dc_kwh", "ratio", "c"),
            ratio("ref", "REF, renewable energy factor", "e_res_tot_kwh", "e_dc_kwh", "ratio", "d"),
        ),
    )


def _recorded(facts: Facts, amounts: Mapping[str, Fraction | None]) -> Section:
    row = facts.total()
    energy = fig.sum_of([row], fig.ENERGY_KWH)
    overhead = facility_energy(facts, fig.ENERGY_KWH, lambda _: True)
    sites = [each["site"] for each in facts.rows("site")]
    one = len(sites) <= 1
    pue = None if overhead is None else _with_factors(facts)
    return Section(
        title="The recorded IT energy",
        reference="Annex II: a part of E_IT",
        text=(
            "Energy of the IT equipment that generated the recorded tokens. E_IT is measured at the outputs "
            "of the uninterruptible power supplies and covers all equipment; the log, what is recorded.",
        ),
        figures=(
            fig.total(row, fig.ENERGY_KWH, name="e_it_recorded", label="IT energy of recorded inference"),
            fig.share(
                "e_it_recorded_share",
                "Share of E_IT that is recorded",
                energy if one else None,
                amounts["e_it_kwh"],
                derivation="e_it_recorded / inputs: e_it_kwh",
                why="e_it_kwh is not stated, or no record states energy"
                if one
                else f"the scope has records of {len(sites)} sites: choose one with --where site=...",
                reference="Annex II: E_IT",
            ),
            fig.derived(
                "pue_of_factors",
                "PUE that the records were computed with, weighted by energy",
                "ratio",
                None if pue is None or overhead is None else _ratio(overhead, pue),
                derivation="sum of energy_uj * PUE of its factor set / sum of energy_uj, where known",
                ranged=False,
                why="no record states both energy and a factor set",
            ),
            fig.total(row, fig.WATER_M3, name="water_recorded", label="Water by the records' factor sets"),
        ),
        tables=(
            breakdown(
                facts, "site", name="by_site", title="By site", heading="Site",
                measures=("records", "tokens", fig.ENERGY_KWH, fig.WATER_M3), chart="energy",
            ),
            breakdown(
                facts, "month", name="by_month", title="By month", heading="Month",
                measures=("records", fig.ENERGY_KWH, fig.WATER_M3), chart="energy",
            ),
            breakdown(
                facts, "accelerator", name="by_accelerator", title="By accelerator", heading="Accelerator",
                measures=("records", fig.ENERGY_KWH),
            ),
            breakdown(
                facts, "method", name="by_method", title="How the energy is known", heading="Method",
                measures=("records", fig.ENERGY_KWH), none="unknown",
            ),
        ),
    )  # fmt: skip


def _with_factors(facts: Facts) -> fig.Sum | None:
    """Energy of the records whose factor set is known."""
    known = facts.factor_sets()
    return fig.sum_of([row for row in facts.rows("factors") if row["factors"] in known], fig.ENERGY_KWH)


def _ratio(above: fig.Sum, below: fig.Sum) -> fig.Sum | None:
    if not below.value:
        return None
    value = above.value / below.value
    return fig.Sum(value, value, value, above.having, above.records)
