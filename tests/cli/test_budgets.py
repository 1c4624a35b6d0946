"""`tallystick budgets`: on a folder and over a service, which answer alike."""

from __future__ import annotations

import time

import pytest

from tests import build
from tests.cli.conftest import LedgerFolder, Run, RunningService, json_of

SET = ("--tenant", "*", "--limit", "1000", "--window", "month")


def test_from_setting_to_removal(own_ledger: LedgerFolder, run: Run) -> None:
    path = own_ledger.path
    assert json_of(run("budgets", "list", path, "--json")) == {"budgets": []}
    made = json_of(run("budgets", "set", path, "each", *SET, "--alert", 50, "--json"))
    assert (made["name"], made["measure"], made["limit"]) == ("each", "tokens", 1000)
    assert (made["tenant"], made["alerts"], made["refuse"]) == ("*", [50], True)

    shown = run("budgets", "show", path, "each")
    assert shown.exit_code == 0
    assert "1,000" in shown.stdout

    missing = run("budgets", "show", path, "none", "--json")
    assert missing.exit_code == 2
    assert json_of(missing)["error"]["code"] == "not-found"

    wrong = run("budgets", "set", path, "each", "--limit", 5, "--window", "week", "--json")
    assert wrong.exit_code == 2
    assert json_of(wrong)["error"]["code"] == "bad-budget"

    assert json_of(run("budgets", "remove", path, "each", "--json")) == {"name": "each"}
    again = run("budgets", "remove", path, "each")
    assert again.exit_code == 2
    assert "there is no such budget" in again.stderr


def test_records_of_today_count_and_alert(own_ledger: LedgerFolder, run: Run) -> None:
    """Records that came while no service ran are counted when somebody looks."""
    from cli.folder import Folder
    from ledger.keyfiles import load_private_key
    from ledger.store import Sequencer
    from tests.cli.conftest import _log  # what fills the folder

    path = own_ledger.path
    assert run("budgets", "set", path, "each", *SET).exit_code == 0
    folder = Folder(path)
    store = folder.open()
    sequencer = Sequencer(store, load_private_key(folder.log_key), published=folder.published)
    sequencer.start()
    now_us = time.time_ns() // 1000
    records = build.make_records(24, build.make_deployment(), start_us=now_us - 3_000_000)
    own_ledger.issuer.now_us = now_us
    sealed = own_ledger.issuer.batch(records)
    _log(sequencer, own_ledger.issuer.key, sealed.statement.entry, sealed.lines)
    sequencer.stop()
    store.close()

    listed = json_of(run("budgets", "list", path, "--json"))["budgets"][0]["standings"]
    used = {
        tenant: sum(r.usage.input_tokens + r.usage.output_tokens for r in records if r.tenant == tenant)
        for tenant in ("t-0", "t-1", "t-2")
    }
    assert {each["tenant"]: each["used"] for each in listed} == used
    assert all(each["records"] == 8 for each in listed)
    alerts = json_of(run("budgets", "alerts", path, "--json"))["alerts"]
    assert {(each["tenant"], each["percent"]) for each in alerts} == {
        (tenant, percent) for tenant in used for percent in (80, 100)
    }
    assert {each["record"] for each in alerts} <= {each.id for each in records}
    shown = run("budgets", "alerts", path)
    assert shown.exit_code == 0
    assert alerts[0]["record"] in shown.stdout
    assert json_of(run("budgets", "alerts", path, "--since", "2100-01-01", "--json")) == {"alerts": []}


@pytest.mark.usefixtures("service")
def test_over_a_service(service: RunningService, run: Run) -> None:
    key = ("--api-key-file", service.admin_key)
    made = json_of(
        run(
            "budgets",
            "set",
            service.url,
            "grid",
            "--of",
            "carbon_ng",
            "--limit",
            9,
            "--alert-only",
            *key,
            "--json",
        )
    )
    assert (made["measure"], made["refuse"], made["alerts"]) == ("carbon_ng", False, [80, 100])
    listed = json_of(run("budgets", "list", service.url, *key, "--json"))["budgets"]
    assert listed == json_of(run("budgets", "list", service.ledger.path, "--json"))["budgets"]
    assert "alerts only" in run("budgets", "list", service.url, *key).stdout
    assert json_of(run("budgets", "alerts", service.url, *key, "--json")) == {"alerts": []}
    assert run("budgets", "remove", service.url, "grid", *key).exit_code == 0
    refused = run("budgets", "list", service.url, "--json")
    assert refused.exit_code == 2
