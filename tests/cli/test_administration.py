"""Commands that change a ledger: init, issuers, API keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ledger.core.note import parse_vkey
from tests import build
from tests.cli.conftest import LedgerFolder, Run, RunningService, json_of, log_size


def test_init_makes_a_folder_with_private_keys(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "a" / "ledger-data"
    made = json_of(run("init", path, "--origin", build.ORIGIN, "--json"))
    assert made["directory"] == str(path)
    assert made["size"] == 2
    assert parse_vkey(made["vkey"]).name == made["origin"] == build.ORIGIN
    assert (path / "log.vkey").read_text() == made["vkey"] + "\n"
    for private in ("keys/log.pem", "admin.key"):
        assert stat.S_IMODE((path / private).stat().st_mode) == 0o600
    assert sorted(each.name for each in path.parent.iterdir()) == ["ledger-data"]


def test_init_refuses_a_folder_with_something_in_it(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    result = run("init", tmp_path, "--origin", build.ORIGIN, "--json")
    assert result.exit_code == 2
    assert json_of(result)["error"]["code"] == "exists"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("origin", ["", "two words", "x" * 300])
def test_init_refuses_a_bad_origin_and_leaves_nothing(tmp_path: Path, run: Run, origin: str) -> None:
    result = run("init", tmp_path / "d", "--origin", origin)
    assert result.exit_code == 2
    assert "error: origin" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_add_and_revoke_an_issuer(own_ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    key = tmp_path / "k.pem"
    kid = json_of(run("keys", "generate", key, "--algorithm", "es256", "--json"))["kid"]
    size = log_size(own_ledger.path)
    name = "gpu-9.example.com/vllm"
    added = json_of(run("issuers", "add", own_ledger.path, name, "--key", key, "--json"))
    assert added == {"issuer": name, "kid": kid, "leaf_index": size}
    revoked = json_of(
        run("issuers", "revoke", own_ledger.path, name, "--kid", kid, "--reason", "sold", "--json")
    )
    assert revoked == {"issuer": name, "kid": kid, "leaf_index": size + 1}
    listed = json_of(run("issuers", "list", own_ledger.path, "--json"))["issuers"]
    (keys,) = [each["keys"] for each in listed if each["issuer"] == name]
    assert keys[0]["revoked_leaf"] == size + 1
    assert kid in run("issuers", "list", own_ledger.path).stdout


def test_adding_a_key_twice_is_refused(own_ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    key = tmp_path / "k.pem"
    run("keys", "generate", key)
    assert run("issuers", "add", own_ledger.path, "a.example.com", "--key", key).exit_code == 0
    result = run("issuers", "add", own_ledger.path, "a.example.com", "--key", key)
    assert result.exit_code == 2
    assert "error: " in result.stderr


def test_an_issuer_can_be_added_over_http(service: RunningService, tmp_path: Path, run: Run) -> None:
    key = tmp_path / "k.pem"
    kid = json_of(run("keys", "generate", key, "--json"))["kid"]
    arguments = ("--api-key-file", service.admin_key, "--json")
    added = json_of(run("issuers", "add", service.url, "b.example.com/x", "--key", key, *arguments))
    assert added["kid"] == kid
    revoked = json_of(run("issuers", "revoke", service.url, "b.example.com/x", "--kid", kid, *arguments))
    assert revoked["leaf_index"] == added["leaf_index"] + 1


def test_api_keys(own_ledger: LedgerFolder, tmp_path: Path, run: Run) -> None:
    scopes = ("--scope", "read", "--scope", "emit")
    made = json_of(run("api-keys", "create", own_ledger.path, *scopes, "--label", "x", "--json"))
    assert made["token"].startswith(f"tsk_{made['id']}_")
    file = tmp_path / "api.key"
    written = run("api-keys", "create", own_ledger.path, "--scope", "emit", "--label", "y", "--out", file)
    assert written.exit_code == 0
    assert file.read_text().strip() not in written.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("api-keys", "revoke", own_ledger.path, made["id"]).exit_code == 0
    listed = json_of(run("api-keys", "list", own_ledger.path, "--json"))["api_keys"]
    assert {each["label"]: "revoked_s" in each for each in listed} == {"init": False, "x": True, "y": False}
    assert made["token"] not in run("api-keys", "list", own_ledger.path).output


def test_a_revoked_api_key_is_refused(service: RunningService, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "api.key"
    path = service.ledger.path
    made = json_of(
        run("api-keys", "create", path, "--scope", "read", "--label", "z", "--out", file, "--json")
    )
    run("api-keys", "revoke", path, made["id"])
    result = run("records", "list", service.url, "--api-key-file", file, "--json")
    assert result.exit_code == 2
    assert json_of(result)["error"]["code"] == "wrong-key"
