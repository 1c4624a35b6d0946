from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.core.commitments import Opening, record_salt, token_bytes, verify_opening
from ledger.core.errors import InvalidError, RefusedError, UnavailableError
from ledger.core.keys import generate_key
from ledger.core.statements import Batch, DeploymentStatement, FactorsStatement, Heartbeat
from ledger.emit import Recorder
from ledger.emit.chain import Chain
from ledger.emit.identity import Tenants, load_secret
from ledger.emit.spool import Spool
from ledger.keyfiles import save_private_key
from tests.build import make_deployment, make_factor_set
from tests.emit.conftest import MakeRecorder, eventually, report
from tests.emit.ledger_double import LedgerDouble


def batches(spool_dir: Path) -> list[Batch]:
    spool = Spool(spool_dir)
    payloads = [spool.load(seq).statement.payload for seq in spool.waiting()]
    return [each for each in payloads if isinstance(each, Batch)]


def told(spool_dir: Path) -> int:
    """What the chain says was dropped."""
    spool = Spool(spool_dir)
    payloads = [spool.load(seq).statement.payload for seq in spool.waiting()]
    return sum(each.dropped for each in payloads if isinstance(each, Batch | Heartbeat))


# --- the import ------------------------------------------------------------------------------------------

FORBIDDEN = {
    "fastapi", "starlette", "pydantic", "sqlmodel", "sqlalchemy", "alembic", "pyarrow", "duckdb", "numpy",
    "typer", "rich", "uvicorn", "prometheus_client", "asyncio", "multiprocessing", "urllib3", "ledger.store",
    "ledger.service", "ledger.audit", "ledger.export", "xllamacpp", "email", "http",
}  # fmt: skip


def test_the_import_is_light() -> None:
    code = "import sys, ledger.emit; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert FORBIDDEN & set(out.split()) == set()


# --- settings --------------------------------------------------------------------------------------------


def test_settings_come_from_the_environment(double: LedgerDouble, tmp_path: Path, monkeypatch) -> None:
    key = generate_key("es256")
    save_private_key(tmp_path / "key.pem", key)
    for name, value in {
        "URL": double.url,
        "API_KEY": double.api_key,
        "LOG_KEY": double.vkey,
        "SPOOL": str(tmp_path / "elsewhere"),
        "ISSUER": "env.example/one",
        "KEY": str(tmp_path / "key.pem"),
    }.items():
        monkeypatch.setenv(f"TALLYSTICK_{name}", value)
    with Recorder(deployment=make_deployment()) as recorder:
        double.keys[recorder.issuer] = key.public
        recorder.record(**report())
        assert recorder.flush()
        assert recorder.issuer == "env.example/one"
        assert recorder.public_key.kid == key.public.kid
    assert not Spool(tmp_path / "elsewhere").waiting()
    assert len(double.records) == 1


def test_with_nothing_set_everything_is_made_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    names, kids = set(), set()
    for _ in range(2):
        with Recorder(deployment=make_deployment()) as recorder:
            recorder.record(**report())
            assert recorder.flush()
            names.add(recorder.issuer)
            kids.add(recorder.public_key.kid)
    assert len(names) == len(kids) == 1
    assert len(batches(tmp_path / "tallystick" / "spool")) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"max_records": 0},
        {"max_records": 5000},
        {"queue_limit": 0},
        {"max_age_s": -1},
        {"when_full": "explode"},
        {"url": "ledger.example"},
        {"issuer": "two words"},
        {"key": "missing.pem"},
        {"deployment": make_deployment(model="")},
        {"factors": make_factor_set(pue_milli=1)},
    ],
)
def test_unusable_settings_are_refused_at_once(
    make_recorder: MakeRecorder, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidError):
        make_recorder(**options)


def test_the_spool_of_another_issuer_is_refused(make_recorder: MakeRecorder) -> None:
    make_recorder()
    with pytest.raises(RefusedError):
        make_recorder(issuer="other.example")


def test_a_spool_that_cannot_be_made_is_refused(make_recorder: MakeRecorder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError):
        make_recorder(spool=tmp_path / "file" / "x")


# --- batches ---------------------------------------------------------------------------------------------


def test_documents_come_first_and_once(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    factors = make_factor_set()
    for _ in range(2):
        recorder = make_recorder(factors=factors)
        for model in ("a", "b", "a"):
            recorder.record(**report(deployment=make_deployment(model=model), busy_us=1000))
        assert recorder.close()
    spool = Spool(spool_dir)
    kinds = [type(spool.load(seq).statement.payload) for seq in spool.waiting()]
    assert kinds == [DeploymentStatement, DeploymentStatement, FactorsStatement, Batch, Batch]


def test_commitments_open_however_many_reports_wait(
    make_recorder: MakeRecorder, double: LedgerDouble, spool_dir: Path, monkeypatch
) -> None:
    monkeypatch.setattr("ledger.emit.recorder.ENOUGH", 3)
    monkeypatch.setattr("ledger.emit.recorder._MANY_REPORTS", 6)
    recorder = make_recorder(double, max_age_s=1.0)
    ids = {}
    for n in range(9):  # three packed at once, three that wait as they are, three packed again
        given, made = [n, 2**32 - 1, *range(70)], (n, n + 1)
        ids[recorder.record(**report(input_ids=given, output_ids=made))] = given, made
    assert recorder.flush()
    secret = load_secret(spool_dir / "issuer.secret")
    with contextlib.closing(Tenants(spool_dir / "tenants", secret)) as tenants:
        key = tenants.keys(["t-1"])["t-1"]
    for id, both in ids.items():
        record = double.records[id]
        for purpose, digest, tokens in zip(
            ("input", "output"), (record.input.digest, record.output.digest), both, strict=True
        ):
            opening = Opening("tokens", record_salt(key, id, purpose), token_bytes(tokens))
            verify_opening(bytes.fromhex(digest), opening)


def test_a_full_batch_is_sealed_before_its_time(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder(max_records=10, max_age_s=60.0)
    for _ in range(35):
        recorder.record(**report())
    assert eventually(lambda: len(batches(spool_dir)) == 3)
    assert recorder.close()
    assert [each.count for each in batches(spool_dir)] == [10, 10, 10, 5]


def test_a_batch_is_sealed_when_its_time_has_come(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder(max_age_s=1.0)
    began = time.monotonic()
    recorder.record(**report())
    recorder.record(**report())
    assert eventually(lambda: len(batches(spool_dir)) == 1)
    assert time.monotonic() - began >= 0.9
    assert batches(spool_dir)[0].count == 2


def test_a_batch_whose_sum_would_overflow_is_split(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder()
    for _ in range(3):
        usage = report()["usage"].__class__(input_tokens=2**53 - 1, output_tokens=1)
        recorder.record(**report(usage=usage, input_ids=None))
    assert recorder.close()
    assert [each.count for each in batches(spool_dir)] == [1, 1, 1]


def test_what_is_invalid_is_counted_and_spares_the_rest(
    make_recorder: MakeRecorder, spool_dir: Path, caplog
) -> None:
    recorder = make_recorder()
    for started_us in (5, None, "x"):
        recorder.record(**report(started_us=started_us))
    recorder.record(**report())
    assert recorder.close()
    assert recorder.status().dropped == 3
    assert [(each.count, each.dropped) for each in batches(spool_dir)] == [(1, 3)]
    assert "rejected" in caplog.text


def test_a_heartbeat_tells_that_a_silent_issuer_lives(
    make_recorder: MakeRecorder, double: LedgerDouble
) -> None:
    recorder = make_recorder(double, heartbeat_s=0.1)
    time.sleep(0.3)
    assert not double.statements  # nothing was ever sent
    recorder.record(**report())
    assert recorder.flush()
    assert eventually(lambda: sum(isinstance(s.payload, Heartbeat) for s in double.statements) >= 2)


def test_heartbeats_do_not_pile_up_while_the_ledger_is_away(
    make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    recorder = make_recorder(heartbeat_s=0.05)
    recorder.record(**report())
    assert recorder.sync()
    time.sleep(0.5)
    assert len(Spool(spool_dir).waiting()) == 2


# --- a full queue, a full disk ---------------------------------------------------------------------------


class Stuck:
    """Makes every write to disk fail while it holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch.context()
        self.write = os.write

    def __enter__(self) -> None:
        def full(*args: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch.__enter__().setattr(os, "write", full)

    def __exit__(self, *args: object) -> None:
        self.patch.__exit__(None, None, None)


def test_a_full_queue_drops_and_tells(
    make_recorder: MakeRecorder, spool_dir: Path, monkeypatch, caplog
) -> None:
    recorder = make_recorder(queue_limit=10, max_age_s=0.0)
    recorder.record(**report())
    assert recorder.sync()
    with Stuck(monkeypatch):
        recorder.record(**report())
        assert eventually(lambda: recorder.status().problem is not None)
        for _ in range(25):
            recorder.record(**report())
        status = recorder.status()
        assert status.dropped == 15
        assert status.queued == 11
        assert "No space left" in str(status.problem)
        assert not status.blocked
    assert recorder.close()
    assert sum(each.count for each in batches(spool_dir)) == 12
    assert told(spool_dir) == 15
    assert recorder.status().problem is None
    assert caplog.text.count("the queue is full: records find no room") == 1


def test_drops_on_a_full_disk_outlive_a_kill(
    make_recorder: MakeRecorder, spool_dir: Path, monkeypatch
) -> None:
    child = os.fork()
    if child == 0:
        recorder = make_recorder(queue_limit=10, max_age_s=0.0)
        recorder.record(**report())
        recorder.sync()
        with Stuck(monkeypatch):
            recorder.record(**report())
            eventually(lambda: recorder.status().problem is not None)
            for _ in range(25):
                recorder.record(**report())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    recorder = make_recorder()
    recorder.record(**report())
    assert recorder.close()
    assert sum(each.count for each in batches(spool_dir)) == 2
    assert told(spool_dir) == 26


def test_a_full_queue_blocks_if_asked_to(make_recorder: MakeRecorder, spool_dir: Path, monkeypatch) -> None:
    recorder = make_recorder(queue_limit=5, when_full="block", max_age_s=0.0)
    recorder.record(**report())
    assert recorder.sync()

    def run() -> None:
        for _ in range(40):
            recorder.record(**report())

    with Stuck(monkeypatch):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()
    assert recorder.close()
    assert sum(each.count for each in batches(spool_dir)) == 41
    assert told(spool_dir) == 0


def test_closing_frees_who_waits_for_room(make_recorder: MakeRecorder, monkeypatch) -> None:
    recorder = make_recorder(queue_limit=1, when_full="block", max_age_s=0.0)
    recorder.record(**report())
    assert recorder.sync()
    with Stuck(monkeypatch):
        thread = threading.Thread(target=lambda: [recorder.record(**report()) for _ in range(9)])
        thread.start()
        assert eventually(lambda: recorder.status().problem is not None)
        assert not recorder.close(0.1)
        thread.join(20)
        assert not thread.is_alive()


def test_a_file_size_limit_is_a_full_disk(spool_dir: Path) -> None:
    """The kernel's own refusal (EFBIG), not a patched function."""
    child = os.fork()
    if child == 0:
        recorder = Recorder(
            spool=spool_dir,
            issuer="tests.example",
            deployment=make_deployment(),
            max_age_s=0.5,  # in one batch, larger than the limit
            queue_limit=100,
        )
        recorder.record(**report())
        recorder.sync()
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 1 << 40))
        for _ in range(200):
            recorder.record(**report(quality={f"m{n}": quality(n) for n in range(30)}))
        deadline = time.monotonic() + 10  # a busy machine may be late in meeting the limit
        while "File too large" not in str(recorder.status().problem) and time.monotonic() < deadline:
            time.sleep(0.01)
        ok = not recorder.sync(0.1) and "File too large" in str(recorder.status().problem)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))
        ok = ok and recorder.close() and recorder.status().problem is None
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sum(each.count for each in batches(spool_dir)) + told(spool_dir) == 201


def quality(n: int) -> object:
    from ledger.core.records import Quality

    return Quality(value=int.from_bytes(os.urandom(6), "big") + n, scale=3)


def test_the_spools_limit_holds_back_and_drops(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder(spool_limit_bytes=30_000, queue_limit=5, max_age_s=0.0)
    made = 0
    while recorder.status().problem is None:
        recorder.record(**report())
        recorder.sync(2)
        made += 1
        assert made < 200
    for _ in range(20):
        recorder.record(**report())
    status = recorder.status()
    assert "its limit is 30000" in str(status.problem)
    assert status.dropped > 0
    kept = sum(each.count for each in batches(spool_dir))
    assert kept + status.queued + status.dropped == made + 20


# --- ending ----------------------------------------------------------------------------------------------


def test_close_twice_and_record_afterwards(make_recorder: MakeRecorder, spool_dir: Path, caplog) -> None:
    recorder = make_recorder()
    recorder.record(**report())
    assert recorder.close()
    assert recorder.close()
    for _ in range(2):
        recorder.record(**report())
    assert recorder.sync()
    assert recorder.status().dropped == 2
    assert caplog.text.count("after close") == 1
    assert [each.count for each in batches(spool_dir)] == [1]


def test_a_close_without_time_seals_what_is_in_memory(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    """As at the interpreter's exit, where another recorder has used up the time."""
    recorder = make_recorder(max_age_s=60.0)
    for _ in range(500):
        recorder.record(**report())
    assert recorder.close(0.0)
    assert sum(each.count for each in batches(spool_dir)) == 500
    assert told(spool_dir) == 0


def test_an_unused_recorder_leaves_nothing(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder()
    assert recorder.sync()
    assert recorder.flush()
    assert not recorder._threads
    assert recorder.close()
    assert not Spool(spool_dir).waiting()
    assert not list((spool_dir / "sessions").iterdir())


def test_a_closed_recorder_holds_no_file_open(tmp_path: Path) -> None:
    recorder = Recorder(spool=tmp_path, deployment=make_deployment())
    recorder.record(**report())
    assert recorder.flush()
    assert open_files(tmp_path)  # its lock, its session, the tenants' secrets
    assert recorder.close()
    assert not open_files(tmp_path)


def open_files(folder: Path) -> set[str]:
    names = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            names.add(os.readlink(each))
    return {name for name in names if name.startswith(str(folder))}


def test_close_is_bounded_when_the_ledger_hangs(make_recorder: MakeRecorder, double: LedgerDouble) -> None:
    release = threading.Event()

    def hang(number: int, path: str) -> None:
        release.wait(40)

    double.fault = hang
    recorder = make_recorder(double)
    recorder.record(**report())
    began = time.monotonic()
    assert not recorder.close(0.5)
    assert time.monotonic() - began < 20
    release.set()


def test_a_system_without_threads_loses_nothing(
    make_recorder: MakeRecorder, double: LedgerDouble, monkeypatch
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith("tallystick"):
            raise RuntimeError("can't start new thread")
        start(self)

    recorder = make_recorder(double)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(5):
            recorder.record(**report())
        assert recorder.status().queued == 5
    recorder.record(**report())  # now there are some
    assert recorder.flush()
    other = make_recorder(double)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        other.record(**report())
        assert other.close()
    assert len(double.records) == 7


@pytest.mark.usefixtures("quick_retries")
def test_a_bug_in_sending_does_not_end_it(
    make_recorder: MakeRecorder, double: LedgerDouble, monkeypatch
) -> None:
    recorder = make_recorder(double)
    with monkeypatch.context() as patch:
        patch.setattr("ledger.emit.sender.judge", lambda *args, **kwargs: 1 // 0)
        recorder.record(**report())
        assert eventually(lambda: "ZeroDivisionError" in str(recorder.status().problem))
    assert recorder.flush()


@pytest.mark.usefixtures("quick_retries")
def test_a_bug_in_sealing_does_not_end_it(make_recorder: MakeRecorder, spool_dir: Path, monkeypatch) -> None:
    recorder = make_recorder()
    with monkeypatch.context() as patch:
        patch.setattr("ledger.emit.sealer.batch_payload", lambda *args: 1 // 0)
        recorder.record(**report())
        assert eventually(lambda: "ZeroDivisionError" in str(recorder.status().problem))
    assert recorder.close()
    assert [each.count for each in batches(spool_dir)] == [1]


def test_what_is_in_the_spool_is_not_sealed_again_when_unlocking_fails(
    make_recorder: MakeRecorder, double: LedgerDouble, monkeypatch
) -> None:
    """A close may fail (a network file system, a broken disk) though all was written."""
    locked = Spool.locked
    failures = iter([OSError(errno.EIO, "Input/output error")] * 3)

    @contextlib.contextmanager
    def failing(self: Spool) -> Iterator[Chain]:
        with locked(self) as chain:
            before = chain.head.next_seq
            yield chain
            if chain.head.next_seq > before and (failure := next(failures, None)) is not None:
                raise UnavailableError(str(failure))

    recorder = make_recorder(double, max_age_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "locked", failing)
        for _ in range(6):
            recorder.record(**report())
            assert recorder.sync()
    assert recorder.close()
    assert len(double.records) == 6
    assert double.dropped == 0


def test_drops_are_told_once_though_a_flush_fails(
    make_recorder: MakeRecorder, double: LedgerDouble, monkeypatch
) -> None:
    recorder = make_recorder(double)
    recorder.record(**report())
    assert recorder.sync()
    sync, failures = os.fsync, iter([True])

    def failing(file: int) -> None:
        sync(file)
        if os.path.basename(os.readlink(f"/proc/self/fd/{file}")) == "head" and next(failures, False):
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        for _ in range(3):
            recorder.record(**report(started_us=1))
        assert recorder.sync()
    assert next(failures, False) is False
    assert recorder.close()
    assert double.dropped == 3


def test_risky_settings_are_warned_of(make_recorder: MakeRecorder, caplog) -> None:
    make_recorder(url="http://ledger.example", api_key="k")
    assert "without encryption" in caplog.text
    assert "no log_key" in caplog.text


SCRIPT = """
    import sys, time
    from ledger.core.records import Usage
    from ledger.emit import Recorder
    from tests.build import make_deployment
    r = Recorder(spool=sys.argv[1], issuer="tests.example", deployment=make_deployment(), max_age_s=30)
    def record():
        now = time.time_ns() // 1000
        r.record(usage=Usage(input_tokens=1, output_tokens=1), started_us=now, ended_us=now)
"""


def run_script(spool_dir: Path, rest: str) -> None:
    code = textwrap.dedent(SCRIPT) + textwrap.dedent(rest)
    subprocess.run([sys.executable, "-c", code, str(spool_dir)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("rest", "count"),
    [
        ("record(); record()", 2),
        ("record(); sys.exit(0)", 1),
        ("import atexit; atexit.register(record)", 1),  # the first record of a process that is ending
        ("import threading; threading.Thread(target=lambda: (time.sleep(0.2), record())).start()", 1),
    ],
)
def test_the_end_of_the_interpreter_seals_what_is_left(spool_dir: Path, rest: str, count: int) -> None:
    run_script(spool_dir, rest)
    assert sum(each.count for each in batches(spool_dir)) == count
    assert told(spool_dir) == 0


class Left:
    """Ends a generation when the garbage collector finds it, as hooks do for streams that were left."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.cycle = self

    def __del__(self) -> None:
        self.recorder.record(**report())


def sealers() -> int:
    return [thread.name for thread in threading.enumerate()].count("tallystick-seal")


def test_a_finalizer_may_record_while_the_sealer_waits(
    make_recorder: MakeRecorder, double: LedgerDouble, monkeypatch
) -> None:
    recorder = make_recorder(double, max_age_s=0.0)
    recorder.record(**report())
    assert recorder.sync()
    allocate = threading._allocate_lock  # type: ignore[attr-defined]

    def collecting() -> Any:
        if threading.current_thread().name == "tallystick-seal":
            gc.collect()
        return allocate()

    with monkeypatch.context() as patch:
        patch.setattr(threading, "_allocate_lock", collecting)
        for _ in range(20):
            Left(recorder)
            recorder.record(**report())
            time.sleep(0.005)
    gc.collect()
    assert recorder.flush()
    assert len(double.records) == 41


def test_a_finalizer_may_record_while_the_threads_start(
    make_recorder: MakeRecorder, double: LedgerDouble, monkeypatch
) -> None:
    recorder = make_recorder(double)
    start, before = threading.Thread.start, sealers()

    def collecting(self: threading.Thread) -> None:
        if self.name.startswith("tallystick"):
            Left(recorder)
            gc.collect()
        start(self)

    monkeypatch.setattr(threading.Thread, "start", collecting)
    first = threading.Thread(target=lambda: recorder.record(**report()), daemon=True)
    first.start()
    first.join(10)
    assert not first.is_alive()
    assert recorder.flush()
    assert sealers() == before + 1
    assert len(double.records) == 3


def test_asyncio(make_recorder: MakeRecorder, double: LedgerDouble) -> None:
    async def main() -> bool:
        async with make_recorder(double) as recorder:
            recorder.record(**report())
            assert await recorder.aflush()
            recorder.record(**report())
        return await recorder.aclose()

    assert asyncio.run(main())
    assert len(double.records) == 2


# --- forks and several processes -------------------------------------------------------------------------


def test_both_sides_of_a_fork_record(make_recorder: MakeRecorder, double: LedgerDouble) -> None:
    recorder = make_recorder(double)
    ids = [recorder.record(**report()) for _ in range(30)]  # some are still queued when we fork
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        own = [recorder.record(**report()) for _ in range(40)]
        done = recorder.close(20)
        os.write(write, "\n".join(own).encode())
        os._exit(0 if done else 1)
    os.close(write)
    ids += [recorder.record(**report()) for _ in range(40)]
    assert recorder.flush(20)
    of_child = b""
    while chunk := os.read(read, 1 << 16):
        of_child += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert recorder.close()
    assert set(double.records) == {*ids, *of_child.decode().split()}
    assert len(double.records) == 110
    assert double.dropped == 0


def test_a_child_that_never_records_costs_nothing(make_recorder: MakeRecorder, double: LedgerDouble) -> None:
    recorder = make_recorder(double)
    recorder.record(**report())
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    recorder.record(**report())
    assert recorder.close()
    assert len(double.records) == 2
    assert double.dropped == 0


@pytest.mark.parametrize("end", ["record", "begin"])
def test_a_child_that_is_killed_at_once_is_accounted_for(
    make_recorder: MakeRecorder, spool_dir: Path, end: str
) -> None:
    recorder = make_recorder(max_age_s=60.0)
    recorder.record(**report())
    assert recorder.sync()
    for _ in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(5):
                recorder.record(**report()) if end == "record" else recorder.begin()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    assert recorder.close()
    later = make_recorder()
    later.record(**report())
    assert later.close()
    assert sum(each.count for each in batches(spool_dir)) + told(spool_dir) == 22
    assert told(spool_dir) == 20


def test_a_parents_death_is_seen_though_a_child_lives(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    """The child inherits the parent's open files, but must not keep its session alive."""
    ready_read, ready_write = os.pipe()
    parent = os.fork()
    if parent == 0:
        recorder = make_recorder(max_age_s=60.0)
        for _ in range(7):
            recorder.record(**report())
        if os.fork() == 0:
            os.write(ready_write, b"x")
            time.sleep(3)
            os._exit(0)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.read(ready_read, 1)
    os.waitpid(parent, 0)
    recorder = make_recorder()
    recorder.record(**report())
    assert recorder.close()
    assert told(spool_dir) == 7


def _work(recorder: Recorder, count: int) -> None:
    for _ in range(count):
        recorder.record(**report())


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_children_of_multiprocessing_seal_at_their_end(spool_dir: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    children = [context.Process(target=_record_in_child, args=(spool_dir, 5)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert sum(each.count for each in batches(spool_dir)) == 10
    assert told(spool_dir) == 0


def _record_in_child(spool_dir: Path, count: int) -> None:
    recorder = Recorder(spool=spool_dir, issuer="tests.example", deployment=make_deployment(), max_age_s=60.0)
    _work(recorder, count)


def test_a_recorder_made_before_the_fork_seals_at_the_childs_end(
    make_recorder: MakeRecorder, spool_dir: Path
) -> None:
    recorder = make_recorder(max_age_s=60.0)
    child = multiprocessing.get_context("fork").Process(target=_work, args=(recorder, 5))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert sum(each.count for each in batches(spool_dir)) == 5


def test_four_processes_share_a_spool(double: LedgerDouble, spool_dir: Path) -> None:
    code = textwrap.dedent(
        """
        import sys, time
        from ledger.emit import Recorder
        from tests.build import make_deployment
        from tests.emit.conftest import report
        spool, url, key, vkey = sys.argv[1:]
        with Recorder(url, api_key=key, log_key=vkey, spool=spool, issuer="tests.example/shared",
                      deployment=make_deployment(), max_age_s=0.01) as recorder:
            ids = []
            for _ in range(40):
                ids += [recorder.record(**report()) for _ in range(10)]
                time.sleep(0.005)
            assert recorder.flush(60)
            assert all(recorder.receipt_for(each, 5) is not None for each in ids)
        print(*ids)
        """
    )
    arguments = [sys.executable, "-c", code, str(spool_dir), double.url, double.api_key, double.vkey]
    children = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids: list[str] = []
    for child in children:
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        ids += out.split()
    assert len(ids) == 1600
    assert set(double.records) == set(ids)
    assert [each.payload.seq for each in double.statements] == list(range(len(double.statements)))
    assert double.dropped == 0
    assert not Spool(spool_dir).waiting()


# --- tenants ---------------------------------------------------------------------------------------------


def test_a_tenant_can_be_forgotten_while_recording(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder()
    recorder.record(**report(tenant="gone"))
    recorder.record(**report(tenant="stays"))
    assert recorder.sync()
    before = (spool_dir / "tenants").read_text()
    assert recorder.forget_tenant("gone")
    assert not recorder.forget_tenant("gone")
    recorder.record(**report(tenant="stays"))
    assert recorder.close()
    after = (spool_dir / "tenants").read_text()
    assert '"gone"' in before
    assert '"gone"' not in after
    assert [line for line in after.split("\n") if "stays" in line] == [
        line for line in before.split("\n") if "stays" in line
    ]


def test_a_tenants_secret_that_cannot_be_stored_holds_the_record_back(
    make_recorder: MakeRecorder, spool_dir: Path, monkeypatch
) -> None:
    recorder = make_recorder()
    recorder.record(**report(tenant="first"))
    assert recorder.sync()
    with Stuck(monkeypatch):
        recorder.record(**report(tenant="second"))
        assert eventually(lambda: recorder.status().problem is not None)
    assert recorder.close()
    assert sum(each.count for each in batches(spool_dir)) == 2
    assert told(spool_dir) == 0
