"""Owns signatures beside a file: COSE_Sign1 (RFC 9052) with a detached payload, each for one kind of file."""

from __future__ import annotations

from dataclasses import dataclass

from ledger.core import cose
from ledger.core.errors import InvalidError
from ledger.core.keys import PrivateKey, PublicKey

__all__ = ["SignedKind", "check_beside", "sign_beside"]

_UNDERSTOOD = frozenset({cose.ALG, cose.CONTENT_TYPE, cose.KID, cose.CWT_CLAIMS})


@dataclass(frozen=True)
class SignedKind:
    """What is signed.

    Attributes:
        name: in words.
        content_type: in the signature's header, as is the subject: it passes for no other document's.
        subject: of the claims.
        code: of the error where something else was signed.
        whose: in words, whose key it is.
    """

    name: str
    content_type: str
    subject: str
    code: str
    whose: str


def sign_beside(data: bytes, key: PrivateKey, kind: SignedKind, *, issuer: str) -> bytes:
    """The signature by ``issuer`` over ``data``, which stays where it is."""
    header = {
        cose.CONTENT_TYPE: kind.content_type,
        cose.CWT_CLAIMS: {cose.CWT_ISS: issuer, cose.CWT_SUB: kind.subject},
    }
    return cose.encode_sign1(cose.sign1(header, data, key, detached=True))


def check_beside(data: bytes, signature: bytes, key: PublicKey, kind: SignedKind) -> None:
    """Show that ``key`` signed ``data`` as such a document.

    Raises:
        InvalidError: it is another signature, or by another key. CorruptError: the data was changed.
    """
    where = kind.name
    message = cose.decode_sign1(signature, where=f"{where}'s signature")
    claims = message.header.get(cose.CWT_CLAIMS)
    if (
        message.payload is not None
        or message.unprotected
        or message.header.get(cose.CONTENT_TYPE) != kind.content_type
        or not isinstance(claims, dict)
        or claims.get(cose.CWT_SUB) != kind.subject
    ):
        raise InvalidError(f"is not the signature of a {kind.name}", where=where, code=kind.code)
    if message.header.get(cose.KID) != key.kid:
        raise InvalidError(
            "was signed by another key",
            where=where,
            remedy=f"use the {kind.whose}'s public key",
            code="other-key",
        )
    cose.verify_sign1(message, key, payload=data, understood=_UNDERSTOOD, where=where)
