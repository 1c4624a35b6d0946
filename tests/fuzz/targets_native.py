"""Fuzz targets of the native part: whatever it accepts, the Python reference accepts with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from ledger import native
from ledger.audit import batches
from ledger.core import commitments, merkle, records
from ledger.core.errors import TallystickError
from ledger.store import prepare
from tests.build import make_record, make_records, make_uuid7

__all__ = ["FULL", "SEEDS", "TARGETS", "check_commitment", "check_lines", "python_alone"]

_SALT = bytes(range(32))

FULL = make_record(
    "0f" * 32,
    carbon_high_ng=9,
    carbon_low_ng=7,
    carbon_market_ng=6,
    carbon_ng=8,
    cost_nano=5,
    currency="EUR",
    embodied_ng=4,
    energy=records.Energy(energy_uj=50, high_uj=60, low_uj=40, method="modelled", source="a source, #1"),
    factors="1f" * 32,
    finish_reason="tool_calls",
    input=records.Commitment(digest="2f" * 32, of="tokens"),
    output=records.Commitment(digest="3f" * 32, of="text"),
    parent=make_uuid7(1_800_000_000_000, "parent"),
    quality={"a": records.Quality(scale=3, value=-12), "b-1": records.Quality(scale=0, value=7)},
    request="4f" * 32,
    tenant="t-12",
    usage=records.Usage(
        accepted_tokens=1,
        cached_input_tokens=2,
        drafted_tokens=3,
        input_tokens=40,
        output_tokens=50,
        reasoning_tokens=6,
    ),
    water_nl=11,
)
"""A record with every field."""


@contextmanager
def python_alone() -> Iterator[None]:
    """Without the native part."""
    with (
        patch.object(batches, "_native", None),
        patch.object(commitments, "_native", None),
        patch.object(commitments, "_packing", None),
        patch.object(merkle, "_native", None),
        patch.object(prepare, "_native", None),
        patch.object(records, "_native", None),
    ):
        yield


def check_lines(data: bytes) -> Any:
    """Check that what the native part says of ``data`` is what Python finds; return what it says."""
    assert native.parsing is not None, "the native part is not built"
    facts = native.parsing.batch_facts(data)
    lines = native.parsing.record_lines(data)
    single = native.parsing.is_record(data[:-1])
    assert (native.parsing.record_columns(data) is None) == (lines is None), "two parsers disagree"
    with python_alone():
        try:
            read, found = records.decode_record_lines(data), batches._read(data, "x")
        except TallystickError:
            read, found = None, None
        assert not single or records.decode_record(data[:-1])
    assert facts is None or found is not None, "accepted natively, refused by Python"
    assert lines is None or (read is not None and read[1] == lines), "accepted natively, refused by Python"
    if single and data.endswith(b"\n"):
        assert lines == [data[:-1]], "accepted alone, refused as a line"
    if facts is not None:
        assert lines is not None
        assert batches._read(data, "x") == found, "other facts than Python finds"
        assert records.decode_record_lines(data) == read
        assert facts[5] in (None, found.root if found else None)
    return facts


def check_commitment(tokens: Any, salt: bytes) -> None:
    """Check that both commit to ``tokens`` alike, or both refuse them."""
    results: list[Any] = []
    kept = list(tokens) if hasattr(tokens, "__next__") else None
    for mode in (python_alone, None):
        given = tokens if kept is None else iter(kept)
        try:
            if mode is None:
                results.append(commitments.commit_tokens(given, salt))
            else:
                with mode():
                    results.append(commitments.commit_tokens(given, salt))
        except (TallystickError, TypeError) as error:
            results.append((type(error), str(error)))
    assert results[0] == results[1], "commits to something else than Python"


def fuzz_native_lines(data: bytes) -> str:
    """Parse records both ways."""
    if native.parsing is None:
        return "not built"
    return "refused" if check_lines(data) is None else "accepted"


def fuzz_native_tokens(data: bytes) -> str:
    """Commit to ``data`` as ids of up to five bytes, a few of them negative."""
    if native.parsing is None:
        return "not built"
    width = data[0] % 5 + 1 if data else 1
    ids = [
        int.from_bytes(data[at : at + width], "little", signed=data[0] > 250)
        for at in range(1, min(len(data), 4096), width)
    ]
    check_commitment(ids, _SALT)
    return "accepted"


TARGETS: dict[str, Callable[[bytes], str]] = {
    "native_lines": fuzz_native_lines,
    "native_tokens": fuzz_native_tokens,
}

SEEDS: dict[str, list[bytes]] = {
    "native_lines": [
        records.encode_record_lines([FULL]),
        records.encode_record_lines(make_records(3, FULL.deployment)),
        records.encode_record_lines(make_records(1, FULL.deployment)),
        records.encode_record_lines([make_record(FULL.deployment), FULL]),
    ],
    "native_tokens": [bytes([3]) + bytes(range(256)), bytes([4]) + bytes(600), b"\xff" * 50],
}
