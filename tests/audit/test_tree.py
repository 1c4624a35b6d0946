"""Trees of several tiles and levels, rebuilt and compared."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ledger.audit.index import IndexAudit
from ledger.audit.report import Findings
from ledger.audit.tree import Candidates, TreeAudit
from ledger.core.keys import generate_key
from ledger.core.merkle import root
from ledger.core.note import ED25519, VerifierKey
from ledger.core.tiles import append_tiles
from tests.audit.conftest import Log, Writer


class Tiles:
    """A source that has tiles and nothing else."""

    has_tables = True

    def __init__(self, tiles: dict[tuple[int, int], bytes]) -> None:
        self.tiles = tiles

    def checkpoints(self) -> Iterator[tuple[Any, Any]]:
        return iter(())

    def tile(self, level: int, index: int, width: int) -> bytes | None:
        return self.tiles.get((level, index))

    def tile_keys(self) -> Iterator[tuple[int, int]]:
        return iter(self.tiles)


def rebuild(tiles: dict[tuple[int, int], bytes], hashes: list[bytes]) -> tuple[Findings, bytes]:
    findings = Findings()
    key = VerifierKey.of("log.example.com", ED25519, generate_key().public.raw_bytes())
    tree = TreeAudit(Tiles(tiles), key, len(hashes), findings)
    for index, each in enumerate(hashes):
        assert tree.add(index, Candidates(each, each, True)) == each
    tree.close()
    return findings, tree.root()


def leaves(count: int) -> list[bytes]:
    return [index.to_bytes(32, "little") for index in range(count)]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 1000, 65_535, 65_536, 65_537, 70_000])
def test_every_tile_of_every_level_is_compared(size: int) -> None:
    hashes = leaves(size)
    tiles = append_tiles(0, hashes, {})
    findings, rebuilt = rebuild(tiles, hashes)
    assert findings.kept == []
    assert rebuilt == root(hashes)
    assert findings.counts.tiles == len(tiles)
    for key in tiles if size <= 1000 else [key for key in tiles if key[0]]:
        data = tiles[key]
        at = (31 * key[1]) % len(data)
        changed = tiles | {key: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]}
        assert [each.where for each in rebuild(changed, hashes)[0].kept] == [
            f"tile[level={key[0]}, idx={key[1]}], hash {at // 32}"
        ]
        missing = {k: v for k, v in tiles.items() if k != key}
        assert [each.code for each in rebuild(missing, hashes)[0].kept] == ["tile-missing"]
        for length in (data[:-1], data + b"\0"):
            assert rebuild(tiles | {key: length}, hashes)[0].kept
        if size > 1000:
            break


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """More than two tiles of leaves."""
    writer = Writer(tmp_path_factory.mktemp("long") / "ledger.db")
    issuer = writer.issuer("gpu-7.example.com/llama")
    for _ in range(20):
        writer.log(*[issuer.heartbeat() for _ in range(30)])
    return writer.close()


def test_long_log(long_log: Log, tmp_path: Path) -> None:
    report = long_log.audit(known_checkpoints=list(long_log.checkpoints.values()))
    assert report.verdict == "sound"
    assert report.counts.statements == 602
    assert report.counts.tiles == 4
    for sql, where in (
        (
            "DELETE FROM statement WHERE leaf_index / 100 = 2",
            "statement[leaf_index=200].entry to 299",
        ),
        ("DELETE FROM statement WHERE leaf_index > 500", "statement[leaf_index=501].entry to 601"),
        ("DELETE FROM tile WHERE level = 0 AND idx = 1", "tile[level=0, idx=1]"),
    ):
        connection = sqlite3.connect(long_log.copy(tmp_path / "copy.db"))
        connection.execute(sql)
        connection.commit()
        connection.close()
        report = long_log.audit(tmp_path / "copy.db")
        assert where in [each.where for each in report.findings]


def test_index_in_any_order() -> None:
    """Ids of one leaf may come anywhere in the table: late records of another issuer."""
    ids = [bytes([n % 7]) + n.to_bytes(15, "big") for n in range(3000)]
    places = [(n // 100) * 4096 + n % 100 for n in range(3000)]
    table = sorted(zip(ids, places, strict=True))

    def audit(rows: list[tuple[bytes, int]]) -> Findings:
        def open_index():
            left = iter(rows)
            return lambda count: list(islice(left, count))

        findings = Findings()
        index = IndexAudit(open_index, findings)
        for leaf in range(30):
            index.add(leaf, ids[leaf * 100 : leaf * 100 + 100])
        index.close(set())
        return findings

    assert audit(table).kept == []
    for at in (0, 1500, 2999):
        assert [each.code for each in audit(table[:at] + table[at + 1 :]).kept] == ["row-missing"]
        moved = [*table[:at], (table[at][0], table[at][1] + 1), *table[at + 1 :]]
        assert [each.code for each in audit(moved).kept] == ["row-differs"]
    assert [each.code for each in audit([*table, (b"\xff" * 16, 5)]).kept] == ["row-extra"]


def test_index_gives_up_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.audit.index._MAX_OPEN", 50)
    findings = Findings()
    index = IndexAudit(lambda: lambda count: [], findings)
    for leaf in range(3):
        index.add(leaf, [bytes([leaf, n]) * 8 for n in range(40)])
    index.close(set())
    assert [each.where for each in findings.kept] == ["record_index"]
    assert findings.gaps


def test_the_auditor_shares_nothing_but_the_core() -> None:
    script = (
        "import sys, ledger.audit\n"
        "heavy = ('sqlalchemy', 'fastapi', 'pyarrow', 'sqlmodel')\n"
        "ours = ('core', 'audit', 'native', '_native', 'zstd')\n"
        "print([m for m in sys.modules if m.split('.')[0] in heavy\n"
        " or m.startswith('ledger.') and m.split('.')[1] not in ours])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
