"""A real service and real witnesses: cosigned checkpoints are stored, served and in proofs; old copies are refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ledger.core.checkpoint import open_checkpoint, parse_checkpoint_text
from ledger.core.errors import CorruptError, InvalidError, RefusedError
from ledger.core.note import parse_note, parse_vkey
from ledger.core.policy import check_witnessed, cosigned_by, parse_policy
from ledger.core.tlog_proof import parse_tlog_proof, verify_tlog_proof
from ledger.service import Settings, create_api_key, create_app
from ledger.store import open_store
from ledger.store.witnessed import newest_witnessed
from tests.build import Ledger, make_ledger, make_records
from tests.service.conftest import BATCH
from tests.witness.running import RunningWitness, policy_text, running, wait_for

ORIGIN = "log.example.com/tallystick"
FAST = {"witness_interval_ms": 50, "witness_timeout_s": 5}


@pytest.fixture(autouse=True)
def _reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYSTICK_INTERNAL_HOSTS", "127.0.0.1")


@pytest.fixture
def witnesses(tmp_path: Path) -> Iterator[tuple[RunningWitness, RunningWitness]]:
    with running(tmp_path / "w0", "w0.example/w", ["ed25519"]) as one:
        with running(tmp_path / "w1", "w1.example/w", ["ml-dsa-44"]) as two:
            yield one, two


class Log:
    """A ledger in a folder, served in this process."""

    def __init__(self, folder: Path) -> None:
        self.ledger: Ledger = make_ledger(folder / "ledger.db")
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
        records = make_records(self.ledger.deployment, 2, salt=f"s{self.sent}")
        batch = self.ledger.issuer.batch(records)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": BATCH}
        answer = self.client.post("/batches", content=batch.body, headers=headers)
        assert answer.status_code == 201, answer.text
        return int(answer.headers["Location"].rpartition("/")[2])

    def checkpoint(self) -> bytes:
        return self.client.get("/checkpoint").content

    def size(self) -> int:
        return parse_checkpoint_text(parse_note(self.checkpoint()).text).size
