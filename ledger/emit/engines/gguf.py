"""Owns what a GGUF model file says of itself: its metadata and its quantization.

Implements the header of the GGUF specification, versions 2 and 3 (ggml-org/ggml, docs/gguf.md). Tensors are
not read. A file is untrusted input: every length is checked against the file's size.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TypeAlias

from ledger.core.errors import InvalidError

__all__ = ["Metadata", "quantization_of", "read_metadata"]

Metadata: TypeAlias = dict[str, str | int | bool]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_SIZES = {kind: struct.calcsize(form) for kind, form in _SCALARS.items()}
_FLOATS = (6, 12)
_MAX_NESTING = 4

# llama.cpp's llama_ftype, the value of general.file_type; the names are those of its quantize tool.
# fmt: off
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE",
}
# fmt: on
_GUESSED = 1024
"""Flag in general.file_type: the type was guessed from the tensors."""


def read_metadata(path: Path) -> Metadata:
    """The strings and integers of the header. Arrays (the vocabulary) and floats are left out.

    Raises:
        InvalidError: not a GGUF file, of another version, or cut.
    """
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data, str(path))
        except ValueError:  # an empty file cannot be mapped
            raise InvalidError("is not a GGUF file", where=str(path), code="bad-gguf") from None


def _read(data: mmap.mmap, where: str) -> Metadata:
    def bad(what: str) -> InvalidError:
        return InvalidError(what, where=where, remedy="download the model again", code="bad-gguf")

    def string(at: int) -> tuple[bytes, int]:
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 8 + length
        if end > len(data):
            raise bad("a string goes past the end of the file")
        return data[at + 8 : end], end

    def skip(kind: int, at: int, depth: int) -> int:
        if kind in _SIZES:
            return at + _SIZES[kind]
        if kind == _STRING:
            (length,) = struct.unpack_from("<Q", data, at)
            return int(at + 8 + length)
        if kind != _ARRAY or depth > _MAX_NESTING:
            raise bad(f"has a value of unknown type {kind}")
        inner, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if inner in _SIZES:
            return int(at + count * _SIZES[inner])
        for _ in range(count):
            at = skip(inner, at, depth + 1)
        return at

    if data[:4] != _MAGIC:
        raise bad("is not a GGUF file")
    found: Metadata = {}
    try:
        version, _tensors, count = struct.unpack_from("<IQQ", data, 4)
        if version not in _VERSIONS:
            raise bad(f"is GGUF version {version}, not 2 or 3")
        at = 24
        for _ in range(count):
            key, at = string(at)
            (kind,) = struct.unpack_from("<I", data, at)
            at += 4
            if kind == _STRING:
                value, at = string(at)
                found[key.decode(errors="replace")] = value.decode(errors="replace")
                continue
            if kind in _SCALARS and kind not in _FLOATS:
                (found[key.decode(errors="replace")],) = struct.unpack_from(_SCALARS[kind], data, at)
            at = skip(kind, at, 0)
    except (struct.error, OverflowError):
        raise bad("is cut in the header") from None
    return found


def quantization_of(metadata: Metadata) -> str | None:
    """The scheme as llama.cpp names it (``Q4_K_M``), or None where the file does not say."""
    file_type = metadata.get("general.file_type")
    return _FILE_TYPES.get(file_type & ~_GUESSED) if isinstance(file_type, int) else None
