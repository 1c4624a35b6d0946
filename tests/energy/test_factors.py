"""Carbon and water, recomputed with fractions from the physical definitions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.records import Energy, FactorSet, FactorSource, decode_factor_set, document_digest
from ledger.energy.factors import Figures, default_factor_set, figures

SOURCE = (FactorSource(factor="all", source="test"),)


def half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def grams(uj: int, pue_milli: int, ug_per_kwh: int) -> Fraction:
    """The textbook way: joules to kWh, times PUE, times grams per kWh."""
    kwh = Fraction(uj, 10**6) / 3600 / 1000
    return kwh * Fraction(pue_milli, 1000) * Fraction(ug_per_kwh, 10**6)


def test_one_kilowatt_hour_on_a_known_grid():
    """1 kWh at PUE 1.5 on 400 g/kWh: 600 g; 2 l + 1.5 * 3 l of water; 10 s at 7 ng/s."""
    energy = Energy(energy_uj=3_600_000_000_000, method="measured", source="meter")
    factors = FactorSet(
        name="n",
        version="1",
        pue_milli=1500,
        intensity_ug_per_kwh=400_000_000,
        market_ug_per_kwh=0,
        water_ul_per_kwh=2_000_000,
        source_water_ul_per_kwh=3_000_000,
        embodied_ng_per_s=7,
        sources=SOURCE,
    )
    assert figures(energy, factors, busy_us=10_000_000) == Figures(
        carbon_ng=600 * 10**9,
        carbon_low_ng=None,
        carbon_high_ng=None,
        carbon_market_ng=0,
        embodied_ng=70,
        water_nl=6_500_000_000,
    )


optional = st.one_of(st.just(UNSET), st.integers(0, 10**9))


@given(
    energies=st.lists(st.integers(0, 10**12), min_size=3, max_size=3).map(sorted),
    grids=st.lists(st.integers(0, 10**9), min_size=3, max_size=3).map(sorted),
    ranged=st.tuples(st.booleans(), st.booleans()),
    pue=st.integers(1000, 3000),
    market=optional,
    site=optional,
    source=optional,
    embodied=optional,
    busy_us=st.integers(0, 10**9),
)
def test_agrees_with_fractions(energies, grids, ranged, pue, market, site, source, embodied, busy_us):
    energy = Energy(
        energy_uj=energies[1],
        method="modelled",
        source="t",
        low_uj=energies[0] if ranged[0] else UNSET,
        high_uj=energies[2] if ranged[0] else UNSET,
    )
    factors = FactorSet(
        name="n",
        version="1",
        pue_milli=pue,
        intensity_ug_per_kwh=grids[1],
        intensity_low_ug_per_kwh=grids[0] if ranged[1] else UNSET,
        intensity_high_ug_per_kwh=grids[2] if ranged[1] else UNSET,
        market_ug_per_kwh=market,
        water_ul_per_kwh=site,
        source_water_ul_per_kwh=source,
        embodied_ng_per_s=embodied,
        sources=SOURCE,
    )
    got = figures(energy, factors, busy_us)
    nano = 10**9
    assert got.carbon_ng == half_up(grams(energies[1], pue, grids[1]) * nano)
    if got.carbon_low_ng is None:
        assert got.carbon_high_ng is None
    else:
        low = energies[0] if ranged[0] else energies[1], grids[0] if ranged[1] else grids[1]
        high = energies[2] if ranged[0] else energies[1], grids[2] if ranged[1] else grids[1]
        assert got.carbon_low_ng == half_up(grams(low[0], pue, low[1]) * nano)
        assert got.carbon_high_ng == half_up(grams(high[0], pue, high[1]) * nano)
        assert got.carbon_low_ng <= got.carbon_ng <= got.carbon_high_ng
    market_ng = None if market is UNSET else half_up(grams(energies[1], pue, market) * nano)
    assert got.carbon_market_ng == market_ng
    assert got.embodied_ng == (
        None if embodied is UNSET else half_up(Fraction(embodied) * Fraction(busy_us, 10**6))
    )
    if site is UNSET and source is UNSET:
        assert got.water_nl is None
    else:
        kwh = Fraction(energies[1], 10**6) / 3600 / 1000
        litres_per_kwh = Fraction(0 if site is UNSET else site, 10**6) + Fraction(pue, 1000) * Fraction(
            0 if source is UNSET else source, 10**6
        )
        assert got.water_nl == half_up(kwh * litres_per_kwh * nano)


def test_the_default_set_is_a_sound_document_with_a_source_for_each_factor():
    factors = default_factor_set(embodied_ng_per_s=3)
    assert decode_factor_set(encode_canonical(factors)) == factors
    assert len(document_digest(factors)) == 64
    cited = {source.factor for source in factors.sources}
    stated = {
        name
        for name in factors.__struct_fields__
        if getattr(factors, name) is not UNSET and ("_per_" in name or name == "pue_milli")
    }
    assert stated - cited == {"embodied_ng_per_s"}  # the caller's own
    assert all(source.version is not UNSET for source in factors.sources)


def test_a_figure_too_large_to_record_is_refused():
    factors = FactorSet(
        name="n", version="1", pue_milli=100_000, intensity_ug_per_kwh=2**53 - 1, sources=SOURCE
    )
    with pytest.raises(InvalidError) as error:
        figures(Energy(energy_uj=2**53 - 1, method="measured", source="m"), factors, 0)
    assert error.value.code == "figure-too-large"
