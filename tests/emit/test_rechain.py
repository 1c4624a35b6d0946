"""A chain whose waiting statements were damaged goes on; each record is logged or counted as dropped."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from ledger.core.chain import ChainHead, next_head
from ledger.core.errors import RefusedError
from ledger.core.keys import generate_key
from ledger.core.statements import Heartbeat, decode_statement, sign_statement
from ledger.emit import sender as sender_module
from ledger.emit._disk import replace_file
from ledger.emit.client import Client
from ledger.emit.head import Head
from ledger.emit.operate import restore_spool
from ledger.emit.rechain import Place, rechain
from ledger.emit.sender import Pass, Sender, check_receipt, parse_log_key
from ledger.emit.spool import Spool
from ledger.emit.spooled import Spooled
from ledger.energy.factors import default_factor_set
from ledger.keyfiles import load_private_key
from tests.build import make_deployment
from tests.emit.conftest import MakeRecorder, report
from tests.emit.ledger_double import LedgerDouble
from tests.emit.test_spool import spooled_after

RECORDS = 3
HEADER = 52
STRIDE = int(os.environ.get("TALLYSTICK_FAULT_STRIDE", "401"))


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_SETTLE_S", 0.0)


@pytest.fixture
def waiting(make_recorder: MakeRecorder, spool_dir: Path) -> list[str]:
    """A spool with a deployment (0), factors (1), batches (2 to 4), another deployment (5), its batch (6)."""
    recorder = make_recorder(factors=default_factor_set(), max_age_s=10)
    ids = []
    for number in range(4):
        deployment = make_deployment(model="other") if number == 3 else None
        busy = {"busy_us": 1000} if number == 0 else {}
        ids += [recorder.record(**report(deployment=deployment, **busy)) for _ in range(RECORDS)]
        assert recorder.sync()
    assert recorder.close()
    return ids


def send(directory: Path, double: LedgerDouble, *, passes: int = 8, assumed_lost: int | None = None) -> Pass:
    """What the sending thread does, without its pauses."""
    spool = Spool(directory)
    key = load_private_key(directory / "issuer.pem")
    sender = Sender(spool, Client(double.url, double.api_key), parse_log_key(double.vkey), lambda: key)
    sender.assumed_lost = assumed_lost
    for _ in range(passes):
        result = sender.run_pass()
        if not result.waiting or result.blocked:
            break
    return result


def check(directory: Path, double: LedgerDouble, ids: list[str]) -> int:
    """Each record is logged once, or counted as dropped; returns how many are."""
    assert not Spool(directory).waiting()
    assert set(double.records) <= set(ids)
    assert len(double.records) + double.dropped == len(ids)
    return double.dropped


def damages(size: int) -> list[tuple[str, int]]:
    places = [*range(0, HEADER, 7), *range(HEADER, size, STRIDE), size - 1]
    return [(how, at) for how in ("cut", "flip") for at in places]


def damage(path: Path, how: str, at: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] if how == "cut" else data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])


@pytest.mark.timeout(7200)
def test_a_statement_that_is_cut_or_changed_at_any_byte(
    spool_dir: Path, waiting: list[str], double: LedgerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TALLYSTICK_FAULT_STRIDE=1 tries each byte."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # nothing is cut off here: only faster
    files = sorted(spool_dir.glob("*.statement"))
    assert len(files) == 7
    cases = 0
    for file in files:
        for how, at in damages(file.stat().st_size):
            copy = spool_dir.with_name("copy")
            shutil.copytree(spool_dir, copy)
            damage(copy / file.name, how, at)
            double.forget()
            result = send(copy, double)
            assert result.reason is None, (file.name, how, at, result)
            lost = check(copy, double, waiting)
            assert lost == (0 if int(file.stem) in (0, 1, 5) else RECORDS), (file.name, how, at)
            shutil.rmtree(copy)
            cases += 1
    print(f"{cases} cases")


@pytest.mark.parametrize("name", ["head", "tally"])
def test_other_files_of_the_spool_that_are_cut_or_changed(
    spool_dir: Path, waiting: list[str], name: str
) -> None:
    size = (spool_dir / name).stat().st_size
    for how, at in [("cut", 0), ("cut", 4096), *(each for each in damages(size) if each[1] % 2)]:
        copy = spool_dir.with_name("copy")
        shutil.copytree(spool_dir, copy)
        damage(copy / name, how, min(at, size - 1))
        with LedgerDouble() as double:
            assert send(copy, double).reason is None
            assert check(copy, double, waiting) == 0
        shutil.rmtree(copy)


def test_documents_that_are_damaged_are_published_once_more(
    spool_dir: Path, waiting: list[str], double: LedgerDouble, make_recorder: MakeRecorder
) -> None:
    for path in (spool_dir / "documents").iterdir():
        path.write_bytes(b"")
    recorder = make_recorder(double, factors=default_factor_set())
    more = recorder.record(**report())
    assert recorder.close(), recorder.status()
    assert check(spool_dir, double, [*waiting, more]) == 0


@pytest.mark.parametrize("gone", [[0], [2], [3, 4], [6], [2, 3, 4, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_statements_that_are_deleted(
    spool_dir: Path, waiting: list[str], double: LedgerDouble, make_recorder: MakeRecorder, gone: list[int]
) -> None:
    for seq in gone:
        (spool_dir / f"{seq:016d}.statement").unlink()
    with Spool(spool_dir).locked() as chain:  # what was deleted at the end shows once there is more to send
        end = chain.head.next_seq
    assert end == 7
    recorder = make_recorder()
    more = recorder.record(**report())
    assert recorder.close()
    assert send(spool_dir, double).reason is None
    lost = RECORDS * len({2, 3, 4, 6} & set(gone))
    assert check(spool_dir, double, [*waiting, more]) == lost


def test_drops_that_a_lost_statement_told_are_told_again(
    spool_dir: Path, waiting: list[str], double: LedgerDouble
) -> None:
    with Spool(spool_dir).locked() as chain:
        chain.add_dropped(11, "00" * 8, 0)
    spool = Spool(spool_dir)
    key = load_private_key(spool_dir / "issuer.pem")
    with spool.locked() as chain:
        made = spooled_after(chain, dropped=11).statement.payload
        chain.append(Spooled(sign_statement(made, issuer=spool.issuer, key=key), b"", "00" * 8, 0))
    damage(spool.path_of(7), "cut", 100)
    assert send(spool_dir, double).reason is None
    assert double.dropped == 11


def test_what_nothing_tells_is_asked_of_the_operator(
    spool_dir: Path, waiting: list[str], double: LedgerDouble
) -> None:
    damage(spool_dir / f"{3:016d}.statement", "cut", 10)
    (spool_dir / "tally").unlink()
    result = send(spool_dir, double)
    assert result.blocked
    assert "not known" in str(result.reason)
    assert "--assume-lost" in str(result.reason)
    before = sorted(path.name for path in spool_dir.iterdir())
    send(spool_dir, double)
    assert sorted(path.name for path in spool_dir.iterdir()) == before
    assert send(spool_dir, double, assumed_lost=RECORDS).reason is None
    assert check(spool_dir, double, waiting) == RECORDS


def test_a_ledger_that_lost_what_it_signed_for_gets_no_confession(
    spool_dir: Path, waiting: list[str], make_recorder: MakeRecorder
) -> None:
    with LedgerDouble() as first:
        assert send(spool_dir, first).reason is None
    with LedgerDouble() as rolled_back:
        recorder = make_recorder()
        recorder.record(**report())
        assert recorder.close()
        result = send(spool_dir, rolled_back)
        assert result.blocked
        assert "gave a receipt for statement" in str(result.reason)
        assert rolled_back.dropped == 0
        assert len(Spool(spool_dir).waiting()) == 1


def test_what_was_sent_without_a_log_key_is_sent_again_to_a_ledger_that_lost_it(
    spool_dir: Path, waiting: list[str], make_recorder: MakeRecorder
) -> None:
    with LedgerDouble() as first:
        recorder = make_recorder(first, log_key=None)
        assert recorder.flush()
        assert recorder.close()
        assert len(Spool(spool_dir).kept()) == 7
    with LedgerDouble() as rolled_back:
        recorder = make_recorder()
        more = recorder.record(**report())
        assert recorder.close()
        assert send(spool_dir, rolled_back).reason is None
        assert check(spool_dir, rolled_back, [*waiting, more]) == 0
    assert not Spool(spool_dir).kept()


@pytest.mark.parametrize("gone", [[3], [3, 4], [6]])
def test_kept_statements_that_are_damaged_hold_nothing_up(
    spool_dir: Path, waiting: list[str], double: LedgerDouble, make_recorder: MakeRecorder, gone: list[int]
) -> None:
    recorder = make_recorder(double, log_key=None)
    assert recorder.flush()
    assert recorder.close()
    for seq in gone:
        damage(spool_dir / f"{seq:016d}.sent", "cut", 80)
    recorder = make_recorder(double)
    more = recorder.record(**report())
    assert recorder.close(), recorder.status()
    assert check(spool_dir, double, [*waiting, more]) == 0
    assert not Spool(spool_dir).kept()


def test_what_a_revoked_key_signed_is_signed_anew_once_there_is_another_key(
    spool_dir: Path, waiting: list[str], double: LedgerDouble
) -> None:
    old = load_private_key(spool_dir / "issuer.pem")
    double.keys["tests.example/emitter"] = old.public
    double.revoked.add(old.public.kid)
    result = send(spool_dir, double)
    assert result.blocked
    assert "revoked-key" in str(result.reason)
    new = generate_key()
    (spool_dir / "issuer.pem").write_bytes(new.to_pem())
    double.keys["tests.example/emitter"] = new.public
    assert send(spool_dir, double).reason is None
    assert check(spool_dir, double, waiting) == 0


def test_a_full_disk_stops_mending_until_there_is_room(
    spool_dir: Path, waiting: list[str], double: LedgerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(spool_dir / f"{2:016d}.statement", "flip", 200)
    before = {path.name: path.read_bytes() for path in spool_dir.glob("*.statement")}
    written = 0

    def full(path: Path, data: bytes) -> None:
        nonlocal written
        written += 1
        if written >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("ledger.emit.rechain.replace_file", full)
        assert "No space left" in str(send(spool_dir, double).reason)
    after = {path.name: path.read_bytes() for path in spool_dir.glob("*.statement")}
    assert len(after) == 5  # 0 and 1 were sent
    assert sum(after[name] == before[name] for name in after) == 3
    assert send(spool_dir, double).reason is None
    assert check(spool_dir, double, waiting) == RECORDS


@pytest.mark.timeout(600)
def test_a_kill_at_any_step_of_mending(spool_dir: Path, waiting: list[str]) -> None:
    """os._exit before the n-th change to the disk, for each n until it comes through."""
    damage(spool_dir / f"{3:016d}.statement", "cut", 60)
    for step in range(200):
        copy = spool_dir.with_name(f"copy-{step}")
        shutil.copytree(spool_dir, copy)
        with LedgerDouble() as double:
            child = os.fork()
            if child == 0:
                die_at(step)
                send(copy, double)
                os._exit(0)
            died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
            assert send(copy, double).reason is None, step
            assert check(copy, double, waiting) == RECORDS, step
        shutil.rmtree(copy)
        if not died:
            assert step > 20
            return
    raise AssertionError("it never came through")


@pytest.mark.timeout(600)
def test_a_kill_at_any_step_of_restoring(
    spool_dir: Path, waiting: list[str], make_recorder: MakeRecorder, double: LedgerDouble
) -> None:
    """An old copy, recorded into: what it has is moved to the end of the chain, wherever that is cut off."""
    old = spool_dir.with_name("old")
    shutil.copytree(spool_dir, old)
    assert send(spool_dir, double).reason is None
    recorder = make_recorder(double)
    ids = [*waiting, recorder.record(**report())]
    assert recorder.close()
    later = make_recorder(spool=old, max_age_s=10)
    for _ in range(3):
        ids.append(later.record(**report()))
        assert later.sync()
    assert later.close()
    key, log = load_private_key(old / "issuer.pem"), parse_log_key(double.vkey)
    for step in range(300):
        copy = spool_dir.with_name(f"copy-{step}")
        shutil.copytree(old, copy)
        child = os.fork()
        if child == 0:
            die_at(step)
            restore_spool(copy, None, Client(double.url, double.api_key), log, key)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        restore_spool(copy, None, Client(double.url, double.api_key), log, key)
        spool = Spool(copy)
        head = ChainHead(double.heads[spool.issuer].next_seq, double.heads[spool.issuer].last_leaf)
        counts = []
        for seq in spool.waiting():
            head = next_head(head, spool.load(seq).statement)
            counts.append(spool.load(seq).count)
        assert counts == [1, 1, 1], step
        assert not spool.is_mending()
        if not died:
            assert step > 15
            assert send(copy, double).reason is None
            assert check(copy, double, ids) == 0
            return
        shutil.rmtree(copy)
    raise AssertionError("it never came through")


def die_at(step: int) -> None:
    """End this process at the ``step``-th call that changes a file."""
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            if calls == step:
                os._exit(9)
            calls += 1
            return function(*args, **kwargs)

        return call

    for name in ("replace", "rename", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))
    for name in ("write", "pwrite"):
        setattr(os, name, counted(getattr(os, name)))


def test_appending_goes_on_after_mending(
    spool_dir: Path, waiting: list[str], double: LedgerDouble, make_recorder: MakeRecorder
) -> None:
    """A recorder that runs all the while: its session, its receipts and its count stay right."""
    recorder = make_recorder(double, max_age_s=0.0)
    double.fault = lambda number, path: "status-503"
    before = [recorder.record(**report()) for _ in range(5)]
    assert recorder.sync()
    last = sorted(spool_dir.glob("*.statement"))[-1]
    damage(spool_dir / f"{4:016d}.statement", "cut", 99)
    double.fault = lambda number, path: None
    after = recorder.record(**report())
    assert recorder.flush(30), recorder.status()
    assert check(spool_dir, double, [*waiting, *before, after]) == RECORDS
    found = recorder.receipt_for(before[-1], 5)
    assert found is not None
    assert not last.exists()
    statement = decode_statement(found.statement)
    check_receipt(found.receipt, parse_log_key(double.vkey), statement.leaf_hash, statement.subject)


def test_nothing_is_signed_anew_that_the_ledger_may_have(
    spool_dir: Path, waiting: list[str], double: LedgerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked twice, with time between: a request that was cut off may still be on its way."""
    monkeypatch.setattr(sender_module, "_SETTLE_S", 60.0)
    damage(spool_dir / f"{0:016d}.statement", "cut", 60)
    result = send(spool_dir, double, passes=4)
    assert not result.blocked
    assert result.after_s is not None
    assert 50 < result.after_s <= 60
    assert not double.statements


def test_refused_when_the_count_is_not_known(spool_dir: Path) -> None:
    spool = Spool(spool_dir, "tests.example/emitter")
    with spool.locked() as chain:
        chain._write(Head(issuer=spool.issuer, next_seq=4, last_leaf="ab" * 32))
        (spool_dir / "tally").unlink()
        with pytest.raises(RefusedError, match="not known"):
            rechain(spool, chain, generate_key(), Place(3, "cd" * 32))
        assert chain.head.next_seq == 4
        done = rechain(spool, chain, generate_key(), Place(3, "cd" * 32), assumed_lost=2)
        assert (done.signed, done.lost) == (1, 2)
        payload = spool.load(3).statement.payload
        assert isinstance(payload, Heartbeat)
        assert payload.dropped == 2
