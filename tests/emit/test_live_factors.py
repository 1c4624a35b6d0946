"""A recorder whose factor set changes while it runs: each record names the one that it was computed with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledger import zstd
from ledger.core.cose import decode_cbor
from ledger.core.records import (
    Deployment,
    Energy,
    FactorSet,
    FactorSource,
    Record,
    Usage,
    decode_record_lines,
    document_digest,
)
from ledger.core.statements import Batch, FactorsStatement, Payload
from ledger.emit import Recorder
from ledger.emit.spool import Spool
from ledger.energy.factors import figures

DEPLOYMENT = Deployment(model="m", engine="test")
ENERGY = Energy(energy_uj=3_600_000_000, method="measured", source="meter")


def sealed(directory: Path) -> Iterator[tuple[Payload, list[Record]]]:
    """Each statement that waits in the spool, and the records of a batch."""
    spool = Spool(directory)
    for seq in spool.waiting():
        found = spool.load(seq)
        payload = found.statement.payload
        if isinstance(payload, Batch):
            plain = zstd.decompress_bounded(found.body, 1 << 20)
            yield payload, decode_record_lines(decode_cbor(plain, where="body")[1])[0]
        else:
            yield payload, []


def set_of(grams: int) -> FactorSet:
    return FactorSet(
        name="live",
        version=str(grams),
        pue_milli=1000,
        intensity_ug_per_kwh=grams * 10**6,
        sources=(FactorSource(factor="all", source="test"),),
    )


class Provider:
    def __init__(self) -> None:
        self.now = set_of(100)
        self.broken = False

    def current(self) -> FactorSet:
        if self.broken:
            raise RuntimeError("provider is broken")
        return self.now


def record(recorder: Recorder) -> str:
    now = time.time_ns() // 1000
    return recorder.record(
        usage=Usage(input_tokens=1, output_tokens=1), started_us=now - 10, ended_us=now, energy=ENERGY
    )


@pytest.mark.parametrize("as_function", [False, True])
def test_records_name_the_factors_of_their_time(
    tmp_path: Path, as_function: bool, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider()
    given = provider.current if as_function else provider
    expected: dict[str, FactorSet] = {}
    with Recorder(spool=tmp_path, deployment=DEPLOYMENT, factors=given, max_age_s=30) as recorder:
        for grams in (100, 200, 200, 300, 100):
            provider.now = set_of(grams)
            expected[record(recorder)] = provider.now
            assert recorder.sync()
        provider.broken = True
        expected[record(recorder)] = provider.now
        assert recorder.sync()
    assert "provider is broken" in caplog.text

    published: dict[str, FactorSet] = {}
    seen = {}
    for payload, records in sealed(tmp_path):
        if isinstance(payload, FactorsStatement):
            digest = document_digest(payload.factors)
            assert digest not in published, "published once"
            published[digest] = payload.factors
        elif isinstance(payload, Batch):
            assert set(payload.factors) == {each.factors for each in records}
            assert set(payload.factors) <= set(published), "before the batch that names them"
            seen |= {each.id: each for each in records}
    assert seen.keys() == expected.keys()
    for record_id, factors in expected.items():
        assert seen[record_id].factors == document_digest(factors)
        assert published[document_digest(factors)] == factors
        assert seen[record_id].carbon_ng == figures(ENERGY, factors, 0).carbon_ng
    assert len(published) == 3


def test_a_provider_that_gives_no_factor_set_costs_carbon_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = msgspec.structs.replace(set_of(1), pue_milli=1)
    with Recorder(spool=tmp_path, deployment=DEPLOYMENT, factors=lambda: bad) as recorder:
        record(recorder)
        assert recorder.sync()
        assert recorder.status().dropped == 0
    [made] = [each for _, records in sealed(tmp_path) for each in records]
    assert made.energy == ENERGY
    assert made.factors is msgspec.UNSET
    assert made.carbon_ng is msgspec.UNSET
    assert "provider of factor sets failed" in caplog.text
