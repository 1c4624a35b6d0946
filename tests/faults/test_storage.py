"""SQLite on a disk that is full, goes read-only under it, or tore the write-ahead log.

The disks are real: a small one of memory, and an ext4 in a file which the kernel is told to give up, as it
does after an error. Both in a mount namespace of their own, which needs root.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from ledger.core import merkle
from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import CorruptError
from ledger.store import Sequencer, open_store, queries
from tests.build import make_deployment, make_records
from tests.emit.conftest import eventually
from tests.store.conftest import World, world

__all__ = ["world"]

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("TALLYSTICK_FAULT_SEED", str(time.time_ns())))
TEARS = 60

COMMON = """
import atexit, http.client, json, os, subprocess, sys, time
from pathlib import Path
from cli.children import free_port
from cli.init import init_folder
from ledger.audit import audit
from ledger.audit.database import SqliteSource
from ledger.keyfiles import load_private_key
from ledger.store import Sequencer, open_store
from tests.build import Issuer, make_deployment, make_records
from tests.faults.scenario import fill

disk = Path(sys.argv[1])
BATCH = "application/vnd.tallystick.batch+cbor"

def request(method, path, body=None, media_type=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    headers = {"Authorization": f"Bearer {token}"} | ({"Content-Type": media_type} if media_type else {})
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, answer

def serve():
    command = [sys.executable, "-m", "cli", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    atexit.register(process.kill)
    deadline = time.monotonic() + 120  # of a busy machine
    while time.monotonic() < deadline:
        assert process.poll() is None, Path(log.name).read_text()[-2000:]
        try:
            if request("GET", "/healthz")[0] == 200:
                return process
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("the service did not start")

def begin():
    global folder, port, token, log, issuer, deployment
    folder, port = disk / "ledger", free_port()
    init_folder(folder, "log.faults.example")
    os.sync()
    token, log = (folder / "admin.key").read_text().strip(), open(disk.parent / "service.log", "ab")
    issuer, deployment = Issuer(), make_deployment()
    store = open_store(folder / "ledger.db")
    sequencer = Sequencer(store, load_private_key(folder / "keys/log.pem"))
    sequencer.start()
    sequencer.add_key(issuer.name, issuer.key.public).result(30)
    sequencer.stop()
    store.close()

def send(n, count=40):
    batch = issuer.batch(make_records(count, deployment, first=n * count))
    return batch, *request("POST", "/batches", batch.body, BATCH)

def end(sent):
    report = audit(SqliteSource(folder / "ledger.db"), (folder / "log.vkey").read_text().strip())
    assert report.verdict == "sound", report.findings
    assert report.counts.records == sent, (report.counts, sent)
    print("done")
"""

FULL = """
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)], check=True)
begin()
service = serve()
assert request("POST", "/entries", issuer.deployment(deployment).entry, "application/cose")[0] == 201
assert [send(n)[1] for n in range(5)] == [201] * 5
sent = 5
for round in range(3):
    fill(disk / "filler", [0, 4096, 70_000][round])
    waiting = []
    for n in range(400):  # the log of pages may have room of its own for a while
        batch, status, answer = send(100 + 1000 * round + n)
        waiting.append(batch)
        if status != 201:
            break
    assert status == 503, (status, answer)
    assert b"storage-failed" in answer, answer
    size = json.loads(request("GET", "/log")[1])["size"]
    assert request("GET", "/checkpoint")[0] == 200
    for _ in range(3):
        assert request("POST", "/batches", batch.body, BATCH)[0] == 503
    assert json.loads(request("GET", "/log")[1])["size"] == size
    (disk / "filler").unlink()
    status, answer = request("POST", "/batches", batch.body, BATCH)
    assert status == 201, answer
    assert request("POST", "/batches", batch.body, BATCH) == (200, answer)
    sent += len(waiting)
service.terminate()
assert service.wait(60) == 0
end(40 * sent)
"""

READ_ONLY = """
image = disk.parent / "image"
subprocess.run(["dd", "if=/dev/zero", f"of={image}", "bs=1M", "count=48"], check=True, capture_output=True)
subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
begin()
service = serve()
assert request("POST", "/entries", issuer.deployment(deployment).entry, "application/cose")[0] == 201
assert [send(n)[1] for n in range(5)] == [201] * 5
size = json.loads(request("GET", "/log")[1])["size"]
subprocess.run(["mount", "-o", "remount,abort", str(disk)], check=True)
batch, status, answer = send(5)
assert status == 503, (status, answer)
assert b"storage-failed" in answer, answer
# The system may still show what the disk did not take: nothing of it may be served.
for path in ("/checkpoint", "/log", "/healthz", "/entries/8"):
    status, answer = request("GET", path)
    assert status == 503 and b"storage-failed" in answer, (path, status, answer)
assert request("POST", "/batches", batch.body, BATCH)[0] == 503
service.terminate()
service.wait(60)
subprocess.run(["umount", str(disk)], check=True)
subprocess.run(["fsck.ext4", "-fy", str(image)], capture_output=True)
subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
done = subprocess.run([sys.executable, "-m", "cli", "serve", str(folder), "--port", str(port)],
                      capture_output=True, text=True, timeout=60)
assert done.returncode == 2, done
assert "error: the disk does not take what" in done.stderr, done.stderr
subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
service = serve()
assert json.loads(request("GET", "/log")[1])["size"] == size
status, answer = request("POST", "/batches", batch.body, BATCH)
assert status == 201, answer
service.terminate()
assert service.wait(60) == 0
end(6 * 40)
subprocess.run(["umount", str(disk)], check=True)
"""


def private_mounts() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return not subprocess.run(
        ["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False
    ).returncode


def run_script(script: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", COMMON + textwrap.dedent(script), str(disk)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TALLYSTICK_PREPARE_PROCESSES": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"


@pytest.mark.faults
@pytest.mark.sqlite
@pytest.mark.skipif(not private_mounts(), reason="root may mount, others not")
def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    run_script(FULL, tmp_path)


@pytest.mark.faults
@pytest.mark.sqlite
@pytest.mark.skipif(not private_mounts(), reason="root may mount, others not")
@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="no loop devices here")
@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4 here")
def test_a_disk_that_goes_read_only_refuses_and_loses_nothing(tmp_path: Path) -> None:
    run_script(READ_ONLY, tmp_path)


@pytest.mark.faults
@pytest.mark.sqlite
def test_a_torn_write_ahead_log_gives_an_earlier_state_or_is_refused(world: World, tmp_path: Path) -> None:
    """Cut or changed at any byte: what opens is a state that was committed, and less than was published
    does not start."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    history = {}

    def remember() -> None:
        with world.store.read() as connection:
            head = queries.log_head(connection)
        history[head.size] = head.root

    remember()
    deployment = make_deployment()
    for n in range(12):
        world.log(world.issuer.batch(make_records(chance.randrange(1, 40), deployment, first=100 * n)))
        remember()

    def published() -> int:
        return open_checkpoint((world.path / "checkpoint").read_bytes(), world.sequencer.verifier_key).size

    assert eventually(lambda: published() == max(history))
    log = (world.path / "ledger.db-wal").read_bytes()
    sizes = set()
    for number in range(TEARS):
        folder = tmp_path / f"torn-{number}"
        folder.mkdir()
        shutil.copy(world.path / "ledger.db", folder / "ledger.db")
        torn = bytearray(log)
        at = chance.randrange(len(torn))
        match chance.randrange(3):
            case 0:
                del torn[at:]
            case 1:
                torn[at] ^= 1 << chance.randrange(8)
            case 2:  # a sector that was not written
                torn[at : at + 512] = bytes(len(torn[at : at + 512]))
        (folder / "ledger.db-wal").write_bytes(torn)
        size = check_torn(folder, world, history, max(history))
        sizes.add(size)
        shutil.rmtree(folder)
    assert len(sizes) > 3


def check_torn(folder: Path, world: World, history: dict[int, bytes], published: int) -> int:
    """The leaves that the torn database has; -1 if not even the tables."""
    store = open_store(folder / "ledger.db")
    try:
        with store.read() as connection:
            if not inspect(connection).has_table("log_head"):
                return -1
            if connection.execute(text("SELECT count(*) FROM log_head")).scalar_one() == 0:
                return 0
            head = queries.log_head(connection)
            entries = queries.read_bundle(connection, 0, head.size)
        if head.size in history:
            assert head.root == history[head.size]
        assert merkle.root([merkle.leaf_hash(entry) for entry in entries]) == head.root
        sequencer = Sequencer(store, world.log_key, published=world.path / "checkpoint")
        if head.size < published:
            with pytest.raises(CorruptError) as caught:
                sequencer.start()
            assert caught.value.code == "log-rolled-back"
        else:
            sequencer.start()
            sequencer.stop()
        return head.size
    finally:
        store.close()
