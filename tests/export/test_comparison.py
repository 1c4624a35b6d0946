"""Comparisons: intervals are those of the textbook, of a bootstrap, and cover what they promise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from math import sqrt
from pathlib import Path

import numpy
import pytest
import scipy.stats

from ledger.core.errors import InvalidError
from ledger.core.records import Energy, Quality, Usage
from ledger.core.statements import Correction, Evaluation
from ledger.export import comparison
from ledger.export.comparison import Comparison, compare
from ledger.export.parquet import export_parquet
from ledger.export.query import Question, ask
from tests import build
from tests.build import START_US

A, B = Question(where={"model": ["SmolLM2-135M-Instruct"]}), Question(where={"model": ["Qwen3-32B"]})


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two models in 60 batches: b takes twice a's energy; times and quality are alike."""
    directory = tmp_path_factory.mktemp("compare")
    ledger = build.make_ledger(directory)
    issuer = ledger.issuer
    other = build.make_deployment(model="Qwen3-32B")
    generator = random.Random(11)
    items = [issuer.deployment(other)]
    ids = []
    for batch in range(60):
        level = generator.gauss(1, 0.1)  # shared by a batch: its records are not independent
        records = []
        for n in range(10):
            large = n % 2
            tokens = 50 + generator.randrange(100)
            energy = int(1000 * tokens * (1 + large) * level * generator.gauss(1, 0.05))
            started = START_US + (batch * 10 + n) * 1000
            records.append(
                build.make_record(
                    other if large else ledger.deployment,
                    n=batch * 10 + n,
                    usage=Usage(input_tokens=20, output_tokens=tokens),
                    energy=Energy(
                        energy_uj=energy,
                        low_uj=energy // 2,
                        high_uj=energy * 2,
                        method="modelled",
                        source="x",
                    ),
                    started_us=started,
                    ended_us=started + 50_000 + generator.randrange(900_000),
                    cost_nano=tokens * (3 if large else 1),
                    currency="EUR",
                    quality={"bleu": Quality(value=500 + generator.randrange(100), scale=3)},
                )
            )
        ids += [r.id for r in records]
        items.append(issuer.batch(records))
    for n, each in enumerate(ids[:40]):
        metrics = {"accuracy": Quality(value=80 + n % 7 + 10 * (n % 2), scale=2)}
        items.append(issuer.sign(Evaluation(evaluator="j", metrics=metrics, record=each, **issuer.chain())))
    ledger.append(*items)
    export_parquet(ledger.store, directory / "export", log_key=ledger.log_key, created_us=START_US)
    yield directory / "export"
    ledger.store.close()


def by_name(found: comparison.Compared) -> dict[str, Comparison]:
    return {each.name: each for each in found.figures}


def test_figures_are_those_of_the_query(export: Path) -> None:
    found = by_name(compare(export, A, B))
    for side, question in (("a", A), ("b", B)):
        (row,) = ask(export, question)
        for name in ("energy_uj_per_1k_tokens", "energy_low_uj_per_1k_tokens", "cost_nano_per_1k_tokens"):
            assert getattr(found[name], side).value == row[name]
        assert getattr(found["energy_uj_per_request"], side).value == row["energy_uj_per_request"]
        (marked,) = ask(export, Question(where=question.where, percentiles=True))
        for name in ("duration_us_p50", "duration_us_p95"):
            assert getattr(found[name], side).value == marked[name]


def test_what_differs_is_told_from_chance(export: Path) -> None:
    found = by_name(compare(export, A, B))
    energy = found["energy_uj_per_1k_tokens"]
    assert energy.distinct is True
    assert energy.ratio_milli is not None
    assert 1900 < energy.ratio_milli < 2100
    assert energy.difference is not None
    assert energy.a is not None
    assert energy.b is not None
    assert energy.difference.value in range(
        energy.b.value - energy.a.value - 1, energy.b.value - energy.a.value + 2
    )
    assert found["cost_nano_per_1k_tokens"].distinct is True
    assert found["duration_us_per_request"].distinct is False
    assert found["quality bleu (recorded)"].distinct is False
    assert found["quality accuracy (record)"].distinct is True
    low, high = found["energy_low_uj_per_1k_tokens"], found["energy_high_uj_per_1k_tokens"]
    assert low.a is not None
    assert high.a is not None
    assert low.a.value < energy.a.value < high.a.value
    assert energy.a.clusters == 60
    assert energy.a.count == 300


def test_the_same_each_time_and_against_itself_no_difference(export: Path) -> None:
    assert compare(export, A, B) == compare(export, A, B)
    for each in compare(export, A, A).figures:
        assert each.distinct is not True
        assert each.difference is not None
        assert each.difference.value == 0


def test_a_side_without_records_is_refused(export: Path) -> None:
    with pytest.raises(InvalidError, match="side b has no record"):
        compare(export, A, Question(where={"model": ["none"]}))


def clusters(generator: random.Random, count: int) -> tuple[list[int], list[int]]:
    xs, ys = [], []
    for _ in range(count):
        y = 50 + generator.randrange(400)
        xs.append(round(7 * y * max(0.2, generator.gauss(1, 0.3))))
        ys.append(y)
    return xs, ys


def interval(xs: list[int], ys: list[int]) -> tuple[float, float]:
    exact = comparison._ratio(xs, ys, len(xs))
    assert exact.variance is not None
    half = comparison._half_width(exact.variance, len(xs) - 1)
    return float(exact.value - half), float(exact.value + half)


def test_the_variance_is_the_linearised_one() -> None:
    xs, ys = clusters(random.Random(3), 25)
    x, y = numpy.array(xs, float), numpy.array(ys, float)
    ratio = x.sum() / y.sum()
    spread = sqrt(25 / 24 * ((x - ratio * y) ** 2).sum()) / y.sum()
    low, high = interval(xs, ys)
    assert low == pytest.approx(ratio - scipy.stats.t.ppf(0.975, 24) * spread, rel=1e-3)
    assert high == pytest.approx(ratio + scipy.stats.t.ppf(0.975, 24) * spread, rel=1e-3)
    for freedom in (1, 5, 30, 31, 39, 45, 60, 119, 120, 10_000):
        right = scipy.stats.t.ppf(0.975, freedom)
        assert right - 0.0006 <= comparison._t_milli(freedom) / 1000 <= right + 0.025


def test_a_bootstrap_over_batches_agrees() -> None:
    xs, ys = clusters(random.Random(5), 200)

    def ratio(x: numpy.ndarray, y: numpy.ndarray, axis: int = -1) -> numpy.ndarray:
        return x.sum(axis=axis) / y.sum(axis=axis)

    drawn = scipy.stats.bootstrap(
        (numpy.array(xs), numpy.array(ys)), ratio, paired=True, n_resamples=4000, rng=7, method="BCa"
    ).confidence_interval
    low, high = interval(xs, ys)
    assert (high - low) == pytest.approx(drawn.high - drawn.low, rel=0.12)
    assert low == pytest.approx(drawn.low, abs=0.15 * (high - low))


def test_intervals_cover_what_they_promise() -> None:
    generator = random.Random(17)
    covered = 0
    for _ in range(600):
        low, high = interval(*clusters(generator, 20))
        covered += low <= 7 <= high
    assert 0.91 <= covered / 600 <= 0.985


def test_the_half_width_is_never_too_narrow() -> None:
    for variance in (Fraction(2), Fraction(1, 7), Fraction(10**30, 3), Fraction(0)):
        half = comparison._half_width(variance, 500)
        assert half * half * 10**6 >= variance * 1980**2
        assert float(half) == pytest.approx(1.98 * sqrt(variance), abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("level", [50, 95])
def test_order_statistics_cover_the_percentile(level: int) -> None:
    generator = random.Random(23)
    covered = 0
    for _ in range(600):
        values = sorted(generator.random() for _ in range(300))
        low, _, high = comparison._ranks(300, level)
        covered += values[low - 1] <= level / 100 <= values[high - 1]
    assert 0.93 <= covered / 600 <= 0.995


def test_corrections_can_be_left_out(tmp_path: Path) -> None:
    from ledger.core.records import encode_record, record_hash

    ledger = build.make_ledger(tmp_path)
    issuer = ledger.issuer
    records = build.make_records(6, ledger.deployment)
    ledger.append(issuer.batch(records[:3]), issuer.batch(records[3:]))
    energy = Energy(energy_uj=10**9, method="measured", source="again")
    right = record_hash(encode_record(records[0])).hex()
    said = Correction(record=records[0].id, record_hash=right, reason="r", energy=energy, **issuer.chain())
    ledger.append(issuer.sign(said))
    folder = export_parquet(ledger.store, tmp_path / "e", log_key=ledger.log_key).directory
    tenants = Question(where={"tenant": ["t-0"]}), Question(where={"tenant": ["t-1"]})
    corrected = compare(folder, *tenants)
    logged = compare(folder, *(Question(where=each.where, corrected=False) for each in tenants))
    assert "1 records are counted as corrected" in corrected.notes[0]
    assert by_name(corrected)["energy_uj_per_request"].a != by_name(logged)["energy_uj_per_request"].a
    ledger.store.close()
