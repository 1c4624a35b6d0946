"""Owns the trace: one file with all that proves one record, back to the log's signed checkpoint.

    record -> (position, path) -> root in the batch statement -> (leaf_index, path) -> root in the checkpoint

Beside the batch statement stand the others that give it meaning, each with its own inclusion path to the same
checkpoint: the issuer's key as the log registered it, the deployment and the factor set. Bytes are in base64,
hashes in hex. Nothing in it is to be believed before it is verified: ``ledger.audit.trace`` does, and so does
the page that ``ledger.export.trace`` makes, in a browser.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core.errors import InvalidError
from ledger.core.merkle import MAX_PATH
from ledger.core.records import Amount, Hex32

__all__ = ["MAX_TRACE_BYTES", "Leaf", "Trace", "decode_trace", "encode_trace"]

MAX_TRACE_BYTES = 4 << 20
_Path = Annotated[tuple[Hex32, ...], Meta(max_length=MAX_PATH)]


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A statement of the log with its inclusion path to the checkpoint."""

    entry: bytes
    leaf_index: Amount
    path: _Path


class Trace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """See the module. ``later`` are corrections and evaluations of the record, in the order of the log."""

    format: Literal["tallystick-trace"] = "tallystick-trace"
    version: Literal[1] = 1
    record: bytes
    position: Amount
    path: _Path
    statement: Leaf
    issuer_key: Leaf
    deployment: Leaf
    factors: Leaf | UnsetType = UNSET
    later: Annotated[tuple[Leaf, ...], Meta(max_length=1000)] = ()
    checkpoint: Annotated[str, Meta(min_length=1, max_length=1 << 20)]


_decoder = msgspec.json.Decoder(Trace)


def encode_trace(trace: Trace) -> bytes:
    """The file's bytes: JSON, two spaces deep."""
    return msgspec.json.format(msgspec.json.encode(trace), indent=2) + b"\n"


def decode_trace(data: bytes) -> Trace:
    """Read a trace.

    Raises:
        InvalidError: it is none.
    """
    if len(data) > MAX_TRACE_BYTES:
        raise InvalidError(f"has more than {MAX_TRACE_BYTES} bytes", where="trace", code="too-large")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"is not a trace: {error}", where="trace", code="bad-record-trace") from None
