"""Columns parsed natively are those that the reference makes, for any record, and files come out the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import native
from ledger.core import merkle
from ledger.core.errors import InvalidError
from ledger.core.records import encode_record_lines
from ledger.export import columns
from ledger.export.layout import RECORD_SCHEMA
from ledger.export.source import Leaf
from tests.build import make_deployment, make_records
from tests.core import strategies
from tests.fuzz.targets_native import FULL

needs_native = pytest.mark.skipif(native.parsing is None, reason="the native part is not built, or off")
unhurried = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def leaf_of(lines: bytes, index: int = 3, positions: list[int] | None = None, issuer: str = "one") -> Leaf:
    statement: Any = SimpleNamespace(issuer=issuer)
    return Leaf(index, statement, 9, 9, b"", lines=lines, count=lines.count(b"\n"), positions=positions)


def batch_of(*leaves: Leaf) -> pa.RecordBatch:
    batch = columns.RecordColumns(lambda digest: make_deployment(version=digest[:4])).batch(leaves)
    batch.validate(full=True)
    assert batch.schema.equals(RECORD_SCHEMA)
    return batch


def reference(*leaves: Leaf) -> pa.RecordBatch:
    with patch.object(columns, "_native", None):
        return batch_of(*leaves)


@needs_native
@unhurried
@given(st.lists(strategies.records(), min_size=1, max_size=20))
def test_generated_records(made: list[Any]) -> None:
    lines = encode_record_lines(made)
    assert batch_of(leaf_of(lines)).equals(reference(leaf_of(lines)))


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 1001])
def test_lines_hash_as_their_parts(count: int) -> None:
    lines = [b"x" * (n % 300) for n in range(count)]
    data = b"".join(line + b"\n" for line in lines)
    hashes = [hashlib.sha256(b"\0" + line).digest() for line in lines]
    assert merkle.hash_lines(data) == (b"".join(hashes), merkle.root(hashes))
    with patch.object(merkle, "_native", None):
        assert merkle.hash_lines(data) == (b"".join(hashes), merkle.root(hashes))


@needs_native
def test_a_record_with_every_field_is_parsed_natively() -> None:
    lines = encode_record_lines([FULL, *make_records(9, "0f" * 32), FULL])
    assert native.parsing.record_columns(lines) is not None
    batch = batch_of(leaf_of(lines))
    assert batch.equals(reference(leaf_of(lines)))
    assert batch.column("quality").to_pylist()[0] == [
        {"name": "a", "value": -12, "scale": 3},
        {"name": "b-1", "value": 7, "scale": 0},
    ]


def test_leaves_keep_their_places_and_issuers() -> None:
    one, two = (
        encode_record_lines(make_records(3, "0f" * 32)),
        encode_record_lines(make_records(2, "1e" * 32)),
    )
    batch = batch_of(leaf_of(one, 7), leaf_of(two, 9, [1, 4], "two"), leaf_of(one, 12))
    assert batch.column("leaf_index").to_pylist() == [7, 7, 7, 9, 9, 12, 12, 12]
    assert batch.column("position").to_pylist() == [0, 1, 2, 1, 4, 0, 1, 2]
    assert batch.column("issuer").to_pylist() == [*["one"] * 3, "two", "two", *["one"] * 3]
    assert batch.column("version").to_pylist() == [*["0f0f"] * 3, "1e1e", "1e1e", *["0f0f"] * 3]


@pytest.mark.parametrize("spoil", [lambda line: line[:-1], lambda line: line.replace(b'"id"', b'"ix"')])
def test_what_is_no_record_is_refused_and_named(spoil: Any) -> None:
    good = encode_record_lines(make_records(2, "0f" * 32))
    bad = spoil(good.split(b"\n")[1]) + b"\n"
    with pytest.raises(InvalidError) as told:
        batch_of(leaf_of(good, 5), leaf_of(good.split(b"\n")[0] + b"\n" + bad, 6))
    assert told.value.where.startswith("leaf 6 records[1]")


@needs_native
@pytest.mark.parametrize("data", [b"", b"x", b"\n", b"{}\n", bytes(40)])
def test_what_is_no_record_is_not_parsed_natively(data: bytes) -> None:
    assert native.parsing.record_columns(data) is None


_BOTH = """
import sys
from ledger.export.parquet import export_parquet
from ledger.keyfiles import load_private_key
from ledger.store import open_store
from ledger import native
store = open_store(sys.argv[1])
export_parquet(store, sys.argv[3], log_key=load_private_key(sys.argv[2]), created_us=10**15)
store.close()
print(native.parsing is not None)
"""


@needs_native
@pytest.mark.sqlite
def test_python_alone_writes_the_same_bytes(ledger: Any, tmp_path: Path) -> None:
    from ledger.keyfiles import save_private_key

    save_private_key(tmp_path / "log.pem", ledger.key)
    database = ledger.store.engine.url.database
    told = [
        subprocess.run(
            [sys.executable, "-c", _BOTH, database, tmp_path / "log.pem", tmp_path / switched],
            env={**os.environ, "TALLYSTICK_NO_NATIVE": switched},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for switched in ("0", "1")
    ]
    assert told == ["True", "False"]
    files = [path for path in (tmp_path / "0").rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert path.read_bytes() == (tmp_path / "1" / path.relative_to(tmp_path / "0")).read_bytes()
