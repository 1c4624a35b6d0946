"""Attribution over windows: what must hold for any activity, and what the rules say for a given one."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.records import Usage
from ledger.energy.attributor import Attributor, Portion
from ledger.energy.windows import Activity, Rule, Window, divide

MS = 1_000_000
S = 1000 * MS


def usage(input_tokens: int = 100, output_tokens: int = 10, cached: int | None = None) -> Usage:
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=UNSET if cached is None else cached,
    )


def activity(
    begin: int,
    end: int | None,
    tokens: Usage | None = None,
    first: int | None = None,
    rule: Rule | None = None,
) -> Activity:
    each = Activity(begin)
    if end is not None:
        each.finish(end)
        each.weigh(tokens or usage(), rule or Rule(), first)
    return each


def joules(portions: list[Portion]) -> dict[str, int | None]:
    return {each.id: None if each.energy is None else each.energy.energy_uj for each in portions}


# --- one window, divided ---------------------------------------------------------------------------------

amounts = st.integers(0, 10**12)
rules = st.builds(
    Rule,
    prefill_milli=st.integers(0, 5000),
    cached_milli=st.integers(0, 500),
    decode_milli=st.integers(0, 20_000),
    idle_mw=st.integers(0, 10**6),
    idle=st.sampled_from(["active", "gaps", "nobody"]),
)


@st.composite
def activities(draw: st.DrawFn, rule: Rule, span: int) -> Activity:
    begin = draw(st.integers(-span, span - 1))
    end = draw(st.none() | st.integers(max(begin, 0), 2 * span))
    tokens = draw(st.integers(0, 100_000))
    counts = Usage(
        input_tokens=tokens,
        output_tokens=draw(st.integers(0, 5000)),
        cached_input_tokens=draw(st.just(UNSET) | st.integers(0, tokens)),
    )
    return activity(begin, end, counts, draw(st.none() | st.integers(-span, 2 * span)), rule)


@given(data=st.data(), rule=rules, energy=amounts)
@settings(max_examples=300)
def test_the_parts_of_a_window_sum_to_its_energy(data: st.DataObject, rule: Rule, energy: int) -> None:
    span = data.draw(st.sampled_from([1, 7, 10**9]))
    window = Window(0, span, energy, low=energy * 9 // 10, high=energy * 11 // 10)
    active = [a for a in data.draw(st.lists(activities(rule, span), max_size=12)) if a.time_within(0, span)]
    division = divide(window, active, rule)
    assert sum(division.energy_uj) + division.nobodys_uj == energy
    assert all(part >= 0 for part in [*division.energy_uj, *division.busy_us, division.nobodys_uj])
    for low, part, high in zip(division.low_uj, division.energy_uj, division.high_uj, strict=False):
        assert low <= part <= high
    assert sum(division.busy_us) <= span // 1000
    if active and not (rule.idle_mw and rule.idle != "active"):
        assert division.nobodys_uj == 0


def test_tokens_weigh_where_their_time_falls() -> None:
    """A prompt of 100 computed until 1 s, then 10 tokens until 3 s: 100 and 50 weigh the same as 150 do."""
    rule = Rule()
    long = activity(0, 3 * S, usage(100, 10), S)
    whole = [activity(0, 3 * S, usage(150, 0), None)]
    assert long.weight_within(0, S) == 2 * long.weight_within(S, 3 * S) == 4 * long.weight_within(S, 2 * S)
    assert sum(long.weight_within(i * S, (i + 1) * S) for i in range(3)) == whole[0].weight_within(0, 3 * S)
    division = divide(Window(S, 2 * S, 1000), [long, *whole], rule)
    assert division.energy_uj == [333, 667]  # 25 of 75, 50 of 75


def test_cached_tokens_are_cheaper_and_weights_are_the_rules() -> None:
    rule = Rule(prefill_milli=1000, cached_milli=100, decode_milli=3000)
    cold = activity(0, S, usage(90, 10), rule=rule)
    warm = activity(0, S, usage(90, 10, cached=90), rule=rule)
    assert divide(Window(0, S, 1590), [cold, warm], rule).energy_uj == [1200, 390]


def test_without_a_first_token_all_weighs_evenly() -> None:
    each = activity(0, 10 * S, usage())
    assert {each.weight_within(i * S, (i + 1) * S) for i in range(10)} == {each.weight_within(0, S)}
    odd = activity(0, 10 * S, usage(), first=11 * S)
    assert odd.weight_within(0, S) == each.weight_within(0, S)


def test_where_nothing_weighs_time_divides() -> None:
    nothing = usage(0, 0)
    active = [activity(0, S, nothing), activity(0, S // 4, nothing)]
    assert divide(Window(0, S, 100), active, Rule()).energy_uj == [80, 20]


def test_who_still_runs_weighs_like_the_others() -> None:
    active = [activity(0, S, usage(300, 0)), activity(S // 2, None), activity(0, S, usage(100, 0))]
    division = divide(Window(0, S, 1000), active, Rule())
    assert division.energy_uj == [600, 200, 200]
    assert divide(Window(0, S, 9), [activity(0, None), activity(0, None)], Rule()).energy_uj == [5, 4]


@pytest.mark.parametrize(
    ("idle", "parts", "nobodys"),
    [("active", [800, 200], 0), ("gaps", [750, 150], 100), ("nobody", [600, 0], 400)],
)
def test_the_idle_part_follows_its_rule(idle: Any, parts: list[int], nobodys: int) -> None:
    """400 of 1000 uJ are idle: 1 mW for 400 ms. Two are active for three quarters of that."""
    rule = Rule(idle_mw=1, idle=idle)
    window = Window(0, 400 * MS, 1000)
    active = [activity(0, 300 * MS, usage(100, 0)), activity(0, 300 * MS, usage(0, 0))]
    division = divide(window, active, rule)
    assert (division.energy_uj, division.nobodys_uj) == (parts, nobodys)


def test_a_modelled_power_counts_while_somebody_is_active() -> None:
    window = Window(0, S, power_mw=2000, low=1000, high=4001)
    active = [activity(0, S // 4, usage(1, 0)), activity(S // 2, S // 2 + S // 4, usage(1, 0))]
    division = divide(window, active, Rule())
    assert division.energy_uj == [500_000, 500_000]
    assert (division.low_uj, division.high_uj) == ([250_000, 250_000], [1_000_250, 1_000_250])
    assert division.busy_us == [250_000, 250_000]
    assert divide(window, [], Rule()).nobodys_uj == 0


def test_the_range_is_the_meters() -> None:
    division = divide(Window(0, S, 1001, low=950, high=1051), [activity(0, S), activity(0, S)], Rule())
    assert (division.energy_uj, division.low_uj, division.high_uj) == ([501, 500], [475, 474], [527, 525])
    assert divide(Window(0, S, 1001), [activity(0, S)], Rule()).low_uj == []


@pytest.mark.parametrize(
    "settings",
    [{"prefill_milli": -1}, {"decode_milli": 1.5}, {"idle": "all"}, {"patience_s": -1}, {"longest_s": 1}],
)
def test_rules_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        Rule(**settings)


# --- the stream ------------------------------------------------------------------------------------------


def test_a_window_waits_for_those_active_in_it() -> None:
    stream = Attributor(source="test meter")
    stream.begin("a", 100 * MS)
    stream.begin("b", 200 * MS)
    stream.add_window(Window(0, S, 900))
    stream.end("a", 800 * MS, usage(100, 0))
    assert stream.settle(2 * S) == []
    stream.end("b", 700 * MS, usage(50, 0))
    first, second = sorted(stream.settle(2 * S), key=lambda each: each.id)
    assert (first.energy.energy_uj, second.energy.energy_uj) == (600, 300)  # type: ignore[union-attr]
    assert first.energy.source == "test meter; windows/1"  # type: ignore[union-attr]
    assert first.energy.method == "measured"  # type: ignore[union-attr]
    assert (first.busy_us, second.busy_us) == (466_666, 233_333)
    assert stream.unattributed_uj == 0


def test_energy_of_nobody_is_counted() -> None:
    stream = Attributor()
    stream.add_window(Window(0, S, 700))
    stream.add_window(Window(S, 2 * S, 30))
    assert stream.settle(2 * S) == []
    assert stream.take_unattributed(500) == 500
    assert stream.take_unattributed(500) == 230
    assert stream.take_unattributed(500) == 0


def test_patience_ends() -> None:
    stream = Attributor(Rule(patience_s=5))
    stream.begin("long", 0)
    stream.begin("short", 0)
    stream.end("short", S, usage())
    for i in range(8):
        stream.add_window(Window(i * S, (i + 1) * S, 1000))
        portions = stream.settle((i + 1) * S)
        assert joules(portions) == ({"short": 500} if i == 5 else {})
    assert stream.unattributed_uj == 0
    stream.end("long", 8 * S, usage())
    (portion,) = stream.settle(8 * S)
    assert joules([portion]) == {"long": 7500}
    assert portion.energy.source.endswith("presumed in part")  # type: ignore[union-attr]


def test_an_end_told_after_its_windows_were_settled_by_presumption() -> None:
    stream = Attributor(Rule(patience_s=0))
    stream.begin("a", 0)
    stream.add_window(Window(0, S, 1000))
    assert stream.settle(S) == []
    stream.end("a", S // 2, usage())
    assert joules(stream.settle(S)) == {"a": 1000}


def test_refused_lost_and_invalid_ones_leave_their_energy_to_nobody() -> None:
    stream = Attributor(Rule(patience_s=0))
    for id in ("refused", "lost", "invalid"):
        stream.begin(id, 0)
    stream.add_window(Window(0, S, 900))
    stream.settle(S)
    stream.abandon("refused")
    assert stream.unattributed_uj == 300
    stream.lose("lost", S)
    assert stream.unattributed_uj == 600
    stream.end("invalid", S, usage())
    (portion,) = stream.settle(S)
    stream.return_portion(portion)
    assert stream.unattributed_uj == 900
    stream.abandon("never heard of")
    stream.lose("never heard of", S)


def test_who_is_refused_at_once_dilutes_nobody() -> None:
    stream = Attributor()
    stream.begin("a", 0)
    stream.begin("refused", 10)
    stream.abandon("refused")
    stream.end("a", S, usage())
    stream.add_window(Window(0, S, 777))
    assert joules(stream.settle(S)) == {"a": 777}


def test_what_never_ends_is_given_up() -> None:
    stream = Attributor(Rule(patience_s=1, longest_s=10))
    stream.begin("leaked", 0)
    for i in range(20):
        stream.begin(f"r{i}", i * S)
        stream.end(f"r{i}", (i + 1) * S, usage())
        stream.add_window(Window(i * S, (i + 1) * S, 100))
        stream.settle((i + 1) * S)
    portions = stream.close(20 * S)
    assert all(energy == 100 for energy in joules(portions).values())
    assert stream.unattributed_uj > 0


def test_what_was_never_begun_is_attributed_if_its_windows_wait() -> None:
    stream = Attributor()
    stream.add_window(Window(0, S, 1000))
    stream.end("a", S, usage(), begin_ns=200 * MS)
    assert joules(stream.settle(S)) == {"a": 1000}
    stream.end("b", 900 * MS, usage(), begin_ns=200 * MS)
    (portion,) = stream.settle(S)
    assert portion == Portion("b", None, None)
    stream.add_window(Window(S, 2 * S, 1000))
    stream.settle(2 * S)
    stream.end("c", 2 * S + 40 * MS, usage(), begin_ns=2 * S - 40 * MS)  # 40 ms came too late: taken
    stream.end("d", 2 * S + 90 * MS, usage(), begin_ns=2 * S - 60 * MS)  # 60 ms of 150: a part of it only
    stream.add_window(Window(2 * S, 3 * S, 1000))
    portions = joules(stream.settle(3 * S))
    assert portions["d"] is None
    assert portions["c"] == 1000 - stream.unattributed_uj + 1000


def test_a_meter_that_is_silent_leaves_records_without_energy() -> None:
    stream = Attributor(Rule(patience_s=5))
    stream.begin("a", 0)
    stream.end("a", S, usage())
    assert stream.settle(4 * S) == []
    assert joules(stream.settle(6 * S)) == {"a": None}
    stream.begin("b", 6 * S)
    stream.add_window(Window(0, 7 * S, 7000))  # it answers again: who was active before went without
    stream.add_window(Window(7 * S, 8 * S, 10))
    stream.end("b", 8 * S, usage())
    assert joules(stream.settle(8 * S)) == {"b": None}
    assert stream.unattributed_uj == 7010
    stream.end("c", 9 * S, usage(), begin_ns=8 * S)
    stream.add_window(Window(8 * S, 9 * S, 10))
    assert joules(stream.settle(9 * S)) == {"c": 10}


def test_a_window_that_the_meter_could_not_count_costs_the_energy() -> None:
    stream = Attributor()
    for i, each in enumerate([Window(0, S, 10), Window(S, 2 * S), Window(2 * S, 3 * S, 10)]):
        stream.begin(f"r{i}", i * S)
        stream.end(f"r{i}", (i + 1) * S, usage())
        stream.add_window(each)
    stream.begin("all", 0)
    stream.end("all", 3 * S, usage(0, 0))
    assert joules(stream.settle(3 * S)) == {"r0": 10, "r1": None, "all": None, "r2": 10}
    assert stream.unattributed_uj == 0


def test_what_began_before_the_meter_has_no_energy() -> None:
    stream = Attributor()
    stream.begin("early", 0)
    stream.begin("in time", S - 30 * MS)
    for id in ("early", "in time"):
        stream.end(id, 2 * S, usage(0, 0))
    stream.add_window(Window(S, 2 * S, 100))
    assert joules(stream.settle(2 * S)) == {"early": None, "in time": 50}
    assert stream.unattributed_uj == 50


@pytest.mark.parametrize("window", [Window(5, 5, 1), Window(6, 5, 1), Window(0, 9, 1)])
def test_windows_must_follow_each_other(window: Window) -> None:
    stream = Attributor()
    stream.add_window(Window(0, 5, 1))
    with pytest.raises(InvalidError):
        stream.add_window(window)


# --- any activity, any order -----------------------------------------------------------------------------

FATES = ("recorded", "abandoned", "lost", "invalid", "unbegun", "running")


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Window], list[tuple[int, int, str]], list[tuple[str, int]]]:
    """Windows, generations (begin, end, fate), and the order in which the stream is told of them."""
    times = draw(st.lists(st.integers(0, 20 * S), min_size=2, max_size=12, unique=True).map(sorted))
    energies = st.none() | st.integers(0, 10**10)
    windows = [Window(a, b, draw(energies)) for a, b in itertools.pairwise(times)]
    count = draw(st.integers(0, 15))
    spans = st.tuples(st.integers(0, 20 * S), st.integers(0, 20 * S)).map(sorted)
    generations = [(*draw(spans), draw(st.sampled_from(FATES))) for _ in range(count)]
    events: list[tuple[str, int]] = []
    for i, (_, _, fate) in enumerate(generations):
        at = draw(st.integers(0, len(events)))
        if fate != "unbegun":
            events.insert(at, ("begin", i))
            at += 1
        if fate != "running":
            events.insert(draw(st.integers(at, len(events))), ("end", i))
    at = 0
    for i in range(len(windows)):
        at = draw(st.integers(at, len(events)))
        events.insert(at, ("window", i))
        at += 1
    return windows, generations, events


@given(history=histories(), rule=rules, patience_s=st.sampled_from([0, 1, 30]), data=st.data())
@settings(max_examples=400, deadline=None)
def test_energy_is_conserved_in_any_order(
    history: Any, rule: Rule, patience_s: int, data: st.DataObject
) -> None:
    windows, generations, events = history
    stream = Attributor(Rule(**{**rule.__dict__, "patience_s": patience_s, "longest_s": 60}))
    portions: list[Portion] = []
    now = stated = 0
    for what, i in events:
        if what == "window":
            stream.add_window(windows[i])
            now = max(now, windows[i].end_ns)
        else:
            begin, end, fate = generations[i]
            id = f"{fate} {i}"
            if what == "begin":
                stream.begin(id, begin)
            elif fate == "abandoned":
                stream.abandon(id)
            elif fate == "lost":
                stream.lose(id, end)
            else:
                stream.end(id, end, usage(i, 2 * i), begin_ns=begin, first_ns=(begin + end) // 2)
        portions += stream.settle(now, force=data.draw(st.sampled_from([False, False, True])))
        stated += stream.take_unattributed(10**9)
    portions += stream.close(max(now, 20 * S) + 1)
    carried = 0
    for portion in portions:
        if portion.id.startswith("invalid"):
            stream.return_portion(portion)
        elif portion.energy is not None:
            carried += portion.energy.energy_uj
    measured = sum(window.energy_uj or 0 for window in windows)
    assert carried + stated + stream.unattributed_uj == measured
    wanted = {
        f"{f} {i}" for i, (_, _, f) in enumerate(generations) if f in ("recorded", "invalid", "unbegun")
    }
    assert sorted(each.id for each in portions) == sorted(wanted)


@given(count=st.integers(1, 30), seed=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_told_in_time_the_order_does_not_matter(count: int, seed: Any) -> None:
    """Whatever order ends come in, before the windows are settled, each gets the same."""
    spans = [sorted((seed.randrange(5 * S), seed.randrange(5 * S))) for _ in range(count)]

    def run(order: list[int]) -> dict[str, int | None]:
        stream = Attributor()
        for i in order:
            stream.begin(f"{i:02}", spans[i][0])
        for i in reversed(order):
            stream.end(f"{i:02}", spans[i][1], usage(i, i))
        for i in range(5):
            stream.add_window(Window(i * S, (i + 1) * S, 10**9 + i))
        return joules(stream.settle(5 * S))

    order = list(range(count))
    plain = run(order)
    seed.shuffle(order)
    shuffled = run(order)
    for id, energy in plain.items():  # the last unit of a window may go to another one of equals
        assert abs((energy or 0) - (shuffled[id] or 0)) <= 5
    assert sum(e or 0 for e in plain.values()) == sum(e or 0 for e in shuffled.values())


def test_shares_are_proportional_over_many_windows() -> None:
    """A thousand small windows give what one large one gives, but for a unit each."""
    whole = [activity(0, 10 * S, usage(100, 10), 3 * S), activity(2 * S, 9 * S, usage(500, 100), 4 * S)]
    sums = [0, 0]
    for i in range(1000):
        window = Window(i * 10 * MS, (i + 1) * 10 * MS, 10_000)
        active = [each for each in whole if each.time_within(window.start_ns, window.end_ns)]
        for each, part in zip(active, divide(window, active, Rule()).energy_uj, strict=True):
            sums[whole.index(each)] += part
    assert sum(sums) == 10_000_000
    exact = [Fraction(0), Fraction(0)]
    for i in range(1000):
        span = (i * 10 * MS, (i + 1) * 10 * MS)
        weights = [each.weight_within(*span) for each in whole]
        for k in range(2):
            exact[k] += Fraction(10_000 * weights[k], sum(weights))
    assert all(abs(exact[k] - sums[k]) < 1000 for k in range(2))
