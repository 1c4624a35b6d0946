"""Calls every operation with what the OpenAPI document allows and what it forbids: ``make schemathesis``.

No answer may be a server error, nor one that the document does not describe: status, media type, headers,
body. Calls go over HTTP to a service of its own, with keys that may do all, read, or act for one tenant, and
with none. The same seed makes the same calls, as far as the log's state does not differ.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi import checks

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
BINARY = ("application/cose", "application/vnd.tallystick.batch+cbor")
_START_S = 60


@schemathesis.serializer(*BINARY)
def _binary(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@dataclass
class Outcome:
    """What was called, what came back, and what was wrong with it."""

    calls: int = 0
    operations: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A service over a log with records of two tenants: its URL, and API keys by what they may do."""
    from cli.folder import Folder
    from cli.init import init_folder
    from ledger.service.admin import grant_api_key
    from tests.build import ORIGIN, Issuer, make_deployment, make_factor_set, make_records

    init_folder(folder, ORIGIN)
    opened, issuer = Folder(folder), Issuer()
    store = opened.open()
    with opened.sequencer(store) as sequencer:
        from ledger.store import Limits, prepare_statement

        sequencer.add_key(issuer.name, issuer.key.public).result(30)
        batch = issuer.batch(make_records(6, make_deployment()), advance=False)
        for item in (issuer.deployment(make_deployment()), issuer.factors(make_factor_set())):
            prepared = prepare_statement(
                item.entry, None, key_of=lambda *_: issuer.key.public, now_us=2**52, limits=Limits()
            )
            sequencer.submit(prepared).result(30)
        batch = issuer.batch(make_records(6, make_deployment()))
        prepared = prepare_statement(
            batch.statement.entry,
            batch.lines,
            key_of=lambda *_: issuer.key.public,
            now_us=2**52,
            limits=Limits(),
        )
        sequencer.submit(prepared).result(30)
        keys = {
            "admin": grant_api_key(sequencer, "all", ["admin"]),
            "read": grant_api_key(sequencer, "reading", ["read"]),
            "tenant": grant_api_key(sequencer, "one tenant's", ["read", "emit"], tenant="t-1"),
        }
    store.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"TALLYSTICK_PREPARE_PROCESSES": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", str(folder), "--port", str(port)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(url, process)
        yield url, keys
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the service did not start")


def fuzz(url: str, keys: dict[str, str], *, examples: int, number: int) -> Outcome:
    """Call every operation ``examples`` times with what may be and as often with what may not."""
    import requests

    outcome = Outcome()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tokens: list[str | None] = [keys["admin"], keys["read"], keys["tenant"], None]
    session = requests.Session()
    for result in schema.get_all_operations():
        operation = result.ok()
        outcome.operations += 1
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @seed(number)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            )
            @given(case=operation.as_strategy(mode), token=st.sampled_from(tokens))
            def call(case: Any, token: str | None) -> None:
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                response = case.call(base_url=url, headers=headers, session=session, timeout=30)
                outcome.calls += 1
                outcome.statuses[response.status_code] += 1
                case.validate_response(response, checks=CHECKS)

            try:
                call()
            except (Failure, FailureGroup) as error:
                outcome.failures.append(f"{operation.label}: {_shown(error)}")
            except Exception as error:
                text = f"{type(error).__name__}: {str(error)[:300]}"
                if mode is GenerationMode.POSITIVE or "Unsatisfiable" not in text:
                    outcome.failures.append(f"{operation.label} ({mode.value}): {text}")
    return outcome


def _shown(error: BaseException) -> str:
    return str(getattr(error, "exceptions", (error,))[0])[:600].replace("\n", " | ")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=60, help="calls of each kind for each operation")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "ledger-data") as (url, keys):
        outcome = fuzz(url, keys, examples=arguments.examples, number=arguments.seed)
    print(f"{outcome.operations} operations, {outcome.calls} calls, seed {arguments.seed}")
    print(", ".join(f"{status}: {count}" for status, count in sorted(outcome.statuses.items())))
    for failure in outcome.failures:
        print(f"FAILED {failure}")
    sys.exit(bool(outcome.failures))


if __name__ == "__main__":
    main()
