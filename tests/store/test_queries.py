"""Queries: filters, pages and roll-ups agree with a plain fold over all records."""

from __future__ import annotations

import itertools
import random

import pytest
from msgspec import UNSET

from ledger import zstd
from ledger.core import merkle
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.records import Energy, Usage, document_digest
from ledger.store import queries
from ledger.store.queries import RecordFilter
from ledger.store.queries._records import split_block
from tests.build import HOUR_US, ISSUER, START_US, Issuer, make_deployment, make_record
from tests.store.conftest import World

SMALL, LARGE = make_deployment(), make_deployment(model="Large", version="1")


@pytest.fixture
def logged(world: World) -> list[tuple[str, object]]:
    """300 records of two issuers, two models, three tenants, over two days."""
    chance = random.Random(7)
    other = Issuer("gpu-8.example.com/llama")
    world.sequencer.add_key(other.name, other.key.public).result()
    world.log(world.issuer.deployment(LARGE))
    records = []
    for n in range(300):
        optional = {
            "carbon_ng": n * 1000 if n % 3 else UNSET,
            "energy": [UNSET, Energy(energy_uj=n, method="measured", source="x")][n % 2],
            "usage": Usage(
                input_tokens=n, output_tokens=2 * n, **({"reasoning_tokens": 1} if n % 5 == 0 else {})
            ),
            "tenant": [UNSET, "a", "b"][chance.randrange(3)],
        }
        record = make_record(
            chance.choice([SMALL, LARGE]),
            n=n,
            started_us=START_US + chance.randrange(48 * HOUR_US),
            **optional,
        )
        records.append((other if n // 12 % 3 == 1 else world.issuer, record))
    result = []
    for issuer, group in itertools.groupby(records, key=lambda pair: pair[0]):
        batch = [record for _, record in group]
        world.log(issuer.batch(batch))
        result += [(issuer.name, record) for record in batch]
    return result


FILTERS = [
    RecordFilter(),
    RecordFilter(tenant="a"),
    RecordFilter(model="Large"),
    RecordFilter(model="Large", tenant="b", issuer=ISSUER),
    RecordFilter(deployment=document_digest(SMALL), from_us=START_US + 20 * HOUR_US),
    RecordFilter(
        from_us=START_US + 5 * HOUR_US, to_us=START_US + 30 * HOUR_US, issuer="gpu-8.example.com/llama"
    ),
    RecordFilter(model="no such model"),
    RecordFilter(model="Large", deployment=document_digest(SMALL)),
]


def expected(logged: list, wanted: RecordFilter) -> list:
    digests = {document_digest(d): d.model for d in (SMALL, LARGE)}
    return [
        record
        for issuer, record in logged
        if (wanted.from_us is None or record.started_us >= wanted.from_us)
        and (wanted.to_us is None or record.started_us < wanted.to_us)
        and (wanted.tenant is None or record.tenant == wanted.tenant)
        and (wanted.issuer is None or issuer == wanted.issuer)
        and (wanted.deployment is None or record.deployment == wanted.deployment)
        and (wanted.model is None or digests[record.deployment] == wanted.model)
    ]


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_pages_together_are_what_a_fold_finds(
    world: World, logged: list, wanted: RecordFilter, limit: int
) -> None:
    found, after = [], None
    with world.store.read() as connection:
        for _ in range(1000):
            page, after = queries.records(connection, wanted, after=after, limit=limit)
            assert len(page) <= limit
            found += [each.record for each in page]
            if after is None:
                break
    assert found == expected(logged, wanted)
    if wanted == RecordFilter():
        assert len(found) == 300


@pytest.mark.parametrize(
    "by", [["day"], ["hour", "tenant"], ["model"], ["tenant", "model", "day"], ["deployment"]]
)
@pytest.mark.parametrize(
    "conditions", [{}, {"tenant": "a"}, {"model": "Large", "from_us": START_US + 10 * HOUR_US}]
)
def test_rollups_are_what_a_fold_sums(world: World, logged: list, by: list[str], conditions: dict) -> None:
    models = {document_digest(d): d.model for d in (SMALL, LARGE)}
    groups: dict[tuple, dict[str, int]] = {}
    for record in expected(logged, RecordFilter(**conditions)):
        values = {
            "hour": record.started_us // HOUR_US * 3600,
            "day": record.started_us // (24 * HOUR_US) * 86_400,
            "model": models[record.deployment],
            "deployment": record.deployment,
            "tenant": "" if record.tenant is UNSET else record.tenant,
        }
        sums = groups.setdefault(tuple(values[name] for name in by), {})
        for name, value in {
            "records": 1,
            "input_tokens": record.usage.input_tokens,
            "output_tokens": record.usage.output_tokens,
            "reasoning_tokens": record.usage.reasoning_tokens,
            "energy_uj": UNSET if record.energy is UNSET else record.energy.energy_uj,
            "carbon_ng": record.carbon_ng,
            "water_nl": record.water_nl,
        }.items():
            if value is not UNSET:
                sums[name] = sums.get(name, 0) + value
    with world.store.read() as connection:
        rows = queries.rollups(connection, by, **conditions)
    assert [tuple(row[name] for name in by) for row in rows] == sorted(groups)
    names = (
        "records",
        "input_tokens",
        "output_tokens",
        "reasoning_tokens",
        "energy_uj",
        "carbon_ng",
        "water_nl",
    )
    for row in rows:
        got = {name: row[name] for name in names if name in row}
        assert got == groups[tuple(row[name] for name in by)]


def test_rollups_refuse_what_they_cannot_answer(world: World) -> None:
    with world.store.read() as connection:
        for bad in ({"by": ["colour"]}, {"by": ["day"], "from_us": START_US + 1}):
            with pytest.raises(InvalidError) as caught:
                queries.rollups(connection, **bad)
            assert caught.value.code == "bad-parameter"


def test_each_record_is_found_by_id_and_proven(world: World, logged: list) -> None:
    with world.store.read() as connection:
        for _, record in logged[::17]:
            proof = queries.record_proof(connection, record.id)
            assert proof.found.record == record
            batch = queries.statement(connection, proof.found.leaf_index).payload
            merkle.verify_inclusion(
                merkle.leaf_hash(proof.found.line),
                proof.found.position,
                batch.count,
                list(proof.path),
                bytes.fromhex(batch.root),
            )
        for bad in ("", "x" * 36, "0199a5b2-1c2d-7000-8000-000000000000"):
            with pytest.raises(InvalidError):
                queries.record_by_id(connection, bad)


def test_entries_are_named_by_index_or_hash(world: World, logged: list) -> None:
    with world.store.read() as connection:
        leaf = queries.statement(connection, 2).leaf_hash
        assert queries.resolve_entry(connection, "2") == queries.resolve_entry(connection, leaf.hex()) == 2
        for bad in ("-1", "1e3", "999999", "²", "0" * 64, "g" * 64, ""):
            with pytest.raises(InvalidError):
                queries.resolve_entry(connection, bad)


def test_a_block_of_more_lines_than_a_batch_has_is_damaged() -> None:
    assert split_block(zstd.compress(b"\n" * 4096), 3) == [b""] * 4096
    with pytest.raises(CorruptError, match="damaged"):
        split_block(zstd.compress(b"\n" * 4097), 3)
