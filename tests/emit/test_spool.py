from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from msgspec import UNSET

from ledger.core.chain import ChainHead, next_head
from ledger.core.errors import CorruptError, InvalidError, RefusedError, UnavailableError
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.statements import Heartbeat, sign_statement
from ledger.emit.chain import Chain
from ledger.emit.ids import GIVEN, SETTLED, RecordIds
from ledger.emit.session import Session, abandoned_sessions
from ledger.emit.spool import Spool
from ledger.emit.spooled import Spooled, decode_spooled, encode_spooled

ISSUER = "tests.example/spool"
KEY = generate_key()


def spooled_after(chain: Chain, *, dropped: int = 0, session: str = "00" * 8, settled: int = 0) -> Spooled:
    head = chain.head
    payload = Heartbeat(
        seq=head.next_seq,
        prev=UNSET if head.last_leaf is None else head.last_leaf,
        issued_us=1_760_000_000_000_000 + head.next_seq,
        dropped=dropped,
    )
    return Spooled(sign_statement(payload, issuer=ISSUER, key=KEY), b"body" * 7, session, settled)


def append(spool: Spool, count: int = 1, key: PrivateKey = KEY) -> None:
    for _ in range(count):
        with spool.locked() as chain:
            chain.append(spooled_after(chain, dropped=chain.head.dropped))


def check_chain(spool: Spool, expected: int) -> None:
    head = ChainHead()
    for seq in spool.waiting():
        head = next_head(head, spool.load(seq).statement)
    assert head.next_seq == expected
    with spool.locked() as chain:
        assert chain.head.next_seq == expected
        assert chain.head.last_leaf == (None if head.last_leaf is None else head.last_leaf.hex())


def test_statements_form_a_chain(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 5)
    check_chain(spool, 5)
    check_chain(Spool(spool_dir), 5)
    assert spool_dir.stat().st_mode & 0o777 == 0o700
    for path in spool_dir.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_spool_belongs_to_one_issuer(spool_dir: Path) -> None:
    with pytest.raises(InvalidError, match="needs an issuer name"):
        Spool(spool_dir)
    Spool(spool_dir, ISSUER)
    with pytest.raises(RefusedError, match="one spool directory for each issuer"):
        Spool(spool_dir, "other.example")
    assert Spool(spool_dir).issuer == ISSUER


def test_a_spool_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot be opened"):
        Spool(tmp_path / "file" / "spool", ISSUER)


def test_the_file_wins_over_a_head_that_was_not_written(spool_dir: Path, monkeypatch) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 2)

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ledger.emit.chain.write_head", crash)
        with pytest.raises(KeyboardInterrupt):
            append(spool)
    assert spool.waiting() == [0, 1, 2]
    append(Spool(spool_dir))
    check_chain(spool, 4)


def test_a_head_that_cannot_be_written_does_not_double_a_statement(spool_dir: Path, monkeypatch) -> None:
    spool = Spool(spool_dir, ISSUER)

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    with monkeypatch.context() as patch:
        patch.setattr("ledger.emit.chain.write_head", fail)
        append(spool)  # it is in the spool: to raise would make the caller append it again
    append(spool)
    check_chain(spool, 2)


def test_a_crash_before_the_rename_leaves_nothing(spool_dir: Path, monkeypatch) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool)

    def crash(*args: object) -> None:
        os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "replace", crash)
        append(spool)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list(spool_dir.glob("*.statement.tmp"))
    again = Spool(spool_dir)
    append(again)
    check_chain(again, 2)
    assert not list(spool_dir.glob("*.tmp"))


def test_a_torn_file_is_found_at_every_offset(spool_dir: Path, caplog) -> None:
    """The newest file, complete before the head: cut at each length, then changed at each byte."""
    spool = Spool(spool_dir, ISSUER)
    append(spool, 2)
    path = spool.path_of(1)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        with pytest.raises(CorruptError):
            decode_spooled(whole[:cut], where="cut")
    for at in range(len(whole)):
        changed = whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]
        with pytest.raises(CorruptError):
            decode_spooled(changed, where="changed")
    assert encode_spooled(decode_spooled(whole, where="whole")) == whole


@pytest.mark.parametrize("cut", [0, 1, 39, 40, 100, -1])
def test_a_torn_file_that_no_head_counts_is_set_aside(spool_dir: Path, caplog, cut: int) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool)
    with spool.locked() as chain:
        whole = encode_spooled(spooled_after(chain))
    spool.path_of(1).write_bytes(whole[:cut])
    again = Spool(spool_dir)
    append(again)
    check_chain(again, 2)
    assert len(again.torn()) == 1
    assert "set aside" in caplog.text


def test_a_file_that_does_not_follow_is_set_aside(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 2)
    other = Spool(spool_dir.with_name("other"), ISSUER)
    with other.locked() as chain:
        chain.append(spooled_after(chain, dropped=1))
    append(other, 2)
    spool.path_of(2).write_bytes(other.path_of(2).read_bytes())
    append(spool)
    check_chain(spool, 3)
    assert len(spool.torn()) == 1


@pytest.mark.parametrize("size", [0, 10, 4095, 4096, 4200, 8191])
def test_a_head_that_was_cut_is_repeated_in_the_tally(spool_dir: Path, size: int) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 3)
    with spool.locked() as chain:
        chain.add_dropped(5, "00" * 8, 0)
    for seq in range(3):
        spool.remove(seq)  # delivered: no statement tells where the chain stands
    os.truncate(spool_dir / "head", size)
    with Spool(spool_dir).locked() as chain:
        assert (chain.head.next_seq, chain.head.dropped) == (3, 5)
    (spool_dir / "tally").unlink()
    with Spool(spool_dir).locked() as chain:
        assert (chain.head.next_seq, chain.head.dropped) == (3, 5)  # both slots are whole again


def test_a_deleted_head_is_repeated_in_the_tally(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 2)
    for seq in range(2):
        spool.remove(seq)
    (spool_dir / "head").unlink()
    with Spool(spool_dir).locked() as chain:
        assert chain.head.next_seq == 2


def test_the_tally_knows_what_a_file_held(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool)
    with spool.locked() as chain:
        chain.add_dropped(9, "00" * 8, 0)
    append(spool)
    assert [spool.lost_with(seq) for seq in range(3)] == [0, 9, None]
    data = bytearray((spool_dir / "tally").read_bytes())
    data[4096 + 32 + 8] ^= 1
    (spool_dir / "tally").write_bytes(data)
    assert [spool.lost_with(seq) for seq in range(3)] == [0, None, None]


@pytest.mark.parametrize("slot", [0, 1])
def test_either_slot_of_the_head_may_be_lost(spool_dir: Path, slot: int) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 3)
    with open(spool_dir / "head", "r+b") as file:
        file.seek(slot * 4096 + 10)
        file.write(b"rot")
    append(Spool(spool_dir))
    check_chain(spool, 4)


def test_statements_beyond_an_older_head_bring_it_up(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 2)
    old = (spool_dir / "head").read_bytes()
    append(spool, 4)
    for seq in range(5):
        spool.remove(seq)  # delivered
    (spool_dir / "head").write_bytes(old)  # as if a back-up were restored
    append(Spool(spool_dir))
    with spool.locked() as chain:
        assert chain.head.next_seq == 7


def test_a_lost_head_is_made_from_the_statements(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 3)
    (spool_dir / "head").unlink()
    (spool_dir / "tally").unlink()
    append(Spool(spool_dir))
    check_chain(spool, 4)


def test_a_head_without_a_whole_slot_is_refused(spool_dir: Path) -> None:
    Spool(spool_dir, ISSUER)
    (spool_dir / "head").write_bytes(bytes(8192))
    (spool_dir / "tally").unlink(missing_ok=True)
    with pytest.raises(CorruptError, match="spool restore"):
        Spool(spool_dir)


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_adds_nothing_and_leaves_nothing(spool_dir: Path, monkeypatch, failing: str) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if failing == "replace" else os, failing, full)
        with pytest.raises(UnavailableError, match="No space left"):
            append(spool)
    assert spool.waiting() == [0]
    assert not list(spool_dir.glob("*.tmp"))
    append(spool)
    check_chain(spool, 2)


def test_drops_can_be_noted_on_a_full_disk(spool_dir: Path, monkeypatch) -> None:
    spool = Spool(spool_dir, ISSUER)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with spool.locked() as chain:
        chain.add_dropped(7, "00" * 8, 7)
    with Spool(spool_dir).locked() as chain:
        assert chain.head.dropped == 7


def test_the_limit_counts_what_waits(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER, limit_bytes=20_000)
    with pytest.raises(UnavailableError, match="its limit is 20000") as error:
        append(spool, 100)
    assert error.value.code == "spool-full"
    waiting = spool.waiting()
    assert waiting
    for seq in waiting:
        spool.remove(seq)
    append(spool)


def test_dropped_is_told_once(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    with spool.locked() as chain:
        chain.add_dropped(3, "00" * 8, 0)
    append(spool, 2)
    told = [spool.load(seq).statement.payload.dropped for seq in spool.waiting()]
    assert told == [3, 0]


def test_published_documents_are_remembered_and_kept_twice(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    append(spool, 2)
    digest = "ab" * 32
    with spool.locked() as chain:
        chain.publish(digest)
    assert spool.documents() == {digest}
    assert spool.document_at(1) == spool.load(1)
    assert spool.document_at(0) is None
    path = spool_dir / "documents" / digest
    path.write_bytes(path.read_bytes()[:-1])
    assert spool.document_at(1) is None


def test_documents_are_bounded(spool_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr("ledger.emit.chain._MAX_DOCUMENTS", 3)
    spool = Spool(spool_dir, ISSUER)
    append(spool)
    for number in range(9):
        with spool.locked() as chain:
            chain.publish(f"{number:064x}")
    assert spool.documents() == {f"{number:064x}" for number in (6, 7, 8)}


def test_kept_statements_make_room_for_new_ones(spool_dir: Path, caplog) -> None:
    """Without a log key nothing is deleted, until the limit: then what the ledger took goes first."""
    spool = Spool(spool_dir, ISSUER, limit_bytes=40_000)
    for _ in range(60):
        append(spool)
        spool.keep(spool.waiting()[0])
    assert 5 <= len(spool.kept()) <= 9
    assert spool.kept()[-1] == 59
    assert "receipts were not checked" in caplog.text


def test_damaged_files_are_bounded(spool_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr("ledger.emit.room._TORN_FILES", 4)
    spool = Spool(spool_dir, ISSUER)
    for number in range(9):
        spool.path_of(number).write_bytes(b"torn")
        spool.set_aside(spool.path_of(number))
    assert [name[:16] for name in spool.torn()] == [f"{number:016d}" for number in (5, 6, 7, 8)]


# --- sessions --------------------------------------------------------------------------------------------


def lose(spool_dir: Path, recorded: int, settled: int) -> None:
    """Leave a session as a killed process does."""
    child = os.fork()
    if child == 0:
        ids = RecordIds()
        spool = Spool(spool_dir, ISSUER)
        with spool.locked():
            session = Session(spool.sessions, ids)
            start = ids.marks[SETTLED]
        for _ in range(recorded):
            ids.new()
        session.settle(start + settled)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)


def test_what_a_killed_process_lost_is_counted_once(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    lose(spool_dir, 10, 4)
    lose(spool_dir, 3, 3)
    with spool.locked() as chain:
        assert chain.reap() == 6
        assert chain.head.dropped == 6
        assert chain.reap() == 0
    assert not list(spool.sessions.iterdir())


def test_a_crash_while_counting_does_not_count_twice(spool_dir: Path, monkeypatch) -> None:
    spool = Spool(spool_dir, ISSUER)
    lose(spool_dir, 10, 4)

    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt), spool.locked() as chain:
            chain.reap()
    with Spool(spool_dir).locked() as chain:
        assert chain.reap() == 0
        assert chain.head.dropped == 6


def test_a_statement_on_disk_settles_the_session_that_died_before_saying_so(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    child = os.fork()
    if child == 0:
        ids = RecordIds()
        with spool.locked() as chain:
            session = Session(spool.sessions, ids)
            start = ids.marks[SETTLED]
            for _ in range(5):
                ids.new()
            chain.append(spooled_after(chain, session=session.name, settled=start + 4))
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    append(spool)  # another process writes the head before anybody counts
    with spool.locked() as chain:
        assert chain.reap() == 1


def test_living_sessions_are_left_alone(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    ids = RecordIds()
    with spool.locked() as chain:
        session = Session(spool.sessions, ids)
        ids.new()
        assert abandoned_sessions(spool.sessions) == []
        assert chain.reap() == 0
    session.close()
    assert ids.marks[GIVEN] - ids.marks[SETTLED] == 1  # still counts, in plain memory
    ids.new()
    with spool.locked() as chain:
        assert chain.reap() == 1


def test_a_whole_session_leaves_no_file(spool_dir: Path) -> None:
    spool = Spool(spool_dir, ISSUER)
    ids = RecordIds()
    with spool.locked():
        session = Session(spool.sessions, ids)
        ids.new()
        session.settle(ids.marks[GIVEN])
        session.close()
    assert not list(spool.sessions.iterdir())


def test_a_deleted_lock_file_costs_no_statement(spool_dir: Path) -> None:
    """Two holders of a lock whose file was deleted: the second to write must not write over the first."""
    spool, other = Spool(spool_dir, ISSUER), Spool(spool_dir)
    with spool.locked() as chain:
        (spool_dir / "lock").unlink()
        append(other)
        first = spool.load(0).statement.entry
        with pytest.raises(UnavailableError, match="meanwhile"):
            chain.append(spooled_after(chain, dropped=1))
    assert spool.load(0).statement.entry == first
    append(spool)
    check_chain(spool, 2)
