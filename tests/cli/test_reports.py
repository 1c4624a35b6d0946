"""`tallystick report`: make, verify, and what a verifier names when something was changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import LedgerFolder, Run, json_of, run_command


@pytest.fixture(scope="module")
def made(ledger: LedgerFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reports")
    assert run_command("export", "parquet", ledger.path, root / "export").exit_code == 0
    assert run_command("keys", "generate", root / "reporter.pem").exit_code == 0
    arguments = ("--subject", "Example", "--key", root / "reporter.pem", "--json")
    told = json_of(run_command("report", "make", "sci", root / "export", root / "sci", *arguments))
    assert told["records"] == len(ledger.records)
    assert {"report.json", "report.cose", "report.pdf", "report.xlsx"} <= set(told["files"])
    return root


def verify(run: Run, root: Path, ledger: LedgerFolder, report: Path, export: Path | None = None):
    result = run(
        "report", "verify", report, "--key", root / "reporter.pem", "--export", export or root / "export",
        "--log-key", ledger.path / "log.vkey", "--json",
    )  # fmt: skip
    return result.exit_code, json_of(result)


def test_a_sound_report(made: Path, ledger: LedgerFolder, run: Run) -> None:
    code, told = verify(run, made, ledger, made / "sci")
    assert (code, told["verdict"], told["export"], told["differences"]) == (0, "sound", "sound", [])


INPUTS = {
    "format": "tallystick-inputs",
    "version": 1,
    "stated_by": "controlling",
    "values": {"scope1_t": {"value": "3", "source": "inventory"}},
}


def test_inputs_belong_to_the_report(made: Path, ledger: LedgerFolder, run: Run, tmp_path: Path) -> None:
    """With its inputs file a report is sound; without it, or with another, what differs is named."""
    path = tmp_path / "inputs.json"
    path.write_text(json.dumps(INPUTS))
    key = made / "reporter.pem"
    arguments = ("--subject", "X", "--key", key, "--inputs", path, "--format", "pdf", "--json")
    told = json_of(run("report", "make", "sb-253", made / "export", tmp_path / "sb", *arguments))
    assert any("fiscal year" in gap for gap in told["gaps"])

    def check(*more: object):
        return json_of(
            run(
                "report", "verify", tmp_path / "sb", "--key", key, "--export", made / "export",
                "--log-key", ledger.path / "log.vkey", "--json", *more,
            )
        )  # fmt: skip

    assert check("--inputs", path)["verdict"] == "sound"
    without = check()
    assert without["verdict"] == "refuted"
    assert any("--inputs" in note for note in without["notes"])
    path.write_text(json.dumps(INPUTS).replace('"3"', '"4"'))
    changed = check("--inputs", path)
    assert changed["verdict"] == "refuted"
    assert any("scope1_t" in each["where"] for each in changed["differences"])


def test_who_states_the_inputs_signs_them(made: Path, ledger: LedgerFolder, run: Run, tmp_path: Path) -> None:
    path, key = tmp_path / "inputs.json", made / "reporter.pem"
    path.write_text(json.dumps(INPUTS))
    for name in ("facilities.pem", "other.pem"):
        run("keys", "generate", tmp_path / name)
    arguments = (
        "--subject",
        "X",
        "--key",
        key,
        "--inputs",
        path,
        "--inputs-key",
        tmp_path / "facilities.pem",
    )

    def make(out: str):
        return run("report", "make", "sb-253", made / "export", tmp_path / out, *arguments)

    assert "inputs.json.cose" in make("unsigned").stderr
    told = json_of(run("report", "sign-inputs", path, "--key", tmp_path / "facilities.pem", "--json"))
    assert told["stated_by"] == "controlling"
    assert make("sb").exit_code == 0
    assert json.loads((tmp_path / "sb" / "report.json").read_text())["inputs_signed_by"] == told["key"]

    def check(*more: object):
        return run(
            "report", "verify", tmp_path / "sb", "--key", key, "--export", made / "export",
            "--log-key", ledger.path / "log.vkey", "--inputs", path, *more, "--json",
        )  # fmt: skip

    assert json_of(check("--inputs-key", tmp_path / "facilities.pem"))["verdict"] == "sound"
    without = json_of(check())
    assert (without["verdict"], without["differences"]) == ("unknown", [])
    assert [each["where"] for each in without["gaps"]] == ["inputs file"]
    other = check("--inputs-key", tmp_path / "other.pem")
    assert other.exit_code == 2
    assert "another key" in other.stdout
    path.write_text(json.dumps(INPUTS).replace('"3"', '"4"'))
    changed = check("--inputs-key", tmp_path / "facilities.pem")
    assert changed.exit_code == 2
    assert "inputs file" in changed.stdout


def test_a_report_about_one_record(made: Path, ledger: LedgerFolder, run: Run, tmp_path: Path) -> None:
    arguments = ("--subject", "X", "--key", made / "reporter.pem", "--json")
    where = ("--where", f"record={ledger.records[3].id}")
    told = json_of(run("report", "make", "incident", made / "export", tmp_path / "i", *where, *arguments))
    assert told["records"] == 1
    code, verdict = verify(run, made, ledger, tmp_path / "i")
    assert (code, verdict["verdict"]) == (0, "sound")
    refused = run("report", "make", "incident", made / "export", tmp_path / "j", *arguments)
    assert refused.exit_code == 2
    assert "--where record=ID" in refused.stdout + refused.stderr
    assert not (tmp_path / "j").exists()


def test_a_changed_report_is_refuted(made: Path, ledger: LedgerFolder, run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(made / "sci", tmp_path / "sci")
    text = (copy / "report.json").read_text()
    (copy / "report.json").write_text(text.replace('"unit":"kWh","value":"', '"unit":"kWh","value":"9', 1))
    assert (copy / "report.json").read_text() != text
    code, told = verify(run, made, ledger, copy)
    assert code == 1
    assert "does not hold" in told["signature"]


def test_a_figure_changed_and_signed_again_is_named(
    made: Path, ledger: LedgerFolder, run: Run, tmp_path: Path
) -> None:
    import msgspec

    from ledger.export.reports import Report, sign_report
    from ledger.keyfiles import load_private_key

    copy = shutil.copytree(made / "sci", tmp_path / "sci")
    data = json.loads((copy / "report.json").read_text())
    figure = data["sections"][1]["figures"][0]
    figure["value"] = "9" + figure["value"]
    signed = sign_report(
        msgspec.convert(data, Report), load_private_key(made / "reporter.pem"), issuer="Example"
    )
    for name, content in zip(("report.json", "report.cose"), signed, strict=True):
        (copy / name).write_bytes(content)
    code, told = verify(run, made, ledger, copy)
    assert code == 1
    (difference,) = told["differences"]
    assert figure["name"] in difference["where"]
    assert difference["stated"] == figure["value"]


@pytest.mark.parametrize("form", ["pdf", "xlsx"])
def test_a_changed_rendering_is_named(
    made: Path, ledger: LedgerFolder, run: Run, tmp_path: Path, form: str
) -> None:
    """People read it, and no signature covers it."""
    copy = shutil.copytree(made / "sci", tmp_path / "sci")
    arguments = ("--subject", "Another", "--key", made / "reporter.pem", "--json")
    json_of(run("report", "make", "sci", made / "export", tmp_path / "other", *arguments))
    shutil.copy(tmp_path / "other" / f"report.{form}", copy)
    code, told = verify(run, made, ledger, copy)
    assert (code, told["verdict"], told["export"]) == (2, "unknown", "sound")
    (gap,) = told["gaps"]
    assert gap["where"] == f"report.{form}"
    (copy / f"report.{form}").unlink()
    assert verify(run, made, ledger, copy)[0] == 0


def test_a_changed_export_is_refuted(made: Path, ledger: LedgerFolder, run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(made / "export", tmp_path / "export")
    file = next((copy / "records").rglob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = run(
        "report", "verify", made / "sci", "--key", made / "reporter.pem", "--export", copy,
        "--log-key", ledger.path / "log.vkey", "--json",
    )  # fmt: skip
    assert result.exit_code in (1, 2)
    assert result.exit_code == 1 or "error" in result.stdout


def test_another_reporters_key(made: Path, ledger: LedgerFolder, run: Run, tmp_path: Path) -> None:
    run("keys", "generate", tmp_path / "other.pem")
    result = run(
        "report", "verify", made / "sci", "--key", tmp_path / "other.pem", "--export", made / "export",
        "--log-key", ledger.path / "log.vkey",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "another key" in result.stdout


def test_nothing_is_written_over(made: Path, run: Run) -> None:
    arguments = ("--subject", "X", "--key", made / "reporter.pem")
    result = run("report", "make", "sci", made / "export", made / "sci", *arguments)
    assert result.exit_code == 2
    assert "remedy" in result.stderr


def test_kinds_and_an_unknown_one(made: Path, run: Run, tmp_path: Path) -> None:
    from ledger.export.reports import KINDS

    assert [each["name"] for each in json_of(run("report", "kinds", "--json"))["kinds"]] == list(KINDS)
    result = run(
        "report",
        "make",
        "x",
        made / "export",
        tmp_path / "o",
        "--subject",
        "X",
        "--key",
        made / "reporter.pem",
    )
    assert result.exit_code == 2
    assert "sci" in result.stderr


def test_show(made: Path, run: Run) -> None:
    """As stated: nothing is verified, and it says so."""
    told = json_of(run("report", "show", made / "sci", "--json"))
    stated = json.loads((made / "sci" / "report.json").read_text())
    assert told["figures"] == [f for section in stated["sections"] for f in section.get("figures", ())]
    assert (told["kind"], told["records"]) == ("sci", stated["records"])
    one = json_of(run("report", "show", made / "sci", "--figure", "e", "--json"))
    assert [figure["name"] for figure in one["figures"]] == ["e"]
    shown = run("report", "show", made / "sci")
    assert "sci_per_request" in shown.stdout
    assert "not verified" in shown.stderr
    for arguments in (("--figure", "nonsense"), ()):
        refused = run("report", "show", made / "sci" if arguments else made, *arguments)
        assert refused.exit_code == 2
        assert "remedy" in refused.stderr
