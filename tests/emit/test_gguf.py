"""GGUF headers: a small file made here, cut and corrupted."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.errors import InvalidError
from ledger.emit.engines.gguf import quantization_of, read_metadata


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ENTRIES = [
    entry("general.name", 8, text("Tiny Größe")),
    entry("some.float", 6, struct.pack("<f", 1.5)),
    entry("some.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc")),
    entry("some.numbers", 9, struct.pack("<IQ", 4, 3) + struct.pack("<III", 1, 2, 3)),
    entry("some.nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 2) + b"\x01\x02"),
    entry("some.flag", 7, b"\x01"),
    entry("general.file_type", 4, struct.pack("<I", 15)),
]
GOOD = b"GGUF" + struct.pack("<IQQ", 3, 0, len(ENTRIES)) + b"".join(ENTRIES)


def test_reads_strings_and_integers_and_skips_the_rest(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD + b"tensors")
    found = read_metadata(path)
    assert found == {"general.name": "Tiny Größe", "some.flag": True, "general.file_type": 15}
    assert quantization_of(found) == "Q4_K_M"
    assert quantization_of({"general.file_type": 1024 + 7}) == "Q8_0"
    assert quantization_of({}) is None


@pytest.mark.parametrize(
    "data", [b"", b"GG", b"NOPE" + GOOD[4:], GOOD.replace(b"\x03\0\0\0\0", b"\x09\0\0\0\0", 1)]
)
def test_other_files_are_refused(tmp_path, data):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(InvalidError) as error:
        read_metadata(path)
    assert error.value.code == "bad-gguf"


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.booleans())
def test_damage_never_does_more_than_raise(tmp_path_factory, at, byte, cut):
    data = GOOD[:at] if cut else GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(data)
    with contextlib.suppress(InvalidError):
        read_metadata(path)
