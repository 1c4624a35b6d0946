"""The file that proves one record, as ``GET /records/{id}/proof`` and ``tallystick receipt get`` give it.

JSON: the record, its path in the batch, the statement, the statement's receipt and a checkpoint; bytes are in
base64, hashes in hex. Values have one spelling each; the file as a whole has two, compact and indented.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from ledger.core.errors import InvalidError
from ledger.core.merkle import MAX_PATH
from ledger.core.records import Amount, Hex32

__all__ = ["RecordProof", "decode_record_proof"]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    record: str
    leaf_index: Amount
    position: Amount
    path: Annotated[tuple[Hex32, ...], Meta(max_length=MAX_PATH)]
    statement: str
    receipt: str
    checkpoint: str


_decoder = msgspec.json.Decoder(_File)


@dataclass(frozen=True)
class RecordProof:
    """A decoded record proof. Nothing in it is to be believed before it is verified."""

    record: bytes
    leaf_index: int
    position: int
    path: tuple[bytes, ...]
    statement: bytes
    receipt: bytes
    checkpoint: bytes


def decode_record_proof(data: bytes) -> tuple[RecordProof, bool]:
    """Decode a record proof.

    Returns:
        The proof, and whether the file is spelled as ledgers write it.

    Raises:
        InvalidError: it is not one.
    """
    try:
        file = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"is not a record proof: {error}", where="file", code="bad-record-proof") from None
    compact = msgspec.json.encode(file)
    spellings = (compact, msgspec.json.format(compact, indent=2))
    proof = RecordProof(
        record=_base64(file.record, "record"),
        leaf_index=file.leaf_index,
        position=file.position,
        path=tuple(_hash(text, number) for number, text in enumerate(file.path)),
        statement=_base64(file.statement, "statement"),
        receipt=_base64(file.receipt, "receipt"),
        checkpoint=file.checkpoint.encode(errors="surrogatepass"),
    )
    return proof, data.removesuffix(b"\n") in spellings


def _base64(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if base64.b64encode(data).decode() != text:
        raise InvalidError("is not canonical base64", where=where, code="bad-record-proof")
    return data


def _hash(text: str, number: int) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if data.hex() != text:
        raise InvalidError("is not lower-case hex", where=f"path[{number}]", code="bad-record-proof")
    return data
