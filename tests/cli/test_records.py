"""Reading commands: a folder and a service give the same answers; figures are rounded in tables only."""

from __future__ import annotations

import msgspec
import pytest

from ledger.core.records import encode_record
from tests import build
from tests.cli.conftest import BATCHES, RECORDS_PER_BATCH, LedgerFolder, Run, RunningService, json_of

COUNT = BATCHES * RECORDS_PER_BATCH


def expected(ledger: LedgerFolder) -> list[object]:
    return [msgspec.json.decode(encode_record(record)) for record in ledger.records]


def test_list_gives_every_record_as_it_was_logged(ledger: LedgerFolder, run: Run) -> None:
    page = json_of(run("records", "list", ledger.path, "--all", "--json"))
    assert [each["record"] for each in page["records"]] == expected(ledger)
    assert "next" not in page


def test_pages_join_without_gap(ledger: LedgerFolder, run: Run) -> None:
    found, cursor = [], []
    while True:
        page = json_of(run("records", "list", ledger.path, "--limit", 4, *cursor, "--json"))
        found += [each["record"] for each in page["records"]]
        if "next" not in page:
            break
        cursor = ["--cursor", page["next"]]
    assert found == expected(ledger)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("--model", "SmolLM2-135M-Instruct"), COUNT),
        (("--model", "other"), 0),
        (("--tenant", "t-1"), COUNT // 3),
        (("--issuer", build.ISSUER), COUNT),
        (("--issuer", "nobody.example.com"), 0),
        (("--from", "2025-10-09T09:00:00.002Z"), COUNT - 2),
        (("--from", "2025-10-09T11:00:00.002+02:00"), COUNT - 2),
        (("--from", str(build.START_US + 2000), "--to", str(build.START_US + 5000)), 3),
        (("--to", "2025-10-09"), 0),
    ],
)
def test_filters(ledger: LedgerFolder, run: Run, arguments: tuple[str, ...], count: int) -> None:
    page = json_of(run("records", "list", ledger.path, *arguments, "--all", "--json"))
    assert len(page["records"]) == count


@pytest.mark.parametrize(
    "arguments",
    [
        ("--from", "2026-01-01", "--to", "2025-01-01"),
        ("--from", "9" * 30),
        ("--deployment", "zz"),
        ("--cursor", "9" * 30),
    ],
)
def test_what_can_find_nothing_is_refused(ledger: LedgerFolder, run: Run, arguments: tuple[str, ...]) -> None:
    for command in (("records", "list"), ("rollups",)):
        if command == ("rollups",) and "--cursor" in arguments:
            continue
        result = run(*command, ledger.path, *arguments)
        assert result.exit_code == 2, result.output
        assert "remedy: " in result.stderr
        assert "unexpected" not in result.stderr


def test_table_is_for_people(ledger: LedgerFolder, run: Run) -> None:
    result = run("records", "list", ledger.path, "--limit", 1)
    assert ledger.records[0].id in result.stdout
    assert "SmolLM2-135M-Instruct" in result.stdout
    assert "~417 µWh   modelled" in result.stdout
    assert "2025-10-09T09:00:00.000Z" in result.stdout
    assert "--cursor" in result.stderr


def test_show(ledger: LedgerFolder, run: Run) -> None:
    record = ledger.records[7]
    shown = json_of(run("records", "show", ledger.path, record.id, "--json"))
    assert shown["record"] == expected(ledger)[7]
    assert shown["position"] == 7 % RECORDS_PER_BATCH
    text = run("records", "show", ledger.path, record.id).stdout
    assert record.id in text
    assert "salted hash of tokens" in text


def test_unknown_record(ledger: LedgerFolder, run: Run) -> None:
    result = run("records", "show", ledger.path, build.make_uuid7(build.START_US, "nobody"), "--json")
    assert result.exit_code == 2
    assert json_of(result)["error"]["code"] == "not-found"


def test_rollups_sum_exactly(ledger: LedgerFolder, run: Run) -> None:
    rows = json_of(run("rollups", ledger.path, "--json"))["rows"]
    assert len(rows) == 1
    assert rows[0]["records"] == COUNT
    assert rows[0]["energy_uj"] == sum(record.energy.energy_uj for record in ledger.records)
    assert "carbon_ng" not in rows[0]
    by_tenant = json_of(run("rollups", ledger.path, "--by", "tenant", "--json"))["rows"]
    assert {row["tenant"]: row["records"] for row in by_tenant} == {f"t-{n}": COUNT // 3 for n in range(3)}
    table = run("rollups", ledger.path).stdout
    assert "2025-10-09" in table
    assert "modelled" in table


@pytest.mark.parametrize(
    "arguments",
    [
        ("records", "list", "TARGET", "--all", "--json"),
        ("records", "list", "TARGET", "--tenant", "t-2", "--json"),
        ("records", "show", "TARGET", "RECORD", "--json"),
        ("rollups", "TARGET", "--by", "day", "--by", "tenant", "--json"),
        ("issuers", "list", "TARGET", "--json"),
        ("records", "list", "TARGET"),
        ("rollups", "TARGET"),
        ("issuers", "list", "TARGET"),
    ],
    ids=" ".join,
)
def test_folder_and_service_answer_alike(
    service: RunningService, run: Run, arguments: tuple[str, ...]
) -> None:
    def with_target(target: object) -> list[object]:
        record = service.ledger.records[3].id
        return [{"TARGET": target, "RECORD": record}.get(word, word) for word in arguments]

    local = run(*with_target(service.ledger.path))
    remote = run(*with_target(service.url), "--api-key-file", service.admin_key)
    assert local.exit_code == remote.exit_code == 0, remote.output
    assert remote.stdout == local.stdout


def test_without_a_key_the_service_refuses(service: RunningService, run: Run) -> None:
    result = run("records", "list", service.url, "--json")
    assert result.exit_code == 2
    error = json_of(result)["error"]
    assert error["code"] == "missing-key"
    assert "TALLYSTICK_API_KEY" in error["remedy"]


def test_the_key_is_read_from_the_environment(
    service: RunningService, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYSTICK_API_KEY", service.admin_key.read_text().strip())
    assert run("records", "list", service.url).exit_code == 0
