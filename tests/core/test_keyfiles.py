from __future__ import annotations

import os
import stat

import pytest

from ledger import keyfiles
from ledger.core.errors import InvalidError, RefusedError
from tests.core.examples import ALGORITHMS, key_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys" / "log.pem"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_key_is_read_back(path, algorithm):
    key = key_of(algorithm)
    keyfiles.save_private_key(path, key)
    assert keyfiles.load_private_key(path) == key
    assert path.read_bytes() == key.to_pem()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_a_new_file(path, umask):
    before = os.umask(umask)
    try:
        keyfiles.write_private(path, b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o610, 0o601, 0o777])
def test_a_file_that_others_may_touch_is_refused(path, mode):
    keyfiles.save_private_key(path, key_of("ed25519"))
    path.chmod(mode)
    with pytest.raises(InvalidError, match=f"{mode:04o}") as caught:
        keyfiles.load_private_key(path)
    assert caught.value.code == "bad-key"
    assert caught.value.where == str(path)


def test_the_owner_may_have_less(path):
    keyfiles.save_private_key(path, key_of("ed25519"))
    path.chmod(0o400)
    assert keyfiles.load_private_key(path) == key_of("ed25519")


def test_an_existing_file_is_never_overwritten(path):
    keyfiles.save_private_key(path, key_of("ed25519"))
    before = path.read_bytes()
    with pytest.raises(RefusedError) as caught:
        keyfiles.save_private_key(path, key_of("ed25519", 1))
    assert caught.value.code == "exists"
    assert path.read_bytes() == before


@pytest.mark.parametrize("target", ["there", "missing"])
def test_a_link_in_the_way_is_not_followed(tmp_path, target):
    (tmp_path / "there").write_bytes(b"precious")
    path = tmp_path / "key.pem"
    path.symlink_to(tmp_path / target)
    with pytest.raises(RefusedError):
        keyfiles.write_private(path, b"secret")
    assert (tmp_path / "there").read_bytes() == b"precious"
    assert not (tmp_path / "missing").exists()


def test_a_failed_write_leaves_nothing_behind(path, monkeypatch):
    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keyfiles.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        keyfiles.write_private(path, b"secret")
    assert not path.exists()
    monkeypatch.undo()
    keyfiles.write_private(path, b"secret")


def test_what_is_no_key_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "folder", "loop", "missing", "missing/too"):
        for load in (keyfiles.load_private_key, keyfiles.load_public_key, keyfiles.read_private):
            with pytest.raises(InvalidError) as caught:
                load(tmp_path / name)
            assert caught.value.code == "bad-key"


def test_devices_are_not_read():
    for load in (keyfiles.load_public_key, keyfiles.read_private):
        with pytest.raises(InvalidError):
            load(keyfiles.Path("/dev/zero"))


def test_a_file_too_large_to_be_a_key_is_refused(path):
    keyfiles.write_private(path, b"x" * 65_537)
    for load in (keyfiles.load_public_key, keyfiles.load_private_key):
        with pytest.raises(InvalidError, match="too large"):
            load(path)


def test_errors_do_not_show_what_is_in_the_file(path):
    keyfiles.write_private(
        path, b"-----BEGIN PRIVATE KEY-----\nbm90IGEga2V5IGJ1dCBzZWNyZXQ=\n-----END PRIVATE KEY-----\n"
    )
    with pytest.raises(InvalidError) as caught:
        keyfiles.load_private_key(path)
    assert "bm90" not in f"{caught.value!r}{caught.value}"
    assert caught.value.__suppress_context__


def test_public_keys_may_be_readable_by_all(path):
    path.parent.mkdir()
    path.write_bytes(key_of("es256").public.to_pem())
    path.chmod(0o644)
    assert keyfiles.load_public_key(path) == key_of("es256").public
