"""Examples for the tests of signed things: one statement of each kind, receipts at many places of a tree."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ledger.core import merkle, receipts
from ledger.core import statements as s
from ledger.core.cose import encode_cbor
from ledger.core.keys import PrivateKey, parse_private_pem
from ledger.core.records import Energy, Quality
from tests.build import (
    ISSUER,
    ORIGIN,
    START_US,
    Issuer,
    make_deployment,
    make_factor_set,
    make_price_book,
    make_records,
    make_uuid7,
)

ALGORITHMS = ["ed25519", "es256", "ml-dsa-44"]
KINDS = [
    "batch",
    "deployment",
    "factors",
    "prices",
    "evaluation",
    "correction",
    "heartbeat",
    "key",
    "acknowledgement",
    "erasure",
    "admin",
]
HEX = "ab" * 32
SUBJECT = "tallystick:heartbeat:7"


@cache
def key_of(algorithm: str, number: int = 0) -> PrivateKey:
    """A key that is the same in every run, so that a failing input fails again."""
    seed = hashlib.sha256(f"{algorithm} {number}".encode()).digest()
    raw: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | mldsa.MLDSA44PrivateKey
    if algorithm == "ed25519":
        raw = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    elif algorithm == "es256":
        raw = ec.derive_private_key(int.from_bytes(seed[:31], "big"), ec.SECP256R1())
    else:
        raw = mldsa.MLDSA44PrivateKey.from_seed_bytes(seed)
    return parse_private_pem(raw.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def payload_of(kind: str, **changes: Any) -> s.Payload:
    """A payload of ``kind`` with its optional fields, as an issuer's second statement."""
    head: dict[str, Any] = {"seq": 1, "prev": HEX, "issued_us": START_US}
    uuid = make_uuid7(START_US)
    key = key_of("ed25519", 1).public
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "deployment": (s.DeploymentStatement, {"deployment": make_deployment()}),
        "factors": (s.FactorsStatement, {"factors": make_factor_set()}),
        "prices": (s.PricesStatement, {"prices": make_price_book()}),
        "evaluation": (
            s.Evaluation,
            {"evaluator": "someone", "metrics": {"bleu": Quality(value=3, scale=1)}, "record": uuid},
        ),
        "correction": (
            s.Correction,
            {
                "record": uuid,
                "record_hash": HEX,
                "reason": "the meter was off",
                "energy": Energy(energy_uj=5, method="measured", source="nvml"),
                "carbon_ng": 7,
            },
        ),
        "heartbeat": (s.Heartbeat, {"dropped": 3}),
        "key": (
            s.IssuerKey,
            {
                "action": "add",
                "issuer": ISSUER,
                "kid": key.kid.hex(),
                "key": encode_cbor(key.to_cose_key()).hex(),
            },
        ),
        "acknowledgement": (s.Acknowledgement, {"statement": HEX, "receipt": HEX, "note": "seen"}),
        "erasure": (s.Erasure, {"statement": HEX, "positions": (0, 5, 4095), "rule": "Art. 17 GDPR"}),
        "admin": (s.Admin, {"action": "api-key.create", "detail": HEX}),
    }
    if kind == "batch":
        payload = (
            Issuer(key=key_of("ed25519"))
            .batch(make_records(3, make_deployment()), **(head | changes))
            .statement.payload
        )
        assert isinstance(payload, s.Batch)
        return payload
    make, fields = made[kind]
    payload = make(**(head | fields | changes))
    assert isinstance(payload, s.Payload)
    return payload


@cache
def statement_of(kind: str, algorithm: str = "ed25519") -> s.SignedStatement:
    """A signed statement of ``kind``."""
    return s.sign_statement(payload_of(kind), issuer=ISSUER, key=key_of(algorithm))


@dataclass(frozen=True)
class Logged:
    """A leaf of a small tree and its receipt."""

    leaf: bytes
    root: bytes
    receipt: bytes


@cache
def logged(size: int, index: int, algorithm: str = "ed25519", entry: bytes = b"", **more: Any) -> Logged:
    """The receipt of leaf ``index`` in a tree of ``size``; ``entry`` replaces that leaf's own content."""
    leaves = [merkle.leaf_hash(b"%d" % n) for n in range(size)]
    if entry:
        leaves[index] = merkle.leaf_hash(entry)
    fields: dict[str, Any] = {
        "origin": ORIGIN,
        "subject": SUBJECT,
        "registered_s": START_US // 1_000_000,
        "tree_size": size,
        "leaf_index": index,
        "path": merkle.inclusion_path(leaves, index),
        "root": merkle.root(leaves),
        "key": key_of(algorithm),
    }
    receipt, _ = receipts.issue_receipt(**(fields | more))
    return Logged(leaves[index], fields["root"], receipt)
