"""The roofline model: against published measurements, its equations by hand, and at its edges."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.errors import InvalidError
from ledger.energy.accelerators import ACCELERATORS, Accelerator, accelerator_named
from ledger.energy.roofline import (
    OVERHEAD_MILLI,
    WEIGHT_MILLIBITS,
    ModelSize,
    Roofline,
    weight_millibits,
)

LLAMA_8B = ModelSize(8_000_000_000)
LLAMA_70B = ModelSize(70_000_000_000)
LLAMA_405B_FP8 = ModelSize(405_000_000_000, weight_millibits=8_000)
QWEN_30B = ModelSize(30_000_000_000, 3_000_000_000)
QWEN_235B_FP8 = ModelSize(235_000_000_000, 22_000_000_000, 8_000)
PROMPT = 150
"""The publication does not state the length of its prompts (single chat turns); no case hinges on it."""

# ML.ENERGY Leaderboard v3.0, task lm-arena-chat (https://ml.energy/leaderboard, December 2025; method in
# arXiv:2505.06371): GPU energy of one response in joules, measured, with vLLM. Batch and tokens are means.
PUBLISHED = [
    ("Llama 3.1 8B", "NVIDIA H100 80GB HBM3", LLAMA_8B, 8, 389, 176.77),
    ("Llama 3.1 8B", "NVIDIA H100 80GB HBM3", LLAMA_8B, 128, 405, 38.48),
    ("Llama 3.1 8B", "NVIDIA H100 80GB HBM3", LLAMA_8B, 511, 397, 27.84),
    ("Llama 3.1 70B", "NVIDIA H100 80GB HBM3", LLAMA_70B, 8, 350, 1315.50),
    ("Llama 3.1 70B", "NVIDIA H100 80GB HBM3", LLAMA_70B, 255, 349, 167.19),
    ("Llama 3.1 70B", "NVIDIA B200", LLAMA_70B, 16, 360, 684.30),
    ("Llama 3.1 70B", "NVIDIA B200", LLAMA_70B, 511, 352, 95.23),
    ("Llama 3.1 405B FP8", "NVIDIA H100 80GB HBM3", LLAMA_405B_FP8, 32, 372, 1773.17),
    ("Qwen3 32B", "NVIDIA H100 80GB HBM3", ModelSize(32_000_000_000), 64, 635, 233.12),
    ("Gemma 3 27B", "NVIDIA H100 80GB HBM3", ModelSize(27_000_000_000), 32, 714, 375.12),
    ("Qwen3 30B-A3B", "NVIDIA B200", QWEN_30B, 32, 914, 349.94),
    ("Qwen3 30B-A3B", "NVIDIA B200", QWEN_30B, 511, 924, 73.46),
    ("Qwen3 235B-A22B FP8", "NVIDIA H100 80GB HBM3", QWEN_235B_FP8, 64, 863, 1502.62),
]


@pytest.mark.parametrize(("name", "accelerator", "size", "batch", "tokens", "joules"), PUBLISHED)
def test_published_measurements_lie_within_the_range(
    name: str, accelerator: str, size: ModelSize, batch: int, tokens: int, joules: float
) -> None:
    part = accelerator_named(accelerator)
    known = Roofline(part, size, batch=batch).estimate(input_tokens=PROMPT, output_tokens=tokens)
    measured_uj = round(joules * 10**6)
    assert known.low_uj <= measured_uj <= known.high_uj
    assert measured_uj / 2.5 < known.energy_uj < measured_uj * 2.5, "the middle is of no use"
    unknown = Roofline(part, size).estimate(input_tokens=PROMPT, output_tokens=tokens)
    assert unknown.low_uj <= measured_uj <= unknown.high_uj
    assert "batch unknown" in unknown.source


def test_a_published_measurement_that_the_overhead_was_not_drawn_from() -> None:
    """LLaMA 65B on A100, 16 bit: about 3 to 4 J for each token (Samsi et al., arXiv:2310.03003, 2023).

    Without grouped queries: 80 layers of 8,192 values for keys and for values. Without continuous batching,
    so few generations share a step.
    """
    size = ModelSize(65_000_000_000, kv_bytes_per_token=2 * 2 * 80 * 8192)
    made = Roofline(accelerator_named("NVIDIA A100-SXM4-80GB"), size, batch=32).estimate(
        input_tokens=200, output_tokens=512
    )
    assert made.low_uj < 3 * 512 * 10**6 < 4 * 512 * 10**6 < made.high_uj


def test_the_equations_by_hand() -> None:
    """A part of 1 GFLOP/s, 1 GB/s, 1 W; 10^9 parameters of 8 bit, 10^6 bytes of keys and values a token."""
    part = Accelerator("toy", 1, 1, 1, 1000, "test")
    size = ModelSize(10**9, weight_millibits=8000, kv_bytes_per_token=10**6)
    made = Roofline(part, size, batch=1).estimate(input_tokens=3, output_tokens=2, cached_input_tokens=1)
    # Prefill 2 s a token, uncached; a step 2 s (arithmetic: reading takes 1 s); contexts of 3 and 4.
    ideal_j = 2 * 2 + 2 * 2 + Fraction(3 + 4, 1000)
    assert [made.low_uj, made.energy_uj, made.high_uj] == [
        ideal_j * 10**6 * overhead / 1000 for overhead in OVERHEAD_MILLI
    ]
    assert made.method == "estimated"


def test_experts_are_read_by_those_who_use_them() -> None:
    """With one generation a step reads the active weights alone; with many, nearly all."""
    part = Accelerator("toy", 10**9, 10**9, 1, 1000, "test")  # arithmetic costs nothing
    sparse = ModelSize(10**9, 10**8, 8000, 0)
    alone = Roofline(part, sparse, batch=1).estimate(input_tokens=0, output_tokens=1)
    crowd = Roofline(part, sparse, batch=100).estimate(input_tokens=0, output_tokens=1)
    middle = OVERHEAD_MILLI[1] / 1000
    assert alone.energy_uj == pytest.approx(0.1e6 * middle, rel=1e-6)
    assert crowd.energy_uj == pytest.approx(1e6 / 100 * middle, rel=1e-4)


def test_real_busy_time_makes_it_a_model() -> None:
    part = accelerator_named("NVIDIA H100 80GB HBM3")
    made = Roofline(part, LLAMA_70B).model(busy_us=1_000_000, accelerators=4)
    assert made.method == "modelled"
    assert made.high_uj == 4 * 700 * 10**6
    assert made.low_uj == 4 * 700 * 290_000
    assert made.energy_uj == pytest.approx(4 * 700 * 740_000, rel=1e-3)


counts = st.integers(0, 10**6)


@given(counts, counts, counts, st.integers(1, 4096), st.sampled_from(ACCELERATORS))
def test_ranges_hold_and_work_never_lowers_energy(
    input_tokens: int, output_tokens: int, cached: int, batch: int, part: Accelerator
) -> None:
    roofline = Roofline(part, QWEN_235B_FP8, batch=batch)
    cached = min(cached, input_tokens)
    made = roofline.estimate(
        input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached
    )
    assert 0 <= made.low_uj <= made.energy_uj <= made.high_uj
    more = roofline.estimate(input_tokens=input_tokens, output_tokens=output_tokens + 1)
    assert made.energy_uj <= more.energy_uj


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("Tesla T4", "T4"),
        ("AMD Instinct MI300X", "MI300X"),
        ("AMD Instinct MI325X OAM", "MI325X"),
    ],
)
def test_names_of_drivers_are_understood(driver: str, name: str) -> None:
    assert accelerator_named(driver).name == name


@pytest.mark.parametrize("name", ["", "NVIDIA A10", "TPU v5e", "H1000", "GB2000"])
def test_what_is_not_in_the_table_is_refused(name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        accelerator_named(name)
    assert caught.value.code == "unknown-accelerator"


def test_every_part_is_cited_and_plausible() -> None:
    assert len({part.name for part in ACCELERATORS}) == len(ACCELERATORS)
    for part in ACCELERATORS:
        assert "datasheet" in part.source
        assert part.gflops_16 <= part.gflops_8
        assert 60_000 <= part.power_mw <= 1_400_000
        # Arithmetic per byte of memory traffic: between 100 and 500 FLOP on every part since 2018.
        assert 100 < part.gflops_16 / part.gbytes_per_s < 500, part.name


def test_quantizations() -> None:
    assert weight_millibits(None) == 16_000
    assert weight_millibits("Q4_K_M") == 4_850
    assert weight_millibits("awq") == WEIGHT_MILLIBITS["gptq"]
    with pytest.raises(InvalidError):
        weight_millibits("a new one")


@pytest.mark.parametrize(
    "size",
    [
        ModelSize(0),
        ModelSize(10, 11),
        ModelSize(10, 0),
        ModelSize(10, weight_millibits=0),
        ModelSize(10, 1, 1, -1),
    ],
)
def test_impossible_sizes_are_refused(size: ModelSize) -> None:
    with pytest.raises(InvalidError):
        Roofline(ACCELERATORS[0], size)


def test_impossible_counts_are_refused() -> None:
    roofline = Roofline(ACCELERATORS[0], LLAMA_8B)
    for counts in ((-1, 0, 0), (0, -1, 0), (1, 1, 2), (10**9, 10**9, 0)):
        with pytest.raises(InvalidError):
            roofline.estimate(input_tokens=counts[0], output_tokens=counts[1], cached_input_tokens=counts[2])
