"""The emitter against the real service: what it sends is accepted, logged and audited."""

from __future__ import annotations

import base64
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from ledger.audit import audit
from ledger.audit.database import SqliteSource
from ledger.core.keys import generate_key
from ledger.core.records import Energy, Quality, Usage, decode_record
from ledger.core.statements import Batch, Heartbeat, decode_statement
from ledger.energy.factors import default_factor_set
from ledger.energy.meters import ReplayMeter
from tests.build import make_deployment
from tests.emit.conftest import MakeRecorder, eventually, report
from tests.emit.real_service import RealService, running_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("ledger") / "data") as running:
        yield running


@pytest.mark.parametrize("algorithm", ["ed25519", "es256", "ml-dsa-44"])
def test_records_of_every_shape_arrive(
    service: RealService, make_recorder: MakeRecorder, algorithm: str
) -> None:
    recorder = make_recorder(
        issuer=f"tests.example/{algorithm}",
        key=generate_key(algorithm),
        factors=default_factor_set(embodied_ng_per_s=300),
        **service.options,
    )
    service.register(recorder)
    parent = recorder.record(**report())
    shapes = [
        {"input_ids": None, "output_ids": None, "tenant": None, "finish_reason": None},
        {"input_ids": None, "input_text": "What is the capital of France?", "output_text": "Paris."},
        {"tenant": "jane@example.com", "request_id": "req-1", "parent": parent},
        {"energy": Energy(energy_uj=5, method="measured", source="meter", low_uj=4, high_uj=9)},
        {"busy_us": 400_000, "quality": {"bleu": Quality(value=412, scale=3)}},
        {"cost_nano": 1200, "currency": "EUR", "deployment": make_deployment(model="other")},
        {"usage": Usage(input_tokens=9, output_tokens=5, cached_input_tokens=4, reasoning_tokens=2)},
        {"input_ids": list(range(70_000))},
    ]
    ids = [parent] + [recorder.record(**report(**each)) for each in shapes]
    assert recorder.flush(30), recorder.status()
    for record_id in ids:
        found = recorder.receipt_for(record_id)
        assert found is not None
        proof = service.get(f"/records/{record_id}/proof")
        assert base64.b64decode(proof["record"]) == found.record
        assert decode_record(found.record).id == record_id
        assert proof["position"] == found.position
        assert [bytes.fromhex(each) for each in proof["path"]] == list(found.path)
        assert base64.b64decode(proof["statement"]) == found.statement
    assert recorder.close()


def test_many_records_arrive_in_full_batches(service: RealService, make_recorder: MakeRecorder) -> None:
    recorder = make_recorder(issuer="tests.example/many", max_age_s=30.0, **service.options)
    service.register(recorder)
    for _ in range(10_000):
        recorder.record(**report())
    assert recorder.close(60), recorder.status()
    (issuer,) = [each for each in service.get("/issuers")["issuers"] if each["issuer"] == recorder.issuer]
    assert 4 <= issuer["next_seq"] <= 8
    assert recorder.status().dropped == 0


def test_measured_energy_adds_up_over_the_logged_chain(
    service: RealService, make_recorder: MakeRecorder
) -> None:
    """Records and what is nobody's, as the service logged them, sum to what the meter counted."""
    meter = ReplayMeter([(0, 0), (10**12, 10**14)], name="100 W", accuracy_milli=50)
    recorder = make_recorder(
        issuer="tests.example/metered", meter=meter, meter_window_s=0.05, heartbeat_s=0.2, **service.options
    )
    service.register(recorder)
    for _ in range(20):
        first, second = recorder.begin(), recorder.begin()
        time.sleep(0.02)
        recorder.record(**report(), id=first)
        recorder.record(**report(), id=second)
        time.sleep(0.01)
    time.sleep(0.5)  # nobody is active: heartbeats tell
    assert recorder.close(30), recorder.status()
    told = records = 0
    with closing(sqlite3.connect(service.folder / "ledger.db")) as database:
        entries = database.execute(
            "SELECT entry FROM statement WHERE issuer = ?", [recorder.issuer]
        ).fetchall()
    for (entry,) in entries:
        payload = decode_statement(entry).payload
        if isinstance(payload, Batch | Heartbeat):
            told += payload.unattributed_uj or 0
        if isinstance(payload, Batch):
            records += payload.totals.energy_uj or 0
    assert records > 0
    assert told > 0
    assert records + told == meter.total_uj


@pytest.mark.usefixtures("quick_retries")
def test_an_issuer_that_is_not_registered_waits_for_it(
    service: RealService, make_recorder: MakeRecorder
) -> None:
    recorder = make_recorder(issuer="tests.example/late", **service.options)
    recorder.record(**report())
    assert eventually(lambda: recorder.status().blocked)
    assert "unknown-issuer" in str(recorder.status().problem)
    service.register(recorder)
    assert recorder.flush(30), recorder.status()


@pytest.mark.usefixtures("quick_retries")
def test_a_wrong_api_key_blocks(service: RealService, make_recorder: MakeRecorder) -> None:
    recorder = make_recorder(issuer="tests.example/key", **(service.options | {"api_key": "wrong"}))
    recorder.record(**report())
    assert eventually(lambda: recorder.status().blocked)
    assert "401" in str(recorder.status().problem)


@pytest.mark.usefixtures("quick_retries")
def test_a_service_that_restarts_loses_nothing(service: RealService, make_recorder: MakeRecorder) -> None:
    recorder = make_recorder(issuer="tests.example/restart", **service.options)
    service.register(recorder)
    ids = []
    for number in range(60):
        ids.append(recorder.record(**report()))
        if number == 20:
            service.stop()
        if number == 40:
            service.start()
        time.sleep(0.005)
    assert recorder.close(30), recorder.status()
    for record_id in ids:
        assert service.get(f"/records/{record_id}")["record"]["id"] == record_id


def test_the_audit_finds_nothing(service: RealService) -> None:
    """Last, over all that the tests above sent."""
    vkey = (service.folder / "log.vkey").read_text().strip()
    report = audit(SqliteSource(service.folder / "ledger.db"), vkey)
    assert report.verdict == "sound", report.findings
