"""A record that was logged twice is found wherever the records are read, with an index beside them or not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger import zstd
from ledger.audit import audit
from ledger.audit.database import SqliteSource
from ledger.audit.sources import Leaf
from tests.audit.conftest import Log, Writer
from tests.build import make_deployment, make_records


class AsService(SqliteSource):
    """A database that shows no more than a service does."""

    has_tables = False

    def leaves(self, size: int) -> Iterator[Leaf]:
        for leaf in super().leaves(size):
            lines = None if leaf.block is None else zstd.decompress_bounded(leaf.block, 1 << 24)
            yield Leaf(leaf.index, leaf.entry, lines=lines)

    def tile_keys(self) -> Iterator[tuple[Any, Any]]:
        return iter(())


@pytest.fixture
def billed_twice(tmp_path: Path) -> Log:
    writer = Writer(tmp_path / "ledger.db")
    issuer, deployment = writer.issuer("gpu-7.example.com"), make_deployment()
    records = make_records(5, deployment)
    writer.log(issuer.deployment(deployment))
    writer.log(issuer.batch(records))
    with closing(sqlite3.connect(writer.path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM record_index")  # so that the ledger has forgotten them
    writer.log(issuer.batch(records[2:4]))
    return writer.close()


@pytest.mark.parametrize("source", [SqliteSource, AsService])
def test_record_logged_twice_is_found(source: type[SqliteSource], billed_twice: Log) -> None:
    report = audit(source(billed_twice.path), billed_twice.vkey)
    assert [each.code for each in report.findings].count("duplicate-record") == 2


def test_as_a_service_a_sound_log_is_sound(log: Log) -> None:
    assert audit(AsService(log.path), log.vkey).findings == ()
