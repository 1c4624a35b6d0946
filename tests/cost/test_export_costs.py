"""Costs over an export: SQL, the emitter's rating and a plain computation agree to the last digit."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from msgspec import UNSET, structs

from ledger.audit.run import audit
from ledger.audit.targets import open_source
from ledger.core.errors import InvalidError, RefusedError
from ledger.core.note import ED25519, VerifierKey, format_vkey
from ledger.core.records import Record, document_digest
from ledger.cost.rating import Rater
from ledger.cost.usage import QUARTER_US
from ledger.export.charged import check_charged
from ledger.export.costs import logged_usage, made_by_deployment, rated_groups
from ledger.export.query import Question
from ledger.export.reading import open_export
from tests.build import ORIGIN
from tests.cost.logged import (
    DAY_US,
    DEPLOYMENTS,
    FIRST_US,
    LARGE,
    MINI,
    NEW,
    OLD,
    OWN,
    Logged,
    log_and_export,
    random_records,
)

BY_DIGEST = {document_digest(each): each for each in DEPLOYMENTS.values()}


def plain_cost(record: Record) -> int | None:
    """By hand: the contract's numbers, and one rounding half up."""
    deployment = BY_DIGEST[record.deployment]
    usage = record.usage
    cached = usage.cached_input_tokens or 0
    fresh = usage.input_tokens - cached
    new = record.started_us >= FIRST_US + 3 * DAY_US
    request = 0
    if deployment.model == MINI:
        rates = ("0.1", "0.033333333", "0.500000001") if new else ("0.15", "0.075", "0.6")
        total = sum(
            Fraction(rate) * n for rate, n in zip(rates, (fresh, cached, usage.output_tokens), strict=True)
        )
    elif deployment.model == LARGE and usage.input_tokens > 128_000:
        total = 5 * Fraction(usage.input_tokens) + 15 * usage.output_tokens
    elif deployment.model == LARGE:
        reasoning = usage.reasoning_tokens or 0
        total = Fraction("2.5") * fresh + Fraction("1.25") * cached + 10 * (usage.output_tokens - reasoning)
        total += Fraction("9.999999999") * reasoning
        request = 1001
    else:
        return None
    return int(total * 1000 + Fraction(1, 2)) + request  # dollars per million tokens are 1000 nano a token


def test_the_emitters_rating_is_the_plain_one(logged: Logged) -> None:
    for record in logged.records:
        assert (None if record.cost_nano is UNSET else record.cost_nano) == plain_cost(record)


def test_sql_gives_each_group_the_sum_of_its_records(logged: Logged) -> None:
    expected: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record in logged.records:
        cost = plain_cost(record)
        if cost is not None:
            day = str(record.started_us // DAY_US)
            expected[day, BY_DIGEST[record.deployment].model].append(cost)
    with open_export(logged.export) as connection:
        rows = rated_groups(connection, Question(by=("day", "model")), [NEW, OLD])
    found = {(row["day"], row["model"]): row for row in rows}
    assert len(found) == 15
    for (day, model), costs in expected.items():
        row = found[str(date(1970, 1, 1) + timedelta(days=int(day))), model]
        assert (row["cost_nano"], row["rated_records"], row["currency"]) == (sum(costs), len(costs), "USD")
        assert row["logged_nano"] == row["cost_nano"]
        assert row["differing_records"] == 0
    for (_, model), row in found.items():
        if model == OWN:
            assert row["rated_records"] == 0
            assert "cost_nano" not in row


def test_another_tier_or_place_costs_what_it_costs(logged: Logged) -> None:
    usages = [r.usage for r in logged.records]
    with open_export(logged.export) as connection:
        (row,) = rated_groups(
            connection,
            Question(),
            [OLD],
            tier="batch",
            instead={"model": MINI, "version": None, "provider": "openai", "region": None},
        )
        (unknown,) = rated_groups(
            connection, Question(), [OLD], instead={"model": "nothing", "version": None}
        )
    half = Fraction(1, 2)
    assert row["cost_nano"] == sum(int(75 * u.input_tokens + 300 * u.output_tokens + half) for u in usages)
    assert (unknown["rated_records"], unknown["records"]) == (0, len(usages))


@pytest.mark.parametrize("attributed", ["started", "ended"])
def test_logged_usage_adds_up_to_the_records(logged: Logged, attributed: str) -> None:
    expected: dict[tuple[int, str, int], list[int]] = defaultdict(lambda: [0] * 6)
    for record in logged.records:
        at = record.started_us if attributed == "started" else record.ended_us
        longer = 128_000 if record.usage.input_tokens > 128_000 else 0
        sums = expected[at // QUARTER_US * QUARTER_US, BY_DIGEST[record.deployment].model, longer]
        values = (
            1,
            record.usage.input_tokens,
            record.usage.cached_input_tokens or 0,
            record.usage.output_tokens,
            record.usage.reasoning_tokens or 0,
            int(record.quality is not UNSET),
        )
        sums[:] = [a + b for a, b in zip(sums, values, strict=True)]
    with open_export(logged.export) as connection:
        usage = logged_usage(connection, Question(), [OLD, NEW], attributed=attributed)  # type: ignore[arg-type]
    assert {
        (u.at_us, u.model, u.longer_than): [
            u.requests,
            u.input_tokens,
            u.cached_input_tokens,
            u.output_tokens,
            u.reasoning_tokens,
            u.estimated_requests,
        ]
        for u in usage
    } == expected
    assert sum(u.estimated_requests for u in usage) > 0


def test_what_deployments_made(logged: Logged) -> None:
    with open_export(logged.export) as connection:
        made = {each.model: each for each in made_by_deployment(connection, Question())}
    own = [r for r in logged.records if BY_DIGEST[r.deployment].model == OWN]
    assert made[OWN].records == made[OWN].measured_records == len(own)
    assert made[OWN].energy_uj == sum(r.energy.energy_uj for r in own)  # type: ignore[union-attr]
    assert made[OWN].site == "Halle 2"


def test_records_cost_what_their_books_say(logged: Logged) -> None:
    found = check_charged(logged.export)
    priced = sum(r.cost_nano is not UNSET for r in logged.records)
    assert (found.batches, found.by_book, found.otherwise) == (3, priced, 0)
    assert found.unstated == len(logged.records) - priced


def test_a_record_that_costs_something_else_is_told(tmp_path: Path) -> None:
    records = random_records(Random(2), 50, Rater([OLD]))
    at = next(i for i, r in enumerate(records) if r.cost_nano is not UNSET)
    records[at] = structs.replace(records[at], cost_nano=records[at].cost_nano + 1)  # type: ignore[operator]
    found = check_charged(log_and_export(tmp_path, [records], [OLD]).export)
    assert found.otherwise == 1
    assert records[at].id in found.examples[0]


def test_an_unknown_dimension_is_refused(logged: Logged) -> None:
    with open_export(logged.export) as connection, pytest.raises(InvalidError):
        rated_groups(connection, Question(by=("colour",)), [OLD])


@pytest.mark.parametrize("what", ["ledger.db", "export"])
def test_a_log_with_price_books_is_sound(logged: Logged, what: str) -> None:
    vkey = format_vkey(VerifierKey.of(ORIGIN, ED25519, logged.log_key.public.raw_bytes()))
    assert audit(open_source(logged.export.parent / what), vkey).verdict == "sound"


def test_a_batch_that_names_an_unpublished_book_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        log_and_export(tmp_path, [random_records(Random(3), 5, None)], [OLD], published=False)
    assert caught.value.code == "unknown-document"
