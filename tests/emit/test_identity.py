from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ledger.core.commitments import tenant_key
from ledger.core.errors import InvalidError
from ledger.core.statements import check_issuer_id
from ledger.emit.identity import Tenants, default_issuer, default_spool, load_issuer_key, load_secret

SECRET = bytes(32)


def test_default_issuers_are_usable_and_differ() -> None:
    names = {default_issuer() for _ in range(5)}
    assert len(names) == 5
    for name in names:
        check_issuer_id(name)


@pytest.mark.parametrize("host", ["...", "", "höst", "a b", "x" * 300])
def test_odd_host_names_do_no_harm(monkeypatch, host: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    check_issuer_id(default_issuer())


def test_the_default_spool_is_in_the_state_directory(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_spool() == tmp_path / "tallystick" / "spool"


def test_a_key_is_made_once_with_its_public_half(tmp_path: Path) -> None:
    path = tmp_path / "issuer.pem"
    key = load_issuer_key(path, create=True)
    assert load_issuer_key(path, create=True).public.kid == key.public.kid
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "issuer.pub").read_bytes() == key.public.to_pem()


def test_a_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = load_secret(path)
    assert len(secret) == 32
    assert load_secret(path) == secret
    path.chmod(0o644)
    with pytest.raises(InvalidError, match="others can read"):
        load_secret(path)


@pytest.mark.parametrize("text", ["", "zz", "ab" * 31])
def test_what_is_no_secret_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InvalidError, match="64 hex digits"):
        load_secret(path)


def test_tenants_get_different_lasting_secrets(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    tenants = Tenants(path, SECRET)
    keys = tenants.keys(["a", "b", "", "jane@example.com"])
    assert len(set(keys.values())) == 4
    assert Tenants(path, SECRET).keys(["b", "a"]) == {"a": keys["a"], "b": keys["b"]}
    assert path.stat().st_mode & 0o777 == 0o600
    assert tenants.names() == ["", "a", "b", "jane@example.com"]


def test_a_tenants_key_derives_from_both_secrets(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    key = Tenants(path, SECRET).keys(["a"])["a"]
    stored = next(line for line in path.read_text().split("\n") if line)
    assert key == tenant_key(SECRET, bytes.fromhex(stored[:64]))
    assert Tenants(path, b"x" * 32).keys(["a"])["a"] != key


def test_forgetting_is_for_ever_and_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    here, there = Tenants(path, SECRET), Tenants(path, SECRET)
    old = here.keys(["a", "b"])
    secret = next(line[:64] for line in path.read_text().split("\n") if line.endswith('"a"'))
    assert there.forget("a")
    assert not there.forget("a")
    assert secret not in path.read_text()
    new = here.keys(["a", "b"])
    assert new["a"] != old["a"]
    assert new["b"] == old["b"]
    assert not list(tmp_path.glob("*.tmp"))


def test_forgetting_overwrites_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    tenants = Tenants(path, SECRET)
    tenants.keys(["a", "b"])
    link = tmp_path / "link"
    os.link(path, link)  # holds the old file's blocks
    tenants.forget("a")
    assert link.read_bytes().strip(b"\0") == b""


def test_processes_agree_on_secrets(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    children = []
    for _ in range(4):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            keys = Tenants(path, SECRET).keys([f"t{n}" for n in range(50)])
            os.write(write, json.dumps({name: key.hex() for name, key in keys.items()}).encode())
            os._exit(0)
        os.close(write)
        children.append((child, read))
    answers = []
    for child, read in children:
        data = b""
        while chunk := os.read(read, 1 << 16):
            data += chunk
        os.close(read)
        os.waitpid(child, 0)
        answers.append(json.loads(data))
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 50


def test_a_line_that_a_crash_cut_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    Tenants(path, SECRET).keys(["a"])
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[1:cut])
        tenants = Tenants(path, SECRET)
        keys = tenants.keys(["a", "b"])
        assert Tenants(path, SECRET).keys(["a", "b"]) == keys
        assert tenants.names() == ["a", "b"]


def test_tenant_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tenants"
    Tenants(path, SECRET).keys(["a"])
    path.chmod(0o640)
    with pytest.raises(InvalidError, match="others can read"):
        Tenants(path, SECRET).keys(["a"])
