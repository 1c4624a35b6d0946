from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from ledger import zstd
from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.cose import decode_cbor, encode_cbor
from ledger.core.keys import generate_key
from ledger.core.merkle import root
from ledger.core.records import Energy, Record, Usage, encode_record, encode_record_lines, record_hash
from ledger.core.statements import sign_statement, sum_records
from ledger.emit.compose import Composed
from ledger.emit.head import Head
from ledger.emit.seal import Block, _byte_string_head, batch_body, batch_payload
from tests.build import make_deployment, make_record, make_records

DEPLOYMENT = make_deployment()
HEAD = Head(issuer="tests.example", next_seq=4, last_leaf="ab" * 32, dropped=3)


def composed(record: Record, **deployment: Any) -> Composed:
    return Composed(record, encode_record(record), make_deployment(**deployment))


amounts = st.none() | st.integers(0, 10**6) | st.integers(MAX_SAFE_INTEGER // 3, MAX_SAFE_INTEGER)


@st.composite
def records(draw: st.DrawFn, n: int = 0) -> Record:
    figures = {
        name: UNSET if (value := draw(amounts)) is None else value
        for name in ("carbon_ng", "carbon_market_ng", "embodied_ng", "water_nl")
    }
    reasoning = draw(amounts)
    energy = draw(amounts)
    return make_record(
        DEPLOYMENT,
        n=draw(st.integers(0, 10**6)),
        usage=Usage(
            input_tokens=draw(st.integers(0, MAX_SAFE_INTEGER)),
            output_tokens=draw(st.integers(0, 1000)),
            reasoning_tokens=UNSET if reasoning is None else reasoning,
        ),
        energy=UNSET if energy is None else Energy(energy_uj=energy, method="measured", source="x"),
        **figures,
    )


@settings(max_examples=200)
@given(st.lists(records(), min_size=1, max_size=12))
def test_blocks_say_what_the_records_say_and_split_where_a_sum_would_overflow(given: list[Record]) -> None:
    whole = Block(4096)
    for record in given:
        assert whole.add(composed(record))
    blocks = [whole]
    at = 0
    while at < len(blocks):
        if pieces := blocks[at].pieces():
            assert [len(each) > 0 for each in pieces] == [True, True]
            blocks[at : at + 1] = pieces
        else:
            at += 1
    assert sum(map(len, blocks)) == len(given)
    for block in blocks:
        inside, given = given[: len(block)], given[len(block) :]
        payload = batch_payload(block, HEAD, 1_760_000_000_000_000)
        lines = [encode_record(record) for record in inside]
        assert payload.totals == sum_records(inside)
        assert payload.root == root([record_hash(line) for line in lines]).hex()
        assert payload.count == len(inside)
        assert payload.first_us == min(r.started_us for r in inside)
        assert payload.last_us == max(r.ended_us for r in inside)
        assert (payload.seq, payload.prev, payload.dropped) == (4, "ab" * 32, 3)
        statement = sign_statement(payload, issuer="tests.example", key=KEY)
        plain = zstd.decompress_bounded(batch_body(statement, block), 1 << 20)
        assert plain is not None
        assert decode_cbor(plain, where="body") == [statement.entry, encode_record_lines(inside)]


KEY = generate_key()


def test_a_block_takes_no_more_than_its_count() -> None:
    block = Block(3)
    added = [block.add(composed(record)) for record in make_records(5, DEPLOYMENT)]
    assert added == [True, True, True, False, False]
    assert len(block) == len(block.ids) == len(block.hashes) == 3


def test_a_block_that_was_summed_takes_no_more() -> None:
    block = Block(4096)
    first, second = make_records(2, DEPLOYMENT)
    assert block.add(composed(first))
    assert block.pieces() == []
    assert not block.add(composed(second))
    assert batch_payload(block, HEAD, 1_760_000_000_000_000).totals == sum_records([first])


def test_a_block_takes_no_more_bytes_than_the_ledger(monkeypatch) -> None:
    monkeypatch.setattr("ledger.emit.seal.MAX_BLOCK_BYTES", 2000)
    block = Block(4096)
    while block.add(composed(make_record(DEPLOYMENT, n=len(block)))):
        pass
    assert 0 < sum(map(len, block.lines)) <= 2000


def test_a_block_takes_no_more_documents_than_a_statement_can_name() -> None:
    block = Block(4096)
    for n in range(300):
        deployment = make_deployment(model=f"m{n}")
        if not block.add(composed(make_record(deployment, n=n), model=f"m{n}")):
            break
    assert len(block) == 256
    assert block.add(composed(make_record(make_deployment(model="m5"), n=999), model="m5"))
    sign_statement(batch_payload(block, HEAD, 1_760_000_000_000_000), issuer="x", key=KEY)


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65_535, 65_536, 70_000])
def test_byte_strings_have_the_shortest_head(size: int) -> None:
    assert _byte_string_head(size) + bytes(size) == encode_cbor(bytes(size))
