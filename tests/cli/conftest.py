"""A small real ledger in a folder, and ways to run commands on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner, Result

from cli.children import free_port
from cli.folder import Folder
from cli.main import app
from ledger.core.keys import PrivateKey
from ledger.core.records import Record
from ledger.keyfiles import load_private_key
from ledger.store import Limits, Sequencer, prepare_statement, queries
from tests import build

RECORDS_PER_BATCH = 5
BATCHES = 3


@dataclass(frozen=True)
class LedgerFolder:
    """A folder with a log: genesis, an issuer's key, a deployment, a factor set and three batches."""

    path: Path
    records: tuple[Record, ...]
    issuer: build.Issuer

    @property
    def vkey(self) -> str:
        return (self.path / "log.vkey").read_text().strip()


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TALLYSTICK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")


def run_command(*args: Any) -> Result:
    """Run a command in this process; stdout and stderr apart."""
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="tallystick")


@pytest.fixture
def run() -> Run:
    """See ``run_command``."""
    return run_command


def json_of(result: Result) -> Any:
    """The one JSON document on stdout."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return json.loads(result.stdout)


def fill(path: Path, *, batches: int = BATCHES) -> LedgerFolder:
    """Log statements in a fresh folder."""
    folder = Folder(path)
    store = folder.open()
    issuer = build.Issuer()
    deployment, factors = build.make_deployment(), build.make_factor_set()
    sequencer = Sequencer(store, load_private_key(folder.log_key), published=folder.published)
    sequencer.start()
    records: list[Record] = []
    try:
        sequencer.add_key(issuer.name, issuer.key.public).result(30)
        _log(sequencer, issuer.key, issuer.deployment(deployment).entry, None)
        _log(sequencer, issuer.key, issuer.factors(factors).entry, None)
        for n in range(batches):
            made = build.make_records(RECORDS_PER_BATCH, deployment, first=n * RECORDS_PER_BATCH)
            sealed = issuer.batch(made)
            _log(sequencer, issuer.key, sealed.statement.entry, sealed.lines)
            records += made
    finally:
        sequencer.stop()
        store.close()
    return LedgerFolder(path, tuple(records), issuer)


def _log(sequencer: Sequencer, key: PrivateKey, entry: bytes, lines: bytes | None) -> None:
    prepared = prepare_statement(
        entry,
        lines,
        key_of=lambda issuer, kid: key.public,
        now_us=time.time_ns() // 1000,
        limits=Limits(),
    )
    sequencer.submit(prepared).result(30)


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> LedgerFolder:
    """A ledger that tests only read."""
    path = tmp_path_factory.mktemp("cli") / "ledger-data"
    made = run_command("init", path, "--origin", build.ORIGIN)
    assert made.exit_code == 0, made.output
    return fill(path)


@pytest.fixture
def own_ledger(tmp_path: Path) -> LedgerFolder:
    """A ledger that a test may change."""
    path = tmp_path / "own-ledger"
    made = run_command("init", path, "--origin", build.ORIGIN)
    assert made.exit_code == 0, made.output
    return fill(path, batches=1)


@dataclass(frozen=True)
class RunningService:
    """A service in a process of its own."""

    url: str
    ledger: LedgerFolder
    admin_key: Path


@pytest.fixture(scope="session")
def service(ledger: LedgerFolder) -> Iterator[RunningService]:
    """`tallystick serve` over the ledger, in a process of its own."""
    import urllib3

    log = (ledger.path.parent / "service.log").open("wb")
    command = [sys.executable, "-m", "cli", "serve", str(ledger.path), "--port", str(free_port()), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(_first_document(process.stdout))["url"]
            deadline = time.monotonic() + 120
            while True:
                try:
                    if urllib3.request("GET", f"{url}/healthz", retries=False, timeout=2).status == 200:
                        break
                except urllib3.exceptions.HTTPError:
                    assert process.poll() is None, "the service ended"
                assert time.monotonic() < deadline, "the service does not answer"
                time.sleep(0.1)
            yield RunningService(url, ledger, ledger.path / "admin.key")
        finally:
            process.terminate()
            process.wait(60)
            log.close()


def _first_document(stream: IO[str]) -> str:
    lines = []
    for line in stream:
        lines.append(line)
        if line == "}\n":
            break
    return "".join(lines)


def log_size(path: Path) -> int:
    """How many leaves the log in a folder has."""
    store = Folder(path).open()
    try:
        with store.read() as connection:
            return queries.log_head(connection).size
    finally:
        store.close()
