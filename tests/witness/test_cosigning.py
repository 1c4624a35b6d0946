"""What a witness answers: the cases of C2SP tlog-witness, one by one, in the order of its text."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ledger.core.cosignature import verify_cosignature
from ledger.core.errors import CorruptError, InvalidError, RefusedError, UnavailableError
from ledger.core.keys import generate_key
from ledger.core.merkle import EMPTY_ROOT
from ledger.core.note import Note, format_note, parse_note, sign_ed25519_note
from ledger.witness.cosigning import Cosigner, Reply
from ledger.witness.state import WitnessState, create_state
from ledger.witness.wire import AddCheckpoint, format_request, origin_hash, parse_request, parse_signatures
from tests.witness.logs import ORIGIN, MadeLog

NAME = "witness.example/w1"
KEYS = (generate_key("ed25519"), generate_key("ml-dsa-44"))


class World:
    def __init__(self, folder: Path) -> None:
        self.log = MadeLog()
        self.path = folder / "witness.db"
        create_state(self.path)
        self.now_s = 1_700_000_000
        self.open()
        self.cosigner.state.add_log(ORIGIN, (self.log.vkey,))

    def open(self) -> None:
        self.cosigner = Cosigner(NAME, KEYS, WitnessState(self.path), clock_s=lambda: self.now_s)

    def ask(self, old: int, new: int, log: MadeLog | None = None) -> Reply:
        return self.cosigner.add_checkpoint((log or self.log).request(old, new))

    @property
    def size(self) -> int:
        known = self.cosigner.state.log(ORIGIN)
        assert known is not None
        return known.last.size


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_consistent_checkpoint_is_cosigned_by_each_key(world: World) -> None:
    for old, new in ((0, 1), (1, 2), (2, 7), (7, 8), (8, 300)):
        world.now_s += 10
        reply = world.ask(old, new)
        assert (reply.status, reply.outcome) == (200, "cosigned")
        signatures = parse_signatures(reply.body)
        assert [each.name for each in signatures] == [NAME, NAME]
        text = parse_note(world.log.note(new)).text
        for signature, key in zip(signatures, world.cosigner.keys, strict=True):
            assert verify_cosignature(text, signature, key) == world.now_s
        assert world.size == new


def test_the_first_checkpoint_may_be_of_any_size(world: World) -> None:
    assert world.ask(0, 1000).status == 200
    assert world.size == 1000


def test_an_empty_tree_is_cosigned(world: World) -> None:
    assert world.ask(0, 0).status == 200
    assert world.ask(0, 5).status == 200


def test_signatures_of_unknown_keys_are_ignored_and_not_kept(world: World) -> None:
    note = parse_note(world.log.note(3))
    stranger = sign_ed25519_note(note.text, "stranger.example", generate_key().raw)
    lookalike = sign_ed25519_note(note.text, ORIGIN, generate_key().raw)
    body = format_request(
        AddCheckpoint(0, (), format_note(Note(note.text, (stranger, *note.signatures, lookalike))))
    )
    assert world.cosigner.add_checkpoint(body).status == 200
    latest = world.cosigner.latest(origin_hash(ORIGIN))
    assert [each.name for each in parse_note(latest).signatures] == [ORIGIN, NAME, NAME]


def test_an_unknown_log_is_404(world: World) -> None:
    reply = world.ask(0, 3, MadeLog("other.example/log", world.log.key))
    assert reply.status == 404


def test_without_a_trusted_signature_it_is_403(world: World) -> None:
    assert world.ask(0, 3, MadeLog(ORIGIN, generate_key())).status == 403


def test_a_trusted_signature_that_does_not_verify_is_403(world: World) -> None:
    note = parse_note(world.log.note(3))
    wrong = note.signatures[0]
    broken = type(wrong)(wrong.name, wrong.key_id, bytes(64))
    body = format_request(AddCheckpoint(0, (), format_note(Note(note.text, (wrong, broken)))))
    assert world.cosigner.add_checkpoint(body).status == 403
    assert world.size == 0


def test_an_old_size_beyond_the_checkpoint_is_400(world: World) -> None:
    world.ask(0, 5)
    body = format_request(AddCheckpoint(6, (), world.log.note(5)))
    assert world.cosigner.add_checkpoint(body).status == 400


@pytest.mark.parametrize("old", [0, 3, 4, 6])
def test_another_old_size_is_409_with_ours(world: World, old: int) -> None:
    world.ask(0, 5)
    reply = world.ask(old, 8)
    assert (reply.status, reply.body, reply.media_type) == (409, b"5\n", "text/x.tlog.size")
    assert world.size == 5


def test_a_stale_checkpoint_is_409(world: World) -> None:
    """A log rolled back: whatever old size it states, it cannot get an older tree cosigned."""
    world.ask(0, 9)
    for old in range(8):
        assert world.ask(old, 7).status == 409
    assert (
        world.cosigner.add_checkpoint(format_request(AddCheckpoint(9, (), world.log.note(7)))).status == 400
    )
    assert world.size == 9


def test_a_replayed_request_is_409_once_the_tree_grew(world: World) -> None:
    first = world.log.request(0, 4)
    assert world.cosigner.add_checkpoint(first).status == 200
    assert world.ask(4, 6).status == 200
    assert world.cosigner.add_checkpoint(first).status == 409
    assert world.cosigner.add_checkpoint(world.log.request(4, 6)).status == 409
    assert world.size == 6


def test_the_same_checkpoint_is_cosigned_again_later(world: World) -> None:
    world.ask(0, 4)
    world.now_s += 100
    reply = world.ask(4, 4)
    assert reply.status == 200
    text = parse_note(world.log.note(4)).text
    assert verify_cosignature(text, parse_signatures(reply.body)[0], world.cosigner.keys[0]) == world.now_s


def test_an_empty_tree_with_another_root_is_422(world: World) -> None:
    text = f"{ORIGIN}\n0\n{'A' * 43}=\n"
    note = format_note(Note(text, (sign_ed25519_note(text, ORIGIN, world.log.key.raw),)))
    assert world.cosigner.add_checkpoint(format_request(AddCheckpoint(0, (), note))).status == 422


def test_a_proof_from_nothing_is_422(world: World) -> None:
    body = format_request(AddCheckpoint(0, (EMPTY_ROOT,), world.log.note(4)))
    assert world.cosigner.add_checkpoint(body).status == 422
    assert world.size == 0


def test_a_fork_of_the_same_size_is_422(world: World) -> None:
    world.ask(0, 8)
    assert world.ask(8, 8, world.log.fork(7)).status == 422
    assert world.size == 8


@pytest.mark.parametrize("new", [9, 12, 16, 100])
def test_a_fork_that_grew_is_422(world: World, new: int) -> None:
    world.ask(0, 8)
    for at in (0, 4, 7):
        assert world.ask(8, new, world.log.fork(at)).status == 422
    assert world.ask(8, new, world.log.fork(8)).status == 200  # not a fork of what was seen


def test_a_wrong_proof_is_422(world: World) -> None:
    world.ask(0, 5)
    right = world.log.prove(5, 9)
    wrong = [(), right[:-1], right[1:], (*right, right[0]), right[::-1], (bytes(32), *right[1:])]
    for proof in wrong:
        body = format_request(AddCheckpoint(5, proof, world.log.note(9)))
        assert world.cosigner.add_checkpoint(body).status == 422
    same = format_request(AddCheckpoint(5, right, world.log.note(5)))
    assert world.cosigner.add_checkpoint(same).status == 422
    assert world.size == 5
    assert world.ask(5, 9).status == 200


def test_what_may_prove_misbehaviour_is_kept(world: World) -> None:
    world.ask(0, 8)
    fork = world.log.fork(3).request(8, 10)
    world.cosigner.add_checkpoint(fork)
    [(origin, _, why, request)] = world.cosigner.state.evidence()
    assert (origin, request) == (ORIGIN, fork)
    assert "proof" in why
    for _ in range(100):
        world.cosigner.add_checkpoint(fork)
    assert len(world.cosigner.state.evidence(ORIGIN)) == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"",
        lambda body: body[4:],
        lambda body: body.replace(b"old 0", b"old 00"),
        lambda body: body.replace(b"old 0", b"old -1"),
        lambda body: body.replace(b"old 0", b"old 9223372036854775808"),
        lambda body: body.replace(b"old 0", b"old  0"),
        lambda body: body.replace(b"old 0\n", b"old 0\r\n"),
        lambda body: body.replace(b"old 0\n", b"old 0\nAAAA\n"),
        lambda body: body.replace(b"old 0\n", b"old 0\n" + b"A" * 42 + b"=\n"),
        lambda body: body.replace(b"old 0\n", b"old 0\n" + (b"A" * 43 + b"=\n") * 64),
        lambda body: body.replace(b"\n\n", b"\n", 1),
        lambda body: body.rstrip(b"\n"),
        lambda body: body + b"\n",
        lambda body: body.replace(b"\n4\n", b"\n04\n"),
        lambda body: b"\xff" + body,
    ],
)
def test_what_is_malformed_is_400_or_untrusted(world: World, change) -> None:
    reply = world.cosigner.add_checkpoint(change(world.log.request(0, 4)))
    assert reply.status in (400, 403)
    assert world.size == 0


def test_sixty_three_proof_lines_are_read() -> None:
    note = MadeLog().note(4)
    request = AddCheckpoint(3, (bytes(32),) * 63, note)
    assert parse_request(format_request(request)) == request
    with pytest.raises(InvalidError):
        parse_request(format_request(AddCheckpoint(3, (bytes(32),) * 64, note)))


def test_it_outlives_its_process(world: World) -> None:
    world.ask(0, 7)
    world.cosigner.state.close()
    world.open()
    assert world.size == 7
    assert world.ask(0, 9).status == 409
    assert world.ask(7, 9).status == 200


class Unconfirmed(sqlite3.Connection):
    """Commits, and says that the disk did not confirm it: what others read may be gone after a crash."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        done = super().execute(sql, *values)
        if sql == "COMMIT" and self.total_changes:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return done


def test_nothing_is_cosigned_after_a_commit_that_the_disk_did_not_confirm(world: World) -> None:
    assert world.ask(0, 3).status == 200
    state = world.cosigner.state
    state._local.connection = sqlite3.connect(world.path, factory=Unconfirmed, isolation_level=None)
    with pytest.raises(UnavailableError, match="disk I/O error"):
        world.ask(3, 5)
    del state._local.connection
    for old in (3, 5):
        with pytest.raises(UnavailableError, match="start the witness anew"):
            world.ask(old, 6)
    world.open()
    assert world.ask(5, 6).status == 200


def test_racing_requests_never_roll_back(world: World) -> None:
    """The race of the specification, many times over, from threads of two openings of one state."""
    world.ask(0, 1)
    sizes = list(range(2, 60))
    other = Cosigner(NAME, KEYS, WitnessState(world.path))
    start = threading.Barrier(8)
    seen: list[tuple[int, int]] = []

    def run(worker: int) -> None:
        cosigner = (world.cosigner, other)[worker % 2]
        start.wait()
        for new in sizes[worker % 4 :: 4]:
            old = 1
            while old <= new:
                reply = cosigner.add_checkpoint(world.log.request(old, new))
                if reply.status == 200:
                    seen.append((old, new))
                    break
                assert reply.status == 409
                old = int(reply.body)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(run, range(8)))
    assert world.size == 59
    grown = [(old, new) for old, new in seen if old != new]
    steps = sorted(grown)
    assert [old for old, _ in steps] == [1, *(new for _, new in steps)][:-1]  # one chain, no branch


def test_two_keys_of_a_log_while_it_rotates(world: World) -> None:
    new = generate_key("ml-dsa-44")
    world.ask(0, 3)
    rotated = MadeLog(ORIGIN, new)
    assert world.ask(3, 4, rotated).status == 403
    world.cosigner.state.add_log(ORIGIN, (rotated.vkey,))
    assert world.size == 3  # what was cosigned stays remembered
    assert world.ask(3, 4, rotated).status == 200
    both = format_request(
        AddCheckpoint(4, world.log.prove(4, 5), world.log.note(5, keys=(world.log.key, new)))
    )
    assert world.cosigner.add_checkpoint(both).status == 200
    world.cosigner.state.remove_key(ORIGIN, world.log.vkey)
    assert world.ask(5, 6).status == 403
    assert world.ask(5, 6, rotated).status == 200
    with pytest.raises(InvalidError):
        world.cosigner.state.remove_key(ORIGIN, world.log.vkey)


def test_logs_are_kept_apart(world: World) -> None:
    other = MadeLog("other.example/log", world.log.key)
    world.cosigner.state.add_log(other.origin, (other.vkey,))
    assert world.ask(0, 5).status == 200
    assert world.ask(0, 3, other).status == 200
    assert [(each.origin, each.last.size) for each in world.cosigner.state.logs()] == [
        (ORIGIN, 5), (other.origin, 3),
    ]  # fmt: skip


def test_a_state_is_neither_overwritten_nor_made_up(world: World, tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        create_state(world.path)
    with pytest.raises(InvalidError) as caught:
        WitnessState(tmp_path / "none.db")
    assert caught.value.code == "no-witness"


def test_a_state_of_another_version_is_not_used(world: World) -> None:
    world.cosigner.state.close()
    connection = sqlite3.connect(world.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CorruptError) as caught:
        WitnessState(world.path)
    assert caught.value.code == "bad-witness-state"


def test_latest_is_404_until_something_was_cosigned(world: World) -> None:
    assert world.cosigner.latest(origin_hash(ORIGIN)) is None
    world.ask(0, 2)
    assert parse_note(world.cosigner.latest(origin_hash(ORIGIN))).text == parse_note(world.log.note(2)).text
    assert world.cosigner.latest(origin_hash("other")) is None
