"""The fast path over a block of records: the same bytes and the same verdict as record by record."""

from __future__ import annotations

import random

import msgspec
import pytest

from ledger.core import records as r
from ledger.core.canonical import decode_canonical, encode_canonical
from ledger.core.errors import InvalidError
from tests.build import make_record

DEPLOYMENT = "0f" * 32
WRONG = {
    "id": ["0198c0de-0000-4000-8000-000000000000", "0198C0DE-0000-7000-8000-000000000000", "g" * 36],
    "deployment": ["0F" * 32, "é" * 64, " " * 64],
    "factors": ["0F" * 32],
    "request": ["zz" * 32],
    "tenant": ["a b", "-x", "é"],
    "finish_reason": ["Stop", "1", "_"],
    "parent": ["0198c0de-0000-4000-8000-000000000000"],
    "started_us": [2**52],
    "first_token_us": [0, 2**53 - 1],
    "ended_us": [0],
    "cost_nano": [1],
    "currency": ["EUR"],
    "input": [r.Commitment(digest="0G" * 32, of="tokens")],
    "output": [r.Commitment(digest="0F" * 32, of="text")],
    "usage": [r.Usage(input_tokens=1, output_tokens=1, cached_input_tokens=2)],
    "energy": [
        r.Energy(energy_uj=5, method="measured", source="x", low_uj=6),
        r.Energy(energy_uj=5, method="measured", source="x", high_uj=4),
    ],
}


@pytest.mark.parametrize("kind", [r.Record, r.Usage, r.Commitment, r.Energy, r.Quality])
def test_fields_are_declared_in_canonical_order(kind: type[msgspec.Struct]) -> None:
    names = [field.name for field in msgspec.structs.fields(kind)]
    assert names == sorted(names)


def test_encoding_is_canonical() -> None:
    record = make_record(
        DEPLOYMENT, quality={"b": r.Quality(value=-1, scale=2), "a": r.Quality(value=1, scale=0)}
    )
    data = r.encode_record(record)
    assert data == encode_canonical(record)
    assert decode_canonical(data, msgspec.json.Decoder(r.Record)) == record


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_block_refuses_what_a_record_alone_is_refused_for(name: str, value: object) -> None:
    good = [make_record(DEPLOYMENT, n=n) for n in range(9)]
    at = random.Random(f"{name}{value}").randrange(9)
    bad = [*good[:at], msgspec.structs.replace(good[at], **{name: value}), *good[at:]]
    with pytest.raises(InvalidError) as alone:
        r.decode_record(r.encode_record(bad[at]), where=f"records[{at}]")
    with pytest.raises(InvalidError) as block:
        r.decode_record_lines(r.encode_record_lines(bad))
    assert str(block.value) == str(alone.value)
    assert not r._forms_hold(bad)
    assert r._forms_hold(good)
