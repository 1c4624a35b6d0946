"""The monitor against real services over HTTP: growth, forks, old copies, chains, witnesses, webhooks."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from cli.children import free_port
from ledger.core.keys import generate_key
from ledger.core.log_keys import log_verifier_key
from ledger.core.note import ED25519, VerifierKey, format_vkey
from ledger.core.policy import parse_policy
from ledger.keyfiles import write_private
from ledger.monitor.follow import Followed
from ledger.monitor.run import Monitor, Webhook
from ledger.monitor.state import load_state
from ledger.outgoing import parse_reach
from ledger.service import Settings, create_app
from ledger.witness.ask import WitnessClient
from tests.cli.conftest import json_of, run_command
from tests.witness.running import policy_text, running, wait_for
from tests.witness.test_service import FAST, ORIGIN, Log

HERE = parse_reach("127.0.0.1")


@pytest.fixture(autouse=True)
def _reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYSTICK_INTERNAL_HOSTS", "127.0.0.1")


class ServedLog(Log):
    """A log served on a port, by a thread."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, **settings) -> None:
        import httpx

        app = create_app(self.ledger.store, self.ledger.log_key, Settings(**settings))
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started)
        self.client = httpx.Client(base_url=self.url)

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)

    def keys(self):
        return (log_verifier_key(ORIGIN, self.ledger.log_key.public),)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ServedLog]:
    made = ServedLog(tmp_path / "ledger")
    made.start()
    yield made
    made.stop()
    made.ledger.store.close()


class Hook:
    """A webhook that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[dict] = []
        self.fail = False
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not hook.fail:
                    hook.got.append(json.loads(body) | {"token": self.headers["Authorization"]})
                self.send_response(500 if hook.fail else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()


def monitor_of(log: ServedLog, folder: Path, hook: Hook | None = None, **options) -> Monitor:
    followed = Followed(log.url, log.keys(), **options)
    return Monitor([followed], folder, None if hook is None else Webhook(hook.url, HERE, "t0ken"))


def codes(monitor: Monitor) -> list[str]:
    [report] = monitor.round()
    return [each.code for each in report.alarms]


@pytest.mark.parametrize("depth", ["tree", "entries", "records"])
def test_a_log_that_grows_is_well(log: ServedLog, tmp_path: Path, depth: str) -> None:
    monitor = monitor_of(log, tmp_path / "m", depth=depth, api_key=log.token)
    for round_ in range(3):
        for _ in range(round_):
            log.send()
        [report] = monitor.round()
        assert report.alarms == ()
        assert report.size == log.size()
        assert report.entries == ({0: 3}.get(round_, round_) if depth != "tree" else 0)
        assert report.records == (2 * round_ if depth == "records" else 0)
        monitor = monitor_of(log, tmp_path / "m", depth=depth, api_key=log.token)  # memory alone goes on


def test_a_long_log_is_read_on_in_the_middle_of_a_bundle(log: ServedLog, tmp_path: Path) -> None:
    log.ledger.append(*(log.ledger.issuer.heartbeat() for _ in range(300)))
    monitor = monitor_of(log, tmp_path / "m")
    assert codes(monitor) == []
    log.ledger.append(*(log.ledger.issuer.heartbeat() for _ in range(220)))
    assert codes(monitor) == []
    assert load_state(tmp_path / "m", ORIGIN).size == 523


@pytest.mark.sqlite
def test_fork_drill(log: ServedLog, tmp_path: Path, hook: Hook) -> None:
    """An old copy is put back and served; then it grows into another history. Both are told, once each."""
    log.send()
    copy, issuer = log.back_up(), dataclasses.replace(log.ledger.issuer)
    log.send()
    monitor = monitor_of(log, tmp_path / "m", hook)
    assert codes(monitor) == []
    log.stop()
    log.restore(copy)
    log.start()
    for _ in range(2):
        assert codes(monitor) == ["log-rolled-back"]
    log.ledger.issuer = issuer
    for _ in range(3):
        log.sent += 100
        log.send()
    for _ in range(2):
        assert codes(monitor) == ["forked"]
    assert [[alarm["code"] for alarm in each["alarms"]] for each in hook.got] == [
        ["log-rolled-back"],
        ["forked"],
    ]
    assert hook.got[0]["token"] == "Bearer t0ken"
    assert all(alarm["grave"] for each in hook.got for alarm in each["alarms"])
    notes = [each.read_text() for each in (tmp_path / "m" / "evidence").iterdir()]
    assert len(notes) == 2
    assert all(each.count(f"{ORIGIN}\n") == 2 for each in notes)
    assert b'code="forked"} 1' in monitor.metrics()


def test_an_alarm_that_did_not_arrive_is_sent_again(log: ServedLog, tmp_path: Path, hook: Hook) -> None:
    monitor = monitor_of(log, tmp_path / "m", hook, max_age_s=1)
    assert codes(monitor) == []
    log.stop()
    hook.fail = True
    assert codes(monitor) == ["unreachable"]
    hook.fail = False
    assert codes(monitor) == ["unreachable"]
    assert len(hook.got) == 1
    log.start()


def test_statements_that_do_not_follow(log: ServedLog, tmp_path: Path) -> None:
    """A service that logs what it should have refused: the tree is right, the chain is not."""
    monitor = monitor_of(log, tmp_path / "m")
    log.send()
    assert codes(monitor) == []
    from sqlalchemy import text

    log.ledger.issuer.seq += 1
    with log.ledger.store.write() as connection:
        connection.execute(
            text("UPDATE issuer SET next_seq = next_seq + 1 WHERE issuer = :name"),
            {"name": log.ledger.issuer.name},
        )
    log.stop()
    log.start()
    log.send()
    assert codes(monitor) == ["seq-gap"]


@pytest.mark.sqlite
def test_witnesses_are_asked(log: ServedLog, tmp_path: Path) -> None:
    with running(tmp_path / "w", "w.example/w", ["ed25519"]) as witness:
        witness.know(*log.keys())
        log.policy.write_text(policy_text(witness))
        judged = parse_policy(policy_text(witness, logs=log.keys()).encode())
        client = WitnessClient(judged.witnesses[0], timeout_s=10, reach=HERE)
        monitor = monitor_of(log, tmp_path / "m", policy=judged, witnesses=(client,))
        assert codes(monitor) == ["quorum-missed"]  # the log asks no witness
        copy, issuer = log.back_up(), dataclasses.replace(log.ledger.issuer)
        log.stop()
        log.start(witness_policy=str(log.policy), **FAST)
        leaf = log.send()
        wait_for(lambda: witness.size(ORIGIN) > leaf and codes(monitor) == [])
        # A monitor that never saw the log before is shown another history: the witness knows better.
        log.stop()
        log.restore(copy)
        log.start()
        log.ledger.issuer = issuer
        for _ in range(3):
            log.sent += 100
            log.send()
        fresh = monitor_of(log, tmp_path / "fresh", witnesses=(client,))
        assert codes(fresh) == ["forked"]


@pytest.mark.sqlite
def test_the_command(log: ServedLog, tmp_path: Path, hook: Hook) -> None:
    vkey = tmp_path / "log.vkey"
    vkey.write_text(format_vkey(log.keys()[0]))
    policy = tmp_path / "trust.policy"
    policy.write_text(f"log {format_vkey(log.keys()[0])} {log.url}\nquorum none\n")
    state, metrics = tmp_path / "m", tmp_path / "monitor.prom"
    common = ["--state", state, "--once", "--json", "--metrics-file", metrics, "--webhook", hook.url]
    first = run_command("monitor", log.url, "--log-key", vkey, *common)
    assert first.exit_code == 0, first.output
    [told] = json_of(first)
    assert (told["log"], told["size"], told["alarms"]) == (ORIGIN, 3, [])
    assert f'tallystick_monitor_tree_size{{log="{ORIGIN}"}} 3' in metrics.read_text()
    copy = log.back_up()
    log.send()
    assert run_command("monitor", "--policy", policy, *common).exit_code == 0
    log.stop()
    assert run_command("monitor", "--policy", policy, *common).exit_code == 2
    log.restore(copy)
    log.start()
    back = run_command("monitor", "--policy", policy, *common)
    assert back.exit_code == 1
    assert [each["code"] for each in json_of(back)[0]["alarms"]] == ["log-rolled-back"]
    assert run_command("monitor", "--state", state, "--once").exit_code == 2  # nothing to follow


def test_a_log_that_is_not_public_is_read_with_its_key(log: ServedLog, tmp_path: Path) -> None:
    log.stop()
    log.start(public_log=False)
    vkey, key = format_vkey(log.keys()[0]), tmp_path / "read.key"
    write_private(key, log.token.encode())
    common = (log.url, "--log-key", vkey, "--state", tmp_path / "m", "--once", "--json")
    shut = run_command("monitor", *common)
    assert (shut.exit_code, json_of(shut)[0]["alarms"][0]["code"]) == (2, "not-given")
    assert run_command("monitor", *common, "--api-key-file", key).exit_code == 0
    other = f"log {format_vkey(VerifierKey.of('other.example', ED25519, generate_key().public.raw_bytes()))} https://other.example\n"
    policy = tmp_path / "two.policy"
    policy.write_text(f"log {vkey} {log.url}\n{other}quorum none\n")
    shown = run_command("monitor", "--policy", policy, *common[3:], "--api-key-file", key)
    assert (shown.exit_code, json_of(shown)["error"]["where"]) == (2, "--api-key-file")


def test_metrics_over_http(log: ServedLog, tmp_path: Path) -> None:
    monitor = monitor_of(log, tmp_path / "m")
    monitor.round()
    server = monitor.serve_metrics("127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/metrics"
        assert b"tallystick_monitor_rounds_total 1" in urllib.request.urlopen(url, timeout=10).read()
    finally:
        server.shutdown()
