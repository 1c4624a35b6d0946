"""The bodies of the witness protocol: what is written is read back, and any other bytes are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.errors import InvalidError, TallystickError
from ledger.core.merkle import MAX_SIZE
from ledger.witness.wire import (
    MAX_REQUEST_BYTES,
    AddCheckpoint,
    format_request,
    format_signatures,
    origin_hash,
    parse_conflict,
    parse_request,
    parse_signatures,
)
from tests.witness.logs import MadeLog

NOTE = MadeLog().note(3)


@given(st.integers(0, MAX_SIZE), st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_requests_are_read_back(old: int, proof: list[bytes]) -> None:
    request = AddCheckpoint(old, tuple(proof), NOTE)
    assert parse_request(format_request(request)) == request


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: f"old 1\n{text}\n\n".encode() + NOTE))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        request = parse_request(data)
    except TallystickError:
        return
    assert format_request(request) == data  # one spelling


@given(st.binary(max_size=200))
def test_any_bytes_are_signatures_or_refused(data: bytes) -> None:
    try:
        signatures = parse_signatures(data)
    except TallystickError:
        return
    assert format_signatures(signatures) == data


@given(st.integers(0, MAX_SIZE))
def test_conflicts_are_read(size: int) -> None:
    assert parse_conflict(f"{size}\n".encode()) == size


@pytest.mark.parametrize(
    "body", [b"", b"5", b"05\n", b"-1\n", b"5\n\n", b" 5\n", b"\xff\n", b"9" * 30 + b"\n"]
)
def test_what_is_no_conflict(body: bytes) -> None:
    with pytest.raises(InvalidError):
        parse_conflict(body)


def test_a_request_is_bounded() -> None:
    with pytest.raises(InvalidError, match="more than"):
        parse_request(b"old 0\n\n" + bytes(MAX_REQUEST_BYTES))


def test_the_hash_of_an_origin() -> None:
    # echo -n example.com/behind-the-sofa | sha256sum
    expected = "5fd2dc0beb4ce54da5050cf6d5c75248b023abad441c3cecde3976fbe9da4fe4"
    assert origin_hash("example.com/behind-the-sofa") == expected
