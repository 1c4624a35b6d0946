"""Estimates for API models: what the real package answers, without PUE, in integers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.energy.ecologits_estimates import PROVIDERS, estimate_request, provider_factor_set
from ledger.energy.factors import figures

ecologits = pytest.importorskip("ecologits")
from ecologits.electricity_mix_repository import electricity_mixes  # noqa: E402
from ecologits.model_repository import models  # noqa: E402
from ecologits.tracers.utils import PROVIDER_CONFIG_MAP, llm_impacts  # noqa: E402

CASES = [
    ("openai", "gpt-4o", 300, 10_000_000),
    ("openai", "gpt-4o-mini", 1, 250_000),
    ("openai", "gpt-3.5-turbo", 64, 900_000),
    ("anthropic", "claude-sonnet-4-5", 4096, 61_234_567),
    ("anthropic", "claude-haiku-4-5", 512, None),
    ("mistralai", "mistral-large-latest", 777, 12_000_000),
    ("mistralai", "ministral-8b-2512", 2048, 30_000_000),
    ("google_genai", "gemini-2.5-flash", 150, 1_000_000),
    ("cohere", "command-r-08-2024", 90, 3_000_000),
    ("huggingface_hub", "meta-llama/Meta-Llama-3.1-70B-Instruct", 400, 8_000_000),
    ("openai", "gpt-4o", 100_000, 1_000),  # faster than the package thinks: its time is capped
]
KWH = 3_600_000_000_000


def ends(value: object) -> tuple[Fraction, Fraction]:
    if hasattr(value, "min"):
        return Fraction(str(value.min)), Fraction(str(value.max))
    return Fraction(str(value)), Fraction(str(value))


def near(ours: int, theirs: Fraction) -> bool:
    """Equal after rounding outwards or half up, which their floats blur in the fifteenth digit."""
    return abs(ours - theirs) <= 1 + theirs / 10**14


@pytest.mark.parametrize(("provider", "model", "tokens", "latency_us"), CASES)
def test_energy_times_pue_is_what_the_package_answers(
    provider: str, model: str, tokens: int, latency_us: int | None
) -> None:
    latency_s = math.inf if latency_us is None else latency_us / 1e6
    theirs = llm_impacts(provider, model, tokens, latency_s)
    assert not theirs.has_errors, f"pick another model than {model}"
    low, high = (end * KWH for end in ends(theirs.energy.value))
    ours = estimate_request(provider, model, output_tokens=tokens, latency_us=latency_us)
    assert ours is not None
    energy = ours.energy
    assert isinstance(energy.low_uj, int)
    assert isinstance(energy.high_uj, int)
    pue_low, pue_high = ends(PROVIDER_CONFIG_MAP[provider].datacenter_pue)
    assert near(energy.low_uj, low / pue_low)
    assert near(energy.high_uj, high / pue_high)
    # The bar: our figure, with PUE, lies within the package's own range.
    assert math.floor(low) <= energy.energy_uj * (pue_low + pue_high) / 2 <= math.ceil(high) + 1
    assert energy.low_uj <= energy.energy_uj <= energy.high_uj
    assert energy.method == "estimated"
    assert ecologits.__version__ in energy.source
    assert model in energy.source

    low_ng, high_ng = (end * 10**12 for end in ends(theirs.embodied.gwp.value))
    assert near(ours.embodied_low_ng, low_ng)
    assert near(ours.embodied_high_ng, high_ng)
    assert ours.embodied_low_ng <= ours.embodied_ng <= ours.embodied_high_ng


@pytest.mark.parametrize(("provider", "model", "tokens", "latency_us"), CASES)
def test_carbon_and_water_by_the_providers_factors_are_what_the_package_answers(
    provider: str, model: str, tokens: int, latency_us: int | None
) -> None:
    latency_s = math.inf if latency_us is None else latency_us / 1e6
    theirs = llm_impacts(provider, model, tokens, latency_s)
    ours = estimate_request(provider, model, output_tokens=tokens, latency_us=latency_us)
    assert ours is not None
    factors = provider_factor_set(provider, model=model)
    made = figures(ours.energy, factors, ours.busy_us)
    low, high = (end * 10**12 for end in ends(theirs.usage.gwp.value))
    slack = 1 + high / 10**5  # energy is rounded to microjoules before it is multiplied
    assert abs((made.carbon_low_ng or made.carbon_ng) - low) <= slack
    assert abs((made.carbon_high_ng or made.carbon_ng) - high) <= slack
    water_low, water_high = (end * 10**9 for end in ends(theirs.wcf.value))
    assert made.water_nl is not None
    assert water_low - slack <= made.water_nl <= water_high + slack
    # By the rate and the busy time, which is whole microseconds.
    assert made.embodied_ng is not None
    assert factors.embodied_ng_per_s is not UNSET
    step = 1 + factors.embodied_ng_per_s // 10**6
    assert ours.embodied_low_ng - step <= made.embodied_ng <= ours.embodied_high_ng + step


def test_every_model_of_the_package_is_estimated() -> None:
    known = models.list_models()
    assert len(known) > 100
    for model in known:
        made = estimate_request(model.provider.value, model.name, output_tokens=100)
        assert made is not None, model.name
        assert made.energy.energy_uj > 0
        assert made.busy_us > 0


@settings(max_examples=50)
@given(tokens=st.integers(0, 10**6), latency_us=st.none() | st.integers(0, 10**10))
def test_more_tokens_never_take_less(tokens: int, latency_us: int | None) -> None:
    one = estimate_request("anthropic", "claude-sonnet-4-5", output_tokens=tokens, latency_us=latency_us)
    more = estimate_request("anthropic", "claude-sonnet-4-5", output_tokens=tokens + 1, latency_us=latency_us)
    assert one is not None
    assert more is not None
    assert one.energy.energy_uj <= more.energy.energy_uj
    assert one.busy_us <= more.busy_us


def test_gateways_names_are_understood_and_nothing_is_guessed() -> None:
    plain = estimate_request("openai", "gpt-4o", output_tokens=10)
    assert estimate_request("azure", "gpt-4o", output_tokens=10) == plain
    assert estimate_request("openai", "openai/gpt-4o", output_tokens=10) == plain
    assert estimate_request("openai", "gpt-4o-that-nobody-made", output_tokens=10) is None
    assert estimate_request("a provider", "gpt-4o", output_tokens=10) is None
    assert set(PROVIDERS.values()) == set(PROVIDER_CONFIG_MAP)


def test_another_zone_changes_the_grid_alone() -> None:
    here = provider_factor_set("openai", zone="FRA")
    mix = electricity_mixes.find_electricity_mix("FRA")
    assert mix is not None
    assert here.intensity_ug_per_kwh == round(mix.gwp * 10**9)
    assert here.pue_milli == provider_factor_set("openai").pue_milli == 1200


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"provider": "openai", "zone": "nowhere"}, "unknown-zone"),
        ({"provider": "nobody"}, "unknown-provider"),
        ({"provider": "openai", "model": "nothing"}, "unknown-model"),
    ],
)
def test_what_is_unknown_is_named(arguments: dict[str, str], code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        provider_factor_set(**arguments)
    assert caught.value.code == code
    assert caught.value.remedy


def test_negative_counts_are_refused() -> None:
    with pytest.raises(InvalidError):
        estimate_request("openai", "gpt-4o", output_tokens=-1)
