"""A month is settled between an operator and a customer, each with the commands alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.core.records import Usage
from ledger.core.statements import Acknowledgement
from ledger.emit import Recorder
from tests.build import make_deployment
from tests.cli.conftest import Run, json_of
from tests.emit.real_service import RealService, running_service

REQUESTS = 12


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("settled") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def recorded(service: RealService, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A recorder's spool, and the ids of the customer's records."""
    directory = tmp_path_factory.mktemp("recorder") / "spool"
    with Recorder(
        deployment=make_deployment(), spool=directory, issuer="gpu.example.com/settled", **service.options
    ) as recorder:
        service.register(recorder)
        ids = []
        for n in range(REQUESTS):
            for tenant in ("acme", "other"):
                made = recorder.record(
                    started_us=1_760_000_400_000_000 + n * 1000,
                    ended_us=1_760_000_401_000_000 + n * 1000,
                    usage=Usage(input_tokens=10 + n % 3, output_tokens=3),
                    input_ids=list(range(10 + n % 3)),
                    output_ids=[1, 2, 3],
                    tenant=tenant,
                    request_id=f"{tenant}-{n}",
                    cost_nano=100 + n,
                    currency="EUR",
                )
                if tenant == "acme":
                    ids.append(made)
        assert recorder.flush(30), recorder.status()
    return directory, ids


@pytest.fixture
def environment(service: RealService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYSTICK_URL", service.url)
    monkeypatch.setenv("TALLYSTICK_LOG_KEY", str(service.folder / "log.vkey"))
    monkeypatch.setenv("TALLYSTICK_API_KEY", service.admin_key)


def own_log(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.usefixtures("environment")
def test_from_bundle_to_dispute(
    run: Run, service: RealService, recorded: tuple[Path, list[str]], tmp_path: Path
) -> None:
    spool, ids = recorded
    vkey = service.folder / "log.vkey"
    bundle = tmp_path / "acme.settlement"
    made = json_of(
        run("settlement", "bundle", service.folder, bundle, "--tenant", "acme", "--spool", spool, "--json")
    )
    assert (made["records"], made["opened"]) == (REQUESTS, REQUESTS)

    # The customer has the bundle and the log's key.
    found = json_of(run("settlement", "verify", bundle, "--log-key", vkey, "--json"))
    assert (found["verdict"], found["tenant"], found["records"]) == ("sound", "acme", REQUESTS)
    assert sum(each["figures"]["cost_nano"]["EUR"] for each in found["totals"]) == sum(
        100 + n for n in range(REQUESTS)
    )
    shown = run("verify", bundle, "--log-key", vkey)
    assert shown.exit_code == 0
    assert "settlement" in shown.stdout

    # Acknowledged, once.
    customer = tmp_path / "customer"
    arguments = ("settlement", "acknowledge", bundle, "--spool", customer, "--issuer", "acme.example.com")
    refused = run(*arguments, "--timeout", "5")
    assert refused.exit_code == 2
    assert "issuers add" in refused.output
    run("issuers", "add", service.url, "acme.example.com", "--key", customer / "issuer.pub")
    first = json_of(run(*arguments, "--json"))
    assert first["new"] >= 0
    assert len(first["statements"]) == made["statements"]
    again = json_of(run(*arguments, "--json"))
    assert again["new"] == 0
    assert again["statements"][0]["leaf_index"] == first["statements"][0]["leaf_index"]
    payload = service_statement(service, first["statements"][0]["leaf_index"])
    assert isinstance(payload, Acknowledgement)

    # The customer's own log agrees, by request ids and by record ids.
    rows = [
        {"request": f"acme-{n}", "input_tokens": 10 + n % 3, "output_tokens": 3, "cost_nano": 100 + n}
        for n in range(REQUESTS)
    ]
    agrees = run("settlement", "dispute", bundle, own_log(tmp_path / "own.csv", rows), "--log-key", vkey)
    assert agrees.exit_code == 0, agrees.output
    assert "own line" not in agrees.stdout  # no table of differences where there are none
    by_record = [{"record": i, "input_tokens": 10 + n % 3} for n, i in enumerate(ids)]
    lines = tmp_path / "own.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in by_record))
    assert run("settlement", "dispute", bundle, lines, "--log-key", vkey).exit_code == 0

    # It differs in four ways, and the file says how.
    rows[3]["input_tokens"] = 7
    rows[5]["cost_nano"] = 1
    del rows[8]
    rows.append({"request": "acme-new", "input_tokens": 1, "output_tokens": 1, "cost_nano": 1})
    rows.append(rows[0])
    key = tmp_path / "customer.pem"
    run("keys", "generate", key)
    out = tmp_path / "dispute.json"
    disputed = run(
        *("settlement", "dispute", bundle, own_log(tmp_path / "differs.csv", rows), "--log-key", vkey),
        *("--customer", "acme.example.com", "--key", key, "--out", out, "--json"),
    )
    assert disputed.exit_code == 1
    differences = {each["kind"]: each for each in json_of(disputed)["differences"]}
    assert len(json_of(disputed)["differences"]) == 5
    assert differences["not-in-own-log"]["record"] == ids[8]
    assert differences["not-in-bundle"]["request"] == "acme-new"
    assert differences["twice"]["record"] == ids[0]
    kinds = [each for each in json_of(disputed)["differences"] if each["kind"] == "figures-differ"]
    assert [(each["record"], each["figures"]) for each in kinds] == [
        (ids[3], ["input_tokens"]),
        (ids[5], ["cost_nano"]),
    ]
    assert kinds[0]["own"]["input_tokens"] == 7
    assert kinds[0]["logged"]["input_tokens"] == 10

    # The operator checks the dispute.
    arguments = ("settlement", "check-dispute", out, bundle, "--log-key", vkey, "--customer-key", key)
    checked = json_of(run(*arguments, "--json"))
    assert (checked["differences"], checked["problems"]) == (5, [])
    out.write_bytes(out.read_bytes().replace(b'"input_tokens":7', b'"input_tokens":8'))
    assert run(*arguments).exit_code == 2

    # One changed figure is found and named, by either command.
    data = bundle.read_bytes()
    at = data.index(b'"output_tokens":3')
    bundle.write_bytes(data[:at] + b'"output_tokens":4' + data[at + 17 :])
    for command in ("settlement verify", "verify"):
        found_again = run(*command.split(), bundle, "--log-key", vkey)
        assert found_again.exit_code == 1
        assert "record" in found_again.output
    assert run("settlement", "acknowledge", bundle, "--spool", customer).exit_code == 2


def service_statement(service: RealService, leaf: int) -> Any:
    import urllib3

    from ledger.core.statements import decode_statement

    answer = urllib3.request(
        "GET",
        f"{service.url}/entries/{leaf}/statement",
        headers={"Authorization": f"Bearer {service.admin_key}"},
    )
    return decode_statement(answer.data).payload
