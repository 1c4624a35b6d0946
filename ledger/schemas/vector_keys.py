"""Keys of the published test vectors: made from public seeds, so that anybody can make them again.

Never use them for anything else. Ed25519 and ES256 sign deterministically here (RFC 8032, RFC 6979), so the
vectors come out the same each time. ML-DSA-44 signatures are randomised by the library.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ledger.core.keys import PrivateKey, parse_private_pem

__all__ = ["seed_of", "seeded_key"]

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, repr=False)
class _DeterministicEs256(PrivateKey):
    """ES256 with nonces of RFC 6979, in the low-s form that COSE messages of Tallystick have."""

    def sign(self, message: bytes) -> bytes:
        assert isinstance(self.raw, ec.EllipticCurvePrivateKey)  # noqa: S101 - made so below
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        r, s = decode_dss_signature(self.raw.sign(message, algorithm))
        return r.to_bytes(32, "big") + min(s, _P256_ORDER - s).to_bytes(32, "big")


def seed_of(name: str) -> bytes:
    """The seed of the key ``name``: SHA-256 of its label."""
    return hashlib.sha256(f"tallystick test vector {name}".encode()).digest()


def seeded_key(name: str, algorithm: str = "ed25519") -> PrivateKey:
    """The key ``name``: Ed25519 and ML-DSA-44 take the seed itself, ES256 takes it as the scalar."""
    seed = seed_of(name)
    raw: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | mldsa.MLDSA44PrivateKey
    if algorithm == "ed25519":
        raw = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    elif algorithm == "es256":
        raw = ec.derive_private_key(int.from_bytes(seed, "big"), ec.SECP256R1())
    else:
        raw = mldsa.MLDSA44PrivateKey.from_seed_bytes(seed)
    pem = raw.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = parse_private_pem(pem)
    return _DeterministicEs256(key.raw, key.public) if algorithm == "es256" else key
