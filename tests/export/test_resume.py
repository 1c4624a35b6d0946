"""An export that is added to or interrupted: nothing is done twice, nothing is half there, all is proven."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.audit import audit
from ledger.audit.export import ExportSource
from ledger.core.errors import CorruptError, RefusedError, TallystickError
from ledger.core.export_layout import MANIFEST_FILE
from ledger.core.keys import generate_key
from ledger.core.note import format_vkey
from ledger.core.records import record_hash
from ledger.core.statements import Correction
from ledger.export import incremental, parquet
from ledger.export.parquet import export_parquet
from ledger.keyfiles import save_private_key
from ledger.store import migrate, open_store
from ledger.store.append import create_log, log_verifier_key
from ledger.store.erasure import Wanted, erase
from tests.build import ORIGIN, START_US
from tests.databases import copy_database
from tests.export.conftest import DAY_US, Ledger
from tests.export.growing import BATCH, grow, growing_ledger, resume
from tests.export.test_parquet import check_proofs, rows_of


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger that may grow."""
    with growing_ledger(tmp_path) as made:
        yield made


def check_sound(ledger: Ledger, target: Path) -> None:
    report = audit(ExportSource(target), format_vkey(log_verifier_key(ORIGIN, ledger.key.public)))
    assert report.findings == ()
    assert report.verdict == "sound"


def contents(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def records_of(directory: Path) -> dict[str, int]:
    """Inode of each record file: the same inode is the same file."""
    return {
        path.relative_to(directory).as_posix(): path.stat().st_ino
        for path in directory.rglob("part-*.parquet")
    }


def test_only_what_is_new_is_added(ledger: Ledger, tmp_path: Path) -> None:
    first = resume(ledger, tmp_path / "x")
    assert (first.records, first.added_records) == (240, 240)
    before, files = contents(tmp_path / "x"), records_of(tmp_path / "x")
    grow(ledger, 3)
    grow(ledger, 2, day=-3)  # late
    issuer = ledger.issuers["gpu-7.example.com/llama"]
    wrong = ledger.records[0][3]
    corrected = Correction(
        record=wrong.id, record_hash=record_hash(b"x").hex(), reason="a test", carbon_ng=5, **issuer.chain()
    )
    ledger.log(issuer.sign(corrected))
    second = resume(ledger, tmp_path / "x")
    assert (second.records, second.added_records) == (340, 100)
    assert second.tree_size == second.statements == first.tree_size + 6
    after = contents(tmp_path / "x")
    for path, inode in files.items():
        assert after[path] == before[path]
        assert records_of(tmp_path / "x")[path] == inode
    assert len(records_of(tmp_path / "x")) == len(files) + 3
    check_sound(ledger, tmp_path / "x")
    assert check_proofs(tmp_path / "x", ledger) == (340, second.tree_size)
    whole = resume(ledger, tmp_path / "fresh", resume=False)
    assert [row | {"day": ""} for row in rows_of(whole.directory)] == [
        row | {"day": ""} for row in rows_of(tmp_path / "x")
    ]
    statements = "_log/statements.parquet"
    assert after[statements] == contents(whole.directory)[statements]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["fresh", "x"]


def test_a_period_is_added_to(ledger: Ledger, tmp_path: Path) -> None:
    period = {"from_us": START_US + 5_000, "to_us": START_US + DAY_US}
    resume(ledger, tmp_path / "x", **period)
    grow(ledger, 4)
    summary = resume(ledger, tmp_path / "x", **period)
    assert not summary.every_statement
    wanted = [r for r in ledger.records if period["from_us"] <= r[3].started_us < period["to_us"]]
    assert [row["id"] for row in rows_of(tmp_path / "x")] == [record.id for *_, record in wanted]
    check_sound(ledger, tmp_path / "x")
    fresh = resume(ledger, tmp_path / "fresh", resume=False, **period)
    statements = "_log/statements.parquet"
    assert contents(tmp_path / "x")[statements] == contents(fresh.directory)[statements]


def test_nothing_new_changes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    resume(ledger, tmp_path / "x")
    before = contents(tmp_path / "x")
    summary = resume(ledger, tmp_path / "x", created_us=1)
    assert summary.added_records == 0
    assert summary.records == 240
    assert contents(tmp_path / "x") == before


class Stop(BaseException):
    """Stands for a process that ends."""


@pytest.mark.parametrize("added_to", [False, True])
def test_an_interrupted_run_goes_on_from_its_last_segment(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added_to: bool
) -> None:
    monkeypatch.setattr(parquet, "_SEGMENT_ROWS", 3 * BATCH)
    if added_to:
        resume(ledger, tmp_path / "x")
        grow(ledger, 12)
        shutil.copytree(tmp_path / "x", tmp_path / "y")
    size = ledger.records[-1][0] + 1
    stop_at = ledger.records[-5 * BATCH][0]

    def interrupt(done: int, _total: int) -> None:
        if done == stop_at:
            raise Stop

    with pytest.raises(Stop):
        resume(ledger, tmp_path / "x", progress=interrupt)
    finished = records_of(tmp_path / ".x.partial")
    assert len(finished) >= 4
    seen: list[int] = []
    summary = resume(ledger, tmp_path / "x", progress=lambda done, _: seen.append(done))
    assert seen[0] > stop_at - 4  # not from the beginning
    assert seen[-1] == size == summary.tree_size
    kept = records_of(tmp_path / "x")
    inodes = set(kept.values())
    assert len([inode for inode in finished.values() if inode in inodes]) >= len(finished) - 2
    assert not (tmp_path / ".x.partial").exists()
    check_sound(ledger, tmp_path / "x")
    resume(ledger, tmp_path / "y")
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


STEPS = (
    (parquet, "write_statements"),
    (parquet, "write_manifest"),
    (parquet, "_sync"),
    (incremental, "_exchange"),
    (incremental.Work, "save"),
    (incremental.Work, "share"),
    (incremental.Work, "publish"),
    (incremental.shutil, "rmtree"),
)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("place", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_stop_at_any_step_is_mended(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: bool
) -> None:
    resume(ledger, tmp_path / "x")
    before = contents(tmp_path / "x")
    grow(ledger, 2)
    real = getattr(place, name)

    def stop(*args: Any, **options: Any) -> None:
        if after:
            real(*args, **options)
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(place, name, stop)
        with pytest.raises(Stop):
            resume(ledger, tmp_path / "x")
    published = name == "rmtree" or (after and name in ("_exchange", "publish"))
    assert (contents(tmp_path / "x") == before) is not published
    check_sound(ledger, tmp_path / "x")
    assert resume(ledger, tmp_path / "x").records == 280
    check_sound(ledger, tmp_path / "x")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".x")]


def test_without_an_exchange_two_renames_do_and_are_mended(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume(ledger, tmp_path / "x")
    before = contents(tmp_path / "x")
    grow(ledger, 1)
    monkeypatch.setattr(incremental, "_RENAME_EXCHANGE", 1 << 20)  # flags that no kernel knows
    real, renamed = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        if renamed:
            raise Stop
        renamed.append(path)
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(Stop):
            resume(ledger, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    old = tmp_path / ".x.partial/old"
    assert contents(old) == before
    assert resume(ledger, tmp_path / "x").added_records == BATCH
    check_sound(ledger, tmp_path / "x")
    assert not old.exists()


def test_where_no_links_can_be_files_are_copied(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume(ledger, tmp_path / "x")
    grow(ledger, 1)

    def link(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(incremental.os, "link", link)
    resume(ledger, tmp_path / "x")
    check_sound(ledger, tmp_path / "x")


_KILLED = """
import sys, time
from pathlib import Path
from ledger.export import parquet, partitions
from ledger.keyfiles import load_private_key
from ledger.store import open_store
parquet._SEGMENT_ROWS = 60
store = open_store(sys.argv[1])
print("begun", flush=True)
parquet.export_parquet(
    store, sys.argv[3], log_key=load_private_key(sys.argv[2]), resume=True, created_us=10**15,
    progress=lambda done, size: time.sleep(0.02),
)
"""


@pytest.mark.faults
def test_killed_at_random_it_is_whole_in_the_end(ledger: Ledger, tmp_path: Path) -> None:
    save_private_key(tmp_path / "log.pem", ledger.key)
    target, chance, kills = tmp_path / "x", random.Random(5), 0
    command = [sys.executable, "-c", _KILLED, tmp_path / "ledger.db", tmp_path / "log.pem", target]
    for _ in range(2):
        grow(ledger, 12)
        for round_ in range(6):
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            if round_ < 5:
                time.sleep(chance.random() * 0.5 if round_ < 2 else 3)
                process.send_signal(signal.SIGKILL)
            code = process.wait(200)
            process.stdout.close()
            if target.exists():
                check_sound(ledger, target)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        assert check_proofs(target, ledger)[0] == len(ledger.records)
    assert kills >= 2
    assert not (tmp_path / ".x.partial").exists()


# --- what is not added to ---


def test_another_scope_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    resume(ledger, tmp_path / "x")
    for options in ({"from_us": 5}, {"every_statement": False}):
        with pytest.raises(RefusedError, match="another log, period"):
            resume(ledger, tmp_path / "x", **options)
    check_sound(ledger, tmp_path / "x")


def test_another_directory_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match="not an export"):
        resume(ledger, tmp_path / "x")
    assert contents(tmp_path / "x").keys() == {"notes.txt"}


def test_an_export_that_was_changed_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    resume(ledger, tmp_path / "x")
    grow(ledger, 1)
    for path in [path for path in (tmp_path / "x").rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        with pytest.raises(TallystickError):
            resume(ledger, tmp_path / "x")
        path.write_bytes(data)
    statements = tmp_path / "x/_log/statements.parquet"
    data = statements.read_bytes()
    statements.write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])
    with pytest.raises(CorruptError, match="not the file that the manifest lists"):
        resume(ledger, tmp_path / "x")


def test_a_ledger_that_went_back_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    store = copy_database(ledger.store, tmp_path / "old.db")
    grow(ledger, 1)
    resume(ledger, tmp_path / "x")
    with pytest.raises(CorruptError, match="rolled back or forked"):
        export_parquet(store, tmp_path / "x", log_key=ledger.key, resume=True)
    store.close()


def test_two_at_once_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    resume(ledger, tmp_path / "x")
    grow(ledger, 1)
    with incremental.locked_work(tmp_path / "x"), pytest.raises(RefusedError, match="another export"):
        resume(ledger, tmp_path / "x")
    assert resume(ledger, tmp_path / "x").added_records == BATCH


def test_what_was_erased_since_is_not_signed_again(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export keeps no bytes that the log has given up, neither the finished nor the begun one."""
    resume(ledger, tmp_path / "x")
    monkeypatch.setattr(parquet, "_SEGMENT_ROWS", BATCH)

    def interrupt(done: int, size: int) -> None:
        if done == size - 2:
            raise Stop

    with pytest.raises(Stop):
        resume(ledger, tmp_path / "y", progress=interrupt)
    wanted = Wanted(ids=(ledger.records[3][3].id, ledger.records[BATCH][3].id))
    assert erase(ledger.store, ledger.sequencer, wanted, "a request").records == 2
    with pytest.raises(RefusedError, match="erased"):
        resume(ledger, tmp_path / "x")
    seen: list[int] = []
    summary = resume(ledger, tmp_path / "y", progress=lambda done, _: seen.append(done))
    assert seen[0] == 1  # the finished segments are not taken over
    assert summary.records == 238
    check_sound(ledger, tmp_path / "y")
    assert {row["id"] for row in rows_of(tmp_path / "y")}.isdisjoint(wanted.ids)
    grow(ledger, 1)
    assert resume(ledger, tmp_path / "y").records == 258
    check_sound(ledger, tmp_path / "y")


def test_an_erasure_amid_an_export_ends_it(ledger: Ledger, tmp_path: Path) -> None:
    wanted = Wanted(ids=(ledger.records[0][3].id,))

    def erase_amid(done: int, size: int) -> None:
        if done == size - 2:
            erase(ledger.store, ledger.sequencer, wanted, "a request")

    for options in ({}, {"resume": False}):
        target = tmp_path / f"x{len(options)}"
        with pytest.raises(RefusedError, match="erased while"):
            resume(ledger, target, progress=erase_amid, **options)
        wanted = Wanted(ids=(ledger.records[-1][3].id,))
        assert resume(ledger, target, **options).records < 240
        check_sound(ledger, target)


def test_a_manifest_of_another_key_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    resume(ledger, tmp_path / "x")
    assert (tmp_path / "x" / MANIFEST_FILE).is_file()
    store, other = open_store(tmp_path / "other.db"), generate_key()
    migrate(store)
    create_log(store, other, ORIGIN)
    with pytest.raises(TallystickError):
        export_parquet(store, tmp_path / "x", log_key=other, resume=True)
    store.close()
