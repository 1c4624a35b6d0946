"""The signing key changes between two statements, in every process that shares the spool."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ledger.core.errors import InvalidError
from ledger.core.keys import generate_key
from ledger.core.statements import verify_statement
from ledger.emit.signing import SigningKey, install_key
from ledger.emit.spool import Spool
from tests.emit.conftest import MakeRecorder, report


def kids(directory: Path) -> list[bytes]:
    spool = Spool(directory)
    return [spool.load(seq).statement.kid for seq in spool.waiting()]


def test_both_processes_of_a_spool_change_over(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    one = make_recorder()
    old, new = one.public_key, generate_key("es256")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        one.record(**report())
        assert one.sync()
        os.read(read, 1)
        one.record(**report())
        assert one.close()
        os._exit(0)
    one.record(**report())
    assert one.sync()
    while len(kids(spool_dir)) < 3:  # a deployment and two batches
        pass
    one.rotate_key(new)
    assert one.public_key.kid == new.public.kid
    os.write(write, b"x")
    one.record(**report())
    assert one.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(kids(spool_dir)) == sorted([old.kid] * 3 + [new.public.kid] * 2)
    spool = Spool(spool_dir)
    for seq in spool.waiting():
        statement = spool.load(seq).statement
        verify_statement(statement, old if statement.kid == old.kid else new.public)
    assert make_recorder().public_key.kid == new.public.kid
    assert (spool_dir / "issuer.pem").stat().st_mode & 0o777 == 0o600


def test_a_key_file_that_somebody_replaces_is_read_anew(
    make_recorder: MakeRecorder, spool_dir: Path, tmp_path: Path
) -> None:
    """As a mounted secret is: a link to a folder that changes."""
    new = generate_key()
    for name, key in (("a", generate_key()), ("b", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "issuer.pem").write_bytes(key.to_pem())
        (tmp_path / name / "issuer.pem").chmod(0o600)
    (tmp_path / "now").symlink_to("a")
    recorder = make_recorder(key=tmp_path / "now" / "issuer.pem")
    recorder.record(**report())
    assert recorder.sync()
    (tmp_path / "next").symlink_to("b")
    (tmp_path / "next").rename(tmp_path / "now")
    recorder.record(**report())
    assert recorder.close()
    assert [kid == new.public.kid for kid in kids(spool_dir)] == [False, False, True]


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_key_file_that_cannot_be_read_leaves_the_old_key(
    make_recorder: MakeRecorder, spool_dir: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    recorder = make_recorder()
    old = recorder.public_key
    path = spool_dir / "issuer.pem"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    recorder.record(**report())
    assert recorder.close()
    assert set(kids(spool_dir)) == {old.kid}
    assert content is None or "the old one signs on" in caplog.text


def test_a_key_given_as_such_changes_in_this_process(make_recorder: MakeRecorder, spool_dir: Path) -> None:
    recorder = make_recorder(key=generate_key())
    new = generate_key()
    recorder.rotate_key(new)
    assert recorder.public_key.kid == new.public.kid
    assert not (spool_dir / "issuer.pem").exists()


def test_a_link_is_not_replaced_by_a_file(spool_dir: Path, tmp_path: Path) -> None:
    spool = Spool(spool_dir, "tests.example/link")
    key = SigningKey(None, spool_dir)
    (spool_dir / "issuer.pem").rename(tmp_path / "real.pem")
    (spool_dir / "issuer.pem").symlink_to(tmp_path / "real.pem")
    with pytest.raises(InvalidError, match="is a link"):
        install_key(spool, spool_dir / "issuer.pem", generate_key())
    assert SigningKey(None, spool_dir).current().public.kid == key.current().public.kid
