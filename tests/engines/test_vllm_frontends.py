"""The vLLM plugin with two API servers, adapters, drafted tokens, samples, users, and a dying engine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from tests.engines.conversations import Client, conversations, send_at_once
from tests.engines.real_ledger import Ledger, serving
from tests.engines.smollm2 import tiny_llama, tiny_lora
from tests.engines.vllm_server import VllmServer, serving_vllm

pytest.importorskip("vllm")

DRAFTS = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}'


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with serving(tmp_path_factory.mktemp("frontends"), "vllm-frontends") as running:
        yield running


@pytest.fixture(scope="module")
def server(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    options = ["--api-server-count", "2", "--enable-log-requests", "--enable-lora", "--max-lora-rank", "8"]
    options += ["--lora-modules", f"arithmetic={tiny_lora()}"]
    options += ["--speculative-config", DRAFTS, "--per-request-spec-decode-metrics", "summary"]
    folder = tmp_path_factory.mktemp("vllm")
    with serving_vllm(folder, tiny_llama(), ledger, *options, TALLYSTICK_TENANT_FIELD="user") as running:
        yield running


def ask(server: VllmServer, request_id: str, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    """One request on a connection of its own, so that either API server may get it."""
    answer = urllib3.request(
        "POST",
        server.url + path,
        json={"model": "test-model", "return_token_ids": True, "temperature": 0.0, "max_tokens": 12} | body,
        headers={"X-Request-Id": request_id, "Connection": "close"},
        timeout=120,
    )
    found: dict[str, Any] = answer.json()
    assert answer.status == 200, found
    return found


def recorded(ledger: Ledger, requests: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """The newest records, which must be of these requests, so many of each."""
    count = sum(requests.values())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        newest = ledger.records()[-count:]
        try:
            found = ledger.by_request(newest, list(requests))
        except AssertionError:  # not all there yet: older ones are among the newest
            time.sleep(0.3)
            continue
        if {request: len(records) for request, records in found.items()} == requests:
            return found
        time.sleep(0.3)
    raise AssertionError(f"not recorded as expected: {requests}")


def test_counts_and_ids_are_vllms(server: VllmServer, ledger: Ledger) -> None:
    sent = [one for one in conversations(60, "test-model", seed=3) if one.leaves_after is None]
    send_at_once(server.url, sent)
    found = recorded(ledger, {one.engine_id: 1 for one in sent})
    for one in sent:
        (record,) = found[one.engine_id]
        assert one.usage is not None
        assert record["usage"]["input_tokens"] == one.usage["prompt_tokens"]
        assert record["usage"]["output_tokens"] == one.usage["completion_tokens"]
        assert ledger.opens(record, "output", one.output_ids)


def test_drafted_and_accepted_tokens_are_vllms(server: VllmServer, ledger: Ledger) -> None:
    answers = {
        f"cmpl-draft-{i}-0": ask(server, f"draft-{i}", prompt="count to ten and back " * 8, max_tokens=60 + i)
        for i in range(3)
    }
    found = recorded(ledger, dict.fromkeys(answers, 1))
    for request, answer in answers.items():
        told = answer["metrics"]["speculative_decoding"]
        usage = found[request][0]["usage"]
        assert usage["drafted_tokens"] == told["num_draft_tokens"] > 0
        assert usage["accepted_tokens"] == told["num_accepted_draft_tokens"]
        assert usage["output_tokens"] == answer["usage"]["completion_tokens"]


def test_each_sample_has_a_record(server: VllmServer, ledger: Ledger) -> None:
    answer = ask(server, "three", prompt="again", n=3, temperature=1.0, seed=5)
    records = recorded(ledger, {"cmpl-three-0": 3})["cmpl-three-0"]
    assert sum(each["usage"]["output_tokens"] for each in records) == answer["usage"]["completion_tokens"]
    assert {each["usage"]["input_tokens"] for each in records} == {answer["usage"]["prompt_tokens"]}
    for choice in answer["choices"]:
        assert any(ledger.opens(record, "output", choice["token_ids"]) for record in records)


def test_each_prompt_of_a_request_has_a_record(server: VllmServer, ledger: Ledger) -> None:
    answer = ask(server, "two", prompt=["one prompt", "and another one"])
    found = recorded(ledger, {"cmpl-two-0": 1, "cmpl-two-1": 1})
    for choice in answer["choices"]:
        (record,) = found[f"cmpl-two-{choice['index']}"]
        assert ledger.opens(record, "input", choice["prompt_token_ids"])
        assert ledger.opens(record, "output", choice["token_ids"])


def test_an_adapter_makes_another_deployment(server: VllmServer, ledger: Ledger) -> None:
    messages = [{"role": "user", "content": "one and one"}]
    for i in range(4):
        ask(server, f"lora-{i}", "/v1/chat/completions", model="arithmetic", messages=messages)
    records = recorded(ledger, {f"chatcmpl-lora-{i}": 1 for i in range(4)})
    deployments = [ledger.deployment(record) for (record,) in records.values()]
    assert {deployment["adapters"][0]["name"] for deployment in deployments} == {"arithmetic"}
    assert {deployment["model"] for deployment in deployments} == {"test-model"}
    assert deployments[0]["speculative"] == {"method": "ngram", "model": "ngram", "tokens": 3}
    assert deployments[0]["attention"] == "CPU_ATTN"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_user_is_the_tenant(server: VllmServer, ledger: Ledger, path: str, stream: bool) -> None:
    hello: dict[str, Any] = {"prompt": "hello"}
    if "chat" in path:
        hello = {"messages": [{"role": "user", "content": "hello"}]}
    if "responses" in path:
        hello = {"input": "hello", "max_output_tokens": 12, "store": False}
    before = {record["id"] for record in ledger.records()}
    for user in ("acme-1", None, "jane@example.com"):
        urllib3.request(
            "POST",
            server.url + path,
            json={"model": "test-model", "max_tokens": 4, "stream": stream, "user": user} | hello,
            timeout=120,
        )
    deadline = time.monotonic() + 30
    while len(ledger.records()) < len(before) + 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    new = [record for record in ledger.records() if record["id"] not in before]
    tenants = sorted(str(record.get("tenant")) for record in new)
    assert tenants[:2] == ["None", "acme-1"]
    assert tenants[2].startswith("p-")


def test_both_api_servers_recorded(server: VllmServer) -> None:
    lines = [line for line in server.log.read_text().splitlines() if "Added request" in line]
    assert {line.split()[0] for line in lines} == {"(ApiServer_0", "(ApiServer_1"}


def test_a_refused_request_has_no_record(server: VllmServer, ledger: Ledger) -> None:
    before = len(ledger.records())
    refused: list[dict[str, Any]] = [{"prompt": "long " * 5000}, {"prompt": "x", "temperature": -1}]
    for body in [*refused, {"prompt": "x", "model": "absent"}]:
        answer = urllib3.request("POST", f"{server.url}/v1/completions", json={"model": "test-model"} | body)
        assert 400 <= answer.status < 500
    time.sleep(2.0)
    assert len(ledger.records()) == before


def test_a_dying_engine_leaves_records_of_what_it_had_made(server: VllmServer, ledger: Ledger) -> None:
    """Last: the server ends with its engine."""
    sent = [one for one in conversations(40, "test-model", seed=4) if one.leaves_after and one.body["stream"]]
    for one in sent:
        one.leaves_after = None
    before = len(ledger.records())
    client = Client(server.url, sent)
    deadline = time.monotonic() + 60
    while any(len(one.output_ids) < 5 for one in sent) and time.monotonic() < deadline:
        time.sleep(0.05)
    (engine,) = server.children("EngineCore")
    os.kill(engine, signal.SIGKILL)
    time.sleep(3)
    client.leave()
    records = ledger.wait_for(before + len(sent), timeout_s=30)[before:]
    found = ledger.by_request(records, [one.engine_id for one in sent])
    for one in sent:
        (record,) = found[one.engine_id]
        made = record["usage"]["output_tokens"]
        assert made >= len(one.output_ids) >= 5
        assert ledger.opens(record, "output", one.body["allowed_token_ids"] * made)
    # "abort" if the server was told to end before it saw that its engine had died.
    assert {record["finish_reason"] for record in records} <= {"error", "abort"}
