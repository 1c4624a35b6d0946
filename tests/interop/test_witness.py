"""Asks another implementation's witness: torchwood's, in Go, where TALLYSTICK_OTHER_WITNESS names one.

The program takes: state file, name, hex seed of its key, address, then origin and verifier key of each log;
it prints its verifier key. `docs/how-to/witness.md` tells how one is built. Without it, the cases of the
specification in `tests/witness` are what there is.
"""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.children import free_port
from ledger.core.cosignature import verify_cosignature
from ledger.core.errors import CorruptError
from ledger.core.note import Note, VerifierKey, format_note, format_vkey, parse_note, parse_vkey
from ledger.core.policy import Witness
from ledger.outgoing import parse_reach
from ledger.witness.ask import WitnessClient
from ledger.witness.cosigning import Cosigner
from ledger.witness.state import WitnessState, create_state
from ledger.witness.wire import AddCheckpoint, format_request
from tests.witness.logs import MadeLog
from tests.witness.running import wait_for

PROGRAM = os.environ.get("TALLYSTICK_OTHER_WITNESS")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="TALLYSTICK_OTHER_WITNESS names no witness to ask")
NAME = "other.example/witness"


@pytest.fixture
def log() -> MadeLog:
    return MadeLog("log.example.com/other")


@pytest.fixture
def other(log: MadeLog, tmp_path: Path) -> Iterator[tuple[str, VerifierKey]]:
    port = free_port()
    command = [str(PROGRAM), tmp_path / "state", NAME, "07" * 32, f"127.0.0.1:{port}", log.origin]
    process = subprocess.Popen([*command, format_vkey(log.vkey)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    key = parse_vkey(process.stdout.readline().decode().strip())
    try:
        yield f"http://127.0.0.1:{port}", key
    finally:
        process.kill()
        process.wait()


def client(other: tuple[str, VerifierKey]) -> WitnessClient:
    return WitnessClient(Witness("o", other[1], other[0]), timeout_s=20, reach=parse_reach("127.0.0.1"))


def test_it_cosigns_what_we_send(other, log: MadeLog) -> None:
    asking = client(other)
    for size in (1, 2, 3, 8, 8, 300, 513):
        signature, seconds = asking.cosign(log.note(size), lambda old, size=size: log.prove(old, size))
        assert verify_cosignature(parse_note(log.note(size)).text, signature, other[1]) == seconds
    late = client(other)  # its conflict tells the size
    late.cosign(log.note(600), lambda old: log.prove(old, 600))


@pytest.mark.parametrize(("at", "size", "code"), [(4, 20, "forked"), (9, 9, "log-rolled-back")])
def test_it_refuses_what_we_refuse(other, log: MadeLog, at: int, size: int, code: str) -> None:
    client(other).cosign(log.note(12), lambda old: ())
    fork = log.fork(at)
    with pytest.raises(CorruptError) as caught:
        client(other).cosign(fork.note(size), lambda old: fork.prove(old, size))
    assert caught.value.code == code


def test_both_answer_alike(other, log: MadeLog, tmp_path: Path) -> None:
    """One request after the other to both witnesses: the same status, and the same size in conflicts."""
    from ledger.core.keys import generate_key

    create_state(tmp_path / "ours.db")
    ours = Cosigner("ours.example/w", [generate_key()], WitnessState(tmp_path / "ours.db"))
    ours.state.add_log(log.origin, (log.vkey,))
    stranger = MadeLog(log.origin)
    fork = log.fork(3)
    broken = parse_note(log.note(9))
    wrong = type(broken.signatures[0])(log.origin, broken.signatures[0].key_id, bytes(64))
    requests = [
        log.request(0, 5), log.request(0, 5), log.request(5, 5), log.request(5, 8), log.request(5, 8),
        log.request(3, 9), fork.request(8, 9), fork.request(8, 8), stranger.request(8, 9),
        format_request(AddCheckpoint(9, (), log.note(8))), format_request(AddCheckpoint(8, (), log.note(9))),
        format_request(AddCheckpoint(8, (*log.prove(8, 9)[::-1], bytes(32)), log.note(9))),
        format_request(AddCheckpoint(8, log.prove(8, 9), format_note(Note(broken.text, (wrong,))))),
        b"", b"old x\n\n" + log.note(9), b"old 8\nAAAA\n\n" + log.note(9), log.request(8, 9),
        log.request(9, 64),
    ]  # fmt: skip
    for number, body in enumerate(requests):
        reply = ours.add_checkpoint(body)
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{other[0]}/add-checkpoint", body), timeout=20
            ) as answer:
                status, theirs = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, theirs = error.code, error.read()
        assert reply.status == status, f"request {number}: {reply} but {status} {theirs!r}"
        if status == 409:
            assert reply.body == theirs
    wait_for(lambda: True)
