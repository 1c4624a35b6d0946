"""Three replicas on one database, four emitters: replicas killed and paused, PostgreSQL restarted at once.

TALLYSTICK_FAULT_MINUTES sets for how long (SQLite: half of that), TALLYSTICK_FAULT_SEED what happens when.
Afterwards no acknowledged record is lost or doubled, there is one history, and every checkpoint ever served
is one of its states.
"""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from cli.folder import DATABASE_VARIABLE
from cli.init import init_folder
from ledger import zstd
from ledger.audit import audit
from ledger.audit.database import PostgresSource, SqliteSource
from ledger.core import receipts
from ledger.core.chain import ChainHead, next_head
from ledger.core.checkpoint import open_checkpoint
from ledger.core.merkle import CompactRange, leaf_hash
from ledger.core.note import VerifierKey, parse_vkey
from ledger.core.records import decode_record_lines
from ledger.core.statements import Batch, SignedStatement, decode_statement
from ledger.emit import Recorder
from ledger.keyfiles import load_private_key
from ledger.store import Sequencer, open_store
from tests.build import Issuer, make_deployment, make_records
from tests.databases import Postgres, running_postgres
from tests.faults.counting import MAX_BLOCK_BYTES
from tests.faults.replicas import Balancer, Chaos, Replica, make_replicas

MINUTES = float(os.environ.get("TALLYSTICK_FAULT_MINUTES", "0.2"))
SEED = int(os.environ.get("TALLYSTICK_FAULT_SEED", str(time.time_ns())))
REPLICAS, EMITTERS, SENDERS = 3, 4, 2
RECORDS = 8
DEPLOYMENT = make_deployment()
ROOT = Path(__file__).parents[2]


@dataclass
class Emitter:
    """A process that records, and what it said."""

    issuer: str
    process: subprocess.Popen[bytes]
    recorded: list[str] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    closed: bool = False

    def listen(self) -> None:
        """Hear it out; for a thread."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, record_id = line.decode().rstrip("\n").partition(" ")
            match word:
                case "recorded":
                    self.recorded.append(record_id)
                case "acknowledged":
                    self.acknowledged.update(self.recorded)
                case "closed":
                    self.closed = True


@dataclass
class Sender(threading.Thread):
    """An issuer that repeats each batch until some replica acknowledges it, and keeps the receipts."""

    port: int
    token: str
    number: int
    issuer: Issuer
    stopping: threading.Event
    acknowledged: list[tuple[SignedStatement, bytes]] = field(default_factory=list)
    tries: int = 0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        deployment = self.issuer.deployment(DEPLOYMENT)
        self.send("/entries", "application/cose", deployment.entry, deployment)
        while not self.stopping.is_set() and not self.errors:
            first = len(self.acknowledged) * RECORDS
            batch = self.issuer.batch(make_records(RECORDS, DEPLOYMENT, first=first, salt=f"{self.number} "))
            self.send("/batches", "application/vnd.tallystick.batch+cbor", batch.body, batch.statement)
            time.sleep(0.02)

    def send(self, path: str, media_type: str, body: bytes, statement: SignedStatement) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": media_type}
        while True:
            self.tries += 1
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                status, answer = response.status, response.read()
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            finally:
                connection.close()
            if status in (200, 201):
                self.acknowledged.append((statement, answer))
                return
            if status < 500:
                self.errors.append(f"{status} {answer!r}")
                return
            time.sleep(0.05)


@dataclass
class Watcher(threading.Thread):
    """Asks one replica after the other for its checkpoint: none may be older than the one before."""

    replicas: list[Replica]
    vkey: VerifierKey
    stopping: threading.Event
    served: set[bytes] = field(default_factory=set)
    went_back: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        newest = 0
        while not self.stopping.is_set():
            for replica in self.replicas:
                note = replica.get("/checkpoint")
                if note is None:
                    continue
                self.served.add(note)
                size = open_checkpoint(note, self.vkey).size
                if size < newest:
                    self.went_back.append((newest, size))
                newest = size
            time.sleep(0.01)


@pytest.fixture(params=["postgresql", "sqlite"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Postgres | None, str]]:
    """A server that the test may crash, and the URL of a database of it; or a file."""
    if request.param == "sqlite":
        monkeypatch.setenv(DATABASE_VARIABLE, str(tmp_path / "shared.db"))
        yield None, str(tmp_path / "shared.db")
        return
    with running_postgres() as server:
        url = server.create()
        monkeypatch.setenv(DATABASE_VARIABLE, url)
        yield server, url


@pytest.mark.faults
@pytest.mark.timeout(600 + 90 * MINUTES)
def test_replicas_lose_and_double_nothing(database: tuple[Postgres | None, str], tmp_path: Path) -> None:
    postgres, url = database
    chance = random.Random(SEED)
    seconds = 60 * MINUTES * (1 if postgres is not None else 0.5)
    print(f"seed {SEED}, {seconds:.0f} s")
    folder = tmp_path / "ledger"
    init_folder(folder, "log.faults.example")
    vkey = parse_vkey((folder / "log.vkey").read_text().strip())
    token = (folder / "admin.key").read_text().strip()
    issuers = [Issuer(f"sender-{n}.faults.example") for n in range(SENDERS)]
    names = [f"emitter-{n}.faults.example" for n in range(EMITTERS)]
    spools = [tmp_path / f"spool-{n}" for n in range(EMITTERS)]
    register(folder, url, issuers, dict(zip(names, spools, strict=True)))

    replicas = make_replicas(folder, url, REPLICAS)
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.wait()
    balancer = Balancer(replicas, SEED)
    environment = os.environ | {
        "TALLYSTICK_URL": f"http://127.0.0.1:{balancer.port}",
        "TALLYSTICK_API_KEY": token,
        "TALLYSTICK_LOG_KEY": str(folder / "log.vkey"),
        "PYTHONPATH": str(ROOT),
    }
    emitters = []
    for name, spool in zip(names, spools, strict=True):
        command = [
            sys.executable,
            "-m",
            "tests.faults.emitter",
            str(chance.getrandbits(60)),
            str(spool),
            name,
        ]
        with (tmp_path / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=tmp_path,
            )
        emitters.append(Emitter(name, process))
    stopping = threading.Event()
    senders = [Sender(balancer.port, token, n, issuer, stopping) for n, issuer in enumerate(issuers)]
    watcher = Watcher(replicas, vkey, stopping)
    listeners = [threading.Thread(target=each.listen, daemon=True) for each in emitters]
    for thread in (*senders, watcher, *listeners):
        thread.start()
    chaos = Chaos(replicas, postgres, chance)
    try:
        chaos.run(seconds)
        stopping.set()
        for each in emitters:
            _tell(each)
        for thread in (*senders, watcher, *listeners):
            thread.join(180)
            assert not thread.is_alive()
        for replica in replicas:
            replica.stop()
    finally:
        balancer.close()
        for each in emitters:
            each.process.kill()
        for replica in replicas:
            if replica.running:
                replica.kill()

    assert [sender.errors for sender in senders] == [[]] * SENDERS
    assert watcher.went_back == []
    for replica in replicas:
        assert "log-rolled-back" not in replica.log
        assert "inconsistent-log" not in replica.log
        assert "fence-lost" not in replica.log
    logged = check_history(
        url, vkey, watcher.served, senders, load_private_key(folder / "keys/log.pem").public
    )
    total = 0
    for each in emitters:
        assert each.closed
        total += len(each.recorded)
        assert set(each.recorded) == each.acknowledged  # all was sent in the end
        for record_id in each.recorded:
            assert logged[record_id] == 1
    sent = RECORDS * sum(len(sender.acknowledged) - 1 for sender in senders)
    assert sum(logged.values()) == len(logged) == total + sent
    print(
        f"{sum(r.kills for r in replicas)} kills, {chaos.restarts} restarts of PostgreSQL, {chaos.stopped} "
        f"pauses; {len(logged)} records, {len(watcher.served)} checkpoints served, "
        f"{sum(each.tries for each in senders)} tries for {sum(len(s.acknowledged) for s in senders)} batches"
    )
    source = PostgresSource(url) if postgres is not None else SqliteSource(url)
    report = audit(source, (folder / "log.vkey").read_text().strip())
    assert report.verdict == "sound", report.findings


def _tell(emitter: Emitter) -> None:
    assert emitter.process.stdin is not None
    emitter.process.stdin.write(b"stop\n")
    emitter.process.stdin.flush()


def register(folder: Path, url: str, issuers: list[Issuer], spools: dict[str, Path]) -> None:
    """Log the keys of all issuers; recorders make theirs in their spools."""
    store = open_store(url)
    sequencer = Sequencer(store, load_private_key(folder / "keys" / "log.pem"))
    sequencer.start()
    for issuer in issuers:
        sequencer.add_key(issuer.name, issuer.key.public).result(30)
    for name, spool in spools.items():
        with Recorder(spool=spool, issuer=name, deployment=DEPLOYMENT) as recorder:
            sequencer.add_key(name, recorder.public_key).result(30)
    sequencer.stop()
    store.close()


def check_history(
    url: str, vkey: VerifierKey, served: set[bytes], senders: list[Sender], log_key: object
) -> Counter[str]:
    """One chain for each issuer, one tree, of which every checkpoint is a state; the records, counted."""
    store = open_store(url)
    with store.read() as connection:
        rows = connection.execute(text("SELECT entry, records FROM statement ORDER BY leaf_index")).all()
        stored = connection.execute(text("SELECT note FROM checkpoint")).scalars().all()
    store.close()
    notes = [open_checkpoint(note, vkey) for note in {*served, *(each.encode() for each in stored)}]
    assert len(served) > 3
    wanted: dict[int, set[bytes]] = {}
    for note in notes:
        wanted.setdefault(note.size, set()).add(note.root)
    tree, places = CompactRange(), {}
    heads: dict[str, ChainHead] = {}
    logged: Counter[str] = Counter()
    for entry, block in rows:
        leaf = leaf_hash(bytes(entry))
        assert leaf not in places
        places[leaf] = tree.size
        tree.append(leaf)
        assert wanted.pop(tree.size, {tree.root()}) == {tree.root()}
        statement = decode_statement(bytes(entry))
        heads[statement.issuer] = next_head(heads.get(statement.issuer, ChainHead()), statement)
        if isinstance(statement.payload, Batch):
            lines = zstd.decompress_bounded(bytes(block), MAX_BLOCK_BYTES)
            assert lines is not None
            logged.update(record.id for record in decode_record_lines(lines)[0])
    assert not wanted  # no checkpoint is of a tree that does not exist
    for sender in senders:
        assert len(sender.acknowledged) > 1
        for statement, answer in sender.acknowledged:
            receipt = receipts.decode_receipt(answer)
            receipts.verify_receipt(receipt, statement.leaf_hash, log_key, subject=statement.subject)
            assert places[statement.leaf_hash] == receipt.leaf_index
    return logged
