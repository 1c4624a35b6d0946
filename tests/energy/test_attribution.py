"""Division of amounts: exact, deterministic, and conserving under any overlap."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.errors import InvalidError
from ledger.energy.attribution import SharedMeter, split_exactly

amounts = st.integers(0, 2**60)


@given(amounts, st.lists(st.integers(0, 2**40), min_size=1, max_size=50))
def test_parts_sum_exactly_and_stay_within_one_of_their_share(total, weights):
    parts = split_exactly(total, weights)
    assert sum(parts) == total
    effective = weights if sum(weights) else [1] * len(weights)
    for part, weight in zip(parts, effective, strict=True):
        assert abs(part - Fraction(total * weight, sum(effective))) < 1


@given(amounts, st.lists(st.integers(0, 1000), min_size=2, max_size=20))
def test_a_larger_weight_never_gets_less(total, weights):
    parts = split_exactly(total, weights)
    pairs = sorted(zip(weights, parts, strict=True))
    for (smaller, less), (larger, more) in pairwise(pairs):
        assert smaller == larger or less <= more


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),  # ties go to the earlier position
        (11, [1, 1, 1], [4, 4, 3]),
        (7, [0, 0], [4, 3]),
        (100, [1, 0, 3], [25, 0, 75]),
        (10, [6, 6, 1], [5, 4, 1]),  # 4.62 4.62 0.77: the largest remainder first, then the earlier
        (0, [], []),
        (0, [5], [0]),
    ],
)
def test_known_divisions(total, weights, parts):
    assert split_exactly(total, weights) == parts


@pytest.mark.parametrize(("total", "weights"), [(-1, [1]), (1, [-1, 2]), (1, [])])
def test_nonsense_is_refused(total, weights):
    with pytest.raises(InvalidError) as error:
        split_exactly(total, weights)
    assert error.value.code == "bad-weights"


class Counter:
    """A counter that the test moves."""

    def __init__(self):
        self.value = 0

    def __call__(self):
        return self.value


def test_one_generation_alone_gets_everything():
    counter = Counter()
    meter = SharedMeter(counter)
    counter.value = 500  # before anybody is active: nobody's
    share = meter.join()
    counter.value = 1500
    assert meter.leave(share) == 1000
    counter.value = 9000
    assert meter.leave(share) == 1000


def test_overlap_is_divided_equally():
    counter = Counter()
    meter = SharedMeter(counter)
    first = meter.join()
    counter.value = 100  # first alone: 100
    second = meter.join()
    counter.value = 300  # both: 100 each
    assert meter.leave(first) == 200
    counter.value = 350  # second alone: 50
    assert meter.leave(second) == 150


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 7)), max_size=60))
def test_shares_sum_to_what_the_counter_gained_while_somebody_was_active(events):
    """Each event moves the counter, then toggles one of eight slots."""
    counter = Counter()
    meter = SharedMeter(counter)
    active, shares, gained = {}, [], 0
    for gain, slot in [*events, (5, -1)]:
        counter.value += gain
        gained += gain if active else 0
        if slot in active:
            shares.append(meter.leave(active.pop(slot)))
        elif slot >= 0:
            active[slot] = meter.join()
    shares += [meter.leave(share) for share in active.values()]
    assert sum(shares) <= gained
    assert gained - sum(shares) <= 2 * len(shares)  # each share is rounded down


def test_an_unreadable_counter_leaves_no_ghost():
    counter = Counter()
    broken = False

    def read():
        if broken:
            raise OSError
        return counter.value

    meter = SharedMeter(read)
    lost, kept = meter.join(), meter.join()
    broken = True
    with pytest.raises(OSError):
        meter.leave(lost)
    broken = False
    counter.value = 100
    assert meter.leave(kept) == 100
