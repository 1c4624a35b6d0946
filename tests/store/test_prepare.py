"""What is found of a batch when it is registered: the native part and Python must find the same."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ledger import native
from ledger.core.errors import InvalidError, TallystickError
from ledger.core.records import Record
from ledger.store import Limits, Prepared, prepare, prepare_statement
from tests.build import (
    Issuer,
    SealedBatch,
    changed,
    make_deployment,
    make_record,
    make_records,
    make_uuid7,
    seal_lines,
)
from tests.core import strategies
from tests.fuzz.targets_native import FULL

pytestmark = pytest.mark.skipif(native.parsing is None, reason="the native part is not built")
ISSUER = Issuer()
ALL_FIELDS = changed(FULL, id=make_uuid7(FULL.started_us, "another"))


def outcome(batch: SealedBatch) -> Any:
    """What is prepared of a batch, or the error."""
    try:
        return prepare_statement(
            batch.statement.entry,
            batch.lines,
            key_of=lambda *_: ISSUER.key.public,
            now_us=time.time_ns() // 1000,
            limits=Limits(),
        )
    except TallystickError as error:
        return type(error), error.code, error.what, error.where


def both(batch: SealedBatch) -> Any:
    """The same with and without the native part."""
    found = outcome(batch)
    with patch.object(prepare, "_native", None):
        assert outcome(batch) == found
    return found


def records_of(*more: Record) -> list[Record]:
    deployments = (make_deployment(), make_deployment(model="another"))
    return [
        *make_records(3, deployments[0]),
        make_record(deployments[1], n=7, tenant="t-9"),
        ALL_FIELDS,
        *more,
    ]


def test_batches_that_hold_need_no_python() -> None:
    with patch.object(prepare, "_checked", side_effect=AssertionError):
        found = outcome(ISSUER.batch(records_of(), advance=False))
    assert isinstance(found, Prepared)
    assert found.records is not None
    assert len(found.records.ids) == sum(found.records.slices.values()) == 5
    assert both(ISSUER.batch(records_of(), advance=False)) == found


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.lists(strategies.records(), min_size=1, max_size=12))
def test_generated_batches(records: list[Record]) -> None:
    try:
        batch = ISSUER.batch(records, advance=False)
    except InvalidError:  # the sums are too large for one batch
        assume(False)
    both(batch)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("count", lambda said: said + 1),
        ("root", lambda said: "ab" * 32),
        ("first_us", lambda said: said + 1),
        ("last_us", lambda said: said - 1),
        ("deployments", lambda said: said[:1]),
        ("factors", lambda said: ()),
        ("totals", lambda said: changed(said, energy_uj=said.energy_uj + 1)),
        ("totals", lambda said: changed(said, output_tokens=said.output_tokens - 1)),
    ],
)
def test_what_a_statement_says_wrong_is_told_in_the_same_words(name: str, change: Any) -> None:
    honest = ISSUER.batch(records_of(), advance=False).statement.payload
    batch = ISSUER.batch(records_of(), advance=False, **{name: change(getattr(honest, name))})
    kind, *_ = both(batch)
    assert issubclass(kind, TallystickError)


def test_an_id_that_is_twice_in_a_batch() -> None:
    _, code, _, where = both(ISSUER.batch(records_of(ALL_FIELDS), advance=False))
    assert (code, where) == ("duplicate-record", "records[5]")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines.replace(b":", b": ", 1),
        lambda lines: lines[:-1],
        lambda lines: b"",
        lambda lines: lines.replace(b'"usage"', b'"usagf"', 1),
        lambda lines: lines + b"{}\n",
    ],
)
def test_lines_that_are_no_records(change: Any) -> None:
    records = records_of()
    honest = ISSUER.batch(records, advance=False)
    batch = replace(honest, lines=change(honest.lines))
    kind, *_ = both(batch)
    assert issubclass(kind, TallystickError)
    kind, *_ = both(seal_lines(ISSUER, records, batch.lines, advance=False) if batch.lines else batch)
    assert issubclass(kind, TallystickError)


def test_a_processor_that_does_not_hash() -> None:
    batch = ISSUER.batch(records_of(), advance=False)
    facts = native.parsing.batch_facts(batch.lines) if native.parsing is not None else None
    assert facts is not None
    found = outcome(batch)
    with patch.object(prepare, "_native") as part:
        part.batch_facts.return_value = (*facts[:-1], None)
        assert outcome(batch) == found
