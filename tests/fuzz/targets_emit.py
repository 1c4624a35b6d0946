"""Fuzz targets of the files that the emitter reads: its spool, and the model whose tokens it records."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from ledger.core.errors import TallystickError
from ledger.emit.engines.gguf import quantization_of, read_metadata
from ledger.emit.spooled import Spooled, decode_spooled, encode_spooled
from tests.core.examples import KINDS, statement_of
from tests.fuzz.targets_core import outcome_of

__all__ = ["SEEDS", "TARGETS"]

_FRAME_BYTES = 40  # what marks the file, and the SHA-256 of the rest
_SPOOLED = [
    encode_spooled(Spooled(statement_of(kind), b"body" * number, "0123456789abcdef", number))
    for number, kind in enumerate(KINDS)
]
_MARK = _SPOOLED[0][:8]
_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-")


def fuzz_spooled(data: bytes) -> str:
    """Read ``data`` as a spool file, then as the content of one whose digest is right."""
    framed = _MARK + hashlib.sha256(data).digest() + data
    outcome = ""
    for each in (data, framed):
        try:
            spooled = decode_spooled(each, where="fuzz")
        except TallystickError as error:
            outcome = outcome_of(error)
            continue
        assert encode_spooled(spooled) == each
        outcome = f"accepted {spooled.statement.kind}"
    return outcome


def fuzz_gguf(data: bytes) -> str:
    """Read ``data`` as the header of a model file."""
    path = Path(_FOLDER.name) / f"{os.getpid()}.gguf"  # workers must not cut each other's mapped file
    path.write_bytes(data)
    try:
        found = read_metadata(path)
    except TallystickError as error:
        return outcome_of(error)
    quantization_of(found)
    return "accepted"


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _entry(key: bytes, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


_ENTRIES = [
    _entry(b"general.name", 8, _text("Modell é".encode())),
    _entry(b"general.file_type", 4, struct.pack("<I", 7)),
    _entry(b"general.ratio", 6, struct.pack("<f", 0.5)),
    _entry(b"general.flag", 7, b"\x01"),
    _entry(b"tokens", 9, struct.pack("<IQ", 8, 3) + _text(b"a") + _text(b"") + _text(b"bc")),
    _entry(b"scores", 9, struct.pack("<IQ", 6, 2) + bytes(8)),
    _entry(b"nested", 9, struct.pack("<IQIQ", 9, 1, 0, 2) + b"xy"),
]

TARGETS: dict[str, Callable[[bytes], str | None]] = {"gguf": fuzz_gguf, "spooled": fuzz_spooled}

SEEDS: dict[str, list[bytes]] = {
    "gguf": [
        b"GGUF" + struct.pack("<IQQ", version, 0, len(_ENTRIES)) + b"".join(_ENTRIES) for version in (2, 3)
    ],
    "spooled": [*_SPOOLED, *(each[_FRAME_BYTES:] for each in _SPOOLED)],
}
