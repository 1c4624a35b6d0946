"""A real service and real witnesses: cosigned checkpoints are served and proved to; old copies refused."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cli.folder import Folder, ask_witnesses
from ledger.core.checkpoint import open_checkpoint, parse_checkpoint_text
from ledger.core.errors import CorruptError, InvalidError, RefusedError
from ledger.core.note import parse_note, parse_vkey
from ledger.core.policy import check_witnessed, cosigned_by, parse_policy
from ledger.core.tlog_proof import parse_tlog_proof, verify_tlog_proof
from ledger.outgoing import parse_reach
from ledger.service import Settings, create_api_key, create_app
from ledger.store import open_store, queries
from ledger.store.witnessed import newest_witnessed
from tests.build import Ledger, make_ledger, make_records
from tests.cli.conftest import run_command
from tests.service.conftest import BATCH
from tests.witness.running import RunningWitness, policy_text, running, wait_for

ORIGIN = "log.example.com/tallystick"
FAST = {"witness_interval_ms": 50, "witness_timeout_s": 5}


@pytest.fixture(autouse=True)
def _reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYSTICK_INTERNAL_HOSTS", "127.0.0.1")


@pytest.fixture
def witnesses(tmp_path: Path) -> Iterator[tuple[RunningWitness, RunningWitness]]:
    with (
        running(tmp_path / "w0", "w0.example/w", ["ed25519"]) as one,
        running(tmp_path / "w1", "w1.example/w", ["ml-dsa-44"]) as two,
    ):
        yield one, two


class Log:
    """A ledger in a folder, served in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ledger: Ledger = make_ledger(folder)
        self.token = create_api_key(self.ledger.store, "all", ["emit", "read"])
        self.policy = folder / "witnesses.policy"
        self.sent = 0

    @property
    def vkey(self):
        return parse_vkey(self.client.get("/log").json()["vkey"])

    @contextmanager
    def serving(self, **settings) -> Iterator[TestClient]:
        chosen = Settings(witness_policy=str(self.policy), **(FAST | settings))
        with TestClient(create_app(self.ledger.store, self.ledger.log_key, chosen)) as client:
            self.client = client
            yield client

    def send(self) -> int:
        """Log a batch; return its leaf index."""
        self.sent += 1
        batch = self.ledger.issuer.batch(make_records(2, self.ledger.digest, first=2 * self.sent))
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": BATCH}
        answer = self.client.post("/batches", content=batch.body, headers=headers)
        assert answer.status_code == 201, answer.text
        return int(answer.headers["Location"].rpartition("/")[2])

    def checkpoint(self) -> bytes:
        return self.client.get("/checkpoint").content

    def size(self) -> int:
        return parse_checkpoint_text(parse_note(self.checkpoint()).text).size

    def await_quorum(self, leaf: int) -> None:
        """Wait until a cosigned checkpoint that covers ``leaf`` is served."""

        def there() -> bool:
            note = parse_note(self.checkpoint())
            return parse_checkpoint_text(note.text).size > leaf and len(note.signatures) == 3

        wait_for(there, 60)

    def back_up(self) -> Path:
        """A copy of the database as it is now."""
        with self.ledger.store.engine.connect() as connection:
            copy = self.folder / "copy.db"
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql(f"VACUUM INTO '{copy}'")
        return copy

    def restore(self, copy: Path) -> None:
        """Put the database back to a copy."""
        self.ledger.store.close()
        for each in self.folder.glob("ledger.db*"):
            each.unlink()
        shutil.copy(copy, self.folder / "ledger.db")
        self.ledger.store = open_store(self.folder / "ledger.db")


@pytest.fixture
def log(tmp_path: Path, witnesses: tuple[RunningWitness, RunningWitness]) -> Iterator[Log]:
    from ledger.core.log_keys import log_verifier_key

    made = Log(tmp_path / "ledger")
    for each in witnesses:
        each.know(log_verifier_key(ORIGIN, made.ledger.log_key.public))
    made.policy.write_text(policy_text(*witnesses))
    yield made
    made.ledger.store.close()


def offline(log: Log, witnesses: tuple[RunningWitness, ...]):
    return parse_policy(policy_text(*witnesses, logs=[log.vkey]).encode())


def test_a_quorum_cosigns_each_checkpoint(log: Log, witnesses) -> None:
    with log.serving():
        for _ in range(3):
            leaf = log.send()
            log.await_quorum(leaf)
            checkpoint, cosigned = check_witnessed(log.checkpoint(), offline(log, witnesses))
            assert set(cosigned) == {"w0", "w1"}
            assert all(abs(seconds - time.time()) < 60 for seconds in cosigned.values())
            assert checkpoint.size > leaf
    assert witnesses[0].size(ORIGIN) == witnesses[1].size(ORIGIN) == checkpoint.size


def test_proofs_carry_the_cosignatures(log: Log, witnesses) -> None:
    with log.serving() as client:
        leaf = log.send()
        log.await_quorum(leaf)
        headers = {"Authorization": f"Bearer {log.token}"}
        entry = client.get(f"/entries/{leaf}/statement", headers=headers).content
        proof = parse_tlog_proof(client.get(f"/entries/{leaf}/proof", headers=headers).content)
        from ledger.core.merkle import leaf_hash

        keys = [each.keys[0] for each in witnesses]
        assert verify_tlog_proof(proof, leaf_hash(entry), log.vkey, keys, 2).size > leaf
        record = client.get("/records?limit=1", headers=headers).json()["records"][0]["record"]["id"]
        note = client.get(f"/records/{record}/proof", headers=headers).json()["checkpoint"].encode()
        assert len(cosigned_by(parse_note(note), offline(log, witnesses))) == 2


def test_registration_does_not_wait_and_the_checkpoint_does(log: Log, witnesses) -> None:
    with log.serving():
        log.await_quorum(log.send())
        witnesses[1].stop()
        before = log.size()
        begun = time.monotonic()
        leaf = [log.send() for _ in range(5)][-1]
        assert time.monotonic() - begun < 20
        wait_for(lambda: witnesses[0].size(ORIGIN) > leaf)  # the other one goes on
        assert log.size() == before  # what is published has its quorum
        assert b'outcome="witness-unavailable"' in log.client.get("/metrics").content
        witnesses[1].start()
        log.await_quorum(leaf)
        check_witnessed(log.checkpoint(), offline(log, witnesses))


def test_published_at_once_if_the_operator_wants(log: Log, witnesses) -> None:
    witnesses[1].stop()
    try:
        with log.serving(publish_unwitnessed=True):
            leaf = log.send()
            assert log.size() > leaf
            wait_for(lambda: len(parse_note(log.checkpoint()).signatures) == 2)
    finally:
        witnesses[1].start()


def test_the_checkpoint_never_goes_back(log: Log, witnesses) -> None:
    """Not even while the first quorum is still to come."""
    with log.serving():
        sizes = []
        for _ in range(10):
            log.send()
            sizes += [log.size() for _ in range(5)]
        wait_for(lambda: log.size() == witnesses[0].size(ORIGIN) == 3 + log.sent)
        sizes.append(log.size())
    assert sizes == sorted(sizes)
    with log.serving():
        assert log.size() >= sizes[-1]


def test_kept_cosigned_checkpoints_are_the_newest_few(log: Log, monkeypatch) -> None:
    monkeypatch.setattr("ledger.store.witnessed.KEPT", 3)
    with log.serving():
        for _ in range(6):
            leaf = log.send()
            log.await_quorum(leaf)
    with log.ledger.store.read() as connection:
        count = connection.exec_driver_sql("SELECT COUNT(*) FROM witnessed").scalar_one()
        newest = newest_witnessed(connection)
    assert count <= 4
    assert newest is not None
    assert newest.size == leaf + 1


@pytest.mark.sqlite
def test_fork_drill_a_restored_old_copy_is_refused(log: Log, witnesses) -> None:
    """A copy that is consistent with itself, without anything of the operator's own that knows better."""
    with log.serving():
        log.send()
        copy, issuer = log.back_up(), dataclasses.replace(log.ledger.issuer)
        leaf = log.send()
        log.await_quorum(leaf)
    log.restore(copy)
    with pytest.raises(CorruptError) as caught, log.serving():
        pass
    assert caught.value.code == "log-rolled-back"
    # Somebody starts it nevertheless, without witnesses, and it grows past the old size: now it is a fork.
    with TestClient(create_app(log.ledger.store, log.ledger.log_key)) as client:
        log.client, log.ledger.issuer = client, issuer
        for _ in range(4):
            log.sent += 100  # other records than those that were lost
            log.send()
        assert open_checkpoint(log.checkpoint(), log.vkey).size > leaf + 1
    with pytest.raises(CorruptError) as caught, log.serving():
        pass
    assert caught.value.code == "forked"
    assert [
        why for _, _, why, _ in witnesses[0].cosigner.state.evidence(ORIGIN)
    ]  # the witness keeps the proof


def test_it_starts_while_witnesses_are_away(log: Log, witnesses) -> None:
    for each in witnesses:
        each.stop()
    try:
        with log.serving():
            log.send()
    finally:
        for each in witnesses:
            each.start()


def test_a_policy_that_cannot_be_used_is_refused(log: Log, monkeypatch) -> None:
    good = log.policy.read_text()
    monkeypatch.setenv("TALLYSTICK_INTERNAL_HOSTS", "")
    with pytest.raises(RefusedError) as caught, log.serving():
        pass
    assert caught.value.code == "internal-address"
    monkeypatch.setenv("TALLYSTICK_INTERNAL_HOSTS", "127.0.0.1")
    for wrong in (
        good.replace("http://", "ftp://"),
        good.replace("quorum", "quarum"),
        good.replace(" http", " #"),
    ):
        log.policy.write_text(wrong)
        with pytest.raises(InvalidError), log.serving():
            pass
    log.policy.unlink()
    with pytest.raises(InvalidError) as missing, log.serving():
        pass
    assert missing.value.code == "bad-policy"


def test_two_services_on_one_log(log: Log, witnesses) -> None:
    """Replicas that both ask: neither takes the other's progress for a rollback."""
    chosen = Settings(witness_policy=str(log.policy), **FAST)
    second = open_store(log.folder / "ledger.db")
    with log.serving() as one, TestClient(create_app(second, log.ledger.log_key, chosen)) as two:
        for number in range(6):
            log.client = (one, two)[number % 2]
            leaf = log.send()
        for log.client in (one, two):
            log.await_quorum(leaf)
            metrics = log.client.get("/metrics").content
            assert b"log-rolled-back" not in metrics
            assert b"forked" not in metrics
    second.close()


def test_restoring_asks_the_witnesses(
    tmp_path: Path, witnesses: tuple[RunningWitness, RunningWitness]
) -> None:
    from cli.folder import Folder
    from ledger.service.witnessing import Witnessing
    from ledger.store.log_keys import log_verifier_keys
    from tests.cli.conftest import json_of, run_command

    path, policy = tmp_path / "ledger", tmp_path / "witnesses.policy"
    assert run_command("init", path, "--origin", ORIGIN).exit_code == 0
    key = parse_vkey((path / "log.vkey").read_text().strip())
    for each in witnesses:
        each.know(key)
    policy.write_text(policy_text(*witnesses))

    def cosign() -> None:
        store = Folder(path).open()
        with store.read() as connection:
            keys = log_verifier_keys(connection)
        reach = parse_reach("127.0.0.1")
        Witnessing(store, parse_policy(policy.read_bytes()), keys, reach=reach).check_before_start(
            strict=True
        )
        store.close()

    def restore(backup: str, into: str) -> tuple[int, str]:
        keys = ("--log-key", path / "keys" / "log.pem", "--policy", policy)
        done = run_command("restore", tmp_path / backup, tmp_path / into, *keys, "--json")
        return done.exit_code, json_of(done).get("error", {}).get("code", "")

    assert run_command("backup", path, tmp_path / "old").exit_code == 0
    run_command("keys", "generate", tmp_path / "issuer.pem")
    added = run_command("issuers", "add", path, "x.example/y", "--key", tmp_path / "issuer.pem")
    assert added.exit_code == 0, added.output  # it grows
    assert run_command("backup", path, tmp_path / "new").exit_code == 0
    cosign()
    assert restore("old", "one") == (2, "log-rolled-back")
    assert not (tmp_path / "one").exists()
    assert restore("new", "two") == (0, "")
    assert (tmp_path / "two" / "log.vkey").read_text() == (path / "log.vkey").read_text()
    assert (tmp_path / "two" / "witnesses.policy").read_bytes() == policy.read_bytes()
    witnesses[0].stop()
    assert restore("new", "three") == (2, "witness-unavailable")
    witnesses[0].start()


@pytest.mark.sqlite
def test_no_command_signs_with_an_older_copy(
    tmp_path: Path, witnesses: tuple[RunningWitness, RunningWitness]
) -> None:
    """Witnesses named in the folder are asked by whatever would sign, not by a service that runs alone."""
    path, old = tmp_path / "ledger", tmp_path / "old"
    assert run_command("init", path, "--origin", ORIGIN).exit_code == 0
    for each in witnesses:
        each.know(parse_vkey((path / "log.vkey").read_text().strip()))
    (path / "witnesses.policy").write_text(policy_text(*witnesses))
    shutil.copytree(path, old)
    run_command("keys", "generate", tmp_path / "issuer.pem")
    add = ("x.example/y", "--key", tmp_path / "issuer.pem")
    assert run_command("issuers", "add", path, *add).exit_code == 0
    store = Folder(path).open()
    with store.read() as connection:
        size = queries.log_head(connection).size
    ask_witnesses(store, path / "witnesses.policy", strict=True)  # they cosign what was added
    store.close()
    for command in (
        ("issuers", "add", old, *add),
        ("log-key", "rotate", old),
        ("log-key", "freeze", old, "--yes"),
        ("api-keys", "create", old, "--scope", "read", "--label", "x"),
        ("serve", old, "--port", "1"),
    ):
        done = run_command(*command, "--json")
        assert done.exit_code == 2, command
        assert "log-rolled-back" in done.stdout, (command, done.output)
        assert f"cosigned a tree of {size} leaves" in done.stdout
    shutil.copy(path / "published.checkpoint", old)
    (old / "witnesses.policy").unlink()
    for command in (("issuers", "add", old, *add), ("log-key", "rotate", old)):
        assert "was published" in run_command(*command, "--json").stdout


@pytest.mark.sqlite
def test_auditors_judge_by_the_policy(log: Log, witnesses) -> None:
    from ledger.audit import audit, open_source, verify_data
    from ledger.core.checkpoint import Checkpoint
    from ledger.core.log_keys import sign_tree_head
    from ledger.core.note import format_vkey

    with log.serving() as client:
        leaf = log.send()
        log.await_quorum(leaf)
        headers = {"Authorization": f"Bearer {log.token}"}
        entry = client.get(f"/entries/{leaf}/statement", headers=headers).content
        proof = client.get(f"/entries/{leaf}/proof", headers=headers).content
        receipt = client.get(f"/entries/{leaf}", headers=headers).content
        cosigned, judged, vkey = log.checkpoint(), offline(log, witnesses), format_vkey(log.vkey)
    bare = log.ledger.log_key
    with log.ledger.store.read() as connection:
        from ledger.store import queries

        head = queries.log_head(connection)
    alone = sign_tree_head(Checkpoint(ORIGIN, head.size, head.root), [bare], 1_700_000_000)

    def verified(data: bytes, **options) -> tuple[str, list[str]]:
        report = verify_data(data, vkey, policy=judged, **options)
        return report.verdict, [each.code for each in report.findings]

    assert verified(cosigned) == ("sound", [])
    assert verified(proof, statement=entry) == ("sound", [])
    assert verified(alone) == ("refuted", ["quorum-missed"])
    assert verified(receipt, statement=entry) == ("unknown", [])

    def audited() -> tuple[str, set[str]]:
        report = audit(open_source(log.folder / "ledger.db"), vkey, policy=judged)
        return report.verdict, {each.code for each in report.findings}

    assert audited() == ("sound", set())
    fork = sign_tree_head(Checkpoint(ORIGIN, leaf + 1, b"\1" * 32), [bare], 1_700_000_000).decode()
    with log.ledger.store.write() as connection:
        connection.exec_driver_sql("UPDATE witnessed SET note = ? WHERE size = ?", (fork, leaf + 1))
    assert audited() == ("refuted", {"forked"})  # an older one has its quorum still
    with log.ledger.store.write() as connection:
        connection.exec_driver_sql("DELETE FROM witnessed")
    assert audited() == ("refuted", {"quorum-missed"})
