"""Receipts: proof that a statement is in the log (COSE Receipts, RFC 9942; RFC 9943 section 6).

A receipt is a COSE_Sign1 by the log over the (detached) root of its tree at some size, with the inclusion
path of one leaf in the unprotected header. ``sub`` is the statement's own subject, ``iss`` the log's origin,
``iat`` when the log registered the statement (Unix seconds, the log's own word).

The root alone does not fix the size of its tree: several sizes lead from a leaf by the same path to the same
root, and RFC 9942 leaves the size unsigned. Whoever restated it could make an honest log look as if it had
signed two roots for one size. So our receipts repeat the size in the protected header, under a private-use
label that other implementations pass over, and reading compares the two. The index needs no such care: in a
tree of known size it follows from the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ledger.core import cose
from ledger.core.errors import InvalidError
from ledger.core.keys import PublicKey, Signer
from ledger.core.merkle import root_from_inclusion

__all__ = [
    "TREE_SIZE",
    "Receipt",
    "assemble_receipt",
    "decode_receipt",
    "issue_receipt",
    "receipt_header",
    "verify_receipt",
]

RFC9162_SHA256 = 1
"""Verifiable data structure identifier (RFC 9942 section 5.1)."""
TREE_SIZE = -65_600
"""Protected header parameter (private-use range, RFC 9052 section 11.1): the size of the signed tree."""
_INCLUSION = -1
_MAX_PATH = 63
_UNDERSTOOD = frozenset({cose.ALG, cose.KID, cose.CWT_CLAIMS, cose.VDS, TREE_SIZE})


@dataclass(frozen=True)
class Receipt:
    """A decoded receipt. Nothing in it is to be believed before ``verify_receipt``."""

    message: cose.Sign1
    origin: str
    subject: str
    kid: bytes
    registered_s: int
    tree_size: int
    leaf_index: int
    path: tuple[bytes, ...]


def receipt_header(*, origin: str, subject: str, registered_s: int, tree_size: int) -> dict[int, Any]:
    """The part of the protected header that does not depend on the key."""
    claims = {cose.CWT_ISS: origin, cose.CWT_SUB: subject, cose.CWT_IAT: registered_s}
    return {cose.CWT_CLAIMS: claims, cose.VDS: RFC9162_SHA256, TREE_SIZE: tree_size}


def issue_receipt(
    *,
    origin: str,
    subject: str,
    registered_s: int,
    tree_size: int,
    leaf_index: int,
    path: list[bytes],
    root: bytes,
    key: Signer,
) -> tuple[bytes, bytes]:
    """Sign ``root``; return the receipt for the leaf at ``leaf_index``, and the signature in it.

    The signature is what has to be kept to give the receipt again: see ``assemble_receipt``.
    """
    header = receipt_header(origin=origin, subject=subject, registered_s=registered_s, tree_size=tree_size)
    signed = cose.sign1(header, root, key, detached=True)
    return _encode(signed, tree_size, leaf_index, path), signed.signature


def assemble_receipt(
    *,
    origin: str,
    subject: str,
    registered_s: int,
    tree_size: int,
    leaf_index: int,
    path: list[bytes],
    signature: bytes,
    key: PublicKey,
) -> bytes:
    """Rebuild the very receipt that ``issue_receipt`` gave, from its stored ``signature``."""
    header = {
        cose.ALG: key.alg,
        cose.KID: key.kid,
        **receipt_header(origin=origin, subject=subject, registered_s=registered_s, tree_size=tree_size),
    }
    signed = cose.Sign1(cose.encode_cbor(header), header, {}, None, signature)
    return _encode(signed, tree_size, leaf_index, path)


def _encode(signed: cose.Sign1, tree_size: int, leaf_index: int, path: list[bytes]) -> bytes:
    proof = cose.encode_cbor([tree_size, leaf_index, path])
    unprotected = {cose.VDP: {_INCLUSION: [proof]}}
    return cose.encode_sign1(cose.Sign1(signed.protected, signed.header, unprotected, None, signed.signature))


def decode_receipt(data: bytes, *, where: str = "receipt") -> Receipt:
    """Decode a receipt of ours: one inclusion proof, detached payload.

    Raises:
        InvalidError: the bytes are not such a receipt.
    """

    def bad(what: str) -> InvalidError:
        return InvalidError(what, where=where, code="malformed-receipt")

    message = cose.decode_sign1(data, where=where)
    header = message.header
    if message.payload is not None:
        raise bad("the payload must be detached")
    if header.get(cose.VDS) != RFC9162_SHA256:
        raise bad("the verifiable data structure (395) is not RFC9162_SHA256 (1)")
    claims, kid = header.get(cose.CWT_CLAIMS), header.get(cose.KID)
    if not (isinstance(claims, dict) and isinstance(kid, bytes)):
        raise bad("the protected header needs kid (4) and CWT claims (15)")
    origin, subject, registered_s = (claims.get(c) for c in (cose.CWT_ISS, cose.CWT_SUB, cose.CWT_IAT))
    if not (
        isinstance(origin, str)
        and isinstance(subject, str)
        and isinstance(registered_s, int)
        and registered_s >= 0
    ):
        raise bad("the CWT claims need iss (1), sub (2) and iat (6)")
    proofs = message.unprotected.get(cose.VDP)
    if set(message.unprotected) != {cose.VDP} or not isinstance(proofs, dict) or set(proofs) != {_INCLUSION}:
        raise bad("the unprotected header must hold inclusion proofs (396: {-1}) only")
    inclusion = proofs[_INCLUSION]
    if not (isinstance(inclusion, list) and len(inclusion) == 1 and isinstance(inclusion[0], bytes)):
        raise bad("there must be one inclusion proof")
    proof = cose.decode_cbor(inclusion[0], where=f"{where} inclusion proof")
    if not (
        isinstance(proof, list)
        and len(proof) == 3
        and all(isinstance(n, int) and 0 <= n < 2**63 for n in proof[:2])
        and isinstance(proof[2], list)
        and len(proof[2]) <= _MAX_PATH
        and all(isinstance(h, bytes) and len(h) == 32 for h in proof[2])
    ):
        raise bad("the inclusion proof is not [size, index, [hashes of 32 bytes]]")
    size, index, path = proof
    if header.get(TREE_SIZE, size) != size:
        raise bad("the tree size in the proof is not the signed one")
    return Receipt(message, origin, subject, kid, registered_s, size, index, tuple(path))


def verify_receipt(
    receipt: Receipt, leaf: bytes, key: PublicKey, *, subject: str | None = None, where: str = "receipt"
) -> bytes:
    """Verify that the log's ``key`` signed a tree that has ``leaf`` (a leaf hash) at the stated index.

    Returns:
        The root that the receipt proves.

    Raises:
        CorruptError: path or signature do not verify. InvalidError: for another key, statement or subject.
    """
    if receipt.kid != key.kid:
        raise InvalidError(
            f"was signed by key {receipt.kid.hex()[:16]}..., not by {key.kid.hex()[:16]}...",
            where=where,
            remedy="use the verifier key of the log that issued the receipt",
            code="other-key",
        )
    if subject is not None and receipt.subject != subject:
        raise InvalidError(
            f"is about {receipt.subject!r}, not about {subject!r}", where=where, code="other-subject"
        )
    root = root_from_inclusion(leaf, receipt.leaf_index, receipt.tree_size, list(receipt.path))
    cose.verify_sign1(receipt.message, key, payload=root, understood=_UNDERSTOOD, where=where)
    return root
