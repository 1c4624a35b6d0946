"""Calibration: the costs that made windows are found again, and what cannot be told apart is not made up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.core.errors import InvalidError
from ledger.core.records import Usage
from ledger.energy.calibration import Calibration, Generation, fit_weights
from ledger.energy.windows import Rule, Window

S = 10**9


def load(seed: int, count: int = 60, seconds: int = 40) -> list[Generation]:
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        begin = dice.randrange(seconds * S)
        first = begin + dice.randrange(1, 2 * S)
        tokens = dice.randrange(1, 4000)
        counts = Usage(
            input_tokens=tokens,
            output_tokens=dice.randrange(600),
            cached_input_tokens=dice.randrange(tokens),
        )
        made.append(Generation(begin, first + dice.randrange(1, 6 * S), counts, first))
    return made


def measured(
    generations: list[Generation], costs: tuple[int, int, int, int], seconds: int = 60
) -> list[Window]:
    """What a meter would count: idle [mW], then nanojoules a token; each phase evenly spread."""
    idle_mw, prefill, cached, decode = costs
    windows = []
    for second in range(seconds):
        start, end = second * S, (second + 1) * S
        energy = idle_mw * 1000
        for each in generations:
            first = each.first_ns or 0
            computed = each.usage.input_tokens - int(each.usage.cached_input_tokens or 0)
            before = max(0, min(end, first) - max(start, each.begin_ns)) / (first - each.begin_ns)
            after = max(0, min(end, each.end_ns) - max(start, first)) / (each.end_ns - first)
            energy += before * (computed * prefill + int(each.usage.cached_input_tokens or 0) * cached) / 1000
            energy += after * each.usage.output_tokens * decode / 1000
        windows.append(Window(start, end, round(energy)))
    return windows


@given(
    seed=st.integers(0, 1000),
    costs=st.tuples(
        st.integers(0, 300_000), st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**7)
    ),
)
@settings(max_examples=15, deadline=None)
def test_the_costs_that_made_the_windows_are_found(seed: int, costs: tuple[int, int, int, int]) -> None:
    generations = load(seed)
    fit = fit_weights(measured(generations, costs), generations)
    found = (fit.idle_mw, fit.prefill_nj, fit.cached_nj, fit.decode_nj)
    for each, cost in zip(found, costs, strict=True):
        assert each.value == pytest.approx(cost, abs=5 * (each.error or 1) + 5)
        assert (each.error or 0) <= 10  # windows are rounded to a microjoule, nothing else is wrong
    assert fit.windows == 60
    assert fit.residual_uj <= 1


def test_noise_shows_in_the_errors() -> None:
    generations, dice = load(1), random.Random(2)
    costs = (90_000, 20_000_000, 1_000_000, 300_000_000)
    exact = measured(generations, costs)
    noisy = [Window(w.start_ns, w.end_ns, round((w.energy_uj or 0) * dice.gauss(1, 0.05))) for w in exact]
    fit = fit_weights(noisy, generations)
    found = (fit.idle_mw, fit.prefill_nj, fit.cached_nj, fit.decode_nj)
    assert all(abs(f.value - cost) <= 4 * (f.error or cost) for f, cost in zip(found, costs, strict=True))
    assert 0 < (fit.decode_nj.error or 0) < 100_000_000
    assert 900 < fit.explained_milli < 1000
    assert fit.residual_uj > 10_000


def test_no_cost_is_negative() -> None:
    """Windows that cost less the more tokens there are: the best fit that makes sense is none."""
    generations = load(3)
    falling = [
        Window(w.start_ns, w.end_ns, 10**9 - (w.energy_uj or 0))
        for w in measured(generations, (1, 10, 10, 90))
    ]
    fit = fit_weights(falling, generations)
    assert (fit.prefill_nj.value, fit.cached_nj.value, fit.decode_nj.value) == (0, 0, 0)
    assert fit.idle_mw.value == pytest.approx(10**6, rel=0.01)
    with pytest.raises(InvalidError):
        fit.rule()


def test_the_rule_weighs_as_was_fitted() -> None:
    generations = load(4)
    fit = fit_weights(measured(generations, (50_000, 1000, 100, 7000)), generations)
    rule = fit.rule(Rule(idle="gaps", patience_s=5))
    assert (rule.idle, rule.patience_s) == ("gaps", 5)
    assert rule.idle_mw == pytest.approx(50_000, abs=5)
    assert rule.decode_milli == pytest.approx(7 * rule.prefill_milli, rel=0.02)
    assert isinstance(fit, Calibration)


def test_what_cannot_be_told_apart_is_left_to_one_of_them() -> None:
    """Every prompt half cached, and no answers: computed and cached tokens come in the same proportion."""
    generations = [
        Generation(i * S, (i + 1) * S, Usage(input_tokens=2 * i, output_tokens=0, cached_input_tokens=i))
        for i in range(1, 20)
    ]
    windows = [Window(i * S, (i + 1) * S, 1000 * i) for i in range(20)]
    fit = fit_weights(windows, generations)
    assert {fit.prefill_nj.value, fit.cached_nj.value} == {0, 10**6}


def test_too_few_windows_are_refused() -> None:
    windows = [Window(i, i + 1, 5) for i in range(7)] + [Window(7, 8, power_mw=3), Window(8, 9)]
    with pytest.raises(InvalidError, match="7 measured"):
        fit_weights(windows, [])
