"""``tallystick spool``: what it shows, exit codes, and that no secret is shown."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.emit import Recorder
from ledger.emit.spool import Spool
from tests.build import make_deployment
from tests.cli.conftest import Run, RunningService, json_of
from tests.emit.conftest import report
from tests.emit.real_service import RealService, running_service

ISSUER = "tests.example/cli-spool"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool with a deployment and two batches of three records."""
    directory = tmp_path / "spool"
    with Recorder(spool=directory, issuer=ISSUER, deployment=make_deployment(), max_age_s=10) as recorder:
        for _ in range(2):
            for _ in range(3):
                recorder.record(**report())
            assert recorder.sync()
    return directory


@pytest.fixture(scope="module")
def ledger_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("spool-ledger") / "data") as running:
        yield running


def options(service: RealService) -> list[str]:
    return [
        "--url", service.url,
        "--log-key", str(service.folder / "log.vkey"),
        "--api-key-file", str(service.folder / "admin.key"),
    ]  # fmt: skip


def test_status_of_a_spool(run: Run, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = json_of(run("spool", "status", spool, "--json"))
    assert shown["issuer"] == ISSUER
    assert (shown["statements"], shown["records"], shown["next_seq"]) == (3, 6, 3)
    assert shown["bytes"] == sum(path.stat().st_size for path in spool.glob("*.statement"))
    assert abs(shown["oldest_us"] / 1e6 - time.time()) < 60
    assert shown["sessions"] == shown["dropped"] == 0
    assert shown["damaged"] == []
    monkeypatch.setenv("TALLYSTICK_SPOOL", str(spool))
    text = run("spool", "status").stdout
    assert ISSUER in text
    assert "3 statements, 6 records" in text


def test_status_changes_nothing(run: Run, spool: Path) -> None:
    def state() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in spool.rglob("*"))

    before = state()
    assert run("spool", "status", spool).exit_code == 0
    assert run("spool", "inspect", spool).exit_code == 0
    assert state() == before


def test_status_of_living_and_ended_processes(run: Run, spool: Path) -> None:
    with Recorder(spool=spool, deployment=make_deployment(), max_age_s=60) as recorder:
        recorder.record(**report())
        shown = json_of(run("spool", "status", spool, "--json"))
        assert (shown["sessions"], shown["unsealed"], shown["ended"]) == (1, 1, 0)
    child = os.fork()
    if child == 0:
        lost = Recorder(spool=spool, deployment=make_deployment(), max_age_s=60)
        for _ in range(4):
            lost.record(**report())
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    shown = json_of(run("spool", "status", spool, "--json"))
    assert (shown["sessions"], shown["ended"], shown["ended_records"]) == (0, 1, 4)


def test_no_spool(run: Run, tmp_path: Path) -> None:
    for command in ("status", "inspect"):
        result = run("spool", command, tmp_path / "none", "--json")
        assert result.exit_code == 2
        assert json_of(result)["error"]["code"] == "no-spool"
    assert not (tmp_path / "none").exists()


def test_inspect_lists_and_verifies(run: Run, spool: Path) -> None:
    result = run("spool", "inspect", spool, "--json")
    assert result.exit_code == 0
    shown = json_of(result)
    assert [each["kind"] for each in shown["statements"]] == ["deployment", "batch", "batch"]
    assert [each["records"] for each in shown["statements"]] == [0, 3, 3]
    assert shown["findings"] == []
    assert "batch" in run("spool", "inspect", spool).stdout


def test_inspect_decodes_one(run: Run, spool: Path) -> None:
    shown = json_of(run("spool", "inspect", spool, "--seq", "1", "--json"))
    assert shown["payload"]["count"] == 3
    assert shown["payload"]["totals"]["input_tokens"] == 36
    assert shown["kid"]
    assert "first_us" in run("spool", "inspect", spool, "--seq", "1").stdout
    assert json_of(run("spool", "inspect", spool, "--seq", "9", "--json"))["error"]["code"] == "not-found"


@pytest.mark.parametrize("at", [3, 60, 300, -3])
def test_inspect_finds_damage(run: Run, spool: Path, at: int) -> None:
    path = spool / f"{1:016d}.statement"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    result = run("spool", "inspect", spool, "--json")
    assert result.exit_code == 1
    assert json_of(result)["findings"] == ["statement 1: the spool file was cut or changed"]
    assert json_of(run("spool", "status", spool, "--json"))["damaged"] == [f"{1:016d}"]


def test_inspect_finds_gaps_and_other_keys_signatures(run: Run, spool: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with Recorder(spool=other, issuer=ISSUER, deployment=make_deployment()) as recorder:
        recorder.record(**report())
    shutil.copy(other / f"{1:016d}.statement", spool / f"{1:016d}.statement")
    assert json_of(run("spool", "inspect", spool, "--json"))["findings"] == [
        "statement 1 does not follow statement 0",
        "statement 2 does not follow statement 1",
    ]
    (spool / f"{1:016d}.statement").unlink()
    assert json_of(run("spool", "inspect", spool, "--json"))["findings"] == ["statements 1 to 1 are missing"]


def test_no_command_shows_secrets(run: Run, spool: Path) -> None:
    with Recorder(spool=spool, deployment=make_deployment()) as recorder:
        recorder.record(**report(tenant="jane@example.com"))
    secrets = [(spool / "issuer.secret").read_text().strip()]
    secrets += [line.split()[0] for line in (spool / "tenants").read_text().splitlines() if line.strip()]
    secrets += (spool / "issuer.pem").read_text().splitlines()[1:-1]
    for command in (["status"], ["inspect"], ["inspect", "--seq", "1"]):
        for form in ([], ["--json"]):
            shown = run("spool", command[0], spool, *command[1:], *form)
            assert not [each for each in secrets if each in shown.output]
            assert "jane" not in shown.output


def test_flush_and_its_exit_codes(run: Run, spool: Path, ledger_service: RealService) -> None:
    down = run("spool", "flush", spool, "--url", "http://127.0.0.1:9", "--timeout", "0.1", "--json")
    assert down.exit_code == 2
    assert "cannot be reached" in json_of(down)["problem"]
    refused = run("spool", "flush", spool, *options(ledger_service), "--json")
    assert refused.exit_code == 1
    assert json_of(refused)["blocked"]
    key = spool / "issuer.pub"
    api_key = str(ledger_service.folder / "admin.key")
    assert (
        run("issuers", "add", ledger_service.url, ISSUER, "--key", key, "--api-key-file", api_key).exit_code
        == 0
    )
    done = run("spool", "flush", spool, *options(ledger_service), "--json")
    assert done.exit_code == 0, done.output
    assert json_of(done) == {
        "directory": str(spool), "sent": 3, "waiting": 0, "problem": None, "blocked": False,
    }  # fmt: skip
    assert "3 statements" not in run("spool", "flush", spool, *options(ledger_service)).stdout
    assert not Spool(spool).waiting()


def test_restore_and_rotate(run: Run, tmp_path: Path, ledger_service: RealService) -> None:
    """A spool is lost but for its key; it is restored, its key rotated, and the old one revoked."""
    spool, name = tmp_path / "spool", "tests.example/restored"
    with Recorder(
        spool=spool, issuer=name, deployment=make_deployment(), **ledger_service.options
    ) as recorder:
        ledger_service.register(recorder)
        recorder.record(**report())
        assert recorder.flush()
    shutil.copy(spool / "issuer.pem", tmp_path / "saved.pem")
    shutil.rmtree(spool)
    given = ["--issuer", name, "--key", str(tmp_path / "saved.pem"), *options(ledger_service), "--json"]
    done = run("spool", "restore", spool, *given)
    assert done.exit_code == 0, done.output
    assert json_of(done)["next_seq"] == 2

    shutil.copy(tmp_path / "saved.pem", spool / "issuer.pem")
    api_key = ["--api-key-file", str(ledger_service.folder / "admin.key")]
    rotated = run("spool", "rotate-key", spool, ledger_service.url, *api_key, "--revoke-old", "--json")
    assert rotated.exit_code == 0, rotated.output
    told = json_of(rotated)
    assert told["revoked"]
    (keys,) = [each["keys"] for each in ledger_service.get("/issuers")["issuers"] if each["issuer"] == name]
    assert {key["kid"]: "revoked_leaf" in key for key in keys} == {
        told["old_kid"]: True,
        told["new_kid"]: False,
    }
    with Recorder(spool=spool, deployment=make_deployment(), **ledger_service.options) as recorder:
        recorder.record(**report())
        assert recorder.flush(20), recorder.status()
    assert recorder.public_key.kid.hex() == told["new_kid"]


def test_a_revoked_keys_statements_go_out_under_the_new_key(
    run: Run, tmp_path: Path, ledger_service: RealService
) -> None:
    """The key leaked and was revoked at once: what waits under it is signed anew."""
    spool, name = tmp_path / "spool", "tests.example/leaked"
    recorder = Recorder(spool=spool, issuer=name, deployment=make_deployment())
    ledger_service.register(recorder)
    record_id = recorder.record(**report())
    assert recorder.close()
    api_key = ["--api-key-file", str(ledger_service.folder / "admin.key")]
    kid = recorder.public_key.kid.hex()
    assert run("issuers", "revoke", ledger_service.url, name, "--kid", kid, *api_key).exit_code == 0
    assert run("spool", "flush", spool, *options(ledger_service)).exit_code == 1
    assert run("spool", "rotate-key", spool, ledger_service.url, *api_key).exit_code == 0
    done = run("spool", "flush", spool, *options(ledger_service), "--json")
    assert done.exit_code == 0, done.output
    assert ledger_service.get(f"/records/{record_id}")["record"]["id"] == record_id


def test_a_service_is_needed(run: Run, spool: Path, service: RunningService) -> None:
    result = run("spool", "flush", spool, "--json")
    assert result.exit_code == 2
    assert json_of(result)["error"]["code"] == "bad-url"
    result = run("spool", "restore", spool, "--url", service.url, "--json")
    assert json_of(result)["error"]["code"] == "bad-key"
