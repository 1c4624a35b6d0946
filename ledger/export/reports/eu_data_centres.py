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
    "Annex II, point 1, energy and sustainability indicators",
    "Annex II, point 2, ICT capacity indicators",
    "Annex II, point 3, data traffic indicators",
    "Annex III, data centre sustainability indicators",
)


def _asked(annex_point: str, what: str, unit: str | None = None) -> Asked:
    return Asked(what, unit, f"Annex {annex_point}")


INPUTS: Mapping[str, Asked] = {
    "data_centre": _asked("I, point 1(a)", "the data centre's name"),
    "operator": _asked("I, point 1(b)", "the data centre's owner and operator, with contact details"),
    "location_lau": _asked("I, point 1(c)", "the location: its Local Administrative Unit code (LAU)"),
    "type": _asked(
        "I, point 1(d)",
        "the type: enterprise, colocation or co-hosting; structure or group of structures",
    ),
    "entry_into_operation": _asked("I, point 1(e)", "year and month of entry into operation"),
    "electrical_redundancy": _asked(
        "I, point 2(a)", "electrical infrastructure redundancy at high voltage, line-up and rack level"
    ),
    "cooling_redundancy": _asked("I, point 2(b)", "cooling infrastructure redundancy at room and rack level"),
    "year": Asked("the calendar year reported on", None, "Article 3"),
    "pd_it_metric": _asked("II, point 1(a)", "whether PD_IT is the installed or the rated power demand"),
    "grid_functions": _asked(
        "II, point 1(f)", "functions that the data centre provides to the electrical grid"
    ),
    "wue_category": _asked("II, point 1(h)", "the WUE category (EN 50600-4-9) by which W_IN was measured"),
    "refrigerants": _asked("II, point 1(m)", "types of refrigerants"),
    "pd_it_kw": _asked("II, point 1(a)", "PD_IT, installed information technology power demand", "kW"),
    "s_dc_m2": _asked("II, point 1(b)", "S_DC, data centre total floor area", "m2"),
    "s_cr_m2": _asked("II, point 1(c)", "S_CR, data centre computer room floor area", "m2"),
    "e_dc_kwh": _asked("II, point 1(d)", "E_DC, total energy consumption", "kWh"),
    "e_dc_bg_kwh": _asked("II, point 1(d)", "E_DC-BG, the part of E_DC from back-up generators", "kWh"),
    "e_it_kwh": _asked(
        "II, point 1(e)", "E_IT, total energy consumption of information technology equipment", "kWh"
    ),
    "c_btg_kw": _asked("II, point 1(g)", "C_BtG, average battery capacity offered to the grid", "kW"),
    "w_in_m3": _asked("II, point 1(h)", "W_IN, total water input", "m3"),
    "w_in_pot_m3": _asked("II, point 1(i)", "W_IN-POT, total potable water input", "m3"),
    "e_reuse_kwh": _asked("II, point 1(j)", "E_REUSE, waste heat reused", "kWh"),
    "t_wh_celsius": _asked("II, point 1(k)", "T_WH, average waste heat temperature", "°C"),
    "t_in_celsius": _asked(
        "II, point 1(l)",
        "T_IN, average setpoint intake air temperature of information technology equipment",
        "°C",
    ),
    "cdd_degree_days": _asked("II, point 1(n)", "CDD, cooling degree days (base 21 °C)", "degree-days"),
    "e_res_tot_kwh": _asked("II, point 1(o)", "E_RES-TOT, total renewable energy consumption", "kWh"),
    "e_res_goo_kwh": _asked("II, point 1(p)", "E_RES-GOO, of which from guarantees of origin", "kWh"),
    "e_res_ppa_kwh": _asked("II, point 1(q)", "E_RES-PPA, of which from power purchasing agreements", "kWh"),
    "e_res_os_kwh": _asked("II, point 1(r)", "E_RES-OS, of which from on-site renewables", "kWh"),
    "c_serv": _asked("II, point 2(a)", "C_SERV, ICT capacity for servers", "SERT active state performance"),
    "c_serv_area_percent": _asked(
        "II, point 2(a)", "the share of the computer room floor area that C_SERV covers", "%"
    ),
    "c_stor_pb": _asked("II, point 2(b)", "C_STOR, ICT capacity for storage equipment", "PB"),
    "c_stor_area_percent": _asked(
        "II, point 2(b)", "the share of the computer room floor area that C_STOR covers", "%"
    ),
    "b_in_gb_per_s": _asked("II, point 3(a)", "B_IN, incoming traffic bandwidth", "GB/s"),
    "b_out_gb_per_s": _asked("II, point 3(b)", "B_OUT, outgoing traffic bandwidth", "GB/s"),
    "t_in_eb": _asked("II, point 3(c)", "T_IN, incoming data traffic", "EB"),
    "t_out_eb": _asked("II, point 3(d)", "T_OUT, outgoing data traffic", "EB"),
}
_KWH_PER_MWH = 1000


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections."""
    words = {name: asked for name, asked in INPUTS.items() if asked.unit is None}
    stated = {
        name: (fig.asked(inputs, name, asked), inputs.number(name, asked.what))
        for name, asked in INPUTS.items()
        if asked.unit is not None
    }

    def listed(point: str) -> tuple[Figure, ...]:
        asked = (name for name, each in INPUTS.items() if each.reference.startswith(point))
        return tuple(stated[name][0] for name in asked if name in stated)

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
        Section(
            title="Energy and sustainability",
            reference=_ENERGY,
            figures=(*listed("Annex II, point 1("), _renewable(amounts)),
        ),
        Section(title="ICT capacity", reference=_CAPACITY, figures=listed("Annex II, point 2(")),
        Section(title="Data traffic", reference=_TRAFFIC, figures=listed("Annex II, point 3(")),
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
                "wue", "WUE, water usage effectiveness", "w_in_m3", "e_it_kwh", "m3/MWh", "b", _KWH_PER_MWH
            ),
            ratio("erf", "ERF, energy reuse factor", "e_reuse_kwh", "e_dc_kwh", "ratio", "c"),
            ratio("ref", "REF, renewable energy factor", "e_res_tot_kwh", "e_dc_kwh", "ratio", "d"),
        ),
    )


def _renewable(amounts: Mapping[str, Fraction | None]) -> Figure:
    """What E_RES-TOT must equal: a reader sees at once if it does not."""
    parts = [amounts[f"e_res_{source}_kwh"] for source in ("goo", "ppa", "os")]
    known = [part for part in parts if part is not None]
    return fig.stated(
        "e_res_sum",
        "Sum of E_RES-GOO, E_RES-PPA and E_RES-OS, which is E_RES-TOT",
        "kWh",
        sum(known, Fraction(0)) if len(known) == len(parts) else None,
        derivation="inputs: e_res_goo_kwh + e_res_ppa_kwh + e_res_os_kwh",
        why="one of its parts is not stated",
        reference="Annex II, point 1(o)",
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
        reference="Annex II, point 1(e): a part of E_IT",
        text=(
            "Energy of the IT equipment that generated the recorded tokens. E_IT is measured at every "
            "uninterruptible power system and covers all IT equipment; the log, what is recorded.",
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
                reference="Annex II, point 1(e)",
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
