"""Builds what tests log: deployments, records, signed statements in an issuer's chain, batch bodies.

Everything is deterministic but keys: the same arguments give the same records. Times lie in the past, one
generation a millisecond from ``START_US``, so that a real clock accepts them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from msgspec import UNSET, structs

from ledger.core import cose
from ledger.core import statements as st
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.merkle import root
from ledger.core.price_books import PriceBook, Rate
from ledger.core.records import (
    Commitment,
    Deployment,
    Energy,
    FactorSet,
    FactorSource,
    Record,
    Usage,
    document_digest,
    encode_record_lines,
    record_hash,
)

__all__ = [
    "ISSUER",
    "ORIGIN",
    "START_US",
    "Issuer",
    "Ledger",
    "SealedBatch",
    "batch_body",
    "changed",
    "make_batch",
    "make_deployment",
    "make_factor_set",
    "make_ledger",
    "make_record",
    "make_records",
    "make_uuid7",
    "seal_lines",
    "sign_raw",
]

ORIGIN = "log.example.com/tallystick"
ISSUER = "gpu-7.example.com/llama"
START_US = 1_760_000_400_000_000  # 2025-10-09T09:00:00Z, a full hour
HOUR_US = 3_600_000_000

_P = TypeVar("_P", bound=st.Payload)


def make_deployment(**changes: Any) -> Deployment:
    """A deployment of a small model on a CPU."""
    fields: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct",
        "version": "Q8_0",
        "engine": "llama.cpp",
        "engine_version": "b6500",
        "quantization": "Q8_0",
        "power_mw": 65_000,
        "region": "DE",
    }
    return Deployment(**(fields | changes))


def make_factor_set(**changes: Any) -> FactorSet:
    """A factor set with round figures."""
    fields: dict[str, Any] = {
        "name": "example grid",
        "version": "2025.1",
        "pue_milli": 1_200,
        "intensity_ug_per_kwh": 350_000_000,
        "sources": (FactorSource(factor="intensity_ug_per_kwh", source="made up for tests", year=2025),),
    }
    return FactorSet(**(fields | changes))


def make_price_book(**changes: Any) -> PriceBook:
    """A price book of the model of ``make_deployment``, in euros."""
    fields: dict[str, Any] = {
        "name": "example tariff",
        "version": "2026-11",
        "currency": "EUR",
        "source": "made up for tests",
        "rates": (
            Rate(
                model="SmolLM2-135M-Instruct",
                input_nano_per_mtok=150_000_000,
                cached_input_nano_per_mtok=37_500_000,
                output_nano_per_mtok=600_000_001,
            ),
        ),
    }
    return PriceBook(**(fields | changes))


def make_uuid7(time_us: int, salt: str = "") -> str:
    """A UUIDv7 at ``time_us`` whose random part is a hash of time and ``salt``."""
    random = hashlib.sha256(f"{time_us}/{salt}".encode()).digest()
    value = (time_us // 1000 % 2**48) << 80 | int.from_bytes(random[:10], "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(3 << 62) | 2 << 62
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def make_record(
    deployment: str | Deployment, *, n: int = 0, start_us: int = START_US, salt: str = "", **changes: Any
) -> Record:
    """Record number ``n``: it starts ``n`` milliseconds after ``start_us``. ``changes`` replace fields."""
    if isinstance(deployment, Deployment):
        deployment = document_digest(deployment)
    started_us = changes.pop("started_us", start_us + n * 1000)
    fields: dict[str, Any] = {
        "id": make_uuid7(started_us, f"{salt}{n}"),
        "deployment": deployment,
        "started_us": started_us,
        "first_token_us": started_us + 40_000,
        "ended_us": started_us + 900_000,
        "finish_reason": "stop" if n % 4 else "length",
        "request": hashlib.sha256(f"request {salt}{n}".encode()).hexdigest(),
        "tenant": f"t-{n % 3}",
        "usage": Usage(input_tokens=120 + n % 50, output_tokens=24 + n % 7, cached_input_tokens=16 * (n % 3)),
        "input": Commitment(digest=hashlib.sha256(f"input {salt}{n}".encode()).hexdigest(), of="tokens"),
        "output": Commitment(digest=hashlib.sha256(f"output {salt}{n}".encode()).hexdigest(), of="tokens"),
        "energy": Energy(
            energy_uj=1_500_000 + n,
            method="modelled",
            source="tests",
            low_uj=1_000_000,
            high_uj=3_000_000_000,
        ),
    }
    fields |= changes
    return Record(**{name: value for name, value in fields.items() if value is not UNSET})


def make_records(count: int, deployment: str | Deployment, *, first: int = 0, **changes: Any) -> list[Record]:
    """``count`` records with numbers from ``first``."""
    return [make_record(deployment, n=first + n, **changes) for n in range(count)]


@dataclass(frozen=True)
class SealedBatch:
    """A batch statement and the record lines that travel beside it."""

    statement: st.SignedStatement
    lines: bytes

    @property
    def body(self) -> bytes:
        """The body of ``POST /batches``."""
        return batch_body(self.statement.entry, self.lines)


def batch_body(entry: bytes, lines: bytes) -> bytes:
    """The CBOR array that ``POST /batches`` takes."""
    return cose.encode_cbor([entry, lines])


@dataclass
class Issuer:
    """An issuer's key and where its chain stands. Signing moves the chain on."""

    name: str = ISSUER
    key: PrivateKey = field(default_factory=generate_key)
    seq: int = 0
    prev: bytes | None = None
    now_us: int = START_US + HOUR_US

    def chain(self) -> dict[str, Any]:
        """The fields that every payload has, for the next statement."""
        fields: dict[str, Any] = {"seq": self.seq, "issued_us": self.now_us}
        return fields if self.prev is None else fields | {"prev": self.prev.hex()}

    def sign(self, payload: st.Payload, *, advance: bool = True) -> st.SignedStatement:
        """Sign ``payload``; with ``advance`` the next statement follows this one."""
        statement = st.sign_statement(payload, issuer=self.name, key=self.key)
        if advance:
            self.seq, self.prev = payload.seq + 1, statement.leaf_hash
        return statement

    def deployment(self, deployment: Deployment | None = None) -> st.SignedStatement:
        """Publish a deployment."""
        return self.sign(st.DeploymentStatement(deployment=deployment or make_deployment(), **self.chain()))

    def factors(self, factors: FactorSet | None = None) -> st.SignedStatement:
        """Publish a factor set."""
        return self.sign(st.FactorsStatement(factors=factors or make_factor_set(), **self.chain()))

    def prices(self, book: PriceBook | None = None) -> st.SignedStatement:
        """Publish a price book."""
        return self.sign(st.PricesStatement(prices=book or make_price_book(), **self.chain()))

    def heartbeat(self, *, dropped: int = 0) -> st.SignedStatement:
        """Say that the issuer lives."""
        return self.sign(st.Heartbeat(dropped=dropped, **self.chain()))

    def batch(self, records: Sequence[Record], *, advance: bool = True, **changes: Any) -> SealedBatch:
        """Seal ``records``. ``changes`` replace fields of the payload, to make it wrong."""
        return make_batch(self, records, advance=advance, **changes)


def make_batch(
    issuer: Issuer, records: Sequence[Record], *, advance: bool = True, **changes: Any
) -> SealedBatch:
    """Seal ``records`` as the next statement of ``issuer``."""
    lines = encode_record_lines(list(records))
    return seal_lines(issuer, records, lines, advance=advance, **changes)


def seal_lines(
    issuer: Issuer, records: Iterable[Record], lines: bytes, *, advance: bool = True, **changes: Any
) -> SealedBatch:
    """Seal ``lines`` whatever they are; the other fields come from ``records``."""
    records = list(records)
    fields: dict[str, Any] = {
        "count": len(records),
        "root": root([record_hash(line) for line in lines.split(b"\n")[:-1]]).hex(),
        "first_us": min(r.started_us for r in records),
        "last_us": max(r.ended_us for r in records),
        "deployments": tuple(sorted({r.deployment for r in records})),
        "factors": tuple(sorted({r.factors for r in records if r.factors is not UNSET})),
        "totals": st.sum_records(records),
        "dropped": 0,
    }
    statement = issuer.sign(st.Batch(**(issuer.chain() | fields | changes)), advance=advance)
    return SealedBatch(statement, lines)


def sign_raw(
    issuer: Issuer,
    payload: bytes,
    *,
    subject: str = "tallystick:test",
    header: dict[int, Any] | None = None,
    key: PrivateKey | None = None,
) -> bytes:
    """A COSE_Sign1 over any payload, right or wrong, with a statement's header. The chain does not move."""
    full = {
        cose.CONTENT_TYPE: st.CONTENT_TYPE,
        cose.CWT_CLAIMS: {cose.CWT_ISS: issuer.name, cose.CWT_SUB: subject},
        **(header or {}),
    }
    return cose.encode_sign1(cose.sign1(full, payload, key or issuer.key))


def changed(payload: _P, **changes: Any) -> _P:
    """``payload`` with some fields replaced."""
    return structs.replace(payload, **changes)


@dataclass
class Ledger:
    """A store with a log: genesis (leaf 0), one issuer's key (leaf 1), one deployment (leaf 2)."""

    store: Any
    log_key: PrivateKey
    issuer: Issuer
    deployment: Deployment

    @property
    def digest(self) -> str:
        """The deployment's digest."""
        return document_digest(self.deployment)

    def append(self, *items: st.SignedStatement | SealedBatch) -> list[Any]:
        """Log statements and batches through a sequencer of their own; their registrations."""
        from ledger.store import Limits, Sequencer, prepare_statement

        sequencer = Sequencer(self.store, self.log_key)
        sequencer.start()
        try:
            futures = []
            for item in items:
                batch = isinstance(item, SealedBatch)
                prepared = prepare_statement(
                    item.statement.entry if batch else item.entry,
                    item.lines if batch else None,
                    key_of=lambda issuer, kid: self.issuer.key.public,
                    now_us=time.time_ns() // 1000,
                    limits=Limits(),
                )
                futures.append(sequencer.submit(prepared))
            return [future.result(30) for future in futures]
        finally:
            sequencer.stop()


def make_ledger(directory: Path) -> Ledger:
    """A SQLite store in ``directory`` (``ledger.db``), as ``Ledger`` describes; close its store."""
    from ledger.store import Sequencer, migrate, open_store
    from ledger.store.append import create_log

    store, log_key, issuer = open_store(directory / "ledger.db"), generate_key(), Issuer()
    migrate(store)
    create_log(store, log_key, ORIGIN)
    sequencer = Sequencer(store, log_key)
    sequencer.start()
    sequencer.add_key(issuer.name, issuer.key.public).result(30)
    sequencer.stop()
    ledger = Ledger(store, log_key, issuer, make_deployment())
    ledger.append(issuer.deployment(ledger.deployment))
    return ledger
