"""A statement leaves the spool for its verified receipt or not at all, whatever the ledger does."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from ledger.core.errors import InvalidError
from ledger.core.merkle import leaf_hash, root_from_inclusion
from ledger.core.note import COSIGNATURE_ED25519, VerifierKey, format_vkey
from ledger.core.receipts import decode_receipt, verify_receipt
from ledger.core.records import decode_record
from ledger.core.statements import Batch, decode_statement
from ledger.emit.client import Client
from ledger.emit.ids import RecordIds
from ledger.emit.sender import Sender, parse_log_key
from ledger.emit.spool import Spool
from tests.emit.conftest import MakeRecorder, eventually, report
from tests.emit.ledger_double import LedgerDouble


def test_records_arrive_and_the_spool_empties(
    double: LedgerDouble, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    recorder = make_recorder(double, max_age_s=5)  # one batch, however slow the machine
    ids = [recorder.record(**report()) for _ in range(50)]
    assert recorder.flush()
    assert list(double.records) == ids
    assert not Spool(spool_dir).waiting()
    status = recorder.status()
    assert (status.queued, status.spooled, status.dropped, status.problem) == (0, 0, 0, None)
    assert status.sent == len(double.statements) == 2  # the deployment, the batch
    assert recorder.close()
    assert double.dropped == 0


def test_a_receipt_proves_the_record_offline(double: LedgerDouble, make_recorder: MakeRecorder) -> None:
    recorder = make_recorder(double, max_age_s=5)  # one batch, however slow the machine
    ids = [recorder.record(**report()) for _ in range(11)]
    assert recorder.flush()
    for position, record_id in enumerate(ids):
        found = recorder.receipt_for(record_id, timeout_s=5)
        assert found is not None
        assert found.position == position
        assert decode_record(found.record).id == record_id
        statement = decode_statement(found.statement)
        assert isinstance(statement.payload, Batch)
        top = root_from_inclusion(
            leaf_hash(found.record), position, statement.payload.count, list(found.path)
        )
        assert top.hex() == statement.payload.root
        receipt = decode_receipt(found.receipt)
        assert receipt.leaf_index == found.leaf_index
        verify_receipt(receipt, statement.leaf_hash, double.log_key.public, subject=statement.subject)
    assert recorder.receipt_for(RecordIds().new()) is None
    assert recorder.receipt_for(RecordIds().new(), timeout_s=0.01) is None


def test_old_receipts_are_forgotten(double: LedgerDouble, make_recorder: MakeRecorder) -> None:
    recorder = make_recorder(double, keep_receipts=10, max_age_s=60.0)
    ids = []
    for _ in range(5):
        ids += [recorder.record(**report()) for _ in range(4)]
        assert recorder.flush()
    known = [recorder.receipt_for(each) is not None for each in ids]
    assert known == [False] * 12 + [True] * 8


@pytest.mark.parametrize(
    "fault", ["cut", "cut-after", "half", "garbage", "huge", "slow", "status-500", "status-503", "status-429"]
)
@pytest.mark.usefixtures("quick_retries")
def test_a_fault_that_passes_costs_nothing(
    double: LedgerDouble, make_recorder: MakeRecorder, fault: str
) -> None:
    double.fault = lambda number, path: fault if number < 3 else None
    recorder = make_recorder(double)
    ids = [recorder.record(**report()) for _ in range(20)]
    assert recorder.flush()
    assert list(double.records) == ids
    assert recorder.close()


@pytest.mark.usefixtures("quick_retries")
def test_faults_at_random_cost_nothing(double: LedgerDouble, make_recorder: MakeRecorder) -> None:
    faults = ["cut", "cut-after", "half", "garbage", "flip-40", "status-502", None, None]
    double.fault = lambda number, path: faults[hash((number, "x")) % len(faults)]
    recorder = make_recorder(double, max_records=7)
    ids = [recorder.record(**report()) for _ in range(200)]
    assert recorder.flush(30)
    assert list(double.records) == ids
    assert double.dropped == 0


@pytest.mark.usefixtures("quick_retries")
def test_no_changed_byte_of_a_receipt_deletes_anything(
    double: LedgerDouble, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    recorder = make_recorder(None)
    double.keys[recorder.issuer] = recorder.public_key
    recorder.record(**report())
    assert recorder.close()
    spool = Spool(spool_dir)
    sender = Sender(spool, Client(double.url, double.api_key), parse_log_key(double.vkey))
    double.fault = lambda number, path: "flip-0"
    first = sender.run_pass()
    assert first.sent == 0
    length = len(next(iter(double.receipts.values())))
    for at in range(length):
        double.fault = lambda number, path, at=at: f"flip-{at}"
        result = sender.run_pass()
        assert result.sent == 0, f"a receipt with byte {at} changed was believed"
        assert result.reason is not None
        assert "does not verify" in result.reason
        assert spool.waiting() == [0, 1]
    double.fault = lambda number, path: None
    assert sender.run_pass().sent == 2
    assert spool.waiting() == []


def test_a_receipt_by_another_log_blocks(
    double: LedgerDouble, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    with LedgerDouble() as other:
        recorder = make_recorder(double, log_key=other.vkey)
        recorder.record(**report())
        assert eventually(lambda: recorder.status().blocked)
        assert recorder.sync()
        assert not recorder.flush(0.1)
        status = recorder.status()
        assert "other-key" in str(status.problem) or "was signed by key" in str(status.problem)
        assert status.spooled == 2


def test_the_origin_of_the_log_counts(double: LedgerDouble, make_recorder: MakeRecorder) -> None:
    here = double.origin
    double.origin = "elsewhere.example/log"
    elsewhere = double.vkey  # the same key under another name
    double.origin = here
    recorder = make_recorder(double, log_key=elsewhere)
    recorder.record(**report())
    assert eventually(lambda: "not from 'elsewhere.example/log'" in str(recorder.status().problem))
    assert not recorder.flush(0.1)


@pytest.mark.usefixtures("quick_retries")
def test_a_refusal_blocks_until_somebody_acts(
    double: LedgerDouble, make_recorder: MakeRecorder, caplog
) -> None:
    double.open_to_all = False
    recorder = make_recorder(double)
    double.keys.clear()
    record_id = recorder.record(**report())
    assert eventually(lambda: recorder.status().blocked)
    assert "unknown-issuer" in str(recorder.status().problem)
    assert not recorder.flush(0.1)
    assert recorder.receipt_for(record_id) is None
    assert len([r for r in caplog.records if "unknown-issuer" in r.message]) == 1
    double.keys[recorder.issuer] = recorder.public_key
    assert recorder.flush()
    assert not recorder.status().blocked
    assert recorder.status().problem is None
    assert recorder.receipt_for(record_id) is not None


def test_a_redirect_is_not_followed(double: LedgerDouble, make_recorder: MakeRecorder) -> None:
    double.fault = lambda number, path: "redirect"
    recorder = make_recorder(double)
    recorder.record(**report())
    assert eventually(lambda: recorder.status().blocked)
    assert "answered 307" in str(recorder.status().problem)
    assert {path for _, path in double.seen} == {"/entries"}


@pytest.mark.usefixtures("quick_retries")
def test_a_ledger_that_is_away_at_first_gets_everything_later(
    double: LedgerDouble, make_recorder: MakeRecorder
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        recorder = make_recorder(double, url=f"http://127.0.0.1:{unused.getsockname()[1]}")
        ids = [recorder.record(**report()) for _ in range(5)]
        assert eventually(lambda: "cannot be reached" in str(recorder.status().problem))
        assert not recorder.flush(0.2)
        assert not recorder.status().blocked
        assert not recorder.close(0.2)
    again = make_recorder(double)
    ids.append(again.record(**report()))
    assert again.flush()
    assert list(double.records) == ids
    assert double.dropped == 0


def test_a_new_process_sends_what_an_old_one_left_without_being_asked(
    double: LedgerDouble, make_recorder: MakeRecorder
) -> None:
    first = make_recorder(None)
    ids = [first.record(**report()) for _ in range(5)]
    assert first.close()
    make_recorder(double)
    assert eventually(lambda: list(double.records) == ids)


def test_without_a_log_key_nothing_is_deleted(
    double: LedgerDouble, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    recorder = make_recorder(double, log_key=None)
    ids = [recorder.record(**report()) for _ in range(5)]
    assert recorder.close()
    spool = Spool(spool_dir)
    assert (spool.waiting(), spool.kept()) == ([], [0, 1])
    requests = double.requests
    recorder = make_recorder(double, log_key=None)  # what was sent is not sent again and again
    ids.append(recorder.record(**report()))
    assert recorder.close()
    assert double.requests == requests + 1
    recorder = make_recorder(double)  # with the key, receipts are fetched once more, and checked
    ids.append(recorder.record(**report()))
    assert recorder.close()
    assert (spool.waiting(), spool.kept()) == ([], [])
    assert list(double.records) == ids


def test_the_log_key_may_be_a_file(double: LedgerDouble, make_recorder: MakeRecorder, tmp_path: Path) -> None:
    path = tmp_path / "log.vkey"
    path.write_text(double.vkey + "\n")
    recorder = make_recorder(double, log_key=path)
    recorder.record(**report())
    assert recorder.close()
    for bad in ("nonsense", tmp_path / "missing", "a+b"):
        with pytest.raises(InvalidError):
            make_recorder(double, log_key=bad)
    witness = VerifierKey.of("w.example", COSIGNATURE_ED25519, double.log_key.public.raw_bytes())
    with pytest.raises(InvalidError, match="not of a log"):
        parse_log_key(format_vkey(witness))


def test_a_damaged_file_that_the_ledger_has_is_let_go(
    double: LedgerDouble, make_recorder: MakeRecorder, spool_dir: Path, caplog
) -> None:
    double.fault = lambda number, path: "garbage"
    recorder = make_recorder(double)
    recorder.record(**report())
    assert eventually(lambda: bool(double.statements))
    assert not recorder.close(0.3)  # logged, but the answers were lost
    spool = Spool(spool_dir)
    assert spool.waiting() == [0, 1]
    path = spool.path_of(0)
    path.write_bytes(path.read_bytes()[:-1])
    double.fault = lambda number, path: None
    again = make_recorder(double)
    again.record(**report())
    assert again.flush()
    assert "was damaged in the spool, but the ledger has it" in caplog.text
    assert len(double.records) == 2


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.usefixtures("quick_retries")
def test_a_damaged_file_that_the_ledger_lacks_is_never_sent_and_reported(
    double: LedgerDouble, make_recorder: MakeRecorder, spool_dir: Path, damaged: int
) -> None:
    recorder = make_recorder(None)
    recorder.record(**report())
    assert recorder.close()
    spool = Spool(spool_dir)
    path = spool.path_of(damaged)
    whole = path.read_bytes()
    sender = Sender(spool, Client(double.url, double.api_key), parse_log_key(double.vkey))
    for cut in range(0, len(whole), 17):
        path.write_bytes(whole[:cut])
        result = sender.run_pass()
        assert result.blocked
        assert "does not have statement" in str(result.reason)
        assert len(double.statements) == damaged
        assert damaged in spool.waiting()
    path.write_bytes(whole)
    sender.run_pass()
    assert not spool.waiting()


def test_statements_are_sent_only_once_the_head_counts_them(
    double: LedgerDouble, make_recorder: MakeRecorder, spool_dir: Path, monkeypatch
) -> None:
    """Else a crash between a statement and its head would, once sent and deleted, give its seq out again."""
    recorder = make_recorder(None)
    recorder.record(**report())
    assert recorder.sync()
    with monkeypatch.context() as patch:

        def fail(*args: object) -> None:
            raise OSError(5, "broken disk")

        patch.setattr("ledger.emit.chain.write_head", fail)
        recorder.record(**report())
        recorder.sync(1)
        spool = Spool(spool_dir)
        sender = Sender(spool, Client(double.url, double.api_key), parse_log_key(double.vkey))
        assert sender.run_pass().sent == 0
    sender.run_pass()
    assert not spool.waiting()
    recorder.record(**report())
    recorder.close()
    sender.run_pass()
    assert len(double.records) == 3


def test_one_process_sends_at_a_time(
    double: LedgerDouble, make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    recorder = make_recorder(None)
    recorder.record(**report())
    assert recorder.close()
    spool = Spool(spool_dir)
    sender = Sender(spool, Client(double.url, double.api_key), parse_log_key(double.vkey))
    with Spool(spool_dir).sending() as mine:
        assert mine
        assert sender.run_pass().sent == 0
        assert double.requests == 0
    assert sender.run_pass().sent == 2


def test_two_recorders_of_one_spool_share_chain_and_receipts(
    double: LedgerDouble, make_recorder: MakeRecorder
) -> None:
    one, two = make_recorder(double), make_recorder(double)
    ids: dict[int, list[str]] = {0: [], 1: []}

    def run(number: int) -> None:
        recorder = (one, two)[number]
        for _ in range(20):
            ids[number] += [recorder.record(**report()) for _ in range(5)]
            recorder.sync()

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.flush()
    assert two.flush()
    assert set(double.records) == {*ids[0], *ids[1]}
    assert all(one.receipt_for(each, 2) is not None for each in ids[0])
    assert all(two.receipt_for(each, 2) is not None for each in ids[1])
    assert one.close()
    assert two.close()
    assert double.dropped == 0
