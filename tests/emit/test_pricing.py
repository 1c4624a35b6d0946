"""Recorders that give records a cost: exact, by a book that their batch names and their chain published."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from ledger.core.errors import InvalidError
from ledger.core.price_books import PriceBook, Rate
from ledger.core.records import Usage, document_digest
from ledger.core.statements import Batch, PricesStatement
from ledger.emit import Recorder
from ledger.emit.spool import Spool
from tests.build import make_deployment, make_price_book
from tests.emit.conftest import MakeRecorder
from tests.emit.ledger_double import LedgerDouble

USAGE = Usage(input_tokens=1_000_003, cached_input_tokens=3, output_tokens=7)
COST_NANO = 150_004_313
"""(1,000,000 * 150,000,000 + 3 * 37,500,000 + 7 * 600,000,001) / 1,000,000 = 150,004,312.500007."""


def record(recorder: Recorder, **fields: object) -> str:
    now = time.time_ns() // 1000
    return recorder.record(**({"usage": USAGE, "started_us": now - 9, "ended_us": now} | fields))  # type: ignore[arg-type]


def batches(double: LedgerDouble) -> list[Batch]:
    return [each.payload for each in double.statements if isinstance(each.payload, Batch)]


def books(double: LedgerDouble) -> list[PriceBook]:
    return [each.payload.prices for each in double.statements if isinstance(each.payload, PricesStatement)]


def test_records_get_their_cost_and_the_book_is_published_once(
    double: LedgerDouble, make_recorder: MakeRecorder
) -> None:
    book = make_price_book()
    recorder = make_recorder(double, prices=book)
    first = record(recorder)
    assert recorder.flush(20)
    second = record(recorder)
    assert recorder.flush(20)
    assert books(double) == [book]
    for id in (first, second):
        assert (double.records[id].cost_nano, double.records[id].currency) == (COST_NANO, "EUR")
    assert [batch.prices for batch in batches(double)] == [(document_digest(book),)] * 2


def test_what_the_caller_states_stays_and_names_no_book(
    double: LedgerDouble, make_recorder: MakeRecorder
) -> None:
    recorder = make_recorder(double, prices=make_price_book())
    stated = record(recorder, cost_nano=5, currency="USD")
    unknown = record(recorder, deployment=make_deployment(model="another"))
    assert recorder.flush(20)
    assert (double.records[stated].cost_nano, double.records[stated].currency) == (5, "USD")
    assert double.records[unknown].cost_nano is msgspec.UNSET
    assert books(double) == []
    assert all(batch.prices is msgspec.UNSET for batch in batches(double))


def test_a_book_holds_in_its_period_only(double: LedgerDouble, make_recorder: MakeRecorder) -> None:
    hour = 3_600_000_000
    now = time.time_ns() // 1000
    old = make_price_book(version="old", valid_until_us=now - hour)
    new = make_price_book(
        version="new",
        valid_from_us=now - hour,
        rates=(Rate(model="SmolLM2-135M-Instruct", input_nano_per_mtok=0, output_nano_per_mtok=1_000_000),),
    )
    future = make_price_book(version="future", valid_from_us=now + hour)
    recorder = make_recorder(double, prices=[future, old, new])
    before = record(recorder, started_us=now - 2 * hour, ended_us=now)
    after = record(recorder)
    assert recorder.flush(20)
    assert double.records[before].cost_nano == COST_NANO
    assert double.records[after].cost_nano == 7
    assert {book.version for book in books(double)} == {"old", "new"}


def test_files_are_read_anew_and_a_broken_one_changes_nothing(
    double: LedgerDouble, make_recorder: MakeRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prices.json"

    def write(text: bytes) -> None:
        (tmp_path / "new").write_bytes(text)
        os.replace(tmp_path / "new", path)

    def cost(recorder: Recorder) -> object:
        id = record(recorder)
        assert recorder.flush(20)
        return double.records[id].cost_nano

    write(msgspec.json.encode(make_price_book()))
    monkeypatch.setenv("TALLYSTICK_PRICES", str(path))
    recorder = make_recorder(double)
    assert cost(recorder) == COST_NANO
    write(b"{")
    assert cost(recorder) == COST_NANO
    write(
        msgspec.json.encode(
            make_price_book(
                rates=(
                    Rate(model="x", aliases=("Smol*",), input_nano_per_mtok=0, output_nano_per_mtok=10**6),
                )
            )
        )
    )
    assert cost(recorder) == 7
    path.unlink()
    assert cost(recorder) == 7


@pytest.mark.parametrize(
    "prices",
    [
        make_price_book(rates=()),
        make_price_book(valid_from_us=2, valid_until_us=1),
        "/nowhere/prices.json",
        make_price_book(
            rates=tuple(
                Rate(model=f"model-{n:04d}", input_nano_per_mtok=1, output_nano_per_mtok=1)
                for n in range(1200)
            )
        ),
    ],
    ids=["empty", "inconsistent", "missing", "too large"],
)
def test_unusable_prices_are_refused_at_once(make_recorder: MakeRecorder, prices: object) -> None:
    with pytest.raises(InvalidError):
        make_recorder(prices=prices)


def test_a_wrong_usage_costs_only_its_record(double: LedgerDouble, make_recorder: MakeRecorder) -> None:
    recorder = make_recorder(double, prices=make_price_book())
    record(recorder, usage="none")
    record(recorder, usage=Usage(input_tokens="1", output_tokens=1))  # type: ignore[arg-type]
    good = record(recorder)
    assert recorder.flush(20)
    assert list(double.records) == [good]
    assert recorder.status().dropped == 2


def test_a_forked_child_charges_by_what_its_parent_read(
    make_recorder: MakeRecorder, spool_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prices.json"
    path.write_bytes(msgspec.json.encode(make_price_book()))
    recorder = make_recorder(prices=path)
    path.unlink()
    child = os.fork()
    if not child:
        record(recorder)
        os._exit(0 if recorder.close(20) else 1)
    assert os.waitpid(child, 0)[1] == 0
    spool = Spool(spool_dir)
    payloads = [spool.load(seq).statement.payload for seq in spool.waiting()]
    (batch,) = (each for each in payloads if isinstance(each, Batch))
    assert batch.prices == (document_digest(make_price_book()),)
