"""Keys: generate, load, store, identify; sign and verify raw bytes.

Algorithms are the COSE ones: EdDSA over Ed25519 (-8; -19 of RFC 9864 is accepted for reading), ES256 (-7) and
ML-DSA-44 (-48, RFC 9964). A key is identified by its COSE Key Thumbprint (RFC 9679): the SHA-256 of the
deterministic encoding of its required COSE_Key members, so anybody can compute it from the key alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import cbor2
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from ledger.core.errors import CorruptError, InvalidError

__all__ = [
    "ALGORITHMS",
    "ED25519",
    "EDDSA",
    "ES256",
    "ML_DSA_44",
    "PrivateKey",
    "PublicKey",
    "Signer",
    "generate_key",
    "parse_cose_key",
    "parse_private_pem",
    "parse_public_pem",
    "public_from_ed25519",
    "public_from_ml_dsa_44",
]

EDDSA = -8
"""EdDSA (RFC 9053), here always over Ed25519. What we write: deployed verifiers know it."""
ED25519 = -19
"""Ed25519, fully specified (RFC 9864). Accepted when reading."""
ES256 = -7
ML_DSA_44 = -48
"""ML-DSA-44 (RFC 9964)."""

ALGORITHMS = {"ed25519": EDDSA, "es256": ES256, "ml-dsa-44": ML_DSA_44}
"""Names used at the command line and in documents, with the COSE algorithm that we write."""
_NAMES = {EDDSA: "ed25519", ED25519: "ed25519", ES256: "es256", ML_DSA_44: "ml-dsa-44"}

_RawPublic: TypeAlias = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | mldsa.MLDSA44PublicKey
_RawPrivate: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | mldsa.MLDSA44PrivateKey

# COSE_Key labels and values (RFC 9052 section 7, RFC 9053 section 7, RFC 9964 section 3).
_KTY, _KID, _ALG = 1, 2, 3
_OKP, _EC2, _AKP = 1, 2, 7
_CRV, _X, _Y = -1, -2, -3
_D = -4
_AKP_PUB, _AKP_PRIV = -1, -2
_P256, _CRV_ED25519 = 1, 6
_P256_BYTES = 32
# Order of P-256's base point. ECDSA accepts s and n - s alike; we write and accept only the lower one, so
# that a third party cannot make a second valid spelling of a statement.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# Ed25519 public keys of small order: anybody can make signatures that verify under them, so whoever registers
# one could disown all it signed. Their y coordinates are 0, 1, -1 and those of the two points of order 8.
_P25519 = 2**255 - 19
_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _P25519 - 1, _ORDER_8_Y, _P25519 - _ORDER_8_Y})


@dataclass(frozen=True)
class PublicKey:
    """A verifying key with its COSE algorithm and thumbprint, which tell keys apart."""

    alg: int
    raw: _RawPublic = field(compare=False, repr=False)
    kid: bytes

    @property
    def name(self) -> str:
        """Algorithm name: ``ed25519``, ``es256`` or ``ml-dsa-44``."""
        return _NAMES[self.alg]

    def accepts(self, alg: int) -> bool:
        """Whether a COSE header that says ``alg`` fits this key."""
        return alg == self.alg or (self.alg == EDDSA and alg == ED25519)

    def verify(self, signature: bytes, message: bytes, *, where: str = "signature") -> None:
        """Check ``signature`` over ``message``.

        Raises:
            CorruptError: it does not verify.
        """
        try:
            if isinstance(self.raw, ec.EllipticCurvePublicKey):
                if len(signature) != 2 * _P256_BYTES:
                    raise InvalidSignature
                r = int.from_bytes(signature[:_P256_BYTES], "big")
                s = int.from_bytes(signature[_P256_BYTES:], "big")
                if s > _P256_ORDER // 2:
                    raise CorruptError(
                        "ECDSA signature has a high s, which is a second spelling of another signature",
                        where=where,
                        remedy="let the signer replace s by n - s where s is more than half of n",
                        code="bad-signature",
                    )
                self.raw.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
            else:
                self.raw.verify(signature, message)
        except (InvalidSignature, ValueError):
            raise CorruptError(
                "signature does not verify",
                where=where,
                remedy=f"the bytes were changed or signed by another key than {self.kid.hex()}",
                code="bad-signature",
            ) from None

    def raw_bytes(self) -> bytes:
        """Public key material: 32 bytes (Ed25519), 1,312 (ML-DSA-44), uncompressed point (ES256)."""
        if isinstance(self.raw, ec.EllipticCurvePublicKey):
            return self.raw.public_bytes(
                serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
            )
        return self.raw.public_bytes_raw()

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo PEM."""
        return self.raw.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def to_cose_key(self) -> dict[int, Any]:
        """COSE_Key map with ``kid`` and ``alg`` (RFC 9052 section 7)."""
        return {**_required_members(self.raw), _KID: self.kid, _ALG: self.alg}


@dataclass(frozen=True)
class PrivateKey:
    """A signing key. Its ``repr`` shows the thumbprint alone."""

    raw: _RawPrivate = field(compare=False)
    public: PublicKey

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.name}, kid={self.public.kid.hex()})"

    def sign(self, message: bytes) -> bytes:
        """Sign ``message``; the form is the one COSE uses (ES256: r || s, low s)."""
        if isinstance(self.raw, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.raw.sign(message, ec.ECDSA(hashes.SHA256())))
            s = min(s, _P256_ORDER - s)
            return r.to_bytes(_P256_BYTES, "big") + s.to_bytes(_P256_BYTES, "big")
        return self.raw.sign(message)

    def to_pem(self) -> bytes:
        """PKCS #8 PEM without encryption: store it with mode 0600 (``ledger.keyfiles``)."""
        return self.raw.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


class Signer(Protocol):
    """Whatever signs for a log or a witness: a :class:`PrivateKey`, or a key that never leaves a device."""

    @property
    def public(self) -> PublicKey:
        """The key that verifies what :meth:`sign` makes."""

    def sign(self, message: bytes) -> bytes:
        """Sign ``message``; the form is the one COSE uses.

        Raises:
            UnavailableError: the device does not sign now.
        """


def _required_members(raw: _RawPublic) -> dict[int, Any]:
    if isinstance(raw, ed25519.Ed25519PublicKey):
        return {_KTY: _OKP, _CRV: _CRV_ED25519, _X: raw.public_bytes_raw()}
    if isinstance(raw, mldsa.MLDSA44PublicKey):
        return {_KTY: _AKP, _ALG: ML_DSA_44, _AKP_PUB: raw.public_bytes_raw()}
    numbers = raw.public_numbers()
    return {
        _KTY: _EC2,
        _CRV: _P256,
        _X: numbers.x.to_bytes(_P256_BYTES, "big"),
        _Y: numbers.y.to_bytes(_P256_BYTES, "big"),
    }


def _public(raw: object) -> PublicKey:
    if isinstance(raw, ed25519.Ed25519PublicKey):
        alg = EDDSA
        y = int.from_bytes(raw.public_bytes_raw(), "little") & ((1 << 255) - 1)  # the top bit is x's sign
        if y % _P25519 in _SMALL_ORDER_Y:
            raise InvalidError("is a weak Ed25519 key: any message verifies under it", code="bad-key")
    elif isinstance(raw, mldsa.MLDSA44PublicKey):
        alg = ML_DSA_44
    elif isinstance(raw, ec.EllipticCurvePublicKey) and isinstance(raw.curve, ec.SECP256R1):
        alg = ES256
    else:
        raise InvalidError(
            "unsupported kind of key", remedy=f"use one of {', '.join(ALGORITHMS)}", code="bad-key"
        )
    kid = hashlib.sha256(cbor2.dumps(_required_members(raw), canonical=True)).digest()
    return PublicKey(alg, raw, kid)


def _private(raw: object) -> PrivateKey:
    if not isinstance(raw, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | mldsa.MLDSA44PrivateKey):
        raise InvalidError(
            "unsupported kind of key", remedy=f"use one of {', '.join(ALGORITHMS)}", code="bad-key"
        )
    return PrivateKey(raw, _public(raw.public_key()))


def generate_key(algorithm: str = "ed25519") -> PrivateKey:
    """Make a new key from the system's random source."""
    if algorithm == "ed25519":
        return _private(ed25519.Ed25519PrivateKey.generate())
    if algorithm == "es256":
        return _private(ec.generate_private_key(ec.SECP256R1()))
    if algorithm == "ml-dsa-44":
        return _private(mldsa.MLDSA44PrivateKey.generate())
    raise InvalidError(
        f"unknown key algorithm {algorithm!r}", remedy=f"use one of {', '.join(ALGORITHMS)}", code="bad-key"
    )


def parse_private_pem(data: bytes, *, where: str = "private key") -> PrivateKey:
    """Read a PKCS #8 PEM. The message of an error never contains key material."""
    try:
        raw = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidError(
            "is not an unencrypted PKCS #8 PEM private key", where=where, code="bad-key"
        ) from None
    return _private(raw)


def parse_public_pem(data: bytes, *, where: str = "public key") -> PublicKey:
    """Read a SubjectPublicKeyInfo PEM."""
    try:
        raw = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidError("is not a PEM public key", where=where, code="bad-key") from None
    return _public(raw)


def public_from_ed25519(material: bytes, *, where: str = "public key") -> PublicKey:
    """Make a key from 32 bytes of Ed25519 public key, as verifier keys (vkeys) carry them."""
    try:
        return _public(ed25519.Ed25519PublicKey.from_public_bytes(material))
    except ValueError:
        raise InvalidError("is not an Ed25519 public key", where=where, code="bad-key") from None


def public_from_ml_dsa_44(material: bytes, *, where: str = "public key") -> PublicKey:
    """Make a key from 1,312 bytes of ML-DSA-44 public key, as verifier keys (vkeys) carry them."""
    try:
        return _public(mldsa.MLDSA44PublicKey.from_public_bytes(material))
    except ValueError:
        raise InvalidError("is not an ML-DSA-44 public key", where=where, code="bad-key") from None


def parse_cose_key(key: object, *, where: str = "COSE_Key") -> PublicKey:
    """Read a decoded COSE_Key map; a ``kid`` in it must be the thumbprint, an ``alg`` must fit."""
    bad = InvalidError("is not a COSE_Key of a supported kind", where=where, code="bad-key")
    if not isinstance(key, dict):
        raise bad
    try:
        kty = key.get(_KTY)
        if kty == _OKP and key.get(_CRV) == _CRV_ED25519 and isinstance(key.get(_X), bytes):
            public = _public(ed25519.Ed25519PublicKey.from_public_bytes(key[_X]))
        elif kty == _AKP and key.get(_ALG) == ML_DSA_44 and isinstance(key.get(_AKP_PUB), bytes):
            public = _public(mldsa.MLDSA44PublicKey.from_public_bytes(key[_AKP_PUB]))
        elif (
            kty == _EC2
            and key.get(_CRV) == _P256
            and all(isinstance(key.get(c), bytes) and len(key[c]) == _P256_BYTES for c in (_X, _Y))
        ):
            point = b"\x04" + key[_X] + key[_Y]
            public = _public(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
        else:
            raise bad
    except ValueError:
        raise bad from None
    if (_AKP_PRIV if kty == _AKP else _D) in key:
        raise InvalidError(
            "holds a private key",
            where=where,
            remedy="consider that key exposed, make a new one, and pass its public part only",
            code="bad-key",
        )
    if key.get(_KID, public.kid) != public.kid:
        raise InvalidError("kid is not the key's thumbprint (RFC 9679)", where=where, code="bad-key")
    if _ALG in key and not (isinstance(key[_ALG], int) and public.accepts(key[_ALG])):
        raise InvalidError("alg does not fit the key", where=where, code="bad-key")
    return public
