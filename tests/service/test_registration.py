"""Registering statements: receipts that verify, resends, compression, many writers at once."""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from ledger import zstd
from ledger.core import cose, receipts
from ledger.core import statements as st
from ledger.core.checkpoint import open_checkpoint
from ledger.core.note import parse_vkey
from ledger.service import create_api_key, create_app
from ledger.store import queries
from tests.build import Issuer, Ledger, batch_body, make_factor_set, make_price_book, make_records
from tests.service.conftest import BATCH, COSE, Harness


def check_receipt(h: Harness, data: bytes, statement: st.SignedStatement) -> receipts.Receipt:
    receipt = receipts.decode_receipt(data)
    receipts.verify_receipt(receipt, statement.leaf_hash, h.ledger.log_key.public, subject=statement.subject)
    return receipt


def test_batch_gets_a_receipt_that_verifies(harness: Harness) -> None:
    batch = harness.issuer.batch(make_records(5, harness.ledger.digest))
    answer = harness.send(batch)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == COSE
    assert answer.headers["location"] == "/entries/3"
    receipt = check_receipt(harness, answer.content, batch.statement)
    assert (receipt.leaf_index, receipt.tree_size) == (3, 4)
    # The checkpoint that everybody sees covers it already.
    vkey = parse_vkey(harness.get("/log", None).json()["vkey"])
    assert open_checkpoint(harness.get("/checkpoint", None).content, vkey).size == 4


def test_resend_gives_the_same_receipt_and_changes_nothing(harness: Harness) -> None:
    batch = harness.issuer.batch(make_records(5, harness.ledger.digest))
    first = harness.send(batch)
    assert harness.send(harness.issuer.heartbeat()).status_code == 201
    before = harness.everything()
    again = harness.send(batch)
    assert again.status_code == 200
    assert again.content == first.content
    assert again.headers["location"] == first.headers["location"]
    assert harness.everything() == before


def test_resend_still_works_after_the_key_was_revoked(harness: Harness) -> None:
    batch = harness.issuer.batch(make_records(5, harness.ledger.digest))
    first = harness.send(batch)
    kid = harness.issuer.key.public.kid.hex()
    harness.post(f"/issuers/{harness.issuer.name}/keys/{kid}/revoke", b"", "application/json", "admin")
    again = harness.send(batch)
    assert (again.status_code, again.content) == (200, first.content)


def test_compressed_batch_is_the_same_batch(harness: Harness) -> None:
    batch = harness.issuer.batch(make_records(50, harness.ledger.digest))
    packed = harness.post("/batches", zstd.compress(batch.body), BATCH, **{"Content-Encoding": "zstd"})
    assert packed.status_code == 201
    plain = harness.send(batch)
    assert (plain.status_code, plain.content) == (200, packed.content)
    assert harness.get("/entries/3/records").content == batch.lines


def test_chunked_body_is_read(harness: Harness) -> None:
    batch = harness.issuer.batch(make_records(5, harness.ledger.digest))
    pieces = (batch.body[i : i + 1000] for i in range(0, len(batch.body), 1000))
    headers = harness.headers("emit", **{"Content-Type": BATCH})
    assert harness.client.post("/batches", content=pieces, headers=headers).status_code == 201


def test_chunked_body_is_cut_at_the_limit(harness: Harness) -> None:
    sent = 0

    def pieces() -> object:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield bytes(100_000)

    headers = harness.headers("emit", **{"Content-Type": BATCH})
    answer = harness.client.post("/batches", content=pieces(), headers=headers)
    assert answer.json()["type"] == "/problems/body-too-large"
    assert harness.client.app.state.service.budget.taken == 0


def test_decompressed_size_is_bounded_too(harness: Harness) -> None:
    batch = harness.issuer.batch(make_records(st.MAX_BATCH_RECORDS, harness.ledger.digest))
    packed = zstd.compress(batch.body)
    assert len(packed) < 1_000_000 < 2_000_000 < len(batch.body)
    answer = harness.post("/batches", packed, BATCH, **{"Content-Encoding": "zstd"})
    assert answer.json()["type"] == "/problems/compressed-bomb"


def test_largest_batch(ledger: Ledger) -> None:
    token = create_api_key(ledger.store, "gpu", ["emit", "read"])
    batch = ledger.issuer.batch(make_records(st.MAX_BATCH_RECORDS, ledger.digest))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": BATCH}
    with TestClient(create_app(ledger.store, ledger.log_key)) as client:
        assert client.post("/batches", content=batch.body, headers=headers).status_code == 201
        assert client.get("/entries/3/records", headers=headers).content == batch.lines


def test_statements_of_every_other_kind(harness: Harness) -> None:
    issuer = harness.issuer
    batch = harness.log_batch()
    record = make_records(1, harness.ledger.digest)[0]
    leaf = batch.statement.leaf_hash.hex()
    payloads = [
        st.FactorsStatement(factors=make_factor_set(), **issuer.chain()),
        lambda: st.PricesStatement(prices=make_price_book(), **issuer.chain()),
        lambda: st.Heartbeat(dropped=2, **issuer.chain()),
        lambda: st.Evaluation(
            evaluator="judge",
            metrics={"faithfulness": {"value": 93, "scale": 2}},
            record=record.id,
            **issuer.chain(),
        ),
        lambda: st.Correction(
            record=record.id, record_hash="ab" * 32, reason="meter fault", carbon_ng=1, **issuer.chain()
        ),
        lambda: st.Acknowledgement(statement=leaf, receipt="cd" * 32, **issuer.chain()),
        lambda: st.Erasure(statement=leaf, positions=(0,), rule="GDPR Art. 17", **issuer.chain()),
    ]
    for n, payload in enumerate(payloads):
        statement = issuer.sign(payload() if callable(payload) else payload)
        answer = harness.send(statement)
        assert answer.status_code == 201, answer.content
        assert answer.headers["location"] == f"/entries/{n + 4}"
        check_receipt(harness, answer.content, statement)


def test_many_writers_at_once(harness: Harness) -> None:
    writers = [Issuer(name=f"gpu-{n}.example.com") for n in range(6)]
    for writer in writers:
        body = {"issuer": writer.name, "public_key_pem": writer.key.public.to_pem().decode()}
        answer = harness.client.post("/issuers", json=body, headers=harness.headers("admin"))
        assert answer.status_code == 201

    def write(writer: Issuer) -> list[int]:
        places = []
        for n in range(8):
            batch = writer.batch(make_records(4, harness.ledger.digest, first=4 * n, salt=writer.name))
            answer = harness.send(batch)
            assert answer.status_code == 201, answer.content
            places.append(check_receipt(harness, answer.content, batch.statement).leaf_index)
        return places

    with ThreadPoolExecutor(len(writers)) as pool:
        places = list(pool.map(write, writers))
    assert all(each == sorted(each) for each in places)
    assert sorted(place for each in places for place in each) == list(range(9, 9 + 48))
    with harness.ledger.store.read() as connection:
        assert queries.statement_count(connection) == 57


def test_entry_with_a_lost_answer_is_found_by_its_hash(harness: Harness) -> None:
    statement = harness.issuer.heartbeat()
    receipt = harness.send(statement).content
    found = harness.get(f"/entries/{statement.leaf_hash.hex()}", "emit")
    assert (found.status_code, found.content) == (200, receipt)


def test_busy_service_asks_to_come_back(harness: Harness) -> None:
    budget = harness.client.app.state.service.budget
    budget.take(budget.total)
    try:
        answer = harness.send(harness.issuer.batch(make_records(1, harness.ledger.digest), advance=False))
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/overloaded"
        assert int(answer.headers["retry-after"]) > 0
    finally:
        budget.give(budget.total)
    harness.log_batch()


def test_statement_of_a_batch_must_be_bytes(harness: Harness) -> None:
    answer = harness.post("/batches", cose.encode_cbor([None, b""]), BATCH)
    assert answer.json()["type"] == "/problems/malformed-batch"


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257])
def test_batches_of_any_size(harness: Harness, count: int) -> None:
    batch = harness.log_batch(count)
    assert harness.get("/entries/3/records").content == batch.lines
    assert harness.post("/batches", batch_body(batch.statement.entry, batch.lines), BATCH).status_code == 200


def test_cancelled_request_does_not_harm_the_sequencer(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = create_api_key(ledger.store, "gpu", ["emit"])
    headers = {"Authorization": f"Bearer {token}", "Content-Type": BATCH}
    app = create_app(ledger.store, ledger.log_key)
    sequencer = app.state.service.sequencer
    entered, go_on = threading.Event(), threading.Event()
    transact = sequencer._transact

    def slow(items: Any) -> Any:
        entered.set()
        go_on.wait(10)
        return transact(items)

    monkeypatch.setattr(sequencer, "_transact", slow)
    first = ledger.issuer.batch(make_records(3, ledger.digest))
    second = ledger.issuer.batch(make_records(3, ledger.digest, first=10))

    async def run() -> int:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            post = functools.partial(client.post, "http://log/batches", headers=headers, timeout=20)
            doomed = asyncio.create_task(post(content=first.body))
            await asyncio.to_thread(entered.wait, 10)
            doomed.cancel()
            await asyncio.gather(doomed, return_exceptions=True)
            assert doomed.cancelled()
            assert app.state.service.budget.taken == 0
            go_on.set()
            # The first was logged all the same, and the sequencer lives.
            assert (await post(content=second.body)).status_code == 201
            return int((await post(content=first.body)).status_code)

    assert asyncio.run(run()) == 200
