"""A disk that is really full: a small one of memory, in a mount namespace of its own. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = textwrap.dedent(
    """
    import subprocess, sys
    from pathlib import Path
    from ledger.emit import Recorder
    from ledger.emit.spool import Spool
    from ledger.emit.survey import survey
    from tests.build import make_deployment
    from tests.emit.conftest import report
    from tests.faults.scenario import fill

    disk = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
    recorder = Recorder(spool=disk / "spool", issuer="tests.example/full", deployment=make_deployment(),
                        max_age_s=0.0, queue_limit=50)
    for _ in range(3):
        recorder.record(**report())
        assert recorder.sync()
    fill(disk / "filler", 0)
    for _ in range(20):
        recorder.record(**report())
    assert not recorder.sync(0.5)
    status = recorder.status()
    assert "No space left on device" in status.problem, status
    assert (status.queued, status.dropped) == (20, 0), status
    for _ in range(60):
        recorder.record(**report())
    status = recorder.status()
    assert status.queued + status.dropped == 80, status
    assert 0 < status.dropped < 40, status
    (disk / "filler").unlink()
    assert recorder.sync(30), recorder.status()
    assert recorder.status().problem is None
    assert recorder.close()
    found = survey(disk / "spool")
    assert found.records == 83 - status.dropped, found
    spool = Spool(disk / "spool")
    told = sum(getattr(spool.load(seq).statement.payload, "dropped", 0) for seq in spool.waiting())
    assert told == status.dropped, told
    assert not list((disk / "spool").glob("*.tmp"))
    print("done")
    """
)


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="root may mount, others not")
def test_records_wait_for_room_and_what_finds_none_is_counted(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("this root may not mount")
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
