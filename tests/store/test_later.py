"""What was said later about a record is found, by whatever it names, and only what counts corrects it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.core.records import Energy, Quality, encode_record, record_hash
from ledger.core.statements import Correction, Evaluation
from ledger.store import later, queries
from tests.build import Issuer, Ledger, make_deployment, make_ledger, make_records

ONE = {"accuracy": Quality(value=9, scale=1)}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = make_ledger(tmp_path)
    yield made
    made.store.close()


def found_of(ledger: Ledger, record_id: str) -> later.Later:
    with ledger.store.read() as connection:
        return later.later_of(connection, queries.record_by_id(connection, record_id))


def test_everything_about_a_record_is_found_and_nothing_else(ledger: Ledger) -> None:
    issuer, records = ledger.issuer, make_records(6, ledger.digest)
    first, second = issuer.batch(records[:3]), issuer.batch(records[3:])
    ledger.append(first, second)
    right = record_hash(encode_record(records[0])).hex()
    energy = Energy(energy_uj=5, method="measured", source="x")
    leaf = first.statement.leaf_hash.hex()

    def say(payload: Correction | Evaluation, *, by: Issuer = issuer) -> None:
        ledger.append(by.sign(payload))

    about = [
        {"record": records[0].id},
        {"record": records[1].id},
        {"statement": leaf},
        {"statement": second.statement.leaf_hash.hex()},
        {"deployment": ledger.digest},
    ]
    for each in about:
        say(Evaluation(evaluator="e", metrics=ONE, **each, **issuer.chain()))
    # The record's id as words: it is in the bytes, but it is not what was evaluated.
    say(Evaluation(evaluator=records[0].id, metrics=ONE, record=records[1].id, **issuer.chain()))
    for digest, figures in (
        (right, {"energy": energy}),
        ("00" * 32, {"carbon_ng": 1}),
        (right, {"water_nl": 2}),
    ):
        say(Correction(record=records[0].id, record_hash=digest, reason="r", **figures, **issuer.chain()))

    found = found_of(ledger, records[0].id)
    assert found.is_whole
    targets = [each.statement.subject.rpartition(":")[2] for each in found.evaluations]
    assert targets == [records[0].id, leaf, ledger.digest]
    assert [each.statement.payload.record_hash for each in found.corrections] == [right, right]  # type: ignore[union-attr]
    assert found.restated.changed == ("energy", "water_nl")
    assert (found.restated.record.energy, found.restated.record.water_nl) == (energy, 2)
    assert found.restated.logged == records[0]
    other = found_of(ledger, records[4].id)
    assert (other.corrections, other.restated.changed) == ((), ())
    assert [each.statement.subject.rpartition(":")[2] for each in other.evaluations] == [
        second.statement.leaf_hash.hex(),
        ledger.digest,
    ]


def test_a_bound_that_is_met_is_told(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer, records = ledger.issuer, make_records(1, ledger.digest)
    ledger.append(issuer.batch(records))
    for _ in range(4):
        ledger.append(
            issuer.sign(Evaluation(evaluator="e", metrics=ONE, record=records[0].id, **issuer.chain()))
        )
    ledger.append(issuer.deployment(make_deployment(model="other")))
    assert found_of(ledger, records[0].id).is_whole
    monkeypatch.setattr(later, "MAX_FOUND", 3)
    found = found_of(ledger, records[0].id)
    assert (len(found.evaluations), found.is_whole) == (3, False)


def test_the_index_is_used(ledger: Ledger) -> None:
    from sqlalchemy import text

    name = ledger.store.engine.dialect.name
    explain, mark = {"sqlite": ("EXPLAIN QUERY PLAN", "x'74'"), "postgresql": ("EXPLAIN", "'t'::bytea")}[name]
    subject = later.SUBJECT_SQL[name]
    with ledger.store.read() as connection:
        if name == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # the table is small
            connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        plan = connection.execute(
            text(
                f"{explain} SELECT leaf_index, entry FROM statement "
                f"WHERE kind IN ('correction', 'evaluation') AND {subject} >= {mark} LIMIT 5"
            )
        ).all()
    assert "ix_statement_later" in str(plan)


def test_every_kind_of_statement_can_be_indexed(ledger: Ledger) -> None:
    """The expression takes whatever entry there is, and of these kinds the whole subject."""
    from sqlalchemy import text

    issuer, records = ledger.issuer, make_records(1, ledger.digest)
    ledger.append(issuer.batch(records), issuer.heartbeat())
    said = issuer.sign(Evaluation(evaluator="e", metrics=ONE, deployment=ledger.digest, **issuer.chain()))
    ledger.append(said)
    subject = later.SUBJECT_SQL[ledger.store.engine.dialect.name]
    with ledger.store.read() as connection:
        found = connection.execute(text(f"SELECT kind, {subject} FROM statement ORDER BY leaf_index")).all()
    assert bytes(found[-1][1]) == said.subject.encode()
    assert all(bytes(each).startswith(b"tallystick:") for _, each in found)


def test_a_database_without_the_index_is_told(ledger: Ledger) -> None:
    from sqlalchemy import text

    from ledger.store.upgrade import differences

    assert differences(ledger.store) == []
    with ledger.store.write() as connection:
        connection.execute(text("DROP INDEX ix_statement_later"))
    assert differences(ledger.store) == ["add index: ix_statement_later"]
