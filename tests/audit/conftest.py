"""A small log that has one of everything, made by the real sequencer. Tests change copies of its file."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ledger.audit import AuditReport, audit
from ledger.audit.database import SqliteSource
from ledger.core import statements as st
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.note import format_vkey
from ledger.core.records import Quality, document_digest, encode_record, record_hash
from ledger.service.admin import grant_api_key, withdraw_api_key
from ledger.service.auth import create_api_key, list_api_keys, revoke_api_key
from ledger.store import Limits, Registration, Sequencer, migrate, open_store, prepare_statement
from ledger.store.append import create_log
from ledger.store.holds import lift_hold, place_hold
from ledger.store.retention import Policy, remove_policy, set_policy
from tests.build import (
    HOUR_US,
    ORIGIN,
    START_US,
    Issuer,
    SealedBatch,
    make_deployment,
    make_factor_set,
    make_records,
)


@dataclass
class Log:
    """A finished log: its closed file, what verifies it, and checkpoints seen while it grew."""

    path: Path
    vkey: str
    log_key: PrivateKey
    issuers: list[Issuer]
    registrations: list[Registration]
    checkpoints: dict[int, bytes]
    """size -> note."""
    old_key: PrivateKey | None = None
    """The first issuer's first key, which was revoked."""

    def copy(self, target: Path) -> Path:
        shutil.copyfile(self.path, target)
        return target

    def audit(self, path: Path | None = None, **options) -> AuditReport:
        return audit(SqliteSource(path or self.path), self.vkey, **options)


class Writer:
    """Writes a log through the real sequencer."""

    def __init__(self, path: Path, log_key: PrivateKey | None = None) -> None:
        self.path = path
        self.store = open_store(path)
        migrate(self.store)
        self.log_key = log_key or generate_key()
        create_log(self.store, self.log_key, ORIGIN)
        self.sequencer = Sequencer(self.store, self.log_key)
        self.sequencer.start()
        self.keys = {}
        self.issuers: list[Issuer] = []
        self.registrations: list[Registration] = []

    def issuer(self, name: str, algorithm: str = "ed25519") -> Issuer:
        issuer = Issuer(name, generate_key(algorithm))
        self.add_key(issuer)
        self.issuers.append(issuer)
        return issuer

    def add_key(self, issuer: Issuer, *, rotate: bool = False) -> None:
        self.keys[issuer.key.public.kid] = issuer.key.public
        self.sequencer.add_key(issuer.name, issuer.key.public, rotate=rotate).result(timeout=30)

    def log(self, *statements: st.SignedStatement | SealedBatch) -> list[Registration]:
        """Submit at once, so that they may share a commit."""
        futures = []
        for each in statements:
            entry, lines = (
                (each.statement.entry, each.lines) if isinstance(each, SealedBatch) else (each.entry, None)
            )
            prepared = prepare_statement(
                entry,
                lines,
                key_of=lambda _, kid: self.keys[kid],
                now_us=START_US + 30 * 24 * HOUR_US,
                limits=Limits(),
            )
            futures.append(self.sequencer.submit(prepared))
        done = [future.result(timeout=30) for future in futures]
        self.registrations += done
        return done

    def close(self) -> Log:
        self.sequencer.stop()
        vkey = format_vkey(self.sequencer.verifier_key)
        self.store.close()
        with sqlite3.connect(self.path) as connection:
            notes = {size: note.encode() for size, note in connection.execute("SELECT * FROM checkpoint")}
            connection.execute("PRAGMA journal_mode=DELETE")
        connection.close()
        return Log(self.path, vkey, self.log_key, self.issuers, self.registrations, notes)


def write_everything(path: Path) -> Log:
    """One statement of each kind, three algorithms, a rotated and a revoked key, two hours of records."""
    writer = Writer(path)
    gpu = writer.issuer("gpu-7.example.com/llama")
    other = writer.issuer("gpu-8.example.com/llama", "es256")
    third = writer.issuer("pq.example.com", "ml-dsa-44")
    deployment, factors = make_deployment(), make_factor_set()
    digest, factor_digest = document_digest(deployment), document_digest(factors)
    writer.log(gpu.deployment(deployment))
    writer.log(other.factors(factors), other.deployment(make_deployment(model="second")))
    records = make_records(7, deployment, factors=factor_digest, carbon_ng=5, embodied_ng=2**50, water_nl=1)
    first, _ = writer.log(
        gpu.batch(records),
        other.batch(make_records(5, deployment, first=100, start_us=START_US + HOUR_US - 102_000)),
    )
    writer.log(
        third.batch(make_records(1, make_deployment(model="second"), first=200, tenant="solo")),
        gpu.batch(
            make_records(
                3, deployment, first=300, quality={"exact": Quality(value=-3, scale=2)}, carbon_market_ng=9
            ),
            dropped=2,
        ),
        third.heartbeat(dropped=1),
    )
    evaluation = st.Evaluation(
        evaluator="tests", metrics={"f1": Quality(value=88, scale=2)}, deployment=digest, **gpu.chain()
    )
    writer.log(gpu.sign(evaluation))
    correction = st.Correction(
        record=records[0].id,
        record_hash=record_hash(encode_record(records[0])).hex(),
        reason="meter was off",
        carbon_ng=6,
        **gpu.chain(),
    )
    writer.log(gpu.sign(correction))
    acknowledgement = st.Acknowledgement(
        statement=first.leaf_hash.hex(), receipt="ab" * 32, note="seen", **other.chain()
    )
    writer.log(other.sign(acknowledgement))
    old = gpu.key
    gpu.key = generate_key()
    writer.add_key(gpu, rotate=True)
    writer.sequencer.revoke_key(gpu.name, old.public, reason="rotated").result(timeout=30)
    writer.log(gpu.batch(make_records(4, deployment, first=400)))
    grant_api_key(writer.sequencer, "granted", ["read"], tenant="t-1")
    token = grant_api_key(writer.sequencer, "withdrawn", ["admin"])
    withdraw_api_key(writer.sequencer, token.split("_")[1])
    policies = [Policy("", "records", 400), Policy("t-1", "records", 800), Policy("t-2", "records", 900)]
    _, lasting = place_hold("case 1", tenant="t-1", from_us=START_US)
    lifted, passing = place_hold("case 2")
    acts = [
        *map(set_policy, policies),
        remove_policy("t-2", "records"),
        lasting,
        passing,
        lift_hold(lifted.id),
    ]
    for act in acts:
        writer.sequencer.log_own(act).result(timeout=30)
    create_api_key(writer.store, "auditor", ["read"])
    create_api_key(writer.store, "old", ["emit", "admin"])
    revoke_api_key(writer.store, list_api_keys(writer.store)[-1].id)
    return replace(writer.close(), old_key=old)


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return write_everything(tmp_path_factory.mktemp("log") / "ledger.db")


@pytest.fixture
def tampered(log: Log, tmp_path: Path) -> Callable[..., AuditReport]:
    """Audits a copy of the log on which some SQL was executed first."""

    def run(*statements: str | tuple[str, tuple], **options) -> AuditReport:
        path = log.copy(tmp_path / "copy.db")
        connection = sqlite3.connect(path)
        for each in statements:
            connection.execute(*([each] if isinstance(each, str) else each))
        connection.commit()
        connection.close()
        return log.audit(path, **options)

    return run
