"""How long things are kept: six months at least, each tenant by its policy, nothing under a legal hold."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ledger.core.errors import InvalidError
from ledger.service.admin import grant_api_key, withdraw_api_key
from ledger.service.auth import list_api_keys
from ledger.store import queries
from ledger.store.acts import acts
from ledger.store.enrolment import new_invite
from ledger.store.erasure import purge
from ledger.store.holds import place_hold
from ledger.store.retention import EVERYBODY, LEAST_DAYS, Policy, policies, remove_policy, run, set_policy
from tests.build import ORIGIN, START_US
from tests.cli.conftest import json_of, run_command
from tests.security.conftest import World
from tests.security.test_erasure import check, files_with

DAY_S = 86_400


def put(world: World, *wanted: Policy) -> None:
    for each in wanted:
        world.sequencer.log_own(set_policy(each)).result(30)


def left(world: World) -> dict[str, int]:
    counts: dict[str, int] = {}
    with world.store.read() as connection:
        for each in queries.iterate_records(connection, queries.RecordFilter()):
            counts[str(each.record.tenant)] = counts.get(str(each.record.tenant), 0) + 1
    return counts


def test_each_tenant_by_its_policy(world: World) -> None:
    world.log_batch(["a", "b", "c"])
    started_s = START_US // 1_000_000
    put(world, Policy("a", "records", 184), Policy("b", "records", 1_000), Policy(EVERYBODY, "records", 400))
    for days, expected in ((183, "abc"), (185, "bc"), (399, "bc"), (401, "b"), (1_001, "")):
        ran = run(world.store, world.sequencer, now_s=started_s + days * DAY_S + 60)
        assert len(ran) == 3
        assert left(world) == dict.fromkeys(expected, 1), days
    assert [each.records for each in run(world.store, world.sequencer, now_s=started_s + 2_000 * DAY_S)] == [
        0
    ] * 3
    report = check(world)
    assert report.verdict == "sound", report.findings
    with world.store.read() as connection:
        rules = [act.particulars["rule"] for act in acts(connection) if act.action == "records.erase"]  # type: ignore[index]
    assert rules == ["retention: 184 days", "retention: 400 days", "retention: 1000 days"]


def test_held_records_are_due_again(world: World) -> None:
    world.log_batch(["a", "a"])
    put(world, Policy("a", "records", 184))
    _, statement = place_hold("litigation", to_us=world.logged[1][0].started_us)
    world.sequencer.log_own(statement).result(30)
    later_s = START_US // 1_000_000 + 200 * DAY_S
    (ran,) = run(world.store, world.sequencer, now_s=later_s)
    assert (ran.records, ran.held) == (1, 1)
    assert left(world) == {"a": 1}
    (ran,) = run(world.store, world.sequencer, now_s=later_s)
    assert (ran.records, ran.held) == (0, 1)
    assert check(world).verdict == "sound"


@pytest.mark.parametrize(
    "policy",
    [
        Policy("a", "records", 183), Policy(EVERYBODY, "records", 0), Policy("a", "statements", 400),
        Policy("a", "records", 10**6), Policy("a b", "records", 400), Policy("a", "credentials", 0),
    ],
)  # fmt: skip
def test_policies_that_cannot_be(policy: Policy) -> None:
    with pytest.raises(InvalidError):
        set_policy(policy)


def test_six_months_have_at_most_184_days() -> None:
    import datetime

    longest = 0
    for year in (2024, 2025):
        for month in range(1, 13):
            first = datetime.date(year, month, 1)
            then = datetime.date(year + (month + 6 > 12), (month + 5) % 12 + 1, 1)
            longest = max(longest, (then - first).days)
    assert LEAST_DAYS["records"] == longest


def test_policies_are_replaced_and_removed(sqlite_world: World) -> None:
    put(sqlite_world, Policy("a", "records", 200), Policy("a", "records", 300))
    with sqlite_world.store.read() as connection:
        assert policies(connection) == [Policy("a", "records", 300)]
    sqlite_world.sequencer.log_own(remove_policy("a", "records")).result(30)
    with pytest.raises(InvalidError):
        sqlite_world.sequencer.log_own(remove_policy("a", "records")).result(30)
    with sqlite_world.store.read() as connection:
        assert [act.action for act in acts(connection)][-3:] == ["retention.set"] * 2 + ["retention.remove"]


def test_old_credentials_go(world: World) -> None:
    gone = grant_api_key(world.sequencer, "Jane Doe", ["read"])
    grant_api_key(world.sequencer, "in force", ["read"])
    withdraw_api_key(world.sequencer, gone.split("_")[1])
    world.sequencer.log_own(new_invite("x.example.com", valid_s=60)[2]).result(30)
    put(world, Policy(EVERYBODY, "credentials", 30))
    assert [each.credentials for each in run(world.store, world.sequencer)] == [0]
    later_s = int(time.time()) + 31 * DAY_S
    assert [each.credentials for each in run(world.store, world.sequencer, now_s=later_s)] == [2]
    assert [each.label for each in list_api_keys(world.store)] == ["in force"]
    assert world.scalar("SELECT count(*) FROM invite") == 0
    purge(world.store)
    assert files_with(world.files, [hashlib.sha256(gone.encode()).digest()]) == {}
    assert check(world).verdict == "sound"


def test_particulars_that_are_gone_or_changed_show(sqlite_world: World) -> None:
    world = sqlite_world
    grant_api_key(world.sequencer, "x", ["read"])
    put(world, Policy("a", "records", 200))
    with world.store.write() as connection:
        connection.execute(text("UPDATE admin_act SET detail = '{}' WHERE leaf_index = 3"))
        connection.execute(text("DELETE FROM admin_act WHERE leaf_index = 4"))
    with world.store.read() as connection:
        found = acts(connection)
    assert [(act.particulars, act.intact) for act in found[-2:]] == [(None, False)] * 2
    assert [each.code for each in check(world).findings] == ["row-differs", "row-missing"]


def test_a_key_that_somebody_wrote_into_the_database_shows(sqlite_world: World) -> None:
    """Whoever can write rows can write the digest over a row as well, but not the act that grants a key."""
    from ledger.service.auth import create_api_key

    world = sqlite_world
    grant_api_key(world.sequencer, "granted", ["read"], tenant="a")
    assert not check(world).notes
    create_api_key(world.store, "put in from outside", ["admin"])
    report = check(world)
    assert report.verdict == "sound"
    assert any("no act in the log granted" in note for note in report.notes)


# --- commands --------------------------------------------------------------------------------------------


def test_commands(tmp_path: Path) -> None:
    path = tmp_path / "ledger-data"
    assert run_command("init", path, "--origin", ORIGIN).exit_code == 0

    def ok(*args: Any) -> Any:
        result = run_command(*args, "--json")
        assert result.exit_code == 0, result.output
        return json_of(result)

    made = ok("retention", "set", path, "--kind", "records", "--days", "400", "--tenant", "t-1")
    assert (made["tenant"], made["keep_days"], made["leaf_index"]) == ("t-1", 400, 2)
    assert ok("retention", "show", path)["policies"] == [
        {"tenant": "t-1", "kind": "records", "keep_days": 400}
    ]
    short = run_command("retention", "set", path, "--kind", "records", "--days", "30", "--json")
    assert short.exit_code == 2
    assert json_of(short)["error"]["code"] == "bad-retention"
    assert ok("retention", "run", path)["ran"][0]["records"] == 0
    hold = ok("hold", "place", path, "--tenant", "t-1", "--reason", "litigation 7")
    assert [each["id"] for each in ok("hold", "list", path)["holds"]] == [hold["id"]]
    assert ok("hold", "lift", path, hold["id"])["id"] == hold["id"]
    ok("retention", "remove", path, "--kind", "records", "--tenant", "t-1")
    token = ok("issuers", "invite", path, "gpu-8.example.com/vllm", "--tenant", "t-1", "--hours", "2")
    assert token["token"].startswith("tsi_")
    key = ok("api-keys", "create", path, "--scope", "read", "--label", "x", "--tenant", "t-1")
    assert key["tenant"] == "t-1"
    did = [each["action"] for each in ok("admin", "log", path)["acts"]]
    assert did == [
        "issuer-key.add", "api-key.create", "retention.set", "hold.place", "hold.lift", "retention.remove",
        "issuer.invite", "api-key.create",
    ]  # fmt: skip
    for args in (("retention", "show", path), ("hold", "list", path), ("admin", "log", path)):
        assert run_command(*args).exit_code == 0
    assert ok("audit", path, "--log-key", path / "log.vkey")["verdict"] == "sound"


def test_erase_command(tmp_path: Path) -> None:
    from tests.cli.conftest import fill

    path = tmp_path / "ledger-data"
    run_command("init", path, "--origin", ORIGIN)
    folder = fill(path)
    record = folder.records[0]
    wanted = ("erase", path, "--record", record.id)
    assert json_of(run_command(*wanted, "--json"))["error"]["where"] == "--rule"
    look = json_of(run_command(*wanted, "--rule", "Art. 17", "--json"))
    assert (look["records"], look["erased"]) == (1, False)
    assert run_command("records", "show", path, record.id).exit_code == 0
    done = json_of(run_command(*wanted, "--rule", "Art. 17", "--yes", "--json"))
    assert (done["records"], done["erased"], done["purged"]) == (1, True, True)
    assert run_command("records", "show", path, record.id).exit_code == 2
    line = json.dumps(record.id).encode()
    assert not any(line in file.read_bytes() for file in path.rglob("*") if file.is_file())
    report = json_of(run_command("audit", path, "--log-key", path / "log.vkey", "--json"))
    assert report["verdict"] == "sound", report
    assert any("Art. 17" in note for note in report["notes"])
    assert json_of(run_command("erase", path, "--purge", "--json"))["purged"]

    import pyarrow.parquet as pq

    from ledger import zstd

    assert run_command("backup", path, tmp_path / "backup").exit_code == 0
    tables = tmp_path / "backup" / "tables"
    ids = {bytes(each) for each in pq.read_table(tables / "record_index.parquet")["id"].to_pylist()}
    assert len(ids) == len(folder.records) - 1
    assert bytes.fromhex(record.id.replace("-", "")) not in ids
    blocks = [each for each in pq.read_table(tables / "statement.parquet")["records"].to_pylist() if each]
    plain = b"".join(zstd.decompress_bounded(block, 1 << 24) or b"" for block in blocks)
    assert folder.records[1].id.encode() in plain
    assert record.id.encode() not in plain
