"""Makes broken input out of good: bytes flipped, cut, repeated and spliced, lengths and numbers that lie."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

__all__ = ["MAX_INPUT_BYTES", "mutate"]

MAX_INPUT_BYTES = 1 << 17
"""Twice a statement: enough to pass every size limit of one, small enough for many thousand a second."""

_EDGES = [0, 1, 2, 23, 24, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 32767, 65535, 65536]
_EDGES += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64]
_CBOR = [
    *(
        bytes([head])
        for head in (0x00, 0x17, 0x18, 0x20, 0x40, 0x58, 0x60, 0x80, 0x9F, 0xA0, 0xBF, 0xF4, 0xF5)
    ),
    *(bytes([head]) for head in (0xF6, 0xF7, 0xF8, 0xF9, 0xFB, 0xFF, 0x1C, 0xD2, 0xC2, 0xD8)),
    *(bytes([major << 5 | 26]) + b"\xff\xff\xff\xff" for major in range(8)),
    *(bytes([major << 5 | 27]) + b"\xff" * 8 for major in range(8)),
    *(bytes([major << 5 | 31]) for major in range(8)),
    b"\x9b\x00\x00\x00\x01\x00\x00\x00\x00",
    b"\xd2\x84",
    b"\x01\x26",
    b"\x01\x27",
    b"\x01\x38\x2f",
    b"\x02\x81\x01",
    b"\x04\x58\x20",
    b"\x19\x01\x8a\x81",
    b"\x19\x01\x8b\x01",
    b"\x19\x01\x8c\xa1\x20\x81",
    b"\x81" * 40,
    b"\xa1\x00" * 40,
]
_TEXT = [
    *(bytes([byte]) for byte in b'"\\{}[]:, \n\r\t\x00\x7f+/='),
    *(b"-0", b"1.0", b"1e2", b"1e400", b"-1", b"01", b"null", b"true", b"false", b"NaN"),
    *(b"\\u0041", b"\\ud800", b"\\ud83d\\ude00", b"\\n", b"\xc3\xa9", b"e\xcc\x81"),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80"),
    *(b'"a":1,', b'"id":', b'"kind":"batch"', b'"prev":', b'"seq":0', b'{"a":' * 20, b"[" * 40),
    *(b"\xe2\x80\x94 ", b"\n\n", b"\n\xe2\x80\x94 a AAAA\n", b"==", b"x001", b".p/"),
]
_TOKENS = _CBOR + _TEXT
_DIGITS = re.compile(rb"[0-9]+")


def mutate(random: random.Random, pool: Sequence[bytes]) -> bytes:
    """Return a broken copy of some of ``pool``: mostly one or two changes, at times many."""
    data = bytearray(random.choice(pool))
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        random.choice(_CHANGES)(random, data, pool)
    del data[MAX_INPUT_BYTES:]
    return bytes(data)


def _at(random: random.Random, data: bytearray) -> int:
    return random.randrange(len(data) + 1)


def _span(random: random.Random, data: bytearray) -> slice:
    start = _at(random, data)
    most = random.choice((1, 2, 4, 16, 64, len(data) + 1))
    return slice(start, start + random.randrange(most + 1))


def _flip_bit(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set_byte(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _nudge_byte(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        at = random.randrange(len(data))
        data[at] = (data[at] + random.choice((-1, 1))) % 256


def _insert(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _at(random, data)
    data[at:at] = random.randbytes(random.choice((1, 1, 2, 4, 8, 32)))


def _delete(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_span(random, data)]


def _repeat(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    span = _span(random, data)
    part = bytes(data[span])
    if part:
        times = random.choice((1, 1, 2, 16, 4096))
        data[span.start : span.start] = (part * times)[:MAX_INPUT_BYTES]


def _swap(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    one, other = sorted((_at(random, data), _at(random, data)))
    size = random.choice((1, 2, 8, 32))
    first, second = bytes(data[one : one + size]), bytes(data[other : other + size])
    data[other : other + size] = first
    data[one : one + size] = second


def _swap_fields(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Swap, drop or double what stands between commas: whole JSON members."""
    parts = bytes(data).split(b",")
    one, other = random.randrange(len(parts)), random.randrange(len(parts))
    kind = random.randrange(3)
    if kind == 0:
        parts[one], parts[other] = parts[other], parts[one]
    elif kind == 1:
        del parts[one]
    else:
        parts.insert(other, parts[one])
    data[:] = b",".join(parts)


def _splice(random: random.Random, data: bytearray, pool: Sequence[bytes]) -> None:
    other = random.choice(pool)
    data[_at(random, data) :] = other[random.randrange(len(other) + 1) :]


def _borrow(random: random.Random, data: bytearray, pool: Sequence[bytes]) -> None:
    other = random.choice(pool)
    start = random.randrange(len(other) + 1)
    data[_span(random, data)] = other[start : start + random.choice((1, 4, 32, 256))]


def _token(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    token = random.choice(_TOKENS)
    at = _at(random, data)
    data[at : at + random.choice((0, 1, len(token)))] = token


def _number(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Overwrite bytes with a number at an edge: a length or count that lies."""
    width = random.choice((1, 2, 4, 8))
    value = (random.choice(_EDGES) + random.choice((-1, 0, 0, 1))) % (1 << 8 * width)
    at = _at(random, data)
    data[at : at + width] = value.to_bytes(width, random.choice(("big", "little")))


def _decimal(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Replace a run of digits by a number at an edge."""
    runs = list(_DIGITS.finditer(data))
    if runs:
        run = random.choice(runs)
        data[run.start() : run.end()] = b"%d" % (random.choice(_EDGES) + random.choice((-1, 0, 1)))


def _cut(random: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_at(random, data) :]


_CHANGES: list[Callable[[random.Random, bytearray, Sequence[bytes]], None]] = [
    _flip_bit,
    _flip_bit,
    _set_byte,
    _nudge_byte,
    _insert,
    _delete,
    _repeat,
    _swap,
    _swap_fields,
    _splice,
    _borrow,
    _token,
    _token,
    _number,
    _decimal,
    _cut,
]
