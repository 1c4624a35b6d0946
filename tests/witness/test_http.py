"""The witness over HTTP, as logs see it: status, media type, limits, retrieval, kill -9."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.core.cosignature import verify_cosignature
from ledger.core.errors import CorruptError, RefusedError, UnavailableError
from ledger.core.keys import generate_key
from ledger.core.note import Note, format_note, format_vkey, parse_note
from ledger.core.policy import Witness
from ledger.outgoing import parse_reach
from ledger.witness.ask import WitnessClient
from ledger.witness.guard import refuse_if_seen_larger
from ledger.witness.wire import MAX_REQUEST_BYTES, origin_hash, parse_signatures
from tests.cli.conftest import run_command
from tests.witness.logs import ORIGIN, MadeLog
from tests.witness.running import RunningWitness, WitnessProcess, running

HERE = parse_reach("127.0.0.1")


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWitness]:
    with running(tmp_path_factory.mktemp("w") / "witness", "witness.example/w1") as made:
        yield made


@pytest.fixture
def log(witness: RunningWitness, request: pytest.FixtureRequest) -> MadeLog:
    made = MadeLog(f"log.example.com/{request.node.name.replace('[', '-').replace(']', '')}")
    witness.know(made.vkey)
    return made


def post(url: str, body: bytes) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def client_of(witness: RunningWitness | WitnessProcess, key, **options) -> WitnessClient:
    return WitnessClient(Witness("w", key, witness.url), timeout_s=20, reach=HERE, **options)


def test_the_wire(witness: RunningWitness, log: MadeLog) -> None:
    url = f"{witness.url}/add-checkpoint"
    latest = f"{witness.url}/{origin_hash(log.origin)}/checkpoint"
    assert get(latest)[0] == 404
    status, _, body = post(url, log.request(0, 5))
    assert status == 200
    assert body.decode().count("\u2014") == 2 == len(parse_signatures(body))
    assert post(url, log.request(0, 5)) == (409, "text/x.tlog.size", b"5\n")
    assert post(url, log.fork(2).request(5, 8))[0] == 422
    assert post(url, MadeLog(log.origin).request(5, 8))[0] == 403
    assert post(url, MadeLog("unknown.example").request(0, 8))[0] == 404
    assert post(url, b"hello")[0] == 400
    status, note = get(latest)
    assert status == 200
    assert [each.name for each in parse_note(note).signatures] == [log.origin, witness.name, witness.name]


def test_bodies_are_bounded(witness: RunningWitness) -> None:
    # The answer may come before all of the body was taken.
    with contextlib.suppress(urllib.error.URLError, ConnectionError):
        assert post(f"{witness.url}/add-checkpoint", bytes(MAX_REQUEST_BYTES + 1))[0] == 413


def test_what_else_is_there(witness: RunningWitness) -> None:
    assert get(f"{witness.url}/healthz") == (200, b"ok\n")
    described = json.loads(get(f"{witness.url}/")[1])
    assert described == {"name": witness.name, "vkeys": [format_vkey(key) for key in witness.keys]}
    assert b"tallystick_witness_requests_total" in get(f"{witness.url}/metrics")[1]
    assert get(f"{witness.url}/add-checkpoint")[0] == 405
    assert get(f"{witness.url}/x/y/z")[0] == 404


@pytest.mark.parametrize("kind", [0, 1])
def test_asking_for_a_cosignature(witness: RunningWitness, log: MadeLog, kind: int) -> None:
    client = client_of(witness, witness.keys[kind])
    for size in (3, 3, 9):
        signature, seconds = client.cosign(log.note(size), lambda old, size=size: log.prove(old, size))
        assert verify_cosignature(parse_note(log.note(size)).text, signature, witness.keys[kind]) == seconds
    late = client_of(witness, witness.keys[kind])  # learns the witness's size from its 409
    late.cosign(log.note(12), lambda old: log.prove(old, 12))
    found = late.latest(log.origin, [log.vkey])
    assert found is not None
    assert found[0] == log.tree(12)


def test_an_older_copy_is_told_so(witness: RunningWitness, log: MadeLog) -> None:
    client_of(witness, witness.keys[0]).cosign(log.note(9), lambda old: log.prove(old, 9))
    with pytest.raises(CorruptError, match="cosigned a tree of 9 leaves") as caught:
        client_of(witness, witness.keys[0]).cosign(log.note(7), lambda old: log.prove(old, 7))
    assert caught.value.code == "log-rolled-back"


def test_a_fork_is_told_so(witness: RunningWitness, log: MadeLog) -> None:
    client_of(witness, witness.keys[0]).cosign(log.note(9), lambda old: log.prove(old, 9))
    fork = log.fork(6)
    with pytest.raises(CorruptError) as caught:
        client_of(witness, witness.keys[0]).cosign(fork.note(11), lambda old: fork.prove(old, 11))
    assert caught.value.code == "forked"


def test_a_witness_that_does_not_know_the_log(witness: RunningWitness) -> None:
    stranger = MadeLog("stranger.example/log")
    with pytest.raises(RefusedError) as caught:
        client_of(witness, witness.keys[0]).cosign(stranger.note(3), lambda old: ())
    assert caught.value.code == "witness-refused"


def test_a_cosignature_by_another_key_is_none(witness: RunningWitness, log: MadeLog) -> None:
    other = type(witness.keys[0]).of(witness.name, 4, generate_key().public.raw_bytes())
    with pytest.raises(UnavailableError, match="no cosignature by the key"):
        client_of(witness, other).cosign(log.note(3), lambda old: ())


def test_internal_hosts_only_if_allowed(witness: RunningWitness) -> None:
    with pytest.raises(RefusedError) as caught:
        WitnessClient(Witness("w", witness.keys[0], witness.url), timeout_s=5)
    assert caught.value.code == "internal-address"


class TestGuard:
    def check(self, log: MadeLog, size: int, **options) -> list:
        return refuse_if_seen_larger(lambda: log.note(size), log.prove, [log.vkey], **options)

    def test_a_log_that_nobody_saw_larger_may_sign(self, witness: RunningWitness, log: MadeLog) -> None:
        clients = [client_of(witness, key) for key in witness.keys]
        assert self.check(log, 5, kept=[log.note(5), log.note(2)], witnesses=clients) == []

    def test_a_larger_tree_at_a_witness(self, witness: RunningWitness, log: MadeLog) -> None:
        client_of(witness, witness.keys[0]).cosign(log.note(9), lambda old: ())
        with pytest.raises(CorruptError) as caught:
            self.check(log, 8, witnesses=[client_of(witness, witness.keys[0])])
        assert caught.value.code == "log-rolled-back"

    @pytest.mark.parametrize(("size", "code"), [(9, "log-rolled-back"), (6, "forked"), (8, "forked")])
    def test_a_kept_checkpoint(self, log: MadeLog, size: int, code: str) -> None:
        kept = log.note(9) if size == 9 else log.fork(4).note(size)
        with pytest.raises(CorruptError) as caught:
            self.check(log, 8, kept=[kept])
        assert caught.value.code == code

    def test_a_replica_that_appends_meanwhile_is_no_alarm(
        self, witness: RunningWitness, log: MadeLog
    ) -> None:
        client_of(witness, witness.keys[0]).cosign(log.note(9), lambda old: ())
        heads = iter([8, 8, 10])
        unasked = refuse_if_seen_larger(
            lambda: log.note(next(heads)),
            log.prove,
            [log.vkey],
            witnesses=[client_of(witness, witness.keys[0])],
        )
        assert unasked == []

    def test_who_cannot_be_asked(self, witness: RunningWitness, log: MadeLog) -> None:
        away = Witness("away", witness.keys[0], "http://127.0.0.1:1")
        unasked = self.check(log, 5, witnesses=[WitnessClient(away, timeout_s=2, reach=HERE)])
        assert [each.code for each in unasked] == ["witness-unavailable"]
        with pytest.raises(UnavailableError):
            self.check(log, 5, witnesses=[WitnessClient(away, timeout_s=2, reach=HERE)], strict=True)


def test_killed_at_any_moment_it_never_forgets(tmp_path: Path) -> None:
    """Cosigned as fast as it goes, the witness is killed (-9) again and again; then a fork is tried."""
    log = MadeLog(ORIGIN)
    vkeys = tmp_path / "log.vkey"
    vkeys.write_text(format_vkey(log.vkey))
    assert (
        run_command(
            "witness", "init", tmp_path / "w", "--name", "w.example/1", "--algorithm", "ed25519"
        ).exit_code
        == 0
    )
    assert run_command("witness", "add-log", tmp_path / "w", "--log-key", vkeys).exit_code == 0
    from ledger.core.note import parse_vkey

    key = parse_vkey((tmp_path / "w" / "witness.vkeys").read_text().strip())
    process = WitnessProcess(tmp_path / "w")
    process.start()
    answered = 0
    try:
        for round_ in range(3):
            killer = threading.Timer(0.15 + 0.1 * round_, process.kill)
            client = client_of(process, key)
            killer.start()
            size = answered + 1
            with pytest.raises((UnavailableError, ConnectionError)):  # noqa: PT012
                while True:
                    client.cosign(log.note(size), lambda old, size=size: log.prove(old, size))
                    answered, size = size, size + 1
            killer.join()
            process.start()
            status, _, body = post(f"{process.url}/add-checkpoint", log.request(0, 1))
            remembered = int(body) if status == 409 else 1
            assert answered <= remembered <= size  # what was answered, and at most the one under way
            fork = log.fork(max(0, remembered - 1))
            assert post(f"{process.url}/add-checkpoint", fork.request(remembered, remembered + 3))[0] == 422
            answered = remembered
        assert answered > 0
    finally:
        process.kill()


def test_signatures_are_appended_to_the_checkpoint(witness: RunningWitness, log: MadeLog) -> None:
    """What the specification lets clients do: read the checkpoint and the answer as one note."""
    note = log.note(4)
    _, _, body = post(f"{witness.url}/add-checkpoint", log.request(0, 4))
    whole = parse_note(note + body)
    assert whole == Note(parse_note(note).text, parse_note(note).signatures + parse_signatures(body))
    assert format_note(whole) == note + body
