"""kill -9 of the service under load: what it acknowledged is there once, its checkpoints hold.

TALLYSTICK_FAULT_ROUNDS sets how often it is killed, TALLYSTICK_FAULT_SEED when.
"""

from __future__ import annotations

import http.client
import os
import random
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cli.init import init_folder
from ledger.core import merkle, receipts
from ledger.core.checkpoint import open_checkpoint
from ledger.core.note import parse_vkey
from ledger.core.statements import Batch, SignedStatement, decode_statement
from ledger.keyfiles import load_private_key
from ledger.store import Sequencer, open_store, queries
from tests.build import Issuer, make_deployment, make_records
from tests.emit.real_service import RealService

ROUNDS = int(os.environ.get("TALLYSTICK_FAULT_ROUNDS", "3"))
SEED = int(os.environ.get("TALLYSTICK_FAULT_SEED", str(time.time_ns())))
SENDERS = 3
RECORDS = 8
DEPLOYMENT = make_deployment()


def ask(service: RealService, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
    """One request over a connection of its own: status and body.

    Raises:
        OSError: there was no whole answer.
    """
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(repr(error)) from error
    finally:
        connection.close()


@dataclass
class Sender(threading.Thread):
    """An issuer that sends batches for ever, repeating each until it is acknowledged."""

    service: RealService
    token: str
    number: int
    stopping: threading.Event
    issuer: Issuer
    acknowledged: list[tuple[SignedStatement, bytes]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        while not self.stopping.is_set() and not self.errors:
            first = len(self.acknowledged) * RECORDS
            records = make_records(RECORDS, DEPLOYMENT, first=first, salt=f"sender {self.number} ")
            batch = self.issuer.batch(records)
            self.send("/batches", "application/vnd.tallystick.batch+cbor", batch.body, batch.statement)

    def send(self, path: str, media_type: str, body: bytes, statement: SignedStatement) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": media_type}
        while True:
            try:
                status, answer = ask(self.service, "POST", path, body, headers)
            except OSError:
                time.sleep(0.02)
                continue
            if status in (200, 201):
                self.acknowledged.append((statement, answer))
                return
            if status < 500:
                self.errors.append(f"{status} {answer!r}")
                return


@pytest.mark.faults
@pytest.mark.timeout(60 + 30 * ROUNDS)
def test_kill_nine_loses_and_doubles_nothing(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}, {ROUNDS} rounds")
    folder = tmp_path / "ledger"
    init_folder(folder, "log.faults.example")
    log_key = load_private_key(folder / "keys" / "log.pem")
    vkey = parse_vkey((folder / "log.vkey").read_text().strip())
    issuers = [Issuer(f"gpu-{n}.faults.example") for n in range(SENDERS)]
    store = open_store(folder / "ledger.db")
    sequencer = Sequencer(store, log_key)
    sequencer.start()
    for issuer in issuers:
        sequencer.add_key(issuer.name, issuer.key.public).result()
    sequencer.stop()
    store.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        service = RealService(folder, free.getsockname()[1])
    service.start()
    token = (folder / "admin.key").read_text().strip()
    stopping = threading.Event()
    senders = [Sender(service, token, n, stopping, issuer) for n, issuer in enumerate(issuers)]
    deployment = issuers[0].deployment(DEPLOYMENT)
    senders[0].send("/entries", "application/cose", deployment.entry, deployment)
    served: set[bytes] = set()

    def watch() -> None:
        while not stopping.is_set():
            try:
                status, note = ask(service, "GET", "/checkpoint")
            except OSError:
                time.sleep(0.01)
            else:
                if status == 200:
                    served.add(note)

    threads = [*senders, threading.Thread(target=watch, daemon=True)]
    for thread in threads:
        thread.start()
    for _ in range(ROUNDS):
        progress = sum(len(sender.acknowledged) for sender in senders)
        time.sleep(chance.uniform(0.02, 0.5))
        service.kill()
        service.start()
        for _ in range(500):  # each life of the service must do some work
            if sum(len(sender.acknowledged) for sender in senders) > progress:
                break
            time.sleep(0.02)
    stopping.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    service.process.terminate()
    assert service.process.wait(60) == 0
    assert [sender.errors for sender in senders] == [[]] * SENDERS

    store = open_store(folder / "ledger.db")
    with store.read() as connection:
        size = queries.log_head(connection).size
        entries = [
            entry
            for index in range(-(-size // 256))
            for entry in queries.read_bundle(connection, index, min(256, size - 256 * index))
        ]
    store.close()
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    assert len(leaves) == size
    times = Counter(leaves)
    for sender in senders:
        assert len(sender.acknowledged) > ROUNDS // 2
        for statement, answer in sender.acknowledged:
            assert times[statement.leaf_hash] == 1
            receipt = receipts.decode_receipt(answer)
            receipts.verify_receipt(receipt, statement.leaf_hash, log_key.public, subject=statement.subject)
            assert leaves[receipt.leaf_index] == statement.leaf_hash
            assert receipt.tree_size <= size
    assert max(times.values()) == 1
    for name, chain in {
        issuer.name: [s.payload.seq for s in map(decode_statement, entries) if s.issuer == issuer.name]
        for issuer in issuers
    }.items():
        assert chain == list(range(len(chain))), name
    batches = [s for s in map(decode_statement, entries) if isinstance(s.payload, Batch)]
    assert len(batches) == sum(len(sender.acknowledged) for sender in senders) - 1  # one is the deployment
    assert len(served) > 3
    for note in served:
        checkpoint = open_checkpoint(note, vkey)
        assert merkle.root(leaves[: checkpoint.size]) == checkpoint.root
